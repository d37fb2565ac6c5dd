"""Writes a data set as a TFDS array_record folder, without TensorFlow: downloads it, or takes
ImageNet from files on disk.

    python -m scripts.prepare_data --dataset=mnist [--data_dir=DIR]
    python -m scripts.prepare_data --dataset=imagenet_256 --source=DIR [--data_dir=DIR]

Downloaded files are checked against the published SHA-256; what was interrupted goes on where it
stopped; the prepared folder appears whole or not at all. For imagenet_256, DIR holds
ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, or train/<class>/ and val/<class>/ with JPEG or
PNG files, or <class>/ alone; a tar file of such folders will do, too. The shorter side of each
image becomes 256 pixels, of the longer one the middle is kept. Files that cannot be read are named,
listed in damaged.txt and left out. The folder takes about 45 GB for all of ImageNet, 260 GB with
--record_format=raw.

Exit codes: 0 prepared (now or before), 2 wrong flags or a worker process that was killed, 65 files
that are not what they should be, 74 no network or a folder that cannot be written, 75 another
process prepares the same set, 130 interrupted.
"""

import contextlib
import datetime
import hashlib
import http.client
import json
import os
import queue
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
    track,
)

from alexnet import imagenet
from common import builders, launch
from common.errors import DataError, StorageError, UserError
from common.prepared import data_dirs

SILENCE_S = 6.0  # a server that sends nothing for so long is given up
ANSWER_S = (
    8.0  # and so is one that has not answered at all, whatever name resolution and its retries take
)

NETWORK_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)
LINE_EVERY_S = 10.0  # how often progress is told where there is no terminal
WITHOUT_NETWORK = (
    "without a network use --dataset=mnist10k, which is embedded, name a folder that already has the set with --data_dir, "
    "or one with the downloaded files with --source"
)


def main(argv: list[str]) -> int:
    """Runs the command with the arguments after the program's name; returns its exit code."""
    return launch.run_tool(define_flags, prepare, ["prepare_data", *argv])


def define_flags(flag_values: flags.FlagValues) -> None:
    options = {"flag_values": flag_values}
    flags.DEFINE_string("dataset", "mnist", f"The set: {', '.join(_datasets())}.", **options)
    flags.DEFINE_string(
        "data_dir",
        "",
        "Where to write it; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets.",
        **options,
    )
    source = "A folder with the files already downloaded, under their official names; of imagenet_256 see above."
    flags.DEFINE_string("source", "", source, **options)
    flags.DEFINE_string(
        "mirror", "", "The address of another server's folder that holds the same files.", **options
    )
    record_format = (
        "imagenet_256: JPEG files of quality 95, or the pixels themselves, which are read faster."
    )
    flags.DEFINE_enum(
        "record_format",
        imagenet.RECORD_FORMATS[0],
        imagenet.RECORD_FORMATS,
        record_format,
        **options,
    )
    num_workers = "imagenet_256: how many processes work; 0: one for each core."
    flags.DEFINE_integer("num_workers", 0, num_workers, lower_bound=0, **options)


def prepare(flag_values: flags.FlagValues) -> None:
    """Prepares the set that the flags name."""
    dataset, mirror = flag_values.dataset, flag_values.mirror
    if mirror and not mirror.startswith(("http://", "https://")):
        raise UserError(f"--mirror={mirror} is no address; it must begin with http:// or https://")
    of_others = ["mirror"] if dataset == imagenet.NAME else ["record_format", "num_workers"]
    for name in of_others:
        if flag_values[name].present:
            raise UserError(f"--{name} has no meaning with --dataset={dataset}; leave it out")
    data_dir = data_dirs(flag_values.data_dir)[0]
    if dataset == "mnist10k":
        print("mnist10k is embedded in the project: nothing to prepare")
    elif dataset == imagenet.NAME:
        prepare_imagenet(
            data_dir, flag_values.source, flag_values.record_format, flag_values.num_workers
        )
    elif dataset in builders.PUBLISHED_SETS:
        prepare_published(dataset, data_dir, flag_values.source, mirror)
    else:
        raise UserError(f"--dataset={dataset} is unknown; allowed: {', '.join(_datasets())}")


def _datasets() -> list[str]:
    return ["mnist10k", *builders.PUBLISHED_SETS, imagenet.NAME]


