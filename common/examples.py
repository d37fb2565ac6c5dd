"""Images held in memory, and the cache of what was computed from a prepared set.

Decoding 60,000 records takes about ten seconds, so `load` keeps each split as one uncompressed .npz
file under `$XDG_CACHE_HOME/lenet-alexnet` (`~/.cache/lenet-alexnet`). These files may be deleted at
any time.
"""

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from common.errors import DataError
from common.images import decode, empty_images
from common.prepared import PreparedSet
from common.records import damaged_data, parse, require_indices, shard_slices


@dataclasses.dataclass(frozen=True)
class Examples:
    """Labeled images of one size.

    Attributes:
      images: (N, H, W, C) uint8, 0 to 255.
      labels: (N,) int32, 0 to num_classes - 1.
      num_classes: the number of classes of the set; a slice may lack some of them.
      name: the set, such as `mnist` or `emnist/balanced`.
      class_names: of all classes, or None.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    name: str
    class_names: tuple[str, ...] | None = None
    damaged = None  # as in Records: in memory nothing is damaged

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, selection: slice) -> "Examples":
        """The selected examples, as views: `examples[:-5000]` to train, `examples[-5000:]` to
        validate.
        """
        return dataclasses.replace(
            self, images=self.images[selection], labels=self.labels[selection]
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        return self.images.shape[1:]

    def fingerprint(self) -> dict:
        """What tells this training set from another, as JSON: its length, labels and images."""
        from common.digests import state_sha256  # imports JAX, which takes longer than to read

        return {
            "train_examples": len(self),
            "train_labels_sha256": state_sha256(self.labels),
            "train_images_sha256": state_sha256(self.images),
        }

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The examples at `indices` (...): images (..., H, W, C) uint8, labels (...) int32."""
        images = empty_images((*indices.shape, *self.image_shape))
        labels = np.empty(indices.shape, np.int32)
        self.read_into(indices, images, labels)
        return images, labels

    def read_into(self, indices, images, labels, mask=None) -> tuple[()]:
        """Copies the examples at `indices`, with the arguments of `Records.read_into`.

        Raises IndexError for one out of range.
        """
        require_indices(indices, len(self))
        for examples, batch in ((self.images, images), (self.labels, labels)):
            np.take(examples, indices, axis=0, out=batch, mode="clip")  # "raise" copies twice
        return ()


def load(dataset: str, split: str, data_dirs: Sequence[str | Path]) -> Examples:
    """Reads a split of a prepared set into memory, in the order of its records.

    Args:
      dataset: the folder's name, with that of the subset if there is one: `mnist`,
        `emnist/balanced`.
      split: a TFDS split or slice: `train`, `test[:100]`, `train[:80%]`, `train+test`.
      data_dirs: searched in order for `<dataset>/<version>/dataset_info.json`; the newest version
        in the first folder that has the set is used.

    Raises:
      DataError: set not found, not in array_record format, unknown split, damaged or missing files,
        images of different shapes, labels that are not classes.
    """
    prepared = PreparedSet(dataset, data_dirs)
    if prepared.stored_raw:
        raise DataError(
            f"{prepared.folder} stores raw pixels; such sets are read record by record, not loaded "
            "into memory"
        )
    num_classes = prepared.num_classes
    parts = []
    for name, start, stop in prepared.intervals(split):
        images, labels = _read_split(prepared, name)
        if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
            raise DataError(
                f"{dataset}, split {name}: labels run from {labels.min()} to {labels.max()}, but "
                f"{prepared.folder / 'features.json'} has {num_classes} classes (allowed: 0 to "
                f"{num_classes - 1}); correct that file or prepare the set again"
            )
        parts.append((images[start:stop], labels[start:stop]))
    if len({images.shape[1:] for images, _ in parts}) > 1:
        raise DataError(
            f"{dataset}: the splits in {split!r} have images of different shapes; load one at a "
            "time"
        )
    # A single part stays a view: of a whole split nothing is copied.
    images, labels = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
    return Examples(images, labels, num_classes, dataset, prepared.class_names)


def _read_split(prepared: PreparedSet, split: str) -> tuple[np.ndarray, np.ndarray]:
    """A whole split, from the cache if there: images (N, H, W, C) uint8, labels (N,) int32."""
    path = cache_file(f"{prepared.dataset}-{split}", prepared.folder, prepared.shards(split))
    return cached(path, ("images", "labels"), lambda: _decode_split(prepared, split))


def _decode_split(prepared: PreparedSet, split: str) -> tuple[np.ndarray, np.ndarray]:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    dataset, images, labels = prepared.dataset, [], []
    slices = [part for part in shard_slices(prepared, split) if part.take]
    for part in slices:
        try:
            # Not TFDS's: it imports what features.json names and decodes with what is installed.
            source = ArrayRecordDataSource([part])
            for record in range(part.take):
                content, label = parse(source[record])
                images.append(decode(content, prepared.image_shape))
                labels.append(label)
        # ArrayRecord, the Example parser and the decoders have no error class in common.
        except Exception as error:
            raise damaged_data(dataset, split, part.filename, record, error) from error
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
        raise DataError(
            f"{dataset}, split {split}: images of {len(shapes)} shapes, such as {shapes[0]} and "
            f"{shapes[-1]}; only one is allowed"
        )
    stacked = np.stack(images) if images else np.zeros((0, 0, 0, 0), np.uint8)
    return stacked, np.array(labels, np.int32)


def cached(
    path: Path, names: Sequence[str], compute: Callable[[], tuple[np.ndarray, ...]]
) -> tuple[np.ndarray, ...]:
    """The arrays `names` from the file `path`, else those that `compute` returns, which are then
    stored there.
    """
    try:
        # An .npz has a CRC-32 of each array, which is checked on reading.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return tuple(arrays[name] for name in names)
    except Exception:  # missing or damaged, which raises one of a dozen classes
        pass
    arrays = compute()
    _write_cache(path, dict(zip(names, arrays, strict=True)))
    return arrays


def cache_file(label: str, folder: Path, shards: Sequence[Path], selection: Sequence = ()) -> Path:
    """The file in which to cache what was computed from a prepared set; another one when its files
    change.

    Args:
      label: begins the file's name.
      folder: that of the set.
      shards: the files that it was computed from; their sizes and modification times count.
      selection: whatever else the result depends on, as JSON values.
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


def _write_cache(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes the file atomically. If that fails it is no error: the next run computes it again."""
    # Relative where no home folder is known, or where $XDG_CACHE_HOME is a relative path, which its
    # specification says to ignore.
    if not path.is_absolute():
        return
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as stream:
            temporary = Path(stream.name)
            np.savez(stream, **arrays)
        os.replace(temporary, path)
    except OSError:
        pass
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)
