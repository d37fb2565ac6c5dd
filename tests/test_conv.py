"""The fast convolutions are the plain ones: values and gradients against
`lax.conv_general_dilated`.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from common.conv import (
    MANY_CHANNELS,
    TILE_SIDES,
    banded_convolution,
    batch_last_convolution,
    block_of_outputs,
    combine,
    convolution,
    cpu_convolution,
    lax_convolution,
    masked,
    powers_of_two,
    winograd_matrices,
)

pytestmark = pytest.mark.usefixtures("compiled_quickly")

NHWC = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"))
VALID = dict(window_strides=(1, 1), padding="VALID") | NHWC


NO_PADDING = [(0, 0), (0, 0)]
in_commands = partial(pytest.param, marks=pytest.mark.commands)  # larger ones


def draws(*shapes):
    draw = np.random.default_rng(0)
    return [jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in shapes]


def values_and_gradients(convolution):
    """A program of (x, kernel, weight): the outputs, those of the forward pass of a gradient, and
    the gradients for the cotangent `weight`.
    """

    @jax.jit
    def run(x, kernel, weight):
        values, pull_back = jax.vjp(convolution, x, kernel)
        return [convolution(x, kernel), values, *pull_back(weight)]

    return run


def assert_same(fast, plain, x, kernel, rounding=1):
    """Values and gradients of both functions of (x, kernel)."""
    shape = jax.eval_shape(plain, x, kernel).shape
    weight = jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)
    mine, theirs = (values_and_gradients(f)(x, kernel, weight) for f in (fast, plain))
    for index, (ours, expected) in enumerate(zip(mine, theirs, strict=True)):
        tolerance = 1e-5 if index < 2 else 1e-4
        np.testing.assert_allclose(
            ours, expected, rtol=tolerance, atol=10 * tolerance * rounding, err_msg=str(index)
        )


@pytest.mark.parametrize(
    "shape, kernel_shape",
    [
        in_commands((32, 1, 32, 3), (5, 5, 1, 6)),  # C1
        ((14, 6, 14, 3), (5, 5, 6, 16)),  # C3
        in_commands((5, 16, 5, 3), (5, 5, 16, 120)),  # C5
        in_commands((32, 3, 32, 1), (5, 5, 3, 6)),  # C1 on RGB images
        in_commands((15, 2, 9, 2), (5, 3, 2, 4)),  # 11 rows: a prime number
    ],
)
def test_lenets_convolutions(shape, kernel_shape):
    x, kernel = draws(shape, kernel_shape)
    assert_same(banded_convolution, lax_convolution, x, kernel)
    images = x.transpose(3, 0, 2, 1)
    usual = jax.jit(partial(lax.conv_general_dilated, **VALID))(images, kernel)
    np.testing.assert_allclose(
        lax_convolution(x, kernel), usual.transpose(1, 3, 2, 0), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize(
    "shape, kernel_shape, stride, padding",
    [
        pytest.param((2, 227, 227, 3), (11, 11, 3, 4), 4, NO_PADDING, marks=pytest.mark.nightly),
        # conv1 of smaller images: the deck and Caffe, the paper, torchvision
        in_commands((2, 59, 59, 3), (11, 11, 3, 4), 4, NO_PADDING),
        ((2, 56, 56, 3), (11, 11, 3, 4), 4, [(0, 3), (0, 3)]),
        in_commands((2, 56, 56, 3), (11, 11, 3, 4), 4, [(2, 2), (2, 2)]),
        ((2, 30, 27, 1), (11, 11, 1, 4), 4, "VALID"),  # the last windows end before the image does
        ((2, 17, 15, 3), (5, 3, 3, 4), 2, [(1, 0), (0, 2)]),
        ((1, 12, 12, 2), (2, 3, 2, 4), 5, NO_PADDING),  # windows with gaps in between
        in_commands((2, 24, 24, 3), (5, 5, 3, 8), 1, [(2, 2), (2, 2)]),  # cifar18 and cifar13
        ((2, 9, 8, 3), (4, 3, 3, 4), 1, [(0, 2), (1, 0)]),  # an odd number of columns
        ((2, 9, 9, 4), (3, 2, 4, 4), 1, "SAME"),
        ((2, 9, 9, 4), (3, 3, 4, 4), 2, "SAME"),
        in_commands((2, 8, 8, 16), (5, 5, 16, 8), 1, [(2, 2), (2, 2)]),  # conv2 of small
        ((1, 5, 5, 31), (1, 1, 31, 4), 1, "VALID"),
        ((2, 6, 7, 2), (3, 3, 2, 4), 1, [(4, 0), (1, 5)]),  # outputs that see nothing but zeros
    ],
)
def test_few_channels(shape, kernel_shape, stride, padding):
    by_winograd = stride > 1 and stride**2 * shape[-1] >= MANY_CHANNELS
    assert_same_as_lax(
        shape, kernel_shape, (stride, stride), padding, ROUNDING[3] if by_winograd else 1
    )


@pytest.mark.parametrize(
    "shape, kernel_shape, stride, padding, groups",
    [
        in_commands((2, 13, 13, 96), (3, 3, 48, 64), 1, [(1, 1), (1, 1)], 2),  # conv4
        in_commands((2, 9, 9, 12), (3, 3, 3, 8), 1, "VALID", 4),
        in_commands((2, 9, 9, 6), (3, 3, 2, 9), 2, [(1, 1), (1, 1)], 3),
        in_commands((2, 9, 9, 4), (3, 3, 1, 4), 1, "SAME", 4),
    ],
)
def test_grouped_convolutions(shape, kernel_shape, stride, padding, groups):
    rounding = ROUNDING[3] if kernel_shape[2] >= MANY_CHANNELS else 1
    assert_same_as_lax(
        shape, kernel_shape, (stride, stride), padding, rounding, feature_group_count=groups
    )


def assert_same_as_lax(shape, kernel_shape, strides, padding, rounding=1, **options):
    settings = dict(window_strides=strides, padding=padding) | NHWC | options
    fast, plain = (
        partial(function, **settings) for function in (cpu_convolution, lax.conv_general_dilated)
    )
    assert_same(fast, plain, *draws(shape, kernel_shape), rounding)


@pytest.mark.parametrize(
    "shape, size, padding, options",
    [
        in_commands((2, 27, 27, 96), 5, [(2, 2), (2, 2)], {}),  # conv2
        # conv2 of the paper
        in_commands((2, 13, 13, 96), 5, [(2, 2), (2, 2)], dict(feature_group_count=2)),
        in_commands((2, 13, 13, 64), 3, [(1, 1), (1, 1)], {}),  # conv3 to conv5
        in_commands((3, 7, 10, 32), 5, "SAME", {}),
        ((3, 8, 7, 32), 3, "VALID", {}),
        in_commands((2, 9, 8, 48), 5, [(0, 1), (3, 2)], {}),
        in_commands((2, 5, 8, 48), 3, [(0, 1), (2, 2)], {}),
    ],
)
def test_winograd(shape, size, padding, options):
    kernel_shape = (size, size, shape[-1] // options.get("feature_group_count", 1), 8)
    assert_same_as_lax(shape, kernel_shape, (1, 1), padding, ROUNDING[size], **options)


ROUNDING = {3: 8, 5: 12}  # by Winograd, at most, in units of what `lax` rounds in float32


@pytest.mark.commands
@pytest.mark.parametrize("shape, size", [((2, 13, 13, 384), 3), ((2, 27, 27, 96), 5)])
def test_how_much_winograd_rounds(shape, size):
    x, kernel = draws(shape, (size, size, shape[-1], 16))
    padding = [(size // 2, size // 2)] * 2
    with jax.enable_x64(True):
        wide = (np.asarray(array, np.float64) for array in (x, kernel))
        exact = np.asarray(lax.conv_general_dilated(*wide, (1, 1), padding, **NHWC))

    def error(convolution):
        convolve = partial(convolution, window_strides=(1, 1), padding=padding, **NHWC)
        return np.sqrt(np.mean((jax.jit(convolve)(x, kernel) - exact) ** 2))

    assert error(cpu_convolution) < ROUNDING[size] * error(lax.conv_general_dilated)


@pytest.mark.usefixtures("compiled_well")
@pytest.mark.parametrize(
    "m, size", [(m, size) for size, tiles in TILE_SIDES.items() for m in tiles]
)
def test_transformations_have_the_same_bits_in_every_program(m, size):
    """Those of products and sums that are each rounded by itself: fused ones of the plain weights
    come out otherwise, up to a quarter of them.
    """
    BT, _, AT = winograd_matrices(m, size)
    arrays = draws(*[(2, 5, 7, 11)] * (m + size - 1))
    for matrix in (BT, AT):
        expected = []
        for row in matrix:
            total = np.float32(0)
            for weight, array in zip(row, arrays, strict=True):
                assert sum(powers_of_two(weight)) == weight
                for power in powers_of_two(weight):
                    assert abs(np.frexp(power)[0]) == 0.5
                    total = total + np.float32(power) * np.asarray(array)
            expected.append(total)
        np.testing.assert_array_equal(
            jax.jit(lambda arrays, matrix=matrix: combine(matrix, arrays))(arrays), expected
        )


@pytest.mark.commands
def test_the_gradient_of_a_kernel_is_summed_in_parts():
    """conv2 of cifar18: in one sum it would be off by 1e-5 of its size."""
    x, gradient = draws((64, 12, 12, 32), (64, 12, 12, 32))
    padding = [(2, 2)] * 2

    def gradient_of_kernel(convolution, dtype):
        kernel = jnp.zeros((5, 5, 32, 32), dtype)
        convolve = partial(
            convolution, x.astype(dtype), window_strides=(1, 1), padding=padding, **NHWC
        )
        gradient_of = jax.jit(lambda gradient: jax.vjp(convolve, kernel)[1](gradient)[0])
        return np.asarray(gradient_of(gradient.astype(dtype)))

    with jax.enable_x64(True):
        exact = gradient_of_kernel(lax.conv_general_dilated, jnp.float64)
    error = gradient_of_kernel(cpu_convolution, jnp.float32) - exact
    assert np.sqrt(np.mean(error**2)) < 5e-6 * np.sqrt(np.mean(exact**2))


@pytest.mark.parametrize(
    "shape, size, strides, padding, options",
    [
        ((2, 9, 9, 4), 3, (1, 1), "VALID", dict(rhs_dilation=(2, 2))),
        ((2, 9, 9, 4), 3, (2, 2), NO_PADDING, dict(lhs_dilation=(2, 2))),
        ((2, 9, 9, 4), 3, (1, 1), "VALID", dict(batch_group_count=2)),
        ((2, 9, 9, 4), 7, (1, 1), "SAME", {}),  # a wide kernel
        ((2, 9, 9, 48), 7, (1, 1), "SAME", {}),
        ((2, 9, 9, 48), 3, (2, 2), "VALID", {}),  # many channels
        ((2, 9, 9, 48), 3, (1, 1), [(3, 0), (0, 0)], {}),  # outputs that see nothing but zeros
        ((1, 9, 9, 48), 3, (1, 1), "VALID", {}),  # a single image
    ],
)
def test_everything_else_goes_to_lax(shape, size, strides, padding, options):
    arrays = draws(shape, (size, size, shape[-1], 6))
    ours, plain = (
        function(*arrays, strides, padding, **NHWC, **options)
        for function in (cpu_convolution, lax.conv_general_dilated)
    )
    np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize(
    "strides, channels, groups",
    [((1, 1), 3, 1), ((4, 4), 3, 1), ((1, 1), 48, 1), in_commands((1, 1), 48, 2)],
)
def test_bfloat16_is_added_up_in_the_type_asked_for(strides, channels, groups):
    draw = np.random.default_rng(0)
    shapes = (2, 12, 12, channels), (5, 5, channels // groups, 4)
    x, kernel = (jnp.asarray(draw.normal(size=shape), jnp.bfloat16) for shape in shapes)
    settings = VALID | dict(window_strides=strides, feature_group_count=groups)
    plain = jax.jit(partial(cpu_convolution, **settings))(x, kernel)
    wide = jax.jit(partial(cpu_convolution, preferred_element_type=jnp.float32, **settings))(
        x, kernel
    )
    assert plain.dtype == jnp.bfloat16 and wide.dtype == jnp.float32
    exact = jax.jit(partial(lax.conv_general_dilated, **settings))(
        x.astype(jnp.float32), kernel.astype(jnp.float32)
    )
    winograd = channels > 3 and groups == 1
    np.testing.assert_allclose(wide, exact, rtol=1e-5, atol=1e-4 * (ROUNDING[5] if winograd else 1))


def test_the_backend_chooses(monkeypatch):
    for backend, expected in (
        ("cpu", cpu_convolution),
        ("gpu", lax.conv_general_dilated),
        ("tpu", lax.conv_general_dilated),
    ):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert convolution() is expected
        batch_last = banded_convolution if backend == "cpu" else lax_convolution
        assert batch_last_convolution() is batch_last


def test_blocks_divide_the_outputs():
    for rows, columns in itertools.product(range(1, 60), (10, 28, 31)):
        n, m = block_of_outputs(rows, columns)
        assert rows % n == columns % m == 0


@pytest.mark.commands
@pytest.mark.parametrize("function", [banded_convolution, lax_convolution])
def test_masked_weights_have_no_effect_and_exactly_zero_gradient(function):
    x, kernel, weight = draws((14, 6, 14, 2), (5, 5, 6, 16), (10, 16, 10, 2))
    mask = (np.random.default_rng(1).uniform(size=kernel.shape) < 0.6).astype(np.float32)
    run = values_and_gradients(masked(function, mask))
    of_masked = [*map(np.array, run(x, kernel, weight))]
    moved = run(x, kernel + 7 * (1 - mask), weight)
    plain = [*map(np.array, values_and_gradients(function)(x, kernel * mask, weight))]
    assert (of_masked[-1][mask == 0] == 0).all()
    plain[-1] *= mask
    for ours, after_a_move, expected in zip(of_masked, moved, plain, strict=True):
        np.testing.assert_array_equal(ours, after_a_move)
        np.testing.assert_array_equal(ours, expected)
