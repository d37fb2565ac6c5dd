"""AlexNet's examples: which ones, in which order.

The host only reads and decodes; crops, mirroring and color noise happen on the device, inside the
jitted step (`alexnet/augment.py`).
"""

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Iterator

import numpy as np

from alexnet.config import Config
from alexnet.noise import Noise
from common import prepared
from common.errors import DataError, UserError
from common.examples import Examples, load
from common.order import NUM_THREADS, hold_out, order_of_uses, read_batches
from common.overlap import record_numbers, shared_records
from common.prepared import DIGITS, PreparedSet, about_test_split, data_dirs, split_sizes
from common.records import DamagedRecords, Records, open_records
from common.subset import of_classes, require_in_memory

NOISE = {"train": 1280, "test": 256}  # examples of the splits of `fake`
IN_MEMORY_PX = 64  # sets of larger images are read record by record


def load_splits(
    config: Config, damaged: DamagedRecords | None = None
) -> tuple[Examples | Records | Noise, ...]:
    """The training, validation and test examples of `config.dataset`, each `Examples` (images of at
    most 64 pixels), `Records` (larger) or `Noise`, of which at most 256 validate.

    Args:
      damaged: how many records may be damaged, shared by all splits; None: none may.

    Raises:
      DataError: the set or a split cannot be read, images are neither gray nor RGB.
      UserError: the set has not the classes or examples that the settings ask for.
    """
    dataset, folder, size = config.dataset, config.data_dir, config.crop_size
    test_split = find_test_split(dataset, folder, config.test_split)
    opened = (
        open_split(dataset, folder, split, crop_size=size, seed=config.seed, damaged=damaged)
        for split in (config.train_split, test_split)
    )
    train, test = (of_classes(examples, config.classes) for examples in opened)
    require_fit(train)
    if not len(test):
        raise UserError(f"{dataset} has no examples in --test_split={test_split}")
    return *_hold_out(train, config), test


def _hold_out(train, config: Config) -> tuple:
    return hold_out(
        train,
        train_size=config.train_size,
        validation_size=held_out(config),
        train_per_class=config.train_per_class,
    )


def held_out(config: Config) -> int:
    """How many examples validate."""
    return min(config.validation_size, 256 if config.dataset == "fake" else sys.maxsize)


def overlaps(config: Config) -> list[str]:
    """A sentence for each two of the training, validation and test examples that share records.

    Raises DataError and UserError as `load_splits` does.
    """
    dataset, folder = config.dataset, config.data_dir
    test_split = find_test_split(dataset, folder, config.test_split)
    if dataset == "fake":
        sizes, intervals = NOISE, lambda split: [(split, 0, noise_size(split))]
    else:
        folders = data_dirs(folder, DIGITS)
        sizes = split_sizes(dataset, folders)
        intervals = PreparedSet(dataset, folders).intervals
    splits = config.train_split, test_split
    train, test = (record_numbers(sizes, intervals(split)) for split in splits)
    if config.classes or config.train_per_class:
        train, test = (
            _numbered(config, split, numbers)
            for split, numbers in zip(splits, (train, test), strict=True)
        )
        parts = [each.images for each in (*_hold_out(train, config), test)]
    else:
        available = max(len(train) - held_out(config), 0)
        parts = [train[:available][: config.train_size or None], train[available:], test]
    return shared_records(sizes, dict(zip(("training", "validation", "test"), parts, strict=True)))


def _numbered(config: Config, split: str, numbers: np.ndarray) -> Examples:
    """The examples of a split that the config chooses, with record numbers in place of images."""
    examples = open_split(config.dataset, config.data_dir, split)
    require_in_memory(examples, "--classes" if config.classes else "--train_per_class")
    return of_classes(dataclasses.replace(examples, images=numbers), config.classes)


def require_disjoint(config: Config) -> None:
    """Raises UserError if training, validation and test examples share records, unless the config
    allows it; DataError as `load_splits` does.
    """
    if not config.allow_overlap and (found := overlaps(config)):
        raise UserError(
            f"{config.dataset}: {'; '.join(found)}. Choose other --train_split, --test_split, "
            "--train_size or --validation_size, or add --allow_overlap"
        )


def noise_size(split: str) -> int:
    """How many examples a split of `fake` has. Raises DataError for another split."""
    if split not in NOISE:
        raise DataError(f"no split {split!r} in fake; available: {', '.join(NOISE)}")
    return NOISE[split]


def find_test_split(dataset: str, data_dir: str, test_split: str = "") -> str:
    """`test_split` unless it is empty; else `test`, or `validation` in a set that has no `test`.

    Raises DataError.
    """
    if test_split or dataset == "fake":
        return test_split or "test"
    return prepared.find_test_split(dataset, data_dirs(data_dir, DIGITS))


