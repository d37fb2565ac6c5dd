"""The picture that `scripts.predict --show` writes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.network import Network
from lenet.space_displacement import CENTER, MARGIN
from scripts.inspect.pixels import reduced
from scripts.pictures import seen_part
from scripts.prepare.entries import printable
from scripts.report.style import COLORS, save, style

MAX_SHOWN = 24  # pictures, the first ones
THUMBNAIL = 320  # pixels, at most


def show(predictions: Sequence, network: Network, path: Path) -> None:
    """Writes a PNG with a row for each of some `scripts.predict.Prediction`: the picture, what the
    network saw of it, and the most probable classes.

    Raises OSError.
    """
    with style():
        figure = Figure(figsize=(8, 1.8 * len(predictions) + 0.3), layout="constrained")
        axes = figure.subplots(len(predictions), 3, squeeze=False, width_ratios=(1, 1, 2))
        for row, found in zip(axes, predictions, strict=True):
            _draw_image(row[0], found.thumbnail)
            row[0].set_xlabel(_short(Path(found.file).name), parse_math=False)
            _draw_image(row[1], seen_part(found.image, network))
            _draw_bars(row[2], found)
        axes[0, 0].set_title("picture")
        axes[0, 1].set_title("what the network saw")
        axes[0, 2].set_title("probability in %")
        save(figure, path)


def show_lines(lines: Sequence, path: Path) -> None:
    """Writes a PNG with two rows for each of some `scripts.predict_string.Line`: the picture, and
    what the network saw of it, with the digits where it read them.

    Raises OSError.
    """
    with style():
        heights = []  # inches, of pictures 8 inches wide
        for line in lines:
            height, width, _ = line.picture.shape
            heights.append(8 * min(max(height / width, 0.06), 0.5))
            heights.append(8 * 39 / max(_columns(line), 120))
        figure = Figure(figsize=(8.2, sum(heights) + 0.5 * len(lines)), layout="constrained")
        axes = figure.subplots(2 * len(lines), 1, squeeze=False, height_ratios=heights)[:, 0]
        for picture, strip, line in zip(axes[::2], axes[1::2], lines, strict=True):
            _draw_image(picture, reduced(line.picture, 2 * THUMBNAIL))
            picture.set_title(_short(Path(line.file).name), parse_math=False)
            _draw_line(strip, line)
        save(figure, path)


def _columns(line) -> int:
    return line.strip.image.shape[1] + 2 * MARGIN


def _draw_line(axes: Axes, line) -> None:
    """What the network saw; below it each digit, in the middle of its window, and how sure."""
    rows = line.strip.image.shape[0]
    _draw_image(axes, np.pad(line.strip.image, ((0, 0), (MARGIN, MARGIN))))
    for found, name in zip(line.digits, line.names, strict=True):
        center = found.left + CENTER + MARGIN
        sure = f"{100 * found.probability:.0f}%"
        below = dict(ha="center", va="center", parse_math=False)
        axes.axvline(center, 11 / (rows + 11), color=COLORS[1], linewidth=1)
        axes.text(center, rows + 4, _short(name), size=18, **below)
        axes.text(center, rows + 8.5, sure, size=9, **below)
    axes.set_ylim(rows + 11, -0.5)


def _draw_image(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _draw_bars(axes: Axes, found) -> None:
    percents = [100 * probability for probability in found.probabilities]
    places = range(len(percents))
    axes.barh(places, percents, color=COLORS[0], height=0.7)
    for place, name, percent in zip(places, found.names, percents, strict=True):
        text = f"{_short(name)}  {percent:.2f}"
        axes.text(percent + 2, place, text, va="center", parse_math=False)
    axes.set_xlim(0, 160)
    axes.set_ylim(max(len(percents), 5) - 0.5, -0.5)  # the first one on top
    axes.set_axis_off()


def _short(text: str) -> str:
    text = printable(text)
    return text if len(text) <= 28 else f"{text[:26]}…"
