"""The parts of a report as PNG and SVG files for slides."""

import contextlib
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.storage import make_folder
from common.workdir import write_atomic
from scripts.inspect.page import without_controls
from scripts.inspect.parts import Drawing, Gallery, Grid, Item, Subject, percent
from scripts.inspect.pixels import image_of
from scripts.report.style import COLORS, content, style

# Pictures in a row: of a gallery of at most MANY, of larger ones, and with room for bars.
MANY, COLUMNS, COLUMNS_OF_MANY, COLUMNS_WITH_BARS = 28, 7, 10, 4
NAME_WIDTH, CAPTION_WIDTH = 24, 13  # characters of a name; of a caption in an inch
LONGER_SIDE = 6.4  # inches, of a picture that is a file of its own


def write(subjects: list[Subject], folder: Path) -> int:
    """Writes each part that is a picture, NAME.svg and NAME.png, in a folder for each subject where
    there are several; returns how many files there are. Raises OSError.
    """
    count = 0
    for subject in subjects:
        place = folder / subject.name if len(subjects) > 1 else folder
        make_folder(place)
        for name, files in pictures(subject):
            for form, file in files.items():
                if file:
                    write_atomic(place / f"{name}.{form}", file)
                    count += 1
    return count


def pictures(subject: Subject) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(name, {form: file}) of each part that is a picture."""
    for part in subject.parts:
        match part:
            case Drawing():
                yield part.name, {"svg": part.svg, "png": part.png}
            case Grid():
                yield part.name, drawn(lambda part=part: grid(part))
            case Gallery(wide=True):
                for item in part.items:
                    name = f"{part.name}_{item.name}" if item.name else part.name
                    yield name, drawn(lambda item=item: single(item))
            case Gallery():
                yield part.name, drawn(lambda part=part: gallery(part))


def drawn(make) -> dict[str, bytes]:
    """The files of the figure that `make` returns."""
    with style(), quiet_about_glyphs():
        figure = make()
        return {form: content(figure, form) for form in ("svg", "png")}


@contextlib.contextmanager
def quiet_about_glyphs():
    """Names may have letters that matplotlib's font lacks; these become boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
        yield


def text(axes: Axes, x: float, y: float, *lines: str, width: int = NAME_WIDTH, **look) -> None:
    """Lines as they stand, of at most `width` characters: a name may be long, and have dollars."""
    short = [textwrap.wrap(line, width, max_lines=3, placeholder="…") for line in lines]
    words = "\n".join(part for parts in short for part in parts)
    axes.text(x, y, without_controls(words), parse_math=False, **look)


def grid(part: Grid) -> Figure:
    """A colored matrix with its numbers, right ones blue and wrong ones orange."""
    rows, columns = len(part.rows), len(part.columns)
    left, above = (
        0.5 + 0.09 * min(max(map(len, names)), NAME_WIDTH)  # inches for the names
        for names in ([part.corner, *(name for name, _ in part.rows)], part.columns)
    )
    size = left + 0.42 * columns + above / 2, above + 0.36 * rows
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    for y, (_, cells) in enumerate(part.rows):
        for x, cell in enumerate(cells):
            color = COLORS[1] if cell.is_wrong else COLORS[0]
            axes.fill(
                [x, x + 1, x + 1, x],
                [y, y, y + 1, y + 1],
                color=color,
                alpha=cell.shade * 0.4,
                lw=0,
            )
            if cell.text != "0":
                text(axes, x + 0.5, y + 0.5, cell.text, ha="center", va="center", fontsize=9)
    for x, name in enumerate(part.columns):
        slant = dict(rotation=45, ha="left") if len(name) > 3 else dict(ha="center")
        text(axes, x + 0.5, -0.2, name, va="bottom", fontsize=9, **slant)
    for y, (name, _) in enumerate(part.rows):
        text(axes, -0.2, y + 0.5, name, ha="right", va="center", fontsize=9)
    text(axes, -0.2, -0.2, part.corner, ha="right", va="bottom", fontsize=8)
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.axis("off")
    return figure


def single(item: Item) -> Figure:
    """One picture with its caption."""
    height, width, _ = item.image.shape
    scale = LONGER_SIDE / max(height, width)
    size = max(width * scale, LONGER_SIDE / 2), height * scale + 0.6  # room for the caption
    figure = Figure(figsize=size, layout="constrained")
    show(figure.subplots(), item, size[0])
    return figure


def gallery(part: Gallery) -> Figure:
    """Pictures in rows, each with its caption and, where it has them, its bars."""
    has_bars = any(item.bars for item in part.items)
    most = COLUMNS if len(part.items) <= MANY else COLUMNS_OF_MANY
    most = COLUMNS_WITH_BARS if has_bars else most
    rows: list[list[Item]] = [[]]
    for item in part.items:
        if len(rows[-1]) == most or (item.leads and rows[-1]):
            rows.append([])
        rows[-1].append(item)
    columns = max(map(len, rows))
    side = 2.2 if has_bars or len(part.items) <= 3 else 1.3
    heights = [side + 0.45, 1.0] if has_bars else [side + 0.45]  # inches, with the caption
    size = max(side * columns, 2.6), sum(heights) * len(rows)
    figure = Figure(figsize=size, layout="constrained")
    ratios = dict(height_ratios=heights * len(rows))
    panels = figure.subplots(len(heights) * len(rows), columns, squeeze=False, **ratios)
    for axes in panels.flat:
        axes.axis("off")
    for y, row in enumerate(rows):
        for x, item in enumerate(row):
            show(panels[len(heights) * y, x], item, side)
            if item.bars:
                draw_bars(panels[len(heights) * y + 1, x], item)
    return figure


def show(axes: Axes, item: Item, inches: float) -> None:
    """A picture with its caption below, of a width in inches."""
    axes.imshow(np.asarray(image_of(item.image).convert("RGBA")), interpolation="nearest")
    axes.axis("off")
    below = dict(transform=axes.transAxes, ha="center", va="top", fontsize=8)
    text(axes, 0.5, -0.03, *item.lines, width=int(CAPTION_WIDTH * inches), **below)


def draw_bars(axes: Axes, item: Item) -> None:
    """The probabilities of a picture, that of its own label blue, the others orange."""
    for y, bar in enumerate(item.bars):
        axes.barh(y, bar.share, color=COLORS[bar.is_true is False], alpha=0.35)
        text(axes, 0.02, y, f"{bar.words}  {percent(bar.share)}", va="center", fontsize=8)
    axes.set(xlim=(0, 1), ylim=(len(item.bars) - 0.5, -0.5))
