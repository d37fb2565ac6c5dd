"""LeNet-5 against the paper's numbers and the lecture deck's, and against independent
implementations.
"""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from common.conv import batch_last_convolution
from lenet.codes import digit_codes
from lenet.config import Config
from lenet.connections import C3_TABLE, c3_connections, c3_mask
from lenet.model import LeNet5, layer_table, loss_function
from lenet.network import build_model

pytestmark = pytest.mark.usefixtures("compiled_quickly")

PAPER = Config(
    scaling="paper",
    activation="scaled_tanh",
    pooling="trainable",
    output="rbf",
    loss="map",
    optimizer="sdlm",
    momentum=0.0,
)
LUSH = dataclasses.replace(
    PAPER, subsampling="sum", output="squashed", initialization="one_over_sqrt_fan_in", loss="mse"
)

# name: output, parameters, connections (section II.B; C5, F6 and the output by arithmetic)
PAPER_TABLE = {
    "c1": ([28, 28, 6], 156, 122_304),
    "s2": ([14, 14, 6], 12, 5_880),
    "c3": ([10, 10, 16], 1_516, 151_600),
    "s4": ([5, 5, 16], 32, 2_000),
    "c5": ([1, 1, 120], 48_120, 48_120),
    "f6": ([84], 10_164, 10_164),
    "output": ([10], 0, 840),
}


def abstract(config):
    """The network without its numbers."""
    return nnx.eval_shape(lambda: build_model(config))


def test_the_paper_network_has_the_papers_layers():
    rows = layer_table(abstract(PAPER))
    assert {
        row["name"]: (row["output"], row["parameters"], row["connections"]) for row in rows
    } == PAPER_TABLE
    assert sum(row["connections"] for row in rows) == 340_908


@pytest.mark.parametrize(
    "config, parameters, masked",  # of C3: 900 weights that are stored and do not exist
    [
        (PAPER, 60_000, 900),
        (LUSH, 51_046, 900),
        (Config(), 60_806, 900),
        (Config(c3="random", seed=5), 60_806, 900),
        (Config(c3="dense"), 61_706, 0),
    ],
)
def test_parameters(config, parameters, masked):
    model = abstract(config)
    assert sum(row["parameters"] for row in layer_table(model)) == parameters
    stored = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert stored - masked == parameters


def test_table_one():
    assert [len(inputs) for inputs in C3_TABLE] == [3] * 6 + [4] * 9 + [6]
    # Each S2 map feeds ten C3 maps.
    assert [sum(s2 in inputs for inputs in C3_TABLE) for s2 in range(6)] == [10] * 6
    often_copied_wrongly = ((0, 1, 2, 5), (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5))
    assert C3_TABLE[11:15] == often_copied_wrongly
    assert len(set(C3_TABLE)) == 16
    assert 25 * sum(map(len, C3_TABLE)) + 16 == 1_516


