"""Claims of Krizhevsky et al. 2012 on AlexNet's layers."""

import itertools
import math

import numpy as np

from scripts.claims.claim import exact, holds, inconsistent
from scripts.claims.facts import Facts, quickly

LAYERS, NORM, POOL = (f"Krizhevsky 2012, {n}" for n in ("3.5", "3.3", "3.4"))
WEIGHTS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


def _paper(facts: Facts):
    return facts.alexnet["paper"]


def _config(facts: Facts):
    return _paper(facts).config


def _order(facts: Facts) -> tuple[str, ...]:
    return _paper(facts).model.order


# ---- layers


def _kernels(name: str):
    def compute(facts: Facts) -> str:
        height, width, inputs, outputs = getattr(_paper(facts).model, name).kernel.shape
        return f"{outputs} kernels of {height}x{width}x{inputs}"

    return compute


def _units(name: str):
    return lambda facts: f"{_paper(facts).rows[name]['output'][0]} units"


def _stride(facts: Facts) -> str:
    return str(_paper(facts).rows["conv1"]["stride"])


def _layers(facts: Facts) -> str:
    kinds = [row["name"] for row in _paper(facts).rows.values() if row["parameters"]]
    convolutions = sum(name.startswith("conv") for name in kinds)
    return (
        f"{len(kinds)}: {convolutions} convolutional, {len(kinds) - convolutions} fully connected"
    )


def _parameters(facts: Facts) -> tuple[str, bool]:
    total = _paper(facts).total["parameters"]
    return f"{total:,}", abs(total / 60e6 - 1) < 0.02


def _neurons(facts: Facts) -> list[int]:
    return [math.prod(_paper(facts).rows[name]["output"]) for name in WEIGHTS]


def _all_neurons(facts: Facts) -> tuple[str, bool]:
    total = sum(_neurons(facts))
    return f"{total:,}", abs(total / 650e3 - 1) < 0.02


FIG_2 = (253_440, 186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000)


def _fig_2(facts: Facts) -> tuple[str, list[bool]]:
    ours = _neurons(facts)
    height, width, maps = _paper(facts).rows["conv1"]["output"]
    text = f"conv1: {ours[0]:,} = {height} x {width} x {maps}; the others are as printed"
    return text, [
        tuple(ours[1:]) == FIG_2[1:],
        ours[0] == height * width * maps != FIG_2[0],
        FIG_2[0] == height * 48 * maps,
        abs(sum(ours) - 650_000) < abs(sum(FIG_2) - 650_000),  # nearer to the abstract
    ]


def _conv1_size(facts: Facts) -> tuple[str, list[bool]]:
    config, row = _config(facts), _paper(facts).rows["conv1"]
    kernel, stride, zeros = row["kernel"][0], row["stride"], sum(row["padding"])
    places = (config.crop_size - kernel) / stride + 1
    text = f"{row['output'][0]} with {zeros} more columns of zeros; {places:g} without"
    return text, [
        config.crop_size == 224,
        places % 1 != 0,
        (config.crop_size + zeros - kernel) / stride + 1 == row["output"][0] == 55,
    ]


def _inputs(facts: Facts) -> str:
    return f"{_config(facts).crop_size ** 2 * 3:,}"


def followers(kind: str):
    """The layers of weights after whose activation a layer of this kind comes."""

    def compute(facts: Facts) -> str:
        found, last = [], ""
        for name in _order(facts):
            last = name if name in WEIGHTS else last
            if name.rstrip("0123456789") == kind:
                found.append(last)
        return ", ".join(found)

    return compute


def _normalized_after_relu(facts: Facts) -> tuple[str, bool]:
    order = _order(facts)
    ours = [order[order.index(f"conv{i}") : order.index(f"pool{i}") + 1] for i in (1, 2)]
    return " ".join(ours[0]), all(
        names == (f"conv{i}", f"activation{i}", f"norm{i}", f"pool{i}")
        for i, names in enumerate(ours, start=1)
    )


def _all_maps(facts: Facts) -> str:
    model = _paper(facts).model
    seen = {
        name: (getattr(model, name).kernel.shape[2], getattr(model, before).kernel.shape[3])
        for before, name in itertools.pairwise(WEIGHTS[:5])
    }
    return ", ".join(f"{name} {inputs} of {maps}" for name, (inputs, maps) in seen.items())


# ---- functions


def _relu(facts: Facts) -> tuple[str, bool]:
    x = np.linspace(-3, 3, 13, dtype=np.float32)
    agrees = np.array_equal(quickly(_paper(facts).model.activation)(x), np.maximum(0, x))
    return _config(facts).activation, agrees


