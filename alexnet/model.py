"""AlexNet as one Flax module, and its loss.

Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks, NIPS
2012.

    input       conv1 11x11/4  pool1  conv2 5x5  pool2  conv3 3x3  conv4 3x3  conv5 3x3  pool5  fc6
    fc7   fc8 227x227x3   55x55x96       27x27  27x27x256  13x13  13x13x384  13x13x384  13x13x256
    6x6    4096  4096  1000

Its descendants differ in the order of the small layers, in what a normalization sees, and in where
dropout stands: so the order is a line of text here, and the forward pass walks along it. In shapes:
B examples, height and width in pixels, then maps.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from alexnet import lrn as normalizations
from alexnet import pooling as pools
from common.errors import UserError

# Kernels of conv1 to conv5, units of fc6 and fc7, and conv1's kernel size and stride.
WIDTHS = {
    "2012": ((96, 256, 384, 384, 256), 4096, (11, 4)),
    "one_weird_trick": ((64, 192, 384, 256, 256), 4096, (11, 4)),  # Krizhevsky 2014, torchvision
    "small": ((16, 48, 64, 64, 48), 256, (5, 1)),  # for 32x32 images
}
CONV1_PADDING = {
    "none": (0, 0),
    "bottom_right": (0, 3),
    "symmetric": (2, 2),
}  # pixels before and after, in both directions

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
TOWERS = (
    "conv2",
    "conv4",
    "conv5",
)  # with two towers these see only the maps of their own half; conv3 sees all (3.2)
HIDDEN_BIAS = (
    "conv2",
    "conv4",
    "conv5",
    "fc6",
    "fc7",
)  # start at `hidden_bias`, the others at 0 (section 5)

ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid}


class AlexNet(nnx.Module):
    """(B, input_size, input_size, in_channels) float images -> (B, num_classes) logits.

    Args:
      widths: a key of WIDTHS. conv1_padding: of CONV1_PADDING. activation: of ACTIVATIONS.
      towers: 2 halves the inputs of each kernel in conv2, conv4 and conv5.
      lrn: 'none', 'across' all maps, 'within_tower', or 'within_map' (alexnet/lrn.py has them, and
        the four numbers).
      norm_order: a key of CONV_ORDERS. dropout_at: of FC_ORDERS.
      pooling: 'overlapping' (3x3 windows, 2 apart) or 'non_overlapping' (2x2); both halve the size,
        rounded down.
      dropout: share of values set to zero. dropout_scaling: 'test' multiplies by 1 - dropout where
        nothing is dropped (the paper, 4.2); 'training' divides by it where something is. The
        functions agree; the gradients in training do not.
      initialization: a key of DEVIATIONS, 'he' (truncated normal, deviation sqrt(2 / F), F the
        inputs of a unit) or 'torch' (weights and biases from U(-1 / sqrt F, 1 / sqrt F)).
      hidden_bias: where the biases of HIDDEN_BIAS start.
      convolution: a function with the signature of `lax.conv_general_dilated`.
      dtype: what the layers compute in; parameters are float32, logits too.
      before_fc: applied to the (B, values) that enter the fully connected layers; where these are
        split over devices, it brings together what the convolutions split (common/parallel.py).

    Raises UserError if nothing of an image is left after pool5.
    """

    def __init__(
        self,
        *,
        widths: str = "2012",
        input_size: int = 227,
        conv1_padding: str = "none",
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
        convolution=lax.conv_general_dilated,
        dtype=jnp.float32,
        before_fc=lambda x: x,
        rngs: nnx.Rngs,
    ):
        features, hidden, (kernel_size, stride) = WIDTHS[widths]
        padding = CONV1_PADDING[conv1_padding]
        size = (input_size + sum(padding) - kernel_size) // stride + 1  # of conv1's maps; 55
        size = size // 8  # three pools, each half the size rounded down; 6
        if size < 1:
            smallest = 7 * stride + kernel_size - sum(padding)
            raise UserError(
                f"--crop_size={input_size} leaves nothing after pool5; this conv1 needs at least {smallest}"
            )

        def initial(name: str, fan_in: int) -> dict:
            bias = hidden_bias if name in HIDDEN_BIAS else 0.0
            kernel_init, bias_init = initializers(initialization, name, fan_in, bias)
            return dict(kernel_init=kernel_init, bias_init=bias_init, dtype=dtype, rngs=rngs)

        def conv(
            name: str,
            inputs: int,
            outputs: int,
            size: int,
            padding: tuple[int, int],
            strides: int = 1,
        ) -> nnx.Conv:
            groups = towers if name in TOWERS else 1
            settings = dict(
                padding=[padding, padding],
                feature_group_count=groups,
                conv_general_dilated=convolution,
            )
            fan_in = size * size * inputs // groups
            return nnx.Conv(
                inputs, outputs, (size, size), strides, **settings, **initial(name, fan_in)
            )

        def fc(name: str, inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(inputs, outputs, **initial(name, inputs))

        self.conv1 = conv("conv1", in_channels, features[0], kernel_size, padding, stride)
        self.conv2 = conv("conv2", features[0], features[1], 5, (2, 2))
        self.conv3 = conv("conv3", features[1], features[2], 3, (1, 1))
        self.conv4 = conv("conv4", features[2], features[3], 3, (1, 1))
        self.conv5 = conv("conv5", features[3], features[4], 3, (1, 1))
        self.fc6 = fc("fc6", size * size * features[4], hidden)
        self.fc7 = fc("fc7", hidden, hidden)
        self.fc8 = fc("fc8", hidden, num_classes)

        self.activation = ACTIVATIONS[activation]
        self.pool = partial(pools.max_pool, overlapping=pooling == "overlapping")
        numbers = dict(size=lrn_size, alpha=lrn_alpha, alpha_over_n=lrn_alpha_over_n, k=lrn_k)
        self.norm = normalizations.normalization(lrn, towers=towers, **numbers)
        # cnorm2 of layers-145.cfg: rnorm with size 5, scale 0.001, pow 0.75.
        self.map_norm = normalizations.normalization(
            "within_map", size=5, alpha=1e-3, alpha_over_n=True, k=1.0, towers=1
        )
        self.dropout, self.dropout_scaling, self.before_fc = dropout, dropout_scaling, before_fc
        names = f"{CONV_ORDERS[norm_order]} {FC_ORDERS[dropout_at]}".split()
        self.order = nnx.static(
            tuple(name for name in names if lrn != "none" or "norm" not in name)
        )

    def __call__(self, images: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """`keys`: (B,) random keys, one an image, in training; without them nothing is dropped."""
        x = images
        for name in self.order:
            x = self.layer(name, x, keys)
        return x.astype(jnp.float32)  # (B, num_classes)

    def layer(self, name: str, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """One layer of `order`."""
        kind, number = name[:-1], int(name[-1])
        if kind == "dropout":
            return drop(x, self.dropout, self.dropout_scaling, keys, number)
        if kind in ("activation", "pool", "norm", "map_norm"):
            return getattr(self, kind)(x)
        if kind == "fc":
            x = self.before_fc(x.reshape(len(x), -1))  # (B, 6, 6, 256) -> (B, 9216)
        return getattr(self, name)(x)


def drop(x: jax.Array, rate: float, scaling: str, keys: jax.Array | None, number: int) -> jax.Array:
    """Dropout of (B, ...): what is dropped from image i is a function of keys[i] and the layer's
    `number` alone.
    """
    if keys is None:
        return x * (1 - rate) if scaling == "test" else x
    if not rate:
        return x
    kept = jax.vmap(
        lambda key: jax.random.bernoulli(jax.random.fold_in(key, number), 1 - rate, x.shape[1:])
    )(keys)
    return jnp.where(kept, x if scaling == "test" else x / (1 - rate), 0)


DEVIATIONS = {  # of the normal distribution that weights start from
    "paper": {},  # 0.01 in all layers (section 5)
    "caffe": {"fc6": 0.005, "fc7": 0.005},  # bvlc_alexnet/train_val.prototxt
    "code2012": {"conv3": 0.03, "conv4": 0.03, "conv5": 0.03},  # layers-145.cfg
}


def initializers(initialization: str, name: str, fan_in: int, bias: float):
    """(kernel_init, bias_init) of the layer `name` whose units have `fan_in` inputs; `bias` is
    where its biases start.
    """
    if initialization == "torch":

        def uniform(key, shape, dtype=jnp.float32):
            return jax.random.uniform(key, shape, dtype, -1, 1) / np.sqrt(fan_in)

        return uniform, uniform
    if initialization == "he":
        return nnx.initializers.he_normal(), nnx.initializers.constant(bias)
    deviation = DEVIATIONS[initialization].get(name, 0.01)
    return nnx.initializers.normal(deviation), nnx.initializers.constant(bias)


def loss_function(label_smoothing: float = 0.0):
    """The loss of each example: (B, classes) logits and (B,) labels -> (B,): -log softmax(logits)
    of the label (section 3.5).

    `label_smoothing` is the share of the target that is spread over all classes.
    """

    def cross_entropy(logits, labels):
        targets = (
            jax.nn.one_hot(labels, logits.shape[-1]) * (1 - label_smoothing)
            + label_smoothing / logits.shape[-1]
        )
        return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)

    return cross_entropy


def layer_table(model: nnx.Module, input_size: int, in_channels: int = 3) -> list[dict]:
    """One row a layer, activations left out: {"name", "output", "parameters", "multiply_adds",
    "deck_parameters", "deck_computations"}, computed from the module itself, which may be abstract
    (`nnx.eval_shape`).

    `multiply_adds` counts the multiplications of weights. The lecture deck counts otherwise: the
    biases of convolutions are in, both as parameters and once per output as computations; those of
    fully connected layers are left out of both.
    """
    graphdef, state = nnx.split(model)
    params, rows = nnx.to_pure_dict(state), []
    shape = (1, input_size, input_size, in_channels)
    for name in model.order:
        inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
        shape = jax.eval_shape(
            lambda state, x, name=name: nnx.merge(graphdef, state).layer(name, x), state, inputs
        ).shape
        if name.startswith("activation"):
            continue
        counts = dict.fromkeys(
            ("parameters", "multiply_adds", "deck_parameters", "deck_computations"), 0
        )
        if name in params:
            weights, biases = (
                int(np.prod(params[name][kind].shape)) for kind in ("kernel", "bias")
            )
            uses = int(np.prod(shape[1:-1])) if name.startswith("conv") else 1  # of each weight
            counts = {
                "parameters": weights + biases,
                "multiply_adds": uses * weights,
                "deck_parameters": weights + biases * (not name.startswith("fc")),
                "deck_computations": uses * (weights + biases * (not name.startswith("fc"))),
            }
        rows.append({"name": name, "output": list(shape[1:]), **counts})
    return rows
