"""The README's picture: both networks, layer by layer, in the style of the papers' own figures.

Shapes and counts come from the layer tables of the code; the digit is a test digit of mnist10k.
"""

import io
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

import alexnet.config
import lenet.config
from common import examples
from common.workdir import write_atomic
from lenet.data import DIGITS
from scripts import summarize

SIZE = (11.0, 6.95)  # inches; one unit of the axes is an inch
PIXEL = 0.045  # inches per pixel of LeNet-5's planes
ABOVE, BELOW = 1.63, -1.4  # titles and counts, from the middle of a network


class Palette(NamedTuple):
    background: str
    text: str
    faint: str  # shapes, counts and connections
    edge: str
    field: str  # LeNet-5's receptive fields
    first: tuple[str, str, str]  # front, top and side of LeNet-5's and AlexNet's first tower
    second: tuple[str, str, str]  # of AlexNet's second tower
    shared: tuple[str, str, str]  # of what belongs to both towers


PALETTES = {
    "light": Palette(
        "#ffffff",
        "#1c2733",
        "#66727f",
        "#35526e",
        "#d9822b",
        ("#b9d3ec", "#d6e6f5", "#96bbdd"),
        ("#f5cf9f", "#fae4c6", "#e5b374"),
        ("#d5dae0", "#e6e9ed", "#b9c1ca"),
    ),
    "dark": Palette(
        "#0d1117",
        "#e6edf3",
        "#8d98a5",
        "#a9c7e6",
        "#f0a651",
        ("#23486f", "#31608f", "#1a3756"),
        ("#7d5425", "#9c6c34", "#5f3f1b"),
        ("#39424d", "#4a5560", "#2b333c"),
    ),
}


def draw_all(folder: Path) -> None:
    """Writes networks-light.svg and networks-dark.svg."""
    for name, palette in PALETTES.items():
        image = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "networks"}):  # the same file every time
            networks(palette).savefig(image, format="svg", metadata={"Date": None})
        write_atomic(folder / f"networks-{name}.svg", image.getvalue())
        print(f"{folder.name}/networks-{name}.svg written")


def networks(palette: Palette) -> Figure:
    """LeNet-5 above AlexNet."""
    figure = Figure(figsize=SIZE, facecolor=palette.background)
    axes = figure.add_axes((0, 0, 1, 1))
    draw_lenet(axes, palette, middle=5.02)
    draw_alexnet(axes, palette, middle=1.54)
    axes.set_xlim(0, SIZE[0])
    axes.set_ylim(0, SIZE[1])
    axes.axis("off")
    return figure


# ---- LeNet-5: planes of units


def draw_lenet(axes: Axes, palette: Palette, middle: float) -> None:
    config = lenet.config.Config(pooling="trainable", output="rbf")  # the paper's network
    layers = summarize.summarize(config)["layers"]
    head(
        axes,
        palette,
        middle,
        "LeNet-5, 1998",
        layers,
        "the ten outputs are distances to fixed codes",
    )
    left, side = 0.35, 32 * PIXEL
    plane(axes, palette, left, middle - side / 2, side, "#000000")
    inside = (
        left + 2 * PIXEL,
        left + side - 2 * PIXEL,
        middle - side / 2 + 2 * PIXEL,
        middle + side / 2 - 2 * PIXEL,
    )
    axes.imshow(test_digit(), cmap="gray", extent=inside, zorder=3, aspect="auto")
    label(axes, palette, left + side / 2, middle + side / 2, "input", "32x32")
    field = (left + 19 * PIXEL, middle + 2 * PIXEL, 5 * PIXEL)  # what a unit of C1 sees
    places = {"c1": 2.45, "s2": 4.55, "c3": 5.85, "s4": 7.55, "c5": 8.8, "f6": 9.6, "output": 10.35}
    next_kernels = {"c1": 2, "s2": 5, "c3": 2, "s4": 5}
    for layer in layers:
        name, shape = layer["name"], layer["output"]
        if name in next_kernels:
            side, step = shape[0] * PIXEL, min(0.1, 0.8 / shape[-1])
            extent = side + step * (shape[-1] - 1)
            x, y = places[name], middle - extent / 2
            for k in reversed(range(shape[-1])):
                plane(axes, palette, x + k * step, y + k * step, side, palette.first[0])
            unit = (x + 0.3 * side, y + 0.7 * side)
            lines(axes, palette, field, unit)
            kernel = next_kernels[name] * PIXEL
            field = (x + 0.55 * (side - kernel), y + 0.3 * (side - kernel), kernel)
            words = f"{shape[-1]} maps of {shape[0]}x{shape[1]}"
            center = x + extent / 2
        else:
            extent, center, words = 0.16 * shape[-1] ** 0.5, places[name] + 0.07, f"{shape[-1]}"
            box(axes, palette, Box(places[name], middle, 0.14, extent, 0), palette.first)
            bundle(axes, palette, field, places[name], middle - extent / 2, middle + extent / 2)
            field = (places[name] + 0.14, middle - extent / 2, extent)
        title = name if name == "output" else name.upper()
        label(axes, palette, center, middle + extent / 2, title, words)
        count(axes, palette, center, middle, layer["parameters"])


