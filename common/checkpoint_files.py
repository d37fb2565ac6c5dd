"""What lies in the folder of one checkpoint, read so that no file in it can do harm.

The description, which is our own file, is checked before anything else is read, and each array is
read by TensorStore as the description says, not as Orbax's notes do.
TensorStore refuses paths that lead out of the folder, and decodes no more than an array's bytes.
"""

import json
import math
import stat
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from common.digests import describe, json_sha256, plain_path
from common.storage import NOT_UTF8

# What Zarr calls the types that a description may name.
ZARR_TYPES = {"bool": "|b1", "bfloat16": "bfloat16"} | {
    name: np.dtype(name).newbyteorder("<").str
    for name in (
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64"),
    )
}
MAX_DESCRIPTION_BYTES = 2**26
MAX_SIZE = 1_000_000  # classes or channels
MAX_CHUNKS = 2**16  # of one array: a chunk for each device that wrote it
# Weights do not compress: arrays of more than 64 MiB and ten times their files are none.
MAX_COMPRESSION, SMALL = 10, 2**26


def read_description(folder: Path) -> dict:
    """{"step": int, "meta": {...}, "leaves": {path: [dtype, shape, SHA-256]}} of the checkpoint in
    `folder`; the arrays are not read.

    Raises an exception, of whatever type, if it cannot be read, does not match its own digest, or
    says what no description of ours does; if the folder holds links or other things that are no
    files; or if the arrays would be far larger than the files.
    """
    num_bytes = _size(folder) + sum(map(_size, folder.rglob("*")))  # a link is not even listed
    path = folder / "meta" / "metadata"
    if path.lstat().st_size > MAX_DESCRIPTION_BYTES:
        raise ValueError("its description is too large")
    content = json.loads(path.read_bytes())
    if content.pop("sha256") != json_sha256(content):
        raise ValueError("its description does not match its digest")
    if type(content["step"]) is not int or not isinstance(content["meta"], dict):
        raise ValueError("its description has no step or no meta")
    meta = content["meta"]
    names, settings = meta.get("class_names") or (), meta.get("settings", {})
    is_text = all(isinstance(name, str) and not NOT_UTF8.search(name) for name in names)
    if not isinstance(settings, dict) or not is_text:
        raise ValueError("its description has odd settings or class names")
    for size in (meta.get(name, 1) for name in ("num_classes", "in_channels")):
        if type(size) is not int or not 1 <= size <= MAX_SIZE:
            raise ValueError("its description has an odd number of classes or channels")
    if not content["leaves"]:
        raise ValueError("its description names no array")
    _require_same_names(folder, content["leaves"])
    needed = sum(_checked_size(path, *entry) for path, entry in content["leaves"].items())
    if needed > SMALL + MAX_COMPRESSION * num_bytes:
        raise ValueError(f"arrays of {needed:.3g} bytes cannot be in files of {num_bytes:.3g}")
    return content


def read_arrays(folder: Path, leaves: dict[str, list], paths: Iterable[str]) -> dict:
    """Path -> array of those of the `leaves` of a description.

    Args:
      folder: of the checkpoint, as `common.storage.literal_path` gives it.

    Raises an exception, of whatever type, if one cannot be read or does not match its digest.
    """
    state = {"driver": "file", "path": f"{folder / 'state'}/"}
    files = {"driver": "ocdbt", "base": state}
    kvstore = ts.KvStore.open(files).result()
    reading = {}
    for path in paths:
        name, (dtype, shape, _) = plain_path(path), leaves[path]
        _require_zarr(name, kvstore.read(f"{name}/.zarray").result().value, dtype, shape)
        array = ts.open({"driver": "zarr", "kvstore": files | {"path": f"{name}/"}}, open=True)
        reading[path] = array.result().read()
    arrays = {path: future.result() for path, future in reading.items()}
    damaged = [path for path, array in arrays.items() if describe(path, array) != leaves[path]]
    if damaged:
        raise ValueError(f"{', '.join(damaged)}: not what was saved")
    return arrays


def put(array: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """The array where `leaf` says, or on one device; as typed keys if the leaf is."""
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.device_put(jax.random.wrap_key_data(array), sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _size(path: Path) -> int:
    """Bytes of a file, 0 of a folder. Raises ValueError for a link, a pipe, a device."""
    status = path.lstat()
    if stat.S_ISREG(status.st_mode):
        return status.st_size
    if not stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{path.name} is a link, or neither file nor folder")
    return 0


def _require_same_names(folder: Path, leaves: dict[str, list]) -> None:
    """Raises ValueError unless Orbax's own notes, which nothing here goes by, name the same arrays:
    somebody may open the checkpoint with Orbax.
    """
    notes = json.loads((folder / "state" / "_METADATA").read_bytes())
    names = {
        ".".join(part["key"] for part in entry["key_metadata"])
        for entry in notes["tree_metadata"].values()
        if not entry["value_metadata"]["skip_deserialize"]  # such as an empty tuple
    }
    if names != set(map(plain_path, leaves)) or not notes["use_ocdbt"]:
        raise ValueError("Orbax's notes name other arrays than its description")


def _checked_size(path: str, dtype: str, shape: list[int], digest: str) -> int:
    """Bytes of a leaf. Raises ValueError unless `describe` could have described it so."""
    sound = path.isascii() and path.isprintable() and dtype in ZARR_TYPES and type(digest) is str
    if not sound or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("its description is not of arrays")
    return math.prod(shape) * jnp.dtype(dtype).itemsize


def _require_zarr(name: str, zarray: bytes, dtype: str, shape: list[int]) -> None:
    """Raises ValueError unless Zarr's description of an array is the one that Orbax writes for this
    type and shape: any other could make the library allocate what it says.
    """
    if not zarray:
        raise ValueError(f"{name} is not stored")
    found = json.loads(zarray)
    chunks = found["chunks"]
    num_chunks = 1
    for size, chunk in zip(shape, chunks, strict=True):
        if type(chunk) is not int or not 1 <= chunk <= max(size, 1):
            raise ValueError(f"{name} is stored in other chunks than were written")
        num_chunks *= -(-size // chunk)
    written = dict(
        shape=shape, dtype=ZARR_TYPES[dtype], order="C", filters=None, dimension_separator="."
    )
    odd = {entry for entry, value in written.items() if found[entry] != value}
    if odd or found["compressor"]["id"] != "zstd" or num_chunks > MAX_CHUNKS:
        raise ValueError(f"{name} is stored in another form than was written")
