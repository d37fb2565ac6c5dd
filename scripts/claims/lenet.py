"""Claims of LeCun et al. 1998 on LeNet-5's layers, inputs and outputs."""

import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import lenet.network
from lenet import data, model
from lenet.codes import digit_codes
from lenet.config import Config
from scripts.claims.claim import INCONSISTENT, REPRODUCED, computed
from scripts.claims.facts import Facts, Live, quickly

ARCHITECTURE, OUTPUTS, APPENDIX_A = (f"LeCun 1998, {n}" for n in ("II.B", "II.C", "appendix A"))


# ---- layers


def _layer(name: str, *counts: str):
    """Layer `name` of the paper's network: maps@size, and parameters and connections."""

    def compute(facts: Facts) -> str:
        row = facts.lenet.rows[name] | {"parameters": _used(facts, name)}
        *sides, maps = row["output"]
        size = f"{maps}@{'x'.join(map(str, sides))}" if sides else str(maps)
        shown = counts or ("parameters", "connections")
        return ", ".join([size, *(f"{row[count]:,} {count}" for count in shown)])

    return compute


def _used(facts: Facts, *layers: str) -> int:
    """How many trainable numbers of these layers the outputs depend on."""
    return sum(int(used.sum()) for name in layers for used in facts.used.get(name, {}).values())


def _seen_by_c3(facts: Facts) -> list[tuple[int, ...]]:
    """The maps of S2 that each map of C3 depends on."""
    pairs = facts.used["c3"]["kernel"].any(axis=(0, 1))  # (S2, C3)
    return [tuple(np.flatnonzero(column).tolist()) for column in pairs.T]


def _all_trainable(facts: Facts) -> tuple[str, bool]:
    *others, output = facts.lenet.rows
    trainable = [name for name in facts.lenet.rows if _used(facts, name)]
    text = f"{', '.join(trainable).upper()} have them, the codes of the {output} are fixed"
    return text, trainable == others


def _table_1(facts: Facts) -> str:
    """How the C3 maps choose among six S2 maps on a circle."""
    kinds = Counter()
    for inputs in _seen_by_c3(facts):
        starts = sum((i - 1) % 6 not in inputs for i in inputs)  # of contiguous runs
        kinds[len(inputs), "all" if not starts else "contiguous" if starts == 1 else "apart"] += 1
    return ", ".join(f"{count} of {n} {kind}" for (n, kind), count in kinds.items())


def _asymmetry(facts: Facts) -> tuple[str, bool]:
    sets = set(_seen_by_c3(facts))
    return f"{len(sets)} sets of inputs", len(sets) == 16


def _centers_of_c3(facts: Facts) -> str:
    """The strides follow from the sizes: each layer has windows without a margin."""
    step, side = 1, 32
    for name in ("c1", "s2", "c3"):
        row = facts.lenet.rows[name]
        step *= (side - row["kernel"][0]) / (row["output"][0] - 1)  # input pixels
        side = row["output"][0]
    return f"{side * step:g}x{side * step:g}"


def windows_of(pool, maps: np.ndarray) -> str:
    """What a pool makes of each window of maps (H, W), from what it makes of these: of which size
    the windows are, and how far apart.
    """
    for kind, reduce in (("mean", np.mean), ("maximum", np.max)):
        for side, step in itertools.product(range(2, 5), range(1, 5)):
            windows = np.lib.stride_tricks.sliding_window_view(maps, (side, side))[::step, ::step]
            expected = reduce(windows, axis=(2, 3))
            if pool.shape == expected.shape and np.allclose(pool, expected, rtol=1e-5):
                return f"{kind} of {side}x{side}, {step} apart"
    return "something else"


def _non_overlapping(facts: Facts) -> tuple[str, bool]:
    maps = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    layers = [getattr(facts.lenet.model, name) for name in ("s2", "s4")]
    found = {
        windows_of(np.asarray(quickly(layer.pool)(maps[:, None, :, None]))[:, 0, :, 0], maps)
        for layer in layers
    }
    return ", ".join(sorted(found)), found == {"mean of 2x2, 2 apart"}


def _fields_of_c5(facts: Facts) -> tuple[str, bool]:
    *seen, _ = facts.lenet.model.c5.kernel.shape
    return "{}x{} of {} maps".format(*seen), seen == facts.lenet.rows["s4"]["output"]


