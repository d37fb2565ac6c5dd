"""AlexNet's examples: which ones, in which order, and what happens to an image on its way into
conv1.

The host only reads and decodes; crops, mirror images and colour noise are made on the device,
inside the jitted step.
"""

import contextlib
import dataclasses
import functools
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import lax
from rich.console import Console
from rich.progress import track

from common import data
from common.damage import DamagedRecords
from common.errors import DataError, UserError

IN_MEMORY_PX = (
    64  # sets of images up to this size are held in memory, larger ones are read record by record
)
READ_AHEAD = 2  # batches that each reader has ready
CHUNK_PIXELS = 2**22  # that statistics are computed from at once

AUGMENTATION = (
    2**31
)  # folded into key(seed) first: apart from the keys of initial weights (0, 1, ...) and of dropout

VIEWS = 10  # four corners and the centre, then their mirror images (section 4.1)
COLOR_NOISE = 0.1  # standard deviation of the factors on the principal components (section 4.1)

# The random region of `resized_crop_flip`, as in Szegedy et al. 2015 (Going deeper with
# convolutions, section 6).
REGION_AREA = (0.08, 1.0)  # of the image's
REGION_ASPECT = (3 / 4, 4 / 3)  # width over height
REGION_TRIES = 10  # to find one that fits the image, as in torchvision


@dataclasses.dataclass(frozen=True)
class Noise:
    """Labelled noise in place of images, for timings: example i is a pure function of (seed, i).

    Attributes:
      numbers: i of each example.
      image_shape: (H, W, 3).
      seed: non-negative.
    """

    numbers: range
    image_shape: tuple[int, int, int]
    seed: int
    num_classes: int = 1000
    name: str = "fake"

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, selection: slice) -> "Noise":
        """The selected examples."""
        return dataclasses.replace(self, numbers=self.numbers[selection])

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The examples at `indices` (n,): images (n, H, W, 3) uint8, uniform in 0 to 255, and
        labels (n,) int32.
        """
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        labels = np.empty(len(indices), np.int32)
        for place, index in enumerate(indices):
            random = np.random.Philox(
                np.random.SeedSequence(self.seed, spawn_key=(self.numbers[index],))
            )
            labels[place] = random.random_raw() % self.num_classes
            words = random.random_raw(
                -(-images[place].size // 8)
            )  # uint64, eight pixel values each
            images[place] = words.view(np.uint8)[: images[place].size].reshape(self.image_shape)
        return images, labels


def load_splits(
    dataset: str,
    data_dir: str,
    *,
    train_split: str = "train",
    test_split: str = "",
    train_size: int,
    validation_size: int,
    crop_size: int,
    seed: int,
):
    """The training, validation and test examples, each `Examples` (images of at most 64 pixels),
    `Records` (larger) or `Noise`.

    Args:
      dataset: a prepared set of RGB images, or `fake`, whose validation takes 256 at most.
      data_dir: as for `common.data.data_dirs`.
      train_split, test_split: splits or slices as TFDS writes them; no test_split means `test`, or
        `validation` in a set that has no `test`.
      train_size: train on the first N examples that validation leaves; 0: on all.
      validation_size: validation takes the last N of the training split.
      crop_size: images must be at least as high and as wide.
      seed: of the noise.

    Raises:
      DataError: the set or a split cannot be read, images are not RGB or too small.
      UserError: the sizes do not fit the set.
    """
    if dataset == "fake":
        validation_size = min(validation_size, 256)
    test_split = find_test_split(dataset, data_dir, test_split)
    train, test = (
        open_split(dataset, data_dir, split, crop_size=crop_size, seed=seed)
        for split in (train_split, test_split)
    )
    require_fit(train, crop_size)
    if not len(test):
        raise UserError(f"{dataset} has no examples in --test_split={test_split}")
    return *data.hold_out(train, train_size=train_size, validation_size=validation_size), test


def find_test_split(dataset: str, data_dir: str, test_split: str = "") -> str:
    """`test_split` if there is one; else `test`, or `validation` in a set that has no `test`.
    Raises DataError.
    """
    if test_split or dataset == "fake":
        return test_split or "test"
    return "test" if "test" in data.split_sizes(dataset, data.data_dirs(data_dir)) else "validation"


def open_split(dataset: str, data_dir: str, split: str, *, crop_size: int = 227, seed: int = 0):
    """One split of a prepared set: in memory if its images have at most 64 pixels, else as records.
    Raises DataError.

    Of `fake` it is noise, of 32 pixels for crops up to that, else of 256: 1,280 examples in
    `train`, 256 in `test`.
    """
    if dataset == "fake":
        numbers = {"train": range(1280), "test": range(1280, 1536)}
        if split not in numbers:
            raise DataError(f"no split {split!r} in fake; available: {', '.join(numbers)}")
        size = 32 if crop_size <= 32 else 256
        return Noise(numbers[split], (size, size, 3), seed)
    folders = data.data_dirs(data_dir)
    records = data.open_records(dataset, split, folders)
    return (
        data.load(dataset, split, folders)
        if max(records.image_shape[:2]) <= IN_MEMORY_PX
        else records
    )


def require_fit(examples, crop_size: int) -> None:
    """Raises DataError unless the images are RGB and no smaller than the crop."""
    height, width, channels = examples.image_shape
    if channels != 3 or min(height, width) < crop_size:
        raise DataError(
            f"--crop_size={crop_size} cuts squares from RGB images at least as large; those of {examples.name} have "
            f"{height}x{width} pixels and {channels} channels"
        )


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Updates in one epoch: full batches only; the examples left over begin the next pass."""
    if batch_size > num_examples:
        raise UserError(
            f"--batch_size={batch_size} is larger than the training set ({num_examples} examples)"
        )
    return num_examples // batch_size


