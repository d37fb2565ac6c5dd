"""How an image is prepared for conv1: crops, mirroring, color noise and random regions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet.augment import VIEWS, color_axes, prepare_function, resized_crop, views_differ
from alexnet.image_statistics import Statistics
from common.errors import DataError

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def some_statistics(height=12, width=10, seed=0) -> Statistics:
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(3, 3)) * 30
    return Statistics(
        random.uniform(60, 180, (height, width, 3)).astype(np.float32), mixing @ mixing.T
    )


def some_images(count=6, height=12, width=10, seed=1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def preparing(statistics, **settings):
    defaults = dict(
        crop_size=8, scaling="mean_image", augmentation="crop_flip", color_pca=False, pad=0, seed=0
    )
    return jax.jit(prepare_function(statistics, **(defaults | settings)))


def scaled(images, statistics, scaling) -> np.ndarray:
    """All pixels of `images` as the network gets them, in float64."""
    mean_image = statistics.mean_image.astype(np.float64)
    if scaling == "mean_image":
        return images - mean_image
    return (images - mean_image.mean(axis=(0, 1))) / np.sqrt(np.diag(statistics.covariance))


@pytest.mark.parametrize("scaling", ["mean_image", "standardized"])
def test_the_center_crop(scaling):
    statistics, images = some_statistics(), some_images()
    expected = scaled(images, statistics, scaling)[:, 2:10, 1:9]
    evaluated = [  # none of these settings is for evaluation
        preparing(statistics, scaling=scaling, augmentation=augmentation, pad=pad, color_pca=True)
        for augmentation, pad in (("crop_flip", 3), ("resized_crop_flip", 0), ("none", 0))
    ]
    trained = preparing(statistics, scaling=scaling, augmentation="none", pad=2)
    draws = np.arange(1, 7, dtype=np.uint32)
    for out in (*(prepare(images) for prepare in evaluated), trained(images, draws)):
        assert (out.shape, out.dtype) == ((6, 8, 8, 3), np.float32)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-4)


def test_the_ten_views():
    """Section 4.1: 'the four corner patches and the center patch as well as their horizontal
    reflections'.
    """
    statistics, images = some_statistics(), some_images()
    whole = scaled(images, statistics, "mean_image")
    patches = [
        whole[:, :8, :8],
        whole[:, :8, 2:],
        whole[:, 2:10, 1:9],
        whole[:, 4:, :8],
        whole[:, 4:, 2:],
    ]
    expected = [*patches, *(patch[:, :, ::-1] for patch in patches)]
    assert len(expected) == VIEWS
    prepare = preparing(statistics, augmentation="none", color_pca=True)
    known = jax.jit(lambda images: [prepare(images, view=view) for view in range(VIEWS)])
    np.testing.assert_allclose(known(images), expected, atol=1e-4)
    for view in range(VIEWS):
        np.testing.assert_allclose(prepare(images, view=jnp.int32(view)), expected[view], atol=1e-4)


@pytest.mark.parametrize("height, width", [(8, 8), (6, 7), (8, 9), (12, 8)])
@pytest.mark.parametrize(
    "mirror, channels", [("never", 3), ("color", 1), ("color", 3), ("always", 1)]
)
def test_ten_crops_of_a_whole_image_that_is_not_mirrored_are_one_picture(
    height, width, mirror, channels
):
    shape, draw = (height, width, channels), np.random.default_rng(0)
    statistics = Statistics(draw.uniform(0, 255, shape).astype(np.float32), np.eye(channels))
    image = draw.integers(0, 256, (1, *shape), np.uint8)
    prepare = preparing(statistics, augmentation="none", mirror=mirror)
    views = np.stack([prepare(image, view=view) for view in range(VIEWS)])
    assert views_differ(shape, 8, mirror) == (views != views[0]).any()


@pytest.mark.commands
@pytest.mark.parametrize("scaling, pad", [("mean_image", 1), ("standardized", 0)])
def test_random_crops_are_all_the_crops_equally_often(scaling, pad):
    statistics, image = some_statistics(7, 7), some_images(1, 7, 7)
    margins = ((pad, pad), (pad, pad), (0, 0))
    whole = np.pad(scaled(image, statistics, scaling)[0], margins)  # the mean became 0
    places = 7 + 2 * pad - 6 + 1
    crops = [
        whole[top : top + 6, left : left + 6] for top in range(places) for left in range(places)
    ]
    candidates = np.array([*crops, *(crop[:, ::-1] for crop in crops)])
    count = 100 * len(candidates)
    images = np.broadcast_to(image, (count, 7, 7, 3))
    out = preparing(statistics, crop_size=6, scaling=scaling, pad=pad)(
        images, np.arange(1, count + 1, dtype=np.uint32)
    )
    matches = np.array(
        [np.abs(out - candidate).max(axis=(1, 2, 3)) < 1e-3 for candidate in candidates]
    )
    assert (matches.sum(axis=0) == 1).all()  # each result is one of them
    assert np.abs(matches.sum(axis=1) - 100).max() < 6 * np.sqrt(100)  # six standard deviations


@pytest.mark.commands
@pytest.mark.parametrize("augmentation", ["crop_flip", "resized_crop_flip"])
def test_a_use_of_an_image_looks_the_same_in_any_batch(augmentation):
    statistics, images = some_statistics(), some_images(8)
    prepare = preparing(statistics, augmentation=augmentation, color_pca=True)
    draws = np.array([3, 1, 4, 10, 5, 9, 2**32 - 1, 6], np.uint32)
    together = np.asarray(prepare(images, draws))
    for part in (slice(None, None, -1), slice(3, 4)):
        np.testing.assert_allclose(
            prepare(images[part], draws[part]), together[part], rtol=1e-5, atol=1e-4
        )
    same_image = np.broadcast_to(images[:1], images.shape)
    drawn = np.asarray(prepare(same_image, draws))
    assert all(np.abs(drawn[0] - other).max() > 0.1 for other in drawn[1:])
    other_seed = preparing(statistics, augmentation=augmentation, color_pca=True, seed=1)
    assert np.abs(np.asarray(other_seed(images, draws)) - together).max() > 0.1


@pytest.mark.commands
def test_crops_mirror_images_and_colors_are_drawn_apart():
    """Color noise or not, the same crop and mirror image."""
    statistics, images = some_statistics(), some_images(50)
    draws = np.arange(1, 51, dtype=np.uint32)
    plain, colored = (
        np.asarray(preparing(statistics, color_pca=pca)(images, draws)) for pca in (False, True)
    )
    difference = colored - plain
    np.testing.assert_allclose(
        difference, np.broadcast_to(difference[:, :1, :1], difference.shape), atol=1e-3
    )
    assert (np.abs(difference[:, 0, 0]).max(axis=1) > 0.01).all()


@pytest.mark.parametrize("scaling", ["mean_image", "standardized"])
def test_the_color_noise_has_a_hundredth_of_the_covariance(scaling):
    """sum_i p_i a_i s_i with s_i^2 = lambda_i and a_i ~ N(0, 0.1^2) has mean 0 and covariance 0.01
    C, and is Gaussian.
    """
    statistics, count = some_statistics(2, 2), 40_000
    images = np.full((count, 2, 2, 3), 100, np.uint8)
    prepare = preparing(
        statistics, crop_size=1, scaling=scaling, augmentation="none", color_pca=True
    )
    noise = np.asarray(prepare(images, np.arange(1, count + 1, dtype=np.uint32)), np.float64)
    noise = noise[:, 0, 0]
    noise -= scaled(images[:1], statistics, scaling)[0, 0, 0]
    if scaling == "standardized":
        noise *= np.sqrt(np.diag(statistics.covariance))
    whitened = noise @ np.linalg.inv(np.linalg.cholesky(0.01 * statistics.covariance)).T
    assert np.abs(whitened.mean(axis=0)).max() < 6 / np.sqrt(count)
    assert np.abs(np.cov(whitened.T) - np.eye(3)).max() < 6 * np.sqrt(2 / count)
    fourth_moments = (whitened**4).mean(axis=0)  # 3 for a Gaussian
    assert np.abs(fourth_moments - 3).max() < 6 * np.sqrt(96 / count)


def expected_on_background(image: np.ndarray, size: int, pad: int) -> np.ndarray:
    """By NumPy, in float64."""
    height, width, _ = image.shape
    border = [*image[0], *image[-1], *image[:, 0], *image[:, -1]]
    full = [max(size, side) + 2 * pad for side in (height, width)]
    expected = np.broadcast_to(np.sort(border, axis=0)[len(border) // 2], (*full, 3)).copy()
    top, left = ((outer - side) // 2 for outer, side in zip(full, (height, width), strict=True))
    expected[top : top + height, left : left + width] = image
    return expected


@pytest.mark.commands
@pytest.mark.parametrize("scaling", ["mean_image", "standardized"])
@pytest.mark.parametrize("shape", [(5, 7, 1), (5, 7, 3), (9, 5, 3), (9, 10, 1)])
def test_gray_and_small_images_are_padded_with_their_background(shape, scaling):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (3, *shape), np.uint8)
    images[:, 0], images[:, -1], images[:, :, -1] = 7, 7, 7  # the background
    mean = random.uniform(60, 180, shape).astype(np.float32)
    mixing = random.normal(size=(shape[-1], shape[-1])) * 30
    statistics = Statistics(mean, mixing @ mixing.T)
    settings = dict(scaling=scaling, color_pca=False)
    if scaling == "mean_image":
        subtracted, scale = expected_on_background(mean, 8, 0), 1
    else:
        subtracted, scale = mean.mean(axis=(0, 1)), np.sqrt(np.diag(statistics.covariance))
    whole = np.stack([expected_on_background(image, 8, 0) for image in images])
    whole = (whole - subtracted) / scale
    top, left = ((side - 8) // 2 for side in whole.shape[1:3])
    expected = whole[:, top : top + 8, left : left + 8]
    out = preparing(statistics, **settings)(images)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-3)
    assert out.shape == (3, 8, 8, 3)
    # In training, a crop of the image with `pad` pixels more of its background.
    out = np.asarray(preparing(statistics, pad=2, mirror="never", **settings)(images, np.arange(3)))
    for image, found in zip(images, out, strict=True):
        if scaling == "mean_image":
            subtracted = expected_on_background(mean, 8, 2)
        padded = (expected_on_background(image, 8, 2) - subtracted) / scale
        places = np.lib.stride_tricks.sliding_window_view(padded, (8, 8), axis=(0, 1))
        crops = places.reshape(-1, 3, 8, 8).transpose(0, 2, 3, 1)
        assert np.abs(crops - found).max(axis=(1, 2, 3)).min() < 1e-2


@pytest.mark.commands
@pytest.mark.parametrize("augmentation", ["crop_flip", "resized_crop_flip"])
@pytest.mark.parametrize(
    ("channels", "mirror", "expected"),
    [(3, "color", True), (1, "color", False), (1, "always", True), (3, "never", False)],
)
def test_what_is_mirrored(augmentation, channels, mirror, expected):
    """An image that is bright on its left: digits are not mirrored."""
    images = np.zeros((40, 8, 8, channels), np.uint8)
    images[:, :, :2] = 200
    statistics = Statistics(np.zeros((8, 8, channels), np.float32), np.eye(channels))
    prepare = preparing(statistics, augmentation=augmentation, mirror=mirror)
    if augmentation == "crop_flip":
        out = np.asarray(prepare(images, np.arange(40)))
        mirrored = out[:, :, -1].mean(axis=(1, 2)) > out[:, :, 0].mean(axis=(1, 2))
        assert mirrored.any() == expected and not mirrored.all()
    views = [np.asarray(prepare(images[:1], view=view)) for view in range(VIEWS)]
    assert (not np.array_equal(views[0], views[5])) == expected
    np.testing.assert_array_equal(views[5], views[0][:, :, ::-1] if expected else views[0])


def test_a_constant_channel_cannot_be_standardized():
    statistics = Statistics(np.zeros((8, 8, 3), np.float32), np.diag([1.0, 0.0, 2.0]))
    preparing(statistics)
    with pytest.raises(DataError, match="--scaling=standardized"):
        preparing(statistics, scaling="standardized")


def test_color_axes_are_the_principal_components():
    covariance = some_statistics().covariance
    axes = color_axes(covariance)
    np.testing.assert_allclose(axes @ axes.T, covariance, rtol=1e-9)
    products = axes.T @ axes  # orthogonal, of length sqrt(lambda)
    np.testing.assert_allclose(
        products, np.diag(np.linalg.eigvalsh(covariance)), atol=1e-8 * np.trace(covariance)
    )
    gray = color_axes(np.ones((3, 3)))
    np.testing.assert_allclose(gray[:, 2], 1, rtol=1e-6)  # a single component
    assert (axes[np.abs(axes).argmax(axis=0), range(3)] > 0).all()


# Random regions


def regions(count, size=64):
    """(count, 4): height, width, top and left of regions, measured on images of coordinates in the
    middle of the result, where linear interpolation is exact.
    """
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    ramps = jnp.asarray(np.stack([y, x], axis=-1))
    keys = jax.vmap(jax.random.key)(jnp.arange(count))
    crops = jax.jit(jax.vmap(lambda key: resized_crop(key, ramps, size)))(keys)
    a, b = size // 4, size - size // 4
    first, below, beside = (
        np.asarray(crops[:, row, column], np.float64) for row, column in ((a, a), (b, a), (a, b))
    )  # (count, 2) each: the coordinates y, x in the images
    slopes = np.stack([below[:, 0] - first[:, 0], beside[:, 1] - first[:, 1]], axis=1) / (b - a)
    corners = first + 0.5 - (a + 0.5) * slopes
    return np.concatenate([slopes * size, corners], axis=1)


def torchvision_regions(count, size=64, seed=0):
    """The same by torchvision's loop: heights, widths, tops and lefts."""
    random, found = np.random.default_rng(seed), []
    for _ in range(count):
        for _ in range(10):
            area = size * size * random.uniform(0.08, 1.0)
            aspect = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
            width, height = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if 0 < width <= size and 0 < height <= size:
                top, left = (
                    random.integers(0, size - height + 1),
                    random.integers(0, size - width + 1),
                )
                break
        else:
            height, width, top, left = size, size, 0, 0
        found.append((height, width, top, left))
    return np.array(found, np.float64)


