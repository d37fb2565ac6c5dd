"""A network as a sequence of named layers: what AlexNet and the CIFAR-10 networks share."""

import itertools
from collections import OrderedDict
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Float32, Key

from common.conv import cpu_convolution, is_exported

CACHED_VALUES = 2_400_000  # of the first layer's output, in prediction on a CPU: 10 MB as float32
ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid}


def bias_in_float32(arrays: tuple, *, dtype) -> tuple:
    """What a layer computes with, of its inputs, kernel and bias: the bias's gradient is a sum over
    all images, in a convolution over all their pixels, which bfloat16 does not hold.
    """
    inputs, kernel, bias = arrays
    return inputs.astype(dtype), kernel.astype(dtype), bias


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
        dropout, and a CPU takes the convolutions in parts of the batch.
        """
        on_cpu = self.conv1.conv_general_dilated is cpu_convolution
        x, names = images, self.order
        if keys is None and on_cpu and not is_exported(images.shape[0]):
            places = [i for i, name in enumerate(names) if name.startswith(("conv", "local"))]
            end = next(i for i, name in enumerate(names) if name.startswith("fc"))
            for first, last in itertools.pairwise([*places, end]):
                x = self.in_parts(names[first:last], x)
            names = names[end:]
        for name in names:
            x = self.layer(name, x, keys)
        return x.astype(jnp.float32)

    def in_parts(
        self, names: Sequence[str], x: Float[Array | np.ndarray, "B ..."]
    ) -> Float[Array, "B ..."]:
        """The output of the last of these layers, computed for a few images at a time."""
        size = self.part_size(names[0], x)

        def outputs(x):
            for name in names:
                x = self.one_by_one(name, x) if "norm" in name else self.layer(name, x)
            return x

        if size == len(x):
            return outputs(x)
        parts = lax.map(outputs, x.reshape(-1, size, *x.shape[1:]))
        return parts.reshape(len(x), *parts.shape[2:])

    def part_size(self, name: str, x: Float[Array | np.ndarray, "B ..."]) -> int:
        """So few of the B images that what a layer makes of them stays in the cache; all where no
        divisor of B is near that number.
        """
        one = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
        outputs = jax.eval_shape(lambda x: self.layer(name, x), one)
        limit = max(CACHED_VALUES // outputs.size, 1)
        size = max(size for size in range(1, limit + 1) if len(x) % size == 0)
        return len(x) if 2 * size < limit else size

    def one_by_one(self, name: str, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """A layer, in a loop over the images: XLA fuses none with what follows. Pooling would
        compute the normalization of a pixel anew in each of its windows; of a single image, which
        needs no loop, it does.
        """
        return lax.map(lambda image: self.layer(name, image[None])[0], x)

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
