"""Pictures that people have, made into images as a network's training set stores them."""

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from common.errors import DataError, one_line
from common.images import MAX_PIXELS, PILLOW_MODES, open_image
from common.network import Network
from common.overlap import MNIST_TRAINING_DIGITS
from lenet.normalize import normalize_digit
from scripts.prepare.encode import as_shown
from scripts.prepare.entries import is_hidden, printable

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # case-insensitive
MAX_BYTES = 4 * MAX_PIXELS  # of a file
STDIN = "-"


def find_pictures(words: Sequence[str]) -> Iterator[str]:
    """The files that the words name, in order: a file or `-` is itself; a folder is the pictures in
    it and in the folders below, by name; how many of its files are none is told on stderr.

    Raises DataError for a folder without pictures, or one that cannot be read.
    """
    for word in words:
        if not os.path.isdir(word):
            yield word
            continue
        found, others = False, 0
        for place, folders, names in os.walk(word, onerror=_fail):
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            for name in sorted(names):
                path = os.path.join(place, name)
                is_other = os.path.exists(path) and not os.path.isfile(path)  # a pipe
                if name.lower().endswith(ENDINGS) and not is_hidden(name) and not is_other:
                    found = True
                    yield path
                else:
                    others += not is_hidden(name) and not is_other
        endings = ", ".join(ENDINGS)
        if found and others:
            line = f"{printable(word)}: left out, as they do not end in {endings}: {others:,} files"
            print(line, file=sys.stderr)
        if not found:
            raise DataError(f"{printable(word)} has no pictures: no file ends in {endings}")


def _fail(error: OSError) -> None:
    raise DataError(one_line(error))


def read_picture(path: str | Path, channels: int) -> np.ndarray:
    """A picture as a viewer shows it: rotated as its EXIF orientation says, and transparent parts
    white.

    Args:
      path: a JPEG, PNG, WebP, BMP or TIFF file, whatever its name; `-`: standard input.
      channels: 1 for gray, or 3.

    Returns:
      (H, W, channels) uint8; of 16 bits per channel the upper 8.

    Raises DataError for what is not one picture of at most MAX_PIXELS.
    """
    name = printable(str(path)) or "''"
    try:
        if str(path) == STDIN:
            if sys.stdin is None:
                raise ValueError("standard input is closed")
            content = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with open(path, "rb") as file:
                content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise DataError(f"{name}: {getattr(error, 'strerror', None) or one_line(error)}") from error
    if len(content) > MAX_BYTES:
        raise DataError(f"{name}: more than {MAX_BYTES:,} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata
            return _decoded(content, channels)
    except Exception as error:  # Pillow raises many kinds for a corrupt file
        raise DataError(f"{name}: {one_line(error)}") from error


def _decoded(content: bytes, channels: int) -> np.ndarray:
    if not content:
        raise ValueError("an empty file")
    image = open_image(content, FORMATS)
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a JPEG file with a preview or a map of depths
        raise ValueError(f"{frames} pictures in one file, animated or pages")
    if image.mode in ("I", "F"):
        raise ValueError("32 bits per channel")
    pixels = np.asarray(as_shown(image).convert(PILLOW_MODES[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)


def takes_digits(network: Network) -> bool:
    """Whether its images may be normalized digits: gray, of 28x28 pixels."""
    return network.image_shapes[0] == (28, 28, 1)


def knows_digits(network: Network) -> bool:
    """Whether it was trained on MNIST's digits."""
    return takes_digits(network) and network.config.dataset in MNIST_TRAINING_DIGITS


def has_digit(network: Network, digit: str, shape: tuple[int, int, int]) -> bool:
    """Whether a picture of this shape is one of a digit that has to be found on it.

    Args:
      digit: `on`, `off`, or `auto`: on for a network that was trained on MNIST's digits, unless the
        picture has the size of those already.
    """
    unlike_stored = shape != network.image_shapes[0]
    return digit == "on" or (digit == "auto" and knows_digits(network) and unlike_stored)


def read_fitted(
    path: str | Path, network: Network, digit: str = "auto"
) -> tuple[np.ndarray, np.ndarray]:
    """(the picture, what the network's training set would store of it), of `read_picture` and
    `fitted`; raises DataError as they do, with the file's name.
    """
    picture = read_picture(path, network.image_shapes[0][-1])
    try:
        return picture, fitted(picture, network, digit)
    except DataError as error:
        raise DataError(f"{printable(str(path))}: {error}") from error


def fitted(picture: np.ndarray, network: Network, digit: str = "auto") -> np.ndarray:
    """A picture as the network's training set would store it.

    One of the stored size is left as it is. A digit is found and normalized; of another picture the
    shorter side is rescaled and the center cropped, as `scripts.prepare_data` does.

    Args:
      picture: (H, W, C) uint8, C as in `network.image_shapes`.
      digit: see `has_digit`.

    Returns:
      an image of `network.image_shapes[0]`, the shape of the training set's, uint8.

    Raises DataError where no digit is found.
    """
    if has_digit(network, digit, picture.shape):
        found = normalize_digit(picture[..., 0])
        if found is None:
            raise DataError("no digit: no ink on it, or hardly any contrast")
        return found[..., None]
    if picture.shape == network.image_shapes[0]:
        return picture
    height, width, channels = network.image_shapes[0]
    image = Image.fromarray(picture[..., 0] if channels == 1 else picture)
    return np.asarray(ImageOps.fit(image, (width, height))).reshape(height, width, channels)


def seen_part(image: np.ndarray, network: Network) -> np.ndarray:
    """The part of a stored image (H, W, C) that the network takes: AlexNet's center crop."""
    size = network.prepare(image[None]).shape[1]
    height, width, _ = image.shape
    top, left = max((height - size) // 2, 0), max((width - size) // 2, 0)
    return image[top : top + size, left : left + size]
