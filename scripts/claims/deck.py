"""Claims of the lecture deck: its two tables, and its words."""

import itertools
from collections import Counter

import jax.numpy as jnp

from scripts.claims import printed
from scripts.claims.alexnet import WEIGHTS, layers_with_weights, normalizes, pools, rectifies
from scripts.claims.alexnet_training import masks
from scripts.claims.claim import INCONSISTENT, computed, not_run
from scripts.claims.facts import Facts, live_alexnet, live_lenet
from scripts.claims.lenet import pooled, squashed
from scripts.summarize import deck_words

LENET, ALEXNET = "deck, LeNet-5", "deck, AlexNet"
MARKS = sum(row.count("X") for row in printed.LENET_TABLE_1)


# ---- LeNet-5


def _lenet_row(name: str, stated: dict):
    """A row of the deck's table, and ours in the same words."""
    place = (f"deck-lenet-{name}", f"{LENET}, table", name if name == "output" else name.upper())

    def compute(facts: Facts) -> str:
        ours = facts.deck_lenet.rows[name]
        return deck_words({key: ours[key] for key in stated})

    return computed(*place, deck_words(stated), compute)


def _lenet_layers(facts: Facts) -> str:
    kinds = Counter(name[0] for name in facts.deck_lenet.rows)
    convolutions, pools = kinds.pop("c"), kinds.pop("s")
    return (
        f"{len(facts.deck_lenet.rows)}: {convolutions} convolutional, {pools} subsampling, "
        f"{kinds.total()} fully connected"
    )


def _c3(facts: Facts, count: str, sparse: int, dense: int) -> tuple[str, bool]:
    """C3 as in Table I against dense, with and without biases; the deck mixes the two."""
    table, every = facts.deck_lenet.rows["c3"], live_lenet("deck", "--c3=dense").rows["c3"]
    ours, all_pairs = table[count], every[count]
    uses = all_pairs // every["parameters"]  # of each weight and bias, if connections count
    biases = table["output"][-1] * uses
    text = (
        f"{ours:,} against {all_pairs:,} with biases, "
        f"{ours - biases:,} against {all_pairs - biases:,} without"
    )
    return text, ours == sparse and all_pairs - biases == dense != all_pairs


def _ten_of_sixteen(facts: Facts) -> tuple[str, bool]:
    connections = facts.deck_lenet.model.connections
    feeds = {sum(s2 in inputs for inputs in connections) for s2 in range(6)}
    linked = sum(len(inputs) > 0 for inputs in connections)
    text = f"all {linked} are linked; each of the six feeds {'/'.join(map(str, sorted(feeds)))}"
    return text, linked == 16 and feeds == {10}


def _table_1(facts: Facts) -> tuple[str, bool]:
    ours = sum(map(len, facts.deck_lenet.model.connections))
    parameters = facts.deck_lenet.rows["c3"]["parameters"]
    text = f"{ours} connected pairs; {MARKS} would be {25 * MARKS + 16:,} parameters"
    return text, 25 * ours + 16 == parameters == 1_516 != 25 * MARKS + 16


def _pooling(facts: Facts) -> str:
    found = pooled(facts.deck_lenet, 1, 2, 3, 10)
    return {4.0: "average", 16.0: "sum", 10.0: "maximum"}.get(found, f"{found:g}")


def _c5_nodes(facts: Facts) -> str:
    height, width, maps, units = facts.deck_lenet.model.c5.kernel.shape
    return f"{height * width * maps} nodes, {units} units"


def _every_convolution(facts: Facts) -> tuple[str, bool]:
    following = dict(itertools.pairwise(facts.deck_lenet.rows))
    before_pools = [a for a, b in following.items() if a[0] == "c" and b[0] == "s"]
    others = [a for a in following if a[0] == "c" and a not in before_pools]
    text = f"{', '.join(before_pools).upper()} are pooled, {', '.join(others).upper()} is not"
    return text, others == ["c5"] and ("c5", "f6") in itertools.pairwise(printed.LENET)


