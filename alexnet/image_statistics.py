"""The mean image of a training set and the covariance of its colors."""

import contextlib
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from alexnet.noise import Noise
from common.errors import DataError, UserError
from common.examples import cache_file, cached
from common.order import NUM_THREADS, eval_batches
from common.records import DamagedRecords, Records

CHUNK_PIXELS = 2**22  # of the images that are summed at once


class Statistics(NamedTuple):
    """What training needs to know about its images.

    Attributes:
      mean_image: (H, W, C) float32, 0 to 255.
      covariance: (C, C) float64, of the RGB or gray values (0 to 255) of all pixels.
    """

    mean_image: np.ndarray
    covariance: np.ndarray


def statistics(examples, num_threads: int = NUM_THREADS) -> Statistics:
    """The statistics of some examples.

    Those of noise are known, those of examples in memory are computed. Those of records are in the
    set's `statistics.npz`, if it has the split (they are of all of it, whatever slice is given);
    otherwise one pass over the records computes them, with a progress bar, and they are cached.
    Damaged records are skipped, as many as are allowed. They are not counted for the run, since
    whether they are encountered here depends on the cache.

    Args:
      num_threads: that read records.

    Raises:
      DataError: `statistics.npz` is damaged, or more records are than are allowed.
    """
    match examples:
        case Noise():
            mean_image = np.full(examples.image_shape, 127.5, np.float32)
            return Statistics(mean_image, np.eye(3) * (256**2 - 1) / 12)
        case Records():
            return _stored(examples) or _cached(examples, num_threads)
        case _:
            return _measure(examples, _batches(examples, num_threads=0))


def fitted(
    statistics: Statistics, image_shape: tuple[int, int, int], scaling: str, whose: str
) -> Statistics:
    """The statistics of one set for images of another: the same for the same (H, W, C). Images that
    are standardized may have another size: of the mean image only the mean of each channel counts.

    Raises UserError for other shapes, which names the run `whose` statistics they are.
    """
    mean_image = statistics.mean_image
    if mean_image.shape == image_shape:
        return statistics
    if scaling != "standardized" or mean_image.shape[-1] != image_shape[-1]:
        theirs, ours = ("x".join(map(str, shape)) for shape in (mean_image.shape, image_shape))
        raise UserError(
            f"{whose} has a mean image of {theirs}, and the images here are {ours}: prepare them "
            "like its own (scripts.prepare_data)"
        )
    mean = mean_image.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
    return statistics._replace(mean_image=np.broadcast_to(mean, image_shape).copy())


def _stored(records: Records) -> Statistics | None:
    """Those in the file that comes with the set; None if it has none of this split."""
    path = records.folder / "statistics.npz"
    splits = {part.split for part in records.slices}
    if not path.exists() or len(splits) != 1:
        return None
    names = [f"{split}_{field}" for split in splits for field in Statistics._fields]
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if not set(names) <= set(arrays.files):
                return None
            mean_image, covariance = (arrays[name] for name in names)
    except Exception as error:  # NumPy and zipfile have no error class in common
        raise DataError(
            f"{path} is damaged ({error}); delete it to compute the statistics from the records"
        ) from error
    if mean_image.shape != records.image_shape or covariance.shape != 2 * records.image_shape[-1:]:
        raise DataError(
            f"{path} is for images of shape {mean_image.shape}, not {records.image_shape}; delete "
            "it"
        )
    return Statistics(mean_image.astype(np.float32), covariance.astype(np.float64))


def _cached(records: Records, num_threads: int) -> Statistics:
    shards = [Path(name) for name in dict.fromkeys(part.filename for part in records.slices)]
    selection = [(part.skip, part.take) for part in records.slices]
    path = cache_file(f"{records.name}-statistics", records.folder, shards, selection)
    damaged = DamagedRecords(records.name, records.damaged.allowed)
    uncounted = dataclasses.replace(records, damaged=damaged)

    def compute() -> Statistics:
        with contextlib.closing(_batches(uncounted, num_threads)) as batches:
            total = -(-len(records) // _batch_size(records))
            label, console = f"mean image of {records.name}", Console(stderr=True)
            return _measure(records, track(batches, label, total, console=console))

    return Statistics(*cached(path, Statistics._fields, compute))


def _batch_size(examples) -> int:
    height, width, _ = examples.image_shape
    return max(CHUNK_PIXELS // (height * width), 1)


def _batches(examples, num_threads: int):
    return eval_batches(examples, _batch_size(examples), num_threads=num_threads)


def _measure(examples, batches: Iterable[dict[str, np.ndarray]]) -> Statistics:
    """Sums of integers in float64, exact up to 2^53 (all of ImageNet), so the result is the same on
    every machine.
    """
    height, width, channels = shape = examples.image_shape
    image_sum, products, count = np.zeros(shape), np.zeros((channels, channels)), 0
    for batch in batches:  # zeros where the mask is False
        image_sum += batch["image"].sum(axis=0, dtype=np.int64)
        pixels = batch["image"].reshape(-1, channels).astype(np.float64)
        products += pixels.T @ pixels
        count += int(batch["mask"].sum())
    mean_image = image_sum / count
    mean = mean_image.mean(axis=(0, 1))  # (C,)
    covariance = products / (count * height * width) - np.outer(mean, mean)
    return Statistics(mean_image.astype(np.float32), covariance)
