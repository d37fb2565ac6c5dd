"""The paper's update rule, its neighbors and the schedules, against float64 loops, PyTorch and
Optax.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.config import Config
from alexnet.optimizer import (
    Plateau,
    drop_on_plateau,
    learning_rate_schedule,
    make_optimizer,
    new_plateau,
)

pytestmark = pytest.mark.usefixtures("compiled_quickly")

STEPS, DROP_STEP = 10, 5  # the rate drops before the sixth update


def problem() -> tuple[dict, list[dict]]:
    """Parameters of two layers, and the gradients of ten steps."""
    draw = np.random.default_rng(0)

    def entries():
        shapes = {
            "conv1": {"kernel": (3, 4), "bias": (4,)},
            "fc8": {"kernel": (4, 2), "bias": (2,)},
        }
        return {
            layer: {
                name: draw.normal(size=shape).astype(np.float32) for name, shape in leaves.items()
            }
            for layer, leaves in shapes.items()
        }

    return entries(), [entries() for _ in range(STEPS)]


def scheduled(schedule: str, rate: float, epoch_steps: int, num_epochs: int, **settings):
    config = Config(schedule=schedule, learning_rate=rate, num_epochs=num_epochs, **settings)
    return learning_rate_schedule(config, epoch_steps)


def one_drop(learning_rate: float):
    """Two epochs of five steps, a drop between them."""
    return scheduled("epochs", learning_rate, DROP_STEP, 2, drop_epochs="1")


def constant(learning_rate: float):
    return scheduled("plateau", learning_rate, DROP_STEP, 2)


def run(tx, params: dict, all_grads: list[dict], drops=lambda step: 0) -> list[dict]:
    """The parameters after each step."""
    state, trajectory = tx.init(params), []
    update = jax.jit(
        lambda grads, state, params, drops: tx.update(grads, state, params, drops=drops)
    )
    for step, grads in enumerate(all_grads):
        updates, state = update(grads, state, params, drops(step))
        params = optax.apply_updates(params, updates)
        trajectory.append(params)
    assert state.count == len(all_grads)
    return trajectory


def assert_close(ours: list[dict], theirs: list[dict], rtol: float = 2e-5):
    for our_params, their_params in zip(ours, theirs, strict=True):
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=rtol, atol=1e-6), our_params, their_params
        )


# ---- the rules


@pytest.mark.parametrize("dropped_by", ["schedule", "plateau"])
@pytest.mark.parametrize("biases", ["as the weights", "as in the 2012 code", "as in Caffe"])
def test_the_papers_rule_step_by_step(biases, dropped_by):
    """v <- 0.9 v - 0.0005 e w - e g, w <- w + v (section 5), with a decay large enough to show."""
    decays_too, factor, follows = {
        "as the weights": (True, 1.0, True),
        "as in the 2012 code": (False, 2.0, False),  # epsB 0.02 to the end, no decay
        "as in Caffe": (False, 2.0, True),  # lr_mult 2, decay_mult 0
    }[biases]
    tx = make_optimizer(
        "paper",
        one_drop(0.1) if dropped_by == "schedule" else constant(0.1),
        momentum=0.9,
        weight_decay=0.3,
        decay_biases=decays_too,
        bias_rate_factor=factor,
        drop_bias_rate=follows,
    )
    params, all_grads = problem()
    drops = (lambda step: int(step >= DROP_STEP)) if dropped_by == "plateau" else (lambda step: 0)
    got = run(tx, params, all_grads, drops)

    expected = []
    w = jax.tree.map(np.float64, params)
    v = jax.tree.map(np.zeros_like, w)
    for step, grads in enumerate(all_grads):
        for layer in w:
            for name in ("kernel", "bias"):
                rate, decay = (0.1 if step < DROP_STEP else 0.01), 0.3
                if name == "bias":
                    rate = factor * (rate if follows else 0.1)
                    decay = 0.3 if decays_too else 0.0
                v[layer][name] = (
                    0.9 * v[layer][name] - decay * rate * w[layer][name] - rate * grads[layer][name]
                )
                w[layer][name] = w[layer][name] + v[layer][name]
        expected.append(jax.tree.map(np.copy, w))
    assert_close(got, expected)


@pytest.mark.parametrize(("optimizer", "slowed_by"), [("paper", 1.0), ("sgd", 0.1)])
def test_only_the_papers_velocity_keeps_the_old_rate(optimizer, slowed_by):
    """A gradient once, then none: the old velocity alone moves the weights on."""
    tx = make_optimizer(optimizer, constant(0.1), momentum=0.9)
    params = {"fc8": {"kernel": jnp.array([1.0])}}
    updates, state = tx.update({"fc8": {"kernel": jnp.array([2.0])}}, tx.init(params), params)
    np.testing.assert_allclose(updates["fc8"]["kernel"], [-0.2], rtol=1e-6)
    updates, _ = tx.update({"fc8": {"kernel": jnp.array([0.0])}}, state, params, drops=1)
    np.testing.assert_allclose(updates["fc8"]["kernel"], [-0.2 * 0.9 * slowed_by], rtol=1e-6)


def test_the_papers_rule_and_sgd_agree_until_the_rate_drops():
    params, all_grads = problem()
    rules = [
        run(make_optimizer(name, one_drop(0.1), momentum=0.9, weight_decay=0.01), params, all_grads)
        for name in ("paper", "sgd")
    ]
    assert_close(rules[0][:DROP_STEP], rules[1][:DROP_STEP])
    difference = np.abs(rules[0][DROP_STEP]["fc8"]["kernel"] - rules[1][DROP_STEP]["fc8"]["kernel"])
    assert difference.min() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("decays_too", "factor"), [(True, 1.0), (False, 2.0)])
@pytest.mark.parametrize("dropped_by", ["schedule", "plateau"])
def test_sgd_is_pytorchs(decays_too, factor, dropped_by, torch):
    schedule = one_drop(0.1) if dropped_by == "schedule" else constant(0.1)
    tx = make_optimizer(
        "sgd",
        schedule,
        momentum=0.9,
        weight_decay=0.3,
        decay_biases=decays_too,
        bias_rate_factor=factor,
    )
    params, all_grads = problem()
    drops = (lambda step: int(step >= DROP_STEP)) if dropped_by == "plateau" else (lambda step: 0)

    w = jax.tree.map(
        lambda array: torch.tensor(array, dtype=torch.float64, requires_grad=True), params
    )
    groups = {
        "kernel": dict(lr=0.1, weight_decay=0.3),
        "bias": dict(lr=0.1 * factor, weight_decay=0.3 if decays_too else 0.0),
    }
    sgd = torch.optim.SGD(
        [dict(params=[w[layer][name] for layer in w], **groups[name]) for name in groups],
        momentum=0.9,
    )
    expected = []
    for step, grads in enumerate(all_grads):
        if step == DROP_STEP:
            for group in sgd.param_groups:
                group["lr"] /= 10
        for layer in w:
            for name in w[layer]:
                w[layer][name].grad = torch.tensor(grads[layer][name], dtype=torch.float64)
        sgd.step()
        expected.append(jax.tree.map(lambda tensor: tensor.detach().numpy().copy(), w))
    assert_close(run(tx, params, all_grads, drops), expected)


@pytest.mark.parametrize("decays_too", [True, False])
def test_adamw_is_optaxs(decays_too):
    schedule = scheduled("cosine", 0.1, 5, 2, warmup_epochs=0.4)
    params, all_grads = problem()
    tx = make_optimizer("adamw", schedule, weight_decay=0.3, decay_biases=decays_too)
    mask = jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel" or decays_too, params)
    adamw = optax.adamw(schedule, weight_decay=0.3, mask=mask)
    theirs, state, update = [params], adamw.init(params), jax.jit(adamw.update)
    for grads in all_grads:
        updates, state = update(grads, state, theirs[-1])
        theirs.append(optax.apply_updates(theirs[-1], updates))
    assert_close(run(tx, params, all_grads), theirs[1:])


@pytest.mark.parametrize("optimizer", ["paper", "sgd", "adamw"])
def test_each_layer_has_its_own_decay(optimizer):
    """Without a gradient, the first step is the decay: w - e d w."""
    params = jax.tree.map(
        jnp.ones_like, problem()[0] | {"fc10": {"kernel": np.ones(3), "bias": np.ones(3)}}
    )
    grads = jax.tree.map(jnp.zeros_like, params)
    momentum = {} if optimizer == "adamw" else {"momentum": 0.9}
    for decays_too in (True, False):
        tx = make_optimizer(
            optimizer,
            constant(0.1),
            weight_decay=0.004,
            decay_factors={"conv1": 0, "fc10": 250},
            decay_biases=decays_too,
            **momentum,
        )
        updates = jax.jit(lambda tx=tx: tx.update(grads, tx.init(params), params)[0])()
        for layer, decay in (("conv1", 0.0), ("fc8", 0.004), ("fc10", 1.0)):
            for name, expected in (("kernel", decay), ("bias", 0.004 * decays_too)):
                np.testing.assert_allclose(
                    updates[layer][name], -0.1 * expected, rtol=1e-5, atol=1e-12
                )


# ---- schedules


def test_epochs_schedule_at_its_corners():
    schedule = scheduled("epochs", 0.01, 7, 9, drop_epochs="2,5,8")
    rates = jax.jit(jax.vmap(schedule))(jnp.arange(63))
    np.testing.assert_allclose(
        rates, [0.01] * 14 + [0.001] * 21 + [0.0001] * 21 + [0.00001] * 7, rtol=1e-5
    )


def test_drops_beyond_the_last_countable_step_are_never_reached():
    schedule = jax.jit(scheduled("epochs", 0.01, 9_931, 90, drop_epochs="30,999999"))
    rates = [schedule(jnp.int32(step)) for step in (30 * 9_931 - 1, 30 * 9_931, 2**31 - 1)]
    np.testing.assert_allclose(rates, [0.01, 0.001, 0.001], rtol=1e-6)


def test_plateau_and_constant_schedules_do_not_move():
    for name in ("plateau", "constant"):
        schedule = scheduled(name, 0.01, 7, 9)
        rates = [schedule(jnp.int32(step)) for step in (0, 31, 62)]
        np.testing.assert_allclose(rates, 0.01, rtol=1e-6)


def test_cosine_schedule_rises_and_ends_at_zero():
    schedule = scheduled("cosine", 0.1, 100, 10, warmup_epochs=2)
    rates = {step: float(schedule(step)) for step in (0, 100, 199, 200, 201, 400, 600, 1000)}
    assert rates[0] == pytest.approx(0.001, rel=1e-5)  # a hundredth, then linear
    assert rates[100] == pytest.approx((0.001 + 0.1) / 2)
    assert rates[200] == pytest.approx(0.1) and rates[199] < rates[200] > rates[201]
    assert rates[400] == pytest.approx(0.05 * (1 + np.cos(np.pi / 4)))
    assert rates[600] == pytest.approx(0.05)
    assert rates[1000] == pytest.approx(0.0, abs=1e-9)
    without = scheduled("cosine", 0.1, 100, 10)
    assert float(without(0)) == pytest.approx(0.1) and float(without(500)) == pytest.approx(0.05)


# ---- the plateau


after_epoch = jax.jit(drop_on_plateau, static_argnames=("patience", "num_drops"))


def drops_after_each(errors_pct, patience: int, num_drops: int) -> list[int]:
    """`drops` after each epoch."""
    plateau, drops = new_plateau(), []
    for error_pct in errors_pct:
        plateau = after_epoch(plateau, error_pct, patience=patience, num_drops=num_drops)
        drops.append(int(plateau.drops))
    return drops


def reference(errors_pct, patience: int, num_drops: int) -> list[int]:
    """From the text: after each epoch, look back at the last `patience` epochs at this rate for a
    new best.
    """
    new_bests = [
        error < min([100.0, *errors_pct[:epoch]]) for epoch, error in enumerate(errors_pct)
    ]
    drops, first_epoch = [], 0  # at the present rate
    for epoch in range(len(errors_pct)):
        window = new_bests[first_epoch : epoch + 1][-patience:]
        drop = len(window) == patience and not any(window) and max(drops, default=0) < num_drops
        drops.append(max(drops, default=0) + drop)
        if drop:
            first_epoch = epoch + 1
    return drops


@given(
    errors=st.lists(st.integers(0, 6), min_size=1, max_size=30),
    patience=st.sampled_from((1, 2, 4)),
    num_drops=st.sampled_from((0, 1, 3)),
)
def test_plateau_against_looking_back(errors, patience, num_drops):
    """Errors in sevenths of 100%: ties are frequent, and no float32 is exact."""
    errors_pct = [100 * wrong / 7 for wrong in errors]
    assert drops_after_each(errors_pct, patience, num_drops) == reference(
        errors_pct, patience, num_drops
    )


def test_plateau_by_hand():
    errors_pct = [50, 40, 40, 40, 40, 40, 30, 31, 32, 33, 34, 35]
    assert drops_after_each(errors_pct, 2, 3) == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert drops_after_each([50, 49, 48, 47], 1, 3) == [0, 0, 0, 0]  # it improves all the time
    assert drops_after_each([50, 50, 49.99, 50], 1, 3) == [0, 1, 1, 2]  # a tie is no improvement
    # Three times (section 5), no more.
    assert drops_after_each([60, 60, 60, 60, 60], 1, 3) == [0, 1, 2, 3, 3]
    assert drops_after_each([60, 60, 60], 1, 0) == [0, 0, 0]


def test_an_error_of_100_percent_is_no_improvement_on_nothing():
    assert drops_after_each([100.0, 100.0, 99.0, 100.0], 2, 3) == [0, 1, 1, 1]
    assert drop_on_plateau(new_plateau(), 100.0, patience=5, num_drops=3) == (100.0, 1, 0)


def test_a_plateaus_state_keeps_its_types():
    """It is part of the checkpoint."""
    types = [(leaf.shape, leaf.dtype) for leaf in new_plateau()]
    for error_pct in (37.5, np.float64(37.5), np.float32(37.5)):
        after = drop_on_plateau(new_plateau(), error_pct, patience=1, num_drops=3)
        assert isinstance(after, Plateau) and [(leaf.shape, leaf.dtype) for leaf in after] == types
