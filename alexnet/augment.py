"""How an image is prepared for conv1: crops, mirroring and color noise, inside the jitted step."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, Float64, Integer, Key, Shaped, UInt8

from alexnet.image_statistics import Statistics
from common.errors import DataError

Stored = UInt8[Array | np.ndarray, "B H W C"]  # RGB or gray
Prepared = Float32[Array, "B crop crop 3"]
Covariance = Float[Array | np.ndarray, "3 3"]  # of RGB values of 0 to 255

# Folded into key(seed) first: apart from the keys of initial weights (0, 1, ...) and of dropout.
AUGMENTATION = 2**31

VIEWS = 10  # four corners and the center, then their mirror images (section 4.1)
COLOR_NOISE = 0.1  # standard deviation of the factors on the principal components (section 4.1)

# The random region of `resized_crop_flip`, as in Szegedy et al. 2015 (Going deeper with
# convolutions, section 6).
REGION_AREA = (0.08, 1.0)  # of the image's
REGION_ASPECT = (3 / 4, 4 / 3)  # width over height
REGION_TRIES = 10  # to find one that fits the image, as in torchvision


def is_mirrored(mirror: str, channels: int) -> bool:
    """Whether `mirror` ('never', 'always' or 'color') concerns images of so many channels."""
    return mirror == "always" or (mirror == "color" and channels == 3)


def views_differ(image_shape: tuple[int, int, int], crop_size: int, mirror: str) -> bool:
    """Whether the VIEWS of a stored image (H, W, C) are more than one and the same picture."""
    height, width, channels = image_shape
    return max(height, width) > crop_size or is_mirrored(mirror, channels)


def color_axes(covariance: Covariance) -> Float64[np.ndarray, "3 3"]:
    """Column i is the i-th principal component of the RGB values times their
    standard deviation along it.

    The sign of a component is arbitrary; here its largest entry is positive, so that all machines
    draw the same colors.
    """
    variances, components = np.linalg.eigh(np.asarray(covariance, np.float64))
    largest = components[np.abs(components).argmax(axis=0), np.arange(3)]
    return components * np.sign(largest) * np.sqrt(np.maximum(variances, 0))


def prepare_function(
    statistics: Statistics,
    *,
    crop_size: int,
    scaling: str,
    augmentation: str,
    mirror: str = "color",
    color_pca: bool,
    pad: int,
    seed: int,
):
    """Returns prepare(images, draw=None, view=None), to be called inside the jitted step.

    It maps (B, H, W, 3 or 1) uint8 to (B, crop_size, crop_size, 3) float32; gray becomes three
    equal channels.

    Without `draw`, for evaluation: the center crop, or the `view` (0 to 9, an int or a traced
    scalar) of section 4.1: top left, top right, center, bottom left, bottom right, then the mirror
    images of these five, in the order of the 2012 code.

    With `draw` (B,) each image is augmented by random numbers that are a function of (seed, draw),
    whatever else is in the batch.

    Color noise (section 4.1) adds sum_i p_i a_i s_i to all pixels of an image, p_i the principal
    components of the RGB values and a_i drawn from N(0, 0.1^2) once for each use of an image. The
    paper says that s_i is the eigenvalue lambda_i of the covariance, which would swamp an image of
    0 to 255 (lambda_1 is about 10^4); here it is sqrt(lambda_i) in these units, as in the 2012
    code, which calls it `color_stdevs`: 0.1 of a standard deviation.

    Args:
      statistics: of the training set, for images of this height and width.
      crop_size: height and width of the result. Smaller images are first padded to it with their
        background, the median of their border.
      scaling: 'mean_image': 0 to 255 minus the mean image, cropped like the image (section 2);
        'standardized': each channel minus its mean, over its standard deviation, which scales the
        color noise too.
      augmentation: 'none': the center crop; 'crop_flip': a crop at any place, mirrored or not, all
        equally likely (4.1); 'resized_crop_flip': a region of random area and aspect, resized with
        antialiasing, mirrored or not.
      mirror: 'never', 'always', or those of sets with 'color'; otherwise nothing is mirrored.
      color_pca: add color noise.
      pad: pixels of the mean (0 after its subtraction) on each side of an image before a random
        crop, of the background where images are gray or smaller than the crop; unused with 'none'.
      seed: non-negative.

    Raises:
      DataError: a color channel is constant and cannot be standardized.
    """
    mean, scale = np.asarray(statistics.mean_image, np.float32), np.float32(1)
    covariance = np.broadcast_to(statistics.covariance, (3, 3))
    height, width, channels = mean.shape
    mirrors = is_mirrored(mirror, channels)
    on_background = channels == 1 or min(height, width) < crop_size

    def extended(image, pad=0):
        return on_its_background(image, crop_size, pad) if on_background else image

    channel_means = mean.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)  # (C,)
    mean, padded_mean = np.asarray(extended(mean)), np.asarray(extended(mean, pad))
    if scaling == "standardized":
        variances = np.diag(covariance)
        if variances.min() <= 0:
            raise DataError(
                "--scaling=standardized would divide by zero: a color channel of the training "
                "images is constant"
            )
        mean, padded_mean = (np.broadcast_to(channel_means, x.shape) for x in (mean, padded_mean))
        scale = (1 / np.sqrt(variances)).astype(np.float32)  # (3,)
    margins = ((pad, pad), (pad, pad), (0, 0))
    if not on_background:
        padded_mean = np.pad(mean, margins)  # where image and mean are 0, so is their difference
    axes = color_axes(covariance).astype(np.float32)

    def crop(
        image: UInt8[Array, "H W 3"], mean: Float32[Array | np.ndarray, "H W 3"], corner, mirrored
    ) -> Float32[Array, "crop crop 3"]:
        # Cropped before the conversion to float, which is most of the work on a step's images.
        corner, size = (*corner, 0), (crop_size, crop_size, 3)
        x = lax.dynamic_slice(image, corner, size).astype(jnp.float32)
        x -= lax.dynamic_slice(mean, corner, size)
        return jnp.where(mirrored, x[:, ::-1], x)

    def augment(
        image: UInt8[Array, "H W C"], draw: Integer[Array, ""]
    ) -> Float32[Array, "crop crop 3"]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), AUGMENTATION), draw)
        place_key, mirror_key, color_key = jax.random.split(key, 3)
        mirrored = jax.random.bernoulli(mirror_key) if mirrors else False
        if augmentation == "none":
            image = extended(image)
            height, width, _ = image.shape
            center = (height - crop_size) // 2, (width - crop_size) // 2
            x = crop(image, mean, center, False)
        else:
            image = extended(image, pad) if on_background else jnp.pad(image, margins)
            height, width, _ = image.shape
            if augmentation == "crop_flip":
                places = jnp.array([height - crop_size + 1, width - crop_size + 1])
                place = jax.random.randint(place_key, (2,), 0, places)
                x = crop(image, padded_mean, place, mirrored)
            else:
                x = resized_crop(place_key, image - padded_mean, crop_size)
                x = jnp.where(mirrored, x[:, ::-1], x)
        if color_pca:
            x += jnp.sum(axes * COLOR_NOISE * jax.random.normal(color_key, (3,)), axis=1)
        return x * scale

    def prepare(
        images: Stored, draw: Integer[Array | np.ndarray, " B"] | None = None, view=None
    ) -> Prepared:
        if draw is not None:
            return jax.vmap(augment)(images, draw)
        images = jax.vmap(extended)(images)
        _, height, width, _ = images.shape
        bottom, right = height - crop_size, width - crop_size
        corners = [(0, 0), (0, right), (bottom // 2, right // 2), (bottom, 0), (bottom, right)]
        corner, mirrored = corners[2], False
        if view is not None:
            corner, mirrored = jnp.array(corners)[view % 5], mirrors & (view >= 5)
        return jax.vmap(lambda image: crop(image, mean, corner, mirrored) * scale)(images)

    return prepare


def on_its_background(
    image: Shaped[Array | np.ndarray, "H W C"], size: int, pad: int = 0
) -> Shaped[Array, "H2 W2 3"]:
    """An image with margins of its background, the median of its border, as three channels; at
    least `size` pixels in height and width, and `pad` more on each side.
    """
    height, width, _ = image.shape
    image = jnp.broadcast_to(image, (height, width, 3))
    border = jnp.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])  # (2H + 2W, 3)
    background = jnp.sort(border, axis=0)[len(border) // 2]
    missing = [max(size - side, 0) for side in (height, width)]
    margins = [(each // 2 + pad, each - each // 2 + pad) for each in missing] + [(0, 0)]
    inside = np.pad(np.ones((height, width, 1), bool), margins)
    return jnp.where(inside, jnp.pad(image, margins), background)


def resized_crop(
    key: Key[Array, ""], image: Float[Array, "H W C"], crop_size: int
) -> Float[Array, "crop_size crop_size C"]:
    """A random region of one image (H, W, C) float, resized to (crop_size, crop_size, C).

    torchvision's RandomResizedCrop: area and aspect (log-uniform) are drawn from REGION_AREA and
    REGION_ASPECT until the region fits, at most ten times, then its place; if none fits, it is the
    largest central region of an allowed aspect. Resized linearly with antialiasing, as if the whole
    image were resized and then cropped: at the border of the region, pixels beyond it count too.
    """
    height, width, channels = image.shape
    area_key, aspect_key, place_key = jax.random.split(key, 3)
    smallest, largest = REGION_AREA
    shares = jax.random.uniform(area_key, (REGION_TRIES,), minval=smallest, maxval=largest)
    area = height * width * shares
    low, high = map(math.log, REGION_ASPECT)
    aspect = jnp.exp(jax.random.uniform(aspect_key, (REGION_TRIES,), minval=low, maxval=high))
    # (10, 2): height and width of each
    sizes = jnp.round(jnp.sqrt(jnp.stack([area / aspect, area * aspect], axis=1)))
    sizes = sizes.astype(jnp.int32)
    fits = jnp.all((sizes > 0) & (sizes <= jnp.array([height, width])), axis=1)
    fallback = jnp.array(
        [min(height, round(width / REGION_ASPECT[0])), min(width, round(height * REGION_ASPECT[1]))]
    )
    size = jnp.where(fits.any(), sizes[fits.argmax()], fallback)
    free = jnp.array([height, width]) - size
    corner = jnp.where(fits.any(), jax.random.randint(place_key, (2,), 0, free + 1), free // 2)
    zoom = crop_size / size
    shape = (crop_size, crop_size, channels)
    return jax.image.scale_and_translate(
        image, shape, (0, 1), zoom, -corner * zoom, "linear", antialias=True
    )
