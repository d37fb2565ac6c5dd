"""Decodes image files: JPEG and PNG only, of bounded size; and memory for images."""

import io
import math

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG")  # for some of its other formats Pillow runs external programs
MAX_PIXELS = 89_478_485  # per image, Pillow's limit: a quarter of a gigabyte as RGB
PILLOW_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by the number of channels
ALIGNMENT = 64  # bytes; memory that starts at a multiple, JAX uses on a CPU without a copy


def empty_images(shape: tuple[int, ...]) -> np.ndarray:
    """Memory for a batch of images, uint8, not initialized. Do not change it after JAX has got it:
    on a CPU the device's array is this memory.
    """
    size = math.prod(shape)
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].reshape(shape)


def open_image(content: bytes, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """An image file, of which only the header has been read.

    Raises ValueError for formats that are not allowed, and for more than MAX_PIXELS pixels.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=formats)
        too_large = image.width * image.height > MAX_PIXELS
    except UnidentifiedImageError as error:
        raise ValueError(f"neither {', '.join(formats[:-1])} nor {formats[-1]}") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        too_large = True
    if too_large:
        raise ValueError(f"more than {MAX_PIXELS:,} pixels")
    return image


def decode(content: bytes, shape: tuple[int | None, int | None, int]) -> np.ndarray:
    """Decodes a JPEG or PNG file to (H, W, C) uint8.

    Args:
      content: the file.
      shape: (H, W, C) to expect; None where any height or width will do. C is 1, 3 or 4; images of
        other colors are converted.

    Raises ValueError for another size, and for what is not an image.
    """
    image = open_image(content)
    _require_size((image.height, image.width), shape)
    if image.mode.startswith("I"):  # Pillow would clip at 255
        raise ValueError("more than 8 bits per channel")
    pixels = np.asarray(image.convert(PILLOW_MODES[shape[-1]]))
    return pixels.reshape(*pixels.shape[:2], shape[-1])


def decode_into(content: bytes, image: np.ndarray) -> None:
    """Decodes a JPEG or PNG file into `image`, (H, W, C) uint8. Raises as `decode`."""
    if content.startswith(b"\xff\xd8"):
        height, width, colors, _ = simplejpeg.decode_jpeg_header(content)
        if image.shape[-1] == 3 and colors in ("YCbCr", "Gray"):
            _require_size((height, width), image.shape)
            # The same pixels as Pillow's in two thirds of the time.
            simplejpeg.decode_jpeg(content, "RGB", fastdct=False, fastupsample=False, buffer=image)
            return
    image[...] = decode(content, image.shape)


def _require_size(size: tuple[int, int], shape: tuple[int | None, int | None, int]) -> None:
    (height, width), (expected_height, expected_width, _) = size, shape
    if height != (expected_height or height) or width != (expected_width or width):
        raise ValueError(
            f"an image of {height}x{width} pixels, not {expected_height}x{expected_width}"
        )
