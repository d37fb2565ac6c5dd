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
    """(gradients of the mean loss, sums {"loss", "errors", "count"}) of a global batch, for the
    layers that learn.

    Args:
      batch: {"image": (B, H, W, C) stored, "label": (B,), "draw": (B,)}.
      add_up: `add_up(sums_of, batch)` gives the sums over a global batch, whatever the devices
        (common/parallel.py).
      dropout_key: the draw of an image -> its key; None: without dropout.
    """

    def sums_of(part):
        images, label = network.prepare(part["image"], part["draw"]), part["label"]
        keys = jax.vmap(dropout_key)(part["draw"]) if dropout_key else None  # (B,)

        def sum_of_losses(learning):
            logits = network.logits(params | learning, images, keys)
            return network.loss(logits, label).sum(), logits

        learning = network.learning(params)
        (loss, logits), grads = jax.value_and_grad(sum_of_losses, has_aux=True)(learning)
        errors = jnp.sum(logits.argmax(-1) != label)
        return grads, {"loss": loss, "errors": errors, "count": len(label)}

    grads, sums = add_up(sums_of, batch)
    scale = 1 / sums["count"]  # on one device the compiler would make a product of a division
    return jax.tree.map(lambda grad: grad * scale, grads), sums


def update(network: Network, tx, state, grads, **schedule) -> dict:
    """The fields of `state` after an update of the layers that learn. The others keep their bits:
    no sum is made with them, as -0.0 + 0.0 is 0.0.

    Args:
      state: a NamedTuple with `step`, `params`, `opt_state` and `average`.
      schedule: more arguments of `tx.update`.
    """
    config, head, learning = network.config, network.head, network.learning(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, learning, **schedule)
    if config.head_rate != 1 and head in updates:  # all optimizers are linear in the rate
        scaled = jax.tree.map(lambda each: config.head_rate * each, updates[head])
        updates = updates | {head: scaled}
    learning = optax.apply_updates(learning, updates)
    averaged = average(state, learning, config.average_decay)
    params = state.params | learning
    return dict(step=state.step + 1, params=params, opt_state=opt_state, average=averaged)


def after_backward(grads, rate):
    """`rate`, but known only once the backward pass has reached the first layer; NaN where that
    one's gradient begins with NaN.

    Updates that need the rate wait for it then. XLA cannot see otherwise that the backward pass
    needs the weights no more, and copies all of them first. A constant stays one, as rounding
    depends on it.
    """
    if not isinstance(rate, jax.Array):
        return rate
    first = jax.tree.leaves(grads)[0].ravel()[0]
    return jnp.where(jnp.isnan(first), jnp.nan, rate)


def average(state, learning, decay: float):
    """The exponential average of the weights after an update to `learning`, those that learn; ()
    where decay is 0.
    """
    if not decay:
        return state.average
    decay = jnp.minimum(decay, (1 + state.step) / (10 + state.step))  # forgets the start sooner
    before = {layer: state.average[layer] for layer in learning}
    return state.average | optax.incremental_update(learning, before, 1 - decay)


def make_eval_step(network: Network, scores: Callable, *, top5: bool = False) -> Callable:
    """Returns eval_step(params, batch) -> the sums of loss, errors and count over a batch {"image":
    (B, H, W, C) stored, "label": (B,), "mask": (B,)}, whose places count where the mask is True.

    For few classes also the confusion matrix [true, predicted]; with `top5` the sum of top5_errors.

    Args:
      scores: (params, stored images) -> (B, classes), which the network's loss takes.
    """

    @jax.jit
    def eval_step(params, batch):
        found, label, mask = scores(params, batch["image"]), batch["label"], batch["mask"]
        predicted, num_classes = found.argmax(-1), found.shape[-1]
        sums = {
            "loss": jnp.sum(network.loss(found, label) * mask),
            "errors": jnp.sum((predicted != label) & mask),
            "count": jnp.sum(mask),
        }
        if num_classes <= MAX_CONFUSION_CLASSES:
            confusion = jnp.zeros((num_classes, num_classes), jnp.int32)
            sums["confusion"] = confusion.at[label, predicted].add(mask)
        if top5:
            _, best = jax.lax.top_k(found, min(5, num_classes))  # (B, 5)
            sums["top5_errors"] = jnp.sum((best != label[:, None]).all(axis=-1) & mask)
        return sums

    return eval_step
