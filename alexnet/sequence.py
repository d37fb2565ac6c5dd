"""A network as a sequence of named layers: what AlexNet and the CIFAR-10 networks share."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Key

from common.conv import is_exported

CACHED_VALUES = 2_400_000  # of the first layer's output, in prediction on a CPU: 10 MB
ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid}

Images, Keys = Float[Array | np.ndarray, "B H W C"], Key[Array, " B"]


class LayerSequence(nnx.Module):
    """Calls the layers that `order` names, one after the other. A subclass sets `order` and defines
    `layer`.
    """

    def layer(
        self, name: str, x: Float[Array | np.ndarray, "B ..."], keys: Keys | None = None
    ) -> Float[Array, "B ..."]:
        """The output of one layer of `order` for the input x."""
        raise NotImplementedError

    def __call__(self, images: Images, keys: Keys | None = None) -> Float32[Array, "B classes"]:
        """The logits. `keys`: one random key per image, in training; without them there is no
        dropout, and on a CPU the layers up to the fully connected ones see a few images at a time.
        """
        first_fc = next(i for i, name in enumerate(self.order) if name.startswith("fc"))

        def maps(images):
            return self.through(self.order[:first_fc], images, keys)

        if keys is None and jax.default_backend() == "cpu" and not is_exported(images.shape[0]):
            x = self.in_parts(maps, images)
        else:
            x = maps(images)
        return self.through(self.order[first_fc:], x, keys).astype(jnp.float32)

    def through(
        self, names: Sequence[str], x: Float[Array | np.ndarray, "B ..."], keys: Keys | None
    ) -> Float[Array, "B ..."]:
        """The output of the last of these layers."""
        for name in names:
            x = self.layer(name, x, keys)
        return x

    def in_parts(self, function: Callable, images: Images) -> Float[Array, "B ..."]:
        """function(images), computed for so few images at a time that what the layers pass on stays
        in the cache; B is a multiple of their number. That takes three quarters of the time.
        """
        first = jax.eval_shape(lambda x: self.layer(self.order[0], x), images[:1])
        limit = max(CACHED_VALUES // math.prod(first.shape), 1)
        size = max(size for size in range(1, limit + 1) if images.shape[0] % size == 0)
        if size == images.shape[0] or 2 * size < limit:
            return function(images)
        outputs = jax.lax.map(function, images.reshape(-1, size, *images.shape[1:]))
        return outputs.reshape(-1, *outputs.shape[2:])

    def activations(self, images: Images) -> OrderedDict[str, Float32[Array, "B ..."]]:
        """Every layer of `layer_table` by name, in order, as the next layer sees it, without
        dropout: (B, H, W, maps) or (B, units); the last one holds the logits.

        An activation function belongs to the layer that it follows in `order`. Usually that is a
        convolution: 'conv1' is after the ReLU. Where normalization or pooling comes first (conv1
        and conv5 of code2012, conv1 of cifar18), 'conv1' and 'norm1' are before the ReLU, and
        'pool1' is after it.
        """
        result = OrderedDict()  # jax.jit would sort the keys of a dict
        x = images
        for name in self.order:
            x = self.layer(name, x)
            if not name.startswith("activation"):
                layer = name
            result[layer] = x.astype(jnp.float32)
        return result
