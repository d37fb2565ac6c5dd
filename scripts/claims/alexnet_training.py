"""Claims of Krizhevsky et al. 2012 on images, dropout and training."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

import alexnet.network
from alexnet import augment, optimizer
from alexnet.image_statistics import Statistics
from alexnet.model import drop, initializers
from alexnet.train import dropout_key
from scripts.claims.alexnet import WEIGHTS, followers
from scripts.claims.claim import EXACT, INCONSISTENT, NOW, computed
from scripts.claims.facts import Facts, quickly
from scripts.prepare.encode import center_square, encode_png

DATA, AUGMENT, DROPOUT, DETAILS = (f"Krizhevsky 2012, {n}" for n in ("2", "4.1", "4.2", "5"))
STORED = 256  # pixels of a side of imagenet_256
RED_VARIANCE = 400.0  # of the images made here; that of green and blue is 1


# ---- images


def _prepare(facts: Facts, crop_size: int, mean, color_pca: bool = False):
    """What the paper's preset does to images that have this mean."""
    config = facts.alexnet.config
    return augment.prepare_function(
        Statistics(np.asarray(mean, np.float32), np.diag([RED_VARIANCE, 1, 1])),
        crop_size=crop_size,
        scaling=config.scaling,
        augmentation=config.augmentation,
        color_pca=color_pca,
        pad=config.pad,
        seed=0,
    )


def _coordinates(side: int) -> np.ndarray:
    """A batch of one image whose red is the row and whose green is the column."""
    rows, columns = np.mgrid[:side, :side]
    return np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8)[None]


def _places(crops: np.ndarray) -> set[tuple]:
    """(row, column, mirrored) of crops of `_coordinates`; of each at least its first row."""
    left, right = crops[:, 0, 0], crops[:, 0, -1]
    mirrored = left[:, 1] > right[:, 1]
    corner = np.where(mirrored[:, None], right, left)[:, :2].astype(int)
    return {(*place, flipped) for place, flipped in zip(corner.tolist(), mirrored, strict=True)}


def _augmented_views(facts: Facts) -> tuple[str, bool]:
    """Crops are counted on a small image, which leaves as many places free."""
    free = STORED - facts.alexnet.config.crop_size
    image = _coordinates(free + 2)
    prepare = _prepare(facts, 2, 0 * image[0])
    draws = np.arange(1, 30_001, dtype=np.uint32)
    crops = quickly(jax.vmap(lambda draw: prepare(image, draw[None])[0]))(draws)
    count, places = len(_places(np.asarray(crops))), free + 1
    text = f"{count:,} = {places} x {places} x 2"
    return text, count == 2 * places**2 and free == 32 and 2 * free**2 == 2048


