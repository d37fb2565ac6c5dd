"""curves.png: error, loss and learning rate of a run over its epochs, drawn from metrics.jsonl."""

import io
import math
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from common.workdir import read_metrics, write_atomic

LOOKS = {  # label and color of a split
    "train": ("training (mean of the epoch)", "#8a9bb0"),
    "validation": ("validation", "#c8452d"),
    "test": ("test", "#1f5a92"),
}
MAX_MARKED = 30  # points of a curve that are marked one by one
RATE_POINTS = 200


def draw_curves(workdir: Path, learning_rate: Callable[[int], float] | None = None) -> None:
    """Draws curves.png, unless no metrics were written yet.

    Args:
      workdir: the run's folder.
      learning_rate: the schedule, from the number of updates done to the rate of the next; without
        it there is no panel of the rate.
    """
    from matplotlib.figure import Figure  # not at the top: importing it takes half a second
    from matplotlib.ticker import MaxNLocator

    records = read_metrics(workdir)
    if not records:
        return
    rows, heights = (3, (3, 2, 1)) if learning_rate else (2, (3, 2))
    figure = Figure(figsize=(7, 1.1 + sum(heights)), dpi=130)
    panels = figure.subplots(rows, sharex=True, gridspec_kw={"height_ratios": heights})
    _draw_metric(panels[0], "error", mean_by_epoch(records, "error_pct"), ".2f", "%")
    _draw_metric(panels[1], "loss", mean_by_epoch(records, "loss"), ".3g")
    if learning_rate:
        epochs, rates = _rates(records, learning_rate)
        panels[2].plot(epochs, rates, color="#5b6770", linewidth=1.5)
        panels[2].set_ylabel("learning rate")
        panels[2].set_ylim(bottom=0)
    for axes in panels:
        axes.grid(which="major", color="#e4e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_title(workdir.absolute().name, loc="left", fontsize=11, parse_math=False)
    panels[-1].set_xlabel("epoch")
    panels[-1].set_xlim(left=0)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels()
    figure.subplots_adjust(left=0.1, right=0.98, top=0.96, bottom=0.07, hspace=0.08)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_atomic(workdir / "curves.png", image.getvalue())


def mean_by_epoch(records: list[dict], metric: str) -> dict[str, list[tuple[float, float]]]:
    """Split -> (epoch, value): a point per evaluation, and for training the mean of each epoch."""
    curves, epochs, last_step = {}, {}, 0
    for record in records:
        point = (record["epoch"], record[metric])
        if record["split"] == "train":
            steps, last_step = max(record["step"] - last_step, 1), record["step"]
            epochs.setdefault(math.ceil(record["epoch"]), []).append((*point, steps))
        else:
            curves.setdefault(record["split"], []).append(point)
    for points in epochs.values():
        ends, values, steps = zip(*points, strict=True)
        curves.setdefault("train", []).append((ends[-1], float(np.average(values, weights=steps))))
    return curves


def _draw_metric(axes, name: str, curves: dict, digits: str, unit: str = "") -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for split, (label, color) in LOOKS.items():
        if split in curves:
            epochs, values = zip(*curves[split], strict=True)
            marker = "o" if len(epochs) <= MAX_MARKED else None
            label = f"{label}: {values[-1]:{digits}}{unit}"
            axes.plot(
                epochs, values, color=color, label=label, linewidth=1.8, marker=marker, markersize=3
            )
    positive = [value for curve in curves.values() for _, value in curve if value > 0]
    if positive and max(positive) > 4 * min(positive):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{unit}"))
    axes.set_ylabel(name)
    axes.legend(frameon=False, fontsize=9)


def _rates(records: list[dict], learning_rate: Callable) -> tuple[np.ndarray, np.ndarray]:
    """(epochs, rates) of about RATE_POINTS updates up to the newest record."""
    last = max(records, key=lambda record: record["step"])
    steps = np.linspace(0, last["step"] - 1, min(last["step"], RATE_POINTS)).round().astype(int)
    return steps * last["epoch"] / last["step"], np.asarray(jax.jit(jax.vmap(learning_rate))(steps))
