"""Small image sets in memory: found by name, read through TFDS without TensorFlow, cached as one array per split.

Any set prepared in TFDS's array_record format with the features `image` and `label` can be read. Decoding 60,000 records takes
about ten seconds, so `load` keeps each split as one uncompressed .npz file under `$XDG_CACHE_HOME/lenet-alexnet`
(`~/.cache/lenet-alexnet`); such a file may be deleted at any time.
"""

import dataclasses
import functools
import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from common.errors import DataError


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
        """The selected examples, as views: `examples[:-5000]` trains where `examples[-5000:]` validates."""
        return dataclasses.replace(self, images=self.images[selection], labels=self.labels[selection])


def data_dirs(data_dir: str, *embedded: str | Path) -> list[Path]:
    """Where to look for prepared sets, in order: `data_dir` or what TFDS would use, then the folders that come with the code.

    Args:
      data_dir: the value of `--data_dir`; if empty, $TFDS_DATA_DIR counts, else ~/tensorflow_datasets.
      *embedded: folders inside the project, searched last.
    """
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return [Path(os.path.expanduser(chosen)), *map(Path, embedded)]


def load(dataset: str, split: str, data_dirs: Sequence[str | Path]) -> Examples:
    """Reads a split of a prepared set into memory.

    Args:
      dataset: the folder's name, with the sub-set's where there is one: `mnist`, `emnist/balanced`.
      split: a split or a slice as TFDS writes them: `train`, `test[:100]`, `train[:80%]`, `train+test`.
      data_dirs: searched in this order for `<dataset>/<version>/dataset_info.json`; the first that has the set is used, and in
        it the newest version.

    Returns:
      The examples in the order of the records.

    Raises:
      DataError: set not found, not in array_record format, unknown split, damaged or missing files, images of differing
        shapes, labels outside the classes.
    """
    folder = find(dataset, data_dirs)
    info = _read_json(folder / "dataset_info.json")
    if info.get("fileFormat") != "array_record":
        raise DataError(
            f"{folder} holds records in {info.get('fileFormat', 'tfrecord')} format, but only array_record can be read; "
            f"prepare the set again, elsewhere: `python -m scripts.prepare_data --dataset={dataset} --data_dir=DIR`"
        )
    num_classes = _num_classes(folder)
    shard_lengths = {entry["name"]: list(map(int, entry.get("shardLengths", []))) for entry in info.get("splits", [])}
    parts = []
    for name, start, stop in _intervals(split, shard_lengths, f"{dataset} in {folder}"):
        images, labels = _read_split(dataset, name, shard_lengths[name], folder)
        if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
            raise DataError(
                f"{dataset}, split {name}: labels run from {labels.min()} to {labels.max()}, but {folder / 'features.json'} "
                f"has {num_classes} classes (allowed: 0 to {num_classes - 1}); correct that file or prepare the set again"
            )
        parts.append(Examples(images, labels, num_classes, dataset)[start:stop])
    if len({part.images.shape[1:] for part in parts}) > 1:
        raise DataError(f"{dataset}: the splits in {split!r} have images of different shapes; load them one by one")
    if len(parts) == 1:
        return parts[0]
    images, labels = (np.concatenate([getattr(part, field) for part in parts]) for field in ("images", "labels"))
    return Examples(images, labels, num_classes, dataset)


def find(dataset: str, data_dirs: Sequence[str | Path]) -> Path:
    """The folder of the newest version of `dataset` in the first of `data_dirs` that has the set.

    Raises:
      DataError: no folder has it; the message says where it was looked for and what to do.
    """
    if not re.fullmatch(r"\w+(/[\w.-]+)?", dataset):
        raise DataError(f"--dataset={dataset} is no name of a set; allowed: a name such as mnist or emnist/balanced")
    for data_dir in data_dirs:
        folders = [path.parent for path in Path(data_dir, dataset).glob("*.*.*/dataset_info.json")]
        versions = [folder for folder in folders if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)]
        if versions:
            return max(versions, key=lambda folder: tuple(map(int, folder.name.split("."))))
    places = ", ".join(str(data_dir) for data_dir in data_dirs)
    parents = (Path(data_dir, dataset) for data_dir in data_dirs)
    configs = sorted({path.parents[1].name for parent in parents for path in parent.glob("*/*.*.*/dataset_info.json")})
    if configs:
        raise DataError(
            f"{dataset} has several sub-sets; choose one of: {', '.join(f'--dataset={dataset}/{config}' for config in configs)}"
        )
    raise DataError(
        f"data set {dataset!r} not found (looked in {places}): name the folder that has it with --data_dir or $TFDS_DATA_DIR, "
        "or prepare it (`python -m scripts.prepare_data --help` lists what can be downloaded); --dataset=mnist10k is embedded"
    )


@functools.lru_cache(maxsize=2)  # every chunk of an epoch asks for it
def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the examples in one epoch: a permutation that is a pure function of (num_examples, seed, epoch).

    It sorts raw Philox numbers seeded by a SeedSequence. NumPy promises those two streams for all its versions, but not that
    of `Generator.permutation`; with a stable sort the order is the same wherever a run is resumed.

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


