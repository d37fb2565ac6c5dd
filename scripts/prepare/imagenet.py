"""Writes imagenet_256, ImageNet at 256x256 pixels, or another set of square images, from what
`layouts.find_images` has listed. Its folder:

    NAME-train.array_record-00000-of-00313 ...
                    records {image, label}, in a shuffled order that is always the same
    features.json, label.labels.txt, dataset_info.json
                    as TFDS writes them
    statistics.npz  per split: <split>_count; <split>_mean_image (H, W, C) float32, 0 to 255;
                    <split>_covariance (C, C) float64 of the RGB values, 0 to 255, over all pixels
                    of all images
    damaged.txt     corrupt files, if any: a path and a reason per line
    source.json     what the set was made from

A record's `image` is a JPEG file of quality 95, a PNG file, or, as `raw`, the 196,608 uint8 values:

    decoders = {"image": tfds.decode.SkipDecoding()}
    records = tfds.builder_from_directory(folder).as_data_source("train", decoders=decoders)
    simplejpeg.decode_jpeg(records[0]["image"])  # jpeg -> (256, 256, 3) uint8
    np.frombuffer(records[0]["image"], np.uint8).reshape(256, 256, 3)  # raw
"""

import concurrent.futures
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import filelock
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from common.errors import DataError, LockedError, StorageError, one_line
from common.storage import make_folder
from scripts.prepare.encode import Form, center_square, encode
from scripts.prepare.entries import File, read
from scripts.prepare.equal_images import DAMAGED, digest
from scripts.prepare.layouts import Source
from scripts.prepare.workers import interrupt_blocked, interrupt_noted, worker_pool

NAME, VERSION = "imagenet_256", "1.0.0"
# A shard is about 140 MB (raw: 800 MB) and takes half a minute. ImageNet's 313 may all be open at
# once where the limit is 1,024 files.
IMAGES_PER_SHARD = 4096


class Shard(NamedTuple):
    """A finished file of records.

    Attributes:
      name: of the file.
      split: such as `train`.
      count: images in it.
      num_bytes: of its records.
      damaged: (name, reason) of the corrupt source files, which are not in it.
      resumed: written by an earlier run.
      digests: (files,) uint64, `equal_images.digest` of each source file's image, or DAMAGED.
    """

    name: str
    split: str
    count: int
    num_bytes: int
    damaged: list[tuple[str, str]]
    resumed: bool
    digests: np.ndarray


class Sums(NamedTuple):
    """Sums over images, exact: pixel_sum (H, W, C) and products (C, C) of colors, both int64."""

    pixel_sum: np.ndarray
    products: np.ndarray

    @classmethod
    def zeros(cls, shape: tuple[int, int, int]) -> "Sums":
        return cls(np.zeros(shape, np.int64), np.zeros((shape[-1], shape[-1]), np.int64))

    def add(self, image: np.ndarray) -> None:
        pixels = image.reshape(-1, image.shape[-1]).astype(np.float64)
        self.pixel_sum[...] += image
        self.products[...] += (pixels.T @ pixels).astype(np.int64)  # integers below 2^53


def prepare(
    source: Source,
    folder: Path,
    form: Form,
    num_workers: int,
    report: Callable[[Shard], None] = lambda shard: None,
) -> list[Shard]:
    """Writes a prepared set in parallel; resumes an interrupted run.

    The files are in `<folder>.unfinished` until all are complete. The same source gives the same
    bytes for any number of workers and interruptions.

    Args:
      source: the images.
      folder: of the set, `<data_dir>/<name>/1.0.0`.
      form: how images are stored.
      num_workers: processes, >= 1.
      report: called with every finished shard, those of earlier runs first.

    Returns:
      The shards, in order; none if `folder` already has the set, made from the same source.

    Raises:
      DataError: `folder`, or what an earlier run left, is from another source or has another form;
        a split has no readable image, or most files are corrupt.
      StorageError: the files cannot be written.
      LockedError: another process is writing them.
    """
    work = folder.with_name(f"{folder.name}.unfinished")
    made_from = _identity(source, form)
    if folder.exists():  # finished: it may be read-only
        _require_same(folder, made_from)
        return []
    make_folder(folder.parent)
    try:
        with filelock.FileLock(folder.with_name(".lock"), timeout=0):
            for place in (folder, work):
                _require_same(place, made_from)
            if folder.exists():
                return []
            (work / "progress").mkdir(parents=True, exist_ok=True)
            description = json.dumps(made_from, indent=2) + "\n"
            (work / "source.json").write_text(description, encoding="utf-8")
            shards, sums = _write_shards(source, work, form, num_workers, report)
            _finish(source, work, form, shards, sums)
            work.rename(folder)
    except filelock.Timeout:
        raise LockedError(f"another process is preparing {folder}; wait for it") from None
    return shards


