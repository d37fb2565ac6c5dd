"""The CIFAR-10 networks: cuda-convnet's layer files by arithmetic, and PyTorch's layers with the
same weights.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alexnet.cifar import WEIGHT_DECAY_FACTORS, CifarNet, LocallyConnected
from common.conv import cpu_convolution
from common.errors import UserError

pytestmark = pytest.mark.usefixtures("compiled_quickly")

NETS = ("cifar18", "cifar13")


def abstract(net, **options):
    """The network without its numbers, and so without compiling anything."""
    return nnx.eval_shape(lambda: CifarNet(net, **options, rngs=nnx.Rngs(0)))


def parameters(model) -> dict[str, int]:
    """{layer: number of parameters}."""
    return {
        name: sum(leaf.size for leaf in jax.tree.leaves(layer))
        for name, layer in nnx.state(model, nnx.Param).items()
    }


def with_weights_that_show(model):
    """(graph, state): the initial weights give every image almost the same logits, so here are
    others, biases included.
    """
    draw = np.random.default_rng(0)
    graph, state = nnx.split(model)
    return graph, jax.tree.map(
        lambda p: jnp.asarray(draw.normal(size=p.shape) * 0.05, jnp.float32), state
    )


def test_parameters_of_18pct():
    assert parameters(abstract("cifar18")) == {
        "conv1": (5 * 5 * 3 + 1) * 32,
        "conv2": (5 * 5 * 32 + 1) * 32,
        "conv3": (5 * 5 * 32 + 1) * 64,
        "fc10": (3 * 3 * 64 + 1) * 10,
    }


def test_parameters_of_13pct():
    """A locally connected layer has one kernel and one bias a unit."""
    assert parameters(abstract("cifar13")) == {
        "conv1": (5 * 5 * 3 + 1) * 64,
        "conv2": (5 * 5 * 64 + 1) * 64,
        "local3": 6 * 6 * (3 * 3 * 64 + 1) * 32,
        "local4": 6 * 6 * (3 * 3 * 32 + 1) * 32,
        "fc10": (6 * 6 * 32 + 1) * 10,
    }


@pytest.mark.parametrize("lrn", ["none", "across", "within_map"])
def test_the_order_of_the_layers(lrn):
    """layers-18pct.cfg has its first ReLU behind the pool; 11pct, the sibling of 13pct, normalizes
    pool1 and conv2.
    """
    norm = lrn != "none"
    assert abstract("cifar18", lrn=lrn).order == (
        *("conv1", "pool1", "activation1", *["norm1"] * norm),
        *("conv2", "activation2", "pool2", *["norm2"] * norm),
        *("conv3", "activation3", "pool3", "fc10"),
    )
    assert abstract("cifar13", lrn=lrn).order == (
        *("conv1", "activation1", "pool1", *["norm1"] * norm),
        *("conv2", "activation2", *["norm2"] * norm, "pool2"),
        *("local3", "activation3", "local4", "activation4", "fc10"),
    )


def test_the_shapes_of_the_layers():
    shapes = {
        "cifar18": dict(
            conv1=(24, 24, 32), pool1=(12, 12, 32), conv2=(12, 12, 32), pool2=(6, 6, 32)
        )
        | dict(conv3=(6, 6, 64), pool3=(3, 3, 64), fc10=(10,)),
        "cifar13": dict(
            conv1=(24, 24, 64), pool1=(12, 12, 64), conv2=(12, 12, 64), pool2=(6, 6, 64)
        )
        | dict(local3=(6, 6, 32), local4=(6, 6, 32), fc10=(10,)),
    }
    for net in NETS:
        model = nnx.merge(*with_weights_that_show(abstract(net, lrn="across")))
        x, seen = jax.ShapeDtypeStruct((2, 24, 24, 3), jnp.float32), {}
        for name in model.order:
            x = jax.eval_shape(partial(model.layer, name), x)
            seen[name] = x.shape[1:]
        assert {name: seen[name] for name in shapes[net]} == shapes[net]


@pytest.mark.parametrize("net", NETS)
def test_other_sizes_and_classes(net):
    model = abstract(net, input_size=32, pooling="non_overlapping", num_classes=7, in_channels=1)
    images = jax.ShapeDtypeStruct((3, 32, 32, 1), jnp.float32)
    assert jax.eval_shape(nnx.merge(*with_weights_that_show(model)), images).shape == (3, 7)
    after = {"cifar18": 4 * 4 * 64, "cifar13": 8 * 8 * 32}[net]
    assert parameters(model)["fc10"] == (after + 1) * 7
    with pytest.raises(UserError, match=r"--crop_size=3 .*pool2"):
        abstract(net, input_size=3)


@pytest.mark.commands
@pytest.mark.parametrize(
    "net, deviations",
    [
        ("cifar18", dict(conv1=1e-4, conv2=0.01, conv3=0.01, fc10=0.01)),
        ("cifar13", dict(conv1=1e-4, conv2=0.01, local3=0.04, local4=0.04, fc10=0.01)),
    ],
)
def test_initial_weights(net, deviations):
    """initW of the layer files; biases 0; another seed, other weights."""
    initial = jax.jit(lambda key: nnx.state(CifarNet(net, rngs=nnx.Rngs(key)), nnx.Param))
    state, other = (initial(jax.random.key(seed)) for seed in (0, 1))
    assert state.keys() == deviations.keys()
    for name, deviation in deviations.items():
        kernel = np.asarray(state[name]["kernel"][...])
        four_standard_errors = 4 / np.sqrt(2 * kernel.size)
        assert abs(kernel.std() / deviation - 1) < four_standard_errors
        assert not np.allclose(kernel, other[name]["kernel"][...])
        assert (state[name]["bias"][...] == 0).all()


def test_weight_decay_of_the_layer_files():
    """wc of layer-params-18pct.cfg and layer-params-conv-local-13pct.cfg."""
    assert {
        name: 0.004 * factor for name, factor in WEIGHT_DECAY_FACTORS["cifar18"].items()
    } == pytest.approx(dict(conv1=0.004, conv2=0.004, conv3=0.004, fc10=1.0))
    assert {
        name: 0.004 * factor for name, factor in WEIGHT_DECAY_FACTORS["cifar13"].items()
    } == pytest.approx(dict(conv1=0.0, conv2=0.0, local3=0.004, local4=0.004, fc10=0.004))
    for net in NETS:
        assert WEIGHT_DECAY_FACTORS[net].keys() == parameters(abstract(net)).keys()


def locally_connected(x, kernel, bias):
    """Each output unit's own weights times its own 3x3 window: float64."""
    batch, height, width, inputs = x.shape
    padded = np.zeros((batch, height + 2, width + 2, inputs))
    padded[:, 1:-1, 1:-1] = x
    out = np.empty((batch, height, width, bias.shape[-1]))
    for n, i, j, f in np.ndindex(out.shape):
        window = padded[n, i : i + 3, j : j + 3]
        out[n, i, j, f] = np.sum(window * kernel[i, j, :, f].reshape(3, 3, inputs)) + bias[i, j, f]
    return out


