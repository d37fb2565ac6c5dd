"""Claims of the lecture deck: its two tables, and its words."""

import itertools

import numpy as np

from scripts.claims import printed
from scripts.claims.alexnet import WEIGHTS, agrees_with_formula
from scripts.claims.alexnet_training import masks
from scripts.claims.claim import (
    REENCODED,
    exact,
    holds,
    inconsistent,
    not_run,
)
from scripts.claims.facts import Facts, live_lenet, quickly
from scripts.summarize import deck_words

LENET, ALEXNET = "deck, LeNet-5", "deck, AlexNet"
NOTE = f", {REENCODED}"


def _lenet(facts: Facts):
    return facts.lenet["deck"]


def _alexnet(facts: Facts):
    return facts.alexnet["deck"]


# ---- LeNet-5


def _lenet_row(name: str, layer: printed.Layer):
    """A row of the deck's table, ours in the same words."""
    deck = {key: value for key, value in layer._asdict().items() if value}

    def compute(facts: Facts) -> str:
        ours = _lenet(facts).rows[name]
        return deck_words({key: ours[key] for key in deck})

    return exact(
        f"deck-lenet-{name}",
        *(f"{LENET}, table", name if name == "output" else name.upper()),
        *(deck_words(deck), compute, True),
    )


def _kinds(facts: Facts) -> str:
    names = list(_lenet(facts).rows)
    counts = [sum(name[0] == kind for name in names) for kind in "cs"]
    return f"{len(names)}: {counts[0]} convolutional, {counts[1]} subsampling, " + (
        f"{len(names) - sum(counts)} fully connected"
    )


def _c3(count: str, stated: tuple[int, int]):
    """C3 as in Table I against dense, with and without biases; the deck mixes the two."""

    def compute(facts: Facts) -> tuple[str, list[bool]]:
        dense = live_lenet("deck", "--c3=dense").rows["c3"]
        table, uses = _lenet(facts).rows["c3"], 1
        if count == "connections":
            uses = dense["connections"] // dense["parameters"]  # of each weight
        biases = table["output"][-1] * uses
        sparse, full = table[count], dense[count]
        text = (
            f"{sparse:,} against {full:,} with biases, "
            f"{sparse - biases:,} against {full - biases:,} without"
        )
        return text, [sparse == stated[0], full - biases == stated[1], full != stated[1]]

    return compute


def _ten_of_sixteen(facts: Facts) -> tuple[str, list[bool]]:
    connections = _lenet(facts).model.connections
    feeds = {sum(s2 in inputs for inputs in connections) for s2 in range(6)}
    linked = sum(len(inputs) > 0 for inputs in connections)
    text = f"all {linked} are linked; each of the six feeds {'/'.join(map(str, sorted(feeds)))}"
    return text, [linked == 16, feeds == {10}]


def _table_1(facts: Facts) -> tuple[str, list[bool]]:
    connections = _lenet(facts).model.connections
    marks = sum(row.count("X") for row in printed.LENET_TABLE_1)
    ours, parameters = sum(map(len, connections)), _lenet(facts).rows["c3"]["parameters"]
    text = f"{ours} connected pairs; {marks} would be {25 * marks + 16:,} parameters"
    return text, [25 * ours + 16 == parameters == 1_516, 25 * marks + 16 != 1_516]


def _average(facts: Facts) -> str:
    square = np.array([1, 2, 3, 10], np.float32).reshape(2, 1, 2, 1)  # (H, maps, W, B)
    value = quickly(_lenet(facts).model.s2.pool)(square).item()
    return {4.0: "average", 16.0: "sum", 10.0: "maximum"}.get(value, f"{value:g}")


def _nodes_of_s4(facts: Facts) -> str:
    kernel = _lenet(facts).model.c5.kernel.shape
    return f"{kernel[0] * kernel[1] * kernel[2]} nodes, {kernel[3]} units"


def _pooled_convolutions(facts: Facts) -> tuple[str, list[bool]]:
    names = list(_lenet(facts).rows)
    pooled = [a for a, b in itertools.pairwise(names) if a[0] == "c" and b[0] == "s"]
    others = [name for name in names if name[0] == "c" and name not in pooled]
    text = f"{', '.join(pooled).upper()} are pooled, {', '.join(others).upper()} is not"
    deck = list(printed.LENET)
    return text, [others == ["c5"], deck[deck.index("c5") + 1] == "f6"]


def _sparse_cost(facts: Facts) -> tuple[str, bool]:
    dense = live_lenet("deck", "--c3=dense")
    counts = [(live.rows["c3"], live.total) for live in (_lenet(facts), dense)]
    (sparse, sparse_total), (full, full_total) = counts
    text = (
        f"C3: {sparse['multiply_adds']:,} instead of {full['multiply_adds']:,} multiplications, "
        f"in all {1 - sparse_total['multiply_adds'] / full_total['multiply_adds']:.0%} fewer"
    )
    return text, sparse["multiply_adds"] < full["multiply_adds"]


