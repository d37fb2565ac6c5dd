"""Optimizers and schedules, among them the paper's: stochastic diagonal Levenberg-Marquardt (LeCun
et al. 1998, appendix C).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

MU = 0.02  # section III.B
# The global rate eta for each of the 20 passes (section III.B): from pass 1, 3, 6, 9 and 13 on.
PAPER_RATES = {1: 0.0005, 3: 0.0002, 6: 0.0001, 9: 0.00005, 13: 0.00001}


def learning_rate_schedule(
    schedule: str,
    learning_rate: float,
    *,
    steps_per_epoch: int,
    num_steps: int,
    warmup_epochs: float = 0.0,
):
    """step -> rate. 'constant'; 'cosine', to 0 at `num_steps`, after a linear rise over
    `warmup_epochs`; or 'paper', the eta of section III.B for each pass, times `learning_rate`.
    """
    if schedule == "cosine":
        warmup_steps = min(round(warmup_epochs * steps_per_epoch), num_steps - 1)
        return optax.warmup_cosine_decay_schedule(
            learning_rate / 100, learning_rate, warmup_steps, num_steps
        )
    if schedule == "paper":
        rates = [optax.constant_schedule(learning_rate * eta) for eta in PAPER_RATES.values()]
        return optax.join_schedules(
            rates, [(first_pass - 1) * steps_per_epoch for first_pass in PAPER_RATES][1:]
        )
    return optax.constant_schedule(learning_rate)


def make_optimizer(
    optimizer: str, schedule, *, momentum: float = 0.0, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """'sgd' (`momentum`; weight decay added to the gradient), 'adamw' or 'sdlm' (no momentum, no
    decay).
    """
    if optimizer == "sdlm":
        return sdlm(schedule)
    if optimizer == "adamw":
        return optax.adamw(schedule, weight_decay=weight_decay)
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(schedule, momentum=momentum or None)
    )


class SDLMState(NamedTuple):
    """`count` () int32: updates done. `curvature`: h_kk of eq. 21, the shape of the parameters; set
    anew before each pass.
    """

    count: jax.Array
    curvature: Any


def sdlm(schedule, mu: float = MU) -> optax.GradientTransformation:
    """w_k <- w_k - eta / (mu + h_kk) dE/dw_k (eq. 21), with the h_kk of `curvature`, which the loop
    puts into the state.
    """

    def init(params):
        return SDLMState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(grads, state, params=None):
        del params
        eta = schedule(state.count)
        updates = jax.tree.map(lambda grad, h: -eta / (mu + h) * grad, grads, state.curvature)
        return updates, SDLMState(optax.safe_increment(state.count), state.curvature)

    return optax.GradientTransformation(init, update)


def curvature(
    model: nnx.Module, images: jax.Array, labels: jax.Array, loss
) -> dict[str, dict[str, jax.Array]]:
    """h_kk >= 0, the diagonal second derivatives of appendix C, the mean over the examples: {layer:
    {parameter: array}}.

    For the paper's layers C1 to F6: a = sum of u x plus a bias, x = f(a). In each layer, from the
      last to the first, d2E/da2 = f'(a)^2 d2E/dx2                         the term with f'' is left
      out (eq. 27) d2E/du2 = d2E/da2 x^2                             (eq. 25), summed over the
      connections that share a weight (eq. 23) d2E/dx2 of the layer before = sum of u^2 d2E/da2
      (eq. 27)
    The last two are the gradient of the same linear layer with its weights and inputs squared,
    which is how they are computed. A subsampling unit has one input, the average m of four: d2E/dm2
    reaches each of the four times (1/4)^2.

    At the output, d2E/dx2 of F6's 84 values is the exact diagonal of the Hessian of the loss
    through the RBF units: 2 for eq. 8; 2 p_0 + sum of p_i d_i^2 - (sum of p_i d_i)^2 for eq. 9,
    with d_i = 2 (x - w_i), p_i the share of class i and p_0 that of the rubbish class in the sum
    under the logarithm; the same without p_0 for the cross-entropy.

    Args:
      model: with the layers c1, s2, c3, s4, c5, f6 and output, and `activation`; subsampling
        trainable.
      images: (B, 32, 32, channels); labels: (B,); loss: (B, classes) logits and labels -> (B,).
    """
    names = ("c1", "s2", "c3", "s4", "c5", "f6")
    x, seen = (
        images.transpose(1, 3, 2, 0),
        {},
    )  # (32, channels, 32, B): the layout of the layers up to C5
    for name in names:
        layer = getattr(model, name)
        x = x.reshape(120, -1).T if name == "f6" else x
        inputs = layer.pool(x) if name in ("s2", "s4") else x
        x, slope = jax.jvp(model.activation, (layer(x),), (jnp.ones_like(layer(x)),))
        seen[name] = inputs, slope

    def loss_of_one(x, label):
        return loss(model.output(x[None]), label[None])[0]

    h = jax.vmap(lambda x, label: jnp.diagonal(jax.hessian(loss_of_one)(x, label)))(
        x, labels
    )  # (B, 84)
    h = jnp.maximum(h, 0)  # it is not negative but for rounding

    result = {}
    for name in reversed(names):
        inputs, slope = seen[name]
        layer = getattr(model, name)
        h = (h.T.reshape(slope.shape) if name == "c5" else h) * slope**2
        if name in ("s2", "s4"):
            linear, params = (
                scale_and_shift,
                {"coefficient": layer.coefficient[...], "bias": layer.bias[...]},
            )
        else:
            graphdef, state = nnx.split(layer)
            linear, params = (
                (lambda params, x, graphdef=graphdef: nnx.merge(graphdef, params)(x)),
                nnx.to_pure_dict(state),
            )
        _, pull_back = jax.vjp(linear, jax.tree.map(jnp.square, params), jnp.square(inputs))
        result[name], h = pull_back(h)
        if name in ("s2", "s4"):
            h = jnp.repeat(jnp.repeat(h, 2, axis=0), 2, axis=2) / 16
    return jax.tree.map(lambda h: h / len(images), result)


def scale_and_shift(params, x):
    """The linear part of a subsampling unit, of the average x."""
    return x * params["coefficient"][:, None, None] + params["bias"][:, None, None]
