"""The fast convolutions are the plain ones: values and gradients against `lax.conv_general_dilated`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from common.conv import banded_convolution, block_columns, masked

NHWC = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"))


def value_and_gradients(convolution, x, kernel, weight, **options):
    def loss(x, kernel):
        return jnp.sum(weight * convolution(x, kernel, (1, 1), "VALID", **NHWC, **options))

    return jax.value_and_grad(loss, argnums=(0, 1))(x, kernel)


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
def test_banded_convolution_is_the_convolution(shape, kernel_shape):
    draw = np.random.default_rng(0)
    x, kernel = (jnp.asarray(draw.normal(size=s), jnp.float32) for s in (shape, kernel_shape))
    out = (shape[0], shape[1] - kernel_shape[0] + 1, shape[2] - kernel_shape[1] + 1, kernel_shape[3])
    weight = jnp.asarray(draw.normal(size=out), jnp.float32)
    np.testing.assert_allclose(
        banded_convolution(x, kernel, (1, 1), "VALID", **NHWC),
        lax.conv_general_dilated(x, kernel, (1, 1), "VALID", **NHWC),
        rtol=1e-5,
        atol=1e-4,
    )
    for ours, plain in zip(
        jax.tree.leaves(value_and_gradients(banded_convolution, x, kernel, weight)),
        jax.tree.leaves(value_and_gradients(lax.conv_general_dilated, x, kernel, weight)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "strides, padding, groups, dilation",
    [
        ((2, 2), "VALID", 1, 1),
        ((1, 1), "SAME", 1, 1),
        ((1, 1), [(1, 1), (0, 0)], 1, 1),
        ((1, 1), "VALID", 2, 1),
        ((1, 1), "VALID", 1, 2),
    ],
)
def test_what_it_is_not_written_for_goes_to_lax(strides, padding, groups, dilation):
    draw = np.random.default_rng(0)
    x, kernel = jnp.asarray(draw.normal(size=(2, 9, 9, 4))), jnp.asarray(draw.normal(size=(3, 3, 4 // groups, 6)))
    options = NHWC | dict(feature_group_count=groups, rhs_dilation=(dilation, dilation))
    np.testing.assert_array_equal(
        banded_convolution(x, kernel, strides, padding, **options),
        lax.conv_general_dilated(x, kernel, strides, padding, **options),
    )


def test_blocks_divide_the_columns():
    for columns in range(1, 60):
        assert columns % block_columns(columns) == 0


@pytest.mark.parametrize("convolution", [banded_convolution, lax.conv_general_dilated])
def test_masked_weights_have_no_effect_and_exactly_zero_gradient(convolution):
    draw = np.random.default_rng(0)
    x, kernel = (
        jnp.asarray(draw.normal(size=(2, 14, 14, 6)), jnp.float32),
        jnp.asarray(draw.normal(size=(5, 5, 6, 16)), jnp.float32),
    )
    mask = (draw.uniform(size=kernel.shape) < 0.6).astype(np.float32)
    weight = jnp.asarray(draw.normal(size=(2, 10, 10, 16)), jnp.float32)
    value, (_, gradient) = value_and_gradients(masked(convolution, mask), x, kernel, weight)
    moved, _ = value_and_gradients(masked(convolution, mask), x, kernel + 7 * (1 - mask), weight)
    plain, (_, unmasked) = value_and_gradients(convolution, x, kernel * mask, weight)
    assert value == moved == plain
    assert (np.asarray(gradient)[mask == 0] == 0).all()
    np.testing.assert_array_equal(np.asarray(gradient)[mask == 1], np.asarray(unmasked)[mask == 1])
