"""The loss that both networks have: the cross-entropy of a softmax."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Logits, Labels = Float[Array | np.ndarray, "B classes"], Int[Array | np.ndarray, " B"]
Losses = Float[Array, " B"]


def cross_entropy(logits: Logits, labels: Labels, *, label_smoothing: float = 0.0) -> Losses:
    """-log softmax(logits) of each example's label.

    `label_smoothing` is the share of the target that is spread evenly over all classes.
    """
    classes = logits.shape[-1]
    targets = jax.nn.one_hot(labels, classes) * (1 - label_smoothing) + label_smoothing / classes
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)
