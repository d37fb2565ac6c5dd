"""Optimizers and schedules, among them the paper's: a velocity that includes the learning rate, and
a rate that drops on plateaus.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32, Int, Int32

from alexnet.cifar import WEIGHT_DECAY_FACTORS
from alexnet.config import Config
from common.step import after_backward

DROP = 0.1  # the factor of a drop of the rate (section 5)


def learning_rate_schedule(config: Config, epoch_steps: int) -> optax.Schedule:
    """Updates done -> the learning rate of the next, in epochs of `epoch_steps` updates.

    'constant'; 'plateau', constant too, with drops by `drop_on_plateau`; 'epochs', divided by 10
    after each of --drop_epochs; 'cosine', to 0 at the end after a linear warm-up.
    """
    rate, num_steps = config.learning_rate, config.num_epochs * epoch_steps
    if config.schedule == "cosine":
        warmup_steps = min(round(config.warmup_epochs * epoch_steps), num_steps - 1)
        return optax.warmup_cosine_decay_schedule(rate / 100, rate, warmup_steps, num_steps)
    if config.schedule == "epochs":
        steps = [epoch * epoch_steps for epoch in config.drop_epoch_numbers]
        drops = {step: DROP for step in steps if step < 2**31}  # steps are int32
        return optax.piecewise_constant_schedule(rate, drops)
    return optax.constant_schedule(rate)


def build_optimizer(config: Config, epoch_steps: int) -> optax.GradientTransformationExtraArgs:
    """The optimizer with its schedule for epochs of `epoch_steps` updates."""
    return make_optimizer(
        config.optimizer,
        learning_rate_schedule(config, epoch_steps),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        decay_factors=WEIGHT_DECAY_FACTORS.get(config.net),
        decay_biases=config.decay_biases,
        bias_rate_factor=config.bias_rate_factor,
        drop_bias_rate=config.drop_bias_rate,
    )


class OptimizerState(NamedTuple):
    count: Int[Array, ""]  # updates done
    memory: Any  # what the rule keeps of the gradients, such as the velocity


def make_optimizer(
    optimizer: str,
    schedule: optax.Schedule,
    *,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    decay_factors: Mapping[str, float] | None = None,
    decay_biases: bool = True,
    bias_rate_factor: float = 1.0,
    drop_bias_rate: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer of {layer: {parameter: array}}. Its `update` also takes `drops`, how often the
    rate has dropped so far.

    With the rate e and the weight decay d of a parameter w, and its gradient g:
    'paper': v <- momentum v - d e w - e g, w <- w + v (section 5; so do the 2012 code and Caffe).
      A velocity keeps the rates that it was made with.
    'sgd': v <- momentum v + (g + d w), w <- w - e v (PyTorch, Optax): a drop acts at once.
    'adamw': decoupled weight decay; `momentum` has no meaning.

    Args:
      decay_factors: {layer: its weight decay over `weight_decay`}, 1 by default.
      decay_biases: biases decay with `weight_decay`.
      bias_rate_factor: the rate of biases over that of weights.
      drop_bias_rate: if not, biases keep the schedule's first rate times the factor (2012 code).
    """
    rules = {"paper": paper_rule, "sgd": sgd_rule}
    rule = adamw_rule() if optimizer == "adamw" else rules[optimizer](momentum)

    def decay_of(layer: str, name: str) -> float:
        if name == "bias":
            return weight_decay * decay_biases
        return weight_decay * (decay_factors or {}).get(layer, 1.0)

    def init(params):
        return OptimizerState(jnp.zeros((), jnp.int32), rule.init(params))

    def update(grads, state, params, *, drops=0):
        rate = after_backward(grads, schedule(state.count) * DROP**drops)
        bias_rate = bias_rate_factor * (rate if drop_bias_rate else schedule(0))

        def for_each(value):
            return {layer: {name: value(layer, name) for name in params[layer]} for layer in params}

        rates = for_each(lambda layer, name: bias_rate if name == "bias" else rate)
        decays = for_each(decay_of)
        updates, memory = rule.update(grads, state.memory, params, rates=rates, decays=decays)
        return updates, OptimizerState(optax.safe_increment(state.count), memory)

    return optax.GradientTransformationExtraArgs(init, update)


def paper_rule(momentum: float) -> optax.GradientTransformationExtraArgs:
    """v <- momentum v - d e w - e g; the update is v (section 5). Each update gets e and d."""

    def update(grads, velocity, params, *, rates, decays):
        velocity = jax.tree.map(
            lambda v, g, w, rate, decay: momentum * v - decay * rate * w - rate * g,
            *(velocity, grads, params, rates, decays),
        )
        return velocity, velocity

    def init(params):
        return jax.tree.map(jnp.zeros_like, params)

    return optax.GradientTransformationExtraArgs(init, update)


def sgd_rule(momentum: float) -> optax.GradientTransformationExtraArgs:
    """Optax's momentum, on the gradient plus decay times weight; times the rate."""
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
    """The state of the plateau schedule."""

    best_error_pct: Float32[Array, ""]  # of validation
    epochs_since_best: Int32[Array, ""]
    drops: Int32[Array, ""]


def new_plateau() -> Plateau:
    """Before the first epoch: no error is worse than 100%."""
    zero = jnp.zeros((), jnp.int32)
    return Plateau(jnp.full((), 100.0, jnp.float32), epochs_since_best=zero, drops=zero)


def drop_on_plateau(plateau: Plateau, error_pct, *, patience: int, num_drops: int) -> Plateau:
    """The state after an epoch with this validation error. The rate drops, at most `num_drops`
    times, after `patience` epochs without a new best; section 5: "when the validation error rate
    stopped improving with the current learning rate".
    """
    improved = error_pct < plateau.best_error_pct
    epochs_since_best = jnp.where(improved, 0, plateau.epochs_since_best + 1)
    drop = (epochs_since_best >= patience) & (plateau.drops < num_drops)
    return Plateau(
        jnp.minimum(plateau.best_error_pct, jnp.float32(error_pct)),
        jnp.where(drop, 0, epochs_since_best),
        plateau.drops + drop.astype(jnp.int32),
    )
