"""The figure of a study: every run's error over its epochs, and what was measured of each."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from common import stopping
from scripts.report.studies import MEASURES
from scripts.report.style import COLORS, GRAY, save, scale_error, style
from scripts.studies import plan
from scripts.studies.outcome import measured
from scripts.studies.plan import Run, Study


def draw(study: Study, records: Mapping[Run, dict], workdir: Path) -> None:
    """Writes figure.svg, which is legible on light and dark, and figure.png."""
    with style():
        figure = figure_of(study, records)
        for form in ("svg", "png"):
            save(figure, workdir / f"figure.{form}")


def figure_of(study: Study, records: Mapping[Run, dict]) -> Figure:
    """Curves on the left, with a band for the middle half of an arm's seeds; on the right a dot for
    each run, pairs joined, and the arm's mean.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    curves, dots = figure.subplots(1, 2, width_ratios=(3, 2))
    split, goal = "validation", None
    if study.ratio:
        split, goal = next(
            iter(stopping.criteria(next(iter(plan.first_configs(study).values()))).items())
        )
    elif not any(split in record["curves"] for record in records.values()):
        split = "test"
    for color, arm in zip(COLORS * 9, study.arms, strict=False):
        of_arm = [record for run, record in records.items() if run.arm == arm]
        draw_curves(curves, [record["curves"].get(split) for record in of_arm], color, arm)
    if goal:
        curves.axhline(goal, color=GRAY, linestyle=":", linewidth=1)
        curves.annotate(
            f"{goal:g}%", xy=(1.0, goal), xycoords=("axes fraction", "data"), va="center"
        )
    if study.metric == "epochs":
        curves.set_xscale("log")
        curves.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        curves.xaxis.set_major_formatter("{x:g}")
        curves.xaxis.set_minor_locator(NullLocator())
    else:
        curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    curves.set_xlabel("epoch")
    curves.set_ylabel(f"{'training' if split == 'train' else split} error (%)")
    scale_error(curves)
    above = dict(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, handlelength=1.2)
    curves.legend(**above, frameon=False, labelcolor=GRAY)
    draw_dots(dots, study, records)
    figure.suptitle(study.question, x=0.01, ha="left", fontsize=12, color=GRAY, parse_math=False)
    return figure


def draw_curves(axes: Axes, curves: list[dict | None], color: str, arm: str) -> None:
    """Each seed as a thin line; their median and middle half as far as all of them go."""
    curves = [curve for curve in curves if curve]
    for curve in curves:
        axes.plot(curve["epoch"], curve["error_pct"], color=color, linewidth=0.6, alpha=0.35)
    if not curves:
        return
    length = min(len(curve["epoch"]) for curve in curves)
    epochs = curves[0]["epoch"][:length]
    errors = np.array([curve["error_pct"][:length] for curve in curves])
    low, middle, high = np.quantile(errors, (0.25, 0.5, 0.75), axis=0)
    axes.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)
    axes.plot(epochs, middle, color=color, linewidth=1.8, label=arm)


def draw_dots(axes: Axes, study: Study, records: Mapping[Run, dict]) -> None:
    seeds: dict[int, list[tuple[int, float]]] = {}
    arms, censored_arms = list(study.arms), set()
    for run, record in records.items():
        value, censored = measured(record, study.metric)
        place, color = arms.index(run.arm), COLORS[arms.index(run.arm) % len(COLORS)]
        axes.plot(place, value, marker="^" if censored else "o", color=color, alpha=0.7, zorder=3)
        seeds.setdefault(run.seed, []).append((place, value))
        if censored:
            censored_arms.add(place)
    for points in seeds.values():
        axes.plot(*zip(*sorted(points), strict=True), color=GRAY, linewidth=0.5, alpha=0.5)
    for place in range(len(arms)):
        values = [value for points in seeds.values() for x, value in points if x == place]
        if values:
            mean = np.exp(np.mean(np.log(values))) if study.ratio else np.mean(values)
            axes.hlines(mean, place - 0.25, place + 0.25, color=GRAY, linewidth=2, zorder=4)
            at_least = "> " * (place in censored_arms)
            axes.annotate(f"{at_least}{mean:.3g}", (place + 0.28, mean), va="center", fontsize=9)
    if censored_arms:
        axes.plot([], [], "^", color=GRAY, label="did not get there: its limit")
        axes.legend(loc="best", fontsize=8)
    axes.set_xticks(range(len(arms)), arms, rotation=20 * (len(arms) > 4))
    axes.set_xlim(-0.6, len(arms) - 0.4)
    unit = "" if study.ratio else " (%)"
    axes.set_ylabel(f"{MEASURES[study.metric]}{unit}")
    axes.yaxis.set_major_locator(MaxNLocator(6))
    if study.ratio:
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color=GRAY, alpha=0.2)
    else:
        scale_error(axes)