def test_random_connections_keep_the_number_of_inputs_and_follow_the_seed():
    drawn = [c3_connections("random", seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    # The same forever: saved weights depend on it.
    assert drawn[0][:3] == [[0, 1, 2], [0, 1, 5], [0, 1, 3]]
    assert [len(set(inputs)) for inputs in drawn[0]] == [len(inputs) for inputs in C3_TABLE]


@pytest.mark.parametrize(
    "initialization, bound",
    [
        ("fan_in", lambda f: 2.4 / f),
        ("sqrt_fan_in", lambda f: 2.4 / np.sqrt(f)),
        ("one_over_sqrt_fan_in", lambda f: 1 / np.sqrt(f)),
    ],
)
def test_initial_weights_fill_the_bounds_of_each_maps_own_fan_in(initialization, bound):
    model = build_model(dataclasses.replace(PAPER, initialization=initialization))
    kernel = np.asarray(model.c3.kernel[...])
    assert (kernel[c3_mask(C3_TABLE) == 0] == 0).all()
    for feature_map, fan_in in enumerate([75] * 6 + [100] * 9 + [150]):
        largest = np.abs(kernel[..., feature_map]).max()
        assert 0.9 * bound(fan_in) < largest <= bound(fan_in) * (1 + 1e-6)
    for layer, fan_in in ((model.c1, 25), (model.c5, 400), (model.f6, 120)):
        largest = np.abs(np.asarray(layer.kernel[...])).max()
        assert 0.9 * bound(fan_in) < largest <= bound(fan_in) * (1 + 1e-6)
        assert (np.asarray(layer.bias[...]) == 0).all()


@pytest.mark.parametrize(("subsampling", "start"), [("average", 1.0), ("sum", 0.5)])
def test_coefficients_start_at_1_or_for_a_sum_at_half(subsampling, start):
    model = build_model(dataclasses.replace(PAPER, subsampling=subsampling))
    for layer in (model.s2, model.s4):
        assert (np.asarray(layer.coefficient[...]) == start).all()
        assert (np.asarray(layer.bias[...]) == 0).all()


@pytest.mark.parametrize(
    ("name", "distance", "zero_and_six", "digest"),
    [
        ("distance13", 13, 13, "f0520051b796833e"),
        ("distance25", 25, 35, "eb620714ccd4037d"),
    ],
)
def test_codes_are_ten_bitmaps_of_84_pixels_that_never_change(name, distance, zero_and_six, digest):
    """A checkpoint has no codes: those of its --codes must remain what it was trained with."""
    codes = digit_codes(name)
    assert codes.shape == (10, 84)
    assert set(np.unique(codes)) == {-1.0, 1.0}
    assert min((a != b).sum() for i, a in enumerate(codes) for b in codes[:i]) == distance
    assert (codes[0] != codes[6]).sum() == zero_and_six
    assert hashlib.sha256(np.packbits(codes > 0).tobytes()).hexdigest()[:16] == digest


def numpy_forward(params, images, connections, activation, pooling, subsampling, codes):
    """What each layer passes on, in float64 by explicit sums over pixels, from the paper's text."""

    def conv(x, kernel, bias):
        batch, height, width, _ = x.shape
        out = np.zeros((batch, height - 4, width - 4, kernel.shape[-1]))
        for i in range(5):
            for j in range(5):
                out += np.einsum(
                    "bhwc,cf->bhwf", x[:, i : i + height - 4, j : j + width - 4], kernel[i, j]
                )
        return out + bias

    def subsample(x, layer):
        squares = [x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]]
        if pooling == "trainable":
            x = sum(squares) if subsampling == "sum" else sum(squares) / 4
            return x * layer["coefficient"] + layer["bias"]
        return np.max(squares, axis=0) if pooling == "max" else sum(squares) / 4

    kernel = np.zeros((5, 5, 6, 16))
    for feature_map, inputs in enumerate(connections):
        for s2 in inputs:
            kernel[:, :, s2, feature_map] = params["c3"]["kernel"][:, :, s2, feature_map]
    before_pooling = (lambda a: a) if pooling == "max" else activation
    c1 = before_pooling(conv(images, **params["c1"]))
    s2 = activation(subsample(c1, params.get("s2")))
    c3 = before_pooling(conv(s2, kernel, params["c3"]["bias"]))
    s4 = activation(subsample(c3, params.get("s4")))
    c5 = activation(conv(s4, **params["c5"]))
    units = c5.reshape(-1, 120)
    if "f6" not in params:
        output = activation(units @ params["output"]["kernel"] + params["output"]["bias"])
        return dict(c1=c1, s2=s2, c3=c3, s4=s4, c5=c5, output=output)
    f6 = activation(units @ params["f6"]["kernel"] + params["f6"]["bias"])
    if codes is None:
        output = f6 @ params["output"]["kernel"] + params["output"]["bias"]
    else:
        output = -((f6[:, None] - codes) ** 2).sum(-1)
    return dict(c1=c1, s2=s2, c3=c3, s4=s4, c5=c5, f6=f6, output=output)


def random_params(model, key=0):
    """The model's parameters with every entry drawn, masked ones, biases and coefficients too."""
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    draw = np.random.default_rng(key)
    return jax.tree.map(lambda p: jnp.asarray(draw.normal(0, 0.3, p.shape), jnp.float32), params)


@pytest.mark.commands
@pytest.mark.parametrize(
    "config",
    [
        Config(),
        PAPER,
        dataclasses.replace(PAPER, codes="distance25"),
        LUSH,
        Config(pooling="max", activation="relu"),
        Config(c3="random", seed=3),
        Config(c3="dense"),
    ],
    ids=lambda c: f"{c.output}-{c.pooling}-{c.subsampling}-{c.c3}-{c.codes}",
)
def test_every_layer_against_numpy(config):
    """Values of all layers, in the order and the shapes of the layer table; masked weights have no
    effect.
    """
    model = abstract(config)
    params = random_params(model)
    images = np.random.default_rng(1).uniform(-0.1, 1.175, (3, 32, 32, 1))
    activations = {
        "tanh": np.tanh,
        "scaled_tanh": lambda a: 1.7159 * np.tanh(2 / 3 * a),
        "relu": lambda a: np.maximum(a, 0),
    }
    expected = numpy_forward(
        jax.tree.map(lambda p: np.asarray(p, np.float64), params),
        images,
        c3_connections(config.c3, config.seed),
        activations[config.activation],
        config.pooling,
        config.subsampling,
        digit_codes(config.codes) if config.output == "rbf" else None,
    )

    @jax.jit  # must not change the order
    def run(params, images):
        bound = nnx.merge(nnx.graphdef(model), params)
        return bound.activations(images), bound(images)

    found, logits = run(params, jnp.asarray(images, jnp.float32))
    shapes = [(row["name"], (3, *row["output"])) for row in layer_table(model)]
    assert [(name, x.shape) for name, x in found.items()] == shapes
    for name, x in found.items():
        np.testing.assert_allclose(x, expected[name], rtol=2e-4, atol=2e-4)
    np.testing.assert_array_equal(found["output"], logits)


def test_max_pooling_takes_the_maximum_and_squashes_once():
    model = abstract(Config(pooling="max", activation="relu"))
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 6))
    pooled = model.s2(x.transpose(1, 3, 2, 0)).transpose(3, 0, 2, 1)
    np.testing.assert_array_equal(pooled, nnx.max_pool(x, (2, 2), (2, 2)))
    assert model.before_pooling(-1.0) == -1.0


