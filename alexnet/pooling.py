"""Pooling, overlapping as in the paper or not.

Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks, 2012, section 3.4: windows of
z x z pixels, s apart; s = 2, z = 3 overlap, s = 2, z = 2 do not. As in the 2012 code, windows run on to the last pixel, and
what lies beyond the bottom or right edge is cut off: 55 -> 27 -> 13 -> 6 and 32 -> 16 -> 8 -> 4, half the size rounded down
with either kind.

The gradient of `lax.reduce_window` with a stride is slow on a CPU. There, pooling takes the rows first, then the columns, each
as two or three strided slices: on 32 x 55 x 55 x 96 and two cores, overlapping maxima forward and backward in 33 ms instead of
101 ms (2 x 2: 18 instead of 94), means in 20 ms instead of 29 ms.

Where several pixels share the maximum, the slices share the gradient among them, `lax.reduce_window` gives it to the first.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def max_pool(x: jax.Array, *, overlapping: bool) -> jax.Array:
    """(B, H, W, C) -> (B, H // 2, W // 2, C): the maximum of each window. H and W are at least 2."""
    return reduce_windows(x, 3 if overlapping else 2, lax.max, -jnp.inf)


def average_pool(x: jax.Array, *, overlapping: bool) -> jax.Array:
    """(B, H, W, C) -> (B, H // 2, W // 2, C): the mean of the pixels that each window has inside the image. H and W >= 2."""
    size = 3 if overlapping else 2
    rows, columns = (np.minimum(size, n - np.arange(0, n // 2 * 2, 2)) for n in x.shape[1:3])
    pixels = rows[:, None, None] * columns[:, None]  # (H // 2, W // 2, 1)
    return reduce_windows(x, size, lax.add, 0) / pixels.astype(x.dtype)


def reduce_windows(x: jax.Array, size: int, operation, identity) -> jax.Array:
    """(B, H, W, C) -> (B, H // 2, W // 2, C): `operation` over windows of size x size pixels, 2 apart."""
    beyond = [(0, max(0, n // 2 * 2 - 2 + size - n)) for n in x.shape[1:3]]  # what the last window lacks
    identity = np.asarray(identity, x.dtype)  # a constant also inside jit, or reduce_window has no gradient
    if jax.default_backend() != "cpu":
        return lax.reduce_window(x, identity, operation, (1, size, size, 1), (1, 2, 2, 1), [(0, 0), *beyond, (0, 0)])
    for axis, (_, after) in enumerate(beyond, start=1):
        padded = lax.pad(x, identity, [(0, after if i == axis else 0, 0) for i in range(x.ndim)])
        last = x.shape[axis] // 2 * 2 - 2  # where the last window starts
        x = functools.reduce(operation, (lax.slice_in_dim(padded, i, last + i + 1, 2, axis) for i in range(size)))
    return x