def test_digit():
    """(28, 28) uint8."""
    return examples.load("mnist10k", "test", [DIGITS]).images[3, :, :, 0]


def plane(axes: Axes, palette: Palette, x: float, y: float, side: float, color: str) -> None:
    axes.add_patch(
        Rectangle((x, y), side, side, facecolor=color, edgecolor=palette.edge, lw=0.8, zorder=2)
    )


def lines(
    axes: Axes, palette: Palette, field: tuple[float, float, float], unit: tuple[float, float]
) -> None:
    """A square of one layer and the unit of the next that sees it."""
    x, y, side = field
    axes.add_patch(
        Rectangle((x, y), side, side, fill=False, edgecolor=palette.field, lw=1.2, zorder=5)
    )
    for corner in ((x + side, y), (x + side, y + side)):
        axes.plot(*zip(corner, unit, strict=True), color=palette.field, lw=0.8, zorder=5)
    axes.plot(*unit, ".", color=palette.field, markersize=4, zorder=6)


def bundle(axes: Axes, palette: Palette, field, x: float, low: float, high: float) -> None:
    """A full connection: from all of one layer to all of the next."""
    start, bottom, side = field
    corners = [(start, bottom), (start, bottom + side), (x, high), (x, low)]
    axes.add_patch(Polygon(corners, facecolor=palette.faint, alpha=0.2, lw=0, zorder=1))


# ---- AlexNet: boxes in two towers


def draw_alexnet(axes: Axes, palette: Palette, middle: float) -> None:
    config = alexnet.config.Config(  # the paper's network
        dataset="fake",
        towers=2,
        crop_size=224,
        conv1_padding="bottom_right",
        norm_order="norm_pool",
        lrn="within_tower",
        dropout_at="after",
    )
    layers = summarize.summarize(config)["layers"]
    head(axes, palette, middle, "AlexNet, 2012", layers, "two towers, one for each GPU of 2012")
    places = {
        "conv1": 2.35,
        "conv2": 3.65,
        "conv3": 5.0,
        "conv4": 6.35,
        "conv5": 7.7,
        "fc6": 8.85,
        "fc7": 9.7,
    }
    kernels = {
        "conv1": 11 / 224,
        "conv2": 5 / 27,
        "conv3": 3 / 13,
        "conv4": 3 / 13,
        "conv5": 3 / 13,
    }
    pixels = Box(0.35, middle, 0.06, scaled(224), scaled(224) / 3)
    box(axes, palette, pixels, palette.shared)
    label(axes, palette, pixels.x + 0.3, pixels.top, "input", "224x224x3")
    before = [pixels]
    for layer in layers:
        name, shape = layer["name"], layer["output"]
        if name in kernels:
            high, wide = scaled(shape[0]), 0.0032 * shape[-1] / 2
            towers = [Box(places[name], middle + y, wide, high, high / 3) for y in (0.6, -0.6)]
            for number, tower in enumerate(towers):
                sees_all = name in ("conv1", "conv3")
                for seen in before if sees_all else [before[number]]:
                    kernel(axes, palette, seen, max(kernels[name], 0.12), tower)
            words = f"{shape[0]}x{shape[1]}x{shape[2]}"
        elif name in places:
            towers = [Box(places[name], middle + y, 0.12, 0.95, 0) for y in (0.6, -0.6)]
            words = f"{shape[-1]:,}"
        elif name == "fc8":
            towers = [Box(10.45, middle, 0.12, 0.7, 0)]
            words = f"{shape[-1]:,}"
        else:
            continue
        if name.startswith("fc"):
            for seen in before:
                for tower in towers:
                    face = (seen.right, seen.middle - seen.high / 2, seen.high)
                    bundle(
                        axes,
                        palette,
                        face,
                        tower.x,
                        tower.middle - tower.high / 2,
                        tower.middle + tower.high / 2,
                    )
        colors = [palette.first, palette.second] if len(towers) == 2 else [palette.shared]
        for tower, color in zip(towers, colors, strict=True):
            box(axes, palette, tower, color)
        center = (towers[0].x + towers[0].right) / 2
        label(axes, palette, center, towers[0].top, name, words)
        count(axes, palette, center, middle, layer["parameters"])
        before = towers


