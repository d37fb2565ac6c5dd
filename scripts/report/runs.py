"""Any runs side by side: their curves in one picture, the settings that differ in a table."""

import dataclasses
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.table import Column, Table

from common.curves import mean_by_epoch
from common.errors import UserError
from common.storage import require_place
from common.workdir import read_config, read_metrics
from scripts.report.results import NETWORKS, read_json
from scripts.report.style import COLORS, GRAY, save, scale_error, style
from scripts.runs import network_name

FORMS = (".svg", ".png")
RESULTS = ("test_error_pct", "validation_error_pct", "train_error_pct", "num_steps")


def compare(workdirs: list[Path], out: Path) -> None:
    """Prints the table and writes the picture. Raises UserError."""
    require_place(out, "--out", out.suffix if out.suffix in FORMS else " or ".join(FORMS))
    settings = {workdir: read_settings(workdir) for workdir in workdirs}
    print_table(settings)
    with style():
        save(draw({workdir: read_metrics(workdir) for workdir in workdirs}), out)
    print(f"{out} written")


def read_settings(workdir: Path) -> dict:
    """All settings of a run; what it is older than has its default. Raises UserError where there is
    no run that has begun.
    """
    config_class, name = NETWORKS[network_name(workdir)]
    config = read_config(config_class, workdir, name)
    if not read_metrics(workdir):
        raise UserError(f"{workdir} has no metrics yet")
    return dataclasses.asdict(config)


def print_table(settings: dict[Path, dict]) -> None:
    """A column for each run: the settings that are not the same in all, then the results."""
    table = Table("", *(Column(str(workdir), overflow="fold") for workdir in settings))
    names = dict.fromkeys(name for each in settings.values() for name in each)
    for name in names:
        values = [str(each.get(name, "–")) for each in settings.values()]
        if len(set(values)) > 1:
            table.add_row(name, *values)
    table.add_section()
    results = [read_json(workdir / "result.json") for workdir in settings]
    for name in RESULTS:
        if any(name in result for result in results):
            table.add_row(name, *(f"{result.get(name, '–')}" for result in results))
    Console(markup=False).print(table)


def draw(metrics: dict[Path, list[dict]]) -> Figure:
    """The error of each run over its epochs: measured while training (dashed), and evaluated."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for color, (workdir, records) in zip(COLORS * len(metrics), metrics.items(), strict=False):
        curves = mean_by_epoch(records, "error_pct")
        for split, points in curves.items():
            look = "--" if split == "train" else "-"
            label = f"{workdir}, {split}" if split != "train" or len(curves) == 1 else None
            marker = "o" if len(points) == 1 else None
            axes.plot(*zip(*points, strict=True), look, color=color, label=label, marker=marker)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("error (%); dashed: while training")
    scale_error(axes)
    legend = axes.legend(frameon=False, labelcolor=GRAY)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure
