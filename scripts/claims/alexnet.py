"""Claims of Krizhevsky et al. 2012 on AlexNet's layers."""

import itertools
import math

import numpy as np

from alexnet.model import loss_function
from scripts.claims.claim import INCONSISTENT, REPRODUCED, computed
from scripts.claims.facts import Facts, Live, quickly
from scripts.claims.lenet import windows_of

LAYERS, RELU, TOWERS, NORM, POOL = (
    f"Krizhevsky 2012, {section}" for section in ("3.5", "3.1", "3.2", "3.3", "3.4")
)
ABSTRACT, FIG_2 = "Krizhevsky 2012, abstract", "Krizhevsky 2012, Fig. 2"
WEIGHTS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


# ---- layers


def _kernels(name: str):
    def compute(facts: Facts) -> str:
        height, width, inputs, outputs = getattr(facts.alexnet.model, name).kernel.shape
        return f"{outputs} kernels of {height}x{width}x{inputs}"

    return compute


def _units(name: str):
    return lambda facts: f"{facts.alexnet.rows[name]['output'][0]} units"


def layers_with_weights(live: Live) -> tuple[int, int, int]:
    """How many, how many of them convolutional, and how many not."""
    names = [name for name, row in live.rows.items() if row["parameters"]]
    convolutions = sum(name.startswith("c") for name in names)
    return len(names), convolutions, len(names) - convolutions


def _about(ours: int, stated: float) -> tuple[str, bool]:
    return f"{ours:,}", abs(ours / stated - 1) < 0.02


def _neurons(facts: Facts) -> list[int]:
    return [math.prod(facts.alexnet.rows[name]["output"]) for name in WEIGHTS]


def _neurons_of_conv1(facts: Facts) -> tuple[str, bool]:
    printed = (253_440, 186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000)
    ours = _neurons(facts)
    height, width, maps = facts.alexnet.rows["conv1"]["output"]
    text = f"conv1: {ours[0]:,} = {height} x {width} x {maps}; the others are as printed"
    steps = [
        tuple(ours[1:]) == printed[1:],
        ours[0] == height * width * maps != printed[0],
        printed[0] == height * 48 * maps,
        abs(sum(ours) - 650_000) < abs(sum(printed) - 650_000),  # nearer to the abstract
    ]
    return text, all(steps)


def _conv1_size(facts: Facts) -> tuple[str, bool]:
    crop, row = facts.alexnet.config.crop_size, facts.alexnet.rows["conv1"]
    kernel, stride, zeros = row["kernel"][0], row["stride"], sum(row["padding"])
    places = (crop - kernel) / stride + 1
    padded = (crop + zeros - kernel) / stride + 1
    text = f"{row['output'][0]} with {zeros} more columns of zeros; {places:g} without"
    return text, crop == 224 and places % 1 != 0 and padded == row["output"][0] == 55


def followers(kind: str):
    """The layers of weights after whose activation a layer of this kind comes."""

    def compute(facts: Facts) -> str:
        found, last = [], ""
        for name in facts.alexnet.model.order:
            last = name if name in WEIGHTS else last
            if name.rstrip("0123456789") == kind:
                found.append(last)
        return ", ".join(found)

    return compute


def _order(facts: Facts) -> tuple[str, bool]:
    order = facts.alexnet.model.order
    ours = [order[order.index(f"conv{i}") : order.index(f"pool{i}") + 1] for i in (1, 2)]
    expected = [(f"conv{i}", f"activation{i}", f"norm{i}", f"pool{i}") for i in (1, 2)]
    return " ".join(ours[0]), ours == expected


def _maps_seen(facts: Facts) -> str:
    shapes = {name: getattr(facts.alexnet.model, name).kernel.shape for name in WEIGHTS[:5]}
    return ", ".join(
        f"{name} {shapes[name][2]} of {shapes[before][3]}"
        for before, name in itertools.pairwise(shapes)
    )


# ---- functions


def rectifies(live: Live) -> tuple[str, bool]:
    """Whether a network's nonlinearity is max(0, x)."""
    x = np.linspace(-3, 3, 13, dtype=np.float32)
    agrees = np.array_equal(quickly(live.model.activation)(x), np.maximum(0, x))
    return live.config.activation, agrees


def normalizes(live: Live, towers: int) -> tuple[str, bool]:
    """Whether a network's normalization is the formula with the paper's numbers in each tower."""
    a, expected = 40 * np.random.default_rng(0).standard_normal((1, 2, 2, 96)), []
    for part in np.split(a, towers, axis=-1):
        squares = np.pad(part**2, [(0, 0)] * 3 + [(2, 2)])
        sums = sum(squares[..., i : i + part.shape[-1]] for i in range(5))  # n = 5
        expected.append(part / (2 + 1e-4 * sums) ** 0.75)
    ours = np.asarray(quickly(live.model.norm)(a.astype(np.float32)))
    far = np.abs(ours / np.concatenate(expected, axis=-1) - 1).max()
    return "the same to 1e-5" if far < 1e-5 else f"off by {far:.1e}", far < 1e-5


def pools(live: Live) -> str:
    maps = np.random.default_rng(0).normal(size=(9, 9)).astype(np.float32)
    return windows_of(np.asarray(quickly(live.model.pool)(maps[None, ..., None]))[0, ..., 0], maps)