# ---- AlexNet


def _alexnet_words(row: dict) -> str:
    *sides, maps = row["output"]
    words = ["x".join(map(str, [maps, *sides]))]
    if "kernel" in row:
        words.append(f"{'x'.join(map(str, row['kernel']))}/{row['stride']}")
    if "padding" in row:
        words.append(f"padding {row['padding']}")
    names = ("parameters", "computations")
    return ", ".join(words + [f"{row[name]:,} {name}" for name in names if name in row])


def _alexnet_row(name: str, layer: printed.AlexNetLayer):
    deck = {key: value for key, value in layer._asdict().items() if value}

    def compute(facts: Facts) -> str:
        row = _alexnet(facts).rows[name]
        ours = row | {key: row[f"deck_{key}"] for key in ("parameters", "computations")}
        ours["padding"] = max(row["padding"] or [0])
        return _alexnet_words({key: ours[key] for key in deck})

    place = (f"deck-alexnet-{name}", f"{ALEXNET}, table", name)
    return exact(*place, _alexnet_words(deck), compute, True)


def _deck_total(count: str):
    return lambda facts: f"{_alexnet(facts).total[count]:,}"


def _biases(facts: Facts) -> tuple[str, list[bool]]:
    total, rows = _alexnet(facts).total, _alexnet(facts).rows
    biases = [rows[name]["output"][0] for name in ("fc6", "fc7", "fc8")]
    counted = printed.ALEXNET["conv1"].parameters - 11 * 11 * 3 * 96
    text = f"{total['parameters']:,} with all biases"
    return text, [
        total["parameters"] - sum(biases) == total["deck_parameters"] == 62_369_152,
        counted == 96,  # conv1's biases are in the deck's number
    ]


def _share(count: str):
    """Convolutions against fully connected layers, in percent of the deck's count."""

    def compute(facts: Facts) -> str:
        rows = _alexnet(facts).rows.values()
        conv, fc = (
            sum(row[f"deck_{count}"] for row in rows if row["name"].startswith(kind))
            for kind in ("conv", "fc")
        )
        unit = 1e6 if conv < 1e9 else 1e9
        word = "million" if unit == 1e6 else "billion"
        digits = 1 if unit == 1e6 else 2
        return (
            f"{conv / unit:.{digits}f} {word} ({conv / (conv + fc):.0%}), "
            f"{fc / 1e6:.1f} million ({fc / (conv + fc):.0%})"
        )

    return compute


def _layers(facts: Facts) -> str:
    names = [name for name, row in _alexnet(facts).rows.items() if row["parameters"]]
    convolutions = [name for name in names if name.startswith("conv")]
    return f"{len(names)}: {len(convolutions)} and {len(names) - len(convolutions)}"


def _filters(facts: Facts) -> str:
    kernels = [_alexnet(facts).rows[name]["kernel"] for name in WEIGHTS[:5]]
    return ", ".join("x".join(map(str, kernel)) for kernel in kernels)


def _relus(facts: Facts) -> str:
    rows = _alexnet(facts).rows
    last = rows["fc8"]["activation"]
    relu = [name for name in WEIGHTS if rows[name]["activation"] == "relu"]
    return f"{len(relu)} of {len(WEIGHTS)}, then {last}"


def _deeper(facts: Facts) -> tuple[str, bool]:
    depths = [
        sum(row["parameters"] > 0 for row in live.rows.values())
        for live in (_alexnet(facts), _lenet(facts))
    ]
    return "{} layers with weights instead of {}".format(*depths), depths[0] > depths[1]


def _norm_after(facts: Facts) -> tuple[str, list[bool]]:
    order = _alexnet(facts).model.order
    before = [order[order.index(name) - 1] for name in ("norm1", "norm2")]
    text = f"after {' and '.join(before)}, as in its table"
    return text, [before == ["pool1", "pool2"], "activation1" in order[: order.index("pool1")]]


def _dropped_inputs(facts: Facts) -> str:
    order = _alexnet(facts).model.order
    names = [b for a, b in itertools.pairwise(order) if a.startswith("dropout")]
    return f"{_alexnet(facts).model.dropout:g}, before {' and '.join(names)}"


def _redrawn(facts: Facts) -> tuple[str, bool]:
    first, second = masks(_alexnet(facts).config)
    different = (first != second).mean()
    return f"{different:.0%} of the units differ between two steps", 0.4 < different < 0.6


def _four_layers(facts: Facts) -> str:
    rows = facts.alexnet["cifar18"].rows.values()
    return f"{sum(row['parameters'] > 0 for row in rows)} layers with weights (cifar18)"


def _relu(facts: Facts) -> tuple[str, bool]:
    x = np.linspace(-3, 3, 13, dtype=np.float32)
    found = quickly(_alexnet(facts).model.activation)(x)
    return _alexnet(facts).config.activation, np.array_equal(found, np.maximum(0, x))


