"""Claims of Krizhevsky et al. 2012 on AlexNet's layers, data and training procedure."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alexnet import augment, optimizer
from alexnet.image_statistics import Statistics
from alexnet.model import HIDDEN_BIAS, drop, initializers
from scripts.claims.claim import departs, exact, holds, inconsistent
from scripts.claims.facts import Facts, quickly

OVERALL, LAYERS, NORM, POOL = (f"Krizhevsky 2012, {n}" for n in ("3.5", "3.5", "3.3", "3.4"))
DATA, AUGMENT, DROPOUT, DETAILS = (f"Krizhevsky 2012, {n}" for n in ("2", "4.1", "4.2", "5"))
STORED = 256  # pixels of a side of imagenet_256
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


def _followers(kind: str):
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


def masks(config) -> np.ndarray:
    """What dropout makes of 4,096 ones with two keys, and in a test."""

    @quickly
    def dropped():
        def drop_ones(keys):
            return drop(jnp.ones((1, 4096)), config.dropout, config.dropout_scaling, keys, 6)

        keys = jax.random.split(jax.random.key(0), 2)
        return jnp.concatenate([*(drop_ones(key[None]) for key in keys), drop_ones(None)])

    return np.asarray(dropped())


def _dropped(facts: Facts) -> tuple[str, bool]:
    config = _config(facts)
    share = 1 - (masks(config)[:2] > 0).mean()
    return f"{share:.2f} of 2 x 4,096 outputs", abs(share - 0.5) < 0.03


def _test_factor(facts: Facts) -> str:
    return f"{masks(_config(facts))[2, 0]:g}"


# ---- images


def _prepare(facts: Facts, side: int, crop_size: int, covariance=np.zeros((3, 3)), **changed):  # noqa: B008
    config = _config(facts)
    options = dict(augmentation=config.augmentation, color_pca=False) | changed
    return augment.prepare_function(
        Statistics(np.zeros((side, side, 3), np.float32), covariance),
        crop_size=crop_size,
        scaling=config.scaling,
        pad=config.pad,
        seed=0,
        **options,
    )


def _coordinates(side: int) -> np.ndarray:
    """An image whose red is the row and whose green is the column."""
    rows, columns = np.mgrid[:side, :side]
    return np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8)


def _places(crops: np.ndarray) -> set[tuple]:
    """(row, column, mirrored) of crops of `_coordinates`; of each at least its first row."""
    left, right = crops[:, 0, 0], crops[:, 0, -1]
    mirrored = left[:, 1] > right[:, 1]
    corner = np.where(mirrored[:, None], right, left)[:, :2].astype(int)
    return {(*place, flipped) for place, flipped in zip(corner.tolist(), mirrored, strict=True)}


def _augmented(facts: Facts) -> tuple[str, list[bool]]:
    """Crops are counted on a small image, which leaves as many places free."""
    free = STORED - _config(facts).crop_size
    image = _coordinates(free + 2)[None]
    prepare = _prepare(facts, free + 2, crop_size=2)
    draws = np.arange(1, 30_001, dtype=np.uint32)
    crops = quickly(jax.vmap(lambda draw: prepare(image, draw[None])[0]))(draws)
    count = len(_places(np.asarray(crops)))
    places = free + 1
    text = f"{count:,} = {places} x {places} x 2"
    return text, [count == 2 * places**2, free == 32, 2 * free**2 == 2048]


def _ten_crops(facts: Facts) -> tuple[str, bool]:
    crop = _config(facts).crop_size
    free, prepare = STORED - crop, _prepare(facts, STORED, crop)
    image = _coordinates(STORED)[None]
    views = quickly(lambda: jnp.stack([prepare(image, view=v)[0] for v in range(augment.VIEWS)]))
    corners = [(0, 0), (0, free), (free // 2, free // 2), (free, 0), (free, free)]
    found = _places(np.asarray(views()))
    agrees = found == {(*corner, flipped) for corner in corners for flipped in (False, True)}
    return f"{len(found)} crops" + " of those places" * agrees, agrees


def _mean_image(facts: Facts) -> tuple[str, bool]:
    mean = np.random.default_rng(0).uniform(0, 255, (8, 8, 3)).astype(np.float32)
    prepare = augment.prepare_function(
        Statistics(mean, np.eye(3)),
        **dict(crop_size=8, scaling=_config(facts).scaling, augmentation="none"),
        **dict(color_pca=False, pad=0, seed=0),
    )
    image = np.full((1, 8, 8, 3), 200, np.uint8)
    agrees = np.allclose(quickly(prepare)(image), 200 - mean)
    return f"--scaling={_config(facts).scaling}", agrees


def _color_factor(facts: Facts) -> str:
    """How a principal component is scaled, from the noise that images get."""
    variance = 400.0
    covariance = np.diag([variance, 0, 0])
    prepare = _prepare(facts, 2, 2, covariance, augmentation="none", color_pca=True)
    draws = np.arange(1, 10_001, dtype=np.uint32)
    image = np.zeros((1, 2, 2, 3), np.uint8)
    noise = quickly(jax.vmap(lambda draw: prepare(image, draw[None])[0, 0, 0, 0]))(draws)
    scale = np.asarray(noise).std() / 0.1
    for name, expected in (("λ", variance), ("√λ", math.sqrt(variance))):
        if abs(scale / expected - 1) < 0.05:
            return f"{name}, drawn from N(0, 0.1)"
    return f"{scale:.3g} for λ = {variance:g}"


# ---- training


def _update(facts: Facts) -> tuple[str, bool]:
    """Two steps, the second after a drop of the rate, against section 5 with the text's numbers."""
    config = _config(facts)
    tx = optimizer.build_optimizer(config, epoch_steps=1)
    w, v, gradient = np.array([0.5, -2.0, 3.0]), np.zeros(3), np.array([1.0, -4.0, 2.0])

    @quickly
    def two_steps(params, grads):
        state = tx.init(params)
        for drops in (0, 1):
            updates, state = tx.update(grads, state, params, drops=drops)
            params = optax.apply_updates(params, updates)
        return params

    params, grads = ({"conv1": {"kernel": x.astype(np.float32)}} for x in (w, gradient))
    params = two_steps(params, grads)
    for rate in (0.01, 0.001):
        v = 0.9 * v - 0.0005 * rate * w - rate * gradient
        w = w + v
    agrees = np.allclose(params["conv1"]["kernel"], w, rtol=1e-5)
    return ("the same to float32" if agrees else "another update"), agrees


