"""LeNet-5 as one Flax module, and its losses.

LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition, Proceedings
of the IEEE, 1998.

    input   C1 conv 5x5   S2 2x2     C3 conv 5x5, Table I   S4 2x2    C5 conv 5x5   F6    output
    32x32   28x28x6       14x14x6    10x10x16               5x5x16    1x1x120       84    10

In shapes: B examples, H rows and W columns of pixels, C channels or maps. Up to C5, arrays are
(H, C, W, B): LeNet-5 has too few maps to fill a vector register, a batch does (common/conv.py).
"""

import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32

from common.conv import lax_convolution, masked
from common.losses import Labels, Logits, Losses, cross_entropy
from lenet.connections import C3_TABLE, c3_mask

Images, Wide = Float[Array | np.ndarray, "B 32 32 C"], Float[Array | np.ndarray, "B 32 W C"]
Maps, HalfMaps = Float[Array | np.ndarray, "H C W B"], Float[Array, "H//2 C W//2 B"]

ACTIVATIONS = {
    "tanh": jnp.tanh,
    "scaled_tanh": lambda a: 1.7159 * jnp.tanh(2 / 3 * a),  # eq. 6: f(1) = 1, f(-1) = -1
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
}
POOLS = {  # of the four pixels of each 2x2 square
    "average": lambda corners: sum(corners) * 0.25,
    "sum": sum,
    "max": lambda corners: functools.reduce(jnp.maximum, corners),
}