def eval_batches(examples: Examples, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """All examples in order, in batches of one shape, so that one compiled function scores them.

    Args:
      examples: N of them.
      batch_size: B >= 1, the global batch size.

    Yields:
      ceil(N / B) times {"image": (B, H, W, C) uint8, "label": (B,) int32, "mask": (B,) bool}. The last batch is filled up with
      zeros where `mask` is False: a sum weighted with the mask counts each example exactly once.
    """
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        missing = batch_size - len(batch)
        yield {
            "image": np.pad(batch.images, [(0, missing), (0, 0), (0, 0), (0, 0)]),
            "label": np.pad(batch.labels, (0, missing)),
            "mask": np.arange(batch_size) < len(batch),
        }


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); prepare the set again") from error


def _num_classes(folder: Path) -> int:
    features = _read_json(folder / "features.json").get("featuresDict", {}).get("features", {})
    if "image" not in features.get("image", {}) or "classLabel" not in features.get("label", {}):
        names = ", ".join(sorted(features)) or "no features"
        raise DataError(f"{folder} has {names}; needed are `image` (an Image) and `label` (a ClassLabel)")
    return int(features["label"]["classLabel"].get("numClasses", 0))


def _intervals(split: str, shard_lengths: dict[str, list[int]], where: str) -> list[tuple[str, int, int]]:
    """The parts (split name, start, stop) that a split as TFDS writes it is made of."""
    if split in shard_lengths:  # the common case, without the import of TFDS, which takes longer than reading the cache
        return [(split, 0, sum(shard_lengths[split]))]
    import tensorflow_datasets as tfds

    infos = [tfds.core.SplitInfo(name=name, shard_lengths=lengths, num_bytes=0) for name, lengths in shard_lengths.items()]
    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(tfds.core.SplitDict(infos))
    except Exception as error:  # TFDS raises ValueError, KeyError and AssertionError, each with several lines of text
        names = ", ".join(shard_lengths)
        raise DataError(
            f"no split {split!r} in {where}; available: {names}, and slices such as {next(iter(shard_lengths), 'train')}[:100]"
        ) from error
    return [(part.splitname, part.from_, part.to) for part in parts]


def _read_split(dataset: str, split: str, shard_lengths: list[int], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """A whole split, from the cache or else from its records: images (N, H, W, C) uint8, labels (N,) int32."""
    shards = sorted(folder.glob(f"*-{split}.array_record*"))
    if len(shards) != len(shard_lengths):
        raise DataError(f"{folder}, split {split}: {len(shards)} of {len(shard_lengths)} shards; prepare the set again")
    cache_file = _cache_file(dataset, split, folder, shards)
    try:
        # An .npz carries a CRC-32 of each array, checked while reading.
        with cache_file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return arrays["images"], arrays["labels"]
    except Exception:  # missing or damaged, with one of a dozen errors: whatever it is, the records are the truth
        images, labels = _read_records(dataset, split, shard_lengths, folder, shards)
    _write_cache(cache_file, images, labels)
    return images, labels


def _read_records(
    dataset: str, split: str, shard_lengths: list[int], folder: Path, shards: list[Path]
) -> tuple[np.ndarray, np.ndarray]:
    import tensorflow_datasets as tfds

    images, labels = [], []
    try:
        # By directory: under a name that TFDS knows it would look for its own builder's version.
        builder = tfds.builder_from_directory(folder)
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[builder.info.features["image"].shape[-1]]
        # Decoded here because TFDS takes OpenCV where it is installed, whose JPEG decoder may round otherwise than Pillow's.
        for example in builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()}):
            image = np.asarray(Image.open(io.BytesIO(example["image"])).convert(mode))
            images.append(image[..., None] if mode == "L" else image)
            labels.append(example["label"])
    except Exception as error:  # ArrayRecord, the Example parser and the image decoder have no error class in common
        ends = np.cumsum(shard_lengths)
        shard = min(int(np.searchsorted(ends, len(labels), side="right")), len(shards) - 1)
        record = len(labels) - int(ends[shard] - shard_lengths[shard])
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"damaged data in {dataset}, split {split}, shard {shards[shard]}, record {record} ({reason}); "
            "restore the file or prepare the set again"
        ) from error
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
        raise DataError(
            f"{dataset}, split {split}: images of {len(shapes)} shapes, such as {shapes[0]} and {shapes[-1]}; allowed is one"
        )
    if len(images) != sum(shard_lengths):
        raise DataError(f"{folder}, split {split}: {len(images)} of {sum(shard_lengths)} records; prepare the set again")
    return np.stack(images) if images else np.zeros((0, 0, 0, 0), np.uint8), np.array(labels, np.int32)


def _cache_file(dataset: str, split: str, folder: Path, shards: list[Path]) -> Path:
    """Named by all that tells one state of the split's files from another: files that change get another cache file."""
    states = [(shard.name, shard.stat().st_size, shard.stat().st_mtime_ns) for shard in shards]
    infos = [(folder / name).read_text(encoding="utf-8") for name in ("dataset_info.json", "features.json")]
    digest = hashlib.sha256(json.dumps([str(folder.resolve()), infos, states]).encode()).hexdigest()
    cache_dir = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache_dir, "lenet-alexnet", f"{dataset.replace('/', '-')}-{split}-{digest[:16]}.npz")


def _write_cache(cache_file: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes the file whole or not at all; a cache that cannot be written costs the next run some seconds, and is no error."""
    if not cache_file.is_absolute():  # no home folder is known, or $XDG_CACHE_HOME is one that its specification says to ignore
        return
    temporary = None
    try:
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache_file.parent, suffix=".tmp", delete=False) as stream:
            temporary = Path(stream.name)
            np.savez(stream, images=images, labels=labels)
        os.replace(temporary, cache_file)
    except OSError:
        if temporary:
            temporary.unlink(missing_ok=True)