def open_split(
    dataset: str,
    data_dir: str,
    split: str,
    *,
    crop_size: int = 227,
    seed: int = 0,
    damaged: DamagedRecords | None = None,
) -> Examples | Records | Noise:
    """One split of a prepared set: in memory if its images have at most 64 pixels, else as records.

    `fake` is noise, of 32 pixels for crops up to that, else of 256: 1,280 examples in `train`, 256
    in `test`. Raises DataError.
    """
    if dataset == "fake":
        count = noise_size(split)
        first = NOISE["train"] if split == "test" else 0
        size = 32 if crop_size <= 32 else 256
        return Noise(range(first, first + count), (size, size, 3), seed)
    folders = data_dirs(data_dir, DIGITS)
    records = open_records(dataset, split, folders, damaged)
    in_memory = max(records.image_shape[:2]) <= IN_MEMORY_PX
    return load(dataset, split, folders) if in_memory else records


def require_fit(examples) -> None:
    """Raises DataError unless the images are gray or RGB."""
    height, width, channels = examples.image_shape
    if channels not in (1, 3):
        raise DataError(
            f"AlexNet takes gray or RGB images; those of {examples.name} have {height}x{width} "
            f"pixels and {channels} channels"
        )


def remarks(config: Config, image_shape: tuple[int, int, int]) -> list[str]:
    """Lines on what is scored, and on what the network does not see, or sees otherwise, of images
    of this shape. Raises DataError.
    """
    height, width, channels = image_shape
    size = config.crop_size
    lines = []
    if not config.test_split and config.dataset != "fake":
        lines = about_test_split(config.dataset, data_dirs(config.data_dir, DIGITS))
    if min(height, width) < size:
        lines += [f"images of {height}x{width} pixels are padded to {size}x{size} (--crop_size)"]
    elif height * width > 2 * size**2:
        lines += [
            f"a crop of --crop_size={size} is 1/{height * width / size**2:.3g} of each image of "
            f"{height}x{width} pixels: prepare the set with --size={size}, or see --preset=photos"
        ]
    if channels == 1 and config.mirror == "color" and config.augmentation != "none":
        lines.append("gray images are not mirrored, they may be digits; --mirror=always does it")
    if config.drop_epochs and min(config.drop_epoch_numbers) >= config.num_epochs:
        lines.append(f"the learning rate never drops: --drop_epochs={config.drop_epochs}")
    return lines


def require_first_batch(examples, batch_size: int, seed: int) -> None:
    """Reads the first batch once, so that a wrong shape or label is reported before anything is
    compiled.

    Raises DataError: it has a damaged record, or more than `examples.damaged` allows.
    """
    if not len(examples):
        return
    uses = np.arange(min(batch_size, len(examples)))
    images = np.empty((len(uses), *examples.image_shape), np.uint8)
    labels = np.empty(len(uses), np.int32)
    found = examples.read_into(order_of_uses(len(examples), uses, seed), images, labels)
    if found:  # checked, not counted: the run counts what it uses
        DamagedRecords(examples.name, examples.damaged.allowed).add(found)


def training_batches(
    examples,
    *,
    first_step: int,
    batch_size: int,
    seed: int,
    num_threads: int = NUM_THREADS,
    rows: slice = slice(None),
) -> Iterator[dict[str, np.ndarray]]:
    """The `rows` of the batches of steps first_step, first_step + 1, ... without end, read ahead.

    Batch k is a pure function of (seed, k). Close the generator (`contextlib.closing`) to end its
    threads.

    Args:
      num_threads: as for `common.order.read_batches`.

    Yields:
      {"image": (B, H, W, 3 or 1) uint8, "label": (B,) int32, "draw": (B,) uint32}. `draw` counts
      the uses of examples, from 1: crops and colors are drawn from it.

    Raises:
      DataError: a record is damaged, or more than `examples.damaged` allows.
    """
    places = np.arange(batch_size)[rows]

    def uses(step: int) -> np.ndarray:
        return step * batch_size + places  # (B,): how many examples came before this one

    steps = itertools.count(first_step)
    indices = (order_of_uses(len(examples), uses(step), seed) for step in steps)
    reading = read_batches(examples, indices, size=len(places), num_threads=num_threads)
    with contextlib.closing(reading) as batches:
        for step, batch in zip(itertools.count(first_step), batches, strict=False):
            yield batch | {"draw": (1 + uses(step)).astype(np.uint32)}


def training_batch(examples, step: int, **settings) -> dict[str, np.ndarray]:
    """The batch of one step; the settings are those of `training_batches`."""
    batches = training_batches(examples, first_step=step, num_threads=0, **settings)
    with contextlib.closing(batches):
        return next(batches)
