"""Reads arrays from .safetensors, .npz and .npy files that anybody may have made: names, types and
shapes come first, and only what is expected is read. Nothing is ever unpickled.
"""

import contextlib
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from common.errors import DataError, UserError, one_line

MAX_ARRAYS = 1000  # in a file
NPZ_COMPRESSION = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
MAX_HEADER, MAX_NPY_HEADER = 1_000_000, 10_000  # bytes
SAFETENSORS_TYPES = {"F16": "float16", "F32": "float32", "F64": "float64"}
FLOATS = set(SAFETENSORS_TYPES.values())  # the types that are taken
DAMAGE = (
    SafetensorError,
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    EOFError,
    NotImplementedError,
)


class Header(NamedTuple):
    """What a file says of an array before its values are read."""

    dtype: str
    shape: tuple[int, ...]


class Weights(NamedTuple):
    """An open file: what it says of each array, by name, and name -> that array as float32."""

    headers: dict[str, Header]
    read: Callable[[str], np.ndarray]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Weights]:
    """A file of weights. Raises UserError where there is none or it is of another kind, DataError
    where it is damaged, also when an array is read.
    """
    if path.suffix not in READERS:
        raise UserError(
            f"{path} must end in {' or '.join(READERS)}; pickles, as .pth, are not read"
        )
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    with contextlib.ExitStack() as stack:
        with _readable(path):
            found = stack.enter_context(READERS[path.suffix](path))
            if len(found.headers) > MAX_ARRAYS:
                raise DataError(f"{path} holds {len(found.headers):,} arrays")

        def read(name: str) -> np.ndarray:
            with _readable(path):
                return found.read(name).astype(np.float32)

        yield found._replace(read=read)


def read_npy(path: Path) -> tuple[Header, Callable[[], np.ndarray]]:
    """What a .npy file says of its array, and what reads that. Raises as `opened`."""

    def read() -> np.ndarray:
        with _readable(path), path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False).astype(np.float32)

    with _readable(path), path.open("rb") as file:
        return _npy_header(file), read


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What the readers raise, in one line."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or one_line(error)}") from error
    except DAMAGE as error:
        raise DataError(
            f"{path} is damaged, or no {path.suffix} file: {one_line(error)}"
        ) from error


@contextlib.contextmanager
def _safetensors(path: Path) -> Iterator[Weights]:
    with path.open("rb") as file:  # the library would read and parse all of it
        if (size := int.from_bytes(file.read(8), "little")) > MAX_HEADER:
            raise ValueError(f"its header has {size:,} bytes")
    with safe_open(path, framework="numpy") as file:
        headers = {}
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            kind = part.get_dtype()
            headers[name] = Header(SAFETENSORS_TYPES.get(kind, kind), tuple(part.get_shape()))
        yield Weights(headers, file.get_tensor)


@contextlib.contextmanager
def _npz(path: Path) -> Iterator[Weights]:
    with zipfile.ZipFile(path) as archive:
        files = archive.infolist()[: MAX_ARRAYS + 1]
        entries = {file.filename.removesuffix(".npy"): file for file in files}
        for file in files:
            if file.flag_bits & 1 or file.compress_type not in NPZ_COMPRESSION:
                raise ValueError(f"{file.filename!a} is encrypted, or compressed in another way")

        def read(name: str) -> np.ndarray:
            with archive.open(entries[name]) as file:
                return np.lib.format.read_array(file, allow_pickle=False)

        headers = {}
        for name, entry in entries.items():
            with archive.open(entry) as file:
                headers[name] = _npy_header(file)
        yield Weights(headers, read)


READERS = {".safetensors": _safetensors, ".npz": _npz}


def _npy_header(file) -> Header:
    """Raises ValueError."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f"its arrays have the format {version}")
    length = file.read(2 * version[0])
    if (size := int.from_bytes(length, "little")) > MAX_NPY_HEADER:
        raise ValueError(f"an array's header has {size:,} bytes")
    try:
        shape, _, dtype = readers[version](io.BytesIO(length + file.read(size)))
        return Header(dtype.name, shape)
    except Exception as error:  # NumPy parses it as Python, which raises many kinds
        raise ValueError(f"an array's header: {one_line(error)}") from error