def _ten_crops(facts: Facts) -> tuple[str, bool]:
    image, crop = _coordinates(STORED), facts.alexnet.config.crop_size
    prepare = _prepare(facts, crop, 0 * image[0])
    views = quickly(lambda: jnp.stack([prepare(image, view=v)[0] for v in range(augment.VIEWS)]))
    found, free = _places(np.asarray(views())), STORED - crop
    corners = [(0, 0), (0, free), (free // 2, free // 2), (free, 0), (free, free)]
    agrees = found == {(*corner, flipped) for corner in corners for flipped in (False, True)}
    return f"{len(found)} crops" + " of those places" * agrees, agrees


def _mean_image(facts: Facts) -> tuple[str, bool]:
    mean = np.random.default_rng(0).uniform(0, 255, (8, 8, 3)).astype(np.float32)
    found = quickly(_prepare(facts, 8, mean))(np.full((1, 8, 8, 3), 200, np.uint8))
    return f"--scaling={facts.alexnet.config.scaling}", np.allclose(found, 200 - mean)


def _color_noise(facts: Facts) -> str:
    """How a principal component is scaled, from the noise that black images get."""
    image = np.zeros((1, 2, 2, 3), np.uint8)
    prepare = _prepare(facts, 2, image[0], color_pca=True)
    draws = np.arange(1, 10_001, dtype=np.uint32)
    noise = quickly(jax.vmap(lambda draw: prepare(image, draw[None])[0, 0, 0, 0]))(draws)
    scale = np.asarray(noise).std() / 0.1
    for name, expected in (("λ", RED_VARIANCE), ("√λ", math.sqrt(RED_VARIANCE))):
        if abs(scale / expected - 1) < 0.05:
            return f"{name}, drawn from N(0, 0.1)"
    return f"{scale:.3g} for λ = {RED_VARIANCE:g}"


def _color_of_pixels(facts: Facts) -> tuple[str, bool]:
    """Two uses of one black image."""
    image = np.zeros((2, 3, 3, 3), np.uint8)
    prepare = _prepare(facts, 3, image[0], color_pca=True)
    noise = np.asarray(quickly(prepare)(image, np.array([1, 2], np.uint32)))
    one = np.allclose(noise, noise[:, :1, :1], atol=1e-5)
    again = not np.allclose(noise[0], noise[1])
    return "one for all pixels" if one else "one for each pixel", one and again


def _rescaled(facts: Facts) -> tuple[str, bool]:
    """A picture of twice the size whose red is half the row, and green a quarter of the column."""
    rows, columns = np.mgrid[: 2 * STORED, : 4 * STORED]
    stored = center_square(encode_png(np.stack([rows / 2, columns / 4, 0 * rows], -1).astype("u1")))
    rows, columns = np.mgrid[:STORED, :STORED]
    expected = np.stack([rows, (columns + STORED / 2) / 2, 0 * rows], -1)
    agrees = stored.shape == expected.shape and np.abs(stored - expected).max() <= 1
    return f"{stored.shape[0]}x{stored.shape[1]} of the middle", agrees


# ---- training


def _update(facts: Facts) -> tuple[str, bool]:
    """Two steps, the second after a drop of the rate, against section 5 with the text's numbers."""
    tx = optimizer.build_optimizer(facts.alexnet.config, epoch_steps=1)
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
    config = facts.alexnet.config
    numbers = dict(patience=config.patience, num_drops=config.num_drops)

    def after_epoch(plateau, _):
        plateau = optimizer.drop_on_plateau(plateau, 100.0, **numbers)
        return plateau, plateau.drops

    epochs = np.arange(config.num_epochs)
    run = quickly(lambda: jax.lax.scan(after_epoch, optimizer.new_plateau(), epochs)[1])
    drops = [0, *run().tolist()]
    falls = {round(optimizer.DROP ** (a - b)) for a, b in itertools.pairwise(drops) if a != b}
    return f"by {', '.join(map(str, falls))}, {drops[-1]} times"


def _initial_weights(facts: Facts) -> str:
    initialization = facts.alexnet.config.initialization

    @quickly
    def weights():
        inits = [initializers(initialization, name, 100, 0.0)[0] for name in WEIGHTS]
        return [init(jax.random.key(0), (100, 100)) for init in inits]

    found = {(f"{kernel.std():.3f}", f"{abs(kernel.mean()):.3f}") for kernel in weights()}
    return " or ".join(f"{deviation} around {mean}" for deviation, mean in sorted(found))


def _initial_biases(facts: Facts) -> str:
    config = facts.alexnet.config

    @quickly
    def biases():
        model = alexnet.network.build_model(config, num_classes=10)
        return {name: getattr(model, name).bias[...] for name in WEIGHTS}

    found = {name: np.unique(values) for name, values in biases().items()}
    ones = [name for name in WEIGHTS if found[name].tolist() == [1]]
    zeros = [name for name in WEIGHTS if found[name].tolist() == [0]]
    return f"1 in {', '.join(ones)}; 0 in {', '.join(zeros)}"


def _equal_rates(facts: Facts) -> tuple[str, bool]:
    """How far a step from 0 goes in each layer, where all gradients are 1."""
    tx = optimizer.build_optimizer(facts.alexnet.config, epoch_steps=1)
    params = {name: {"kernel": np.zeros(1), "bias": np.zeros(1)} for name in WEIGHTS}

    @quickly
    def step(params):
        ones = jax.tree.map(jnp.ones_like, params)
        return tx.update(ones, tx.init(params), params, drops=0)[0]

    far = {round(float(each[0]), 6) for each in jax.tree.leaves(step(params))}
    return f"{', '.join(f'{each:g}' for each in sorted(far))} in all", len(far) == 1


# ---- dropout


def masks(config) -> np.ndarray:
    """What dropout makes of 4,096 ones at two uses of an image, by the keys of training."""

    @quickly
    def dropped():
        keys = jnp.stack([dropout_key(config.seed, draw) for draw in (1, 2)])
        return drop(jnp.ones((2, 4096)), config.dropout, config.dropout_scaling, keys, 6)

    return np.asarray(dropped())


def _dropped_gradients(facts: Facts) -> tuple[str, bool]:
    config = facts.alexnet.config

    @quickly
    def gradients(x):
        keys = dropout_key(config.seed, 1)[None]

        def dropped(x):
            return drop(x, config.dropout, config.dropout_scaling, keys, 6)

        return dropped(x), jax.grad(lambda x: dropped(x).sum())(x)

    outputs, back = map(np.asarray, gradients(np.ones((1, 4096), np.float32)))
    agrees = ((back == 0) == (outputs == 0)).all() and (outputs == 0).any()
    return "a gradient of 0" if agrees else "another gradient", agrees


def _dropped(facts: Facts) -> tuple[str, bool]:
    share = 1 - (masks(facts.alexnet.config) > 0).mean()
    return f"{share:.2f} of 2 x 4,096 outputs", abs(share - 0.5) < 0.03


def _test_factor(facts: Facts) -> str:
    config = facts.alexnet.config
    tested = quickly(lambda x: drop(x, config.dropout, config.dropout_scaling, None, 6))
    return f"{tested(np.ones((1, 1), np.float32)).item():g}"


# id, source, claim, stated, what computes ours; also the status of agreement where it is not
# EXACT, and where ours comes from where 'differs' is no bug
# fmt: off
COMPUTED = (
    ("alexnet-mean-image", DATA, "subtracted from the pixels", "their mean", _mean_image),
    ("alexnet-augmented-views", AUGMENT, "views of a 256x256 image by crops and reflections",
     "2,048", _augmented_views, INCONSISTENT),
    ("alexnet-ten-crops", AUGMENT, "crops of a test image",
     "10: 4 corners and the center, mirrored too", _ten_crops),
    ("alexnet-color-noise", AUGMENT, "factor of a principal component of the colors",
     "λ, drawn from N(0, 0.1)", _color_noise, EXACT,
     f"{NOW}; as in the 2012 code; 0.1 λ would swamp pixels of 0 to 255"),
    ("alexnet-color-once", AUGMENT, "the color noise of an image",
     "one for all pixels, drawn again at the next use", _color_of_pixels),
    ("alexnet-rescaled", DATA, "an image of any size is rescaled, and cropped",
     "shorter side 256, the central 256x256", _rescaled),
    ("alexnet-dropout-layers", DROPOUT, "layers with dropout", "fc6, fc7", followers("dropout")),
    ("alexnet-dropout-rate", DROPOUT, "outputs set to zero", "0.5 of them", _dropped),
    ("alexnet-dropout-backward", DROPOUT, "in back-propagation, dropped outputs have",
     "no part", _dropped_gradients),
    ("alexnet-dropout-test", DROPOUT, "factor on outputs at test time", "0.5", _test_factor),
    ("alexnet-batch", DETAILS, "batch size", "128", lambda facts: facts.alexnet.config.batch_size),
    ("alexnet-momentum", DETAILS, "momentum", "0.9", lambda facts: facts.alexnet.config.momentum),
    ("alexnet-weight-decay", DETAILS, "weight decay", "0.0005",
     lambda facts: facts.alexnet.config.weight_decay),
    ("alexnet-learning-rate", DETAILS, "initial learning rate", "0.01",
     lambda facts: facts.alexnet.config.learning_rate),
    ("alexnet-epochs", DETAILS, "passes over the training set", "90",
     lambda facts: facts.alexnet.config.num_epochs),
    ("alexnet-drops", DETAILS, "the rate is divided where the error stops improving",
     "by 10, 3 times", _drops),
    ("alexnet-update", DETAILS, "the update, also after a drop of the rate",
     "v = 0.9 v - 0.0005 e w - e g; w = w + v", _update),
    ("alexnet-equal-rates", DETAILS, "the rate of the layers", "equal", _equal_rates),
    ("alexnet-initial-weights", DETAILS, "standard deviation and mean of initial weights",
     "0.010 around 0.000", _initial_weights),
    ("alexnet-initial-biases", DETAILS, "initial biases",
     "1 in conv2, conv4, conv5, fc6, fc7; 0 in conv1, conv3, fc8", _initial_biases),
)
# fmt: on

CLAIMS = [computed(*row) for row in COMPUTED]
