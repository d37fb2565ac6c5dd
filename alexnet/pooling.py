"""Pooling, overlapping as in the paper or not.

Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks, 2012, section 3.4: windows of
z x z pixels, s apart; s = 2, z = 3 overlap, s = 2, z = 2 do not. As in the 2012 code, windows run on to the last pixel, and
what lies beyond the bottom or right edge is cut off: 55 -> 27 -> 13 -> 6 and 32 -> 16 -> 8 -> 4, half the size rounded down
with either kind.

The gradient of `lax.reduce_window` with a stride is slow on a CPU. There, pooling takes the columns first, then the rows, each
as two or three strided slices, and its gradient is written by hand, as one pass over the pixels: overlapping maxima of
128 x 33 x 33 x 32, forward and backward on two cores, in 7 ms instead of 27 ms with JAX's own gradient of the slices.

Where several pixels share the maximum, its gradient goes to the first of them, in either form.
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
    """(B, H, W, C) -> (B, H // 2, W // 2, C): `operation`, lax.max or lax.add, over windows of size x size pixels, 2 apart."""
    if jax.default_backend() == "cpu":
        return reduce_along(reduce_along(x, 2, size, operation, identity), 1, size, operation, identity)
    beyond = [(0, _missing(n, size)) for n in x.shape[1:3]]
    identity = np.asarray(identity, x.dtype)  # a constant also inside jit, or reduce_window has no gradient
    return lax.reduce_window(x, identity, operation, (1, size, size, 1), (1, 2, 2, 1), [(0, 0), *beyond, (0, 0)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def reduce_along(x: jax.Array, axis: int, size: int, operation, identity) -> jax.Array:
    """`operation` over windows of `size` entries along one axis, 2 apart: of n entries n // 2 are left."""
    return functools.reduce(operation, _entries(x, axis, size, identity))


def _reduce_and_keep(x, axis, size, operation, identity):
    outputs = reduce_along(x, axis, size, operation, identity)
    return outputs, (x, outputs)


def _gradient(axis, size, operation, identity, kept, gradient):
    """By x: to an entry 2i goes what window i gives its first and window i - 1 its third, to 2i + 1 what i gives its second."""
    x, outputs = kept
    given = [gradient] * size
    if operation is lax.max:
        unclaimed, given = jnp.ones(outputs.shape, bool), []
        for entry in _entries(x, axis, size, identity):
            wins = unclaimed & (entry == outputs)
            unclaimed &= ~wins
            given.append(jnp.where(wins, gradient, 0))
    even, odd = given[0], given[1]
    if size == 3:
        even = _pad(even, axis, 0, 1, 0) + _pad(given[2], axis, 1, 0, 0)
        odd = _pad(odd, axis, 0, 1, 0)
    pairs = jnp.stack([even, odd], axis=axis + 1)
    by_entry = pairs.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])
    # What lies beyond the border is cut off; size 2 may leave out the last entry.
    return (_pad(by_entry, axis, 0, x.shape[axis] - by_entry.shape[axis], 0),)


reduce_along.defvjp(_reduce_and_keep, _gradient)


def _entries(x: jax.Array, axis: int, size: int, identity) -> list[jax.Array]:
    """The first entry of each window, the second, ..."""
    count = x.shape[axis] // 2
    padded = _pad(x, axis, 0, _missing(x.shape[axis], size), identity)
    return [lax.slice_in_dim(padded, i, i + 2 * count - 1, 2, axis) for i in range(size)]


def _missing(n: int, size: int) -> int:
    """How many of its entries the last window lacks."""
    return max(0, n // 2 * 2 - 2 + size - n)


def _pad(x: jax.Array, axis: int, before: int, after: int, value) -> jax.Array:
    """Entries of `value` added along one axis, or cut off where there are less than none."""
    return lax.pad(x, np.asarray(value, x.dtype), [(before, after, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)])
