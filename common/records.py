"""Images read record by record from their files, for sets too large for memory; and what happens
when a record is damaged.
"""

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import DataError, StorageError, one_line
from common.images import decode_into, empty_images
from common.prepared import PreparedSet

# What happens to a damaged record, in training and in scoring.
REPLACED, SKIPPED = "replaced by the next intact record", "skipped"


class ShardSlice(NamedTuple):
    """Consecutive records of one shard; the last four fields are what ArrayRecordDataSource
    expects.
    """

    split: str
    filename: str
    skip: int
    take: int
    examples_in_shard: int


class Damage(NamedTuple):
    """A record that cannot be used: the name of its shard's file, its number there, and why."""

    split: str
    shard: str
    record: int
    reason: str

    def __str__(self) -> str:
        return f"split {self.split}, shard {self.shard}, record {self.record} ({self.reason})"


class DamagedRecords:
    """The damaged records that a run has encountered, each counted once.

    Args:
      dataset: the set's name, for messages.
      allowed: how many there may be; 0: the first one raises where it is read.
    """

    def __init__(self, dataset: str, allowed: int):
        self.dataset, self.allowed = dataset, allowed
        self._found: dict[tuple[str, str, int], Damage] = {}

    @property
    def count(self) -> int:
        """How many there are so far."""
        return len(self._found)

    @property
    def listed(self) -> list[list]:
        """All of them, as JSON stores them: saved in a checkpoint, passed to `add` on resume."""
        return [list(damage) for damage in sorted(self._found.values())]

    def add(self, found: Iterable[Sequence], consequence: str = "") -> None:
        """Counts those that are new.

        Args:
          found: `Damage`s, or their fields.
          consequence: ends the line on stderr that each new one gets; without it there is no line.

        Raises:
          DataError: there are more than allowed; the message lists them.
        """
        for damage in (Damage(*each) for each in found):
            if damage[:3] in self._found:
                continue
            self._found[damage[:3]] = damage
            if consequence:
                from common.processes import is_first_process  # JAX, which reading does not need

                if is_first_process():
                    line = f"damaged data in {self.dataset}, {damage}: {consequence}"
                    print(line, file=sys.stderr, flush=True)
        if self.count > self.allowed:
            listed = "; ".join(str(damage) for damage in sorted(self._found.values()))
            raise DataError(
                f"{self.dataset} has more damaged records than --max_bad_records={self.allowed}: "
                f"{listed}. Restore the files, prepare the set again, or allow more; the same "
                "command resumes"
            )

    def agree(self, consequence: str) -> None:
        """All-gathers what the processes have found. Every process must call it at the same point.

        Raises DataError as `add` does.
        """
        from common.processes import all_gather_text

        if self.allowed:
            for text in all_gather_text(json.dumps(self.listed)):
                self.add(json.loads(text), consequence)


