"""Optimizers and schedules, among them the paper's: a velocity that holds the rate, and a rate that
drops on plateaus.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

DROP = 0.1  # what a drop multiplies the rate by (section 5)


def learning_rate_schedule(
    schedule: str,
    learning_rate: float,
    *,
    steps_per_epoch: int,
    num_steps: int,
    drop_epochs: Sequence[int] = (),
    warmup_epochs: float = 0.0,
):
    """step -> rate. 'constant'; 'plateau', constant too: its drops come from `drop_on_plateau`;
    'epochs', divided by 10 after each of `drop_epochs`; 'cosine', to 0 at `num_steps`, after a
    linear rise over `warmup_epochs`.
    """
    if schedule == "cosine":
        warmup_steps = min(round(warmup_epochs * steps_per_epoch), num_steps - 1)
        return optax.warmup_cosine_decay_schedule(
            learning_rate / 100, learning_rate, warmup_steps, num_steps
        )
    if schedule == "epochs":
        return optax.piecewise_constant_schedule(
            learning_rate, {epoch * steps_per_epoch: DROP for epoch in drop_epochs}
        )
    return optax.constant_schedule(learning_rate)


class OptimizerState(NamedTuple):
    """`count` () int32: updates done. `memory`: what the rule keeps of the gradients, such as the
    velocity.
    """

    count: jax.Array
    memory: Any


def make_optimizer(
    optimizer: str,
    schedule,
    *,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    decay_factors: Mapping[str, float] | None = None,
    decay_biases: bool = True,
    bias_rate_factor: float = 1.0,
    drop_bias_rate: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer of {layer: {parameter: array}}, whose `update` takes `drops` too: how often the
    rate has dropped so far.

    With the rate e and the weight decay d of a parameter w, and its gradient g:
    'paper': v <- momentum v - d e w - e g, w <- w + v (section 5; so do the 2012 code and Caffe): a
      velocity keeps the rates it was made with.
    'sgd': v <- momentum v + (g + d w), w <- w - e v: PyTorch's and Optax's, where a drop slows the
    old velocity too.
    'adamw': decoupled weight decay, no momentum argument.

    Args:
      schedule: step -> rate, before drops.
      decay_factors: the weight decay of a layer's weights over `weight_decay`; 1 where it is not
        named.
      decay_biases: biases decay with `weight_decay`.
      bias_rate_factor: the rate of biases over that of weights.
      drop_bias_rate: if not, biases keep the schedule's first rate (times the factor), as in the
        2012 code.
    """
    rule = (
        {"paper": paper_rule, "sgd": sgd_rule}[optimizer](momentum)
        if optimizer != "adamw"
        else adamw_rule()
    )

    def decay_of(layer: str, name: str) -> float:
        if name == "bias":
            return weight_decay * decay_biases
        return weight_decay * (decay_factors or {}).get(layer, 1.0)

    def init(params):
        return OptimizerState(jnp.zeros((), jnp.int32), rule.init(params))

    def update(grads, state, params, *, drops=0):
        rate = schedule(state.count) * DROP**drops
        bias_rate = bias_rate_factor * (rate if drop_bias_rate else schedule(0))
        rates = {
            layer: {name: bias_rate if name == "bias" else rate for name in leaves}
            for layer, leaves in params.items()
        }
        decays = {
            layer: {name: decay_of(layer, name) for name in leaves}
            for layer, leaves in params.items()
        }
        updates, memory = rule.update(grads, state.memory, params, rates=rates, decays=decays)
        return updates, OptimizerState(optax.safe_increment(state.count), memory)

    return optax.GradientTransformationExtraArgs(init, update)


def paper_rule(momentum: float) -> optax.GradientTransformationExtraArgs:
    """v <- momentum v - d e w - e g, with the rates e and decays d given to each update; the update
    is v (section 5).
    """

    def update(grads, velocity, params, *, rates, decays):
        velocity = jax.tree.map(
            lambda v, g, w, rate, decay: momentum * v - decay * rate * w - rate * g,
            velocity,
            grads,
            params,
            rates,
            decays,
        )
        return velocity, velocity

    return optax.GradientTransformationExtraArgs(
        lambda params: jax.tree.map(jnp.zeros_like, params), update
    )


def sgd_rule(momentum: float) -> optax.GradientTransformationExtraArgs:
    """Optax's momentum on the gradient plus decay times weight; the rate comes last."""
    trace = optax.trace(momentum)

    def update(grads, memory, params, *, rates, decays):
        grads = jax.tree.map(lambda g, w, decay: g + decay * w, grads, params, decays)
        directions, memory = trace.update(grads, memory)
        return jax.tree.map(lambda direction, rate: -rate * direction, directions, rates), memory

    return optax.GradientTransformationExtraArgs(trace.init, update)


def adamw_rule() -> optax.GradientTransformationExtraArgs:
    """Optax's Adam, plus decay times weight, times the rate."""
    adam = optax.scale_by_adam()

    def update(grads, memory, params, *, rates, decays):
        directions, memory = adam.update(grads, memory)
        updates = jax.tree.map(
            lambda a, w, rate, decay: -rate * (a + decay * w), directions, params, rates, decays
        )
        return updates, memory

    return optax.GradientTransformationExtraArgs(adam.init, update)


class Plateau(NamedTuple):
    """What the plateau schedule remembers: the best validation error so far (percent), epochs since
    then, drops of the rate.
    """

    best_error_pct: jax.Array  # () float32
    epochs_since_best: jax.Array  # () int32
    drops: jax.Array  # () int32


def new_plateau() -> Plateau:
    """Before the first epoch: no error is worse than 100%."""
    return Plateau(
        jnp.full((), 100.0, jnp.float32), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    )


def drop_on_plateau(plateau: Plateau, error_pct, *, patience: int, num_drops: int) -> Plateau:
    """The state after an epoch with this validation error: the rate drops, `num_drops` times at
    most, where there was no new best for `patience` epochs; section 5: "when the validation error
    rate stopped improving with the current learning rate".
    """
    improved = error_pct < plateau.best_error_pct
    epochs_since_best = jnp.where(improved, 0, plateau.epochs_since_best + 1)
    drop = (epochs_since_best >= patience) & (plateau.drops < num_drops)
    return Plateau(
        jnp.minimum(plateau.best_error_pct, jnp.float32(error_pct)),
        jnp.where(drop, 0, epochs_since_best),
        plateau.drops + drop.astype(jnp.int32),
    )
