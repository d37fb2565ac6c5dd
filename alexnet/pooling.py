"""Pooling, overlapping as in the paper or not.

Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks,
2012, section 3.4: windows of z x z pixels, s apart. s = 2, z = 3 overlap; s = 2, z = 2 do not. As
in the 2012 code, 3x3 windows run on to the last pixel, cut off at the bottom and right edges. 2x2
windows leave out the last row and column of an odd size, where the 2012 code rounds up, so that
either kind gives 55 -> 27 -> 13 -> 6 and 32 -> 16 -> 8 -> 4.

The gradient of `lax.reduce_window` with a stride is slow on a CPU. There, the forward pass works on
size x size strided slices, and the gradient is written by hand: one pass over the pixels that reads
only where each maximum was. Slices with JAX's own gradient take about twice as long or more
(results/benchmark_attempts.json).

Where several pixels share the maximum, the first of them gets the gradient, in either form.
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Maps, HalfMaps = Float[Array, "B H W C"], Float[Array, "B H//2 W//2 C"]


def max_pool(x: Maps, *, overlapping: bool) -> HalfMaps:
    """The maximum of each window. H and W are at least 2."""
    return reduce_windows(x, 3 if overlapping else 2, lax.max, -jnp.inf)


def average_pool(x: Maps, *, overlapping: bool) -> HalfMaps:
    """The mean of the pixels that each window has inside the image. H and W are at least 2."""
    size = 3 if overlapping else 2
    rows, columns = (np.minimum(size, n - np.arange(0, n // 2 * 2, 2)) for n in x.shape[1:3])
    pixels = rows[:, None, None] * columns[:, None]  # (H // 2, W // 2, 1)
    return reduce_windows(x, size, lax.add, 0) / pixels.astype(x.dtype)


def reduce_windows(x: Maps, size: int, operation: Callable, identity: float) -> HalfMaps:
    """`operation`, lax.max or lax.add, over windows of size x size pixels, 2 apart."""
    if jax.default_backend() == "cpu":
        return reduce_slices(x, size, operation, identity)
    beyond = [(0, _missing(n, size)) for n in x.shape[1:3]]
    # A NumPy constant: with a traced value, reduce_window would have no gradient.
    identity = np.asarray(identity, x.dtype)
    return lax.reduce_window(
        x, identity, operation, (1, size, size, 1), (1, 2, 2, 1), [(0, 0), *beyond, (0, 0)]
    )


def reduce_slices(x: Maps, size: int, operation: Callable, identity: float) -> HalfMaps:
    """The same, on strided slices: the first pixel of each window, the second, and so on."""
    batch, height, width, channels = x.shape
    rows, columns = height // 2, width // 2

    def forward(x):
        """(outputs, places in their windows, size * row + column, of maxima; None for sums)"""
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
        """The gradient of x, in blocks of 2 x 2 pixels: block (a, b) is where window (a, b) begins.
        The last blocks have no window.
        """
        gradient, places = jax.tree.map(
            lambda array: jnp.pad(array, [(0, 0), (1, 1), (1, 1), (0, 0)]), (gradient, places)
        )

        def pixel_gradient(i, j):
            """Of pixel (i, j) of each block. Window (a, b) has it at (i, j), and window (a - 1, b),
            if it overlaps, at (i + 2, j).
            """
            terms = []
            for p, q in itertools.product(range(i, size, 2), range(j, size, 2)):
                windows = np.s_[
                    :, 1 - p // 2 : rows + 2 - p // 2, 1 - q // 2 : columns + 2 - q // 2
                ]
                term = gradient[windows]
                if places is not None:
                    term = jnp.where(places[windows] == size * p + q, term, 0)
                terms.append(term)
            return functools.reduce(jnp.add, terms)

        blocks = jnp.stack(
            [jnp.stack([pixel_gradient(i, j) for j in (0, 1)], axis=3) for i in (0, 1)], axis=2
        )
        return (blocks.reshape(batch, 2 * rows + 2, 2 * columns + 2, channels)[:, :height, :width],)

    reduce = jax.custom_vjp(lambda x: forward(x)[0])
    reduce.defvjp(forward, backward)
    return reduce(x)


def _missing(n: int, size: int) -> int:
    """How many pixels of the last window lie beyond the edge."""
    return max(0, n // 2 * 2 - 2 + size - n)
