"""LeNet-5 as one Flax module, and its losses.

LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition, Proceedings
of the IEEE, 1998.

    input   C1 conv 5x5   S2 2x2     C3 conv 5x5, Table I   S4 2x2    C5 conv 5x5   F6    output
    32x32   28x28x6       14x14x6    10x10x16               5x5x16    1x1x120       84    10

In shapes: B examples, H rows and W columns of pixels. Between C1 and C5 arrays are (H, maps, W, B):
with the batch last, a vector instruction works on sixteen images at once, where the few maps of
LeNet-5 would not fill it (common/conv.py).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from common.conv import lax_convolution, masked

LAYERS = ("c1", "s2", "c3", "s4", "c5", "f6", "output")

# Table I: the S2 maps that each of the 16 C3 maps sees. Every S2 map feeds exactly ten C3 maps.
C3_TABLE = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)

ACTIVATIONS = {
    "tanh": jnp.tanh,
    "scaled_tanh": lambda a: (
        1.7159 * jnp.tanh(2 / 3 * a)
    ),  # eq. 6 and appendix A: f(1) = 1, f(-1) = -1
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
}


class LeNet5(nnx.Module):
    """(B, 32, 32, in_channels) float images -> (B, num_classes) logits, the largest wins.

    Args:
      connections: for each of the 16 C3 maps the S2 maps that it sees; `c3_connections` gives Table
        I and its alternatives.
      activation: a key of ACTIVATIONS; the squashing function of every layer up to F6.
      pooling: 'average' (no parameters, followed by the activation: the lecture deck), 'trainable'
        (the paper's subsampling: average, times a coefficient, plus a bias, then the activation) or
        'max' (no parameters; the activation follows it, and only it).
      output: 'softmax' (a linear layer with biases) or 'rbf' (the logits are minus the squared
        distances to `codes`, eq. 7).
      codes: (num_classes, 84), the fixed centres of the RBF output.
      initialization: weights from U(-2.4 / F, 2.4 / F) ('fan_in', the paper's text, section III.B)
        or U(-2.4 / sqrt F, 2.4 / sqrt F) ('sqrt_fan_in'), F the inputs of the unit, in C3 those of
        the map: 75, 100 or 150. Coefficients start at 1, biases at 0.
      convolution: `lax_convolution` or a faster form of it (common/conv.py).
      dtype: what the layers compute in; parameters are float32, logits too.
    """

    def __init__(
        self,
        *,
        connections: Sequence[Sequence[int]] = C3_TABLE,
        activation: str = "tanh",
        pooling: str = "average",
        output: str = "softmax",
        codes: np.ndarray | None = None,
        initialization: str = "sqrt_fan_in",
        in_channels: int = 1,
        num_classes: int = 10,
        convolution=lax_convolution,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.connections = nnx.static(tuple(map(tuple, connections)))
        mask = c3_mask(connections)

        def conv(inputs: int, features: int, mask: np.ndarray | None = None) -> Convolution:
            function = convolution if mask is None else masked(convolution, mask)
            return Convolution(
                inputs,
                features,
                function,
                uniform_by_fan_in(initialization, mask),
                dtype,
                rngs=rngs,
            )

        def subsampling(maps: int) -> Subsampling:
            return Subsampling(
                maps,
                trainable=pooling == "trainable",
                pool=max_2x2 if pooling == "max" else mean_2x2,
            )

        self.c1 = conv(in_channels, 6)
        self.s2 = subsampling(6)
        self.c3 = conv(6, 16, mask)
        self.s4 = subsampling(16)
        self.c5 = conv(16, 120)
        self.f6 = nnx.Linear(
            120, 84, kernel_init=uniform_by_fan_in(initialization), dtype=dtype, rngs=rngs
        )
        if output == "rbf":
            self.output = EuclideanRBF(codes)
        else:
            kernel_init = uniform_by_fan_in(initialization)
            self.output = nnx.Linear(
                84, num_classes, kernel_init=kernel_init, dtype=dtype, rngs=rngs
            )
        self.activation = ACTIVATIONS[activation]
        # The maximum of four squashed values is the squashed maximum, if the function is monotone
        # (silu is not, and the order makes a difference there): squash once, after pooling.
        self.before_pooling = (lambda a: a) if pooling == "max" else self.activation

    def __call__(self, images: jax.Array) -> jax.Array:
        x = images.transpose(1, 3, 2, 0)  # (32, in, 32, B)
        x = self.before_pooling(self.c1(x))  # (28, 6, 28, B)
        x = self.activation(self.s2(x))  # (14, 6, 14, B)
        x = self.before_pooling(self.c3(x))  # (10, 16, 10, B)
        x = self.activation(self.s4(x))  # (5, 16, 5, B)
        x = self.activation(self.c5(x))  # (1, 120, 1, B)
        x = self.activation(self.f6(x.reshape(120, -1).T))  # (B, 84)
        return self.output(x).astype(jnp.float32)  # (B, num_classes)


class Convolution(nnx.Module):
    """(H, in, W, B) -> (H - 4, features, W - 4, B): 5x5 without padding, plus a bias a map.
    `kernel`: (5, 5, in, features).
    """

    def __init__(
        self, inputs: int, features: int, convolution, kernel_init, dtype, *, rngs: nnx.Rngs
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (5, 5, inputs, features)))
        self.bias = nnx.Param(jnp.zeros(features))
        self.convolution, self.dtype = convolution, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.convolution(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return (x + self.bias[:, None, None]).astype(
            self.dtype
        )  # added in float32, for its gradient is a sum over all units


class Subsampling(nnx.Module):
    """(H, maps, W, B) -> (H/2, maps, W/2, B): `pool`, the mean or maximum of each 2x2 square.

    If `trainable`, times a coefficient plus a bias, one of each per map. The paper says both that a
    unit takes the average (II.A) and that it adds its four inputs (II.B); this is the average.
    """

    def __init__(self, maps: int, *, trainable: bool, pool):
        self.pool = pool
        self.trainable = trainable
        if trainable:
            self.coefficient = nnx.Param(jnp.ones(maps))
            self.bias = nnx.Param(jnp.zeros(maps))

    def __call__(self, x: jax.Array) -> jax.Array:
        pooled = self.pool(x)
        if self.trainable:
            return (pooled * self.coefficient[:, None, None] + self.bias[:, None, None]).astype(
                x.dtype
            )  # added in float32
        return pooled


def mean_2x2(x: jax.Array) -> jax.Array:
    """(H, maps, W, B) -> (H/2, maps, W/2, B)."""
    return sum(corners(x)) * 0.25


def max_2x2(x: jax.Array) -> jax.Array:
    """(H, maps, W, B) -> (H/2, maps, W/2, B)."""
    return functools.reduce(jnp.maximum, corners(x))


def corners(x: jax.Array) -> list[jax.Array]:
    """The four pixels of each 2x2 square of (H, maps, W, B), each (H/2, maps, W/2, B); slices,
    which XLA is faster with than with a reduction.
    """
    height, maps, width, batch = x.shape
    squares = x.reshape(height // 2, 2, maps, width // 2, 2, batch)
    return [squares[:, i, :, :, j] for i in (0, 1) for j in (0, 1)]


class EuclideanRBF(nnx.Module):
    """(B, 84) -> (B, 10): minus the squared distance to each class's fixed code, -y_i of eq. 7. No
    trainable parameters.
    """

    def __init__(self, codes: np.ndarray):
        self.codes = nnx.static(
            tuple(map(tuple, codes.tolist()))
        )  # constants of the program, not state

    def __call__(self, x: jax.Array) -> jax.Array:
        codes = jnp.asarray(self.codes, jnp.float32)  # (10, 84)
        return -jnp.sum((x[:, None, :] - codes) ** 2, axis=-1)


def c3_connections(c3: str, seed: int = 0) -> Sequence[Sequence[int]]:
    """For each of the 16 C3 maps the S2 maps that it sees.

    'table': Table I, 1,516 parameters in C3. 'dense': all six, 2,416 parameters. 'random': each map
    keeps its number of inputs in Table I, so C3 keeps its 1,516 parameters; which inputs is drawn
    from `seed`.
    """
    if c3 == "dense":
        return [range(6)] * 16
    if c3 == "random":
        # Raw Philox numbers, because NumPy promises their stream for all its versions: the table
        # must outlive an upgrade.
        draws = np.random.Philox(np.random.SeedSequence(seed)).random_raw(16 * 6).reshape(16, 6)
        return [
            sorted(draw.argsort()[: len(inputs)].tolist())
            for draw, inputs in zip(draws, C3_TABLE, strict=True)
        ]
    return C3_TABLE


def c3_mask(connections) -> np.ndarray:
    """(5, 5, 6, 16) of 0 and 1: which weights of the C3 kernel exist."""
    mask = np.zeros((5, 5, 6, len(connections)), np.float32)
    for feature_map, inputs in enumerate(connections):
        mask[:, :, list(inputs), feature_map] = 1
    return mask


def uniform_by_fan_in(initialization: str, mask: np.ndarray | None = None):
    """An initializer: U(-2.4 / F, 2.4 / F) or U(-2.4 / sqrt F, 2.4 / sqrt F), F each unit's own;
    masked weights are zero.
    """

    def init(key, shape, dtype=jnp.float32):
        exists = np.ones(shape, np.float32) if mask is None else mask
        fan_in = exists.reshape(-1, shape[-1]).sum(axis=0)  # (out,)
        bound = 2.4 / (fan_in if initialization == "fan_in" else np.sqrt(fan_in))
        kernel = jax.random.uniform(key, shape, dtype, -1, 1) * bound
        return jnp.where(exists == 1, kernel, 0).astype(
            dtype
        )  # a product would make some zeros -0, which sums turn into 0

    return init


def loss_function(
    loss: str, output: str, *, map_constant: float | None = None, label_smoothing: float = 0.0
):
    """The loss of each example: (B, classes) logits and (B,) labels -> (B,).

    With the RBF output the penalties of eq. 7 are y = -logits. D is the desired class.

    'mse': eq. 8, y_D, for the RBF output; sum over i of (p_i - target_i)^2 of the softmax's
    probabilities otherwise.
    'map': eq. 9, y_D + log(exp(-j) + sum over i of exp(-y_i)), j = `map_constant`: a rubbish class
    with the penalty j.
    'cross_entropy': -log softmax(logits)_D, eq. 9 without the rubbish class; `label_smoothing` is
      the share of the target that is spread over all classes.
    """

    def cross_entropy(logits, labels):
        targets = (
            jax.nn.one_hot(labels, logits.shape[-1]) * (1 - label_smoothing)
            + label_smoothing / logits.shape[-1]
        )
        return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)

    def penalty(logits, labels):
        return -jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]

    def squared_error(logits, labels):
        return jnp.sum(
            (jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])) ** 2, axis=-1
        )

    def maximum_a_posteriori(logits, labels):
        rubbish = jnp.full_like(logits[:, :1], -map_constant)
        return penalty(logits, labels) + jax.nn.logsumexp(
            jnp.concatenate([logits, rubbish], axis=-1), axis=-1
        )

    if loss == "mse":
        return penalty if output == "rbf" else squared_error
    return maximum_a_posteriori if loss == "map" else cross_entropy


def layer_table(model: LeNet5, in_channels: int = 1) -> list[dict]:
    """One row a layer: {"name", "output", "parameters", "connections", "multiply_adds"}, computed
    from the module itself.

    `connections` as the paper counts them: each output unit's inputs and its bias. `multiply_adds`
    counts the weights' multiplications only.
    """
    shape, rows = (32, in_channels, 32, 1), []
    for name in LAYERS:
        layer = getattr(model, name)
        inputs = shape
        if name == "f6":
            inputs = (1, 120)
        shape = jax.eval_shape(layer, jax.ShapeDtypeStruct(inputs, jnp.float32)).shape
        height, maps, width = shape[:3] if len(shape) == 4 else (1, shape[-1], 1)
        positions = height * width  # units in each map
        if isinstance(layer, Subsampling):
            parameters = 2 * maps if layer.trainable else 0
            connections = positions * maps * (5 if layer.trainable else 4)
            multiply_adds = positions * maps if layer.trainable else 0
        elif isinstance(layer, EuclideanRBF):
            parameters, connections, multiply_adds = 0, inputs[-1] * maps, inputs[-1] * maps
        else:
            weights = (
                layer.kernel[...].size if name != "c3" else int(c3_mask(model.connections).sum())
            )
            parameters = weights + maps
            connections, multiply_adds = positions * parameters, positions * weights
        counts = dict(
            parameters=int(parameters),
            connections=int(connections),
            multiply_adds=int(multiply_adds),
        )
        output = [height, width, maps] if len(shape) == 4 else [maps]
        rows.append({"name": name, "output": output, **counts})
    return rows
