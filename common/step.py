"""What the train and evaluation steps of both networks are made of."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from common.network import Network

MAX_CONFUSION_CLASSES = 100  # a confusion matrix is kept up to here


def gradients(
    network: Network, params, batch, add_up: Callable, dropout_key: Callable | None = None
) -> tuple:
    """(gradients of the mean loss, sums {"loss", "errors", "count"}) of a global batch.

    Args:
      batch: {"image": (B, H, W, C) stored, "label": (B,), "draw": (B,)}.
      add_up: `add_up(sums_of, batch)` gives the sums over a global batch, whatever the devices
        (common/parallel.py).
      dropout_key: the draw of an image -> its key; None: without dropout.
    """

    def sums_of(part):
        images, label = network.prepare(part["image"], part["draw"]), part["label"]
        keys = jax.vmap(dropout_key)(part["draw"]) if dropout_key else None  # (B,)

        def sum_of_losses(params):
            logits = network.logits(params, images, keys)
            return network.loss(logits, label).sum(), logits

        (loss, logits), grads = jax.value_and_grad(sum_of_losses, has_aux=True)(params)
        errors = jnp.sum(logits.argmax(-1) != label)
        return grads, {"loss": loss, "errors": errors, "count": len(label)}

    grads, sums = add_up(sums_of, batch)
    scale = 1 / sums["count"]  # on one device the compiler would make a product of a division
    return jax.tree.map(lambda grad: grad * scale, grads), sums


def average(state, params, decay: float):
    """The exponential average of the weights after an update to `params`; () where decay is 0."""
    if not decay:
        return state.average
    decay = jnp.minimum(decay, (1 + state.step) / (10 + state.step))  # forgets the start sooner
    return optax.incremental_update(params, state.average, 1 - decay)


def score_sums(network: Network, logits, batch) -> dict[str, jax.Array]:
    """The sums of loss, errors and count and, for few classes, the confusion matrix [true,
    predicted] of a batch {"label": (B,), "mask": (B,)}, whose places count where the mask is True.
    """
    label, mask, predicted = batch["label"], batch["mask"], logits.argmax(-1)
    sums = {
        "loss": jnp.sum(network.loss(logits, label) * mask),
        "errors": jnp.sum((predicted != label) & mask),
        "count": jnp.sum(mask),
    }
    if logits.shape[-1] <= MAX_CONFUSION_CLASSES:
        confusion = jnp.zeros((logits.shape[-1],) * 2, jnp.int32)
        sums["confusion"] = confusion.at[label, predicted].add(mask)
    return sums