@dataclasses.dataclass(frozen=True)
class Records:
    """Labeled images of one size that stay in their files until they are read.

    Any number of threads may read at once. A pickled copy opens the files anew.

    Attributes:
      folder: that of the prepared set.
      slices: where the records are, in order.
      image_shape: (H, W, C) of every image.
      stored_raw: a record holds the pixels themselves, not a PNG or JPEG file.
      num_classes: the number of classes of the set; a slice may lack some of them.
      name: the set, such as `imagenet_256`.
      class_names: of all classes, or None.
      damaged: how many records may be damaged, and which ones were; slices share it.
    """

    folder: Path
    slices: tuple[ShardSlice, ...]
    image_shape: tuple[int, int, int]
    stored_raw: bool
    num_classes: int
    name: str
    class_names: tuple[str, ...] | None
    damaged: DamagedRecords

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, selection: slice) -> "Records":
        """The selected records, unread. Raises ValueError for steps other than 1."""
        start, stop, step = selection.indices(len(self))
        if step != 1:
            raise ValueError(f"records can only be sliced in steps of 1, not {step}")
        chosen = []
        for first, part in zip(self._ends, self.slices, strict=False):
            skip, end = max(start - int(first), 0), min(stop - int(first), part.take)
            if skip < end:
                chosen.append(part._replace(skip=part.skip + skip, take=end - skip))
        return dataclasses.replace(self, slices=tuple(chosen))

    def fingerprint(self) -> dict:
        """What tells this training set from another, as JSON: its length, its shards, and what it
        was made from, where `scripts.prepare_data` says so.
        """
        shards = [[Path(part.filename).name, *part[2:]] for part in self.slices]
        found = {"train_examples": len(self), "train_shards": shards}
        if (source := self.folder / "source.json").is_file():
            found["train_source_sha256"] = hashlib.sha256(source.read_bytes()).hexdigest()
        return found

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The examples at `indices` (n,): images (n, H, W, C) uint8, labels (n,) int32.

        As for training: the next intact record replaces a damaged one, which `damaged` counts.
        Raises as `read_into`.
        """
        images = empty_images((len(indices), *self.image_shape))
        labels = np.empty(len(indices), np.int32)
        self.damaged.add(self.read_into(indices, images, labels), REPLACED)
        return images, labels

    def read_into(
        self,
        indices: np.ndarray,
        images: np.ndarray,
        labels: np.ndarray,
        mask: np.ndarray | None = None,
    ) -> list[Damage]:
        """Reads and decodes the examples at `indices` (n,), each 0 to len - 1.

        A damaged record, if `damaged` allows any, is replaced by the next intact one (after the
        last comes the first), so that training sees a function of the records alone. With `mask`,
        for scoring, it is masked out instead.

        Args:
          images, labels: (n, H, W, C) uint8 and (n,) int32 to fill.
          mask: (n,) bool, set to False at damaged records, whose pixels and labels become 0.

        Returns:
          The damaged records encountered, which the caller counts when it uses the batch. If these
          alone are more than allowed, reading has stopped and the arrays are incomplete.

        Raises:
          DataError: a record is damaged and none may be, or no record is intact. Damaged means: it
            cannot be read or decoded, its image has another shape, or its label is not a class.
          IndexError: an index out of range.
        """
        require_indices(indices, len(self))
        found: dict[tuple, Damage] = {}
        for place, index in enumerate(indices.tolist()):
            for candidate in range(index, index + len(self)):
                label, damage = self._read_one(candidate % len(self), images[place])
                labels[place] = label
                if damage is None:
                    break
                found[damage[:3]] = damage
                if len(found) > self.damaged.allowed:
                    return sorted(found.values())
                if mask is not None:
                    images[place], mask[place] = 0, False
                    break
            else:
                raise DataError(
                    f"{self.name}: none of the {len(self)} records is intact, such as {damage}"
                )
        return sorted(found.values())

    def _read_one(self, index: int, image: np.ndarray) -> tuple[int, Damage | None]:
        """Decodes one record into `image`; returns its label, or 0 and why it is unusable."""
        try:
            content, label = parse(self.source[index])
            if not 0 <= label < self.num_classes:
                raise ValueError(f"label {label}; allowed: 0 to {self.num_classes - 1}")
            if self.stored_raw:
                image[...] = np.frombuffer(content, np.uint8).reshape(self.image_shape)
            else:
                decode_into(content, image)
            return label, None
        # ArrayRecord, the Example parser and the decoders have no error class in common.
        except Exception as error:
            number = int(np.searchsorted(self._ends, index, side="right")) - 1
            split, filename, skip, *_ = self.slices[number]
            record = skip + index - int(self._ends[number])
            # A lack of memory or file handles is no property of the record.
            if isinstance(error, MemoryError) or getattr(error, "errno", None):
                raise StorageError(f"cannot read {filename} ({one_line(error)})") from error
            if not self.damaged.allowed:
                raise damaged_data(self.name, split, filename, record, error) from error
            return 0, Damage(split, Path(filename).name, record, one_line(error))

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        """(slices + 1,) int64: how many records precede each slice, and how many there are."""
        return np.cumsum([0, *(part.take for part in self.slices)])

    @functools.cached_property
    def source(self):
        """source[i]: the bytes of record i.

        Not TFDS's data source, which parses the features anew for each record and decodes with
        whatever is installed. Its `__getitems__` reads no faster than one record at a time does.
        """
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        return ArrayRecordDataSource(self.slices)


def require_indices(indices: np.ndarray, count: int) -> None:
    """Raises IndexError unless all `indices` are 0 to count - 1."""
    if indices.size and not 0 <= indices.min() <= indices.max() < count:
        raise IndexError(f"examples {indices.min()} to {indices.max()} of {count}")


def open_records(
    dataset: str,
    split: str,
    data_dirs: Sequence[str | Path],
    damaged: DamagedRecords | None = None,
) -> Records:
    """Finds a split of a prepared set, without reading its records.

    Args:
      dataset, split, data_dirs: as for `common.examples.load`.
      damaged: which records may be damaged; None: no record may.

    Raises:
      DataError: set not found, not in array_record format, unknown split, missing files, images of
        varying size.
    """
    prepared = PreparedSet(dataset, data_dirs)
    if None in prepared.image_shape:
        raise DataError(
            f"{prepared.folder} has images of varying size; prepare the set again in one size"
        )
    records = Records(
        prepared.folder,
        (),
        prepared.image_shape,
        prepared.stored_raw,
        prepared.num_classes,
        dataset,
        prepared.class_names,
        damaged or DamagedRecords(dataset, 0),
    )
    slices: list[ShardSlice] = []
    for name, start, stop in prepared.intervals(split):
        whole = dataclasses.replace(records, slices=shard_slices(prepared, name))
        slices += whole[start:stop].slices
    return dataclasses.replace(records, slices=tuple(slices))


def shard_slices(prepared: PreparedSet, split: str) -> tuple[ShardSlice, ...]:
    """The whole shards of a split. Raises DataError if one is missing."""
    shards = zip(prepared.shards(split), prepared.shard_lengths[split], strict=True)
    return tuple(ShardSlice(split, str(shard), 0, length, length) for shard, length in shards)


def parse(serialized: bytes) -> tuple[bytes, int]:
    """The image (a file, or its pixels) and the label of a record.

    What a damaged record raises depends on the damage.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    features = tf_example_pb2.Example.FromString(serialized).features.feature
    return features["image"].bytes_list.value[0], features["label"].int64_list.value[0]


def damaged_data(
    dataset: str, split: str, shard: str | Path, record: int, error: Exception
) -> DataError:
    """The error to raise for a damaged record."""
    return DataError(
        f"damaged data in {dataset}, split {split}, shard {shard}, record {record} "
        f"({one_line(error)}); restore the file or prepare the set again"
    )
