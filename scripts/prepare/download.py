"""Downloads one file: verified by its SHA-256, resumed where it stopped, with timeouts."""

import contextlib
import hashlib
import http.client
import queue
import ssl
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import filelock
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from common.errors import DataError, LockedError, StorageError
from common.storage import make_folder

SILENCE_S = 6.0  # timeout of a server that sends nothing
ANSWER_S = 8.0  # timeout of the first answer, name resolution included

NETWORK_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)
WITHOUT_NETWORK = (
    "without a network use --dataset=mnist10k, which is embedded, a folder that already has the "
    "set (--data_dir), or one with the downloaded files (--source)"
)


def verify(path: Path, address: str, size: int, sha256: str) -> None:
    """Raises DataError, naming `address`, unless the file has this size (bytes) and SHA-256."""
    if not path.is_file():
        raise DataError(f"{path} is missing; the file is at {address}")
    with path.open("rb") as stream:
        found_sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    found_size = path.stat().st_size
    if (found_size, found_sha256) != (size, sha256):
        raise DataError(
            f"{path} is not the published file: {found_size} bytes with SHA-256 {found_sha256}, "
            f"expected {size} with {sha256}; get it from {address}"
        )


def download(address: str, path: Path, size: int, sha256: str) -> None:
    """Downloads a file unless it is there already, with a progress bar on a terminal and plain
    lines otherwise.

    The bytes go to `<path>.part`, where the next attempt resumes; `path` appears once size and
    SHA-256 are right. A `.part` of the right size with another checksum is deleted.

    Raises:
      StorageError: no answer, or the transfer was cut off.
      DataError: the server sent another file.
      LockedError: another process is downloading into the same folder.
    """
    with contextlib.suppress(DataError):
        return verify(path, address, size, sha256)
    part = path.with_name(path.name + ".part")
    received = part.stat().st_size if part.exists() else 0
    if received < size:
        try:
            received = _transfer(address, part, received, size)
        except filelock.Timeout:  # a TimeoutError, but not of the network
            message = f"another process is downloading into {part.parent}; wait for it"
            raise LockedError(message) from None
        except BrokenPipeError:  # of the lines that it prints
            raise
        except NETWORK_ERRORS as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it is also the server's response
            reason = str(error).removeprefix("<urlopen error ").removesuffix(">")
            raise StorageError(
                f"cannot download {address} ({reason or type(error).__name__}); {WITHOUT_NETWORK}"
            ) from error
    if received < size:
        raise StorageError(
            f"{address} was cut off after {received:,} of {size:,} bytes; "
            "rerun the command to resume"
        )
    try:
        verify(part, address, size, sha256)
    except DataError:
        part.unlink()
        raise
    part.replace(path)


def _transfer(address: str, part: Path, received: int, size: int) -> int:
    """Appends to `part` what it lacks; returns its new size in bytes."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    with _open(address, received) as response:
        if response.status != http.client.PARTIAL_CONTENT:
            received = 0  # this server ignores Range
        make_folder(part.parent)
        lock = filelock.FileLock(part.with_name(".lock"), timeout=0)
        with lock, part.open("ab" if received else "wb") as stream, bar:
            task = bar.add_task(part.stem, total=size, completed=received)
            while received <= size and (chunk := response.read(1 << 20)):
                tenths = received * 10 // size
                received += stream.write(chunk)
                bar.update(task, completed=received)
                if bar.disable and received * 10 // size > tenths:
                    print(f"{part.stem}: {received / 1e6:.1f} of {size / 1e6:.1f} MB", flush=True)
    return received


def _open(address: str, start: int) -> http.client.HTTPResponse:
    """The server's response, from byte `start` on if it can. Raises OSError within ANSWER_S."""
    headers = {"User-Agent": "prepare_data", **({"Range": f"bytes={start}-"} if start else {})}
    request = urllib.request.Request(address, headers=headers)
    answer: queue.Queue = queue.Queue()

    def ask() -> None:
        try:
            answer.put(urllib.request.urlopen(request, timeout=SILENCE_S))
        except Exception as error:
            answer.put(error)

    # In a thread, since name resolution has no timeout: without a network it may take 30 s.
    threading.Thread(target=ask, daemon=True).start()
    try:
        response = answer.get(timeout=ANSWER_S)
    except queue.Empty:
        raise TimeoutError(f"no answer within {ANSWER_S:g} s") from None
    if isinstance(response, Exception):
        raise response
    return response