@pytest.mark.commands
def test_random_regions_are_distributed_as_torchvisions():
    ours, theirs = regions(2000), torchvision_regions(2000)
    np.testing.assert_allclose(ours, np.round(ours), atol=0.01)  # whole pixels
    ours = np.round(ours)
    height, width, top, left = ours.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 64).all() and (left + width <= 64).all()
    assert height.max() == width.max() == 64
    for name, measure in {
        "area": lambda r: r[:, 0] * r[:, 1] / 64**2,
        "aspect": lambda r: np.log(r[:, 1] / r[:, 0]),
        "place": lambda r: (r[:, 2] + 0.5) / (64 - r[:, 0] + 1),
        "places": lambda r: (
            (r[:, 2] + 0.5) / (64 - r[:, 0] + 1) * (r[:, 3] + 0.5) / (64 - r[:, 1] + 1)
        ),
    }.items():
        # Within six standard deviations of 2,000 draws.
        for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
            at = np.quantile(measure(theirs), quantile)
            share = (measure(ours) < at).mean() / 2 + (measure(ours) <= at).mean() / 2
            expected = (measure(theirs) < at).mean() / 2 + (measure(theirs) <= at).mean() / 2
            assert abs(share - expected) < 6 * np.sqrt(2 * 0.25 / 2000), (name, quantile)
    assert 0.07 < (height * width).min() / 64**2 < 0.1
    assert 0.7 < (width / height).min() < 0.78 and 1.28 < (width / height).max() < 1.42