def test_scaled_tanh_is_equation_6():
    activation = abstract(PAPER).activation
    np.testing.assert_allclose(activation(np.float32([1, -1])), [1, -1], atol=1e-4)
    a = np.linspace(-3, 3, 601)
    curve = jax.jit(jax.vmap(jax.grad(jax.grad(activation))))(a)
    assert abs(abs(a[np.abs(curve).argmax()]) - 1) < 0.05  # |f''| is largest at +-1 (appendix A)


def test_losses_against_numpy():
    draw = np.random.default_rng(0)
    penalties, labels = draw.uniform(0, 40, (50, 10)), draw.integers(0, 10, 50)
    logits = jnp.asarray(-penalties, jnp.float32)
    wanted = penalties[np.arange(50), labels]
    probabilities = np.exp(-penalties) / np.exp(-penalties).sum(1, keepdims=True)
    one_hot = np.eye(10)[labels]
    smooth = 0.9 * one_hot + 0.01

    def check(expected, *loss, rtol=1e-5, atol=0.0, **settings):
        ours = jax.jit(loss_function(*loss, **settings))(logits, labels)
        np.testing.assert_allclose(ours, expected, rtol=rtol, atol=atol)

    check(wanted, "mse", "rbf", rtol=1e-6)  # eq. 8
    for j in (0.1, 3.0, 10.0):  # eq. 9
        expected = wanted + np.log(np.exp(-j) + np.exp(-penalties).sum(1))
        check(expected, "map", "rbf", map_constant=j, atol=1e-5)
    check(-np.log(probabilities[one_hot == 1]), "cross_entropy", "softmax")
    smoothed = -(smooth * np.log(probabilities)).sum(1)
    check(smoothed, "cross_entropy", "softmax", label_smoothing=0.1)
    check(((probabilities - one_hot) ** 2).sum(1), "mse", "softmax", atol=1e-6)
    targets = np.where(one_hot == 1, 1, -1)
    check(((-penalties - targets) ** 2).sum(1) / 2, "mse", "squashed")