def _sparse_cost(facts: Facts) -> tuple[str, bool]:
    table, dense = facts.deck_lenet, live_lenet("deck", "--c3=dense")
    sparse, full = (live.rows["c3"]["multiply_adds"] for live in (table, dense))
    fewer = 1 - table.total["multiply_adds"] / dense.total["multiply_adds"]
    text = f"C3: {sparse:,} instead of {full:,} products with a weight, in all {fewer:.0%} fewer"
    return text, sparse < full


# ---- AlexNet

ALEXNET_TABLE = {
    "conv1": "96x55x55, 11x11/4, 34,944 parameters, 105,705,600 computations",
    "pool1": "96x27x27, 3x3/2",
    "conv2": "256x27x27, 5x5/1, padding 2, 614,656 parameters, 448,084,224 computations",
    "pool2": "256x13x13, 3x3/2",
    "conv3": "384x13x13, 3x3/1, padding 1, 885,120 parameters, 149,585,280 computations",
    "conv4": "384x13x13, 3x3/1, padding 1, 1,327,488 parameters, 224,345,472 computations",
    "conv5": "256x13x13, 3x3/1, padding 1, 884,992 parameters, 149,563,648 computations",
    "pool5": "256x6x6, 3x3/2",
    "fc6": "4096, 37,748,736 parameters, 37,748,736 computations",
    "fc7": "4096, 16,777,216 parameters, 16,777,216 computations",
    "fc8": "1000, 4,096,000 parameters, 4,096,000 computations",
}


def _alexnet_row(name: str, stated: str):
    """A row of the deck's table, and ours in the same words."""

    def compute(facts: Facts) -> str:
        row = facts.deck_alexnet.rows[name]
        *sides, maps = row["output"]
        words = ["x".join(map(str, [maps, *sides]))]
        if row["kernel"]:
            words.append(f"{'x'.join(map(str, row['kernel']))}/{row['stride']}")
        if any(row["padding"] or []):
            words.append(f"padding {max(row['padding'])}")
        for count in ("parameters", "computations"):
            if row[f"deck_{count}"]:
                words.append(f"{row[f'deck_{count}']:,} {count}")
        return ", ".join(words)

    return computed(f"deck-alexnet-{name}", f"{ALEXNET}, table", name, stated, compute)


def _biases(facts: Facts) -> tuple[str, bool]:
    total, rows = facts.deck_alexnet.total, facts.deck_alexnet.rows
    biases = sum(rows[name]["output"][0] for name in ("fc6", "fc7", "fc8"))
    counted = total["parameters"] - biases == total["deck_parameters"] == 62_369_152
    of_conv1 = 34_944 - 11 * 11 * 3 * 96 == 96  # the deck's number has its biases
    return f"{total['parameters']:,} with all biases", counted and of_conv1


def _shares(facts: Facts, count: str) -> str:
    """Convolutions against fully connected layers, in percent of the deck's count."""
    rows = facts.deck_alexnet.rows.items()
    conv, fc = (sum(row[count] for name, row in rows if kind in name) for kind in ("conv", "fc"))
    words = f"{conv / 1e6:.1f} million" if conv < 1e9 else f"{conv / 1e9:.2f} billion"
    share = conv / (conv + fc)
    return f"{words} ({share:.0%}), {fc / 1e6:.1f} million ({1 - share:.0%})"


def _relus(facts: Facts) -> str:
    activations = [facts.deck_alexnet.rows[name]["activation"] for name in WEIGHTS]
    return f"{activations.count('relu')} of {len(WEIGHTS)}"


def _relu_of_fc8(facts: Facts) -> tuple[str, bool]:
    last = facts.deck_alexnet.model.order[-1]
    return f"none after {last}, as in the text", last == "fc8" and _relus(facts) == "7 of 8"


def _millions(facts: Facts) -> tuple[str, bool]:
    total = facts.deck_alexnet.total["deck_parameters"]
    return f"{total / 1e6:.1f} million, rounded", total == 62_369_152 and round(total / 1e5) != 623


