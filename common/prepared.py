"""Finds prepared image sets and reads their descriptions, without TensorFlow.

A set is readable if TFDS prepared it in the array_record format with the features `image` and
`label`.
"""

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from common.errors import DataError, UserError, one_line
from common.images import MAX_PIXELS, PILLOW_MODES
from common.refusals import suggestion
from common.storage import NOT_UTF8

DIGITS = Path(__file__).resolve().parents[1] / "lenet" / "digits"  # the embedded set mnist10k
# What `scripts.prepare_data` makes, and what comes with the code.
KNOWN = (
    "mnist", "mnist10k", "fashion_mnist", "kmnist", "qmnist", "emnist/byclass", "emnist/bymerge",
    "emnist/balanced", "emnist/letters", "emnist/digits", "emnist/mnist", "cifar10", "imagenet_256",
)  # fmt: skip


def data_dirs(data_dir: str, *embedded: str | Path) -> list[Path]:
    """The folders to search for prepared sets, in order.

    Args:
      data_dir: the value of `--data_dir`; if empty, $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      *embedded: folders that come with the code, searched last.

    Raises UserError if there is none: the user has no home folder.
    """
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    folder = os.path.expanduser(chosen)
    folders = [Path(folder)] * (not folder.startswith("~")) + [*map(Path, embedded)]
    if not folders:
        raise UserError(f"{chosen}: no such home folder; name another one with --data_dir=DIR")
    return folders


def find(dataset: str, data_dirs: Sequence[str | Path]) -> Path:
    """The folder of the newest version of `dataset` in the first of `data_dirs` that has the set.

    Raises:
      DataError: no folder has it; the message lists where it was searched and what to do.
    """
    if not re.fullmatch(r"\w+(/[\w.-]+)?", dataset):
        raise DataError(
            f"--dataset={dataset} is not the name of a set, such as mnist or emnist/balanced"
            f"{_meant(dataset, data_dirs)}"
        )
    for data_dir in data_dirs:
        folders = [path.parent for path in Path(data_dir, dataset).glob("*.*.*/dataset_info.json")]
        versions = [folder for folder in folders if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)]
        if versions and NOT_UTF8.search(str(data_dir)):
            raise DataError(f"{data_dir} is not UTF-8, and ArrayRecord cannot open it: rename it")
        if versions:
            return max(versions, key=lambda folder: tuple(map(int, folder.name.split("."))))
    subsets = sorted(
        {
            path.parents[1].name
            for data_dir in data_dirs
            for path in Path(data_dir, dataset).glob("*/*.*.*/dataset_info.json")
        }
    )
    if subsets:
        choices = ", ".join(f"--dataset={dataset}/{subset}" for subset in subsets)
        raise DataError(f"{dataset} has several subsets; choose one of: {choices}")
    raise DataError(
        f"data set {dataset!r} not found in {', '.join(map(str, data_dirs))}"
        f"{_meant(dataset, data_dirs)}: name its folder with "
        "--data_dir or $TFDS_DATA_DIR, or prepare it (`python -m scripts.prepare_data --help` "
        "lists what can be downloaded); --dataset=mnist10k is embedded"
    )


def _meant(dataset: str, data_dirs: Sequence[str | Path]) -> str:
    """For an error message: the set that may be meant, of those that are there or can be made."""
    if dataset in KNOWN:
        return ""
    found = (path for each in data_dirs for path in Path(each).glob("*/*/dataset_info.json"))
    name = suggestion(dataset, [*KNOWN, *(path.parents[1].name for path in found)])
    return f" (did you mean --dataset={name}?)" if name else ""


def split_sizes(dataset: str, data_dirs: Sequence[str | Path]) -> dict[str, int]:
    """The number of examples in each split of a prepared set. Raises DataError."""
    lengths = PreparedSet(dataset, data_dirs).shard_lengths
    return {split: sum(of_shards) for split, of_shards in lengths.items()}


def find_test_split(dataset: str, data_dirs: Sequence[str | Path]) -> str:
    """`test`, or `validation` in a set that has no `test`. Raises DataError."""
    splits = split_sizes(dataset, data_dirs)
    for split in ("test", "validation"):
        if split in splits:
            return split
    raise DataError(
        f"{dataset} has no split `test` or `validation` to score, only {', '.join(splits)}; "
        "prepare it with some, such as by --test_share=0.2"
    )


def about_test_split(dataset: str, data_dirs: Sequence[str | Path]) -> list[str]:
    """A line where `find_test_split` does not find `test`. Raises DataError."""
    split = find_test_split(dataset, data_dirs)
    if split == "test":
        return []
    return [f"{dataset} has no split `test`: `{split}` is what is scored at the end"]


