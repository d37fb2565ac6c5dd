"""Image sets, found by name and read through TFDS without TensorFlow: small ones in memory, large
ones record by record.

Any set prepared in TFDS's array_record format with the features `image` and `label` can be read.
Decoding 60,000 records takes about ten seconds, so `load` keeps each split as one uncompressed .npz
file under `$XDG_CACHE_HOME/lenet-alexnet` (`~/.cache/lenet-alexnet`); such a file may be deleted at
any time. `open_records` leaves the records where they are.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from common.errors import DataError, UserError

PILLOW_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by the number of channels

MAX_PIXELS = 89_478_485  # of an image, refused before it is decoded: Pillow's limit, a quarter of a gigabyte as RGB


@dataclasses.dataclass(frozen=True)
class Examples:
    """Labelled images of one size.

    Attributes:
      images: (N, H, W, C) uint8, 0 to 255.
      labels: (N,) int32, 0 to num_classes - 1.
      num_classes: how many classes the set has; a slice may lack some of them.
      name: the set, such as `mnist` or `emnist/balanced`.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    name: str

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, selection: slice) -> "Examples":
        """The selected examples, as views: `examples[:-5000]` trains where `examples[-5000:]`
        validates.
        """
        return dataclasses.replace(
            self, images=self.images[selection], labels=self.labels[selection]
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        return self.images.shape[1:]

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The examples at `indices` (n,): images (n, H, W, C) uint8, labels (n,) int32."""
        return self.images[indices], self.labels[indices]


class Stretch(NamedTuple):
    """Consecutive records of one shard; the last four fields are what ArrayRecordDataSource takes."""

    split: str
    filename: str
    skip: int
    take: int
    examples_in_shard: int


class Damage(NamedTuple):
    """A record that cannot be used: the name of its shard's file, its number in the shard, and why."""

    split: str
    shard: str
    record: int
    reason: str

    def __str__(self) -> str:
        return f"split {self.split}, shard {self.shard}, record {self.record} ({self.reason})"


@dataclasses.dataclass(frozen=True)
class Records:
    """Labelled images of one size, read from their files when asked: for sets too large for memory.

    It can be pickled and read in any process and thread; each process opens a file when it first
    needs it.

    Attributes:
      folder: the prepared set's.
      stretches: where the records are, in order.
      image_shape: (H, W, C) of every image.
      stored_raw: a record holds the pixels themselves, not a PNG or JPEG file.
      num_classes: how many classes the set has; a slice may lack some of them.
      name: the set, such as `imagenet_256`.
    """

    folder: Path
    stretches: tuple[Stretch, ...]
    image_shape: tuple[int, int, int]
    stored_raw: bool
    num_classes: int
    name: str

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, selection: slice) -> "Records":
        """The selected records, still unread. Raises ValueError for steps other than 1."""
        start, stop, step = selection.indices(len(self))
        if step != 1:
            raise ValueError(f"records are sliced in steps of 1, not {step}")
        chosen = []
        for first, stretch in zip(self._ends, self.stretches, strict=False):
            skip, end = max(start - int(first), 0), min(stop - int(first), stretch.take)
            if skip < end:
                chosen.append(stretch._replace(skip=stretch.skip + skip, take=end - skip))
        return dataclasses.replace(self, stretches=tuple(chosen))

    def read(
        self, indices: np.ndarray, damaged: dict[int, Damage] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads and decodes the examples at `indices` (n,), each 0 to len - 1: images (n, H, W, C)
        uint8, labels (n,) int32.

        Args:
          damaged: takes the damaged records, by their place in `indices`; their images and labels
            are then zeros.

        Raises:
          DataError: a record is damaged, its image has another shape, or its label is outside the
            classes, and there is no `damaged` to take it; the message names split, shard and
            record.
          IndexError: an index outside the records.
        """
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        labels = np.empty(len(indices), np.int32)
        for place, index in enumerate(indices):
            if not 0 <= index < len(self):
                raise IndexError(f"record {index} of {len(self)}")
            try:
                content, label = parse(self.source[int(index)])
                if not 0 <= label < self.num_classes:
                    raise ValueError(f"label {label}; allowed: 0 to {self.num_classes - 1}")
                if self.stored_raw:
                    images[place] = np.frombuffer(content, np.uint8).reshape(self.image_shape)
                else:
                    _decode(content, images[place])
                labels[place] = label
            except Exception as error:  # ArrayRecord, the Example parser and the decoders have no error class in common
                number = int(np.searchsorted(self._ends, index, side="right")) - 1
                stretch = self.stretches[number]
                record = stretch.skip + int(index - self._ends[number])
                # What the machine lacks at this moment is no property of the record.
                if (
                    damaged is None
                    or isinstance(error, MemoryError)
                    or getattr(error, "errno", None)
                ):
                    raise _damaged(
                        self.name, stretch.split, stretch.filename, record, error
                    ) from error
                damaged[place] = Damage(
                    stretch.split, Path(stretch.filename).name, record, _reason(error)
                )
                images[place], labels[place] = 0, 0
        return images, labels

    def read_intact(
        self, indices: np.ndarray, allowed: int
    ) -> tuple[np.ndarray, np.ndarray, list[Damage]]:
        """As `read`, but in place of a damaged record stands the next intact one, after the last
        the first: a function of the records alone. Once more than `allowed` are damaged it reads no
        further, and what it returns is of no use.

        Returns:
          images (n, H, W, C) uint8, labels (n,) int32, and the damaged records that were met.
        """
        damaged: dict[int, Damage] = {}
        images, labels = self.read(indices, damaged)
        found = {damage[:3]: damage for damage in damaged.values()}
        for place in damaged:
            for index in range(indices[place] + 1, indices[place] + len(self)):
                if len(found) > allowed:
                    break
                again: dict[int, Damage] = {}
                image, label = self.read(np.array([index % len(self)]), again)
                found |= {damage[:3]: damage for damage in again.values()}
                if not again:
                    images[place], labels[place] = image[0], label[0]
                    break
            else:
                raise DataError(
                    f"{self.name}: none of the {len(self)} records is intact, such as {damaged[place]}"
                )
        return images, labels, sorted(found.values())

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        """(stretches + 1,) int64: how many records come before each stretch, and after them all."""
        return np.cumsum([0, *(stretch.take for stretch in self.stretches)])

    @functools.cached_property
    def source(self):
        # TFDS's own data source parses the features anew for every record and decodes by what
        # happens to be installed.
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        return ArrayRecordDataSource(self.stretches)


def data_dirs(data_dir: str, *embedded: str | Path) -> list[Path]:
    """Where to look for prepared sets, in order: `data_dir` or what TFDS would use, then the
    folders that come with the code.

    Args:
      data_dir: the value of `--data_dir`; if empty, $TFDS_DATA_DIR counts, else
        ~/tensorflow_datasets.
      *embedded: folders inside the project, searched last.
    """
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return [Path(os.path.expanduser(chosen)), *map(Path, embedded)]


def load(dataset: str, split: str, data_dirs: Sequence[str | Path]) -> Examples:
    """Reads a split of a prepared set into memory.

    Args:
      dataset: the folder's name, with the sub-set's where there is one: `mnist`, `emnist/balanced`.
      split: a split or a slice as TFDS writes them: `train`, `test[:100]`, `train[:80%]`,
        `train+test`.
      data_dirs: searched in this order for `<dataset>/<version>/dataset_info.json`; the first that
        has the set is used, and in it the newest version.

    Returns:
      The examples in the order of the records.

    Raises:
      DataError: set not found, not in array_record format, unknown split, damaged or missing files,
        images of differing shapes, labels outside the classes.
    """
    prepared = _Prepared(dataset, data_dirs)
    if prepared.stored_raw:
        raise DataError(
            f"{prepared.folder} stores raw pixels; such a set is read record by record, not into memory"
        )
    num_classes = prepared.num_classes
    parts = []
    for name, start, stop in prepared.intervals(split):
        images, labels = _read_split(prepared, name)
        if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
            raise DataError(
                f"{dataset}, split {name}: labels run from {labels.min()} to {labels.max()}, but "
                f"{prepared.folder / 'features.json'} has {num_classes} classes (allowed: 0 to {num_classes - 1}); "
                "correct that file or prepare the set again"
            )
        parts.append(Examples(images, labels, num_classes, dataset)[start:stop])
    if len({part.images.shape[1:] for part in parts}) > 1:
        raise DataError(
            f"{dataset}: the splits in {split!r} have images of different shapes; load them one by one"
        )
    if len(parts) == 1:
        return parts[0]
    images, labels = (
        np.concatenate([getattr(part, field) for part in parts]) for field in ("images", "labels")
    )
    return Examples(images, labels, num_classes, dataset)


def open_records(dataset: str, split: str, data_dirs: Sequence[str | Path]) -> Records:
    """Finds a split of a prepared set and leaves its records unread.

    Args:
      dataset, split, data_dirs: as for `load`.

    Raises:
      DataError: set not found, not in array_record format, unknown split, missing files, images of
        no fixed size.
    """
    prepared = _Prepared(dataset, data_dirs)
    if None in prepared.image_shape:
        raise DataError(
            f"{prepared.folder} has images of no fixed size; prepare the set again with all of one size"
        )
    stretches = []
    for name, start, stop in prepared.intervals(split):
        shards = zip(prepared.shards(name), prepared.shard_lengths[name], strict=True)
        whole = tuple(Stretch(name, str(shard), 0, length, length) for shard, length in shards)
        records = Records(
            prepared.folder,
            whole,
            prepared.image_shape,
            prepared.stored_raw,
            prepared.num_classes,
            dataset,
        )
        stretches += records[start:stop].stretches
    return dataclasses.replace(records, stretches=tuple(stretches))


def split_sizes(dataset: str, data_dirs: Sequence[str | Path]) -> dict[str, int]:
    """The splits of a prepared set, each with its number of examples. Raises DataError as `load`."""
    return {
        name: sum(lengths) for name, lengths in _Prepared(dataset, data_dirs).shard_lengths.items()
    }


def find(dataset: str, data_dirs: Sequence[str | Path]) -> Path:
    """The folder of the newest version of `dataset` in the first of `data_dirs` that has the set.

    Raises:
      DataError: no folder has it; the message says where it was looked for and what to do.
    """
    if not re.fullmatch(r"\w+(/[\w.-]+)?", dataset):
        raise DataError(
            f"--dataset={dataset} is no name of a set; allowed: a name such as mnist or emnist/balanced"
        )
    for data_dir in data_dirs:
        folders = [path.parent for path in Path(data_dir, dataset).glob("*.*.*/dataset_info.json")]
        versions = [folder for folder in folders if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)]
        if versions:
            return max(versions, key=lambda folder: tuple(map(int, folder.name.split("."))))
    places = ", ".join(str(data_dir) for data_dir in data_dirs)
    parents = (Path(data_dir, dataset) for data_dir in data_dirs)
    configs = sorted(
        {
            path.parents[1].name
            for parent in parents
            for path in parent.glob("*/*.*.*/dataset_info.json")
        }
    )
    if configs:
        raise DataError(
            f"{dataset} has several sub-sets; choose one of: {', '.join(f'--dataset={dataset}/{config}' for config in configs)}"
        )
    raise DataError(
        f"data set {dataset!r} not found (looked in {places}): name the folder that has it with --data_dir or $TFDS_DATA_DIR, "
        "or prepare it (`python -m scripts.prepare_data --help` lists what can be downloaded); "
        "--dataset=mnist10k, for LeNet-5, is embedded"
    )


@functools.lru_cache(maxsize=2)  # every chunk of an epoch asks for it
def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the examples in one epoch: a permutation that is a pure function of
    (num_examples, seed, epoch).

    It sorts raw Philox numbers seeded by a SeedSequence. NumPy promises those two streams for all
    its versions, but not that of `Generator.permutation`; with a stable sort the order is the same
    wherever a run is resumed.

    Args:
      num_examples: N >= 0.
      seed, epoch: non-negative; different pairs give independent orders.

    Returns:
      (N,) int64, each of 0 to N - 1 once, read-only.
    """
    random = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    order = np.argsort(random.random_raw(num_examples), kind="stable")
    order.flags.writeable = False
    return order


def order_of_uses(
    population: int, uses: np.ndarray, seed: int, *, reshuffle: bool = True
) -> np.ndarray:
    """Which examples stand at the places `uses` of the endless stream of passes, one permutation
    `epoch_order` a pass.

    Args:
      population: how many examples a pass has.
      uses: integers >= 0 of any shape: how many examples came before this one.
      seed: non-negative.
      reshuffle: a new order in every pass, or that of the first in all.

    Returns:
      int64 like `uses`, each 0 to population - 1.
    """
    passes, places = np.divmod(uses, population)
    chosen = np.empty_like(places)
    for number_of_pass in np.unique(passes):
        order = epoch_order(population, seed, int(number_of_pass) if reshuffle else 0)
        here = passes == number_of_pass
        chosen[here] = order[places[here]]
    return chosen


def hold_out(examples, *, train_size: int, validation_size: int) -> tuple:
    """(training, validation): validation takes the last `validation_size` examples, training the
    first `train_size` of the others, or all of them (0). Raises UserError if there are too few.
    """
    available = len(examples) - validation_size
    if available < max(train_size, 1):
        raise UserError(
            f"{examples.name} has {len(examples)} training examples; --validation_size={validation_size} leaves "
            f"{max(available, 0)} to train on"
            + (f", fewer than --train_size={train_size}" if train_size else "")
        )
    return examples[: train_size or available], examples[available:]


def eval_batches(
    examples, batch_size: int, rows: slice = slice(None), damaged=None
) -> Iterator[dict[str, np.ndarray]]:
    """All examples in order, in batches of one shape, so that one compiled function scores them.

    The next two batches are read by a thread while the last one is used.

    Args:
      examples: N of them: Examples, Records, or what else has a length and `read`.
      batch_size: B >= 1, the global batch size.
      rows: which of the B places are wanted: this process's, where several share the work.
      damaged: a common.damage.DamagedRecords. The records that it allows are masked out, their
        pixels zeros, and counted.

    Yields:
      ceil(N / B) times {"image": (B, H, W, C) uint8, "label": (B,) int32, "mask": (B,) bool}. The
      last batch is filled up with
      zeros where `mask` is False: a sum weighted with the mask counts each example exactly once.
    """
    tolerant = damaged is not None and damaged.allowed and isinstance(examples, Records)

    def read(start: int) -> tuple[dict[str, np.ndarray], list[Damage]]:
        places = np.arange(start, start + batch_size)[rows]
        mask, found = places < len(examples), {}
        images, labels = (
            examples.read(places[mask], found) if tolerant else examples.read(places[mask])
        )
        missing = len(places) - len(labels)
        if missing:
            images, labels = (
                np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)]),
                np.pad(labels, (0, missing)),
            )
        mask[list(found)] = False  # those that are missing are the last
        return {"image": images, "label": labels, "mask": mask}, list(found.values())

    def take(reading: concurrent.futures.Future) -> dict[str, np.ndarray]:
        batch, found = reading.result()
        if found:
            damaged.add(found, "it is left out")
        return batch

    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as reader:
        ahead = collections.deque()
        for start in range(0, len(examples), batch_size):
            ahead.append(reader.submit(read, start))
            if len(ahead) > 2:
                yield take(ahead.popleft())
        while ahead:
            yield take(ahead.popleft())


