"""Local response normalization, and its neighbour in the 2012 code that the paper never mentions.

Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks,
2012, section 3.3. An activity a becomes

    b = a / (k + alpha * sum of a_j^2 over the `size` activities around it)^beta

where the window is cut off at the borders. The paper's formula takes alpha as it is, with k = 2;
the 2012 code, Caffe (k = 1), and PyTorch (k = 1 unless told) divide alpha by the number of
activities in a whole window: by `size` across channels, by size^2 within a map. The same alpha =
1e-4 thus means 2e-5 there.

On a CPU the sums are additions of shifted arrays, and everywhere the gradient is written by hand:
it sums once more where JAX's own would take the sums apart again, and keeps the inverse fourth root
of the scale, of which all powers are products. So a batch of 32 x 55 x 55 x 96 takes 15 ms forward
and backward on two cores, with JAX's own gradient 65 ms; with the sums by `lax.reduce_window`, as
on other backends, 20 ms and 26 ms.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from common.errors import UserError


def local_response_normalization(
    x: jax.Array,
    *,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    alpha_over_n: bool = False,
    towers: int = 1,
) -> jax.Array:
    """(..., channels) -> the same shape and dtype: each channel normalized by `size` channels
    around it, itself the middle one.

    Sums are float32 whatever the dtype of x. Defaults are the paper's.

    Args:
      size: channels in a window, odd; n in the paper.
      alpha_over_n: alpha / size takes the place of alpha.
      towers: the channels fall into so many equal groups, and no window crosses from one to the
        next. The paper's network ran on two devices, where each normalized its own 48 and 128 maps;
        Caffe normalizes across all 96 and 256.
    """
    if x.shape[-1] % towers:
        raise UserError(f"{x.shape[-1]} channels do not divide into {towers} towers")
    grouped = x.reshape(*x.shape[:-1], towers, x.shape[-1] // towers)
    scale = alpha / size if alpha_over_n else alpha
    return normalize(grouped, (grouped.ndim - 1,), size, scale, beta, k).reshape(x.shape)


def within_map_normalization(
    x: jax.Array,
    *,
    size: int = 5,
    alpha: float = 1e-3,
    beta: float = 0.75,
    k: float = 1.0,
    alpha_over_n: bool = True,
) -> jax.Array:
    """(B, H, W, maps) -> the same shape and dtype: each pixel normalized by the size x size pixels
    around it in its own map.

    cuda-convnet's `rnorm`, which the 2012 code has once more after conv2's normalization. Its
    defaults, too.

    Args:
      size: pixels of a window's side, odd.
      alpha_over_n: alpha / size^2 takes the place of alpha, also for windows that a border cuts.
    """
    return normalize(x, (1, 2), size, alpha / size**2 if alpha_over_n else alpha, beta, k)


def normalization(
    lrn: str, *, size: int, alpha: float, alpha_over_n: bool, k: float, towers: int = 1
):
    """The function x -> x that the flags --lrn and --lrn_* name, with the paper's beta of 0.75;
    None for 'none'.

    lrn: 'within_tower' (windows stay in one of the `towers`), 'across' (windows run over all
    channels), 'within_map' or 'none'.
    """
    if lrn == "none":
        return None
    if size < 1 or size % 2 == 0:
        raise UserError(f"--lrn_size={size}: a window has a middle, so its size is odd")
    options = dict(size=size, alpha=alpha, beta=0.75, k=k, alpha_over_n=alpha_over_n)
    if lrn == "within_map":
        return functools.partial(within_map_normalization, **options)
    return functools.partial(
        local_response_normalization, towers=towers if lrn == "within_tower" else 1, **options
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def normalize(
    x: jax.Array, axes: tuple[int, ...], size: int, alpha: float, beta: float, k: float
) -> jax.Array:
    """x / (k + alpha * sum of x^2 over `size` neighbours along each of the axes)^beta."""
    return _normalize_and_keep(x, axes, size, alpha, beta, k)[0]


def _normalize_and_keep(x, axes, size, alpha, beta, k):
    """The same, and what the gradient needs."""
    if size < 1 or size % 2 == 0:
        raise UserError(f"size {size}: a window has a middle, so its size is odd")
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    root = jnp.sqrt(lax.rsqrt(k + alpha * window_sums(wide * wide, axes, size)))
    return (wide * negative_power(root, beta)).astype(x.dtype), (x, root)


def _gradient(axes, size, alpha, beta, k, kept, gradient):
    """By x: g s^-beta - 2 alpha beta x * (sum of g x s^(-beta - 1) over the window), g by the
    output and s the scale.
    """
    x, root = kept
    wide, gradient = x.astype(root.dtype), gradient.astype(root.dtype)
    from_neighbours = window_sums(gradient * wide * negative_power(root, beta + 1), axes, size)
    return (
        (gradient * negative_power(root, beta) - 2 * alpha * beta * wide * from_neighbours).astype(
            x.dtype
        ),
    )


normalize.defvjp(_normalize_and_keep, _gradient)


def window_sums(x: jax.Array, axes: tuple[int, ...], size: int) -> jax.Array:
    """Sums over `size` neighbours along each of the axes, zeros beyond the borders."""
    for axis in axes:
        around = [(size // 2, size // 2) if i == axis else (0, 0) for i in range(x.ndim)]
        if jax.default_backend() == "cpu":
            padded = jnp.pad(x, around)
            x = sum(lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis) for i in range(size))
        else:
            window = [size if i == axis else 1 for i in range(x.ndim)]
            x = lax.reduce_window(x, np.zeros((), x.dtype), lax.add, window, [1] * x.ndim, around)
    return x


def negative_power(root: jax.Array, exponent: float) -> jax.Array:
    """scale^-exponent from root = scale^(-1/4): for the exponents 0.75 and 1.75 products instead of
    a logarithm and an exponential, exact to 1e-6.
    """
    return root ** (int(4 * exponent) if 4 * exponent % 1 == 0 else 4 * exponent)
