"""Claims of LeCun et al. 1998 on LeNet-5's layers, inputs and outputs."""

from collections import Counter
from functools import partial

import jax
import numpy as np

from lenet import data, model
from lenet.codes import digit_codes
from lenet.config import Config
from scripts.claims.claim import exact, holds, inconsistent
from scripts.claims.facts import Facts, quickly, size

ARCHITECTURE, OUTPUTS = "LeCun 1998, II.B", "LeCun 1998, II.C"


def _row(name: str, *counts: str):
    """Layer `name` of the paper's network: maps@size and the counts."""

    def compute(facts: Facts) -> str:
        row = facts.lenet["paper"].rows[name]
        return ", ".join([size(row), *(f"{row[count]:,} {count}" for count in counts)])

    return compute


def _rows_from(facts: Facts, first: str, last: str) -> list[dict]:
    rows = facts.lenet["paper"].rows
    names = list(rows)
    return [rows[name] for name in names[names.index(first) : names.index(last) + 1]]


def _table_1(facts: Facts) -> str:
    """How the C3 maps choose among six S2 maps on a circle."""
    kinds = Counter()
    for inputs in facts.lenet["paper"].model.connections:
        starts = sum((i - 1) % 6 not in inputs for i in inputs)  # of contiguous runs
        kinds[len(inputs), "all" if not starts else "contiguous" if starts == 1 else "apart"] += 1
    return ", ".join(f"{count} of {n} {kind}" for (n, kind), count in kinds.items())


def _centers_of_c3(facts: Facts) -> str:
    step = 1  # input pixels between neighboring units
    for row in _rows_from(facts, "c1", "c3"):
        step *= row["stride"]
    height, width, _ = facts.lenet["paper"].rows["c3"]["output"]
    return f"{height * step}x{width * step}"


def _non_overlapping(facts: Facts) -> tuple[str, bool]:
    rows = [facts.lenet["paper"].rows[name] for name in ("s2", "s4")]
    text = ", ".join(
        f"{row['kernel'][0]}x{row['kernel'][1]}, stride {row['stride']}" for row in rows
    )
    return text, all(row["kernel"] == [row["stride"]] * 2 == [2, 2] for row in rows)


def _fields_of_c5(facts: Facts) -> tuple[str, bool]:
    kernel = facts.lenet["paper"].model.c5.kernel.shape
    seen = facts.lenet["paper"].rows["s4"]["output"]
    return f"{kernel[0]}x{kernel[1]} of {kernel[2]} maps", list(kernel[:3]) == seen


def _masked(facts: Facts) -> tuple[str, bool]:
    sets = {tuple(inputs) for inputs in facts.lenet["paper"].model.connections}
    return f"{len(sets)} sets of inputs", len(sets) == 16


def _pool_or_add(facts: Facts) -> tuple[str, list[bool]]:
    square = np.arange(1, 5, dtype=np.float32).reshape(2, 1, 2, 1)  # (H, maps, W, B)
    pooled = quickly(facts.lenet["paper"].model.s2.pool)(square).item()
    text = f"{pooled:g} of 1, 2, 3, 4: the average; the sum is a coefficient 4 times as large"
    return text, [4 * pooled == 1 + 2 + 3 + 4]


# ---- numbers


def _squash(facts: Facts) -> str:
    ends = quickly(facts.lenet["paper"].model.activation)(np.array([1, -1], np.float32))
    return "f(1) = {:.4f}, f(-1) = {:.4f}".format(*ends.tolist())


def _squash_formula(facts: Facts) -> tuple[str, bool]:
    a = np.linspace(-4, 4, 81, dtype=np.float32)
    f = np.asarray(quickly(facts.lenet["paper"].model.activation)(a))
    far = np.abs(f - 1.7159 * np.tanh(2 / 3 * a)).max()
    return f"within {1e-5:.0e}" if far < 1e-5 else f"off by {far:.1e}", far < 1e-5


def _squash_curvature(facts: Facts) -> tuple[str, bool]:
    f = facts.lenet["paper"].model.activation
    a = np.linspace(0, 3, 301, dtype=np.float32)
    bend = np.abs(quickly(jax.vmap(jax.grad(jax.grad(f))))(a))
    place = float(a[bend.argmax()])
    return f"largest at ±{place:.2f}", abs(place - 1) < 0.02


def _squashed_layers(facts: Facts) -> tuple[str, bool]:
    names = [row["name"] for row in _rows_from(facts, "c1", "f6")]
    squashed = [name for name in names if facts.lenet["paper"].rows[name]["activation"]]
    return ", ".join(squashed).upper(), squashed == names


def _ends_of_pixels(facts: Facts) -> str:
    images = np.array([0, 255], np.uint8).repeat(28 * 28).reshape(2, 28, 28, 1)
    background, ink = np.asarray(prepared(facts, images)).reshape(2, -1)[:, 32 * 16 + 16].tolist()
    return f"{background:.3g} and {ink:.4g}"


