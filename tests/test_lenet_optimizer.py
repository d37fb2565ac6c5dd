"""SDLM and the schedules, against loops over single connections in float64 and against the paper's
figures.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lenet.codes import digit_codes
from lenet.config import Config
from lenet.connections import C3_TABLE, c3_mask
from lenet.model import LeNet5, loss_function
from lenet.optimizer import MU, build_optimizer, curvature, learning_rate_schedule, sdlm

pytestmark = pytest.mark.usefixtures("compiled_quickly")

LOSSES = [("mse", 0.0), ("map", 3.0), ("map", 60.0), ("cross_entropy", 0.0)]


def paper_model(subsampling="average", output="rbf"):
    return LeNet5(
        activation="scaled_tanh",
        pooling="trainable",
        subsampling=subsampling,
        output=output,
        codes=digit_codes(),
        rngs=nnx.Rngs(0),
    )


def squash(a):
    return 1.7159 * np.tanh(2 / 3 * a)


def slope(a):
    return 1.7159 * 2 / 3 * (1 - np.tanh(2 / 3 * a) ** 2)


class Unit:
    """One unit of one map: its weighted sum, its second derivative, and its connections (weight's
    name, weight, input unit).
    """

    def __init__(self, connections):
        self.connections = connections
        self.a = sum(weight * x.value for _, weight, x in connections)
        self.value, self.h_value = squash(self.a), 0.0


class Constant:
    """An input pixel or the constant 1 of a bias: a value without connections."""

    def __init__(self, value):
        self.value, self.h_value = value, 0.0


def loop_over_connections(params, image, label, loss, constant, pool_weight=0.25):
    """h_kk of one example from appendix C, one connection at a time: {(layer, parameter, index):
    h}.

    A subsampling unit's single input is a pooling unit, linear, with four connections of fixed
    weight, 1/4 (the average) or 1 (the sum). Without F6 in `params`, the output is squashed, and
    the second derivative of the loss is set to 1 there, as in Lush.
    """
    connections_of_c3 = c3_mask(C3_TABLE)
    one = Constant(1.0)
    layers = []

    def conv(maps, name, mask=None):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        size = len(maps[0]) - 4
        out = []
        for f in range(kernel.shape[-1]):
            inputs = [c for c in range(kernel.shape[2]) if mask is None or mask[0, 0, c, f]]
            window = [(i, j, c, f) for c in inputs for i in range(5) for j in range(5)]
            biases = [((name, "bias", (f,)), bias[f], one)]

            def unit(y, x, window=window, biases=biases):
                weights = [
                    ((name, "kernel", (i, j, c, f)), kernel[i, j, c, f], maps[c][y + i][x + j])
                    for i, j, c, f in window
                ]
                return Unit(weights + biases)

            out.append([[unit(y, x) for x in range(size)] for y in range(size)])
        layers.append([unit for plane in out for row in plane for unit in row])
        return out

    def subsample(maps, name):
        coefficient, bias = params[name]["coefficient"], params[name]["bias"]
        out, means = [], []
        for f, plane in enumerate(maps):
            rows = []
            for y in range(0, len(plane), 2):
                row = []
                for x in range(0, len(plane), 2):
                    square = [plane[y + i][x + j] for i in (0, 1) for j in (0, 1)]
                    pooled = Unit([(None, pool_weight, unit) for unit in square])
                    pooled.value, pooled.linear = pooled.a, True
                    means.append(pooled)
                    scaled = ((name, "coefficient", (f,)), coefficient[f], pooled)
                    row.append(Unit([scaled, ((name, "bias", (f,)), bias[f], one)]))
                rows.append(row)
            out.append(rows)
        layers.extend([means, [unit for plane in out for row in plane for unit in row]])
        return out

    maps = [[[Constant(v) for v in row] for row in image[..., 0]]]
    maps = subsample(conv(maps, "c1"), "s2")
    maps = subsample(conv(maps, "c3", connections_of_c3), "s4")
    maps = conv(maps, "c5")
    last = "f6" if "f6" in params else "output"
    kernel, bias = params[last]["kernel"], params[last]["bias"]
    units = []
    for f in range(len(bias)):
        inputs = [((last, "kernel", (i, f)), kernel[i, f], maps[i][0][0]) for i in range(120)]
        units.append(Unit([*inputs, ((last, "bias", (f,)), bias[f], one)]))
    layers.append(units)

    # At the output: second differences of the loss in each of the 84 values.
    codes = digit_codes().astype(np.float64)

    def loss_at(x):
        y = ((x - codes) ** 2).sum(1)
        if loss == "mse":
            return y[label]
        terms = np.append(-y, -constant) if loss == "map" else -y
        return y[label] + terms.max() + np.log(np.exp(terms - terms.max()).sum())

    x = np.array([unit.value for unit in units])
    step = 1e-3
    for k, unit in enumerate(units):
        if last == "output":
            unit.h_value = 1.0
            continue
        shift = step * np.eye(84)[k]
        unit.h_value = (loss_at(x + shift) - 2 * loss_at(x) + loss_at(x - shift)) / step**2

    result = {}
    for layer in reversed(layers):
        for unit in layer:
            linear = hasattr(unit, "linear")
            h_a = unit.h_value * (1.0 if linear else slope(unit.a) ** 2)  # eq. 27, f'^2
            for name, weight, source in unit.connections:
                if name:  # eq. 25, summed as in eq. 23
                    result[name] = result.get(name, 0.0) + h_a * source.value**2
                source.h_value += h_a * weight**2  # eq. 27
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss, constant, count, subsampling, output",
    [
        ("map", 60.0, 1, "average", "rbf"),
        pytest.param("mse", 0.0, 1, "sum", "rbf", marks=pytest.mark.nightly),
        pytest.param("map", 3.0, 2, "average", "rbf", marks=pytest.mark.nightly),
        ("mse", 0.0, 1, "sum", "squashed"),
        ("mse", 0.0, 1, "average", "squashed"),
    ],
)
def test_curvature_against_a_loop_over_every_connection(loss, constant, count, subsampling, output):
    model = paper_model(subsampling, output)
    draw = np.random.default_rng(3)
    params = jax.tree.map(
        lambda p: p + jnp.asarray(draw.normal(0, 0.05, p.shape), p.dtype),
        nnx.to_pure_dict(nnx.state(model, nnx.Param)),
    )
    images = draw.uniform(-0.1, 1.175, (2, 32, 32, 1)).astype(np.float32)[:count]
    labels = np.array([7, 2])[:count]
    loss_of_examples = loss_function(loss, output, map_constant=constant)
    ours = jax.jit(
        lambda params: curvature(
            nnx.merge(nnx.graphdef(model), params), images, labels, loss_of_examples
        )
    )(params)
    ours = jax.tree.map(np.asarray, ours)
    exact = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    examples = [
        loop_over_connections(
            exact,
            images[i].astype(np.float64),
            labels[i],
            loss,
            constant,
            pool_weight=1.0 if subsampling == "sum" else 0.25,
        )
        for i in range(count)
    ]
    assert len(examples[0]) == (60_000 if output == "rbf" else 51_046)
    for name in examples[0]:
        layer, parameter, index = name
        expected = sum(example[name] for example in examples) / count
        assert abs(ours[layer][parameter][index] - expected) <= 2e-3 * expected + 1e-5, name
    assert (ours["c3"]["kernel"][c3_mask(model.connections) == 0] == 0).all()


@pytest.mark.commands
def test_output_curvature_in_closed_form():
    """The docstring's formulas: seen through F6's biases, whose h is f'^2 d2E/dx2."""
    model = paper_model()
    image, label = jnp.full((1, 32, 32, 1), 0.3), jnp.array([4])
    codes = digit_codes().astype(np.float64)
    model.c5.kernel[...] *= 0  # F6 sees zeros: x = f(bias)
    bias = np.arctanh(codes[4] * 0.9 / 1.7159) * 1.5
    model.f6.bias[...] = jnp.asarray(bias, jnp.float32)
    x = codes[4] * 0.9
    y = ((x - codes) ** 2).sum(1)
    for loss, constant in LOSSES:
        loss_of_examples = loss_function(loss, "rbf", map_constant=constant)
        got = jax.jit(
            lambda image, label, of=loss_of_examples: curvature(model, image, label, of)["f6"][
                "bias"
            ]
        )(image, label)
        weights = np.exp(-(y - y.min()))
        rubbish = np.exp(-(constant - y.min())) if loss == "map" else 0.0
        p, p_0 = weights / (weights.sum() + rubbish), rubbish / (weights.sum() + rubbish)
        d = 2 * (x - codes)
        expected = 2.0 if loss == "mse" else 2 * p_0 + p @ d**2 - (p @ d) ** 2
        np.testing.assert_allclose(got, slope(bias) ** 2 * expected, rtol=1e-3, atol=1e-6)


