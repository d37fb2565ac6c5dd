"""Forms of the operations that take most of the training time: those in use, and others tried in
their place, forward and backward.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet.lrn import local_response_normalization
from common import conv
from scripts.benchmark import sets
from scripts.benchmark.machine import copy_bandwidth, matmul_peak
from scripts.benchmark.measure import ANOTHER_FORM, Case
from scripts.benchmark.ops import cotangent, max_pool, shape_text, with_gradients
from scripts.benchmark.reading import reading_attempts
from scripts.benchmark.timing import Setting, span, timed

CONTAINS = (
    "Forward and all gradients, of arrays in memory; convolutions of images without the gradient "
    "of the images."
)


class Layer(NamedTuple):
    """A convolution of a network: `inputs` (B, H, W, in), a square kernel, padding on all sides."""

    name: str
    inputs: tuple[int, int, int, int]
    size: int
    features: int
    stride: int = 1
    padding: int = 0
    groups: int = 1


LAYERS = (
    Layer("deck conv1", (32, 227, 227, 3), 11, 96, stride=4),
    Layer("deck conv2", (32, 27, 27, 96), 5, 256, padding=2),
    Layer("paper conv2 in two groups", (32, 27, 27, 96), 5, 256, padding=2, groups=2),
    Layer("deck conv3", (32, 13, 13, 256), 3, 384, padding=1),
    Layer("deck conv4", (32, 13, 13, 384), 3, 384, padding=1),
    Layer("deck conv5", (32, 13, 13, 384), 3, 256, padding=1),
    Layer("cifar18 conv1", (128, 24, 24, 3), 5, 32, padding=2),
    Layer("cifar18 conv2", (128, 12, 12, 32), 5, 32, padding=2),
    Layer("cifar18 conv3", (128, 6, 6, 32), 5, 64, padding=2),
)


def attempts(setting: Setting) -> Iterator[Case]:
    """The operations that take most of the time: the forms in use, and others in their place."""
    random = np.random.default_rng(0)

    def array(*shape: int) -> jax.Array:
        return jnp.asarray(random.standard_normal(shape, np.float32))

    yield from lenet_attempts(setting, array)
    for layer in LAYERS:
        yield from layer_attempts(setting, array, layer)
    for forms, name, arrays, shapes in (
        (lrn_forms, "LRN", 5, ((32, 55, 55, 96),)),
        (pooling_forms, "max pooling 3/2", 3.5, ((128, 33, 33, 32), (32, 55, 55, 96))),
    ):
        for images, *shape in shapes:
            x = array(2 if setting.smallest else images, *shape)
            limit_s = arrays * x.nbytes / copy_bandwidth()
            for form, function in forms(x.shape[-1]).items():
                yield attempt(setting, f"{name}, {shape_text(x)}: {form}", function, (x,), limit_s)
    for record_format, records in sets.prepare_images(setting).items():
        yield from reading_attempts(setting, record_format, records)


def lenet_attempts(setting: Setting, array: Callable) -> Iterator[Case]:
    """LeNet-5's C1 and C3, in a loop over steps as in its training."""
    steps, batch_size = (2, 2) if setting.smallest else (4, 128)
    for name, side, channels, features in (("C1", 32, 1, 6), ("C3", 14, 6, 16)):
        x = array(steps, side, channels, side, batch_size)
        kernel = array(5, 5, channels, features)
        first = name == "C1"
        uses = steps * batch_size * (side - 4) ** 2 * kernel.size
        for form, convolve in (
            ("in use", conv.batch_last_convolution()),
            ("lax", conv.lax_convolution),
        ):

            def function(x, kernel, convolve=convolve):
                return lax.map(lambda x: convolve(x, kernel), x)

            shape = f"{batch_size}x{side}x{side}x{channels}"
            yield attempt(
                setting,
                f"LeNet-5 {name} for {steps} batches, {shape}: {form}",
                function,
                (x, kernel),
                (2 if first else 3) * 2 * uses / matmul_peak(),
                (1,) if first else (0, 1),
            )


