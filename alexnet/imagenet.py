"""ImageNet at 256x256 pixels: from the official files, or any class-per-folder tree, to a prepared
set for training.

The paper's preprocessing (section 2): "we first rescaled the image such that the shorter side was
of length 256, and then cropped out the central 256x256 patch". `find_images` lists a source and
`prepare` writes the folder of the set:

    imagenet_256-train.array_record-00000-of-00313 ...  records {image, label}, in a shuffled order
    that is always the same features.json, label.labels.txt, dataset_info.json  as TFDS writes them
    statistics.npz  of each split: <split>_count; <split>_mean_image (256, 256, 3) float32, 0 to
                    255; <split>_covariance (3, 3) float64 of its RGB pixels, 0 to 255, around their
                    mean over all pixels of all images
    damaged.txt     only if there are such: files that could not be read, a path and a reason a line
    source.json     what it was made from

A record's `image` is a JPEG file of quality 95, or, as `raw`, the 196,608 bytes themselves:

    records = tfds.builder_from_directory(folder).as_data_source("train", decoders={"image":
    tfds.decode.SkipDecoding()}) simplejpeg.decode_jpeg(records[0]["image"])
    # (256, 256, 3) uint8, of jpeg records np.frombuffer(records[0]["image"], np.uint8).reshape(256,
    256, 3)  # of raw records
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import tarfile
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

import filelock
import numpy as np
import simplejpeg
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from common.errors import DataError, LockedError, StorageError, UserError
from common.images import open_image
from common.order import epoch_order

NAME, VERSION = "imagenet_256", "1.0.0"
SIZE = 256  # pixels, both sides
JPEG_QUALITY = 95
RECORD_FORMATS = ("jpeg", "raw")
# About 140 MB as jpeg, 800 MB as raw, half a minute; all 313 of ImageNet may be open at once, where
# systems allow 1,024 files.
IMAGES_PER_SHARD = 4096

SPLITS = {
    "train": "train",
    "val": "validation",
}  # folder of the source -> name of the split, as TFDS calls ImageNet's
ENDINGS = (".jpg", ".jpeg", ".png")  # in small or capital letters
_WNID = re.compile(r"n\d{8}")
_OFFICIAL_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


class File(NamedTuple):
    """An image of the source: `size` bytes of the file at `path`, from byte `offset` on; `name` is
    relative to the source.
    """

    name: str
    path: str
    offset: int
    size: int
    label: int = -1


class Source(NamedTuple):
    """What `find_images` found.

    Attributes:
      splits: `train` and `validation`, or one of them -> the images in the order in which they will
        be stored.
      class_names: label k is class_names[k].
      left_out: names of files in the source that are no images of any class.
    """

    splits: dict[str, list[File]]
    class_names: tuple[str, ...]
    left_out: list[str]


class Shard(NamedTuple):
    """A finished file of records.

    Attributes:
      name: of the file.
      split: it belongs to.
      count: of the images in it.
      num_bytes: of its records.
      damaged: (name, reason) of the source's files that could not be read and are not in it.
      resumed: written by an earlier start.
    """

    name: str
    split: str
    count: int
    num_bytes: int
    damaged: list[tuple[str, str]]
    resumed: bool


@functools.cache
def synsets() -> dict[str, str]:
    """The 1,000 classes of ILSVRC 2012: wnid -> name, sorted by wnid; the usual class index is the
    rank.
    """
    lines = Path(__file__).with_name("synsets.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines)


def center_256(content: bytes) -> np.ndarray:
    """The image as the paper prepares it: the shorter side rescaled to 256 pixels, of the longer
    one the central 256.

    Both in one step, without rounding the longer side to whole pixels, by Pillow's bicubic filter,
    which averages when it shrinks. Smaller images are enlarged. Grey, CMYK and palette images
    become RGB, 16 bits a channel 8; transparency and the EXIF orientation are ignored.

    Args:
      content: of a JPEG or PNG file of at most `common.images.MAX_PIXELS` pixels.

    Returns:
      (256, 256, 3) uint8.

    Raises:
      Exception: whatever Pillow raises for a damaged file. What libjpeg repairs by itself is not
        noticed.
    """
    if not content:
        raise ValueError("an empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata, which is not used
        image = open_image(content)
        if image.mode == "I;16":  # Pillow would clip at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        width, height = image.size
        side = min(width, height)
        box = (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2
        return np.asarray(
            image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)
        )


def encode_jpeg(image: np.ndarray) -> bytes:
    """A JPEG file of quality 95 with the usual halved colour resolution (4:2:0), from (256, 256, 3)
    uint8.
    """
    return simplejpeg.encode_jpeg(
        image, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="420"
    )


# ----------------------------------------------------------------------------------------------------------
# the source


def find_images(source: str | Path) -> Source:
    """Lists the images of a source, with their labels.

    Args:
      source: a folder with the official `ILSVRC2012_img_train.tar` and `ILSVRC2012_img_val.tar`, or
        one of them; a folder with `train/<class>/*.JPEG` and `val/<class>/*.JPEG`, or one of them,
        or with `<class>/*.JPEG`, which gives `train`; or an uncompressed tar file that holds such a
        tree. Official validation images may also lie in `val/` without class folders: TFDS comes
        with their labels. A random reading order makes a solid-state disk worthwhile.

    Returns:
      The images. If the classes are called like wnids (n and 8 digits) they are the 1,000
      `synsets`, also where the source has only some; else the names of the class folders, sorted.

    Raises:
      DataError: not such a source, an unknown synset, a class folder without images.
    """
    source = Path(source).expanduser()
    try:
        return _arrange(_entries(source), source)
    except tarfile.TarError as error:
        raise DataError(
            f"a tar file of {source} is damaged or compressed ({_one_line(error)}); restore or unpack it"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {source}: {_one_line(error)}") from error


def _entries(source: Path) -> Iterator[File]:
    """Every file, and every folder under a name that ends in a slash."""
    if source.is_dir():
        official = {folder: source / f"ILSVRC2012_img_{folder}.tar" for folder in SPLITS}
        tars = [(f"{folder}/", path) for folder, path in official.items() if path.is_file()]
        if not tars:
            yield from _folder_entries(source)
    elif source.is_file():
        tars = [("", source)]
    else:
        raise DataError(f"the source {source} is neither a folder nor a tar file")
    for prefix, path in tars:
        with tarfile.open(path, "r:") as archive:
            yield from _tar_entries(archive, str(path), prefix, 0)


def _folder_entries(folder: Path) -> Iterator[File]:
    def fail(error: OSError):
        raise error

    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        prefix = "" if place == str(folder) else f"{Path(place).relative_to(folder).as_posix()}/"
        yield from (File(f"{prefix}{name}/", "", 0, 0) for name in folders)
        for name in names:
            path = os.path.join(place, name)
            yield File(prefix + name, path, 0, os.path.getsize(path) if os.path.exists(path) else 0)


def _tar_entries(archive: tarfile.TarFile, path: str, prefix: str, start: int) -> Iterator[File]:
    """Where the members lie in the file at `path`, in which `archive` begins at byte `start`; inner
    tars count as folders.
    """
    for member in archive:
        name = prefix + member.name.removeprefix("./")
        if member.isdir():
            yield File(f"{name}/", "", 0, 0)
        elif member.isfile() and name.endswith(".tar"):
            folder = name.removesuffix(".tar") + "/"
            yield File(folder, "", 0, 0)
            with tarfile.open(fileobj=archive.extractfile(member), mode="r:") as inner:
                yield from _tar_entries(inner, path, folder, start + member.offset_data)
        else:
            yield File(name, path, start + member.offset_data, member.size)


def _arrange(entries: Iterator[File], source: Path) -> Source:
    folders: set[tuple[str, ...]] = set()
    images: dict[tuple[str, ...], list[File]] = {}
    validation, left_out = [], []
    for entry in entries:
        *parents, name = entry.name.split("/")
        folder = tuple(parents)
        if folder not in folders:
            folders.update(folder[:depth] for depth in range(1, len(folder) + 1))
        in_class = bool(folder) and bool(_WNID.fullmatch(folder[-1]))
        if _OFFICIAL_VALIDATION.fullmatch(name) and not in_class:
            validation.append(entry)
        elif name.lower().endswith(ENDINGS) and folder:
            images.setdefault(folder, []).append(entry)
        elif name:
            left_out.append(entry.name)

    places = {folder[:-1] for folder in images}  # the folders that hold class folders
    roots = {place: SPLITS[place[-1]] for place in places if place and place[-1] in SPLITS}
    if not roots and not validation and len(places) == 1:
        roots = {place: "train" for place in places}
    if (not roots and not validation) or len(set(roots.values())) < len(roots):
        found = " and ".join("/".join(folder) for folder in sorted(images)[:2])
        raise DataError(
            f"{source} is no source: it needs the ILSVRC2012_img_*.tar, train/<class>/ and val/<class>/, or <class>/ with "
            f"files that end in {', '.join(ENDINGS)}; "
            + (f"its images lie in {found}" if found else "it has no such files")
        )
    empty = sorted(folder for folder in folders if folder[:-1] in roots and folder not in images)
    if empty:
        raise DataError(
            f"the class folder {'/'.join(empty[0])} of {source} has no images; fill or remove it"
        )

    class_of = [(entry, "validation", _validation_wnid(entry.name)) for entry in validation]
    for folder, files in images.items():
        if folder[:-1] in roots:
            class_of += [(entry, roots[folder[:-1]], folder[-1]) for entry in files]
        else:
            left_out += [entry.name for entry in files]
    names = sorted({name for _, _, name in class_of})
    if any(_WNID.fullmatch(name) for name in names):
        unknown = [name for name in names if name not in synsets()]
        if unknown:
            raise DataError(
                f"the class folder {unknown[0]} of {source} is none of the 1,000 synsets of ILSVRC 2012"
            )
        names = list(synsets())
    labels = {name: label for label, name in enumerate(names)}
    splits: dict[str, list[File]] = {split: [] for split in SPLITS.values()}
    for entry, split, name in sorted(class_of):
        splits[split].append(entry._replace(label=labels[name]))
    shuffled = {
        split: [files[i] for i in epoch_order(len(files), 0, 0)]
        for split, files in splits.items()
        if files
    }
    return Source(shuffled, tuple(names), sorted(left_out))


@functools.cache
def _validation_wnids() -> list[str]:
    # In the order of the official file names; 50 of each class.
    return tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()


def _validation_wnid(name: str) -> str:
    number = int(_OFFICIAL_VALIDATION.fullmatch(name.rpartition("/")[2])[1])
    if not 1 <= number <= len(_validation_wnids()):
        raise DataError(
            f"{name} is no official validation image: they are numbered from 1 to {len(_validation_wnids()):,}"
        )
    return _validation_wnids()[number - 1]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# -------------------------------------------------------------------------------------------------------------
# the set


def prepare(
    source: Source,
    folder: Path,
    record_format: str,
    num_workers: int,
    report: Callable[[Shard], None] = lambda shard: None,
) -> list[Shard]:
    """Writes a prepared set, in parallel; goes on where an earlier start was interrupted.

    Until everything is there, the files lie in `<folder>.unfinished`; the same source gives the
    same bytes for any number of workers and interruptions.

    Args:
      source: the images.
      folder: of the set, `<data_dir>/imagenet_256/1.0.0`.
      record_format: `jpeg` or `raw`.
      num_workers: processes, >= 1.
      report: called with every shard that is finished, those of earlier starts first.

    Returns:
      The shards, in order; none if `folder` is there already, made from the same source.

    Raises:
      DataError: `folder`, or what an earlier start left, is of another source or record format; a
        split has no readable image.
      StorageError: the files cannot be written.
      LockedError: another process is writing them.
    """
    work = folder.with_name(f"{folder.name}.unfinished")
    digest = hashlib.sha256()
    for split, files in source.splits.items():
        for file in files:
            digest.update(
                f"{split}\0{file.name}\0{file.size}\0{file.label}\n".encode(
                    errors="surrogateescape"
                )
            )
    made_from = {
        "record_format": record_format,
        "num_files": {split: len(files) for split, files in source.splits.items()},
        "images_per_shard": IMAGES_PER_SHARD,
        "sha256_of_names_sizes_labels": digest.hexdigest(),
    }
    for place in (folder, work):
        _require_same(place, made_from)
    if folder.exists():
        return []
    (work / "progress").mkdir(parents=True, exist_ok=True)
    lock_file = folder.with_name(".lock")
    try:
        with filelock.FileLock(lock_file, timeout=0):
            (work / "source.json").write_text(
                json.dumps(made_from, indent=2) + "\n", encoding="utf-8"
            )
            shards, sums = _write_shards(source, work, record_format, num_workers, report)
            _finish(source, work, record_format, shards, sums)
            work.rename(folder)
            lock_file.unlink()
    except filelock.Timeout:
        raise LockedError(f"another process is preparing {folder}; wait for it") from None
    return shards


def _require_same(place: Path, made_from: dict) -> None:
    if not place.exists() or (
        place.name.endswith(".unfinished") and not (place / "source.json").exists()
    ):
        return
    try:
        found = json.loads((place / "source.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{place} holds something else (no source.json that can be read); remove that folder"
        ) from error
    if found != made_from:
        other_format = found.get("record_format") != made_from["record_format"]
        what = (
            f"--record_format={found.get('record_format')}"
            if other_format
            else "another source, or one that has changed"
        )
        raise DataError(
            f"{place} was made with {what}; remove that folder, or choose another --data_dir"
        )


def _write_shards(
    source: Source, work: Path, record_format: str, num_workers: int, report
) -> tuple[list[Shard], dict]:
    """Writes those that are missing. Returns all, in order, and their sums: split -> {"pixel_sum",
    "products"} as int64.
    """
    tasks = {}
    for split, files in source.splits.items():
        parts = [
            files[start : start + IMAGES_PER_SHARD]
            for start in range(0, len(files), IMAGES_PER_SHARD)
        ]
        for index, part in enumerate(parts):
            tasks[f"{NAME}-{split}.array_record-{index:05d}-of-{len(parts):05d}"] = (split, part)
    sums = {
        split: {
            "pixel_sum": np.zeros((SIZE, SIZE, 3), np.int64),
            "products": np.zeros((3, 3), np.int64),
        }
        for split in source.splits
    }
    shards = {}

    def finish(name: str, resumed: bool) -> bool:
        arrays = _read_progress(work, name)
        if arrays is None:
            return False
        split = tasks[name][0]
        for key, total in sums[split].items():
            total += arrays[key]
        damaged = [tuple(line.split("\t", 1)) for line in arrays["damaged"].tolist()]
        shards[name] = Shard(
            name, split, int(arrays["count"]), int(arrays["num_bytes"]), damaged, resumed
        )
        report(shards[name])
        return True

    missing = [name for name in tasks if not finish(name, resumed=True)]
    if missing:
        with _interrupt_noted() as interrupted, _workers(min(num_workers, len(missing))) as pool:
            with _interrupt_blocked():  # the workers, started here, inherit this
                futures = {
                    pool.submit(_write_shard, work, name, tasks[name][1], record_format): name
                    for name in missing
                }
            pending = futures.keys()
            while pending:
                done, pending = concurrent.futures.wait(
                    pending, timeout=0.1, return_when=FIRST_COMPLETED
                )
                if interrupted:
                    raise KeyboardInterrupt
                for future in done:
                    future.result()
                    if not finish(futures[future], resumed=False):
                        raise StorageError(
                            f"{work / futures[future]} cannot be read again; is the disk in order?"
                        )
    return [shards[name] for name in tasks], sums


@contextlib.contextmanager
def _workers(number: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end at once when the body fails or is interrupted, and when this process is
    killed.
    """
    context = multiprocessing.get_context(
        "spawn"
    )  # JAX and other threads may be running here: no fork
    reader, writer = context.Pipe(duplex=False)
    with reader, writer, ProcessPoolExecutor(number, context, _end_with, (reader,)) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            writer.close()
            raise UserError(
                "a worker process was killed, perhaps for want of memory; the same command goes on from here, "
                "--num_workers=N with fewer of them"
            ) from error
        except BaseException:
            writer.close()
            raise


