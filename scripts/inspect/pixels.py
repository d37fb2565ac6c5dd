"""Arrays as pictures: weights, maps of a layer, units, and what stands in an HTML file."""

import base64
import io
import math

import matplotlib
import numpy as np
from PIL import Image

SMALL_PX = 64  # of a side; larger photographs become JPEG
LARGEST_PX = 160  # of a side, in a report
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def image_of(pixels: np.ndarray) -> Image.Image:
    """(H, W, C) uint8 -> a picture, C as in MODES."""
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    return Image.fromarray(
        np.ascontiguousarray(pixels), MODES[1 if pixels.ndim == 2 else pixels.shape[-1]]
    )


def reduced(pixels: np.ndarray, largest: int = LARGEST_PX) -> np.ndarray:
    """(H, W, C) uint8 of at most `largest` pixels a side, its proportions kept."""
    image = image_of(pixels)
    image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(image.height, image.width, -1)


def data_uri(pixels: np.ndarray) -> str:
    """(H, W, C) uint8 as a data: URI: PNG, or JPEG for large photographs."""
    image, stream = image_of(pixels), io.BytesIO()
    form = "jpeg" if image.mode == "RGB" and min(image.size) > SMALL_PX else "png"
    image.save(stream, form, **(dict(quality=85) if form == "jpeg" else dict(optimize=True)))
    return f"data:image/{form};base64,{base64.b64encode(stream.getvalue()).decode()}"


def mosaic(tiles: np.ndarray, columns: int) -> np.ndarray:
    """(N, H, W, C) uint8 -> one picture with an alpha channel: rows of `columns` tiles, a
    transparent gap of one pixel between them.
    """
    count, height, width, channels = tiles.shape
    rows = -(-count // columns)
    whole = np.zeros((rows, height + 1, columns, width + 1, channels + 1), np.uint8)
    for number, tile in enumerate(tiles):
        place = whole[number // columns, :height, number % columns, :width]
        place[..., :channels], place[..., channels] = tile, 255
    shape = rows * (height + 1), columns * (width + 1), channels + 1
    return whole.reshape(shape)[:-1, :-1]


def gray(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values as uint8, black up to `low` and white from `high`."""
    shares = (np.asarray(values, np.float64) - low) / ((high - low) or 1)
    return np.rint(255 * np.clip(shares, 0, 1)).astype(np.uint8)


def of_weights(kernels: np.ndarray) -> np.ndarray:
    """(h, w, C, N) float -> (N, h, w, C) uint8: 0 is mid-gray, and the largest weight of each
    kernel black or white. C is 1 or 3, the colors of RGB.
    """
    kernels = np.moveaxis(np.asarray(kernels, np.float32), -1, 0)
    largest = np.abs(kernels).max(axis=(1, 2, 3), keepdims=True)
    scaled = kernels / np.where(largest == 0, 1, largest)
    return np.rint(127.5 + 127.5 * scaled).astype(np.uint8)


def in_colors(shares: np.ndarray) -> np.ndarray:
    """(H, W) of 0 to 1 -> (H, W, 3) uint8 in matplotlib's viridis: dark blue to yellow."""
    colors = matplotlib.colormaps["viridis"](np.clip(shares, 0, 1))
    return np.rint(255 * colors[..., :3]).astype(np.uint8)


def columns_of(count: int) -> int:
    """The columns of a grid of units: the divisor nearest to the square root, so that 84 units lie
    as the bitmaps of LeNet-5's codes do, 7 wide and 12 high.
    """
    divisors = [number for number in range(1, count + 1) if count % number == 0]
    nearest = min(divisors, key=lambda number: abs(number - math.sqrt(count)))
    return nearest if count < 4 * nearest**2 else math.ceil(math.sqrt(count))