def prepare_imagenet(data_dir: Path, source: str, record_format: str, num_workers: int = 0) -> Path:
    """Prepares ImageNet, or another class-per-folder tree, in `<data_dir>/imagenet_256/1.0.0/`,
    unless it is there; returns it.

    Args:
      data_dir: made if needed.
      source: see `imagenet.find_images`.
      record_format: `jpeg` or `raw`.
      num_workers: processes; 0 for one a core.

    Raises:
      DataError, LockedError, StorageError: see `imagenet.find_images` and `imagenet.prepare`.
      UserError: no source.
    """
    prepared = data_dir / imagenet.NAME / imagenet.VERSION
    if not source and (prepared / "dataset_info.json").is_file():
        print(f"{imagenet.NAME} is already prepared in {prepared}")
        return prepared
    if not source:
        raise UserError(
            f"--dataset={imagenet.NAME} needs --source=DIR: ImageNet cannot be downloaded without an account at image-net.org"
        )
    found = imagenet.find_images(source)
    sizes = ", ".join(f"{len(files):,} files of {split}" for split, files in found.splits.items())
    print(f"{source}: {sizes}, {len(found.class_names):,} classes", flush=True)
    if found.left_out:
        print(
            f"left out: {_files(len(found.left_out), 'other')}, such as {found.left_out[0]}",
            flush=True,
        )
    num_workers = num_workers or (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    try:
        with _Report(sum(map(len, found.splits.values()))) as report:
            shards = imagenet.prepare(found, prepared, record_format, num_workers, report)
    except OSError as error:
        raise StorageError(
            f"cannot write below {data_dir} ({error}); choose another folder with --data_dir"
        ) from error
    if not shards:
        print(f"{imagenet.NAME} is already prepared in {prepared}")
        return prepared
    counts = ", ".join(
        f"{sum(shard.count for shard in shards if shard.split == split):,} images in {split}"
        for split in found.splits
    )
    num_damaged = sum(len(shard.damaged) for shard in shards)
    damaged = (
        f"{_files(num_damaged, 'damaged')}, listed in {prepared / 'damaged.txt'}"
        if num_damaged
        else "no damaged files"
    )
    print(
        f"{imagenet.NAME} is ready: {counts}, {damaged}; --dataset={imagenet.NAME} --data_dir={data_dir}"
    )
    return prepared


def _files(count: int, kind: str) -> str:
    return f"{count:,} {kind} file{'s' if count > 1 else ''}"


class _Report:
    """Called with each finished shard: a progress bar on a terminal, else a line now and then;
    damaged files at once.
    """

    def __init__(self, num_files: int):
        self._bar = Progress(
            *(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
            ),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task(imagenet.NAME, total=num_files, speed="")
        self._num_files = num_files
        self._done = self._done_before = 0
        self._start = self._last_line = time.monotonic()

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *_):
        self._bar.stop()

    def __call__(self, shard: imagenet.Shard) -> None:
        for name, reason in shard.damaged:
            self._bar.console.print(
                f"damaged: {name} ({reason})", markup=False, highlight=False, soft_wrap=True
            )
        num_files = shard.count + len(shard.damaged)
        self._done += num_files
        if shard.resumed:
            self._done_before += num_files
        now = time.monotonic()
        speed = (self._done - self._done_before) / max(
            now - self._start, 1e-9
        )  # images/s of this start
        left = (
            f", {datetime.timedelta(seconds=round((self._num_files - self._done) / speed))} left"
            if speed
            else ""
        )
        self._bar.update(self._task, completed=self._done, speed=f"{speed:.0f} images/s{left}")
        if self._bar.disable and (
            now - self._last_line > LINE_EVERY_S or self._done == self._num_files
        ):
            self._last_line = now
            print(
                f"{self._done:,} of {self._num_files:,} files, {speed:.0f} images/s{left}",
                flush=True,
            )


def prepare_published(dataset: str, data_dir: Path, source: str = "", mirror: str = "") -> Path:
    """Prepares a set of `builders.PUBLISHED_SETS` in `<data_dir>/<dataset>/<version>/`, unless it
    is there already; returns it.

    Args:
      dataset: a key of `builders.PUBLISHED_SETS`.
      data_dir: downloads are kept below it, in `downloads/`, for the other sub-sets of emnist.
      source: take the files from this folder; download nothing.
      mirror: address of a folder, to download from in place of the official one.

    Raises:
      DataError: a file is missing in `source` or is not the published one; `<version>/` holds
        another format.
      StorageError: no network, or `data_dir` cannot be written.
    """
    published = builders.PUBLISHED_SETS[dataset]
    prepared = data_dir / dataset / published.version
    if prepared.exists():
        if not (prepared / "dataset_info.json").is_file():
            raise DataError(
                f"{prepared} is incomplete (no dataset_info.json); remove it and repeat the command"
            )
        if (
            json.loads((prepared / "dataset_info.json").read_text(encoding="utf-8")).get(
                "fileFormat"
            )
            != "array_record"
        ):
            raise DataError(
                f"{prepared} holds another format than array_record; choose another folder with --data_dir"
            )
        print(f"{dataset} is already prepared in {prepared}")
        return prepared
    if source and not Path(source).expanduser().is_dir():
        raise DataError(f"--source={source} is no folder")
    folder = (
        Path(source).expanduser() if source else data_dir / "downloads" / dataset.partition("/")[0]
    )
    try:
        for file_name, (size, sha256) in published.files.items():
            if source:
                verify(folder / file_name, published.address + file_name, size, sha256)
            else:
                address = f"{mirror.rstrip('/')}/" if mirror else published.address
                download(address + file_name, folder / file_name, size, sha256)
        splits = {split: builders.read_split(dataset, split, folder) for split in ("train", "test")}
        bar = {"console": Console(stderr=True), "disable": not sys.stderr.isatty()}
        print(f"writing {prepared}", flush=True)
        builders.write_prepared(
            data_dir,
            dataset,
            published.version,
            {
                split: track(
                    zip(images, labels, strict=True), description=split, total=len(labels), **bar
                )
                for split, (images, labels) in splits.items()
            },
            splits["train"][0].shape[1:],
            published.class_names,
            keep_order=False,
            description=published.description,
            homepage=published.homepage,
        )
    except OSError as error:
        raise StorageError(
            f"cannot write below {data_dir} ({error}); choose another folder with --data_dir"
        ) from error
    print(f"{dataset} is ready: --dataset={dataset} --data_dir={data_dir}")
    return prepared


def verify(path: Path, address: str, size: int, sha256: str) -> None:
    """Raises DataError unless the file has this size (bytes) and SHA-256; the message says that
    `address` has the right one.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing; the file is at {address}")
    with path.open("rb") as stream:
        found_sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    found_size = path.stat().st_size
    if (found_size, found_sha256) != (size, sha256):
        raise DataError(
            f"{path} is not the published file: {found_size} bytes with SHA-256 {found_sha256}, "
            f"in place of {size} with {sha256}; get it from {address}"
        )


def download(address: str, path: Path, size: int, sha256: str) -> None:
    """Fetches one file, unless it is there already, with a progress bar on a terminal and plain
    lines otherwise.

    The bytes go to `<path>.part`, where the next try goes on; `path` appears once size and SHA-256
    are right. A `.part` with the right size and another checksum is deleted.

    Raises:
      StorageError: no answer, or the transfer broke off.
      DataError: the server sent another file.
    """
    with contextlib.suppress(DataError):
        return verify(path, address, size, sha256)
    part = path.with_name(path.name + ".part")
    received = part.stat().st_size if part.exists() else 0
    if received < size:
        try:
            received = _transfer(address, part, received, size)
        except NETWORK_ERRORS as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it is the server's answer, too
            reason = (
                str(error).removeprefix("<urlopen error ").removesuffix(">") or type(error).__name__
            )
            raise StorageError(
                f"cannot download {address} ({reason}); {WITHOUT_NETWORK}"
            ) from error
    if received < size:
        raise StorageError(
            f"{address} broke off after {received:,} of {size:,} bytes; the same command goes on from there"
        )
    try:
        verify(part, address, size, sha256)
    except DataError:
        part.unlink()
        raise
    part.replace(path)


def _transfer(address: str, part: Path, received: int, size: int) -> int:
    """Appends what `part` lacks; returns its new size in bytes."""
    bar = Progress(
        *(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        ),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    with _open(address, received) as response:
        if response.status != http.client.PARTIAL_CONTENT:
            received = 0  # this server cannot go on in the middle
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab" if received else "wb") as stream, bar:
            task = bar.add_task(part.stem, total=size, completed=received)
            while received <= size and (chunk := response.read(1 << 20)):
                tenths = received * 10 // size
                received += stream.write(chunk)
                bar.update(task, completed=received)
                if bar.disable and received * 10 // size > tenths:
                    print(f"{part.stem}: {received / 1e6:.1f} of {size / 1e6:.1f} MB", flush=True)
    return received


def _open(address: str, start: int) -> http.client.HTTPResponse:
    """The server's answer, from byte `start` on if it can. Raises OSError after ANSWER_S seconds at
    most.
    """
    headers = {"User-Agent": "prepare_data", **({"Range": f"bytes={start}-"} if start else {})}
    answer: queue.Queue = queue.Queue()

    def ask() -> None:
        try:
            answer.put(
                urllib.request.urlopen(
                    urllib.request.Request(address, headers=headers), timeout=SILENCE_S
                )
            )
        except Exception as error:
            answer.put(error)

    # In a thread, since name resolution has no time limit: without a network it may try for half a
    # minute.
    threading.Thread(target=ask, daemon=True).start()
    try:
        response = answer.get(timeout=ANSWER_S)
    except queue.Empty:
        raise TimeoutError(f"no answer within {ANSWER_S:g} s") from None
    if isinstance(response, Exception):
        raise response
    return response


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
