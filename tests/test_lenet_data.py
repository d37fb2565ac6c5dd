"""Which images a step of LeNet-5 sees, and how they are prepared for C1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import DataError, UserError
from common.examples import Examples
from lenet import data
from lenet.config import Config


def numbered_examples(count):
    """Example i: label i % 10, every pixel i % 256."""
    pixels = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    images = np.tile(pixels, (1, 28, 28, 1))
    return Examples(images, np.arange(count, dtype=np.int32) % 10, 10, "numbers")


def test_a_set_without_a_test_split_is_scored_on_validation(tmp_path, write_set):
    folder = write_set(tmp_path, "mine", np.zeros((4, 28, 28, 1), np.uint8), num_classes=2)
    for path in (folder / "dataset_info.json", *folder.glob("*-test.*")):
        if path.name == "dataset_info.json":
            path.write_text(path.read_text().replace('"name": "test"', '"name": "validation"'))
        else:
            path.rename(folder / path.name.replace("-test.", "-validation."))
    settings = dict(data_dir=str(tmp_path), validation_size=1, train_size=0)
    train, validation, test = data.load_splits(Config(dataset="mine", **settings))
    assert (len(train), len(validation), len(test)) == (3, 1, 4)
    (line,) = data.remarks(Config(dataset="mine", **settings))
    assert "`validation`" in line


def chunk(examples, first_step, num_steps, **options):
    settings = dict(padded_to=num_steps, batch_size=4, seed=1, reshuffle=True, copies=0) | options
    return data.training_chunk(examples, first_step=first_step, num_steps=num_steps, **settings)


def test_paper_scaling_extends_the_background():
    """Background -0.1, ink 1.175 (section II.B); the margins of two pixels are background."""
    images = np.zeros((2, 28, 28, 1), np.uint8)
    images[0] = 255
    out = np.asarray(data.prepare_function("paper", "none")(images))
    assert out.shape == (2, 32, 32, 1)
    np.testing.assert_allclose(out[0, 2:30, 2:30], 1.175, rtol=1e-6)
    np.testing.assert_allclose(out[1], -0.1, rtol=1e-6)
    border = np.ones((32, 32), bool)
    border[2:30, 2:30] = False
    np.testing.assert_allclose(out[0][border], -0.1, rtol=1e-6)


def test_hundredths_are_pixels_times_001_with_a_background_of_0():
    images = np.arange(256, dtype=np.uint8).repeat(28 * 28).reshape(256, 28, 28, 1)
    out = np.asarray(data.prepare_function("hundredths", "none")(images))
    np.testing.assert_allclose(out[:, 16, 16, 0], 0.01 * np.arange(256), rtol=1e-6)
    assert (out[:, :2] == 0).all() and (out[:, :, -2:] == 0).all()


def test_mnist_has_mean_zero_and_variance_one_after_paper_scaling(mnist10k_train):
    """Section II.B: 'this makes the mean input roughly 0, and the variance roughly 1'."""
    images, _ = mnist10k_train
    assert abs(float(images.mean())) < 0.1
    assert 0.3 < float(images.std()) < 1.1


def test_32_pixels_stay_as_they_are():
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    np.testing.assert_allclose(
        data.prepare_function("unit", "none")(images), images / 255, rtol=1e-6
    )


@settings(max_examples=25, deadline=None)
@given(
    st.integers(4, 60),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(0, 50),
    st.integers(1, 9),
    st.booleans(),
)
def test_batch_k_is_a_function_of_seed_and_k_alone(
    count, batch_size, copies, first, steps, reshuffle
):
    examples = numbered_examples(count)
    options = dict(batch_size=batch_size, copies=copies, reshuffle=reshuffle)
    together = chunk(examples, first, steps, **options)
    for k in range(steps):
        alone = chunk(examples, first + k, 1, padded_to=3, **options)
        for name in together:
            np.testing.assert_array_equal(together[name][k], alone[name][0])


@pytest.mark.parametrize("reshuffle", [True, False])
def test_every_example_comes_once_in_an_epoch(reshuffle):
    examples = numbered_examples(40)
    epochs = [
        chunk(examples, 10 * epoch, 10, reshuffle=reshuffle)["image"][..., 0, 0, 0].ravel()
        for epoch in (0, 1)
    ]
    for order in epochs:
        assert sorted(order) == list(range(40))
    assert (epochs[0] == epochs[1]).all() == (not reshuffle)  # the paper: one constant random order
    assert (epochs[0] != np.arange(40)).any()


def test_the_sets_own_order():
    batches = chunk(numbered_examples(40), 5, 10, shuffle=False, reshuffle=False)
    expected = np.arange(20, 60) % 40
    np.testing.assert_array_equal(batches["image"][..., 0, 0, 0].ravel(), expected)


def test_curvature_is_estimated_on_new_examples_each_time_or_on_the_first():
    examples, drawn = numbered_examples(40), Config(curvature_examples=8)
    (one, labels), (two, _) = (data.for_curvature(examples, drawn, epoch) for epoch in (0, 1))
    assert set(one[:, 0, 0, 0]) != set(two[:, 0, 0, 0])
    np.testing.assert_array_equal(one[:, 0, 0, 0] % 10, labels)
    in_order = Config(curvature_examples=8, shuffle=False, reshuffle=False)
    for epoch in (0, 10):
        images, labels = data.for_curvature(examples, in_order, epoch)
        np.testing.assert_array_equal(images[:, 0, 0, 0], np.arange(8))
        np.testing.assert_array_equal(labels, np.arange(8))


def test_images_and_labels_stay_together():
    batches = chunk(numbered_examples(40), 3, 9)
    np.testing.assert_array_equal(batches["image"][..., 0, 0, 0] % 10, batches["label"])


def test_each_use_has_its_own_distortion():
    draws = chunk(numbered_examples(40), 0, 30)["draw"]
    assert len(np.unique(draws)) == draws.size and draws.min() == 1


def test_copies_are_the_originals_and_a_fixed_set_of_distorted_versions():
    """The paper: 60,000 originals, 540,000 distorted; each version has one number, an original has
    0.
    """
    examples, copies = numbered_examples(20), 9
    batches = chunk(examples, 0, 50, copies=copies, reshuffle=False)
    assert (batches["draw"] == 0).sum() == 20
    distorted = batches["draw"][batches["draw"] > 0]
    assert sorted(distorted) == list(range(20, 200))
    shown = batches["image"][..., 0, 0, 0]
    np.testing.assert_array_equal(shown[batches["draw"] > 0], distorted % 20)
    again = chunk(examples, 50, 50, copies=copies, reshuffle=False)
    np.testing.assert_array_equal(again["draw"], batches["draw"])


@pytest.mark.commands
def test_a_distortion_is_a_function_of_seed_and_draw():
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), np.uint8)
    draw = np.array([0, 5, 5, 6], np.uint32)
    images[2] = images[3] = images[1]
    plain = np.asarray(data.prepare_function("unit", "none")(images))
    out, other_seed = (
        np.asarray(data.prepare_function("unit", "elastic", seed=seed)(images, draw))
        for seed in (1, 2)
    )
    np.testing.assert_array_equal(out[0], plain[0])
    np.testing.assert_array_equal(out[1], out[2])
    assert np.abs(out[2] - out[3]).max() > 0.01
    assert np.abs(other_seed[1] - out[1]).max() > 0.01


def blobs(y, x):
    """A smooth picture, known at every point of the plane."""
    places = [(10.0, 12.0, 0.9, 1.5), (18.0, 20.0, 0.8, 1.8), (20.0, 9.0, 0.6, 1.3)]
    return sum(
        height * np.exp(-((y - down) ** 2 + (x - right) ** 2) / (2 * width**2))
        for down, right, height, width in places
    )


@pytest.mark.commands
def test_affine_distortion_against_the_known_picture():
    """Each pixel shows the picture where the transformation, by the numbers that the key gives,
    puts it, unblurred.
    """
    grid = np.mgrid[0:32, 0:32].astype(np.float64)
    image = jnp.asarray(blobs(*grid)[..., None], jnp.float32)
    for seed in range(5):
        key = jax.random.key(seed)
        uniform = np.asarray(
            jax.random.uniform(jax.random.split(key)[0], (6,), minval=-1, maxval=1), np.float64
        )
        right, down, scale, squeeze, shear, _ = (
            0.7 * np.array([2.0, 2.0, 0.15, 0.15, 0.3, 0.0]) * uniform
        )
        y, x = grid - 15.5
        expected = blobs(
            (1 + scale - squeeze) * y + down + 15.5,
            (1 + scale + squeeze) * x + shear * y + right + 15.5,
        )
        np.testing.assert_allclose(
            data.distort(key, image, strength=0.7)[..., 0], expected, atol=0.02
        )


@pytest.mark.commands
def test_strength_zero_changes_nothing():
    image = jnp.asarray(np.random.default_rng(0).uniform(size=(32, 32, 1)), jnp.float32)
    np.testing.assert_allclose(
        data.distort(jax.random.key(0), image, strength=0.0, elastic=True), image, atol=1e-5
    )


def splits_of(dataset="mnist10k", **settings):
    return data.load_splits(Config(dataset=dataset, **settings))


def test_validation_is_the_end_of_the_training_split():
    train, validation, test = splits_of(validation_size=500)
    whole, none, _ = splits_of(validation_size=0, track="test")
    assert (len(train), len(validation), len(test), len(none)) == (7500, 500, 2000, 0)
    np.testing.assert_array_equal(whole.images[7500:], validation.images)
    few, same, _ = splits_of(train_size=100, validation_size=500)
    np.testing.assert_array_equal(few.images, whole.images[:100])
    np.testing.assert_array_equal(same.images, validation.images)


def test_what_does_not_fit_is_refused(tmp_path, write_set):
    with pytest.raises(UserError, match="--validation_size=8000"):
        splits_of(validation_size=8000)
    with pytest.raises(UserError, match="--train_size=7600"):
        splits_of(train_size=7600, validation_size=500)
    write_set(tmp_path, "wide", np.zeros((4, 28, 30, 1), np.uint8))
    with pytest.raises(
        DataError, match=r"wide have 28x30 pixels.*--size=28 of scripts\.prepare_data"
    ):
        splits_of(dataset="wide", data_dir=str(tmp_path), validation_size=1)