@pytest.mark.commands
def test_locally_connected_is_a_loop_over_pixels():
    draw = np.random.default_rng(0)
    graph, state = with_weights_that_show(
        LocallyConnected(5, 4, 3, kernel_init=nnx.initializers.normal(), rngs=nnx.Rngs(0))
    )
    x, cotangent = draw.normal(size=(2, 5, 5, 4)), draw.normal(size=(2, 5, 5, 3))
    kernel, bias = (
        np.asarray(parameter[...], np.float64) for parameter in (state["kernel"], state["bias"])
    )
    layer = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    value, pull_back = jax.vjp(layer, state, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(value, locally_connected(x, kernel, bias), rtol=1e-5, atol=1e-6)

    # It is linear in each of x, kernel and bias, so a difference quotient is exact.
    by_state, by_x = pull_back(jnp.asarray(cotangent, jnp.float32))
    for gradient, change in (
        (by_x, lambda step: (x + step, kernel, bias)),
        (by_state["kernel"][...], lambda step: (x, kernel + step, bias)),
        (by_state["bias"][...], lambda step: (x, kernel, bias + step)),
    ):
        direction = draw.normal(size=gradient.shape)
        difference = locally_connected(*change(direction)) - locally_connected(x, kernel, bias)
        np.testing.assert_allclose(
            np.sum(gradient * direction), np.sum(cotangent * difference), rtol=1e-4
        )


def test_locally_connected_with_equal_kernels_is_a_convolution():
    layer = LocallyConnected(6, 4, 3, kernel_init=nnx.initializers.normal(1.0), rngs=nnx.Rngs(0))
    kernel = layer.kernel[...][0, 0]
    layer.kernel[...] = jnp.broadcast_to(kernel, (6, 6, *kernel.shape))
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))
    convolved = jax.lax.conv_general_dilated(
        x, kernel.reshape(3, 3, 4, 3), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(layer(x), convolved, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "lrn, activation",
    [
        ("none", "relu"),
        ("across", "tanh"),
        pytest.param("across", "sigmoid", marks=pytest.mark.nightly),
    ],
)
def test_18pct_is_pytorchs(torch, lrn, activation):
    """Logits and gradients against torch's layers, put together by layers-18pct.cfg."""
    numbers = dict(lrn=lrn, lrn_size=3, lrn_alpha=0.5, lrn_k=1.5, activation=activation)
    graph, state = with_weights_that_show(
        abstract("cifar18", convolution=cpu_convolution, **numbers)
    )
    functional = torch.nn.functional
    pairs = {
        name: [np.array(layer[part][...]) for part in ("kernel", "bias")]
        for name, layer in state.items()
    }
    weights = {
        name: [torch.tensor(array, requires_grad=True) for array in pair]
        for name, pair in pairs.items()
    }

    def conv(name, x):
        kernel, bias = weights[name]
        return functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=2)

    act = getattr(torch, activation)
    norm = (
        torch.nn.LocalResponseNorm(3, alpha=0.5, beta=0.75, k=1.5)
        if lrn == "across"
        else torch.nn.Identity()
    )
    average = dict(kernel_size=3, stride=2, ceil_mode=True, count_include_pad=False)
    images = np.random.default_rng(1).normal(size=(2, 24, 24, 3)).astype(np.float32) * 3
    x = torch.tensor(images).permute(0, 3, 1, 2)
    x = norm(act(functional.max_pool2d(conv("conv1", x), 3, 2, ceil_mode=True)))
    x = norm(functional.avg_pool2d(act(conv("conv2", x)), **average))
    x = functional.avg_pool2d(act(conv("conv3", x)), **average)
    kernel, bias = weights["fc10"]
    rows_columns_maps = x.permute(0, 2, 3, 1)  # the order of the weights here
    logits = rows_columns_maps.reshape(2, -1) @ kernel + bias
    cotangent = np.random.default_rng(2).normal(size=(2, 10)).astype(np.float32)
    logits.backward(torch.tensor(cotangent))

    @jax.jit
    def logits_and_gradients(state):
        logits, pull_back = jax.vjp(lambda state: nnx.merge(graph, state)(images), state)
        return logits, *pull_back(jnp.asarray(cotangent))

    ours, gradients = logits_and_gradients(state)
    np.testing.assert_allclose(ours, logits.detach().numpy(), rtol=1e-4, atol=1e-5)
    for name, (kernel, bias) in weights.items():
        for part, theirs in (("kernel", kernel), ("bias", bias)):
            scale = float(abs(theirs.grad).max())
            np.testing.assert_allclose(
                gradients[name][part][...], theirs.grad.numpy(), rtol=1e-3, atol=1e-4 * scale
            )


