"""The picture that `scripts.predict --show` writes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from common.network import Network
from scripts.prepare.entries import printable
from scripts.report.style import COLORS, save, style

MAX_SHOWN = 24  # pictures, the first ones
THUMBNAIL = 320  # pixels, at most


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """(H, W, C) uint8 -> the same of at most THUMBNAIL pixels."""
    image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(image)


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
            _draw_image(row[1], _seen(network, found.image))
            _draw_bars(row[2], found)
        axes[0, 0].set_title("picture")
        axes[0, 1].set_title("what the network saw")
        axes[0, 2].set_title("probability in %")
        save(figure, path)


def _seen(network: Network, image: np.ndarray) -> np.ndarray:
    """The part of a stored image that the network takes: AlexNet's center crop."""
    size, _, _ = network.prepare(image[None]).shape[1:]
    height, width, _ = image.shape
    top, left = max((height - size) // 2, 0), max((width - size) // 2, 0)
    return image[top : top + size, left : left + size].squeeze(
        axis=-1 if image.shape[-1] == 1 else ()
    )


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