def cached(
    path: Path, names: Sequence[str], compute: Callable[[], tuple[np.ndarray, ...]]
) -> tuple[np.ndarray, ...]:
    """The arrays `names` in the file `path`, or else those that `compute` returns, kept in that
    file for the next time.
    """
    try:
        # An .npz carries a CRC-32 of each array, checked while reading.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return tuple(arrays[name] for name in names)
    except (
        Exception
    ):  # missing or damaged, with one of a dozen errors: whatever it is, the records are the truth
        arrays = compute()
    _write_cache(path, dict(zip(names, arrays, strict=True)))
    return arrays


def cache_file(label: str, folder: Path, shards: Sequence[Path], selection: Sequence = ()) -> Path:
    """Where to keep what was computed from a prepared set; files that change get another cache
    file.

    Args:
      label: begins the file's name.
      folder: the set's.
      shards: the files it was computed from, with their size and time of change.
      selection: anything else that JSON can write and the result depends on.
    """
    states = [(shard.name, shard.stat().st_size, shard.stat().st_mtime_ns) for shard in shards]
    infos = [
        (folder / name).read_text(encoding="utf-8")
        for name in ("dataset_info.json", "features.json")
    ]
    digest = hashlib.sha256(
        json.dumps([str(folder.resolve()), infos, states, *selection]).encode()
    ).hexdigest()
    cache_dir = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache_dir, "lenet-alexnet", f"{label.replace('/', '-')}-{digest[:16]}.npz")