def test_map_loss_stays_finite_where_every_penalty_is_huge():
    """exp(-620), the farthest a code can be, underflows in float32; the loss must not."""
    of_examples = loss_function("map", "rbf", map_constant=3.0)
    loss = jax.jit(jax.value_and_grad(lambda logits: of_examples(logits, np.array([0])).sum()))
    loss, gradient = loss(jnp.full((1, 10), -620.0))
    assert np.isfinite(loss) and np.isfinite(gradient).all()
    np.testing.assert_allclose(loss, 617.0, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [Config(), Config(pooling="max", activation="relu")], ids=lambda c: c.pooling
)
def test_logits_and_gradients_against_pytorch(config, torch):
    model = abstract(config)
    params = random_params(model)
    params["c3"]["kernel"] *= c3_mask(C3_TABLE)
    images = np.random.default_rng(2).uniform(0, 1, (4, 32, 32, 1)).astype(np.float32)
    labels = np.array([3, 1, 4, 1])

    def loss(params):
        logits = nnx.merge(nnx.graphdef(model), params)(images)
        return loss_function("cross_entropy", "softmax")(logits, labels).mean(), logits

    grads, logits = jax.jit(jax.grad(loss, has_aux=True))(params)

    functional = torch.nn.functional
    act, pool = (
        (torch.tanh, functional.avg_pool2d)
        if config.pooling == "average"
        else (torch.relu, functional.max_pool2d)
    )
    weights = {}
    for name, layer in params.items():
        kernel = np.asarray(layer["kernel"])
        kernel = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        weights[name] = [
            torch.tensor(np.array(a), requires_grad=True) for a in (kernel, layer["bias"])
        ]
    x = torch.tensor(images.transpose(0, 3, 1, 2))
    x = act(pool(act(functional.conv2d(x, *weights["c1"])), 2))
    mask = torch.tensor(c3_mask(C3_TABLE).transpose(3, 2, 0, 1))
    x = act(pool(act(functional.conv2d(x, weights["c3"][0] * mask, weights["c3"][1])), 2))
    x = act(functional.conv2d(x, *weights["c5"])).flatten(1)
    x = functional.linear(act(functional.linear(x, *weights["f6"])), *weights["output"])
    functional.cross_entropy(x, torch.tensor(labels)).backward()
    np.testing.assert_allclose(logits, x.detach().numpy(), rtol=1e-4, atol=1e-4)
    for name, (kernel, bias) in weights.items():
        ours = np.asarray(grads[name]["kernel"])
        ours = ours.transpose(3, 2, 0, 1) if ours.ndim == 4 else ours.T
        np.testing.assert_allclose(ours, kernel.grad.numpy(), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(grads[name]["bias"], bias.grad.numpy(), rtol=1e-3, atol=1e-5)


def test_rgb_images_and_other_class_counts():
    settings = dict(in_channels=3, num_classes=47, convolution=batch_last_convolution())
    model = nnx.eval_shape(lambda: LeNet5(**settings, rngs=nnx.Rngs(0)))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    assert nnx.eval_shape(lambda model, x: model(x), model, images).shape == (2, 47)
    assert layer_table(model)[0]["parameters"] == 6 * (3 * 25 + 1)
