"""A network as a sequence of named layers: what AlexNet and the CIFAR-10 networks share."""

from collections import OrderedDict
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Key

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

    def outputs(
        self, images: Images, keys: Keys | None = None
    ) -> Iterator[tuple[str, Float[Array, "B ..."]]]:
        """Yields (name, output) of each layer of `order`."""
        x = images
        for name in self.order:
            x = self.layer(name, x, keys)
            yield name, x

    def __call__(self, images: Images, keys: Keys | None = None) -> Float32[Array, "B classes"]:
        """The logits. `keys`: one random key per image, in training; without them there is no
        dropout.
        """
        *_, (_, logits) = self.outputs(images, keys)
        return logits.astype(jnp.float32)

    def activations(self, images: Images) -> OrderedDict[str, Float32[Array, "B ..."]]:
        """Every layer of `layer_table` by name, in order, as the next layer sees it, without
        dropout: (B, H, W, maps) or (B, units); the last one holds the logits.

        An activation function belongs to the layer that it follows in `order`. Usually that is a
        convolution: 'conv1' is after the ReLU. Where normalization or pooling comes first (conv1
        and conv5 of code2012, conv1 of cifar18), 'conv1' and 'norm1' are before the ReLU, and
        'pool1' is after it.
        """
        result = OrderedDict()  # jax.jit would sort the keys of a dict
        for name, x in self.outputs(images):
            if not name.startswith("activation"):
                layer = name
            result[layer] = x.astype(jnp.float32)
        return result
