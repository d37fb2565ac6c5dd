"""The fast convolutions are the plain ones: values and gradients against `lax.conv_general_dilated`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from common.conv import block_columns, convolution, cpu_convolution, masked

NHWC = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"))


def value_and_gradients(convolution, x, kernel, weight, strides=(1, 1), padding="VALID", **options):
    def loss(x, kernel):
        return jnp.sum(weight * convolution(x, kernel, strides, padding, **NHWC, **options))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, kernel)


@pytest.mark.parametrize(
    "shape, kernel_shape",
    [
        ((3, 32, 32, 1), (5, 5, 1, 6)),  # C1
        ((3, 14, 14, 6), (5, 5, 6, 16)),  # C3
        ((3, 5, 5, 16), (5, 5, 16, 120)),  # C5
        ((1, 32, 32, 3), (5, 5, 3, 6)),  # C1 on RGB images
        ((2, 9, 15, 2), (3, 5, 2, 4)),  # 11 columns: a prime number
    ],
)
def test_lenets_convolutions(shape, kernel_shape):
    assert_same(shape, kernel_shape, (1, 1), "VALID")


@pytest.mark.parametrize(
    "shape, kernel_shape, stride, padding",
    [
        ((2, 227, 227, 3), (11, 11, 3, 4), 4, [(0, 0), (0, 0)]),  # conv1: the deck, Caffe
        ((2, 224, 224, 3), (11, 11, 3, 4), 4, [(0, 3), (0, 3)]),  # the paper
        ((2, 224, 224, 3), (11, 11, 3, 4), 4, [(2, 2), (2, 2)]),  # torchvision
        ((2, 30, 27, 1), (11, 11, 1, 4), 4, "VALID"),  # the last windows end before the image does
        ((2, 17, 15, 3), (5, 3, 3, 4), 2, [(1, 0), (0, 2)]),
        ((1, 12, 12, 2), (2, 3, 2, 4), 5, [(0, 0), (0, 0)]),  # windows with gaps in between
    ],
)
def test_strided_convolutions(shape, kernel_shape, stride, padding):
    assert_same(shape, kernel_shape, (stride, stride), padding)


@pytest.mark.parametrize(
    "shape, kernel_shape, stride, padding, groups",
    [
        ((2, 13, 13, 96), (5, 5, 48, 64), 1, [(2, 2), (2, 2)], 2),  # conv2
        ((2, 9, 9, 12), (3, 3, 3, 8), 1, "VALID", 4),
        ((2, 9, 9, 6), (3, 3, 2, 9), 2, [(1, 1), (1, 1)], 3),
        ((2, 9, 9, 4), (3, 3, 1, 4), 1, "SAME", 4),
    ],
)
def test_grouped_convolutions(shape, kernel_shape, stride, padding, groups):
    assert_same(shape, kernel_shape, (stride, stride), padding, feature_group_count=groups)


def assert_same(shape, kernel_shape, strides, padding, **options):
    """Values and gradients of the fast form and of the plain one."""
    draw = np.random.default_rng(0)
    x, kernel = (jnp.asarray(draw.normal(size=s), jnp.float32) for s in (shape, kernel_shape))
    ours = cpu_convolution(x, kernel, strides, padding, **NHWC, **options)
    plain = lax.conv_general_dilated(x, kernel, strides, padding, **NHWC, **options)
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-4)
    weight = jnp.asarray(draw.normal(size=plain.shape), jnp.float32)
    for mine, theirs in zip(
        jax.tree.leaves(value_and_gradients(cpu_convolution, x, kernel, weight, strides, padding, **options)),
        jax.tree.leaves(value_and_gradients(lax.conv_general_dilated, x, kernel, weight, strides, padding, **options)),
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "shape, strides, padding, options",
    [
        ((2, 9, 9, 4), (1, 1), "SAME", {}),
        ((2, 9, 9, 4), (2, 2), "SAME", {}),
        ((2, 9, 9, 4), (1, 1), [(1, 1), (0, 0)], {}),
        ((2, 9, 9, 4), (2, 1), "VALID", {}),
        ((2, 9, 9, 4), (1, 1), "VALID", dict(rhs_dilation=(2, 2))),
        ((2, 9, 9, 4), (2, 2), [(0, 0), (0, 0)], dict(lhs_dilation=(2, 2))),
        ((2, 9, 9, 4), (1, 1), "VALID", dict(batch_group_count=2)),
        ((2, 9, 9, 48), (1, 1), "VALID", {}),  # many channels
        ((2, 9, 9, 48), (2, 2), "VALID", {}),
    ],
)
def test_everything_else_goes_to_lax(shape, strides, padding, options):
    draw = np.random.default_rng(0)
    x, kernel = jnp.asarray(draw.normal(size=shape)), jnp.asarray(draw.normal(size=(3, 3, shape[-1], 6)))
    np.testing.assert_array_equal(
        cpu_convolution(x, kernel, strides, padding, **NHWC, **options),
        lax.conv_general_dilated(x, kernel, strides, padding, **NHWC, **options),
    )


@pytest.mark.parametrize("strides, channels, groups", [((1, 1), 3, 1), ((4, 4), 3, 1), ((1, 1), 48, 1), ((1, 1), 48, 2)])
def test_bfloat16_is_added_up_in_the_type_asked_for(strides, channels, groups):
    draw = np.random.default_rng(0)
    x, kernel = (jnp.asarray(draw.normal(size=s), jnp.bfloat16) for s in ((2, 12, 12, channels), (5, 5, channels // groups, 4)))
    arguments = (strides, "VALID")
    plain = cpu_convolution(x, kernel, *arguments, feature_group_count=groups, **NHWC)
    wide = cpu_convolution(x, kernel, *arguments, feature_group_count=groups, preferred_element_type=jnp.float32, **NHWC)
    assert plain.dtype == jnp.bfloat16 and wide.dtype == jnp.float32
    exact = lax.conv_general_dilated(
        *(array.astype(jnp.float32) for array in (x, kernel)), *arguments, feature_group_count=groups, **NHWC
    )
    np.testing.assert_allclose(wide, exact, rtol=1e-5, atol=1e-4)


def test_the_backend_chooses(monkeypatch):
    for backend, expected in (("cpu", cpu_convolution), ("gpu", lax.conv_general_dilated), ("tpu", lax.conv_general_dilated)):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert convolution() is expected


def test_blocks_divide_the_columns():
    for columns in range(1, 60):
        assert columns % block_columns(columns) == 0


@pytest.mark.parametrize("function", [cpu_convolution, lax.conv_general_dilated])
def test_masked_weights_have_no_effect_and_exactly_zero_gradient(function):
    draw = np.random.default_rng(0)
    x, kernel = (
        jnp.asarray(draw.normal(size=(2, 14, 14, 6)), jnp.float32),
        jnp.asarray(draw.normal(size=(5, 5, 6, 16)), jnp.float32),
    )
    mask = (draw.uniform(size=kernel.shape) < 0.6).astype(np.float32)
    weight = jnp.asarray(draw.normal(size=(2, 10, 10, 16)), jnp.float32)
    value, (_, gradient) = value_and_gradients(masked(function, mask), x, kernel, weight)
    moved, _ = value_and_gradients(masked(function, mask), x, kernel + 7 * (1 - mask), weight)
    plain, (_, unmasked) = value_and_gradients(function, x, kernel * mask, weight)
    assert value == moved == plain
    assert (np.asarray(gradient)[mask == 0] == 0).all()
    np.testing.assert_array_equal(np.asarray(gradient)[mask == 1], np.asarray(unmasked)[mask == 1])
