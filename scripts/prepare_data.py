"""Downloads a data set and writes it as a TFDS array_record folder, without TensorFlow.

    python -m scripts.prepare_data --dataset=mnist [--data_dir=DIR]

Files are checked against the published SHA-256; an interrupted download goes on where it stopped; the prepared folder appears
whole or not at all. Exit codes: 0 prepared (now or before), 2 wrong flags, 65 files that are not what they should be,
74 no network or a folder that cannot be written, 130 interrupted.
"""

import contextlib
import hashlib
import http.client
import json
import queue
import ssl
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn, track

from common import builders, launch
from common.data import data_dirs
from common.errors import DataError, StorageError, UserError

SILENCE_S = 6.0  # a server that sends nothing for so long is given up
ANSWER_S = 8.0  # and so is one that has not answered at all, whatever name resolution and its retries take

NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
WITHOUT_NETWORK = (
    "without a network use --dataset=mnist10k, which is embedded, name a folder that already has the set with --data_dir, "
    "or one with the downloaded files with --source"
)


def main(argv: list[str]) -> int:
    """Runs the command with the arguments after the program's name; returns its exit code."""
    return launch.run_tool(define_flags, prepare, ["prepare_data", *argv])


def define_flags(flag_values: flags.FlagValues) -> None:
    options = {"flag_values": flag_values}
    flags.DEFINE_string("dataset", "mnist", f"The set: {', '.join(builders.IDX_SETS)}.", **options)
    flags.DEFINE_string("data_dir", "", "Where to write it; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets.", **options)
    flags.DEFINE_string("source", "", "A folder with the files already downloaded, under their official names.", **options)
    flags.DEFINE_string("mirror", "", "The address of another server's folder that holds the same files.", **options)


def prepare(flag_values: flags.FlagValues) -> None:
    """Prepares the set that the flags name."""
    dataset, mirror = flag_values.dataset, flag_values.mirror
    if mirror and not mirror.startswith(("http://", "https://")):
        raise UserError(f"--mirror={mirror} is no address; it must begin with http:// or https://")
    if dataset == "mnist10k":
        print("mnist10k is embedded in the project: nothing to prepare")
    elif dataset in builders.IDX_SETS:
        prepare_idx(dataset, data_dirs(flag_values.data_dir)[0], flag_values.source, mirror)
    else:
        raise UserError(f"--dataset={dataset} is unknown; allowed: mnist10k, {', '.join(builders.IDX_SETS)}")


def prepare_idx(dataset: str, data_dir: Path, source: str = "", mirror: str = "") -> Path:
    """Prepares a set of `builders.IDX_SETS` in `<data_dir>/<dataset>/<version>/`, unless it is there already; returns it.

    Args:
      dataset: a key of `builders.IDX_SETS`.
      data_dir: downloads are kept below it, in `downloads/`, for the other sub-sets of emnist.
      source: take the files from this folder; download nothing.
      mirror: address of a folder, to download from in place of the official one.

    Raises:
      DataError: a file is missing in `source` or is not the published one; `<version>/` holds another format.
      StorageError: no network, or `data_dir` cannot be written.
    """
    idx_set = builders.IDX_SETS[dataset]
    prepared = data_dir / dataset / idx_set.version
    if prepared.exists():
        if not (prepared / "dataset_info.json").is_file():
            raise DataError(f"{prepared} is incomplete (no dataset_info.json); remove it and repeat the command")
        if json.loads((prepared / "dataset_info.json").read_text(encoding="utf-8")).get("fileFormat") != "array_record":
            raise DataError(f"{prepared} holds another format than array_record; choose another folder with --data_dir")
        print(f"{dataset} is already prepared in {prepared}")
        return prepared
    if source and not Path(source).expanduser().is_dir():
        raise DataError(f"--source={source} is no folder")
    folder = Path(source).expanduser() if source else data_dir / "downloads" / dataset.partition("/")[0]
    try:
        for file_name, (size, sha256) in idx_set.files.items():
            if source:
                verify(folder / file_name, idx_set.address + file_name, size, sha256)
            else:
                address = f"{mirror.rstrip('/')}/" if mirror else idx_set.address
                download(address + file_name, folder / file_name, size, sha256)
        splits = {split: builders.read_idx_split(dataset, split, folder) for split in ("train", "test")}
        bar = {"console": Console(stderr=True), "disable": not sys.stderr.isatty()}
        print(f"writing {prepared}", flush=True)
        builders.write_prepared(
            data_dir,
            dataset,
            idx_set.version,
            {
                split: track(zip(images, labels, strict=True), description=split, total=len(labels), **bar)
                for split, (images, labels) in splits.items()
            },
            splits["train"][0].shape[1:],
            idx_set.class_names,
            keep_order=False,
            description=idx_set.description,
            homepage=idx_set.homepage,
        )
    except OSError as error:
        raise StorageError(f"cannot write below {data_dir} ({error}); choose another folder with --data_dir") from error
    print(f"{dataset} is ready: --dataset={dataset} --data_dir={data_dir}")
    return prepared


def verify(path: Path, address: str, size: int, sha256: str) -> None:
    """Raises DataError unless the file has this size (bytes) and SHA-256; the message says that `address` has the right one."""
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
    """Fetches one file, unless it is there already, with a progress bar on a terminal and plain lines otherwise.

    The bytes go to `<path>.part`, where the next try goes on; `path` appears once size and SHA-256 are right. A `.part` with
    the right size and another checksum is deleted.

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
            reason = str(error).removeprefix("<urlopen error ").removesuffix(">") or type(error).__name__
            raise StorageError(f"cannot download {address} ({reason}); {WITHOUT_NETWORK}") from error
    if received < size:
        raise StorageError(f"{address} broke off after {received:,} of {size:,} bytes; the same command goes on from there")
    try:
        verify(part, address, size, sha256)
    except DataError:
        part.unlink()
        raise
    part.replace(path)


def _transfer(address: str, part: Path, received: int, size: int) -> int:
    """Appends what `part` lacks; returns its new size in bytes."""
    bar = Progress(
        *(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()),
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
    """The server's answer, from byte `start` on if it can. Raises OSError after ANSWER_S seconds at most."""
    headers = {"User-Agent": "prepare_data", **({"Range": f"bytes={start}-"} if start else {})}
    answer: queue.Queue = queue.Queue()

    def ask() -> None:
        try:
            answer.put(urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=SILENCE_S))
        except Exception as error:
            answer.put(error)

    # In a thread, since name resolution has no time limit: without a network it may try for half a minute.
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
