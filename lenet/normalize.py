"""A picture of one digit, as MNIST has its digits: white on black, 20 pixels high or wide, the
center of mass in the center of 28x28 (LeCun et al. 1998, III.A); and one of a string of digits.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

SIZE = 28
DIGIT_SIZE = 20  # "normalized to fit in a 20x20 pixel box while preserving their aspect ratio"
CENTER = 14  # the pixel that the center of mass falls on, in the published files
WORKING_SIZE = 320  # pixels: a larger picture is reduced to this first
STRING_WORKING_SIZE = 1024  # the same for a string
MAX_STRING_WIDTH = 2048  # pixels of 28 rows: a hundred digits

# Chosen on training digits that were disturbed as in tests/test_normalize.py.
MIN_CONTRAST = 0.08  # of ink against paper, of the whole range; below: no ink
NOISE_FACTOR = 6  # ink is at least this many standard deviations of the paper's noise
INK_LEVEL = 0.25  # of the darkest ink: what is at least this dark belongs to a stroke
MIN_PART = 0.05  # of the ink of the largest part: a smaller one is a speck
MIN_STROKE = 1.8  # pixels of 28x28: a finer stroke, of a pen, is thickened


def normalize_digit(picture: np.ndarray) -> np.ndarray | None:
    """The digit on a picture, dark on light or light on dark, of any size and in uneven light.

    Args:
      picture: (H, W) uint8.

    Returns:
      (28, 28) uint8; None where the picture has no ink.
    """
    found = _find_ink(picture, WORKING_SIZE)
    if found is None:
        return None
    ink, strokes = (array[found.inside] for array in (found.ink, found.strokes))
    thick = _thickened(ink, strokes, max(ink.shape))
    return _centered(_fitted(thick, max(thick.shape)))


class String(NamedTuple):
    """A string of digits, as MNIST would have it.

    Attributes:
      image: (28 or 32, columns) uint8: white on black, its ink from the first column to the last.
      left: the column of the picture at which it begins.
      scale: pixels of the picture for each of its own.
    """

    image: np.ndarray
    left: float
    scale: float


def normalize_string(picture: np.ndarray) -> String | None:
    """The digits on a picture of one line, as `normalize_digit` but in one image: scaled by one
    factor, so that a typical digit is 20 pixels high, and their common center of mass in its middle
    row.

    Args:
      picture: (H, W) uint8.

    Returns:
      None where the picture has no ink. Raises ValueError for more than MAX_STRING_WIDTH columns.
    """
    found = _find_ink(picture, STRING_WORKING_SIZE)
    if found is None:
        return None
    ink, strokes = (array[found.inside] for array in (found.ink, found.strokes))
    size = _typical_height(ink, strokes)
    if ink.shape[1] * DIGIT_SIZE / size > MAX_STRING_WIDTH:
        raise ValueError(f"a line {ink.shape[1] / size:,.0f} times as long as it is high")
    thick = _thickened(ink, strokes, size)
    digits = _fitted(thick, size + thick.shape[0] - ink.shape[0])
    middle = round(ndimage.center_of_mass(digits)[0])
    rows = np.pad(digits, ((SIZE, SIZE), (0, 0)))[SIZE + middle - CENTER :][:SIZE]
    reduced = max(picture.shape) / max(found.ink.shape)  # pixels of the picture for one of the ink
    grown = (thick.shape[1] - ink.shape[1]) / 2
    left, scale = found.inside[1].start - grown, thick.shape[1] / digits.shape[1]
    return String(np.round(255 * rows).astype(np.uint8), left * reduced, scale * reduced)


class _Ink(NamedTuple):
    ink: np.ndarray  # (H, W) of the reduced picture: how much darker, or lighter, than the paper
    strokes: np.ndarray  # (H, W) bool
    inside: tuple[slice, slice]  # the smallest box with all strokes


def _find_ink(picture: np.ndarray, working_size: int) -> _Ink | None:
    """None where the picture has no ink."""
    pixels = _reduced(picture, working_size) / 255
    side = min(max(pixels.shape), WORKING_SIZE)
    difference = _difference_from_paper(pixels)
    smooth = ndimage.gaussian_filter(difference, side / 300)
    noise = 1.4826 * np.median(np.abs(smooth))
    least = max(pixels.size // 1000, 6)  # this many pixels, or more, are ink
    low, high = -np.sort(smooth.ravel())[:least].mean(), np.sort(smooth.ravel())[-least:].mean()
    darkest, sign = max((low, -1), (high, 1))
    if darkest < max(MIN_CONTRAST, NOISE_FACTOR * noise):
        return None
    ink, smooth = (np.maximum(sign * values, 0) for values in (difference, smooth))
    strokes = _parts(smooth >= max(INK_LEVEL * darkest, NOISE_FACTOR / 2 * noise), smooth)
    rows, columns = (np.flatnonzero(strokes.any(axis)) for axis in (1, 0))
    inside = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    near = ndimage.binary_dilation(strokes, iterations=max(1, side // 100))
    return _Ink(ink * near, strokes, inside)


def _typical_height(ink: np.ndarray, strokes: np.ndarray) -> int:
    """Of the connected parts: half of the ink is in parts that are as high or higher."""
    labels, _ = ndimage.label(strokes, np.ones((3, 3)))
    heights = [rows.stop - rows.start for rows, _ in ndimage.find_objects(labels)]
    amounts = ndimage.sum_labels(ink, labels, np.arange(1, len(heights) + 1))
    order = np.argsort(heights)
    shares = np.cumsum(amounts[order]) / amounts.sum()
    return heights[order[np.searchsorted(shares, 0.5)]]


def _reduced(picture: np.ndarray, size: int) -> np.ndarray:
    """(H, W) uint8 -> the same of at most `size` pixels, as float64."""
    scale = size / max(picture.shape)
    if scale >= 1:
        return picture.astype(np.float64)
    height, width = (max(round(side * scale), 1) for side in picture.shape)
    small = Image.fromarray(picture).resize((width, height), Image.Resampling.BOX)
    return np.asarray(small, np.float64)


def _difference_from_paper(pixels: np.ndarray) -> np.ndarray:
    """What each pixel has more than the paper: a polynomial in its coordinates that most pixels lie
    close to, by least absolute differences; a plane, and of a higher degree in uneven light.
    """
    height, width = pixels.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    some = np.s_[:: -(-height // 64), :: -(-width // 64)]  # enough pixels to find the paper
    values, best = pixels[some].ravel(), None
    for degree in (1, 2, 4):
        powers = [(i, j) for i in range(degree + 1) for j in range(degree + 1 - i)]
        terms = np.stack([x**i * y**j for i, j in powers], axis=-1)
        chosen = terms[some].reshape(len(values), -1)
        weights = np.ones_like(values)
        for _ in range(15):  # iteratively reweighted least squares
            weighted = chosen * weights[:, None]
            paper = np.linalg.lstsq(weighted.T @ chosen, weighted.T @ values)[0]
            weights = 1 / np.maximum(np.abs(values - chosen @ paper), 1e-3)
        typical = np.median(np.abs(values - chosen @ paper))
        if best is not None and typical > 0.7 * best[0]:
            break
        best = typical, pixels - terms @ paper
    return best[1]


def _parts(mask: np.ndarray, ink: np.ndarray) -> np.ndarray:
    """The connected parts of a mask that have enough ink."""
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    amounts = ndimage.sum_labels(ink, labels, np.arange(count + 1))
    kept = amounts >= MIN_PART * amounts[1:].max()
    kept[0] = False
    return kept[labels]


def _thickened(ink: np.ndarray, strokes: np.ndarray, size: int) -> np.ndarray:
    """With strokes of at least MIN_STROKE pixels, once `size` is scaled to DIGIT_SIZE."""
    distance = ndimage.distance_transform_edt(np.pad(strokes, 1))
    width = 4 * distance[distance > 0].mean() - 1  # of a band: its mean distance is a quarter
    missing = MIN_STROKE * size / DIGIT_SIZE - width
    radius = round(missing / 2)
    if radius < 1:
        return ink
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return ndimage.grey_dilation(np.pad(ink, radius), footprint=x**2 + y**2 <= radius**2)


def _fitted(ink: np.ndarray, size: int) -> np.ndarray:
    """Scaled so that `size` pixels become DIGIT_SIZE, and the typical ink becomes 1."""
    scale = DIGIT_SIZE / size
    height, width = (max(round(side * scale), 1) for side in ink.shape)
    filter = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    small = np.asarray(Image.fromarray(ink.astype(np.float32)).resize((width, height), filter))
    return np.clip(small / np.median(small[small > small.max() / 2]), 0, 1)


def _centered(digit: np.ndarray) -> np.ndarray:
    """(28, 28) uint8 with the digit's center of mass in the center, to a pixel."""
    image = np.zeros((SIZE, SIZE), np.uint8)
    place = [
        int(np.clip(np.round(CENTER - center), 0, SIZE - side))
        for center, side in zip(ndimage.center_of_mass(digit), digit.shape, strict=True)
    ]
    image[place[0] : place[0] + digit.shape[0], place[1] : place[1] + digit.shape[1]] = np.round(
        255 * digit
    )
    return image
