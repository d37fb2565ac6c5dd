"""Local response normalization, in the forms for CPU and GPU, against section 3.3 as float64 loops,
and PyTorch's.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet.lrn import local_response_normalization, normalization, within_map_normalization
from common.errors import UserError

pytestmark = pytest.mark.usefixtures("backend", "compiled_quickly")


def by_the_formula(a, size, alpha, beta, k, towers=1):
    """Section 3.3, channel by channel: (..., N) float64. `alpha` is what multiplies the sum."""
    maps = a.shape[-1] // towers
    b = np.empty_like(a)
    for tower in range(towers):
        first, last = tower * maps, (tower + 1) * maps - 1
        for i in range(first, last + 1):
            window = range(max(first, i - size // 2), min(last, i + size // 2) + 1)
            b[..., i] = a[..., i] / (k + alpha * sum(a[..., j] ** 2 for j in window)) ** beta
    return b


def within_maps(a, size, alpha, beta, k):
    """cuda-convnet's rnorm, pixel by pixel: (B, H, W, maps) float64."""
    b = np.empty_like(a)
    for y, x in np.ndindex(a.shape[1:3]):
        rows, columns = (slice(max(0, i - size // 2), i + size // 2 + 1) for i in (y, x))
        b[:, y, x] = a[:, y, x] / (k + alpha * (a[:, rows, columns] ** 2).sum(axis=(1, 2))) ** beta
    return b


def slope(function, x, direction):
    """The derivative of the float64 `function` at x along `direction`."""
    step = 1e-5
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


def check(ours, formula, shape, scale=3.0):
    """Values, and the derivative along some directions, of `ours` in float32 and of `formula` in
    float64.
    """
    draw = np.random.default_rng(0)
    x = draw.normal(size=shape) * scale

    @jax.jit
    def run(x, cotangent):
        value, pull_back = jax.vjp(ours, x)
        return ours(x), value, *pull_back(cotangent)

    for _ in range(3):
        direction, cotangent = draw.normal(size=(2, *shape))
        *values, gradient = run(np.float32(x), np.float32(cotangent))
        for value in values:
            assert value.shape == shape and value.dtype == jnp.float32
            np.testing.assert_allclose(value, formula(x), rtol=2e-6, atol=1e-7)
        pushed = cotangent * slope(formula, x, direction)
        error = np.sum(np.asarray(gradient, np.float64) * direction) - np.sum(pushed)
        assert abs(error) < 2e-6 * np.sqrt(np.sum(pushed**2))


PAPER = 1e-4, 0.75, 2.0
LARGE, ROOT = (0.3, 0.75, 1.0), (0.3, 0.5, 0.1)


@pytest.mark.parametrize(
    "shape, size, towers, constants",
    [
        ((2, 3, 3, 96), 5, 1, PAPER),
        ((2, 3, 3, 96), 5, 2, LARGE),
        ((4, 7), 3, 1, ROOT),  # a number that is odd, and no image
        ((2, 2, 2, 3), 5, 1, LARGE),  # fewer channels than a window
        ((2, 2, 2, 1), 9, 1, ROOT),
        ((2, 2, 2, 6), 9, 2, PAPER),
        ((3, 8), 1, 1, LARGE),
    ],
)
def test_it_is_the_formula(shape, size, towers, constants):
    alpha, beta, k = constants
    check(
        lambda x: local_response_normalization(
            x, size=size, alpha=alpha, beta=beta, k=k, towers=towers
        ),
        lambda x: by_the_formula(x, size, alpha, beta, k, towers),
        shape,
    )


def test_the_defaults_are_the_papers():
    """k = 2, n = 5, alpha = 1e-4, beta = 0.75, with activities so large that each of them shows."""
    check(
        local_response_normalization,
        lambda x: by_the_formula(x, 5, 1e-4, 0.75, 2.0),
        (2, 4, 4, 12),
        scale=200.0,
    )


def test_alpha_over_n_divides_by_the_whole_window():
    """Also at the borders, where a window has fewer than `size` channels, size^2 pixels."""
    check(
        lambda x: local_response_normalization(x, size=5, alpha=0.5, k=1.0, alpha_over_n=True),
        lambda x: by_the_formula(x, 5, 0.1, 0.75, 1.0),
        (2, 3, 3, 8),
    )
    check(
        lambda x: within_map_normalization(x, size=3, alpha=0.9, k=1.0, alpha_over_n=True),
        lambda x: within_maps(x, 3, 0.1, 0.75, 1.0),
        (2, 4, 6, 2),
    )


@pytest.mark.parametrize(
    "shape, size", [((2, 6, 5, 3), 3), ((1, 7, 7, 2), 5), ((2, 1, 3, 1), 5), ((2, 3, 3, 2), 1)]
)
def test_within_a_map(shape, size):
    check(
        lambda x: within_map_normalization(
            x, size=size, alpha=0.2, beta=0.75, k=1.5, alpha_over_n=False
        ),
        lambda x: within_maps(x, size, 0.2, 0.75, 1.5),
        shape,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "size, alpha, beta, k", [(5, 1e-4, 0.75, 2.0), (3, 0.7, 0.75, 1.0), (9, 0.7, 0.6, 0.5)]
)
@pytest.mark.parametrize("alpha_over_n", [True, False])
def test_pytorch_has_alpha_over_n(torch, size, alpha, beta, k, alpha_over_n):
    draw = np.random.default_rng(0)
    x, cotangent = (draw.normal(size=(2, 4, 5, 16)).astype(np.float32) * 3 for _ in range(2))
    x_torch = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    theirs = torch.nn.LocalResponseNorm(size, alpha if alpha_over_n else alpha * size, beta, k)(
        x_torch
    )
    theirs.backward(torch.tensor(cotangent.transpose(0, 3, 1, 2)))

    @jax.jit
    def ours(x):
        return local_response_normalization(
            x, size=size, alpha=alpha, beta=beta, k=k, alpha_over_n=alpha_over_n
        )

    value, pull_back = jax.vjp(ours, x)
    np.testing.assert_allclose(value, theirs.detach().numpy().transpose(0, 2, 3, 1), rtol=1e-5)
    (gradient,) = pull_back(cotangent)
    np.testing.assert_allclose(
        gradient, x_torch.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-5
    )


def test_at_zero_everything_is_finite():
    zeros = jnp.zeros((1, 2, 2, 8))
    value, pull_back = jax.vjp(jax.jit(lambda x: local_response_normalization(x)), zeros)
    assert (value == 0).all()
    np.testing.assert_allclose(pull_back(jnp.ones_like(zeros))[0], 2**-0.75, rtol=1e-6)


def test_bfloat16_is_summed_in_float32():
    """61 channels added up in bfloat16 stop growing; here only the result is rounded, by 2^-8 at
    most.
    """
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, size=(5, 61)), jnp.bfloat16)
    options = dict(size=121, alpha=1.0, beta=0.75, k=1.0)
    ours = jax.jit(functools.partial(local_response_normalization, **options))
    value = ours(x)
    assert value.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(value, np.float64),
        by_the_formula(np.asarray(x, np.float64), **options),
        rtol=2**-8,
    )
    gradient = jax.eval_shape(jax.grad(lambda x: jnp.sum(ours(x).astype(jnp.float32))), x)
    assert gradient.dtype == jnp.bfloat16


def test_the_flags_choose_the_function():
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 8))
    numbers = dict(size=3, alpha=0.9, alpha_over_n=True, k=1.0)

    def outputs(lrn):
        return jax.jit(normalization(lrn, towers=2, **numbers))(np.float32(x))

    assert normalization("none", towers=2, **numbers) is None
    np.testing.assert_allclose(outputs("across"), by_the_formula(x, 3, 0.3, 0.75, 1.0), rtol=1e-5)
    np.testing.assert_allclose(
        outputs("within_tower"), by_the_formula(x, 3, 0.3, 0.75, 1.0, towers=2), rtol=1e-5
    )
    np.testing.assert_allclose(outputs("within_map"), within_maps(x, 3, 0.1, 0.75, 1.0), rtol=1e-5)


def test_what_it_cannot_do_is_said():
    x = jnp.ones((1, 4, 4, 6))
    with pytest.raises(UserError, match="size 4"):
        local_response_normalization(x, size=4)
    with pytest.raises(UserError, match="size 2"):
        within_map_normalization(x, size=2)
    with pytest.raises(UserError, match=r"6 .*4 towers"):
        local_response_normalization(x, towers=4)