def _images(facts: Facts) -> str:
    """Of the first convolutions, from their outputs, windows and padding."""
    sizes = []
    for live, name in ((facts.deck_lenet, "c1"), (facts.deck_alexnet, "conv1")):
        row, channels = live.rows[name], getattr(live.model, name).kernel.shape[2]
        side = (row["output"][0] - 1) * row["stride"] + row["kernel"][0] - sum(row["padding"])
        sizes.append(f"{channels}x{side}x{side}")
    return " and ".join(sizes)


def _ends_without_dropout(facts: Facts) -> tuple[str, bool]:
    order = facts.deck_alexnet.model.order
    return f"{order[0]} first, {order[-1]} last", (order[0], order[-1]) == ("conv1", "fc8")


def _deeper(facts: Facts) -> tuple[str, bool]:
    ours, before = (layers_with_weights(x)[0] for x in (facts.deck_alexnet, facts.deck_lenet))
    return f"{ours} layers with weights instead of {before}", ours > before


def _norm_place(facts: Facts) -> tuple[str, bool]:
    order = facts.deck_alexnet.model.order
    before = [order[order.index(name) - 1] for name in ("norm1", "norm2")]
    after_relu = order.index("activation1") < order.index("pool1")
    text = f"after {' and '.join(before)}, as in its table"
    return text, before == ["pool1", "pool2"] and after_relu


def _dropout(facts: Facts) -> str:
    model = facts.deck_alexnet.model
    names = [b for a, b in itertools.pairwise(model.order) if a.startswith("dropout")]
    return f"{model.dropout:g}, before {' and '.join(names)}"


def _dropout_redrawn(facts: Facts) -> tuple[str, bool]:
    first, second = masks(facts.deck_alexnet.config)
    different = (first != second).mean()
    text = f"{different:.0%} of the units differ between two uses of an image"
    return text, 0.4 < different < 0.6


