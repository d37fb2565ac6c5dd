"""Local response normalization, and its relative in the 2012 code that the paper never mentions.

Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks,
2012, section 3.3. An activity a becomes

    b = a / (k + alpha * sum of a_j^2 over the `size` activities around it)^beta

where the window is cut off at the borders. The paper's formula takes alpha as it is, with k = 2.
The 2012 code, Caffe (k = 1) and PyTorch (k = 1 by default) divide alpha by the number of activities
in a whole window: `size` across channels, size^2 within a map. There alpha = 1e-4 means 2e-5.

On a CPU the sums are additions of shifted arrays. The gradient is written by hand on all backends:
one more window sum, and powers of the scale from its inverse fourth root, which is kept. Forward
and backward, JAX's own gradient takes four times as long on a CPU, and sums by `lax.reduce_window`,
which other backends use, twice as long (results/benchmark_attempts.json).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from common.errors import UserError


def local_response_normalization(
    x: Float[Array | np.ndarray, "*shape"],
    *,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    alpha_over_n: bool = False,
    towers: int = 1,
) -> Float[Array, "*shape"]:
    """Each channel (last axis) normalized by the `size` channels around it, itself included.

    Sums are float32 whatever the dtype of x. Defaults are the paper's.

    Args:
      size: channels in a window, odd; n in the paper.
      alpha_over_n: use alpha / size instead of alpha.
      towers: the number of equal groups of channels that no window crosses. The paper's network ran
        on two devices, each of which normalized its own 48 and 128 maps; Caffe normalizes across
        all 96 and 256.

    Raises UserError for an even size or channels that do not divide into towers.
    """
    if x.shape[-1] % towers:
        raise UserError(f"{x.shape[-1]} channels do not divide into {towers} towers")
    scale = alpha / size if alpha_over_n else alpha
    return normalize(x, (x.ndim - 1,), size, scale, beta, k, towers)


def within_map_normalization(
    x: Float[Array | np.ndarray, "B H W C"],
    *,
    size: int = 5,
    alpha: float = 1e-3,
    beta: float = 0.75,
    k: float = 1.0,
    alpha_over_n: bool = True,
) -> Float[Array, "B H W C"]:
    """Each pixel normalized by the size x size pixels around it in its own map: cuda-convnet's
    `rnorm`, which the 2012 code applies after conv2's normalization. Defaults are that code's.

    Args:
      size: pixels of a window's side, odd.
      alpha_over_n: use alpha / size^2 instead of alpha, also for windows cut off at a border.
    """
    return normalize(x, (1, 2), size, alpha / size**2 if alpha_over_n else alpha, beta, k)


def normalization(
    lrn: str, *, size: int, alpha: float, alpha_over_n: bool, k: float, towers: int = 1
) -> Callable[[Float[Array, "B H W C"]], Float[Array, "B H W C"]] | None:
    """The normalization that the flags --lrn and --lrn_* name, with the paper's beta of 0.75; None
    for 'none'.

    lrn: 'within_tower' (windows stay in one of the `towers`), 'across' (windows run over all
    channels), 'within_map' or 'none'.
    """
    if lrn == "none":
        return None
    options = dict(size=size, alpha=alpha, beta=0.75, k=k, alpha_over_n=alpha_over_n)
    if lrn == "within_map":
        return functools.partial(within_map_normalization, **options)
    return functools.partial(
        local_response_normalization, towers=towers if lrn == "within_tower" else 1, **options
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5, 6))
def normalize(
    x: Float[Array | np.ndarray, "*shape"],
    axes: tuple[int, ...],
    size: int,
    alpha: float,
    beta: float,
    k: float,
    towers: int = 1,
) -> Float[Array, "*shape"]:
    """x / (k + alpha * sum of x^2 over `size` neighbors along each of the axes)^beta; no window
    crosses from one of `towers` equal parts of an axis into another.
    """
    return _forward(x, axes, size, alpha, beta, k, towers)[0]


def _forward(x, axes, size, alpha, beta, k, towers):
    """(output, residuals for the gradient)"""
    if size < 1 or size % 2 == 0:
        raise UserError(f"size {size}: the size of a window must be odd")
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    root = jnp.sqrt(lax.rsqrt(k + alpha * window_sums(wide * wide, axes, size, towers)))
    return (wide * negative_power(root, beta)).astype(x.dtype), (x, root)


def _backward(axes, size, alpha, beta, k, towers, residuals, gradient):
    """g s^-beta - 2 alpha beta x * (sum of g x s^(-beta - 1) over the window), for the gradient g
    of the output and the scale s.
    """
    x, root = residuals
    wide, gradient = x.astype(root.dtype), gradient.astype(root.dtype)
    sums = window_sums(gradient * wide * negative_power(root, beta + 1), axes, size, towers)
    result = gradient * negative_power(root, beta) - 2 * alpha * beta * wide * sums
    return (result.astype(x.dtype),)


normalize.defvjp(_forward, _backward)


def window_sums(
    x: Float[Array, "*shape"], axes: tuple[int, ...], size: int, towers: int = 1
) -> Float[Array, "*shape"]:
    """Sums over `size` neighbors along each of the axes, with zeros beyond the borders of the axis
    and of each of its `towers` equal parts.
    """
    for axis in axes:
        x = sums_along(axis, x, size, towers)
    return x


def sums_along(
    axis: int, x: Float[Array, "*shape"], size: int, towers: int
) -> Float[Array, "*shape"]:
    """`window_sums` along one axis."""
    side, half = x.shape[axis], size // 2
    part = side // towers
    if jax.default_backend() != "cpu":
        parts = x.reshape(*x.shape[:axis], towers, part, *x.shape[axis + 1 :])
        window = [size if i == axis + 1 else 1 for i in range(parts.ndim)]
        zero, strides = np.zeros((), x.dtype), [1] * parts.ndim
        return lax.reduce_window(parts, zero, lax.add, window, strides, "SAME").reshape(x.shape)
    padded = jnp.pad(x, [(half, half) if i == axis else (0, 0) for i in range(x.ndim)])
    place = np.arange(side).reshape(side, *[1] * (x.ndim - axis - 1))
    total = 0.0
    for i in range(size):
        shifted = lax.slice_in_dim(padded, i, i + side, axis=axis)
        if towers > 1:  # an axis for the towers would make the innermost loops short
            shifted = jnp.where((place + i - half) // part == place // part, shifted, 0)
        total = total + shifted
    return total


def negative_power(root: Float[Array, "*shape"], exponent: float) -> Float[Array, "*shape"]:
    """scale^-exponent from root = scale^(-1/4). For the exponents 0.75 and 1.75 these are products
    instead of a logarithm and an exponential, accurate to 1e-6.
    """
    return root ** (int(4 * exponent) if 4 * exponent % 1 == 0 else 4 * exponent)
