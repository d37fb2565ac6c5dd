"""Pooling against loops over windows, and against PyTorch, in both of its forms: a CPU's and
`lax.reduce_window`.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet.pooling import average_pool, max_pool

pytestmark = pytest.mark.usefixtures("compiled_quickly")

NUMPY = {max_pool: np.max, average_pool: np.mean}


def by_windows(x, reduce, overlapping):
    """(B, H, W, C) -> (B, H // 2, W // 2, C): NumPy cuts off slices at the border as the 2012 code
    does its windows.
    """
    size = 3 if overlapping else 2
    out = np.empty((len(x), x.shape[1] // 2, x.shape[2] // 2, x.shape[3]))
    for i, j in np.ndindex(out.shape[1:3]):
        out[:, i, j] = reduce(x[:, 2 * i : 2 * i + size, 2 * j : 2 * j + size], axis=(1, 2))
    return out


@pytest.mark.parametrize("pool", [max_pool, average_pool])
@pytest.mark.parametrize("overlapping", [True, False])
def test_each_window(backend, pool, overlapping):
    shapes = [(2, 13, 13, 3), (2, 6, 6, 3), (1, 12, 7, 2), (1, 2, 3, 2), (3, 8, 2, 1)]
    draw = np.random.default_rng(0)
    # All below the zeros that a careless border would add.
    images = [draw.normal(size=shape) - 5 for shape in shapes]
    pools = jax.jit(lambda *images: [pool(x, overlapping=overlapping) for x in images])
    for x, ours in zip(images, pools(*map(np.float32, images)), strict=True):
        np.testing.assert_allclose(ours, by_windows(x, NUMPY[pool], overlapping), rtol=1e-6)


@pytest.mark.parametrize("sizes", [(55, 27, 13, 6), (32, 16, 8, 4), (24, 12, 6, 3)])
@pytest.mark.parametrize("overlapping", [True, False])
def test_the_sizes_of_the_networks(backend, sizes, overlapping):
    """Of the paper and of cuda-convnet's CIFAR-10 networks."""
    for (before, after), pool in itertools.product(itertools.pairwise(sizes), NUMPY):
        x = jax.ShapeDtypeStruct((1, before, before, 2), jnp.float32)
        pooled = jax.eval_shape(partial(pool, overlapping=overlapping), x)
        assert pooled.shape == (1, after, after, 2)


@pytest.mark.slow
@pytest.mark.parametrize("size", [13, 12])
@pytest.mark.parametrize("overlapping", [True, False])
def test_values_and_gradients_are_pytorchs(backend, torch, size, overlapping):
    functional = torch.nn.functional
    windows = dict(kernel_size=3 if overlapping else 2, stride=2, ceil_mode=overlapping)
    theirs = {
        max_pool: partial(functional.max_pool2d, **windows),
        average_pool: partial(functional.avg_pool2d, **windows, count_include_pad=False),
    }
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2, size, size, 3)).astype(np.float32)
    cotangent = draw.normal(size=(2, size // 2, size // 2, 3)).astype(np.float32)
    for pool, pool_torch in theirs.items():
        x_torch = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
        expected = pool_torch(x_torch)
        expected.backward(torch.tensor(cotangent.transpose(0, 3, 1, 2)))
        pooled = jax.jit(partial(pool, overlapping=overlapping))  # as in a training step
        value, pull_back = jax.vjp(pooled, jnp.asarray(x))
        for ours, tensor in ((value, expected.detach()), (pull_back(cotangent)[0], x_torch.grad)):
            np.testing.assert_allclose(
                ours, tensor.numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6
            )


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 6, 7])
@pytest.mark.parametrize("overlapping", [True, False])
def test_of_pixels_that_share_a_maximum_the_first_has_the_gradient(
    backend, torch, size, overlapping
):
    draw = np.random.default_rng(0)
    x = draw.integers(0, 2, size=(8, size, size, 3)).astype(np.float32)
    x_torch = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    torch.nn.functional.max_pool2d(
        x_torch, 3 if overlapping else 2, 2, ceil_mode=overlapping
    ).sum().backward()
    total = jax.jit(lambda x: jnp.sum(max_pool(x, overlapping=overlapping)))
    gradient = jax.grad(total)(jnp.asarray(x))
    np.testing.assert_array_equal(gradient, x_torch.grad.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize("pool", [max_pool, average_pool])
def test_bfloat16(backend, pool):
    # Sums of nine of these are exact.
    x = np.random.default_rng(0).integers(0, 4, size=(1, 6, 6, 2)) * 12.0
    ours = jax.jit(partial(pool, overlapping=True))(jnp.asarray(x, jnp.bfloat16))
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(ours, np.float64), by_windows(x, NUMPY[pool], True), rtol=2**-8
    )