class PreparedSet:
    """The description of a prepared set.

    Attributes:
      dataset: its name, such as `mnist` or `emnist/balanced`.
      folder: where the newest version is.
      shard_lengths: {split: the number of records in each of its shards}.
      image_shape: (H, W, C); H and W are None where they vary.
      stored_raw: a record holds the pixels themselves, not a PNG or JPEG file.
      num_classes: the number of classes.
      class_names: their names, or None if the set does not name them all, each differently.

    Raises:
      DataError: the set is not found, not in array_record format, or its description is unusable.
    """

    def __init__(self, dataset: str, data_dirs: Sequence[str | Path]):
        self.dataset, self.folder = dataset, find(dataset, data_dirs)
        info = read_json(self.folder / "dataset_info.json")
        if info.get("fileFormat") != "array_record":
            raise DataError(
                f"{self.folder} is in {info.get('fileFormat', 'tfrecord')} format; only "
                "array_record is supported. Prepare the set again in another folder: "
                f"`python -m scripts.prepare_data --dataset={dataset} --data_dir=DIR`"
            )
        features = read_json(self.folder / "features.json")
        try:
            self._read_splits(info.get("splits", []))
            self._read_features(features.get("featuresDict", {}).get("features", {}))
            self.class_names = self._read_class_names()
        except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
            raise DataError(
                f"the description of {self.folder} is invalid ({one_line(error)}); prepare the set "
                "again"
            ) from error

    def _read_splits(self, splits: list[dict]) -> None:
        self.shard_lengths = {
            entry["name"]: list(map(int, entry.get("shardLengths", []))) for entry in splits
        }
        for name, lengths in self.shard_lengths.items():
            # A name such as "../x" would lead out of the folder.
            if not re.fullmatch(r"[\w-]+", name) or min(lengths, default=0) < 0:
                raise ValueError(f"split {name!r} with shards of {lengths} records")

    def _read_features(self, features: dict[str, dict]) -> None:
        image, label = features.get("image", {}), features.get("label", {})
        tensor = image.get("tensor", {})
        self.stored_raw = (tensor.get("dtype"), tensor.get("encoding")) == ("uint8", "bytes")
        if not ("image" in image or self.stored_raw) or "classLabel" not in label:
            names = ", ".join(sorted(features)) or "no features"
            raise DataError(
                f"{self.folder} has {names}; required are `image` (an Image) and `label` (a "
                "ClassLabel)"
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

    def _read_class_names(self) -> tuple[str, ...] | None:
        path = self.folder / "label.labels.txt"
        names = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return tuple(names) if len(names) == len(set(names)) == self.num_classes else None

    def shards(self, split: str) -> list[Path]:
        """The files of a split. Raises DataError if any is missing."""
        # Not those of a split such as hard-test: no set has a hyphen in its name.
        name = re.compile(rf"\w+-{re.escape(split)}\.array_record.*")
        shards = sorted(path for path in self.folder.iterdir() if name.fullmatch(path.name))
        expected = len(self.shard_lengths[split])
        if len(shards) != expected:
            raise DataError(
                f"{self.folder}, split {split}: {len(shards)} of {expected} shards; prepare the "
                "set again"
            )
        return shards

    def intervals(self, split: str) -> list[tuple[str, int | None, int | None]]:
        """The intervals (split name, start, stop; None: the end) that a TFDS split expression has.

        Raises DataError.
        """
        if split in self.shard_lengths:  # without TFDS, whose import takes longer than the reading
            return [(split, 0, sum(self.shard_lengths[split]))]
        import tensorflow_datasets as tfds

        infos = [
            tfds.core.SplitInfo(name=name, shard_lengths=lengths, num_bytes=0)
            for name, lengths in self.shard_lengths.items()
        ]
        try:
            parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(
                tfds.core.SplitDict(infos)
            )
        except Exception as error:  # ValueError, KeyError or AssertionError, of several lines
            first = next(iter(self.shard_lengths), "train")
            raise DataError(
                f"no split {split!r} in {self.dataset} in {self.folder}; available: "
                f"{', '.join(self.shard_lengths)}, and slices such as {first}[:100]"
            ) from error
        return [(part.splitname, part.from_, part.to) for part in parts]


def read_json(path: Path) -> dict:
    """A file of a set's description. Raises DataError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        return content
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path} ({one_line(error)}); prepare the set again") from error
