"""One image, as the paper prepares it and as a record stores it.

The paper (section 2): "we first rescaled the image such that the shorter side was of length 256,
and then cropped out the central 256x256 patch".
"""

import io
import warnings
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from common.images import open_image

RECORD_FORMATS = ("jpeg", "raw")  # and png, for small images
JPEG_QUALITY = 95
# Sets of images up to this size are held in memory, and lose nothing as PNG files.
PNG_MAX_SIZE = 64


class Form(NamedTuple):
    """How the images of a set are stored; the defaults are those of imagenet_256.

    Attributes:
      record_format: `jpeg`, `raw` or `png`.
      size: pixels, both sides.
      grey: one channel instead of RGB.
      as_shown: as a viewer shows it, rotated as its EXIF orientation says, and transparent parts
        white. For ImageNet both are ignored, as before.
    """

    record_format: str = "jpeg"
    size: int = 256
    grey: bool = False
    as_shown: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self.size, self.size, 1 if self.grey else 3


def center_square(content: bytes, form: Form = Form()) -> np.ndarray:  # noqa: B008
    """Decodes an image, rescales its shorter side to `form.size` pixels and crops the center.

    Both in one step, without rounding the longer side to whole pixels, by Pillow's bicubic filter,
    which antialiases when it downsamples. Smaller images are upsampled. CMYK and palette images
    become RGB, grayscale ones too unless `form.grey`; 16 bits per channel become 8.

    Args:
      content: a JPEG or PNG file of at most `common.images.MAX_PIXELS` pixels.

    Returns:
      `form.shape` uint8.

    Raises:
      Exception: whatever Pillow raises for a corrupt file. What libjpeg repairs goes unnoticed.
    """
    if not content:
        raise ValueError("an empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata
        image = open_image(content)
        return resized(as_shown(image) if form.as_shown else _of_eight_bits(image), form)


def as_shown(image: Image.Image) -> Image.Image:
    """A picture as a viewer shows it: rotated as its EXIF orientation says, and transparent parts
    white; of 16 bits per channel the upper 8.
    """
    image = _of_eight_bits(ImageOps.exif_transpose(image))
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), shown)
    return image


def _of_eight_bits(image: Image.Image) -> Image.Image:
    """Of 16 bits per channel the upper 8; Pillow would clip at 255."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image


def resized(image: Image.Image, form: Form) -> np.ndarray:
    """The central square of an image as `form.shape` uint8."""
    square = ImageOps.fit(image.convert("L" if form.grey else "RGB"), (form.size, form.size))
    return np.asarray(square).reshape(form.shape)


def encode(image: np.ndarray, record_format: str) -> tuple[bytes, np.ndarray]:
    """(H, W, C) uint8 -> (the bytes of a record, the image that a reader gets from them)."""
    if record_format == "raw":
        return image.tobytes(), image
    if record_format == "png":
        return encode_png(image), image
    content = encode_jpeg(image)
    return content, simplejpeg.decode_jpeg(content, "GRAY" if image.shape[-1] == 1 else "RGB")


def encode_jpeg(image: np.ndarray) -> bytes:
    """(H, W, 1 or 3) uint8 -> a JPEG file of quality 95 with 4:2:0 chroma subsampling."""
    grey = image.shape[-1] == 1
    return simplejpeg.encode_jpeg(
        image,
        quality=JPEG_QUALITY,
        colorspace="GRAY" if grey else "RGB",
        colorsubsampling="Gray" if grey else "420",
    )


def encode_png(image: np.ndarray) -> bytes:
    """(H, W, 1, 3 or 4) uint8 -> a PNG file."""
    buffer = io.BytesIO()
    gray = image.shape[-1] == 1
    Image.fromarray(image[..., 0] if gray else image).save(buffer, format="png", optimize=True)
    return buffer.getvalue()