def normalized(a: np.ndarray, *, k: float, n: int, alpha: float, beta: float) -> np.ndarray:
    """The formula of section 3.3 over the last axis, sum by sum."""
    maps, result = a.shape[-1], np.empty_like(a)
    for i in range(maps):
        around = a[..., max(0, i - n // 2) : min(maps - 1, i + n // 2) + 1]
        result[..., i] = a[..., i] / (k + alpha * (around**2).sum(axis=-1)) ** beta
    return result


def agrees_with_formula(norm, towers: int) -> tuple[str, bool]:
    """Whether a model's normalization is the formula with the paper's numbers in each tower."""
    a = 40 * np.random.default_rng(0).standard_normal((1, 2, 2, 96))
    halves = [normalized(part, k=2, n=5, alpha=1e-4, beta=0.75) for part in np.split(a, towers, -1)]
    expected = np.concatenate(halves, axis=-1)
    far = np.abs(np.asarray(quickly(norm)(a.astype(np.float32))) / expected - 1).max()
    return ("the same to 1e-5" if far < 1e-5 else f"off by {far:.1e}"), bool(far < 1e-5)


def _norm_numbers(facts: Facts) -> str:
    numbers = _paper(facts).model.norm.keywords
    names = {"k": "k", "n": "size", "alpha": "alpha", "beta": "beta"}
    return ", ".join(f"{name} = {numbers[ours]:g}" for name, ours in names.items())


def _windows(facts: Facts) -> str:
    """Size and distance of the pooling windows, from where single pixels come out."""
    pixels = np.eye(9, dtype=np.float32)[:, None, :, None].repeat(9, axis=1)  # j: column j is 1
    out = np.asarray(quickly(_paper(facts).model.pool)(pixels))[:, 0, :, 0] > 0  # (9, windows)
    first, second = (np.flatnonzero(out[:, window]) for window in (0, 1))
    return f"z = {len(first)}, s = {second[0] - first[0]}"


CLAIMS = [
    exact(
        *("alexnet-conv1", LAYERS, "conv1", "96 kernels of 11x11x3"),
        *(_kernels("conv1"), True),
    ),
    exact(
        *("alexnet-conv2", LAYERS, "conv2", "256 kernels of 5x5x48"),
        *(_kernels("conv2"), True),
    ),
    exact(
        *("alexnet-conv3", LAYERS, "conv3", "384 kernels of 3x3x256"),
        *(_kernels("conv3"), True),
    ),
    exact(
        *("alexnet-conv4", LAYERS, "conv4", "384 kernels of 3x3x192"),
        *(_kernels("conv4"), True),
    ),
    exact(
        *("alexnet-conv5", LAYERS, "conv5", "256 kernels of 3x3x192"),
        *(_kernels("conv5"), True),
    ),
    exact(
        *("alexnet-fc6", LAYERS, "first fully connected layer", "4096 units"), _units("fc6"), True
    ),
    exact(*("alexnet-fc7", LAYERS, "second", "4096 units"), _units("fc7"), True),
    exact(*("alexnet-fc8", LAYERS, "third, to the softmax", "1000 units"), _units("fc8"), True),
    exact(*("alexnet-stride", LAYERS, "stride of conv1", "4"), _stride),
    exact(
        *("alexnet-layers", LAYERS, "layers with weights"),
        *("8: 5 convolutional, 3 fully connected", _layers),
    ),
    holds(
        *("alexnet-parameters", "Krizhevsky 2012, abstract", "parameters, within 2%"),
        *("60 million", _parameters, "reproduced"),
    ),
    holds(
        *("alexnet-neurons", "Krizhevsky 2012, abstract", "neurons, within 2%"),
        *("650,000", _all_neurons, "reproduced"),
    ),
    inconsistent(
        *("alexnet-neurons-of-conv1", "Krizhevsky 2012, Fig. 2", "neurons of the layers"),
        *("253,440, 186,624, 64,896, 64,896, 43,264, 4096, 4096, 1000", _fig_2),
    ),
    exact(*("alexnet-inputs", "Krizhevsky 2012, Fig. 2", "inputs", "150,528"), _inputs),
    inconsistent(
        *("alexnet-conv1-size", LAYERS, "11x11 with stride 4 on 224x224 gives conv1's maps"),
        *("55x55", _conv1_size),
    ),
    exact(
        *("alexnet-towers", "Krizhevsky 2012, 3.2", "maps of the layer before that a kernel sees"),
        *("conv2 48 of 96, conv3 256 of 256, conv4 192 of 384, conv5 192 of 384", _all_maps),
    ),
    exact(
        *("alexnet-norms", LAYERS, "layers that are normalized"),
        "conv1, conv2",
        followers("norm"),
    ),
    exact(
        *("alexnet-pools", LAYERS, "layers that are pooled", "conv1, conv2, conv5"),
        followers("pool"),
    ),
    exact(
        *("alexnet-relus", LAYERS, "layers with ReLU"),
        *("conv1, conv2, conv3, conv4, conv5, fc6, fc7", followers("activation")),
    ),
    holds(
        *("alexnet-order", LAYERS, "order in conv1 and conv2"),
        *("ReLU, normalization, pooling", _normalized_after_relu),
    ),
    holds(*("alexnet-relu", "Krizhevsky 2012, 3.1", "the nonlinearity", "max(0, x)"), _relu),
    exact(
        *("alexnet-norm-numbers", NORM, "constants of the normalization"),
        *("k = 2, n = 5, alpha = 0.0001, beta = 0.75", _norm_numbers),
    ),
    holds(
        *("alexnet-norm-formula", NORM, "the normalization, in each tower"),
        "a / (k + alpha sum of a^2)^beta",
        lambda facts: agrees_with_formula(_paper(facts).model.norm, _config(facts).towers),
    ),
    exact(*("alexnet-overlapping-pools", POOL, "windows of the pools", "z = 3, s = 2"), _windows),
]
