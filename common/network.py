"""A network that was put together from its config, and one with the weights of a run.

Shapes: B images; stored ones are (B, H, W, C) uint8, as the files have them, prepared ones
(B, S, S, C) float32, as the first layer takes them.
"""

import functools
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from common.classes import listed, moved, name_of
from common.digests import require_fit
from common.errors import UserError
from common.overlap import trained_on_digits
from common.processes import is_first_process

PREDICT_BATCH_SIZE = 256


class Network(NamedTuple):
    """The network that a config describes, as functions of its {layer: {parameter: array}}.

    Attributes:
      config: the run's settings.
      num_classes: outputs of the last layer.
      num_parameters: weights and biases; masked weights do not count.
      image_shapes: the (H, W, C) of stored images that `prepare` takes.
      init: () -> parameters, drawn from `config.seed`.
      bind: parameters -> the Flax module that has them.
      prepare: stored images -> prepared ones; with `draw` (B,), for training, distorted or
        augmented by the numbers that (seed, draw) gives.
      loss: (B, num_classes) logits and (B,) labels -> (B,).
    """

    config: Any
    num_classes: int
    num_parameters: int
    image_shapes: tuple[tuple[int, int, int], ...]
    init: Callable[[], Any]
    bind: Callable[[Any], nnx.Module]
    prepare: Callable
    loss: Callable

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
    """

    network: Network
    params: Any
    step: int
    class_names: tuple[str, ...] | None

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


def load_init_from(
    config, load: Callable, target, names: tuple[str, ...] | None, output: str
) -> Trained | None:
    """The run --init_from, its weights on the host; None without it.

    Classes that both runs have keep what was learned of them, whatever their order: the weights of
    the layer `output` are moved. A line on stderr names the others, and another one says if the
    run has learned the digits that the new one is scored on.

    Args:
      target: the shapes that its weights must have.
      names: the classes of the new run.

    Raises:
      UserError: there is no such run, its weights do not have those shapes, or its classes are in
        another order and the layer has no weights.
    """
    if not config.init_from:
        return None
    folder, step = config.init_from, "newest"
    named = re.fullmatch(r"(.+)@(best|newest|\d+)", folder, re.DOTALL)
    if named and not Path(folder).expanduser().exists():
        folder, step = named[1], int(named[2]) if named[2].isdecimal() else named[2]
    source = load(folder, step)
    require_fit(source.params, target, Path(folder))
    params, known = jax.device_get(source.params), source.class_names
    unknown = [name for name in names or () if known and name not in known]
    order = moved(names, known, source.network.num_classes)
    if order is not None and output in params:
        params[output] = jax.tree.map(lambda leaf: leaf[..., order], params[output])
    elif order is not None and (order != np.arange(len(order))).any():
        raise UserError(
            f"--init_from={config.init_from} has its classes in another order ({listed(known)}), "
            "which --output=rbf with its fixed codes cannot follow"
        )
    lines = [trained_on_digits(source.config.dataset, config.dataset, "test")]
    if not known:
        lines.append(f"--init_from={config.init_from} has no class names: outputs go by position")
    if unknown:
        lines.append(
            f"--init_from={config.init_from} does not know the classes {listed(unknown)}: their "
            "outputs start from weights of others"
        )
    for line in filter(None, lines if is_first_process() else ()):
        print(line, file=sys.stderr, flush=True)
    return source._replace(params=params)


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