def test_13pct_pools_maxima():
    """Both pools of layers-conv-local-13pct.cfg have pool=max; the last two of layers-18pct.cfg
    have pool=avg.
    """
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 1)).astype(np.float32)
    reductions = {"cifar18": [np.max, np.mean, np.mean], "cifar13": [np.max, np.max]}
    for net in NETS:
        model = abstract(net)
        for number, reduce in enumerate(reductions[net], start=1):
            pooled = jax.jit(partial(model.layer, f"pool{number}"))(x)
            np.testing.assert_allclose(pooled[0, 0, 0, 0], reduce(x[0, :3, :3]), rtol=1e-6)


@pytest.mark.commands
@pytest.mark.parametrize("net", NETS)
def test_one_image_does_not_see_the_others(net):
    graph, state = with_weights_that_show(abstract(net, lrn="across"))
    logits = jax.jit(lambda images, keys: nnx.merge(graph, state)(images, keys))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 24, 24, 3)) * 3, jnp.float32)
    keys = jax.random.split(jax.random.key(0), 4)
    before = logits(images, keys)  # keys are there for AlexNet's sake
    after = logits(images.at[1:].multiply(-2), keys[::-1])
    np.testing.assert_allclose(before[0], after[0], rtol=1e-5, atol=1e-5)
    assert abs(before[1:] - after[1:]).min() > 1e-4  # the logits do depend on the image