def pooled(live: Live, *square: float) -> float:
    """What S2 makes of four inputs."""
    inputs = np.array(square, np.float32).reshape(2, 1, 2, 1)  # (H, maps, W, B)
    return quickly(live.model.s2.pool)(inputs).item()


def _pool_or_add(facts: Facts) -> tuple[str, bool]:
    found = pooled(facts.lenet, 1, 2, 3, 4)
    text = f"{found:g} of 1, 2, 3, 4: the average; the sum is a coefficient 4 times as large"
    return text, 4 * found == 1 + 2 + 3 + 4


def _multiply_accumulates(facts: Facts) -> tuple[str, bool]:
    total = facts.lenet.total
    both = total["connections"] + total["parameters"]
    text = (
        f"{total['multiply_adds']:,} of {total['connections']:,} connections; "
        f"with the parameters they would be {both:,}"
    )
    few = total["multiply_adds"] <= total["connections"] < 401_000
    return text, few and round(both / 1000) == 401


# ---- the squashing function


def _squash_ends(facts: Facts) -> str:
    ends = quickly(facts.lenet.model.activation)(np.array([1, -1], np.float32))
    return "f(1) = {:.4f}, f(-1) = {:.4f}".format(*ends.tolist())


def _squash(facts: Facts) -> tuple[str, bool]:
    a = np.linspace(-4, 4, 81, dtype=np.float32)
    f = np.asarray(quickly(facts.lenet.model.activation)(a))
    far = np.abs(f - 1.7159 * np.tanh(2 / 3 * a)).max()
    return f"within {1e-5:.0e}" if far < 1e-5 else f"off by {far:.1e}", far < 1e-5


def _squash_curvature(facts: Facts) -> tuple[str, bool]:
    a = np.linspace(0, 3, 301, dtype=np.float32)
    second = quickly(jax.vmap(jax.grad(jax.grad(facts.lenet.model.activation))))(a)
    place = float(a[np.abs(second).argmax()])
    return f"largest at ±{place:.2f}", abs(place - 1) < 0.02


def squashed(live: Live, function) -> str:
    """The layers whose outputs are `function` of their weighted sums, for a random image."""

    @quickly
    def far(image):
        network = lenet.network.build_model(live.config)
        found, x = network.forward(image), image.transpose(1, 3, 2, 0)
        distances = {}
        for name in ("c1", "s2", "c3", "s4", "c5"):
            distances[name] = jnp.abs(found[name] - function(getattr(network, name)(x))).max()
            x = found[name]
        units = function(network.f6(x.reshape(120, -1).T))
        return distances | {"f6": jnp.abs(found["f6"] - units).max()}

    image = np.random.default_rng(0).uniform(-1, 1, (1, 32, 32, 1)).astype(np.float32)
    distances = far(image)
    return ", ".join(name.upper() for name in live.rows if distances.get(name, 1) < 1e-5)


def _shifted(facts: Facts) -> tuple[str, bool]:
    """C1 of an image, and of it three columns to the right."""
    image = np.random.default_rng(0).uniform(-1, 1, (32, 1, 32, 1)).astype(np.float32)

    @quickly
    def c1(image):
        return lenet.network.build_model(facts.lenet.config).c1(image)

    here, there = (np.asarray(c1(x)) for x in (image, np.roll(image, 3, axis=2)))
    agrees = np.ptp(here) > 0 and np.allclose(there[:, :, 3:], here[:, :, :-3], atol=1e-5)
    return "by the same amount" if agrees else "otherwise", agrees


def _c5_of_a_wider_image(facts: Facts) -> tuple[str, bool]:
    image = jax.ShapeDtypeStruct((1, 32, 36, 1), np.float32)
    found = nnx.eval_shape(lambda network, x: network.forward(x), facts.lenet.model, image)
    height, _, width, _ = found["c5"].shape
    return f"{height}x{width} for 32x36 pixels", height * width > 1


# ---- images


def prepared(facts: Facts, images):
    """Images as the paper's preset sees them."""
    return quickly(data.prepare_function(facts.lenet.config.scaling, "none"))(images)


def digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Training digits of the embedded set, and their labels."""
    train, _, _ = data.load_splits(Config(dataset="mnist10k", validation_size=0, track="test"))
    return train.read(np.arange(count))


def _ends_of_pixels(facts: Facts) -> str:
    images = np.array([0, 255], np.uint8).repeat(28 * 28).reshape(2, 28, 28, 1)
    background, ink = np.asarray(prepared(facts, images))[:, 16, 16, 0].tolist()
    return f"{background:.3g} and {ink:.4g}"


def _mean_of_pixels(facts: Facts) -> tuple[str, bool]:
    mean = float(np.mean(prepared(facts, digits(2000)[0])))
    return f"{mean:.2f} over 2,000 digits", abs(mean) < 0.1


def _variance_of_pixels(facts: Facts) -> tuple[str, bool]:
    """Values between a and b with mean m have at most the variance (b - m) (m - a)."""
    x = np.asarray(prepared(facts, digits(2000)[0]), np.float64)
    mean, low, high = x.mean(), x.min(), x.max()
    most = (high - mean) * (mean - low)
    text = f"{x.var():.2f}; values of {low:.1f} to {high:.3f} and this mean allow {most:.2f}"
    return text, x.var() <= most < 0.5 and low == np.float32(-0.1)


def _box_of_digits(_: Facts) -> str:
    ink = digits(2000)[0][..., 0] > 0  # (digits, 28, 28)
    sides = []
    for lines in (ink.any(axis=2), ink.any(axis=1)):  # rows, columns
        sides.append((lines.shape[1] - lines[:, ::-1].argmax(1) - lines.argmax(1)).max())
    return "{}x{} in {}x{}".format(*sides, *ink.shape[1:])


def _center_of_digits(_: Facts) -> tuple[str, bool]:
    ink = digits(2000)[0][..., 0].astype(np.float64)
    places = np.arange(28) - 27 / 2
    total = ink.sum(axis=(1, 2))
    far = max(np.abs(ink.sum(axis=axis) @ places / total).max() for axis in (1, 2))
    return f"at most {far:.1f} pixels from the center", far <= 1


# ---- output and losses


def _rbf(facts: Facts) -> tuple[str, bool]:
    x = np.linspace(-1.5, 1.5, 2 * 84).reshape(2, 84).astype(np.float32)
    logits = np.asarray(quickly(facts.lenet.model.output)(x))
    expected = ((x[:, None].astype(np.float64) - digit_codes()) ** 2).sum(axis=2)
    agrees = np.allclose(-logits, expected, rtol=1e-5)
    return "the logits are -y" if agrees else "another distance", agrees


def _codes(facts: Facts) -> str:
    codes = np.array(facts.lenet.model.output.codes)
    values = " and ".join(f"{value:+.0f}" for value in sorted(set(codes.flat), reverse=True))
    return f"{codes.shape[0]} of 7 x {codes.shape[1] // 7} components, {values}"


def _loss(facts: Facts, name: str, formula) -> tuple[str, bool]:
    """Whether --loss is `formula` of (penalties of the right classes, of all (B, 10), j)."""
    y = np.linspace(1, 40, 30).reshape(3, 10) ** 1.5
    labels, j = np.array([0, 4, 9]), facts.lenet.config.map_constant
    loss = quickly(model.loss_function(name, "rbf", map_constant=j))
    expected = formula(y[np.arange(3), labels], y, j)
    agrees = np.allclose(loss(-y.astype(np.float32), labels), expected, rtol=1e-5)
    return f"--loss={name}" if agrees else "another loss", agrees


# id, source, claim, stated, what computes ours, and the status of agreement where it is not EXACT
# fmt: off
COMPUTED = (
    ("lenet-c1", ARCHITECTURE, "C1", "6@28x28, 156 parameters, 122,304 connections", _layer("c1")),
    ("lenet-s2", ARCHITECTURE, "S2", "6@14x14, 12 parameters, 5,880 connections", _layer("s2")),
    ("lenet-c3", ARCHITECTURE, "C3", "16@10x10, 1,516 parameters, 151,600 connections",
     _layer("c3")),
    ("lenet-s4", ARCHITECTURE, "S4", "16@5x5, 32 parameters, 2,000 connections", _layer("s4")),
    ("lenet-c5", ARCHITECTURE, "C5", "120@1x1, 48,120 connections", _layer("c5", "connections")),
    ("lenet-f6", ARCHITECTURE, "F6", "84, 10,164 parameters", _layer("f6", "parameters")),
    ("lenet-parameters", "LeCun 1998, II.A", "trainable parameters", "60,000",
     lambda facts: _used(facts, *facts.used)),
    ("lenet-connections", "LeCun 1998, II.A", "connections", "340,908",
     lambda facts: facts.lenet.total["connections"]),
    ("lenet-layers", ARCHITECTURE, "layers without the input", "7",
     lambda facts: len(facts.lenet.rows)),
    ("lenet-all-trainable", ARCHITECTURE, "of these, layers with trainable parameters", "all",
     _all_trainable, INCONSISTENT),
    ("lenet-table-1", ARCHITECTURE, "how C3's maps choose among the six maps of S2",
     "6 of 3 contiguous, 6 of 4 contiguous, 3 of 4 apart, 1 of 6 all", _table_1),
    ("lenet-asymmetry", ARCHITECTURE, "C3's maps get different sets of inputs",
     "each its own", _asymmetry),
    ("lenet-c3-centers", ARCHITECTURE,
     "the centers of C3's receptive fields form an area of the input of", "20x20", _centers_of_c3),
    ("lenet-non-overlapping", ARCHITECTURE, "receptive fields of S2 and S4",
     "2x2, not overlapping", _non_overlapping),
    ("lenet-c5-fields", ARCHITECTURE, "C5 sees 5x5 of all 16 maps of S4, as if fully connected",
     "all of S4", _fields_of_c5),
    ("lenet-subsampling-input", "LeCun 1998, II.A and II.B", "S2's units see of four inputs",
     "the average (II.A), the sum (II.B)", _pool_or_add, INCONSISTENT),
    ("lenet-squash-ends", APPENDIX_A, "the squashing function at ±1",
     "f(1) = 1.0000, f(-1) = -1.0000", _squash_ends),
    ("lenet-squash", "LeCun 1998, eq. 6", "the squashing function", "1.7159 tanh(2/3 a)", _squash),
    ("lenet-squash-curvature", APPENDIX_A, "its second derivative", "largest at ±1",
     _squash_curvature, REPRODUCED),
    ("lenet-squashed-layers", ARCHITECTURE, "layers that are squashed, all up to F6",
     "C1, S2, C3, S4, C5, F6",
     lambda facts: squashed(facts.lenet, lambda a: 1.7159 * jnp.tanh(2 / 3 * a))),
    ("lenet-shift", "LeCun 1998, II.A", "a shifted input shifts the feature maps",
     "by the same amount", _shifted),
    ("lenet-c5-grows", ARCHITECTURE, "C5's maps for a larger input", "larger than 1x1",
     _c5_of_a_wider_image),
    ("lenet-pixels", ARCHITECTURE, "values of background and ink", "-0.1 and 1.175",
     _ends_of_pixels),
    ("lenet-pixel-mean", ARCHITECTURE, "mean of the pixels", "roughly 0",
     _mean_of_pixels, REPRODUCED),
    ("lenet-pixel-variance", ARCHITECTURE, "variance of the pixels", "roughly 1",
     _variance_of_pixels, INCONSISTENT),
    ("lenet-digit-box", ARCHITECTURE, "the largest character, and its field", "20x20 in 28x28",
     _box_of_digits),
    ("lenet-digit-center", "LeCun 1998, III.A", "digits are centered by", "their center of mass",
     _center_of_digits),
    ("lenet-rbf", "LeCun 1998, eq. 7", "the output units", "y = sum of (x - w)^2", _rbf),
    ("lenet-codes", ARCHITECTURE, "the RBF's centers: stylized 7x12 bitmaps",
     "10 of 7 x 12 components, +1 and -1", _codes),
    ("lenet-fixed-codes", ARCHITECTURE, "trainable parameters of the output, kept fixed", "0",
     lambda facts: _used(facts, "output")),
    ("lenet-eq-8", OUTPUTS, "loss of maximum likelihood", "mean of y of the right class",
     lambda facts: _loss(facts, "mse", lambda right, y, j: right)),
    ("lenet-eq-9", OUTPUTS, "loss of maximum a posteriori", "y + log(exp(-j) + sum of exp(-y_i))",
     lambda facts: _loss(
         facts, "map", lambda right, y, j: right + np.log(np.exp(-j) + np.exp(-y).sum(axis=1)))),
    ("lenet-multiply-accumulates", "LeCun 1998, Fig. 11", "multiply-accumulates of a digit",
     "401,000", _multiply_accumulates, INCONSISTENT),
)
# fmt: on

CLAIMS = [computed(*row) for row in COMPUTED]
