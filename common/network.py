"""A network that was put together from its config, and one with the weights of a run.

Shapes: B images; stored ones are (B, H, W, C) uint8, as the files have them, prepared ones
(B, S, S, C) float32, as the first layer takes them.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from common.classes import name_of

PREDICT_BATCH_SIZE = 256


class Network(NamedTuple):
    """The network that a config describes, as functions of its {layer: {parameter: array}}.

    Attributes:
      config: the run's settings.
      num_classes: outputs of the last layer.
      num_parameters: weights and biases; masked weights do not count.
      image_shapes: the (H, W, C) of stored images that `prepare` takes, those of the training set
        first.
      init: () -> parameters, drawn from `config.seed`.
      bind: parameters -> the Flax module that has them.
      prepare: stored images -> prepared ones; with `draw` (B,), for training, distorted or
        augmented by the numbers that (seed, draw) gives.
      loss: (B, num_classes) logits and (B,) labels -> (B,).
      head: the last layer, which has an output for each class.
      frozen: the layers that do not learn.
    """

    config: Any
    num_classes: int
    num_parameters: int
    image_shapes: tuple[tuple[int, int, int], ...]
    init: Callable[[], Any]
    bind: Callable[[Any], nnx.Module]
    prepare: Callable
    loss: Callable
    head: str = ""
    frozen: tuple[str, ...] = ()

    def learning(self, params) -> dict:
        """The part of {layer: {parameter: array}} that learns."""
        return {layer: params[layer] for layer in params if layer not in self.frozen}

    def logits(self, params, images, keys=None) -> jax.Array:
        """(B, num_classes) of prepared images; `keys` (B,), in training, are for dropout."""
        module = self.bind(params)
        return module(images) if keys is None else module(images, keys)

    def activations(self, params, images) -> dict[str, jax.Array]:
        """What each layer passes on, by its paper name: (B, H, W, maps), or (B, units)."""
        return self.bind(params).activations(images)


class Trained(NamedTuple):
    """A network with the weights that a run's evaluation uses.

    Attributes:
      network: what the run's config means.
      params: {layer: {parameter: array}}.
      step: updates done when they were saved.
      class_names: the name of each label; None where the run has none.
      statistics: of the images it was trained on, where `prepare` uses any; else ().
    """

    network: Network
    params: Any
    step: int
    class_names: tuple[str, ...] | None
    statistics: Any = ()

    def __repr__(self) -> str:
        network = self.network
        return (
            f"<trained on {network.config.dataset}: {network.num_parameters:,} parameters, "
            f"{network.num_classes:,} classes, step {self.step:,}>"
        )

    @property
    def config(self):
        """The run's settings."""
        return self.network.config

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Stored images (B, H, W, C) uint8 -> (B, num_classes) float32 probabilities.

        Gray images may lack the last axis. Raises ValueError for other shapes and types.
        """
        images = self._require_stored(images)
        found = [np.zeros((0, self.network.num_classes), np.float32)]
        for start in range(0, len(images), PREDICT_BATCH_SIZE):
            batch = images[start : start + PREDICT_BATCH_SIZE]
            if start:  # the last batch is filled up: one program for all
                filling = np.zeros((PREDICT_BATCH_SIZE - len(batch), *batch.shape[1:]), np.uint8)
                padded = np.concatenate([batch, filling])
            else:
                padded = batch
            found.append(np.asarray(_predict(self.network, self.params, padded))[: len(batch)])
        return np.concatenate(found)

    def classify(self, images: np.ndarray) -> list[str]:
        """The name of each image's most probable class, its number where the run has no names; of
        images as for `predict`.
        """
        numbers = self.predict(images).argmax(axis=1).tolist()
        return [name_of(number, self.class_names) for number in numbers]

    def activations(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """`Network.activations` of stored images (B, H, W, C) uint8, all in one batch."""
        images = self._require_stored(images)
        count, shape = images.shape[0], images.shape[1:]
        some = images if count else np.zeros((1, *shape), np.uint8)  # layers reshape no empty batch
        found = jax.device_get(_activations(self.network, self.params, some))
        return {name: values[:count] for name, values in found.items()}

    def _require_stored(self, images: np.ndarray) -> np.ndarray:
        images, shapes = np.asarray(images), self.network.image_shapes
        if images.ndim == 3 and (*images.shape[1:], 1) in shapes:
            images = images[..., None]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] not in shapes:
            allowed = " or ".join(f"(B, {', '.join(map(str, shape))})" for shape in shapes)
            raise ValueError(
                f"images must be {allowed} of uint8, as the files have them; these are "
                f"{images.shape} of {images.dtype}"
            )
        return images


def class_names(meta: dict) -> tuple[str, ...] | None:
    """The class names in what was saved with a checkpoint."""
    names = meta.get("class_names")
    return tuple(names) if names else None


def num_elements(params) -> int:
    """The numbers in a tree of arrays, or of their shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@functools.partial(jax.jit, static_argnums=0)
def _predict(network: Network, params, images):
    return jax.nn.softmax(network.logits(params, network.prepare(images)))


@functools.partial(jax.jit, static_argnums=0)
def _activations(network: Network, params, images):
    return network.activations(params, network.prepare(images))