class LeNet5(nnx.Module):
    """(B, 32, 32, in_channels) float images -> (B, num_classes) logits; the largest wins.

    Args:
      connections: for each C3 map, the S2 maps that it sees (see `c3_connections`).
      activation: a key of ACTIVATIONS, used by every layer up to F6.
      pooling: 'average' (no parameters, as in the lecture deck), 'trainable' (the paper's
        subsampling: times a coefficient, plus a bias) or 'max' (no parameters).
      subsampling: what trainable pooling scales: the 'average' (II.A) or the 'sum' (II.B).
      output: 'softmax' (a linear layer with biases), 'rbf' (the logits are minus the squared
        distances to `codes`, the fixed centers; eq. 7) or 'squashed' (a linear layer on C5 and the
        activation; no F6).
      initialization: see `uniform_by_fan_in` and `Subsampling`. Biases start at 0.
      convolution: `lax_convolution` or an equivalent (common/conv.py).
      dtype: what the layers compute in; parameters and logits are float32.
    """

    def __init__(
        self,
        *,
        connections: Sequence[Sequence[int]] = C3_TABLE,
        activation: str = "tanh",
        pooling: str = "average",
        subsampling: str = "average",
        output: str = "softmax",
        codes: Float[np.ndarray, "classes 84"] | None = None,
        initialization: str = "sqrt_fan_in",
        in_channels: int = 1,
        num_classes: int = 10,
        convolution: Callable = lax_convolution,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.connections = nnx.static(tuple(map(tuple, connections)))

        def conv(inputs: int, features: int, mask: np.ndarray | None = None) -> Convolution:
            function = convolution if mask is None else masked(convolution, mask)
            kernel_init = uniform_by_fan_in(initialization, mask)
            return Convolution(inputs, features, function, kernel_init, dtype, rngs=rngs)

        def linear(inputs: int, outputs: int) -> nnx.Linear:
            kernel_init = uniform_by_fan_in(initialization)
            return nnx.Linear(inputs, outputs, kernel_init=kernel_init, dtype=dtype, rngs=rngs)

        def pooled(maps: int) -> Subsampling:
            pool = "max" if pooling == "max" else subsampling
            return Subsampling(maps, pool, trainable=pooling == "trainable")

        self.c1 = conv(in_channels, 6)
        self.s2 = pooled(6)
        self.c3 = conv(6, 16, c3_mask(connections))
        self.s4 = pooled(16)
        self.c5 = conv(16, 120)
        self.f6 = None if output == "squashed" else linear(120, 84)
        units = 120 if output == "squashed" else 84
        self.output = EuclideanRBF(codes) if output == "rbf" else linear(units, num_classes)
        self.activation = ACTIVATIONS[activation]
        # Monotonic functions commute with the maximum: apply them once, after it. (silu does not.)
        self.before_pooling = (lambda a: a) if pooling == "max" else self.activation

    def forward(self, images: Wide) -> dict[str, Float[Array, "..."]]:
        """What each layer passes on to the next: (H, maps, W, B) up to C5, then (B, units).

        Wider images, of 32 + 4 n columns, give (n + 1) * B rows of units.
        """
        c1 = self.before_pooling(self.c1(images.transpose(1, 3, 2, 0)))  # (28, 6, 28, B)
        s2 = self.activation(self.s2(c1))  # (14, 6, 14, B)
        c3 = self.before_pooling(self.c3(s2))  # (10, 16, 10, B)
        s4 = self.activation(self.s4(c3))  # (5, 16, 5, B)
        c5 = self.activation(self.c5(s4))  # (1, 120, 1, B)
        layers, x = dict(c1=c1, s2=s2, c3=c3, s4=s4, c5=c5), c5.reshape(120, -1).T  # (B, 120)
        if self.f6 is None:
            return layers | dict(output=self.activation(self.output(x)).astype(jnp.float32))
        f6 = self.activation(self.f6(x))  # (B, 84)
        return layers | dict(f6=f6, output=self.output(f6).astype(jnp.float32))  # (B, num_classes)

    def __call__(self, images: Images) -> Float32[Array, "B classes"]:
        return self.forward(images)["output"]

    def activations(self, images: Images) -> OrderedDict[str, Float32[Array, "B ..."]]:
        """Every layer of `layer_table` by name, in order, as the next layer sees it: after the
        activation, (B, H, W, maps) up to C5, then (B, units).

        With max pooling, C1 and C3 pass on weighted sums: the activation follows the maximum.
        """
        # An OrderedDict, because jax.jit would sort the keys of a dict.
        return OrderedDict(
            (name, (x.transpose(3, 0, 2, 1) if x.ndim == 4 else x).astype(jnp.float32))
            for name, x in self.forward(images).items()
        )


class Convolution(nnx.Module):
    """A 5x5 convolution without padding, plus one bias per map."""

    def __init__(
        self, inputs: int, features: int, convolution, kernel_init, dtype, *, rngs: nnx.Rngs
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (5, 5, inputs, features)))
        self.bias = nnx.Param(jnp.zeros(features))
        self.convolution, self.dtype = convolution, dtype

    def __call__(self, x: Maps) -> Float[Array, "H-4 features W-4 B"]:
        x = self.convolution(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        # The bias is added in float32 because its gradient is a sum over all units of the map.
        return (x + self.bias[:, None, None]).astype(self.dtype)


class Subsampling(nnx.Module):
    """The 'average', 'sum' or 'max' of each 2x2 square; if `trainable`, times a coefficient plus a
    bias, one per map each.

    Coefficients start at 1; those of a sum at 1 / sqrt(4), as in Lush, so twice the average.
    """

    def __init__(self, maps: int, pool: str, *, trainable: bool):
        self.of_corners, self.trainable = POOLS[pool], trainable
        self.pool_weight = 1.0 if pool == "sum" else 0.25  # of each of the four (not of a maximum)
        if trainable:
            self.coefficient = nnx.Param(jnp.full(maps, 0.5 if pool == "sum" else 1.0, jnp.float32))
            self.bias = nnx.Param(jnp.zeros(maps))

    def __call__(self, x: Maps) -> HalfMaps:
        pooled = self.pool(x)
        return self.scale(pooled).astype(x.dtype) if self.trainable else pooled

    def pool(self, x: Maps) -> HalfMaps:
        height, maps, width, batch = x.shape
        squares = x.reshape(height // 2, 2, maps, width // 2, 2, batch)
        # XLA is faster with four slices than with a reduction.
        return self.of_corners([squares[:, i, :, :, j] for i in (0, 1) for j in (0, 1)])

    def scale(self, pooled: Maps) -> Maps:  # in float32, as in a convolution
        return pooled * self.coefficient[:, None, None] + self.bias[:, None, None]


class EuclideanRBF(nnx.Module):
    """Minus the squared distance to each class's fixed code, -y_i of eq. 7."""

    def __init__(self, codes: Float[np.ndarray, "classes 84"]):
        self.codes = nnx.static(tuple(map(tuple, codes.tolist())))  # constants, not state

    def __call__(self, x: Float[Array, "B 84"]) -> Float32[Array, "B classes"]:
        codes = jnp.asarray(self.codes, jnp.float32)  # (classes, 84)
        return -jnp.sum((x[:, None, :] - codes) ** 2, axis=-1)


def uniform_by_fan_in(initialization: str, mask: np.ndarray | None = None) -> Callable:
    """An initializer: U(-b, b), b = 2.4 / F ('fan_in', the paper's appendix A), 2.4 / sqrt F
    ('sqrt_fan_in') or 1 / sqrt F ('one_over_sqrt_fan_in', Lush), F the unit's number of inputs.
    Masked weights are zero.
    """

    def init(key, shape, dtype=jnp.float32):
        fan_in = np.float32(math.prod(shape[:-1]))
        if mask is not None:
            fan_in = mask.reshape(-1, shape[-1]).sum(axis=0)  # (out,)
        scale = 1.0 if initialization == "one_over_sqrt_fan_in" else 2.4
        bound = scale / (fan_in if initialization == "fan_in" else np.sqrt(fan_in))
        kernel = jax.random.uniform(key, shape, dtype, -1, 1) * bound
        if mask is not None:  # a product would make some zeros -0.0, which a sum turns into 0.0
            kernel = jnp.where(mask == 1, kernel, 0)
        return kernel.astype(dtype)

    return init


# The losses, per example. D is the label; the penalties of eq. 7 are y = -logits of the RBF output.


def penalty(logits: Logits, labels: Labels) -> Losses:
    """y_D, eq. 8."""
    return -jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]


def maximum_a_posteriori(logits: Logits, labels: Labels, *, map_constant: float) -> Losses:
    """y_D + log(exp(-j) + sum of exp(-y_i)), eq. 9; j = `map_constant`, of a rubbish class."""
    rubbish = jnp.full_like(logits[:, :1], -map_constant)
    desired = penalty(logits, labels)
    all_classes = jnp.concatenate([logits, rubbish], axis=-1)
    return desired + jax.nn.logsumexp(all_classes, axis=-1)


def squared_error(logits: Logits, labels: Labels) -> Losses:
    """Sum of (p_i - target_i)^2, p the softmax of the logits."""
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    return jnp.sum((jax.nn.softmax(logits) - targets) ** 2, axis=-1)


def half_squared_distance(outputs: Logits, labels: Labels) -> Losses:
    """1/2 of the sum of (o_i - t_i)^2, the target t_i 1 for the label and -1 for the others."""
    targets = 2 * jax.nn.one_hot(labels, outputs.shape[-1]) - 1
    return 0.5 * jnp.sum((outputs - targets) ** 2, axis=-1)


def loss_function(
    loss: str, output: str, *, map_constant: float | None = None, label_smoothing: float = 0.0
) -> Callable[[Logits, Labels], Losses]:
    """'mse' (eq. 8, or the squared error of that output), 'map' (eq. 9) or 'cross_entropy'."""
    if loss == "mse":
        return dict(rbf=penalty, softmax=squared_error, squashed=half_squared_distance)[output]
    if loss == "map":
        return functools.partial(maximum_a_posteriori, map_constant=map_constant)
    return functools.partial(cross_entropy, label_smoothing=label_smoothing)


def layer_table(model: LeNet5) -> list[dict]:
    """One row per layer: {"name", "output", "parameters", "connections", "multiply_adds"}.

    `output` is [H, W, maps] or [units]. Like the paper, `connections` counts each output unit's
    inputs and its bias; `multiply_adds` counts multiplications by a weight.
    """
    images = jax.ShapeDtypeStruct((1, 32, 32, model.c1.kernel.shape[2]), jnp.float32)
    outputs, rows = nnx.eval_shape(lambda model, x: model.activations(x), model, images), []
    for name, x in outputs.items():
        layer, maps, positions = getattr(model, name), x.shape[-1], math.prod(x.shape[1:-1])
        if isinstance(layer, Subsampling):
            parameters = 2 * maps * layer.trainable
            connections = positions * maps * (4 + layer.trainable)
            multiply_adds = positions * maps * layer.trainable
        elif isinstance(layer, EuclideanRBF):
            parameters, connections, multiply_adds = 0, 84 * maps, 84 * maps
        else:
            masked_weights = int((c3_mask(model.connections) == 0).sum()) if name == "c3" else 0
            weights = math.prod(layer.kernel.shape) - masked_weights
            parameters = weights + maps
            connections, multiply_adds = positions * parameters, positions * weights
        counts = dict(parameters=parameters, connections=connections, multiply_adds=multiply_adds)
        rows.append({"name": name, "output": list(x.shape[1:]), **counts})
    return rows
