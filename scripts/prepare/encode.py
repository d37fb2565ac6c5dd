"""One image, as the paper prepares it and as a record stores it.

The paper (section 2): "we first rescaled the image such that the shorter side was of length 256,
and then cropped out the central 256x256 patch".
"""

import warnings

import numpy as np
import simplejpeg
from PIL import Image

from common.images import open_image

SIZE = 256  # pixels, both sides
RECORD_FORMATS = ("jpeg", "raw")
JPEG_QUALITY = 95


def center_256(content: bytes) -> np.ndarray:
    """Decodes an image, rescales its shorter side to 256 pixels and crops the center.

    Both in one step, without rounding the longer side to whole pixels, by Pillow's bicubic filter,
    which antialiases when it downsamples. Smaller images are upsampled. Grayscale, CMYK and palette
    images become RGB, 16 bits per channel become 8; transparency and EXIF orientation are ignored.

    Args:
      content: a JPEG or PNG file of at most `common.images.MAX_PIXELS` pixels.

    Returns:
      (256, 256, 3) uint8.

    Raises:
      Exception: whatever Pillow raises for a corrupt file. What libjpeg repairs goes unnoticed.
    """
    if not content:
        raise ValueError("an empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata, which is not used
        image = open_image(content)
        if image.mode == "I;16":  # Pillow would clip at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        width, height = image.size
        side = min(width, height)
        box = (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2
        rgb = image.convert("RGB")
        return np.asarray(rgb.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box))


def encode(image: np.ndarray, record_format: str) -> tuple[bytes, np.ndarray]:
    """(256, 256, 3) uint8 -> (the bytes of a record, the image that a reader gets from them)."""
    if record_format == "raw":
        return image.tobytes(), image
    content = encode_jpeg(image)
    return content, simplejpeg.decode_jpeg(content)


def encode_jpeg(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 -> a JPEG file of quality 95 with 4:2:0 chroma subsampling."""
    return simplejpeg.encode_jpeg(
        image, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="420"
    )