def training_batch(
    examples,
    step: int,
    *,
    batch_size: int,
    seed: int,
    rows: slice = slice(None),
    max_bad_records: int = 0,
) -> dict[str, np.ndarray]:
    """The `rows` of the batch of one step, a pure function of (seed, step): {"image": (B, H, W, 3)
    uint8, "label": (B,) int32, "draw": (B,) uint32}. `draw` is the number of this use of an
    example, from 1: crops and colours are drawn from it.

    Where `max_bad_records` allows damaged records, intact ones stand for them; a batch that met any
    has them as "damaged".
    """
    uses = (
        step * batch_size + np.arange(batch_size)[rows]
    )  # (B,): how many examples came before this one
    indices, found = data.order_of_uses(len(examples), uses, seed), []
    if max_bad_records and isinstance(examples, data.Records):
        images, labels, found = examples.read_intact(indices, max_bad_records)
    else:
        images, labels = examples.read(indices)
    batch = {"image": images, "label": labels, "draw": (1 + uses).astype(np.uint32)}
    return batch | ({"damaged": found} if found else {})


def require_first_batch(examples, batch_size: int, seed: int, max_bad_records: int) -> None:
    """Reads the first batch for nothing but this: a wrong shape or label is told before anything is
    compiled.

    Raises DataError: it has a damaged record, or more than `max_bad_records`.
    """
    if len(examples):
        settings = dict(
            batch_size=min(batch_size, len(examples)), seed=seed, max_bad_records=max_bad_records
        )
        DamagedRecords(examples.name, max_bad_records).add(
            training_batch(examples, 0, **settings).get("damaged", ())
        )


class _Batches:
    """All batches of a stream without end, for Grain: item k is that of step k."""

    def __init__(self, examples, **settings):
        self.examples, self.settings = examples, settings

    def __len__(self) -> int:
        return 2**40  # Grain wants a length

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        return training_batch(self.examples, step, **self.settings)


