"""AlexNet as one Flax module.

Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks, NIPS
2012.

    input      conv1 11x11/4  pool1  conv2 5x5  pool2  conv3 3x3  conv4 3x3  conv5 3x3  pool5
    227x227x3  55x55x96       27x27  27x27x256  13x13  13x13x384  13x13x384  13x13x256  6x6
               fc6   fc7   fc8
               4096  4096  1000

Its descendants differ in the order of activation, normalization, pooling and dropout, so the order
is a string here that the forward pass follows. In shapes: B examples, H rows and W columns of
pixels, C channels or maps.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from alexnet import lrn as normalizations
from alexnet import pooling as pools
from alexnet.sequence import ACTIVATIONS, Keys, LayerSequence, bias_in_float32
from common.errors import UserError
from common.losses import Labels, Logits, Losses, cross_entropy

# Kernels of conv1 to conv5, units of fc6 and fc7, and conv1's kernel size and stride.
WIDTHS = {
    "2012": ((96, 256, 384, 384, 256), 4096, (11, 4)),
    "one_weird_trick": ((64, 192, 384, 256, 256), 4096, (11, 4)),  # torchvision's
    "small": ((16, 48, 64, 64, 48), 256, (5, 1)),  # for 32x32 images
    "narrow": ((32, 64, 96, 96, 64), 512, (11, 4)),  # for a few hundred photos of 256x256 pixels
    # What 3.2 compares two towers with: half the kernels, but for the last convolution.
    "half_small": ((8, 24, 32, 32, 48), 256, (5, 1)),
}
# Pixels of zeros before and after, in both directions.
CONV1_PADDING = {"none": (0, 0), "bottom_right": (0, 3), "symmetric": (2, 2)}

# Section 3.5 says ReLU, normalization, pooling; the lecture deck has pooling first; 'code2012' is
# the released configuration layers-145.cfg, in which conv1 is normalized before the ReLU and conv2
# a second time, within each map.
CONV_ORDERS = {
    "norm_pool": """conv1 activation1 norm1 pool1  conv2 activation2 norm2 pool2
                    conv3 activation3  conv4 activation4  conv5 activation5 pool5""",
    "pool_norm": """conv1 activation1 pool1 norm1  conv2 activation2 pool2 norm2
                    conv3 activation3  conv4 activation4  conv5 activation5 pool5""",
    "code2012": """conv1 norm1 pool1 activation1  conv2 activation2 norm2 map_norm2 pool2
                   conv3 activation3  conv4 activation4  conv5 pool5 activation5""",
}
FC_ORDERS = {
    "before": "dropout6 fc6 activation6  dropout7 fc7 activation7  fc8",
    "after": "fc6 activation6 dropout6  fc7 activation7 dropout7  fc8",
}
# With two towers, these see only the maps of their own half; conv3 sees all (section 3.2).
TOWERS = ("conv2", "conv4", "conv5")
# Biases start at `hidden_bias` here, at 0 elsewhere (section 5).
HIDDEN_BIAS = ("conv2", "conv4", "conv5", "fc6", "fc7")
# Standard deviations of initial weights that are not 0.01 (section 5).
DEVIATIONS = {
    "paper": {},
    "caffe": {"fc6": 0.005, "fc7": 0.005},  # bvlc_alexnet/train_val.prototxt
    "code2012": {"conv3": 0.03, "conv4": 0.03, "conv5": 0.03},  # layers-145.cfg
}


class AlexNet(LayerSequence):
    """(B, input_size, input_size, in_channels) float images -> (B, num_classes) logits.

    Args:
      widths: a key of WIDTHS. conv1_padding: of CONV1_PADDING. activation: of ACTIVATIONS.
      conv4: whether there is one; without it conv5 follows conv3.
      towers: with 2, each kernel of conv2, conv4 and conv5 sees half of the maps.
      lrn: 'none', 'across' all maps, 'within_tower' or 'within_map'; see alexnet/lrn.py, also for
        the four numbers.
      norm_order: a key of CONV_ORDERS. dropout_at: of FC_ORDERS.
      pooling: 'overlapping' (3x3 windows, 2 apart) or 'non_overlapping' (2x2); both halve the size,
        rounded down.
      dropout: the share of values set to zero. dropout_scaling: 'test' multiplies by 1 - dropout in
        evaluation (the paper, 4.2), 'training' divides by it in training. With the next layer's
        weights times 1 - dropout, 'training' has the same outputs and the same gradients, but for
        those weights: theirs are 1 / (1 - dropout) times as large.
      initialization: a key of DEVIATIONS, 'he' (truncated normal, deviation sqrt(2 / F), F the
        inputs of a unit) or 'torch' (weights and biases from U(-1 / sqrt F, 1 / sqrt F)).
      convolution: a function with the signature of `lax.conv_general_dilated`.
      dtype: what the layers compute in; parameters and logits are float32.
      before_fc: applied to the (B, units) inputs of fc6 to fc8; with a model axis it gathers what
        the convolutions computed on several devices (common/parallel.py).

    Raises UserError if `input_size` leaves nothing after pool5.
    """

    def __init__(
        self,
        *,
        widths: str = "2012",
        input_size: int = 227,
        conv1_padding: str = "none",
        conv4: bool = True,
        towers: int = 1,
        lrn: str = "across",
        lrn_size: int = 5,
        lrn_alpha: float = 1e-4,
        lrn_alpha_over_n: bool = False,
        lrn_k: float = 2.0,
        norm_order: str = "pool_norm",
        activation: str = "relu",
        pooling: str = "overlapping",
        dropout: float = 0.5,
        dropout_at: str = "before",
        dropout_scaling: str = "test",
        initialization: str = "paper",
        hidden_bias: float = 0.1,
        num_classes: int = 1000,
        in_channels: int = 3,
        convolution: Callable = lax.conv_general_dilated,
        dtype=jnp.float32,
        before_fc: Callable = lambda x: x,
        rngs: nnx.Rngs,
    ):
        features, hidden, (kernel_size, stride) = WIDTHS[widths]
        padding = CONV1_PADDING[conv1_padding]
        size = (input_size + sum(padding) - kernel_size) // stride + 1  # of conv1's maps: 55
        size = size // 8  # three pools, each half the size rounded down: 6
        if size < 1:
            smallest = 7 * stride + kernel_size - sum(padding)
            raise UserError(
                f"--crop_size={input_size} leaves nothing after pool5: "
                f"--conv1_padding={conv1_padding} needs at least {smallest}"
            )

        def initial(name: str, fan_in: int) -> dict:
            bias = hidden_bias if name in HIDDEN_BIAS else 0.0
            kernel_init, bias_init = initializers(initialization, name, fan_in, bias)
            options = dict(kernel_init=kernel_init, bias_init=bias_init, dtype=dtype, rngs=rngs)
            return options | dict(promote_dtype=bias_in_float32)

        def conv(name: str, inputs: int, outputs: int, size: int, padding, strides=1) -> nnx.Conv:
            groups = towers if name in TOWERS else 1
            options = dict(feature_group_count=groups, conv_general_dilated=convolution)
            options |= initial(name, size * size * inputs // groups)
            padding = [padding, padding]
            return nnx.Conv(inputs, outputs, (size, size), strides, padding=padding, **options)

        def fc(name: str, inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(inputs, outputs, **initial(name, inputs))

        self.conv1 = conv("conv1", in_channels, features[0], kernel_size, padding, stride)
        self.conv2 = conv("conv2", features[0], features[1], 5, (2, 2))
        self.conv3 = conv("conv3", features[1], features[2], 3, (1, 1))
        if conv4:
            self.conv4 = conv("conv4", features[2], features[3], 3, (1, 1))
        self.conv5 = conv("conv5", features[3 if conv4 else 2], features[4], 3, (1, 1))
        self.fc6 = fc("fc6", size * size * features[4], hidden)
        self.fc7 = fc("fc7", hidden, hidden)
        self.fc8 = fc("fc8", hidden, num_classes)

        self.activation = ACTIVATIONS[activation]
        self.pool = partial(pools.max_pool, overlapping=pooling == "overlapping")
        numbers = dict(size=lrn_size, alpha=lrn_alpha, alpha_over_n=lrn_alpha_over_n, k=lrn_k)
        self.norm = normalizations.normalization(lrn, towers=towers, **numbers)
        # cnorm2 of layers-145.cfg: rnorm with size 5, scale 0.001, pow 0.75.
        self.map_norm = normalizations.within_map_normalization
        self.dropout, self.dropout_scaling, self.before_fc = dropout, dropout_scaling, before_fc
        absent = () if conv4 else ("conv4", "activation4")
        names = f"{CONV_ORDERS[norm_order]} {FC_ORDERS[dropout_at]}".split()
        self.order = nnx.static(
            tuple(
                name
                for name in names
                if name not in absent and (lrn != "none" or "norm" not in name)
            )
        )

    def layer(
        self, name: str, x: Float[Array | np.ndarray, "B ..."], keys: Keys | None = None
    ) -> Float[Array, "B ..."]:
        kind, number = name[:-1], int(name[-1])
        if kind == "dropout":
            return drop(x, self.dropout, self.dropout_scaling, keys, number)
        if kind in ("activation", "pool", "norm", "map_norm"):
            return getattr(self, kind)(x)
        if kind == "fc":
            x = self.before_fc(x.reshape(x.shape[0], -1))  # (B, 6, 6, 256) -> (B, 9216)
        layer = getattr(self, name)
        return layer(x).astype(layer.dtype)


def drop(
    x: Float[Array, "B ..."], rate: float, scaling: str, keys: Keys | None, number: int
) -> Float[Array, "B ..."]:
    """Dropout. What is dropped from image i depends on keys[i] and the layer's `number` alone."""
    if keys is None:
        return x * (1 - rate) if scaling == "test" else x
    if not rate:
        return x
    kept = jax.vmap(
        lambda key: jax.random.bernoulli(jax.random.fold_in(key, number), 1 - rate, x.shape[1:])
    )(keys)
    return jnp.where(kept, x if scaling == "test" else x / (1 - rate), 0)