CLAIMS = [
    *(_lenet_row(name, layer) for name, layer in printed.LENET.items()),
    exact(
        *("deck-lenet-layers", LENET, "layers"),
        *("7: 3 convolutional, 2 subsampling, 2 fully connected", _kinds),
    ),
    inconsistent(
        *("deck-lenet-c3-parameters", f"{LENET}, third layer", "parameters of C3, sparse or dense"),
        *("1,516 instead of 2,400", _c3("parameters", (1_516, 2_400))),
    ),
    inconsistent(
        *("deck-lenet-c3-connections", f"{LENET}, third layer", "connections, sparse or dense"),
        *("151,600 instead of 240,000", _c3("connections", (151_600, 240_000))),
    ),
    inconsistent(
        *(
            "deck-lenet-ten-of-sixteen",
            f"{LENET}, third layer",
            "C3's maps linked to the six of S2",
        ),
        *("only 10 of the 16", _ten_of_sixteen),
    ),
    inconsistent(
        *("deck-lenet-table-1", f"{LENET}, Table I", "the marks of the printed table"),
        *(
            f"{sum(row.count('X') for row in printed.LENET_TABLE_1)}, and 1,516 parameters",
            _table_1,
        ),
    ),
    exact(*("deck-lenet-pooling", LENET, "subsampling takes the"), "average", _average),
    exact(
        *("deck-lenet-c5-nodes", f"{LENET}, fifth layer", "S4's nodes that each unit of C5 sees"),
        *("400 nodes, 120 units", _nodes_of_s4),
    ),
    inconsistent(
        *(
            "deck-lenet-every-convolution",
            f"{LENET}, features",
            "convolutional layers with pooling",
        ),
        *("every one", _pooled_convolutions),
    ),
    holds(
        *("deck-lenet-sparse-cost", f"{LENET}, features", "sparse connections"),
        *("less computation", _sparse_cost),
    ),
    *(_alexnet_row(name, layer) for name, layer in printed.ALEXNET.items()),
    exact(
        *("deck-alexnet-parameters", f"{ALEXNET}, table", "parameters in all", "62,369,152"),
        _deck_total("deck_parameters"),
    ),
    exact(
        *("deck-alexnet-computations", f"{ALEXNET}, table", "forward computation in all"),
        *("1,135,906,176", _deck_total("deck_computations")),
    ),
    inconsistent(
        *("deck-alexnet-biases", f"{ALEXNET}, table", "biases: counted in conv, not in FC layers"),
        *("62,369,152", _biases),
    ),
    exact(
        *("deck-alexnet-parameter-shares", f"{ALEXNET}, table", "parameters of conv and FC layers"),
        *("3.7 million (6%), 58.6 million (94%)", _share("parameters")),
    ),
    exact(
        *("deck-alexnet-computation-shares", f"{ALEXNET}, table", "computation of conv, FC layers"),
        *("1.08 billion (95%), 58.6 million (5%)", _share("computations")),
    ),
    exact(
        *("deck-alexnet-layers", ALEXNET, "layers with parameters, convolutional and FC"),
        *("8: 5 and 3", _layers),
    ),
    exact(
        *("deck-alexnet-filters", ALEXNET, "filters of the convolutional layers"),
        *("11x11, 5x5, 3x3, 3x3, 3x3", _filters),
    ),
    exact(
        *("deck-alexnet-relus", ALEXNET, "layers with ReLU, and the last"),
        *("7 of 8, then softmax", _relus),
    ),
    holds(*("deck-alexnet-deeper", ALEXNET, "depth against LeNet-5", "increased"), _deeper),
    holds(*("deck-alexnet-relu", ALEXNET, "ReLU", "f(x) = max(0, x)"), _relu),
    inconsistent(
        *("deck-alexnet-norm-place", f"{ALEXNET}, normalization", "normalization comes"),
        *("after ReLU (text), after pooling (table)", _norm_after),
    ),
    holds(
        *("deck-alexnet-norm-formula", f"{ALEXNET}, normalization", "the formula"),
        "a / (k + alpha sum of a^2)^beta",
        lambda facts: agrees_with_formula(_alexnet(facts).model.norm, towers=1),
    ),
    exact(
        *("deck-alexnet-dropout", f"{ALEXNET}, table", "dropout"),
        *("0.5, before fc6 and fc7", _dropped_inputs),
    ),
    holds(
        *("deck-alexnet-dropout-redrawn", f"{ALEXNET}, dropout", "neurons removed"),
        *("drawn again in each iteration", _redrawn),
    ),
    exact(
        *("deck-alexnet-four-layers", f"{ALEXNET}, ReLU", "the network of the ReLU figure"),
        *("4 layers with weights (cifar18)", _four_layers),
    ),
    not_run(*("deck-alexnet-won", ALEXNET, "ILSVRC-2012", "won"), "ImageNet is not at hand"),
    not_run(
        *("deck-alexnet-transfer", ALEXNET, "transfer from weights pre-trained on ImageNet"),
        *("exceptional performance", "no such weights; --init_from starts from a run's"),
    ),
]
