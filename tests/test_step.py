"""One step of training, written out."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import alexnet.config
import alexnet.train
import lenet.train
from alexnet.image_statistics import Statistics
from alexnet.optimizer import Plateau
from common import step
from common.loop import evaluated_params
from common.losses import cross_entropy
from common.network import Network
from scripts.benchmark.training import AlexNetTraining

pytestmark = pytest.mark.usefixtures("compiled_quickly")

DIGITS = lenet.config.Config(batch_size=4)
SMALL = alexnet.config.Config(
    net="alexnet",
    widths="small",
    crop_size=16,
    lrn="across",
    conv1_padding="symmetric",
    initialization="he",
    scaling="standardized",
)


def on_one_device(sums_of, batch):
    return sums_of(batch)


# ---- what both are made of


def prepare(images, draw):
    return images


class State(NamedTuple):
    step: Any
    average: Any


def test_gradients_are_means_and_scores_sums_over_the_examples():
    draw = np.random.default_rng(0)
    x, labels = draw.normal(size=(5, 4)).astype(np.float32), np.array([0, 1, 2, 0, 1], np.int32)
    w = jnp.asarray(draw.normal(size=(4, 3)), jnp.float32)
    network = Network(
        None, 3, 12, (), dict, lambda w: lambda x, keys=None: x @ w["w"], prepare, cross_entropy
    )
    batch = {"image": x, "label": labels, "draw": np.arange(5)}
    grads, sums = step.gradients(network, {"w": w}, batch, on_one_device)
    logits = x.astype(np.float64) @ np.asarray(w, np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    mean = x.T @ (p - np.eye(3)[labels]) / 5
    np.testing.assert_allclose(grads["w"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sums["loss"], -np.log(p[range(5), labels]).sum(), rtol=1e-5)
    assert sums["errors"] == (logits.argmax(-1) != labels).sum() and sums["count"] == 5


def test_the_average_of_the_weights_forgets_the_start_sooner():
    params, start = {"w": jnp.full(3, 2.0)}, {"w": jnp.ones(3)}
    for done, decay in ((0, 0.1), (10, 0.55), (1000, 0.9)):
        found = step.average(State(jnp.int32(done), start), params, 0.9)
        np.testing.assert_allclose(found["w"], decay * 1 + (1 - decay) * 2, rtol=1e-6)
    assert step.average(State(jnp.int32(0), ()), params, 0.0) == ()
    assert evaluated_params(TrainedState(params, ())) is params
    assert evaluated_params(TrainedState(params, start)) is start


class TrainedState(NamedTuple):
    params: Any
    average: Any


# ---- both networks


@pytest.mark.slow
def test_two_steps_of_lenet_against_plain_optax():
    """Loss, gradient of the mean, update and average."""
    config = dataclasses.replace(DIGITS, weight_decay=0.01, average_decay=0.6, schedule="constant")
    network, tx = lenet.train.assemble(config), lenet.train.build_optimizer(config, 12)
    steps = lenet.train.make_train_steps(network, tx)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (3, 4, 28, 28, 1), np.uint8)
    labels = draw.integers(0, 10, (3, 4)).astype(np.int32)
    chunk = {"image": images, "label": labels, "draw": np.ones((3, 4), np.uint32)}
    state = jax.jit(lambda: lenet.train.initial_state(network, tx, network.init()))()
    params = jax.device_get(state.params)
    two = jax.jit(lambda state, chunk: steps(state, chunk, 2, on_one_device))  # of three
    state, sums = two(state, chunk)

    @jax.jit
    @jax.value_and_grad
    def mean_loss_and_gradient(params, images, labels):
        return network.loss(network.logits(params, network.prepare(images)), labels).mean()

    average, velocity, loss_sum = params, jax.tree.map(jnp.zeros_like, params), 0.0
    for k in range(2):
        mean_loss, grads = mean_loss_and_gradient(params, images[k], labels[k])
        loss_sum += 4 * mean_loss
        velocity = jax.tree.map(lambda v, g, w: 0.9 * v + g + 0.01 * w, velocity, grads, params)
        params = jax.tree.map(lambda w, v: w - 0.1 * v, params, velocity)
        decay = min(0.6, (1 + k) / (10 + k))
        average = jax.tree.map(lambda a, w, d=decay: d * a + (1 - d) * w, average, params)
    assert state.step == 2 and sums["count"] == 8
    np.testing.assert_allclose(sums["loss"], loss_sum, rtol=1e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # noqa: E731
    jax.tree.map(close, state.params, params)
    jax.tree.map(close, state.average, average)
    assert optax.tree.norm(jax.tree.map(jnp.subtract, state.average, state.params)) > 1e-3


@pytest.mark.parametrize(
    "drops", [pytest.param(0, marks=pytest.mark.nightly), pytest.param(2, marks=pytest.mark.slow)]
)
def test_two_steps_of_alexnet_against_the_papers_rule(drops):
    """Crops, colors, dropout, the gradient of the mean, the velocity that holds the rate, and the
    average of the weights. Each image for itself: what happens to it depends on the seed and its
    own draw alone.
    """
    config = dataclasses.replace(
        SMALL,
        optimizer="paper",
        dropout=0.5,
        bias_rate_factor=2.0,
        decay_biases=False,
        average_decay=0.6,
        seed=3,
    )
    draw = np.random.default_rng(0)
    mean_image = np.float32(draw.uniform(100, 150, (20, 20, 3)))
    statistics = Statistics(mean_image, np.diag([4000.0, 3000.0, 2000.0]))
    images = draw.integers(0, 256, (2, 4, 20, 20, 3), np.uint8)
    labels = draw.integers(0, 10, (2, 4)).astype(np.int32)
    draws = np.arange(1, 9, dtype=np.uint32).reshape(2, 4)
    network = alexnet.train.assemble(config, 10, statistics)
    tx = alexnet.train.build_optimizer(config, 4)
    train_step = alexnet.train.make_train_step(network, tx)
    state = jax.jit(lambda: alexnet.train.initial_state(network, tx, statistics, network.init()))()
    state = state._replace(plateau=Plateau(jnp.float32(90.0), jnp.int32(0), jnp.int32(drops)))
    compiled = jax.jit(lambda state, batch: train_step(state, batch, on_one_device))

    @jax.jit
    def of_one_image(params, image, label, draw):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 2**31 + 1), draw)

        def loss_of(params):
            prepared = network.prepare(image[None], draw[None])
            logits = network.logits(params, prepared, key[None])[0]
            return jax.nn.logsumexp(logits) - logits[label], logits

        return jax.value_and_grad(loss_of, has_aux=True)(params)

    start = jax.device_get(state.params)
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), start)
    average, velocity = weights, jax.tree.map(np.zeros_like, weights)
    for k in range(2):
        state, sums = compiled(state, {"image": images[k], "label": labels[k], "draw": draws[k]})
        here = jax.tree.map(np.float32, weights)
        parts = [
            of_one_image(here, *each) for each in zip(images[k], labels[k], draws[k], strict=True)
        ]
        grads = jax.tree.map(
            lambda *leaves: np.mean(np.array(leaves, np.float64), axis=0),
            *(grads for _, grads in parts),
        )
        rate = 0.01 / 10**drops
        for layer, leaves in weights.items():
            v, w, g = velocity[layer], leaves["kernel"], grads[layer]
            v["kernel"] = 0.9 * v["kernel"] - 0.0005 * rate * w - rate * g["kernel"]
            v["bias"] = 0.9 * v["bias"] - 2 * rate * g["bias"]
        weights = jax.tree.map(np.add, weights, velocity)
        decay = min(0.6, (1 + k) / (10 + k))
        average = jax.tree.map(lambda a, w, d=decay: d * a + (1 - d) * w, average, weights)
        assert sums["count"] == 4
        np.testing.assert_allclose(sums["loss"], sum(loss for (loss, _), _ in parts), rtol=1e-5)
        wrong = [np.argmax(out) != y for ((_, out), _), y in zip(parts, labels[k], strict=True)]
        assert sums["errors"] == sum(wrong)
    assert state.step == 2 and state.plateau.drops == drops

    def same_change(a, b, s):
        """From s on. Weights are float32: either side is rounded, however small the change."""
        rounding = 2 * np.spacing(np.abs(np.asarray(s, np.float32)).max())
        atol = 1e-3 * np.abs(b - s).max() + rounding
        np.testing.assert_allclose(a - s, b - s, rtol=1e-3, atol=atol)

    jax.tree.map(same_change, state.params, weights, start)
    jax.tree.map(same_change, state.average, average, start)
    apart = jax.tree.map(lambda a, w: np.abs(a - w).max(), average, weights)
    assert max(jax.tree.leaves(apart)) > 1e-6


@pytest.mark.nightly
def test_dropout_and_augmentation_are_a_function_of_seed_and_use():
    """The same images again, as their next use or under another seed: other crops, other units
    dropped.
    """
    statistics = Statistics(np.full((20, 20, 3), 127.0, np.float32), np.eye(3) * 5000)
    images = np.random.default_rng(0).integers(0, 256, (4, 20, 20, 3), np.uint8)
    batch = {"image": images, "label": np.arange(4, dtype=np.int32)}
    config = dataclasses.replace(SMALL, dropout=0.5)
    tx = alexnet.train.build_optimizer(config, 4)
    network = alexnet.train.assemble(config, 10, statistics)
    first = alexnet.train.initial_state(network, tx, statistics, network.init())

    def losses(**changes):
        """With draws, with other draws, with another seed."""
        found = []
        for seed, start in ((0, 1), (0, 5), (1, 1), (0, 1)):
            network = alexnet.train.assemble(
                dataclasses.replace(config, **changes, seed=seed), 10, statistics
            )
            train_step = jax.jit(alexnet.train.make_train_step(network, tx), static_argnums=2)
            draws = np.arange(start, start + 4, dtype=np.uint32)
            _, sums = train_step(first, batch | {"draw": draws}, on_one_device)
            found.append(float(sums["loss"]))
        assert found[0] == found.pop()
        return len(set(found))

    assert losses(augmentation="none", color_pca=False) == losses(dropout=0.0) == 3
    assert losses(augmentation="none", color_pca=False, dropout=0.0) == 1


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what XLA does on a CPU")
@pytest.mark.commands
def test_weights_are_updated_without_a_copy():
    training = AlexNetTraining("small", 10, "--batch_size=2")
    batch = training.placement.place_training(training.batch)
    program = training.placement.run.lower(training.state, batch).compile().as_text()
    main = program[program.index("ENTRY") :]
    assert "fc6" in main
    copied = [line for line in main.splitlines() if " copy(" in line and "kernel" in line]
    assert not copied


def test_a_rate_is_the_same_after_the_backward_pass():
    grads = {"c1": {"bias": jnp.ones(3)}, "f6": {"bias": jnp.full(2, jnp.nan)}}
    assert step.after_backward(grads, jnp.float32(0.1)) == jnp.float32(0.1)
    assert step.after_backward(grads, 0.1) == 0.1
    grads["c1"]["bias"] = jnp.full(3, jnp.nan)
    assert jnp.isnan(step.after_backward(grads, jnp.float32(0.1)))