def training_batches(
    examples,
    *,
    first_step: int,
    batch_size: int,
    seed: int,
    num_workers: int,
    rows: slice = slice(None),
    damaged: DamagedRecords | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of steps first_step, first_step + 1, ... without end, read ahead: those of
    `training_batch`, whatever reads.

    Close it (`contextlib.closing`), and the workers end. Each reader holds up to about five batches
    at a time.

    Args:
      num_workers: processes that read; 0: a thread of this process. Examples in memory need no
        process to read them, and get none.
      damaged: counts the damaged records, in this process, if it allows any.

    Raises:
      DataError: a record is damaged, or more than `damaged` allows.
      UserError: a worker was ended from outside.
    """
    parallel = num_workers > 0 and not isinstance(examples, data.Examples)
    settings = dict(
        batch_size=batch_size,
        seed=seed,
        rows=rows,
        max_bad_records=damaged.allowed if damaged else 0,
    )
    stream = grain.MapDataset.source(_Batches(examples, **settings))[first_step:]
    stream = stream.to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=READ_AHEAD)
    )
    if parallel:
        options = grain.MultiprocessingOptions(num_workers=num_workers)
        stream = stream.mp_prefetch(options, worker_init_fn=_end_with_parent)
        if not flags.FLAGS.is_parsed():  # in a notebook or a test; Grain sends its flags along
            flags.FLAGS.mark_as_parsed()
    batches = iter(stream)
    try:
        with _signals_held_back() if parallel else contextlib.nullcontext():
            batch = next(batches)  # starts threads and workers
        while True:
            if "damaged" in batch:
                damaged.add(batch.pop("damaged"), "the next intact record stands for it")
            # Plain arrays: from workers they come as a subclass of Grain's that frees their shared
            # memory.
            yield {name: np.asarray(array) for name, array in batch.items()}
            batch = next(batches)
    except RuntimeError as error:
        if not str(error).startswith("Worker process"):
            raise
        raise UserError(
            f"a process that reads data was ended ({str(error).partition('. ')[0]}): out of memory, or of shared memory "
            "(/dev/shm)? Fewer --num_workers need less of both; the same command resumes"
        ) from error
    finally:
        batches.close()
        if parallel:
            time.sleep(
                0.2
            )  # Grain frees shared memory in a thread; what is left at exit, Python reports as a leak


@contextlib.contextmanager
def _signals_held_back():
    """What is started in this context never hears SIGINT and SIGTERM, which a terminal or a
    scheduler sends to all processes of a program: the main one decides, and ends its workers.
    Signals to this thread wait until the end of the context.
    """
    resource_tracker.ensure_running()  # multiprocessing's helper; starting it would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent(worker: int, num_workers: int) -> None:
    """Runs in a new worker: should the main process die without a word, so does this one."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Statistics(NamedTuple):
    """What training needs to know about its images.

    Attributes:
      mean_image: (H, W, 3) float32, 0 to 255.
      covariance: (3, 3) float64, of the RGB values (0 to 255) of all pixels.
    """

    mean_image: np.ndarray
    covariance: np.ndarray


def statistics(examples, max_bad_records: int = 0) -> Statistics:
    """The statistics of some examples.

    Of examples in memory they are computed here, of noise they are known. Of records they are those
    in the set's `statistics.npz`, if it has the split (all of it, whatever slice the records are);
    else they are computed in one pass over the records, with a progress bar, and cached; as many
    damaged ones as `max_bad_records` allows are left out. A run does not
    count these: whether they are met here hangs on the cache.

    Raises:
      DataError: `statistics.npz` is damaged, or more records than `max_bad_records` are.
    """
    if isinstance(examples, Noise):
        return Statistics(
            np.full(examples.image_shape, 127.5, np.float32), np.eye(3) * (256**2 - 1) / 12
        )
    if isinstance(examples, data.Examples):
        return _measure(examples, data.eval_batches)
    prepared = _prepared_statistics(examples)
    if prepared is not None:
        return prepared
    shards = [
        Path(name) for name in dict.fromkeys(stretch.filename for stretch in examples.stretches)
    ]
    selection = [stretch[2:4] for stretch in examples.stretches]
    path = data.cache_file(f"{examples.name}-statistics", examples.folder, shards, selection)
    damaged = DamagedRecords(examples.name, max_bad_records)
    batches = functools.partial(_batches_with_progress, damaged=damaged)
    return Statistics(*data.cached(path, Statistics._fields, lambda: _measure(examples, batches)))


def _prepared_statistics(records: data.Records) -> Statistics | None:
    """From the file that comes with the set; None if it has none of all the records' split."""
    path, splits = (
        records.folder / "statistics.npz",
        {stretch.split for stretch in records.stretches},
    )
    if not path.exists() or len(splits) != 1:
        return None
    (split,) = splits
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = [f"{split}_{name}" for name in Statistics._fields]
            if not set(names) <= set(arrays.files):
                return None
            mean_image, covariance = (arrays[name] for name in names)
    except Exception as error:  # NumPy and zipfile have no error class in common
        raise DataError(
            f"{path} is damaged ({error}); delete it, and the statistics are computed from the records"
        ) from error
    if mean_image.shape != records.image_shape or covariance.shape != (3, 3):
        raise DataError(
            f"{path} is of other images ({mean_image.shape}, not {records.image_shape}); delete it"
        )
    return Statistics(mean_image.astype(np.float32), covariance.astype(np.float64))


def _measure(examples, batches: Callable) -> Statistics:
    """Sums of integers in float64, exact up to 2^53 (all of ImageNet), so the same wherever they
    are computed.
    """
    height, width, _ = examples.image_shape
    image_sum, products, count = np.zeros(examples.image_shape), np.zeros((3, 3)), 0
    for batch in batches(
        examples, max(CHUNK_PIXELS // (height * width), 1)
    ):  # zeros where the mask is False
        image_sum += batch["image"].sum(axis=0, dtype=np.int64)
        pixels = batch["image"].reshape(-1, 3).astype(np.float64)
        products += pixels.T @ pixels
        count += int(batch["mask"].sum())
    mean_image = image_sum / count
    mean = mean_image.mean(axis=(0, 1))  # (3,)
    covariance = products / (count * height * width) - np.outer(mean, mean)
    return Statistics(mean_image.astype(np.float32), covariance)


def _batches_with_progress(
    examples, batch_size: int, damaged: DamagedRecords
) -> Iterator[dict[str, np.ndarray]]:
    batches, total = (
        data.eval_batches(examples, batch_size, damaged=damaged),
        -(-len(examples) // batch_size),
    )
    return track(batches, f"mean image of {examples.name}", total, console=Console(stderr=True))


def color_axes(covariance: np.ndarray) -> np.ndarray:
    """(3, 3) float64: column i is the i-th principal component of the RGB values times their
    standard deviation along it.

    The sign of a component means nothing; here its largest entry is positive, so that all machines
    draw the same colours.
    """
    variances, components = np.linalg.eigh(np.asarray(covariance, np.float64))
    largest = components[np.abs(components).argmax(axis=0), np.arange(3)]
    return components * np.sign(largest) * np.sqrt(np.maximum(variances, 0))


def prepare_function(
    statistics: Statistics,
    *,
    crop_size: int,
    scaling: str,
    augmentation: str,
    color_pca: bool,
    pad: int,
    seed: int,
):
    """Returns prepare(images, draw=None, view=None): (B, H, W, 3) uint8 -> (B, crop_size,
    crop_size, 3) float32, to be called inside the jitted step.

    Without `draw`, for evaluation: the centre crop, or the `view` (0 to 9, an int or a traced
    scalar) of section 4.1: top left, top right, centre, bottom left, bottom right, then the mirror
    images of these five, the order of the 2012 code.

    With `draw` (B,) each image is augmented by the numbers that (seed, its draw) gives, whatever
    else is in the batch.

    Colour noise (section 4.1) adds sum_i p_i a_i s_i to all pixels of an image, p_i the principal
    components of the RGB values and a_i drawn from N(0, 0.1^2) once for each use of an image. The
    paper says that s_i is the eigenvalue lambda_i of the covariance, which would swamp an image of
    0 to 255 (lambda_1 is about 10^4); here it is sqrt(lambda_i) in these units, as in the 2012
    code, which calls it `color_stdevs`: 0.1 of a standard deviation.

    Args:
      statistics: of the training set, for images of this height and width.
      crop_size: height and width of the result, at most those of the images.
      scaling: 'mean_image': 0 to 255 minus the mean image, of which a crop gets its own part
        (section 2); 'standardized': each channel minus its mean over its standard deviation, in
        which units the colour noise is scaled too.
      augmentation: 'none': the centre crop; 'crop_flip': a crop at any place, mirrored or not, all
        equally likely (4.1); 'resized_crop_flip': a region of random area and aspect, resized with
        antialiasing, mirrored or not.
      color_pca: add colour noise.
      pad: pixels of the mean, 0 after its subtraction, on each side of an image before a random
        crop; 'none' has no use for it.
      seed: non-negative.
    """
    mean, scale = np.asarray(statistics.mean_image, np.float32), np.float32(1)
    if scaling == "standardized":
        if np.diag(statistics.covariance).min() <= 0:
            raise DataError(
                "a color channel of the training images is constant: --scaling=standardized would divide by zero"
            )
        mean = np.broadcast_to(
            mean.mean(axis=(0, 1), dtype=np.float64).astype(np.float32), mean.shape
        )
        scale = (1 / np.sqrt(np.diag(statistics.covariance))).astype(np.float32)  # (3,)
    margins = ((pad, pad), (pad, pad), (0, 0))
    padded_mean = np.pad(mean, margins)  # where image and mean are both 0, so is their difference
    axes = color_axes(statistics.covariance).astype(np.float32)

    def crop(
        image, mean, corner, mirrored
    ):  # cut first: most of the work of a step's images is in their conversion
        corner, size = (*corner, 0), (crop_size, crop_size, 3)
        x = lax.dynamic_slice(image, corner, size).astype(jnp.float32) - lax.dynamic_slice(
            mean, corner, size
        )
        return jnp.where(mirrored, x[:, ::-1], x)

    def augment(image, draw):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), AUGMENTATION), draw)
        place_key, mirror_key, color_key = jax.random.split(key, 3)
        mirrored = jax.random.bernoulli(mirror_key)
        if augmentation == "none":
            x = crop(image, mean, _centre(image, crop_size), False)
        elif augmentation == "crop_flip":
            image = jnp.pad(image, margins)
            height, width, _ = image.shape
            places = jnp.array([height - crop_size + 1, width - crop_size + 1])
            x = crop(image, padded_mean, jax.random.randint(place_key, (2,), 0, places), mirrored)
        else:
            x = resized_crop(place_key, jnp.pad(image, margins) - padded_mean, crop_size)
            x = jnp.where(mirrored, x[:, ::-1], x)
        if color_pca:
            x += jnp.sum(axes * COLOR_NOISE * jax.random.normal(color_key, (3,)), axis=1)
        return x * scale

    def prepare(images, draw=None, view=None):
        if draw is not None:
            return jax.vmap(augment)(images, draw)
        _, height, width, _ = images.shape
        bottom, right = height - crop_size, width - crop_size
        corners = [(0, 0), (0, right), (bottom // 2, right // 2), (bottom, 0), (bottom, right)]
        corner, mirrored = (
            (corners[2], False) if view is None else (jnp.array(corners)[view % 5], view >= 5)
        )
        return jax.vmap(lambda image: crop(image, mean, corner, mirrored) * scale)(images)

    return prepare


def _centre(image, crop_size: int) -> tuple[int, int]:
    return (image.shape[0] - crop_size) // 2, (image.shape[1] - crop_size) // 2


def resized_crop(key: jax.Array, image: jax.Array, crop_size: int) -> jax.Array:
    """A random region of one image (H, W, C) float, resized to (crop_size, crop_size, C): linearly,
    with antialiasing.

    Area and aspect (log-uniform) are drawn from REGION_AREA and REGION_ASPECT until the region
    fits, ten times at most, then
    its place: torchvision's RandomResizedCrop, with its way out, the largest central region of an
    allowed aspect. As if the image were resized whole and then cut: at the border of the region,
    pixels beside it count too.
    """
    height, width, _ = image.shape
    area_key, aspect_key, place_key = jax.random.split(key, 3)
    area = (
        height
        * width
        * jax.random.uniform(
            area_key, (REGION_TRIES,), minval=REGION_AREA[0], maxval=REGION_AREA[1]
        )
    )
    low, high = map(math.log, REGION_ASPECT)
    aspect = jnp.exp(jax.random.uniform(aspect_key, (REGION_TRIES,), minval=low, maxval=high))
    sizes = jnp.round(jnp.sqrt(jnp.stack([area / aspect, area * aspect], axis=1))).astype(
        jnp.int32
    )  # (10, 2): H, W of each
    fits = jnp.all((sizes > 0) & (sizes <= jnp.array([height, width])), axis=1)
    largest = jnp.array(
        [min(height, round(width / REGION_ASPECT[0])), min(width, round(height * REGION_ASPECT[1]))]
    )
    size = jnp.where(fits.any(), sizes[fits.argmax()], largest)
    free = jnp.array([height, width]) - size
    corner = jnp.where(fits.any(), jax.random.randint(place_key, (2,), 0, free + 1), free // 2)
    zoom = crop_size / size
    shape = (crop_size, crop_size, image.shape[-1])
    return jax.image.scale_and_translate(
        image, shape, (0, 1), zoom, -corner * zoom, "linear", antialias=True
    )
