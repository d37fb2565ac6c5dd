"""SHA-256 digests and shapes of pytrees of arrays: what a checkpoint is compared with."""

import hashlib
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from common.errors import UserError


def state_sha256(state) -> str:
    """SHA-256, in hex, over all leaves of a pytree sorted by path: each as path, dtype, shape and
    little-endian bytes.

    The path is `jax.tree_util.keystr`'s, the shape a Python tuple, each followed by a line break;
    the bytes are in C order. A typed PRNG key counts as its `jax.random.key_data`.
    """
    digest = hashlib.sha256()
    for path, array in host_leaves(state).items():
        _update(digest, path, array)
    return digest.hexdigest()


def describe(path: str, array: np.ndarray) -> list:
    digest = hashlib.sha256()
    _update(digest, path, array)
    return [array.dtype.name, list(array.shape), digest.hexdigest()]


def json_sha256(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _update(digest, path: str, array: np.ndarray) -> None:
    digest.update(f"{path}\n{array.dtype.name}\n{array.shape}\n".encode())
    little_endian = array.byteswap() if sys.byteorder == "big" else array
    digest.update(np.ascontiguousarray(little_endian).reshape(-1).view(np.uint8))


def host_leaves(state) -> dict[str, np.ndarray]:
    """Path -> NumPy array of each leaf, sorted by path."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        leaves[jax.tree_util.keystr(path)] = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    leaves = jax.device_get(leaves)  # starts all the copies before it waits for one
    return {path: np.asarray(leaves[path]) for path in sorted(leaves)}


def _is_key(leaf) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def plain_path(path: str) -> str:
    """`.params['c1']['kernel']` -> `params.c1.kernel`: the same for a dict, which Orbax gives back
    where a NamedTuple or a module was saved.
    """
    return ".".join(re.findall(r"\w+", path))


def shapes(tree) -> dict[str, str]:
    """Path -> dtype and shape of each leaf of a pytree of arrays or jax.ShapeDtypeStructs."""
    shapes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        leaf = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        shapes[jax.tree_util.keystr(path)] = f"{leaf.dtype.name} {tuple(leaf.shape)}"
    return shapes


def require_same_shapes(
    theirs: dict[str, str], ours: dict[str, str], where: Path, advice: str
) -> None:
    """Raises UserError, naming the first leaf that differs, unless both have the same paths, dtypes
    and shapes.
    """
    for path in sorted(theirs.keys() | ours.keys()):
        there, here = theirs.get(path, "absent"), ours.get(path, "absent")
        if there != here:
            raise UserError(
                f"{where} holds another model: {path} is {there} there and {here} here. {advice}"
            )
