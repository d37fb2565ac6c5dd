"""LeNet-5's examples: which ones, in which order, and what happens to an image on its way into C1."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from common import data
from common.errors import DataError, UserError

DIGITS = Path(__file__).parent / "digits"  # the embedded set mnist10k

# Half-widths of the uniform ranges at --distortion_strength=1; the paper names the transformations
# (III.B) but gives no ranges.
TRANSLATION_PX = 2.0  # horizontally and vertically
SCALING = 0.15  # of the size
SQUEEZING = 0.15  # one axis compressed, the other stretched
SHEAR = 0.3  # horizontal pixels per vertical pixel
ROTATION_RAD = 0.15  # elastic only
WARP_PX = (
    1.0  # elastic only: standard deviation of a random displacement at the nodes of a coarse grid
)
WARP_NODES = 6  # along each axis of the image


def load_splits(dataset: str, data_dir: str, *, train_size: int, validation_size: int):
    """The training, validation and test examples. Validation takes the last `validation_size` of
    the training split.

    Raises DataError if images are not 28x28 or 32x32, UserError if the sizes do not fit the set.
    """
    folders = data.data_dirs(data_dir, DIGITS)
    train, test = data.load(dataset, "train", folders), data.load(dataset, "test", folders)
    require_fit(train)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"{dataset}: training images have shape {train.images.shape[1:]}, test images {test.images.shape[1:]}"
        )
    return *data.hold_out(train, train_size=train_size, validation_size=validation_size), test


def require_fit(examples: data.Examples) -> None:
    """Raises DataError unless the images are 28x28 or 32x32, grey or RGB."""
    height, width, channels = examples.images.shape[1:]
    if (height, width) not in ((28, 28), (32, 32)) or channels not in (1, 3):
        raise DataError(
            f"LeNet-5 takes images of 28x28 or 32x32 pixels, grey or RGB; those of {examples.name} have "
            f"{height}x{width} pixels and {channels} channels"
        )


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Updates in one epoch: full batches only; the examples left over begin the next pass."""
    if batch_size > num_examples:
        raise UserError(
            f"--batch_size={batch_size} is larger than the training set ({num_examples} examples)"
        )
    return num_examples // batch_size


def training_chunk(
    examples: data.Examples,
    *,
    first_step: int,
    num_steps: int,
    padded_to: int,
    batch_size: int,
    seed: int,
    reshuffle: bool,
    copies: int,
    rows: slice = slice(None),
):
    """The batches of `num_steps` steps: {"image": (S, B, H, W, C) uint8, "label": (S, B) int32,
    "draw": (S, B) uint32}, of each batch its `rows`.

    S is `padded_to`, so that one compiled function serves every chunk; only the first `num_steps`
    are meant to be used. Batch k is a pure function of (seed, k). `draw` says which distortion an
    image gets, 0 for none: with copies, the training set is the originals and `copies` distorted
    versions of each, and `draw` is the place in it; without, every use has its own number.
    """
    originals = len(examples)
    population = originals * (1 + copies)  # a number n stands for example n % originals
    steps = first_step + np.minimum(np.arange(padded_to), num_steps - 1)
    uses = (
        steps[:, None] * batch_size + np.arange(batch_size)[rows]
    )  # (S, B): how many examples came before this one
    numbers = data.order_of_uses(population, uses, seed, reshuffle=reshuffle)
    indices = numbers % originals
    draw = np.where(numbers < originals, 0, numbers) if copies else 1 + uses
    return {
        "image": examples.images[indices],
        "label": examples.labels[indices],
        "draw": draw.astype(np.uint32),
    }


def prepare_function(scaling: str, distortions: str, *, strength: float = 1.0, seed: int = 0):
    """Returns prepare(images, draw=None): (B, 28 or 32, ..., C) uint8 -> (B, 32, 32, C) float32,
    inside the jitted step.

    28x28 is extended to 32x32 with the background (pixel 0). 'unit' scales to 0..1, 'paper' to -0.1
    (background) to 1.175. Where `draw` (B,) is given and not 0, the image is distorted by the
    numbers that (seed, draw) gives.
    """

    def distort_drawn(image, draw):
        key = jax.random.fold_in(jax.random.key(seed), draw)
        return jnp.where(
            draw > 0,
            distort(key, image, strength=strength, elastic=distortions == "elastic"),
            image,
        )

    def prepare(images, draw=None):
        margin = (32 - images.shape[1]) // 2
        x = (
            jnp.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0))).astype(
                jnp.float32
            )
            / 255
        )  # (B, 32, 32, C)
        if draw is not None and distortions != "none":
            x = jax.vmap(distort_drawn)(x, draw)
        return x * 1.275 - 0.1 if scaling == "paper" else x

    return prepare


def distort(
    key: jax.Array, image: jax.Array, *, strength: float = 1.0, elastic: bool = False
) -> jax.Array:
    """A random planar distortion of one image, (32, 32, C) of 0 to 1 with background 0: each output
    pixel is read where the transformation about the centre puts it.

    It is read by linear interpolation from a finer image, three cubically interpolated pixels for
    one: read from the image itself, distorted digits would be blurred and the sharp ones of the
    test set strange.

    Translation, scaling, squeezing (x by 1 + q, y by 1 - q) and horizontal shear, each uniform
    within +- its constant above times `strength` (LeCun et al. 1998, III.B); with `elastic` a
    rotation and a smooth warp too: normal displacements at the nodes of a coarse grid, interpolated
    linearly (in the manner of Simard, Steinkraus, Platt 2003).
    """
    scalars, warp_key = jax.random.split(key)
    limits = jnp.array(
        [
            TRANSLATION_PX,
            TRANSLATION_PX,
            SCALING,
            SQUEEZING,
            SHEAR,
            ROTATION_RAD if elastic else 0.0,
        ]
    )
    right, down, scale, squeeze, shear, angle = (
        strength * limits * jax.random.uniform(scalars, (6,), minval=-1, maxval=1)
    )
    centre = (image.shape[0] - 1) / 2
    y, x = jnp.meshgrid(
        jnp.arange(32.0) - centre, jnp.arange(32.0) - centre, indexing="ij"
    )  # (32, 32), pixels from the centre
    y, x = y * jnp.cos(angle) - x * jnp.sin(angle), y * jnp.sin(angle) + x * jnp.cos(angle)
    y, x = (1 + scale - squeeze) * y + down, (1 + scale + squeeze) * x + shear * y + right
    if elastic:
        nodes = strength * WARP_PX * jax.random.normal(warp_key, (2, WARP_NODES, WARP_NODES))
        down_warp, right_warp = jax.image.resize(nodes, (2, 32, 32), "linear")
        y, x = y + down_warp, x + right_warp
    fine = jnp.clip(jax.image.resize(image, (3 * 32, 3 * 32, image.shape[-1]), "cubic"), 0, 1)
    places = [
        3 * (y + centre) + 1,
        3 * (x + centre) + 1,
    ]  # pixel i of the image is pixel 3 i + 1 of the finer one
    read = jax.vmap(
        lambda plane: jax.scipy.ndimage.map_coordinates(plane, places, order=1),
        in_axes=-1,
        out_axes=-1,
    )
    return read(fine)