def test_update_is_equation_21():
    tx = sdlm(lambda step: jnp.where(step < 1, 0.5, 0.25))
    params = {"w": jnp.array([1.0, 2.0])}
    state = tx.init(params)._replace(curvature={"w": jnp.array([0.0, 3.0])})
    grads = {"w": jnp.array([2.0, -2.0])}
    for eta in (0.5, 0.25):
        updates, state = tx.update(grads, state, params)
        np.testing.assert_allclose(
            updates["w"], [-eta / MU * 2.0, eta / (MU + 3.0) * 2.0], rtol=1e-6
        )
    assert state.count == 2


def test_paper_schedule_gives_the_rates_of_section_3b():
    schedule = learning_rate_schedule(Config(schedule="paper", learning_rate=1.0), 60_000)
    expected = [5e-4] * 2 + [2e-4] * 3 + [1e-4] * 3 + [5e-5] * 4 + [1e-5] * 8
    first = 60_000 * np.arange(20)  # steps of the passes
    rates = jax.jit(jax.vmap(schedule))(np.stack([first, first + 59_999]))
    np.testing.assert_allclose(rates, [expected, expected], rtol=1e-6)


def test_thirds_of_30_passes_are_the_rates_of_lush():
    schedule = learning_rate_schedule(
        Config(schedule="thirds", learning_rate=1e-4, num_epochs=30), 60_000
    )
    first = 60_000 * np.arange(30)  # steps of the passes
    rates = jax.jit(jax.vmap(schedule))(np.stack([first, first + 59_999]))
    expected = [1e-4] * 10 + [1e-5] * 10 + [1e-6] * 10
    np.testing.assert_allclose(rates, [expected, expected], rtol=1e-6)