def open_image(content: bytes) -> Image.Image:
    """A JPEG or PNG file, of which only the header is read so far. Raises ValueError for one of
    more than MAX_PIXELS pixels, and for other formats: for some of them Pillow runs programs.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=("JPEG", "PNG"))
        too_large = image.width * image.height > MAX_PIXELS
    except UnidentifiedImageError as error:
        raise ValueError("neither JPEG nor PNG") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        too_large = True
    if too_large:
        raise ValueError(f"more than {MAX_PIXELS:,} pixels")
    return image


class _Prepared:
    """What the descriptions in a prepared set's folder say of it: `shard_lengths` {split: records
    of each shard}, `num_classes`, `image_shape` (None where it varies), `stored_raw`.
    """

    def __init__(self, dataset: str, data_dirs: Sequence[str | Path]):
        self.dataset, self.folder = dataset, find(dataset, data_dirs)
        info = _read_json(self.folder / "dataset_info.json")
        if info.get("fileFormat") != "array_record":
            raise DataError(
                f"{self.folder} holds records in {info.get('fileFormat', 'tfrecord')} format, but only array_record can be "
                f"read; prepare the set again, elsewhere: `python -m scripts.prepare_data --dataset={dataset} --data_dir=DIR`"
            )
        features = _read_json(self.folder / "features.json")
        try:
            self._take(info.get("splits", []), features.get("featuresDict", {}).get("features", {}))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.folder} is described wrongly ({_reason(error)}); prepare the set again"
            ) from error

    def _take(self, splits: list[dict], features: dict[str, dict]) -> None:
        self.shard_lengths = {
            entry["name"]: list(map(int, entry.get("shardLengths", []))) for entry in splits
        }
        for name, lengths in self.shard_lengths.items():
            if (
                not re.fullmatch(r"[\w-]+", name) or min(lengths, default=0) < 0
            ):  # "../x" would lead out of the folder
                raise ValueError(f"a split {name!r} with shards of {lengths} records")
        image, label = features.get("image", {}), features.get("label", {})
        tensor = image.get("tensor", {})
        self.stored_raw = (tensor.get("dtype"), tensor.get("encoding")) == ("uint8", "bytes")
        if not ("image" in image or self.stored_raw) or "classLabel" not in label:
            names = ", ".join(sorted(features)) or "no features"
            raise DataError(
                f"{self.folder} has {names}; needed are `image` (an Image) and `label` (a ClassLabel)"
            )
        self.num_classes = int(label["classLabel"].get("numClasses", 0))
        sizes = image.get("image", tensor).get("shape", {}).get("dimensions", [-1, -1, 3])
        self.image_shape = tuple(int(size) if int(size) > 0 else None for size in sizes)
        if len(sizes) != 3 or self.image_shape[-1] not in PILLOW_MODES:
            raise ValueError(
                f"images of shape {sizes}; allowed: height, width, and 1, 3 or 4 channels"
            )
        if math.prod(size or 1 for size in self.image_shape[:2]) > MAX_PIXELS:
            raise ValueError(f"images of shape {sizes}; allowed: {MAX_PIXELS:,} pixels")
        if self.num_classes < 1:
            raise ValueError(f"{self.num_classes} classes")

    def shards(self, split: str) -> list[Path]:
        """The files of a split, all there. Raises DataError."""
        shards = sorted(self.folder.glob(f"*-{split}.array_record*"))
        expected = len(self.shard_lengths[split])
        if len(shards) != expected:
            raise DataError(
                f"{self.folder}, split {split}: {len(shards)} of {expected} shards; prepare the set again"
            )
        return shards

    def intervals(self, split: str) -> list[tuple[str, int | None, int | None]]:
        """The parts (split name, start, stop) that a split as TFDS writes it is made of. Raises
        DataError.
        """
        if (
            split in self.shard_lengths
        ):  # the common case, without importing TFDS, which takes longer than reading the cache
            return [(split, 0, sum(self.shard_lengths[split]))]
        import tensorflow_datasets as tfds

        infos = [
            tfds.core.SplitInfo(name=name, shard_lengths=n, num_bytes=0)
            for name, n in self.shard_lengths.items()
        ]
        try:
            parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(
                tfds.core.SplitDict(infos)
            )
        except Exception as error:  # TFDS raises ValueError, KeyError and AssertionError, each with several lines of text
            names = ", ".join(self.shard_lengths)
            raise DataError(
                f"no split {split!r} in {self.dataset} in {self.folder}; available: {names}, and slices such as "
                f"{next(iter(self.shard_lengths), 'train')}[:100]"
            ) from error
        return [(part.splitname, part.from_, part.to) for part in parts]


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
        return content
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({_reason(error)}); prepare the set again"
        ) from error


def _read_split(prepared: _Prepared, split: str) -> tuple[np.ndarray, np.ndarray]:
    """A whole split, from the cache or else from its records: images (N, H, W, C) uint8, labels
    (N,) int32.
    """
    shards = prepared.shards(split)
    path = cache_file(f"{prepared.dataset}-{split}", prepared.folder, shards)
    return cached(path, ("images", "labels"), lambda: _read_records(prepared, split, shards))


def _read_records(
    prepared: _Prepared, split: str, shards: list[Path]
) -> tuple[np.ndarray, np.ndarray]:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    dataset, shard_lengths = prepared.dataset, prepared.shard_lengths[split]
    mode, (height, width, _) = PILLOW_MODES[prepared.image_shape[-1]], prepared.image_shape
    images, labels = [], []
    try:
        # Not by TFDS: it imports what features.json names, and decodes by what happens to be
        # installed.
        stretches = [
            Stretch(split, str(shard), 0, n, n)
            for shard, n in zip(shards, shard_lengths, strict=True)
            if n
        ]
        source = ArrayRecordDataSource(stretches) if stretches else ()
        for index in range(len(source)):
            content, label = parse(source[index])
            image = open_image(content)
            if image.height != (height or image.height) or image.width != (width or image.width):
                raise ValueError(
                    f"an image of {image.height}x{image.width} pixels, not {height}x{width}"
                )
            image = np.asarray(image.convert(mode))
            images.append(image[..., None] if mode == "L" else image)
            labels.append(label)
    except Exception as error:  # ArrayRecord, the Example parser and the image decoder have no error class in common
        ends = np.cumsum(shard_lengths)
        shard = min(int(np.searchsorted(ends, len(labels), side="right")), len(shards) - 1)
        record = len(labels) - int(ends[shard] - shard_lengths[shard])
        raise _damaged(dataset, split, shards[shard], record, error) from error
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
        raise DataError(
            f"{dataset}, split {split}: images of {len(shapes)} shapes, such as {shapes[0]} and {shapes[-1]}; allowed is one"
        )
    if len(images) != sum(shard_lengths):
        raise DataError(
            f"{prepared.folder}, split {split}: {len(images)} of {sum(shard_lengths)} records; prepare the set again"
        )
    return np.stack(images) if images else np.zeros((0, 0, 0, 0), np.uint8), np.array(
        labels, np.int32
    )


def parse(serialized: bytes) -> tuple[bytes, int]:
    """The image (a file, or its pixels) and the label of a record. Raises whatever a damaged one
    causes.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    features = tf_example_pb2.Example.FromString(serialized).features.feature
    return features["image"].bytes_list.value[0], features["label"].int64_list.value[0]