def prepared(facts: Facts, images):
    """Images as the paper's preset sees them."""
    scaling = facts.lenet["paper"].config.scaling
    return quickly(data.prepare_function(scaling, "none"))(images)


def digits(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Training digits of the embedded set, and their labels."""
    config = Config(dataset="mnist10k", validation_size=0, track="test", seed=seed)
    train, _, _ = data.load_splits(config)
    return train.read(np.arange(count))


def _mean_of_pixels(facts: Facts) -> tuple[str, bool]:
    mean = float(np.mean(prepared(facts, digits(2000)[0])))
    return f"{mean:.2f} over 2,000 digits", abs(mean) < 0.1


def _variance_of_pixels(facts: Facts) -> tuple[str, list[bool]]:
    """Values between a and b with mean m have at most the variance (b - m) (m - a)."""
    x = np.asarray(prepared(facts, digits(2000)[0]), np.float64)
    mean, low, high = x.mean(), x.min(), x.max()
    most = (high - mean) * (mean - low)
    text = f"{x.var():.2f}; values of {low:.1f} to {high:.3f} and this mean allow {most:.2f}"
    return text, [x.var() <= most, most < 0.5, low == np.float32(-0.1)]


def _box_of_digits(_: Facts) -> str:
    ink = digits(2000)[0][..., 0] > 0  # (digits, 28, 28)
    rows, columns = ink.any(axis=2), ink.any(axis=1)
    sides = [(lines.shape[1] - lines[:, ::-1].argmax(1) - lines.argmax(1)).max() for lines in
             (rows, columns)]  # fmt: skip
    return f"{sides[0]}x{sides[1]} in {ink.shape[1]}x{ink.shape[2]}"


def _center_of_digits(_: Facts) -> tuple[str, bool]:
    ink = digits(2000)[0][..., 0].astype(np.float64)
    places = np.arange(ink.shape[1]) - (ink.shape[1] - 1) / 2
    total = ink.sum(axis=(1, 2))
    far = max(np.abs((ink.sum(axis=axis) * places).sum(axis=1) / total).max() for axis in (1, 2))
    return f"at most {far:.1f} pixels from the center", far <= 1


# ---- output and losses


def _rbf(facts: Facts) -> tuple[str, bool]:
    x = np.linspace(-1.5, 1.5, 2 * 84).reshape(2, 84).astype(np.float32)
    logits = np.asarray(quickly(facts.lenet["paper"].model.output)(x))
    expected = ((x[:, None].astype(np.float64) - digit_codes()) ** 2).sum(axis=2)
    agrees = np.allclose(-logits, expected, rtol=1e-5)
    return "the logits are -y" if agrees else "another distance", agrees


def _codes(facts: Facts) -> str:
    codes = np.array(facts.lenet["paper"].model.output.codes)
    values = " and ".join(f"{value:+.0f}" for value in sorted(set(codes.flat), reverse=True))
    return f"{codes.shape[0]} of 7 x {codes.shape[1] // 7} components, {values}"


def _loss(formula):
    """Whether a loss is `formula` of (penalty of the class, of all classes, j)."""

    def compute(facts: Facts, loss: str) -> tuple[str, bool]:
        y = np.linspace(1, 40, 30).reshape(3, 10) ** 1.5
        labels, j = np.array([0, 4, 9]), facts.lenet["paper"].config.map_constant
        function = quickly(model.loss_function(loss, "rbf", map_constant=j))
        found = function(-y.astype(np.float32), labels)
        expected = [formula(row[label], row, j) for row, label in zip(y, labels, strict=True)]
        agrees = np.allclose(found, expected, rtol=1e-5)
        return f"--loss={loss}" if agrees else "another loss", agrees

    return compute


_eq_8 = partial(_loss(lambda y, _, __: y), loss="mse")
_eq_9 = partial(
    _loss(lambda y, all_y, j: y + np.log(np.exp(-j) + np.exp(-all_y).sum())), loss="map"
)


def _multiply_accumulates(facts: Facts) -> tuple[str, list[bool]]:
    total = facts.lenet["paper"].total
    both = total["connections"] + total["parameters"]
    text = (
        f"{total['multiply_adds']:,} of {total['connections']:,} connections; "
        f"connections and parameters together are {both:,}"
    )
    return text, [
        total["multiply_adds"] <= total["connections"] < 401_000,
        round(both / 1000) == 401,
    ]


def _total(name: str):
    return lambda facts: f"{facts.lenet['paper'].total[name]:,}"


CLAIMS = [
    exact(
        *("lenet-c1", ARCHITECTURE, "C1", "6@28x28, 156 parameters, 122,304 connections"),
        _row("c1", "parameters", "connections"),
        layer_row=True,
    ),
    exact(
        *("lenet-s2", ARCHITECTURE, "S2", "6@14x14, 12 parameters, 5,880 connections"),
        _row("s2", "parameters", "connections"),
        layer_row=True,
    ),
    exact(
        *("lenet-c3", ARCHITECTURE, "C3", "16@10x10, 1,516 parameters, 151,600 connections"),
        _row("c3", "parameters", "connections"),
        layer_row=True,
    ),
    exact(
        *("lenet-s4", ARCHITECTURE, "S4", "16@5x5, 32 parameters, 2,000 connections"),
        _row("s4", "parameters", "connections"),
        layer_row=True,
    ),
    exact(
        *("lenet-c5", ARCHITECTURE, "C5", "120@1x1, 48,120 connections"),
        _row("c5", "connections"),
        layer_row=True,
    ),
    exact(
        *("lenet-f6", ARCHITECTURE, "F6", "84, 10,164 parameters"),
        _row("f6", "parameters"),
        layer_row=True,
    ),
    exact(
        *("lenet-parameters", "LeCun 1998, II.A", "trainable parameters", "60,000"),
        _total("parameters"),
    ),
    exact(
        *("lenet-connections", "LeCun 1998, II.A", "connections", "340,908"),
        _total("connections"),
    ),
    exact(
        *("lenet-layers", ARCHITECTURE, "layers without the input", "7"),
        lambda facts: str(len(facts.lenet["paper"].rows)),
    ),
    exact(
        *("lenet-table-1", ARCHITECTURE, "how C3's maps choose among the six maps of S2"),
        "6 of 3 contiguous, 6 of 4 contiguous, 3 of 4 apart, 1 of 6 all",
        _table_1,
    ),
    holds(
        *("lenet-asymmetry", ARCHITECTURE, "C3's maps get different sets of inputs"),
        *("each its own", _masked),
    ),
    exact(
        *("lenet-c3-centers", ARCHITECTURE),
        "the centers of C3's receptive fields form an area of the input of",
        *("20x20", _centers_of_c3),
    ),
    holds(
        *("lenet-non-overlapping", ARCHITECTURE, "receptive fields of S2 and S4"),
        *("2x2, not overlapping", _non_overlapping),
    ),
    holds(
        *(
            "lenet-c5-fields",
            ARCHITECTURE,
            "C5 sees 5x5 of all 16 maps of S4, as if fully connected",
        ),
        *("all of S4", _fields_of_c5),
    ),
    inconsistent(
        *("lenet-subsampling-input", "LeCun 1998, II.A and II.B", "S2's units see of four inputs"),
        *("the average (II.A), the sum (II.B)", _pool_or_add),
    ),
    exact(
        *("lenet-squash-ends", "LeCun 1998, appendix A", "the squashing function at ±1"),
        *("f(1) = 1.0000, f(-1) = -1.0000", _squash),
    ),
    holds(
        *("lenet-squash", "LeCun 1998, eq. 6", "the squashing function"),
        *("1.7159 tanh(2/3 a)", _squash_formula),
    ),
    holds(
        *("lenet-squash-curvature", "LeCun 1998, appendix A", "its second derivative"),
        *("largest at ±1", _squash_curvature),
        "reproduced",
    ),
    holds(
        *("lenet-squashed-layers", ARCHITECTURE, "layers that are squashed"),
        *("all up to F6", _squashed_layers),
    ),
    exact(
        *("lenet-pixels", ARCHITECTURE, "values of background and ink"),
        *("-0.1 and 1.175", _ends_of_pixels),
    ),
    holds(
        *("lenet-pixel-mean", ARCHITECTURE, "mean of the pixels"),
        *("roughly 0", _mean_of_pixels, "reproduced"),
    ),
    inconsistent(
        *("lenet-pixel-variance", ARCHITECTURE, "variance of the pixels"),
        *("roughly 1", _variance_of_pixels),
    ),
    exact(
        *("lenet-digit-box", ARCHITECTURE, "the largest character, and its field"),
        *("20x20 in 28x28", _box_of_digits),
    ),
    holds(
        *("lenet-digit-center", "LeCun 1998, III.A", "digits are centered by"),
        *("their center of mass", _center_of_digits),
    ),
    holds(
        *("lenet-rbf", "LeCun 1998, eq. 7", "the output units"),
        *("y = sum of (x - w)^2", _rbf),
    ),
    exact(
        *("lenet-codes", ARCHITECTURE, "the RBF's centers: stylized 7x12 bitmaps"),
        *("10 of 7 x 12 components, +1 and -1", _codes),
    ),
    exact(
        *("lenet-fixed-codes", ARCHITECTURE, "trainable parameters of the output, kept fixed"),
        *("0", lambda facts: str(facts.lenet["paper"].rows["output"]["parameters"])),
    ),
    holds(
        *("lenet-eq-8", OUTPUTS, "loss of maximum likelihood", "mean of y of the right class"),
        _eq_8,
    ),
    holds(
        *("lenet-eq-9", OUTPUTS, "loss of maximum a posteriori"),
        *("y + log(exp(-j) + sum of exp(-y_i))", _eq_9),
    ),
    inconsistent(
        *("lenet-multiply-accumulates", "LeCun 1998, Fig. 11", "multiply-accumulates of a digit"),
        *("401,000", _multiply_accumulates),
    ),
]
