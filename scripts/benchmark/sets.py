"""Sets of images on disk for the suites that read, and how fast they can be read at most."""

import contextlib
import dataclasses

import numpy as np
import PIL.Image
import simplejpeg

from common.errors import DataError
from common.prepared import data_dirs
from common.records import Records, open_records, parse
from scripts.benchmark.machine import best_seconds, copy_bandwidth
from scripts.benchmark.timing import Setting
from scripts.prepare import imagenet
from scripts.prepare.builders import write_prepared
from scripts.prepare.encode import RECORD_FORMATS, Form, encode_jpeg
from scripts.prepare.layouts import find_images

LIMITS = {"jpeg": "the bare decoder", "raw": "a copy of the pixels at the copy bandwidth"}


def prepare_images(setting: Setting) -> dict[str, Records]:
    """Record format -> records of `imagenet_256`.

    The user's own if there are any. Formats that are missing are made in the temporary folder: from
    the same images, or from noise of about 32 kB per JPEG.
    """
    own, count = None, 64 if setting.smallest else 512
    for split in ("train", "validation"):
        with contextlib.suppress(DataError):
            own = own or open_records(imagenet.NAME, split, data_dirs(setting.data_dir))
    found = {"raw" if own.stored_raw else "jpeg": own} if own else {}
    folder = setting.work / "images" / "train" / "noise"
    folder.mkdir(parents=True)
    for i in range(min(count, len(own)) if own else count):
        image = own.read(np.array([i]))[0][0] if own else noise_image(i)
        (folder / f"{i}.jpeg").write_bytes(encode_jpeg(image))
    source = find_images(setting.work / "images")
    for record_format in RECORD_FORMATS:
        if record_format not in found:
            data_dir = setting.work / record_format
            place = data_dir / imagenet.NAME / imagenet.VERSION
            imagenet.prepare(source, place, Form(record_format), num_workers=1)
            records = open_records(imagenet.NAME, "train", [data_dir])
            found[record_format] = records if own else dataclasses.replace(records, name="noise")
    return dict(sorted(found.items()))


def prepare_tiles(setting: Setting, count: int) -> Records:
    """The set 'tiles' in the temporary folder: JPEGs of 72x72 pixels in ten classes."""
    tiles = [
        (encode_jpeg(np.ascontiguousarray(noise_image(i)[:72, :72])), i % 10) for i in range(count)
    ]
    names = [str(label) for label in range(10)]
    write_prepared(
        setting.work, "tiles", "1.0.0", {"train": tiles}, (72, 72, 3), names, keep_order=True
    )
    return open_records("tiles", "train", [setting.work])


def noise_image(seed: int) -> np.ndarray:
    """(256, 256, 3) uint8: smooth colors, with grain that makes a JPEG as large as a photo's."""
    random = np.random.default_rng(seed)
    smooth = PIL.Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).resize(
        (256, 256), PIL.Image.Resampling.BICUBIC
    )
    return np.clip(np.asarray(smooth) + random.normal(0, 6, (256, 256, 1)), 0, 255).astype(np.uint8)


def described(records: Records) -> str:
    """How many images of which set."""
    return f"{len(records):,} images of 256x256 pixels ({records.name})"


def pixels(records: Records, content: bytes, buffer: np.ndarray | None = None) -> np.ndarray:
    """Decodes a record's image, into `buffer` if given, without any check."""
    if not records.stored_raw:
        return simplejpeg.decode_jpeg(
            content, colorspace="RGB", fastdct=False, fastupsample=False, buffer=buffer
        )
    image = np.frombuffer(content, np.uint8).reshape(records.image_shape)
    if buffer is None:
        return image
    buffer[...] = image
    return buffer


def reading_limit(records: Records) -> float:
    """Images per second with one thread: the pixels at the copy bandwidth for raw records, else
    simplejpeg alone, the best of five.
    """
    if records.stored_raw:
        return copy_bandwidth(on_host=True) / (2 * float(np.prod(records.image_shape)))
    contents = [parse(records.source[i])[0] for i in range(min(len(records), 128))]
    buffer = np.empty(records.image_shape, np.uint8)
    best = best_seconds(lambda: [pixels(records, content, buffer) for content in contents])
    return len(contents) / best