def _drops(facts: Facts) -> str:
    """Of the rate where the validation error never improves."""
    config = _config(facts)

    def after_epoch(plateau, _):
        numbers = dict(patience=config.patience, num_drops=config.num_drops)
        plateau = optimizer.drop_on_plateau(plateau, 100.0, **numbers)
        return plateau, plateau.drops

    epochs = np.arange(config.num_epochs)
    run = quickly(lambda: jax.lax.scan(after_epoch, optimizer.new_plateau(), epochs)[1])
    drops = np.asarray(run()).tolist()
    rates = [1.0, *(optimizer.DROP**count for count in drops)]
    falls = {round(a / b) for a, b in itertools.pairwise(rates) if a != b}
    return f"by {', '.join(map(str, falls))}, {drops[-1]} times"


def _deviation(facts: Facts) -> str:
    initialization = _config(facts).initialization

    @quickly
    def weights():
        inits = [initializers(initialization, name, 100, 0.0)[0] for name in WEIGHTS]
        return [init(jax.random.key(0), (100, 100)) for init in inits]

    return " or ".join(sorted({f"{np.asarray(kernel).std():.2f}" for kernel in weights()}))


def _biases(facts: Facts) -> str:
    return f"{_config(facts).hidden_bias:g} in {', '.join(HIDDEN_BIAS)}"


def _setting(text):
    return lambda facts: text(_config(facts))


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
        *("alexnet-layers", OVERALL, "layers with weights"),
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
        *("alexnet-norms", OVERALL, "layers that are normalized"),
        "conv1, conv2",
        _followers("norm"),
    ),
    exact(
        *("alexnet-pools", OVERALL, "layers that are pooled", "conv1, conv2, conv5"),
        _followers("pool"),
    ),
    exact(
        *("alexnet-relus", OVERALL, "layers with ReLU"),
        *("conv1, conv2, conv3, conv4, conv5, fc6, fc7", _followers("activation")),
    ),
    holds(
        *("alexnet-order", OVERALL, "order in conv1 and conv2"),
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
    # ---- images
    holds(*("alexnet-mean-image", DATA, "subtracted from the pixels", "their mean"), _mean_image),
    inconsistent(
        *("alexnet-augmented-views", AUGMENT, "views of a 256x256 image by crops and reflections"),
        *("2,048", _augmented),
    ),
    holds(
        *("alexnet-ten-crops", AUGMENT, "crops of a test image"),
        *("10: 4 corners and the center, mirrored too", _ten_crops),
    ),
    departs(
        *("alexnet-color-noise", AUGMENT, "factor of a principal component of the colors"),
        *("λ, drawn from N(0, 0.1)", "as in the 2012 code; 0.1 λ would swamp pixels of 0 to 255"),
        _color_factor,
    ),
    # ---- training
    exact(
        *("alexnet-dropout-layers", DROPOUT, "layers with dropout", "fc6, fc7"),
        _followers("dropout"),
    ),
    holds(*("alexnet-dropout-rate", DROPOUT, "outputs set to zero", "0.5 of them"), _dropped),
    exact(
        *("alexnet-dropout-test", DROPOUT, "factor on outputs at test time", "0.5"), _test_factor
    ),
    exact(
        *("alexnet-batch", DETAILS, "batch size", "128"),
        _setting(lambda config: str(config.batch_size)),
    ),
    exact(
        *("alexnet-momentum", DETAILS, "momentum", "0.9"),
        _setting(lambda config: f"{config.momentum:g}"),
    ),
    exact(
        *("alexnet-weight-decay", DETAILS, "weight decay", "0.0005"),
        _setting(lambda config: f"{config.weight_decay:g}"),
    ),
    exact(
        *("alexnet-learning-rate", DETAILS, "initial learning rate", "0.01"),
        _setting(lambda config: f"{config.learning_rate:g}"),
    ),
    exact(
        *("alexnet-epochs", DETAILS, "passes over the training set", "90"),
        _setting(lambda config: str(config.num_epochs)),
    ),
    exact(
        *("alexnet-drops", DETAILS, "the rate is divided where the error stops improving"),
        *("by 10, 3 times", _drops),
    ),
    holds(
        *("alexnet-update", DETAILS, "the update, also after a drop of the rate"),
        *("v = 0.9 v - 0.0005 e w - e g; w = w + v", _update),
    ),
    exact(
        *("alexnet-initial-weights", DETAILS, "standard deviation of initial weights"),
        *("0.01", _deviation),
    ),
    exact(
        *("alexnet-initial-biases", DETAILS, "initial biases, 0 elsewhere"),
        *("1 in conv2, conv4, conv5, fc6, fc7", _biases),
    ),
]
