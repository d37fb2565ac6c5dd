"""A digit on a picture becomes one as MNIST has them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from scipy import ndimage

from common import examples
from lenet import data, load
from lenet.normalize import normalize_digit, normalize_string

ROOT = Path(__file__).parents[1]


def digits(split: str):
    return examples.load("mnist10k", split, [data.DIGITS])


def disturbed(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """A digit (28, 28) uint8 on a picture: padded by up to 20 pixels, shifted by up to 3, scaled by
    1 to 8, perhaps inverted, in light that falls off by up to 40% of the range in one direction,
    with noise of up to 5% of the range.
    """
    margins = draw.integers(4, 20, (2, 2))
    shift = draw.integers(-3, 4, (2, 1)) * [1, -1]
    image = np.pad(image, margins + shift)
    size = np.round(np.array(image.shape[::-1]) * draw.uniform(1, 8)).astype(int)
    large = Image.fromarray(image).resize(tuple(size.tolist()), Image.Resampling.BICUBIC)
    values = np.asarray(large) / 255
    if draw.random() < 0.5:
        values = 1 - values
    angle, strength = draw.uniform(0, 2 * np.pi), draw.uniform(0, 0.4)
    height, width = values.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    light = np.cos(angle) * x + np.sin(angle) * y
    light = (light - light.min()) / np.ptp(light)
    values = (1 - strength) * values + strength * light
    values += draw.normal(0, draw.uniform(0, 0.05), values.shape)
    return np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)


def test_digits_of_mnist_stay_as_they_are():
    """But for a speck beside one, and a pixel where the center of mass lies between two."""
    images = digits("train").images[:200, ..., 0]
    differences = [np.abs(normalize_digit(image).astype(int) - image).mean() for image in images]
    assert np.median(differences) < 1 and np.mean(differences) < 2


@pytest.mark.parametrize("width", [2, 5, 12, 30])
def test_a_digit_of_a_pen_has_20_pixels_too(width):
    """Its strokes are thickened, within the box."""
    y, x = np.mgrid[:300, :400]
    distance = np.hypot(y - 150, x - 200)
    ring = np.where(abs(distance - 100) < width / 2, 0, 255).astype(np.uint8)
    found = normalize_digit(ring)
    rows, columns = (np.flatnonzero(found.any(axis)) for axis in (1, 0))
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (20, 20)
    string = normalize_string(np.concatenate([ring, ring], axis=1)).image
    assert np.ptp(np.flatnonzero(string.any(axis=1))) + 1 == 20


def test_the_digit_has_20_pixels_and_its_mass_in_the_center():
    draw = np.random.default_rng(0)
    for image in digits("train").images[:40, ..., 0]:
        found = normalize_digit(disturbed(image, draw))
        rows, columns = (np.flatnonzero(found.any(axis)) for axis in (1, 0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == pytest.approx(20, abs=1)
        np.testing.assert_allclose(ndimage.center_of_mass(found), 14, atol=0.51)
        assert found.max() == 255


def test_dark_on_light_is_light_on_dark():
    image = digits("train").images[0, ..., 0]
    large = np.kron(np.pad(image, 30), np.ones((3, 3), np.uint8))
    np.testing.assert_allclose(normalize_digit(255 - large), normalize_digit(large), atol=2)


def test_uneven_light_that_is_no_gradient():
    """A lamp over the middle of the page."""
    image = np.kron(np.pad(digits("train").images[0, ..., 0], 20), np.ones((4, 4)))
    y, x = np.mgrid[-1 : 1 : len(image) * 1j, -1 : 1 : len(image) * 1j]
    page = 200 - 90 * (x**2 + y**2) / 2
    found = normalize_digit(np.round(page * (1 - 0.6 * image / 255)).astype(np.uint8))
    expected = normalize_digit(image.astype(np.uint8))
    assert np.abs(found.astype(int) - expected).mean() < 6


def test_a_fine_pen_is_thickened():
    """A 7 of strokes that would be a quarter of a pixel wide."""
    page = np.full((900, 700), 230, np.uint8)
    page[200:206, 200:500] = page[200:700, 494:500] = 40
    found = normalize_digit(page)
    widths = (found[12:22] > 127).sum(axis=1)  # of the upright stroke
    assert set(widths.tolist()) <= {1, 2}


def test_a_line_is_found_and_scaled():
    """Dark on light in uneven light, three times as large: the same line, and where it stands."""
    images = digits("train").images[[0, 900, 3000, 7000], ..., 0]
    line = np.concatenate([image[:, 2:26] for image in images], axis=1)  # (28, 96)
    columns = np.flatnonzero((line > 64).any(axis=0))
    first, end = columns[0], columns[-1] + 1
    large = Image.fromarray(np.pad(line, 15)).resize((3 * 126, 3 * 58), Image.Resampling.BICUBIC)
    light = np.linspace(230, 160, large.width)
    found = normalize_string(np.round(light * (1 - 0.7 * np.asarray(large) / 255)).astype(np.uint8))
    assert found.image.shape[0] == 28 and abs(found.image.shape[1] - (end - first)) <= 4
    assert abs(found.scale - 3) < 0.2 and abs(found.left - 3 * (15 + first)) < 6
    (rows,) = np.nonzero(found.image.max(axis=1) > 127)
    assert 18 <= rows[-1] - rows[0] <= 25
    assert abs(ndimage.center_of_mass(found.image)[0] - 14) <= 1


def test_a_line_without_ink_or_too_long():
    assert normalize_string(np.full((50, 200), 128, np.uint8)) is None
    stroke = np.zeros((60, 3000), np.uint8)
    stroke[28:32, 10:-10] = 255
    with pytest.raises(ValueError, match="long"):
        normalize_string(stroke)


@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("shape", [(1, 1), (2, 300), (28, 28), (400, 300)])
def test_paper_alone_has_no_ink(level, shape):
    assert normalize_digit(np.full(shape, level, np.uint8)) is None


def test_noise_and_a_gradient_are_no_ink():
    draw = np.random.default_rng(0)
    for _ in range(40):
        height, width = draw.integers(20, 400, 2)
        y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
        values = 0.35 + 0.3 * x * draw.uniform() + 0.1 * y
        values += draw.normal(0, draw.uniform(0, 0.05), values.shape)
        assert normalize_digit(np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)) is None


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_any_picture_is_taken(picture):
    found = normalize_digit(picture)
    assert found is None or (found.shape == (28, 28) and found.max() == 255)


@pytest.mark.nightly
def test_disturbed_digits_are_read_as_well(tmp_path):
    """Within 0.5 points, on all 2,000 test digits; merely resized, four in five are misread."""
    test = digits("test")
    flags = ["--dataset=mnist10k", "--validation_size=500", "--num_epochs=10"]
    command = [sys.executable, "-m", "lenet.train", f"--workdir={tmp_path}", *flags]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    net = load(tmp_path)

    def error_pct(images) -> float:
        return 100 * np.mean(net.predict(np.stack(images)).argmax(axis=1) != test.labels)

    draw = np.random.default_rng(0)
    pictures = [disturbed(image, draw) for image in test.images[..., 0]]
    clean = error_pct(test.images)
    assert clean < 4
    resized = [Image.fromarray(picture).resize((28, 28)) for picture in pictures]
    assert error_pct([np.asarray(image) for image in resized]) > 50
    assert error_pct([normalize_digit(picture) for picture in pictures]) <= clean + 0.5