@pytest.mark.parametrize(
    ("num_epochs", "expected"), [(1, "0"), (2, "01"), (4, "0012"), (5, "00112"), (6, "001122")]
)
def test_thirds_are_whole_passes(num_epochs, expected):
    config = Config(schedule="thirds", learning_rate=1.0, num_epochs=num_epochs)
    schedule = learning_rate_schedule(config, 10)
    for number, power in enumerate(expected):
        rates = [float(schedule(10 * number)), float(schedule(10 * number + 9))]
        np.testing.assert_allclose(rates, 10.0 ** -int(power), rtol=1e-6)


def test_passes_beyond_the_last_countable_step_are_never_reached():
    config = Config(schedule="thirds", learning_rate=1.0, num_epochs=10**6)
    assert jax.jit(learning_rate_schedule(config, 8_000))(jnp.int32(2**31 - 2)) == 1.0


def test_cosine_schedule_rises_and_ends_at_zero():
    config = Config(schedule="cosine", learning_rate=0.1, num_epochs=10, warmup_epochs=2)
    schedule = learning_rate_schedule(config, 100)
    assert float(schedule(200)) == pytest.approx(0.1)
    assert float(schedule(100)) == pytest.approx(0.0505)
    assert float(schedule(600)) == pytest.approx(0.05)
    assert float(schedule(1000)) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.commands
@pytest.mark.parametrize("optimizer, decay", [("sgd", 0.1), ("adamw", 0.1), ("sdlm", 0.0)])
def test_masked_weights_stay_exactly_zero_and_unseen(optimizer, decay):
    """After steps with momentum and decay: zero weights, gradients and moments, so that no norm
    sees them.
    """
    model = paper_model()
    graphdef, state = nnx.split(model, nnx.Param)
    params = nnx.to_pure_dict(state)
    settings = dict(optimizer=optimizer, momentum=0.9 if optimizer == "sgd" else 0.0)
    if optimizer == "sdlm":
        settings |= dict(pooling="trainable", output="rbf")
    rate = dict(schedule="constant", learning_rate=1e-3)
    tx = build_optimizer(Config(**settings, **rate, weight_decay=decay), epoch_steps=1)
    opt_state = tx.init(params)
    mask = c3_mask(model.connections)
    images = jax.random.uniform(jax.random.key(0), (8, 32, 32, 1))
    loss = loss_function("map", "rbf", map_constant=3.0)

    @jax.jit
    def step(params, opt_state):
        labels = jnp.arange(8)
        grads = jax.grad(lambda p: loss(nnx.merge(graphdef, p)(images), labels).mean())(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return jax.tree.map(jnp.add, params, updates), opt_state, grads

    before = np.asarray(params["c3"]["kernel"])
    for _ in range(5):
        params, opt_state, grads = step(params, opt_state)
    for leaf in [*jax.tree.leaves((params, opt_state, grads))]:
        if leaf.shape == mask.shape:
            assert (np.asarray(leaf)[mask == 0] == 0).all()
    assert (np.asarray(params["c3"]["kernel"])[mask == 1] != before[mask == 1]).all()
    existing = np.asarray(params["c3"]["kernel"])[mask == 1]
    assert existing.size == 1_500
    norm = np.linalg.norm(existing.astype(np.float64))
    np.testing.assert_allclose(optax.tree.norm(params["c3"]["kernel"]), norm, rtol=1e-6)


@pytest.mark.commands
def test_first_pass_rates_on_real_digits(mnist10k_train):
    """The paper: effective rates of 7e-5 to 0.016 in the first pass. Weights and coefficients lie
    there; biases that many units share go lower.
    """
    images, labels = mnist10k_train
    h = jax.jit(lambda x, y: curvature(paper_model(), x, y, loss_function("mse", "rbf")))(
        images[:500], labels[:500]
    )
    rates = jax.tree.map(lambda h: 5e-4 / (MU + np.asarray(h)), h)
    biases = np.concatenate([layer.pop("bias") for layer in rates.values()])
    rates["c3"]["kernel"] = rates["c3"]["kernel"][c3_mask(paper_model().connections) == 1]
    weights = np.concatenate([np.ravel(rate) for rate in jax.tree.leaves(rates)])
    assert 5e-5 < weights.min() < 8e-5  # the paper: 7e-5
    assert 0.8e-2 < weights.max() < 1.6e-2  # the paper: 0.016
    assert 0.8e-5 < biases.min() < 1.2e-5
