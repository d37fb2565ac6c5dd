"""What the train steps of both networks are made of."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax


def gradient_sums(logits: Callable, loss: Callable, params, labels) -> tuple:
    """(gradients of the sum of the losses, {"loss", "errors", "count"}), sums over the examples.

    Args:
      logits: params -> (B, classes).
      loss: (B, classes) logits and (B,) labels -> (B,).
    """

    def sum_of_losses(params):
        outputs = logits(params)
        return loss(outputs, labels).sum(), outputs

    (loss_sum, outputs), grads = jax.value_and_grad(sum_of_losses, has_aux=True)(params)
    errors = jnp.sum(outputs.argmax(-1) != labels)
    return grads, {"loss": loss_sum, "errors": errors, "count": len(labels)}


def mean_gradients(grads, sums: dict) -> tuple:
    """(gradients, sums) of a batch, the gradients divided by its number of examples.

    By a product everywhere: on one device the compiler would make one of a division.
    """
    scale = 1 / sums["count"]
    return jax.tree.map(lambda grad: grad * scale, grads), sums


def average(state, params, decay: float):
    """The exponential average of the weights after an update to `params`; () where decay is 0."""
    if not decay:
        return state.average
    decay = jnp.minimum(decay, (1 + state.step) / (10 + state.step))  # forgets the start sooner
    return optax.incremental_update(params, state.average, 1 - decay)