@contextlib.contextmanager
def _interrupt_noted() -> Iterator[list]:
    """Ctrl-C puts a word in this list. As an exception it could come in a callback of the garbage
    collector, and be lost.
    """
    interrupted = []
    handler = signal.signal(signal.SIGINT, lambda *_: interrupted.append("Ctrl-C"))
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, handler)
    if interrupted:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _interrupt_blocked() -> Iterator[None]:
    """Ctrl-C, which a terminal sends to all processes, waits for the end of the body, and for ever
    in workers started in it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _end_with(parent: Connection) -> None:
    """Ends this worker when the other end of the pipe is closed, by whatever way."""

    def watch() -> None:
        wait([parent])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_shard(work: Path, name: str, files: list[File], record_format: str) -> None:
    """Writes one file of records, whole or not at all, and `progress/<name>.npz`: its counts, sums
    and damaged files.
    """
    serializer = ExampleSerializer(_features(record_format, ["any"]).get_serialized_info())
    pixel_sum = np.zeros((SIZE, SIZE, 3), np.uint32)  # of at most 2^32 / 255 images
    products, num_bytes, count, damaged = np.zeros((3, 3), np.int64), 0, 0, []
    temporary = work / f".{name}.tmp"
    try:
        # Records of their own, uncompressed: JPEG gains nothing, and raw is there for speed.
        writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
        for file in files:
            try:
                image = center_256(_read(file))
            except Exception as error:  # the image decoders have no error class in common
                damaged.append(f"{file.name}\t{_one_line(error)}")
                continue
            stored = image.tobytes() if record_format == "raw" else encode_jpeg(image)
            image = image if record_format == "raw" else simplejpeg.decode_jpeg(stored)
            # The protocol buffer's map has no order of its own.
            example = serializer.get_tf_example({"image": stored, "label": file.label})
            record = example.SerializeToString(deterministic=True)
            writer.write(record)
            pixel_sum += image
            pixels = image.reshape(-1, 3).astype(np.float64)
            products += (pixels.T @ pixels).astype(np.int64)  # exact: whole numbers below 2^53
            num_bytes, count = num_bytes + len(record), count + 1
        writer.close()
    except RuntimeError as error:  # ArrayRecord's
        raise StorageError(
            f"cannot write {temporary} ({_one_line(error)}); the same command goes on from here"
        ) from error
    progress = work / "progress" / f"{name}.npz"
    lines = np.array(damaged, dtype=str)
    np.savez(
        progress,
        count=count,
        num_bytes=num_bytes,
        pixel_sum=pixel_sum,
        products=products,
        damaged=lines,
    )
    temporary.replace(work / name)


def _read(file: File) -> bytes:
    with open(file.path, "rb") as stream:
        stream.seek(file.offset)
        content = stream.read(file.size)
    if len(content) < file.size:
        raise ValueError(f"ends after {len(content):,} of {file.size:,} bytes")
    return content


def _read_progress(work: Path, name: str) -> dict[str, np.ndarray] | None:
    """The counts and sums of a shard; None if it is not finished."""
    if not (work / name).exists():
        return None
    try:
        with np.load(work / "progress" / f"{name}.npz", allow_pickle=False) as arrays:
            progress = dict(arrays)
        reader = ArrayRecordReader(str(work / name))
        whole = reader.num_records() == progress["count"]
        reader.close()
    except Exception:  # torn when the machine stopped: it is written again
        return None
    return progress if whole else None


def _features(record_format: str, class_names: list[str]) -> tfds.features.FeaturesDict:
    shape = (SIZE, SIZE, 3)
    image = {
        "jpeg": tfds.features.Image(shape=shape, encoding_format="jpeg"),
        "raw": tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="bytes"),
    }
    return tfds.features.FeaturesDict(
        {"image": image[record_format], "label": tfds.features.ClassLabel(names=class_names)},
    )


def _finish(
    source: Source, work: Path, record_format: str, shards: list[Shard], sums: dict
) -> None:
    """Writes what describes the set, dataset_info.json last, and removes what served the work."""
    damaged = sorted(pair for shard in shards for pair in shard.damaged)
    statistics, infos = {}, []
    template = tfds.core.ShardedFileTemplate(
        data_dir=work, dataset_name=NAME, filetype_suffix="array_record"
    )
    for split, files in source.splits.items():
        ours = [shard for shard in shards if shard.split == split]
        count = sum(shard.count for shard in ours)
        if not count:
            shutil.rmtree(work)  # nothing of it is worth another start
            name, reason = ours[0].damaged[0]
            raise DataError(
                f"none of the {len(files):,} files of {split} can be read, such as {name} ({reason})"
            )
        pixel_sum, products = sums[split]["pixel_sum"], sums[split]["products"]
        num_pixels = count * SIZE * SIZE
        mean = pixel_sum.sum(axis=(0, 1)) / num_pixels  # (3,)
        statistics[f"{split}_count"] = np.int64(count)
        statistics[f"{split}_mean_image"] = (pixel_sum / count).astype(np.float32)
        statistics[f"{split}_covariance"] = products / num_pixels - np.outer(mean, mean)
        lengths, num_bytes = [shard.count for shard in ours], sum(shard.num_bytes for shard in ours)
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=lengths, num_bytes=num_bytes, filename_template=template
            )
        )
    np.savez(work / "statistics.npz", **statistics)
    if damaged:
        lines = "".join(f"{name}\t{reason}\n" for name, reason in damaged)
        (work / "damaged.txt").write_text(lines, encoding="utf-8", errors="surrogateescape")
    shutil.rmtree(work / "progress")
    for leftover in work.glob(".*.tmp"):
        leftover.unlink()
    tfds.folder_dataset.write_metadata(
        data_dir=work,
        features=_features(record_format, list(source.class_names)),
        split_infos=infos,
        version=VERSION,
        filename_template=template,
        check_data=False,  # it would take TensorFlow
        supervised_keys=("image", "label"),
        description=f"Images of {SIZE}x{SIZE} pixels: the shorter side rescaled to that, of the longer one the middle.",
        disable_shuffling=True,
    )