def _damaged(
    dataset: str, split: str, shard: str | Path, record: int, error: Exception
) -> DataError:
    return DataError(
        f"damaged data in {dataset}, split {split}, shard {shard}, record {record} ({_reason(error)}); "
        "restore the file or prepare the set again"
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _decode(content: bytes, image: np.ndarray) -> None:
    """Decodes a JPEG or PNG file into `image`, (H, W, C) uint8, whatever its colours. Raises
    ValueError for another size.
    """
    colors = None
    if content.startswith(b"\xff\xd8"):
        height, width, colors, _ = simplejpeg.decode_jpeg_header(content)
    else:
        width, height = open_image(content).size
    if (height, width) != image.shape[:2]:
        raise ValueError(
            f"an image of {height}x{width} pixels, not {image.shape[0]}x{image.shape[1]}"
        )
    mode = PILLOW_MODES[image.shape[-1]]
    if mode == "RGB" and colors in ("YCbCr", "Gray"):
        # The same pixels as Pillow's, in two thirds of the time.
        simplejpeg.decode_jpeg(content, "RGB", fastdct=False, fastupsample=False, buffer=image)
    else:
        image[...] = np.asarray(open_image(content).convert(mode)).reshape(image.shape)


def _write_cache(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes the file whole or not at all; a cache that cannot be written costs the next run some
    seconds, and is no error.
    """
    if (
        not path.is_absolute()
    ):  # no home folder is known, or $XDG_CACHE_HOME is one that its specification says to ignore
        return
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as stream:
            temporary = Path(stream.name)
            np.savez(stream, **arrays)
        os.replace(temporary, path)
    except OSError:
        if temporary:
            temporary.unlink(missing_ok=True)