@pytest.mark.slow
def test_a_random_region_is_resized_as_pytorch_does(torch):
    """Inside; at the border of the region PyTorch sees nothing beyond it."""
    images = np.random.default_rng(0).uniform(0, 255, (9, 64, 64, 3)).astype(np.float32)
    sizes = np.round(regions(9)).astype(int)
    cropped = jax.jit(lambda number, image: resized_crop(jax.random.key(number), image, 32))
    for number, (height, width, top, left) in enumerate(sizes):
        ours = np.asarray(cropped(number, images[number]))
        region = torch.tensor(images[number, top : top + height, left : left + width]).permute(
            2, 0, 1
        )[None]
        theirs = torch.nn.functional.interpolate(
            region, (32, 32), mode="bilinear", antialias=True, align_corners=False
        )
        np.testing.assert_allclose(
            ours[2:-2, 2:-2], theirs[0].permute(1, 2, 0).numpy()[2:-2, 2:-2], atol=0.05
        )
    assert (sizes[:, :2] < 32).any() and (sizes[:, :2] > 32).any()  # both enlarged and reduced


@pytest.mark.commands
def test_where_no_region_fits_the_largest_in_the_middle_is_taken():
    """Of 256x8 pixels: 8 wide and round(8 / (3/4)) = 11 high, from row (256 - 11) // 2 = 122."""
    rows = jnp.broadcast_to(jnp.arange(256.0)[:, None, None], (256, 8, 1))
    keys = jax.vmap(jax.random.key)(jnp.arange(5))
    out = jax.jit(jax.vmap(lambda key: resized_crop(key, rows, 11)))(keys)
    expected = np.broadcast_to(122.0 + np.arange(11)[:, None], (5, 11, 11))
    np.testing.assert_allclose(out[..., 0], expected, atol=1e-3)


@pytest.mark.commands
def test_resized_crops_are_scaled_and_mirrored():
    """A constant image less its constant mean is constant; columns rise or fall, as often."""
    statistics = Statistics(np.full((32, 32, 3), 10, np.float32), np.diag([4.0, 9.0, 16.0]))
    images = np.broadcast_to(np.arange(32, dtype=np.uint8)[None, None, :, None], (400, 32, 32, 3))
    draws = np.arange(1, 401, dtype=np.uint32)
    settings = dict(crop_size=24, augmentation="resized_crop_flip")
    prepare = preparing(statistics, **settings)
    out = np.asarray(prepare(images, draws))
    rising = out[:, 12, 16, 0] > out[:, 12, 8, 0]
    assert abs(rising.sum() - 200) < 6 * np.sqrt(100)
    standardized = np.asarray(
        preparing(statistics, scaling="standardized", **settings)(images, draws)
    )
    np.testing.assert_allclose(standardized, out / [2, 3, 4], rtol=1e-4, atol=1e-4)
    constant = np.full_like(images, 30)
    np.testing.assert_allclose(prepare(constant, draws), 20, rtol=1e-5)