def _objective(_: Facts) -> tuple[str, bool]:
    """The loss of an example against -log of its class's probability, in float64."""
    logits, labels = np.random.default_rng(0).normal(0, 3, (4, 10)), np.array([0, 3, 3, 9])
    exponentials = np.exp(logits)
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    expected = -np.log(probabilities[np.arange(4), labels])
    found = quickly(loss_function())(logits.astype(np.float32), labels)
    agrees = np.allclose(found, expected, rtol=1e-5)
    return "the same to float32" if agrees else "another loss", agrees


def _convolution_shares(facts: Facts) -> tuple[str, bool]:
    """Percent of all parameters."""
    rows, total = facts.alexnet.rows, facts.alexnet.total["parameters"]
    shares = {name: 100 * rows[name]["parameters"] / total for name in WEIGHTS[:5]}
    larger = [name for name, share in shares.items() if share > 1]
    text = ", ".join(f"{name} {share:.2f}%" for name, share in shares.items())
    return text, larger == ["conv3", "conv4"]


def _rectified(facts: Facts) -> tuple[str, bool]:
    rectified = followers("activation")(facts).split(", ")
    others = [name for name in WEIGHTS if name not in rectified]
    return f"all but {', '.join(others)}, which is fed to the softmax", others == ["fc8"]


# id, source, claim, stated, what computes ours, and the status of agreement where it is not EXACT
# fmt: off
COMPUTED = (
    ("alexnet-conv1", LAYERS, "conv1", "96 kernels of 11x11x3", _kernels("conv1")),
    ("alexnet-conv2", LAYERS, "conv2", "256 kernels of 5x5x48", _kernels("conv2")),
    ("alexnet-conv3", LAYERS, "conv3", "384 kernels of 3x3x256", _kernels("conv3")),
    ("alexnet-conv4", LAYERS, "conv4", "384 kernels of 3x3x192", _kernels("conv4")),
    ("alexnet-conv5", LAYERS, "conv5", "256 kernels of 3x3x192", _kernels("conv5")),
    ("alexnet-fc6", LAYERS, "first fully connected layer", "4096 units", _units("fc6")),
    ("alexnet-fc7", LAYERS, "second", "4096 units", _units("fc7")),
    ("alexnet-fc8", LAYERS, "third, to the softmax", "1000 units", _units("fc8")),
    ("alexnet-stride", LAYERS, "stride of conv1", "4",
     lambda facts: facts.alexnet.rows["conv1"]["stride"]),
    ("alexnet-layers", LAYERS, "layers with weights", "8: 5 convolutional, 3 fully connected",
     lambda facts: "{}: {} convolutional, {} fully connected".format(
         *layers_with_weights(facts.alexnet))),
    ("alexnet-parameters", ABSTRACT, "parameters, within 2%", "60 million",
     lambda facts: _about(facts.alexnet.total["parameters"], 60e6), REPRODUCED),
    ("alexnet-neurons", ABSTRACT, "neurons, within 2%", "650,000",
     lambda facts: _about(sum(_neurons(facts)), 650e3), REPRODUCED),
    ("alexnet-neurons-of-conv1", FIG_2, "neurons of the layers",
     "253,440, 186,624, 64,896, 64,896, 43,264, 4096, 4096, 1000",
     _neurons_of_conv1, INCONSISTENT),
    ("alexnet-inputs", FIG_2, "inputs", "150,528",
     lambda facts: facts.alexnet.config.crop_size ** 2 * 3),
    ("alexnet-conv1-size", LAYERS, "11x11 with stride 4 on 224x224 gives conv1's maps", "55x55",
     _conv1_size, INCONSISTENT),
    ("alexnet-towers", TOWERS, "maps of the layer before that a kernel sees",
     "conv2 48 of 96, conv3 256 of 256, conv4 192 of 384, conv5 192 of 384", _maps_seen),
    ("alexnet-norms", LAYERS, "layers that are normalized", "conv1, conv2", followers("norm")),
    ("alexnet-pools", LAYERS, "layers that are pooled", "conv1, conv2, conv5", followers("pool")),
    ("alexnet-relus", LAYERS, "layers with ReLU", "every convolutional and fully connected one",
     _rectified, INCONSISTENT),
    ("alexnet-order", LAYERS, "order in conv1 and conv2", "ReLU, normalization, pooling", _order),
    ("alexnet-relu", RELU, "the nonlinearity", "max(0, x)", lambda facts: rectifies(facts.alexnet)),
    ("alexnet-norm-numbers", NORM, "constants of the normalization",
     "k = 2, n = 5, alpha = 0.0001, beta = 0.75",
     lambda facts: "k = {k:g}, n = {size}, alpha = {alpha:g}, beta = {beta:g}".format(
         **facts.alexnet.model.norm.keywords)),
    ("alexnet-norm-formula", NORM, "the normalization, in each tower",
     "a / (k + alpha sum of a^2)^beta",
     lambda facts: normalizes(facts.alexnet, facts.alexnet.config.towers)),
    ("alexnet-overlapping-pools", POOL, "a pool gives, of windows of z = 3 and s = 2, the",
     "maximum of 3x3, 2 apart", lambda facts: pools(facts.alexnet)),
    ("alexnet-objective", LAYERS, "what is minimized, of an example", "-log of its probability",
     _objective),
    ("alexnet-convolution-shares", "Krizhevsky 2012, 1",
     "parameters of a convolutional layer, of all", "no more than 1%",
     _convolution_shares, INCONSISTENT),
)
# fmt: on

CLAIMS = [computed(*row) for row in COMPUTED]