def layer_attempts(setting: Setting, array: Callable, layer: Layer) -> Iterator[Case]:
    """A layer's convolution; conv1 without the gradient of the images."""
    batch_size, *shape = layer.inputs
    x = array(2 if setting.smallest else batch_size, *shape)
    kernel = array(layer.size, layer.size, x.shape[-1] // layer.groups, layer.features)
    side = (x.shape[1] + 2 * layer.padding - layer.size) // layer.stride + 1  # of the outputs
    first = layer.name.endswith("conv1")
    limit_s = (2 if first else 3) * 2 * len(x) * side**2 * kernel.size / matmul_peak()
    for form, function in convolution_forms(layer.stride, layer.padding, layer.groups).items():
        name = f"{layer.name}, {shape_text(x)}: {form}"
        yield attempt(setting, name, function, (x, kernel), limit_s, (1,) if first else (0, 1))


def attempt(
    setting: Setting,
    name: str,
    function: Callable,
    arrays: tuple,
    limit_s: float,
    argnums: tuple[int, ...] = (0,),
    no_peer: str = ANOTHER_FORM,
) -> Case:
    """Forward and the gradients with respect to the arguments `argnums`."""

    @jax.jit
    def run(cotangent, *arrays):
        def of_some(*some):
            given = dict(zip(argnums, some, strict=True))
            return function(*(given.get(i, array) for i, array in enumerate(arrays)))

        return with_gradients(of_some)(cotangent, *(arrays[i] for i in argnums))

    ours = span(timed(setting, functools.partial(run, cotangent(function, *arrays), *arrays)), 1e-3)
    return Case(((name, "ms"),), ours, {}, CONTAINS, (1e3 * limit_s,), no_peer)


def convolution_forms(stride: int, padding: int, groups: int) -> dict[str, Callable]:
    """Functions of (x, kernel)."""
    options = dict(
        window_strides=(stride, stride),
        padding=((padding, padding),) * 2,
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

    def windows(x, kernel):
        """The inputs of each pixel of the kernel, (B, H', W', in) each."""
        x = jnp.pad(x, ((0, 0), *options["padding"], (0, 0)))
        height, width = (
            side - size + 1 for side, size in zip(x.shape[1:3], kernel.shape[:2], strict=True)
        )
        return [
            x[:, i : i + height : stride, j : j + width : stride]
            for i, j in np.ndindex(*kernel.shape[:2])
        ]

    def patches(x, kernel):
        x = jnp.concatenate(windows(x, kernel), axis=-1)
        return x @ kernel.reshape(-1, kernel.shape[-1])

    def pixel_by_pixel(x, kernel):
        weights = kernel.reshape(-1, *kernel.shape[2:])
        return sum(seen @ w for seen, w in zip(windows(x, kernel), weights, strict=True))

    forms = {
        "in use": functools.partial(conv.convolution(), **options),
        "lax": functools.partial(lax.conv_general_dilated, **options),
    }
    if groups == 1:
        forms["all patches in one product"] = patches
    if groups == 1 and stride == 1:
        forms["a product for each pixel of the kernel"] = pixel_by_pixel
    return forms


def lrn_forms(channels: int) -> dict[str, Callable]:
    """Across five maps, with the paper's constants."""
    distances = np.subtract.outer(np.arange(channels), np.arange(channels))
    band = jnp.asarray(np.abs(distances) <= 2, jnp.float32)

    def shifted(x):
        squares = jnp.pad(x * x, ((0, 0), (0, 0), (0, 0), (2, 2)))
        return sum(squares[..., i : i + channels] for i in range(5))

    def windows(x):
        padding = ((0, 0),) * 3 + ((2, 2),)
        return lax.reduce_window(x * x, np.float32(0), lax.add, (1, 1, 1, 5), (1,) * 4, padding)

    def normalized(sums):
        def function(x):
            root = lax.rsqrt(2 + 1e-4 * sums(x))
            return x * root * jnp.sqrt(root)

        return function

    return {
        "in use": local_response_normalization,
        "lax.reduce_window": normalized(windows),
        "shifted additions": normalized(shifted),
        "a product with a banded matrix": normalized(lambda x: (x * x) @ band),
        "a power instead of roots": lambda x: x * (2 + 1e-4 * shifted(x)) ** -0.75,
        "an image at a time, in the cache": lambda x: lax.map(local_response_normalization, x),
    }


def pooling_forms(channels: int) -> dict[str, Callable]:
    """Overlapping maxima of images with an odd number of rows and columns."""

    def slices(x):  # nine, each (B, H', W', C)
        height, width = (side - 2 for side in x.shape[1:3])
        return [x[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]

    def along_axes(x):
        for axis in (1, 2):
            end = x.shape[axis] - 2
            parts = (lax.slice_in_dim(x, i, i + end, 2, axis) for i in range(3))
            x = functools.reduce(jnp.maximum, parts)
        return x

    def one_winner(x):
        @jax.custom_vjp
        def pool(x):
            return functools.reduce(jnp.maximum, slices(x))

        def backward(saved, gradient):
            x, maxima = saved
            taken, parts = jnp.zeros(maxima.shape, bool), []
            for seen in slices(x):
                wins = (seen == maxima) & ~taken
                parts.append(jnp.where(wins, gradient, 0))
                taken |= wins
            return jax.linear_transpose(slices, x)(parts)

        pool.defvjp(lambda x: ((maxima := pool(x)), (x, maxima)), backward)
        return pool(x)

    return {
        "in use": max_pool,
        "lax.reduce_window": lambda x: lax.reduce_window(
            x, np.float32(-np.inf), lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID"
        ),
        "three slices along each axis": along_axes,
        "nine slices": lambda x: functools.reduce(jnp.maximum, slices(x)),
        "nine slices, the gradient to the first": one_winner,
    }