def _identity(source: Source, form: Form) -> dict:
    """What source.json holds: equal for equal sources and settings."""
    digest = hashlib.sha256()
    for split, files in source.splits.items():
        for file in files:
            line = f"{split}\0{file.name}\0{file.size}\0{file.label}\n"
            digest.update(line.encode(errors="surrogateescape"))
    default = Form()._asdict()  # what source.json said before there were others
    settings = {name: value for name, value in form._asdict().items() if value != default[name]}
    return settings | {
        "record_format": form.record_format,
        "num_files": {split: len(files) for split, files in source.splits.items()},
        "images_per_shard": IMAGES_PER_SHARD,
        "sha256_of_names_sizes_labels": digest.hexdigest(),
    }


def _require_same(place: Path, made_from: dict) -> None:
    unfinished = place.name.endswith(".unfinished")
    if not place.exists() or (unfinished and not (place / "source.json").exists()):
        return
    try:
        found = json.loads((place / "source.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{place} has no readable source.json; delete that folder") from error
    if found == made_from:
        return
    other = "another source, or one that has changed"
    for name, default in Form()._asdict().items():
        if found.get(name, default) != made_from.get(name, default):
            other = f"--{name}={found.get(name, default)}"
    raise DataError(
        f"{place} was made with {other}; delete that folder or choose another --data_dir"
    )


def _write_shards(
    source: Source, work: Path, form: Form, num_workers: int, report
) -> tuple[list[Shard], dict[str, Sums]]:
    """Writes the missing shards. Returns all of them, in order, and the sums of each split."""
    parts = {}  # shard -> (split, files)
    for split, files in source.splits.items():
        starts = range(0, len(files), IMAGES_PER_SHARD)
        for index, start in enumerate(starts):
            name = f"{work.parent.name}-{split}.array_record-{index:05d}-of-{len(starts):05d}"
            parts[name] = split, files[start : start + IMAGES_PER_SHARD]
    sums = {split: Sums.zeros(form.shape) for split in source.splits}
    shards = {}

    def is_finished(name: str, resumed: bool) -> bool:
        arrays = _read_progress(work, name)
        if arrays is None:
            return False
        split = parts[name][0]
        for key, total in sums[split]._asdict().items():
            total += arrays[key]
        count, num_bytes = int(arrays["count"]), int(arrays["num_bytes"])
        damaged = [tuple(line.split("\t", 1)) for line in arrays["damaged"].tolist()]
        digests = arrays["digests"]
        shards[name] = Shard(name, split, count, num_bytes, damaged, resumed, digests)
        report(shards[name])
        return True

    missing = [name for name in parts if not is_finished(name, resumed=True)]
    if missing:
        advice = "rerun the command to resume, with fewer of them (--num_workers=N)"
        num_workers = min(num_workers, len(missing))
        with interrupt_noted() as interrupted, worker_pool(num_workers, advice) as pool:
            with interrupt_blocked():  # the workers, started here, inherit this
                futures = {
                    pool.submit(_write_shard, work, name, parts[name][1], form): name
                    for name in missing
                }
            pending = futures.keys()
            while pending:
                done, pending = concurrent.futures.wait(
                    pending, timeout=0.1, return_when=concurrent.futures.FIRST_COMPLETED
                )
                if interrupted:
                    raise KeyboardInterrupt
                for future in done:
                    future.result()
                    if not is_finished(futures[future], resumed=False):
                        raise StorageError(f"{work / futures[future]} cannot be read back")
    return [shards[name] for name in parts], sums


def _write_shard(work: Path, name: str, files: list[File], form: Form) -> None:
    """Writes one file of records, atomically, and `progress/<name>.npz`: its counts, sums and
    corrupt files.
    """
    serializer = ExampleSerializer(_features(form, ["any"]).get_serialized_info())
    sums, num_bytes, count, damaged = Sums.zeros(form.shape), 0, 0, []
    digests = np.full(len(files), DAMAGED, np.uint64)
    temporary = work / f".{name}.tmp"
    try:
        # One record per group, uncompressed: JPEG would not shrink, and raw is there for speed.
        writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
        for index, file in enumerate(files):
            try:
                image = center_square(read(file), form)
            except Exception as error:  # the image decoders share no error class
                # A lack of memory or file handles says nothing about the file.
                if isinstance(error, MemoryError) or getattr(error, "errno", None):
                    raise StorageError(
                        f"cannot read {file.path} ({one_line(error)}); rerun the command to resume"
                    ) from error
                damaged.append(f"{file.name}\t{one_line(error)}")
                continue
            stored, image = encode(image, form.record_format)
            example = serializer.get_tf_example({"image": stored, "label": file.label})
            record = example.SerializeToString(deterministic=True)  # a protobuf map is unordered
            writer.write(record)
            sums.add(image)
            digests[index] = digest(image)
            num_bytes, count = num_bytes + len(record), count + 1
        writer.close()
    except RuntimeError as error:  # ArrayRecord's
        raise StorageError(
            f"cannot write {temporary} ({one_line(error)}); rerun the command to resume"
        ) from error
    np.savez(
        work / "progress" / f"{name}.npz",
        count=count,
        num_bytes=num_bytes,
        damaged=np.array(damaged, dtype=str),
        digests=digests,
        **sums._asdict(),
    )
    temporary.replace(work / name)


def _read_progress(work: Path, name: str) -> dict[str, np.ndarray] | None:
    """The counts and sums of a shard; None if it is not finished."""
    if not (work / name).exists():
        return None
    try:
        with np.load(work / "progress" / f"{name}.npz", allow_pickle=False) as arrays:
            progress = dict(arrays)
        reader = ArrayRecordReader(str(work / name))
        complete = reader.num_records() == progress["count"]
        reader.close()
    except Exception:  # truncated, as by a power failure: it is written again
        return None
    # Before there were digests, such a file had none.
    return progress if complete and "digests" in progress else None


def _features(form: Form, class_names: list[str]) -> tfds.features.FeaturesDict:
    if form.record_format == "raw":
        image = tfds.features.Tensor(shape=form.shape, dtype=np.uint8, encoding="bytes")
    else:
        image = tfds.features.Image(shape=form.shape, encoding_format=form.record_format)
    return tfds.features.FeaturesDict(
        {"image": image, "label": tfds.features.ClassLabel(names=class_names)},
    )


def _finish(
    source: Source, work: Path, form: Form, shards: list[Shard], sums: dict[str, Sums]
) -> None:
    """Writes what describes the set, dataset_info.json last, and deletes the temporary files."""
    statistics, infos = {}, []
    template = tfds.core.ShardedFileTemplate(
        data_dir=work, dataset_name=work.parent.name, filetype_suffix="array_record"
    )
    for split in source.splits:
        ours = [shard for shard in shards if shard.split == split]
        count, damaged = sum(shard.count for shard in ours), [x for s in ours for x in s.damaged]
        if count < len(damaged) or not count:
            shutil.rmtree(work)  # there is nothing to resume
            name, reason = damaged[0]
            raise DataError(
                f"{len(damaged):,} of {len(source.splits[split]):,} files of {split} are corrupt, "
                f"such as {name} ({reason}); most must be readable"
            )
        statistics |= _statistics(split, count, sums[split])
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard.count for shard in ours],
                num_bytes=sum(shard.num_bytes for shard in ours),
                filename_template=template,
            )
        )
    np.savez(work / "statistics.npz", **statistics)
    if damaged := sorted(pair for shard in shards for pair in shard.damaged):
        lines = "".join(f"{name}\t{reason}\n" for name, reason in damaged)
        (work / "damaged.txt").write_text(lines, encoding="utf-8", errors="surrogateescape")
    shutil.rmtree(work / "progress")
    for leftover in work.glob(".*.tmp"):
        leftover.unlink()
    tfds.folder_dataset.write_metadata(
        data_dir=work,
        features=_features(form, list(source.class_names)),
        split_infos=infos,
        version=VERSION,
        filename_template=template,
        check_data=False,  # it would need TensorFlow
        supervised_keys=("image", "label"),
        # In the words of the sets prepared before: the same source gives the same bytes.
        description=f"Images of {form.size}x{form.size} pixels: the shorter side rescaled to that, "
        "of the longer one the middle.",
        disable_shuffling=True,
    )


def _statistics(split: str, count: int, sums: Sums) -> dict[str, np.ndarray]:
    """The entries of statistics.npz for a split of `count` images."""
    height, width, _ = sums.pixel_sum.shape
    num_pixels = count * height * width
    mean = sums.pixel_sum.sum(axis=(0, 1)) / num_pixels  # (3,)
    return {
        f"{split}_count": np.int64(count),
        f"{split}_mean_image": (sums.pixel_sum / count).astype(np.float32),
        f"{split}_covariance": sums.products / num_pixels - np.outer(mean, mean),
    }
