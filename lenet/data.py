"""LeNet-5's examples: which ones, in which order, and how an image is prepared for C1."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, Integer, Key, UInt8

from common.errors import DataError
from common.examples import Examples, load
from common.order import epoch_order, hold_out, order_of_uses, steps_per_epoch
from common.prepared import DIGITS, about_test_split, data_dirs, find_test_split
from common.subset import of_classes
from lenet.config import Config

# 28x28 or 32x32 pixels; a string of digits has more columns (lenet/space_displacement.py).
Stored = UInt8[Array | np.ndarray, "B rows columns C"]
Prepared = Float32[Array, "B 32 _ C"]
Image = Float[Array, "32 32 C"]

# Half-widths of the uniform ranges at --distortion_strength=1; the paper names the transformations
# (III.B) but gives no ranges.
TRANSLATION_PX = 2.0  # horizontally and vertically
SCALING = 0.15  # of the size
SQUEEZING = 0.15  # one axis compressed, the other stretched
SHEAR = 0.3  # horizontal pixels per vertical pixel
ROTATION_RAD = 0.15  # elastic only
WARP_PX = 1.0  # elastic only: standard deviation of the displacements at the nodes of a coarse grid
WARP_NODES = 6  # along each axis of the image


def load_splits(config: Config) -> tuple[Examples, Examples, Examples]:
    """The training, validation and test examples of `config.dataset`.

    Raises:
      DataError: the set cannot be read, or its images have a shape that LeNet-5 does not take.
      UserError: the set has not the classes or examples that the settings ask for.
    """
    folders = data_dirs(config.data_dir, DIGITS)
    splits = "train", find_test_split(config.dataset, folders)
    train, test = (
        of_classes(load(config.dataset, split, folders), config.classes) for split in splits
    )
    require_fit(train)
    if train.image_shape != test.image_shape:
        raise DataError(
            f"{config.dataset}: training images have shape {train.image_shape}, test images "
            f"{test.image_shape}"
        )
    sizes = dict(
        train_size=config.train_size,
        validation_size=config.validation_size,
        train_per_class=config.train_per_class,
    )
    return *hold_out(train, **sizes), test


def remarks(config: Config) -> list[str]:
    """Lines on what is scored. Raises DataError."""
    return about_test_split(config.dataset, data_dirs(config.data_dir, DIGITS))


def require_fit(examples: Examples) -> None:
    """Raises DataError unless the images are 28x28 or 32x32, gray or RGB."""
    height, width, channels = examples.image_shape
    if (height, width) not in ((28, 28), (32, 32)) or channels not in (1, 3):
        raise DataError(
            "LeNet-5 takes images of 28x28 or 32x32 pixels, gray or RGB; those of "
            f"{examples.name} have {height}x{width} pixels and {channels} "
            f"channel{'s' * (channels > 1)}. --size=28 of scripts.prepare_data resizes them"
        )


def training_chunk(
    examples: Examples,
    *,
    first_step: int,
    num_steps: int,
    padded_to: int,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    reshuffle: bool,
    copies: int,
    rows: slice = slice(None),
) -> dict[str, np.ndarray]:
    """The `rows` of the batches of `num_steps` steps; batch k is a pure function of (seed, k).

    Args:
      padded_to: S; steps after `num_steps` repeat the last one and are not to be used. So one
        compiled function serves every chunk.
      copies: with 0, each use of an image has its own distortion; otherwise the training set is the
        originals and this many distorted versions of each.

    Returns:
      {"image": (S, B, H, W, C) uint8, "label": (S, B) int32, "draw": (S, B) uint32}. `draw`
      determines the distortion, 0 for none: with copies it is the place in the training set,
      without it counts the uses.
    """
    originals = len(examples)
    population = originals * (1 + copies)  # number n is a version of example n % originals
    steps = first_step + np.minimum(np.arange(padded_to), num_steps - 1)
    # (S, B): how many examples came before this one
    uses = steps[:, None] * batch_size + np.arange(batch_size)[rows]
    if shuffle:
        numbers = order_of_uses(population, uses, seed, reshuffle=reshuffle)
    else:
        numbers = uses % population
    images, labels = examples.read(numbers % originals)
    draw = np.where(numbers < originals, 0, numbers) if copies else 1 + uses
    return {"image": images, "label": labels, "draw": draw.astype(np.uint32)}


def steps_per_chunk(batch_size: int) -> int:
    """Steps in one call: about 4,096 images, so that a signal is noticed within a second."""
    return min(max(4096 // batch_size, 1), 2048)


def training_chunks(
    examples: Examples, config: Config, rows: slice, first_step: int
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """(number of steps, chunk) from `first_step` on, without end; no chunk crosses an epoch's end.

    Of each batch the `rows`.
    """
    epoch_steps = steps_per_epoch(len(examples), config.batch_size)
    padded_to, step = min(steps_per_chunk(config.batch_size), epoch_steps), first_step
    while True:
        count = min(padded_to, epoch_steps - step % epoch_steps)
        yield (
            count,
            training_chunk(
                examples,
                first_step=step,
                num_steps=count,
                padded_to=padded_to,
                batch_size=config.batch_size,
                seed=config.seed,
                shuffle=config.shuffle,
                reshuffle=config.reshuffle,
                copies=config.distorted_copies,
                rows=rows,
            ),
        )
        step += count


def for_curvature(
    examples: Examples, config: Config, epoch: int
) -> tuple[UInt8[np.ndarray, "N H W C"], Int32[np.ndarray, " N"]]:
    """Images and labels for SDLM's curvature before `epoch`: new ones each time, drawn from the
    seed; the first ones with --noshuffle, as in Lush.
    """
    order = np.arange(len(examples))
    if config.shuffle:
        order = epoch_order(len(examples), config.seed, epoch + 1)
    return examples.read(order[: config.curvature_examples])


def prepare_function(scaling: str, distortions: str, *, strength: float = 1.0, seed: int = 0):
    """Returns prepare(images, draw=None), to be called inside the jitted step.

    It maps (B, 28 or 32, 28 or 32, C) uint8 to (B, 32, 32, C) float32; 28x28 is padded with the
    background (pixel 0). Where `draw` (B,) is given and not 0, an image is distorted by random
    numbers that are a function of (seed, draw).

    Args:
      scaling: 'unit': 0 to 1; 'paper': -0.1 (background) to 1.175; 'hundredths': 0 to 2.55.
      distortions: 'none', 'affine' or 'elastic'.
      strength: of the distortions, as for `distort`.
      seed: non-negative.
    """

    def distort_drawn(image: Image, draw: Integer[Array, ""]) -> Image:
        key = jax.random.fold_in(jax.random.key(seed), draw)
        distorted = distort(key, image, strength=strength, elastic=distortions == "elastic")
        return jnp.where(draw > 0, distorted, image)

    def prepare(images: Stored, draw: Integer[Array | np.ndarray, " B"] | None = None) -> Prepared:
        margin = (32 - images.shape[1]) // 2
        x = jnp.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        x = x.astype(jnp.float32) / 255
        if draw is not None and distortions != "none":
            x = jax.vmap(distort_drawn)(x, draw)
        if scaling == "hundredths":
            return x * 2.55
        return x * 1.275 - 0.1 if scaling == "paper" else x

    return prepare


def distort(
    key: Key[Array, ""], image: Image, *, strength: float = 1.0, elastic: bool = False
) -> Image:
    """A random planar distortion of one image, its values 0 to 1 with background 0.

    Each output pixel is sampled where the transformation about the center puts it: linearly, from
    the image enlarged three times by cubic interpolation. Sampled from the image itself, distorted
    digits would be blurred, unlike those of the test set.

    Translation, scaling, squeezing (x by 1 + q, y by 1 - q) and horizontal shear, each uniform
    within +- its constant above times `strength` (LeCun et al. 1998, III.B). With `elastic` also a
    rotation and a smooth warp: normal displacements at the nodes of a coarse grid, interpolated
    linearly (in the manner of Simard, Steinkraus, Platt 2003).
    """
    scalars, warp_key = jax.random.split(key)
    rotation = ROTATION_RAD if elastic else 0.0
    limits = jnp.array([TRANSLATION_PX, TRANSLATION_PX, SCALING, SQUEEZING, SHEAR, rotation])
    uniform = jax.random.uniform(scalars, (6,), minval=-1, maxval=1)
    right, down, scale, squeeze, shear, angle = strength * limits * uniform
    center = (image.shape[0] - 1) / 2
    offsets = jnp.arange(32.0) - center
    y, x = jnp.meshgrid(offsets, offsets, indexing="ij")  # (32, 32): pixels from the center
    y, x = y * jnp.cos(angle) - x * jnp.sin(angle), y * jnp.sin(angle) + x * jnp.cos(angle)
    y, x = (1 + scale - squeeze) * y + down, (1 + scale + squeeze) * x + shear * y + right
    if elastic:
        nodes = strength * WARP_PX * jax.random.normal(warp_key, (2, WARP_NODES, WARP_NODES))
        down_warp, right_warp = jax.image.resize(nodes, (2, 32, 32), "linear")
        y, x = y + down_warp, x + right_warp
    fine = jnp.clip(jax.image.resize(image, (3 * 32, 3 * 32, image.shape[-1]), "cubic"), 0, 1)
    places = [3 * (y + center) + 1, 3 * (x + center) + 1]  # pixel i is pixel 3 i + 1 of `fine`
    sample = jax.vmap(
        lambda plane: jax.scipy.ndimage.map_coordinates(plane, places, order=1),
        in_axes=-1,
        out_axes=-1,
    )
    return sample(fine)
