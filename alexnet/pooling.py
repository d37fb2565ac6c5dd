"""Pooling, overlapping as in the paper or not.

Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks,
2012, section 3.4: windows of z x z pixels, s apart; s = 2, z = 3 overlap, s = 2, z = 2 do not. As
in the 2012 code, windows run on to the last pixel, and what lies beyond the bottom or right edge is
cut off: 55 -> 27 -> 13 -> 6 and 32 -> 16 -> 8 -> 4, half the size rounded down with either kind.

The gradient of `lax.reduce_window` with a stride is slow on a CPU. There, a window is size x size
strided slices, and the gradient, written by hand, one pass over the pixels that reads only where
each maximum was: overlapping maxima of 128 x 33 x 33 x 32, forward and backward on two cores, in 3
ms; slices with JAX's own gradient take 8 or more (results/benchmark_attempts.json).

Where several pixels share the maximum, its gradient goes to the first of them, in either form.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def max_pool(x: jax.Array, *, overlapping: bool) -> jax.Array:
    """(B, H, W, C) -> (B, H // 2, W // 2, C): the maximum of each window. H and W are at least 2."""
    return reduce_windows(x, 3 if overlapping else 2, lax.max, -jnp.inf)


def average_pool(x: jax.Array, *, overlapping: bool) -> jax.Array:
    """(B, H, W, C) -> (B, H // 2, W // 2, C): the mean of the pixels that each window has inside
    the image. H and W >= 2.
    """
    size = 3 if overlapping else 2
    rows, columns = (np.minimum(size, n - np.arange(0, n // 2 * 2, 2)) for n in x.shape[1:3])
    pixels = rows[:, None, None] * columns[:, None]  # (H // 2, W // 2, 1)
    return reduce_windows(x, size, lax.add, 0) / pixels.astype(x.dtype)


def reduce_windows(x: jax.Array, size: int, operation, identity) -> jax.Array:
    """(B, H, W, C) -> (B, H // 2, W // 2, C): `operation`, lax.max or lax.add, over windows of size
    x size pixels, 2 apart.
    """
    if jax.default_backend() == "cpu":
        return reduce_slices(x, size, operation, identity)
    beyond = [(0, _missing(n, size)) for n in x.shape[1:3]]
    identity = np.asarray(
        identity, x.dtype
    )  # a constant also inside jit, or reduce_window has no gradient
    return lax.reduce_window(
        x, identity, operation, (1, size, size, 1), (1, 2, 2, 1), [(0, 0), *beyond, (0, 0)]
    )


def reduce_slices(x: jax.Array, size: int, operation, identity) -> jax.Array:
    """The same as `operation` on strided slices: the first pixel of each window, the second, ..."""
    batch, height, width, channels = x.shape
    rows, columns = height // 2, width // 2

    def forward(x):
        """The outputs, and which pixel of its window each maximum is: size * row + column, or None
        of a sum.
        """
        padded = jnp.pad(
            x,
            [(0, 0), *[(0, _missing(n, size)) for n in (height, width)], (0, 0)],
            constant_values=identity,
        )
        pixels = [
            padded[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]
            for i in range(size)
            for j in range(size)
        ]
        outputs = functools.reduce(operation, pixels)
        if operation is not lax.max:
            return outputs, None
        places = jnp.full(outputs.shape, size**2 - 1, jnp.uint8)
        for place in reversed(range(size**2 - 1)):
            places = jnp.where(pixels[place] == outputs, jnp.uint8(place), places)
        return outputs, places

    def backward(places, gradient):
        """By x: its pixels in blocks of 2 x 2, block (a, b) where window (a, b) begins, the last
        ones without a window.
        """
        gradient, places = jax.tree.map(
            lambda array: jnp.pad(array, [(0, 0), (1, 1), (1, 1), (0, 0)]), (gradient, places)
        )

        def of_pixel(i, j):
            """To pixel (i, j) of each block: window (a, b) has it there, window (a - 1, b) at (i +
            2, j), if it overlaps.
            """
            given = []
            for p, q in itertools.product(range(i, size, 2), range(j, size, 2)):
                windows = np.s_[
                    :, 1 - p // 2 : rows + 2 - p // 2, 1 - q // 2 : columns + 2 - q // 2
                ]
                everywhere = gradient[windows]
                given.append(
                    everywhere
                    if places is None
                    else jnp.where(places[windows] == size * p + q, everywhere, 0)
                )
            return functools.reduce(jnp.add, given)

        blocks = jnp.stack(
            [jnp.stack([of_pixel(i, j) for j in (0, 1)], axis=3) for i in (0, 1)], axis=2
        )
        return (blocks.reshape(batch, 2 * rows + 2, 2 * columns + 2, channels)[:, :height, :width],)

    reduce = jax.custom_vjp(lambda x: forward(x)[0])
    reduce.defvjp(forward, backward)
    return reduce(x)


def _missing(n: int, size: int) -> int:
    """How many of its entries the last window lacks."""
    return max(0, n // 2 * 2 - 2 + size - n)