class Box(NamedTuple):
    """Left edge, vertical middle, and extents in inches; `deep` is drawn to the upper right."""

    x: float
    middle: float
    wide: float
    high: float
    deep: float

    @property
    def right(self) -> float:
        return self.x + self.wide + self.deep / 2

    @property
    def top(self) -> float:
        return self.middle + self.high / 2 + self.deep / 2


def scaled(pixels: int) -> float:
    """Inches: the square root keeps 13 pixels visible beside 224."""
    return 0.108 * pixels**0.5


def box(axes: Axes, palette: Palette, b: Box, colors: tuple[str, str, str]) -> None:
    low, high, slant = b.middle - b.high / 2, b.middle + b.high / 2, b.deep / 2
    right = b.x + b.wide
    faces = (
        [(b.x, low), (right, low), (right, high), (b.x, high)],
        [(b.x, high), (right, high), (right + slant, high + slant), (b.x + slant, high + slant)],
        [(right, low), (right + slant, low + slant), (right + slant, high + slant), (right, high)],
    )
    for face, color in zip(faces, colors, strict=True):
        axes.add_patch(Polygon(face, facecolor=color, edgecolor=palette.edge, lw=0.8, zorder=4))


def kernel(axes: Axes, palette: Palette, seen: Box, share: float, unit_of: Box) -> None:
    """A kernel on the right face of one layer, and the unit of the next that it feeds."""
    slant, side = seen.deep / 2, share * seen.high
    x, y = seen.x + seen.wide + 0.4 * slant, seen.middle - 0.1 * seen.high + 0.4 * slant
    run = share * slant
    corners = [(x, y), (x + run, y + run), (x + run, y + run + side), (x, y + side)]
    axes.add_patch(Polygon(corners, fill=False, edgecolor=palette.edge, lw=1.0, zorder=5))
    unit = (unit_of.x, unit_of.middle)
    for corner in (corners[1], corners[2]):
        axes.plot(*zip(corner, unit, strict=True), color=palette.faint, lw=0.8, zorder=4.5)


# ---- words


def head(
    axes: Axes, palette: Palette, middle: float, name: str, layers: list[dict], words: str
) -> None:
    total = sum(layer["parameters"] for layer in layers)
    y = middle + ABOVE
    axes.text(0.35, y, name, color=palette.text, fontsize=13, fontweight="bold", va="bottom")
    axes.text(
        2.45, y, f"{total:,} parameters; {words}", color=palette.faint, fontsize=9.5, va="bottom"
    )
    axes.text(0.35, middle + BELOW, "parameters", color=palette.faint, fontsize=8.5)


def label(axes: Axes, palette: Palette, x: float, y: float, name: str, shape: str) -> None:
    """A layer's name and shape above it."""
    axes.text(x, y + 0.2, name, color=palette.text, ha="center", fontsize=9.5)
    axes.text(x, y + 0.06, shape, color=palette.faint, ha="center", fontsize=8)


def count(axes: Axes, palette: Palette, x: float, middle: float, parameters: int) -> None:
    axes.text(x, middle + BELOW, f"{parameters:,}", color=palette.faint, ha="center", fontsize=8.5)
