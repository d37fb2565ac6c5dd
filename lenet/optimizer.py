"""Optimizers and schedules, among them the paper's: stochastic diagonal Levenberg-Marquardt (LeCun
et al. 1998, appendix C).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from common.losses import Labels, Logits, Losses
from lenet.config import Config

Images = Float[Array | np.ndarray, "B 32 32 C"]

MU = 0.02  # section III.B
# The global rate eta of the 20 passes (section III.B): from pass 1, 3, 6, 9 and 13 on.
PAPER_RATES = {1: 0.0005, 3: 0.0002, 6: 0.0001, 9: 0.00005, 13: 0.00001}


def learning_rate_schedule(config: Config, epoch_steps: int) -> optax.Schedule:
    """Updates done -> the learning rate of the next, in epochs of `epoch_steps` updates.

    'constant'; 'cosine', to 0 at the end after a linear warm-up; 'paper', the eta of section III.B
    for each pass, times the learning rate; or 'thirds', a tenth after each third of the passes.
    """
    rate, num_steps = config.learning_rate, config.num_epochs * epoch_steps
    if config.schedule == "cosine":
        warmup_steps = min(round(config.warmup_epochs * epoch_steps), num_steps - 1)
        return optax.warmup_cosine_decay_schedule(rate / 100, rate, warmup_steps, num_steps)
    third = config.num_epochs / 3
    thirds = {1: 1.0, math.ceil(third) + 1: 0.1, math.ceil(2 * third) + 1: 0.01}
    factors = dict(paper=PAPER_RATES, thirds=thirds, constant={1: 1.0})[config.schedule]
    rates = [optax.constant_schedule(rate * factor) for factor in factors.values()]
    # Steps are int32: a pass that begins later is never reached.
    first_steps = [min((first_pass - 1) * epoch_steps, 2**31 - 1) for first_pass in factors]
    return optax.join_schedules(rates, first_steps[1:])


def build_optimizer(config: Config, epoch_steps: int) -> optax.GradientTransformation:
    """'sgd' (decay is added to the gradient), 'adamw' (of its own b1 = 0.9) or 'sdlm' (neither),
    with its schedule for epochs of `epoch_steps` updates.
    """
    schedule = learning_rate_schedule(config, epoch_steps)
    if config.optimizer == "sdlm":
        return sdlm(schedule)
    if config.optimizer == "adamw":
        return optax.adamw(schedule, weight_decay=config.weight_decay)
    decay = optax.add_decayed_weights(config.weight_decay)
    return optax.chain(decay, optax.sgd(schedule, momentum=config.momentum or None))


class SDLMState(NamedTuple):
    count: Int[Array, ""]  # updates done
    curvature: PyTree[Float[Array, "..."]]  # h_kk of eq. 21, estimated before each pass


def sdlm(schedule: optax.Schedule) -> optax.GradientTransformation:
    """w_k <- w_k - eta / (mu + h_kk) dE/dw_k (eq. 21). The training loop sets the state's h_kk."""

    def init(params):
        return SDLMState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(grads, state, params=None):
        eta = schedule(state.count)
        updates = jax.tree.map(lambda grad, h: -eta / (MU + h) * grad, grads, state.curvature)
        return updates, SDLMState(optax.safe_increment(state.count), state.curvature)

    return optax.GradientTransformation(init, update)


def curvature(
    model: nnx.Module, images: Images, labels: Labels, loss: Callable[[Logits, Labels], Losses]
) -> dict[str, dict[str, Float[Array, "..."]]]:
    """h_kk >= 0 of appendix C, averaged over the examples: {layer: {parameter: array}}.

    In each layer, a = sum of u x plus a bias, and x = f(a). From the last layer to the first:

        d2E/da2 = f'(a)^2 d2E/dx2      the term with f'' is left out (eq. 27)
        d2E/du2 = d2E/da2 x^2          summed over the connections that share a weight (eq. 23, 25)
        d2E/dx2 = sum of u^2 d2E/da2   of the layer before (eq. 27)

    The last two are the gradient of the same linear layer with its weights and inputs squared, and
    are computed so. A subsampling unit has one input, the average or the sum of four, so that each
    of the four gets (1/4)^2 or all of its d2E/dx2. For the last of these layers, d2E/dx2 is the
    exact diagonal of the Hessian of the loss: for F6 through the RBF units; for squashed outputs
    the loss is half their squared distance from the targets, and it is 1. `model` is a `LeNet5`
    with trainable subsampling and one of these two outputs.
    """
    last, logits_of = ("output", lambda x: x) if model.f6 is None else ("f6", model.output)
    names = ("c1", "s2", "c3", "s4", "c5", last)
    x, seen = images.transpose(1, 3, 2, 0), {}  # (32, C, 32, B), as in the layers up to C5
    for name in names:
        layer = getattr(model, name)
        x = x.reshape(120, -1).T if name == last else x
        inputs = layer.pool(x) if name in ("s2", "s4") else x
        x, slope = jax.jvp(model.activation, (layer(x),), (jnp.ones_like(layer(x)),))
        seen[name] = inputs, slope

    def diagonal_of_hessian(x, label):  # (units,), of one example
        return jnp.diagonal(jax.hessian(lambda x: loss(logits_of(x[None]), label[None])[0])(x))

    h = jnp.maximum(jax.vmap(diagonal_of_hessian)(x, labels), 0)  # below 0 only by rounding

    result = {}
    for name in reversed(names):
        layer, (inputs, slope) = getattr(model, name), seen[name]
        h = (h.T.reshape(slope.shape) if name == "c5" else h) * slope**2
        graphdef, state = nnx.split(layer)

        def linear(params, x, name=name, graphdef=graphdef):
            layer = nnx.merge(graphdef, params)
            return layer.scale(x) if name in ("s2", "s4") else layer(x)

        squares = jax.tree.map(jnp.square, (nnx.to_pure_dict(state), inputs))
        outputs, pull_back = jax.vjp(linear, *squares)
        result[name], h = pull_back(h.astype(outputs.dtype))
        if name in ("s2", "s4"):
            h = jnp.repeat(jnp.repeat(h, 2, axis=0), 2, axis=2) * layer.pool_weight**2
    return jax.tree.map(lambda h: h / len(images), result)