def initializers(
    initialization: str, name: str, fan_in: int, bias: float
) -> tuple[Callable, Callable]:
    """(kernel_init, bias_init) of the layer `name`, whose units have `fan_in` inputs each and whose
    biases start at `bias`.
    """
    if initialization == "torch":

        def uniform(key, shape, dtype=jnp.float32):
            return jax.random.uniform(key, shape, dtype, -1, 1) / np.sqrt(fan_in)

        return uniform, uniform
    if initialization == "he":
        return nnx.initializers.he_normal(), nnx.initializers.constant(bias)
    deviation = DEVIATIONS[initialization].get(name, 0.01)
    return nnx.initializers.normal(deviation), nnx.initializers.constant(bias)


def loss_function(label_smoothing: float = 0.0) -> Callable[[Logits, Labels], Losses]:
    """Cross-entropy (section 3.5)."""
    return partial(cross_entropy, label_smoothing=label_smoothing)


def layer_table(model: LayerSequence, input_size: int) -> list[dict]:
    """One row per layer, activation functions aside: {"name", "output", "parameters",
    "multiply_adds", "deck_parameters", "deck_computations"}.

    `output` is [H, W, maps] or [units]. `multiply_adds` counts multiplications by a weight. The
    lecture deck counts differently: the biases of convolutions count as parameters, and once per
    output as computations; those of fully connected layers do not count.

    Args:
      model: may be abstract (`nnx.eval_shape`).
    """
    params, rows = nnx.to_pure_dict(nnx.state(model, nnx.Param)), []
    in_channels = model.conv1.kernel.shape[2]
    images = jax.ShapeDtypeStruct((1, input_size, input_size, in_channels), jnp.float32)
    outputs = nnx.eval_shape(lambda model, images: model.activations(images), model, images)
    for name, x in outputs.items():
        weights, biases = (
            math.prod(params[name][kind].shape) if name in params else 0
            for kind in ("kernel", "bias")
        )
        uses = math.prod(x.shape[1:-1]) if name.startswith("conv") else 1  # of each weight
        deck_parameters = weights + biases * (not name.startswith("fc"))
        counts = {
            "parameters": weights + biases,
            "multiply_adds": uses * weights,
            "deck_parameters": deck_parameters,
            "deck_computations": uses * deck_parameters,
        }
        rows.append({"name": name, "output": list(x.shape[1:]), **counts})
    return rows