# id, source, claim, stated, what computes ours, and the status of agreement where it is not EXACT
# fmt: off
OF_LENET = (
    ("deck-lenet-layers", LENET, "layers",
     "7: 3 convolutional, 2 subsampling, 2 fully connected", _lenet_layers),
    ("deck-lenet-c3-parameters", f"{LENET}, third layer", "parameters of C3, sparse or dense",
     "1,516 instead of 2,400", lambda facts: _c3(facts, "parameters", 1_516, 2_400), INCONSISTENT),
    ("deck-lenet-c3-connections", f"{LENET}, third layer", "connections, sparse or dense",
     "151,600 instead of 240,000",
     lambda facts: _c3(facts, "connections", 151_600, 240_000), INCONSISTENT),
    ("deck-lenet-ten-of-sixteen", f"{LENET}, third layer", "C3's maps linked to the six of S2",
     "only 10 of the 16", _ten_of_sixteen, INCONSISTENT),
    ("deck-lenet-table-1", f"{LENET}, Table I", "the marks of the printed table",
     f"{MARKS}, and 1,516 parameters", _table_1, INCONSISTENT),
    ("deck-lenet-pooling", LENET, "subsampling takes the", "average", _pooling),
    ("deck-lenet-tanh", f"{LENET}, features", "layers with tanh", "C1, S2, C3, S4, C5, F6",
     lambda facts: squashed(facts.deck_lenet, jnp.tanh)),
    ("deck-lenet-c5-nodes", f"{LENET}, fifth layer", "S4's nodes that each unit of C5 sees",
     "400 nodes, 120 units", _c5_nodes),
    ("deck-lenet-every-convolution", f"{LENET}, features", "convolutional layers with pooling",
     "every one", _every_convolution, INCONSISTENT),
    ("deck-lenet-sparse-cost", f"{LENET}, features",
     "sparse connections, as counted (a masked convolution multiplies by 0)", "less computation",
     _sparse_cost),
)
OF_ALEXNET = (
    ("deck-alexnet-parameters", f"{ALEXNET}, table", "parameters in all", "62,369,152",
     lambda facts: facts.deck_alexnet.total["deck_parameters"]),
    ("deck-alexnet-computations", f"{ALEXNET}, table", "forward computation in all",
     "1,135,906,176", lambda facts: facts.deck_alexnet.total["deck_computations"]),
    ("deck-alexnet-biases", f"{ALEXNET}, table", "biases: counted in conv, not in FC layers",
     "62,369,152", _biases, INCONSISTENT),
    ("deck-alexnet-parameter-shares", f"{ALEXNET}, table", "parameters of conv and FC layers",
     "3.7 million (6%), 58.6 million (94%)", lambda facts: _shares(facts, "deck_parameters")),
    ("deck-alexnet-computation-shares", f"{ALEXNET}, table", "computation of conv, FC layers",
     "1.08 billion (95%), 58.6 million (5%)", lambda facts: _shares(facts, "deck_computations")),
    ("deck-alexnet-layers", ALEXNET, "layers with parameters, convolutional and FC", "8: 5 and 3",
     lambda facts: "{}: {} and {}".format(*layers_with_weights(facts.deck_alexnet))),
    ("deck-alexnet-filters", ALEXNET, "filters of the convolutional layers",
     "11x11, 5x5, 3x3, 3x3, 3x3",
     lambda facts: ", ".join(
         "{}x{}".format(*facts.deck_alexnet.rows[name]["kernel"]) for name in WEIGHTS[:5])),
    ("deck-alexnet-relus", ALEXNET, "layers with ReLU, all except the output layer", "7 of 8",
     _relus),
    ("deck-alexnet-fc8-relu", f"{ALEXNET}, table", "the activation of FC8",
     "ReLU (table), none (text)", _relu_of_fc8, INCONSISTENT),
    ("deck-alexnet-millions", f"{ALEXNET}, table", "62,369,152 parameters are", "62.3 million",
     _millions, INCONSISTENT),
    ("deck-alexnet-max-pools", f"{ALEXNET}, table", "pools take, of each window, the",
     "maximum of 3x3, 2 apart", lambda facts: pools(facts.deck_alexnet)),
    ("deck-images", "deck, both tables", "images of LeNet-5 and of AlexNet",
     "1x32x32 and 3x227x227", _images),
    ("deck-alexnet-deeper", ALEXNET, "depth against LeNet-5", "increased", _deeper),
    ("deck-alexnet-relu", ALEXNET, "ReLU", "f(x) = max(0, x)",
     lambda facts: rectifies(facts.deck_alexnet)),
    ("deck-alexnet-norm-place", f"{ALEXNET}, normalization", "normalization comes",
     "after ReLU (text), after pooling (table)", _norm_place, INCONSISTENT),
    ("deck-alexnet-norm-formula", f"{ALEXNET}, normalization", "the formula",
     "a / (k + alpha sum of a^2)^beta", lambda facts: normalizes(facts.deck_alexnet, towers=1)),
    ("deck-alexnet-dropout", f"{ALEXNET}, table", "dropout", "0.5, before fc6 and fc7", _dropout),
    ("deck-alexnet-dropout-ends", f"{ALEXNET}, dropout", "neurons of the input and output layer",
     "unchanged", _ends_without_dropout),
    ("deck-alexnet-dropout-redrawn", f"{ALEXNET}, dropout", "neurons removed at the next use",
     "drawn again", _dropout_redrawn),
    ("deck-alexnet-four-layers", f"{ALEXNET}, ReLU", "the network of the ReLU figure",
     "4 layers with weights (cifar18)",
     lambda _: f"{layers_with_weights(live_alexnet('cifar18'))[0]} layers with weights (cifar18)"),
)
# id, source, claim, stated, why it is not run
NOT_RUN = (
    ("deck-alexnet-won", ALEXNET, "ILSVRC-2012", "won", "ImageNet is not at hand"),
    ("deck-alexnet-transfer", ALEXNET, "transfer from weights pre-trained on ImageNet",
     "exceptional performance", "no such weights; --init_from starts from a run's"),
)
# fmt: on

CLAIMS = [
    *(_lenet_row(*row) for row in printed.LENET.items()),
    *(computed(*row) for row in OF_LENET),
    *(_alexnet_row(*row) for row in ALEXNET_TABLE.items()),
    *(computed(*row) for row in OF_ALEXNET),
    *(not_run(*row) for row in NOT_RUN),
]
