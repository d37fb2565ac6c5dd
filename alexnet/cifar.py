"""cuda-convnet's networks for CIFAR-10. On such ones the paper shows what ReLU and normalization
bring; it says no more of them than 'four-layer'.

Krizhevsky's cuda-convnet, example-layers/layers-18pct.cfg and layers-conv-local-13pct.cfg, named
after their test errors. With lrn='none' and without weight decay, 'cifar18' has the four layers of
weights of the 2012 paper's figure 1, which specifies no more.

    cifar18  24x24x3  conv1 5x5 24x24x32  pool1 12x12  conv2 5x5 12x12x32  pool2 6x6
                      conv3 5x5 6x6x64  pool3 3x3  fc10
    cifar13  24x24x3  conv1 5x5 24x24x64  pool1 12x12  conv2 5x5 12x12x64  pool2 6x6
                      local3, local4 3x3 6x6x32  fc10

In shapes: B examples, H rows and W columns of pixels, C channels or maps.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from alexnet.lrn import normalization
from alexnet.pooling import average_pool, max_pool
from alexnet.sequence import ACTIVATIONS, Keys, LayerSequence, bias_in_float32
from common.errors import UserError

# cifar13's normalizations are those of the later layers-conv-local-11pct.cfg, which differs in two
# more ways.
ORDERS = {
    "cifar18": """conv1 pool1 activation1 norm1  conv2 activation2 pool2 norm2
                  conv3 activation3 pool3  fc10""",
    "cifar13": """conv1 activation1 pool1 norm1  conv2 activation2 norm2 pool2
                  local3 activation3  local4 activation4  fc10""",
}
MAPS = {
    "cifar18": {"conv1": 32, "conv2": 32, "conv3": 64},
    "cifar13": {"conv1": 64, "conv2": 64, "local3": 32, "local4": 32},
}
AVERAGE_POOLS = {"cifar18": ("pool2", "pool3"), "cifar13": ()}  # the others take the maximum

# Standard deviations of initial weights; biases are 0. Pixels are 0 to 255, so conv1's is small.
DEVIATIONS = {
    "cifar18": {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "fc10": 0.01},
    "cifar13": {"conv1": 1e-4, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "fc10": 0.01},
}
# Each layer's weight decay in units of 0.004; biases have none.
WEIGHT_DECAY_FACTORS = {
    "cifar18": {"conv1": 1, "conv2": 1, "conv3": 1, "fc10": 250},
    "cifar13": {"conv1": 0, "conv2": 0, "local3": 1, "local4": 1, "fc10": 1},
}


class CifarNet(LayerSequence):
    """(B, input_size, input_size, in_channels) float images -> (B, num_classes) logits.

    Images are pixels of 0 to 255 minus the training set's mean image; the scale of the initial
    weights depends on that.

    Args:
      net: 'cifar18' or 'cifar13'.
      lrn: 'none', 'across' all maps or 'within_map'; see alexnet/lrn.py, also for the four numbers,
        whose defaults are those of cifar18 (within its maps).
      activation: a key of ACTIVATIONS.
      pooling: 'overlapping' (3x3 windows, 2 apart) or 'non_overlapping' (2x2); both halve the size,
        rounded down.
      convolution: a function with the signature of `lax.conv_general_dilated`.
      dtype: what the layers compute in; parameters and logits are float32.

    Raises UserError if `input_size` leaves nothing after a pool.
    """

    def __init__(
        self,
        net: str,
        *,
        input_size: int = 24,
        lrn: str = "none",
        lrn_size: int = 3,
        lrn_alpha: float = 5e-5,
        lrn_alpha_over_n: bool = True,
        lrn_k: float = 1.0,
        activation: str = "relu",
        pooling: str = "overlapping",
        num_classes: int = 10,
        in_channels: int = 3,
        convolution: Callable = lax.conv_general_dilated,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.order = nnx.static(
            tuple(name for name in ORDERS[net].split() if lrn != "none" or "norm" not in name)
        )
        size, maps = input_size, in_channels  # of the next layer's input
        for name in self.order:
            if name.startswith("pool"):
                size //= 2
                if not size:
                    raise UserError(
                        f"--crop_size={input_size} leaves nothing after {name} of {net}"
                    )
            if name not in DEVIATIONS[net]:
                continue
            options = dict(
                kernel_init=nnx.initializers.normal(DEVIATIONS[net][name]), dtype=dtype, rngs=rngs
            )
            if not name.startswith("local"):  # which does so itself
                options |= dict(promote_dtype=bias_in_float32)
            outputs = MAPS[net].get(name, num_classes)
            if name.startswith("conv"):
                options |= dict(padding=[(2, 2), (2, 2)], conv_general_dilated=convolution)
                layer = nnx.Conv(maps, outputs, (5, 5), **options)
            elif name.startswith("local"):
                layer = LocallyConnected(size, maps, outputs, **options)
            else:
                layer = nnx.Linear(size * size * maps, outputs, **options)
            setattr(self, name, layer)
            maps = outputs

        overlapping = pooling == "overlapping"
        self.max_pool, self.average_pool = (
            partial(pool, overlapping=overlapping) for pool in (max_pool, average_pool)
        )
        self.average_pools = nnx.static(AVERAGE_POOLS[net])
        self.activation = ACTIVATIONS[activation]
        self.norm = normalization(
            lrn, size=lrn_size, alpha=lrn_alpha, alpha_over_n=lrn_alpha_over_n, k=lrn_k
        )

    def layer(
        self, name: str, x: Float[Array | np.ndarray, "B ..."], keys: Keys | None = None
    ) -> Float[Array, "B ..."]:
        """`keys` are for AlexNet's dropout; there is none here."""
        if name.startswith("pool"):
            return self.average_pool(x) if name in self.average_pools else self.max_pool(x)
        if name.startswith("activation"):
            return self.activation(x)
        if name.startswith("norm"):
            return self.norm(x)
        if name == "fc10":
            x = x.reshape(x.shape[0], -1)
        layer = getattr(self, name)
        return layer(x).astype(layer.dtype)


class LocallyConnected(nnx.Module):
    """A 3x3 convolution with its own weights at every pixel, zero-padded to keep the size.

    `kernel` is (size, size, 9 * in_features, features): for each pixel the rows, columns and inputs
    of its 3x3 window, in this order. `bias` is (size, size, features).
    """

    def __init__(
        self,
        size: int,
        in_features: int,
        features: int,
        *,
        kernel_init,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (size, size, 9 * in_features, features)))
        self.bias = nnx.Param(jnp.zeros((size, size, features)))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "B size size C"]) -> Float[Array, "B size size features"]:
        _, height, width, _ = x.shape
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        # A product of (B, 9 * in) and (9 * in, out) per pixel. The pixels are the leading axes, as
        # in matmul: twice as fast as an einsum on (B, H, W, 9 * in).
        x = x.transpose(1, 2, 0, 3)
        x = jnp.pad(x, ((1, 1), (1, 1), (0, 0), (0, 0)))  # (H + 2, W + 2, B, in)
        windows = [x[i : i + height, j : j + width] for i in range(3) for j in range(3)]
        outputs = jnp.matmul(jnp.concatenate(windows, axis=-1), kernel)  # (H, W, B, out)
        return outputs.transpose(2, 0, 1, 3) + self.bias[...]
