"""LeNet-5 over a string of digits: the map of its outputs, and the rule that reads them."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import flags
from common.network import Trained
from lenet import space_displacement
from lenet.config import Config
from lenet.network import assemble

pytestmark = pytest.mark.usefixtures("compiled_quickly")

CONFIGS = {
    "deck": [],
    "lush": [],
    "modern": [],
    "paper": [],
    "deck, relu and maximum": ["--activation=relu", "--pooling=max"],
    "deck, sigmoid and dense": ["--activation=sigmoid", "--c3=dense"],
    "paper, sums": ["--subsampling=sum", "--codes=distance25"],
    "deck, RBF": ["--output=rbf", "--c3=random", "--pooling=trainable"],
    "deck, 32x32": ["--scaling=hundredths"],
}


def untrained(name: str) -> Trained:
    preset, *_ = name.split(",")
    network = assemble(flags.from_preset(Config, preset, *CONFIGS[name]))
    params = network.init()
    keys = iter(jax.random.split(jax.random.key(0), 99))
    # Biases too: they start at zero, where a bias that is added twice would not be seen.
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params)
    return Trained(network, params, 0, None)


OFTEN = {"paper", "lush", "deck, relu and maximum"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.commands if name in OFTEN else pytest.mark.slow)
        for name in CONFIGS
    ],
)
def test_the_map_is_the_network_on_sliding_windows(name):
    trained = untrained(name)
    rows = 32 if "32x32" in name else 28
    columns = 32 + 4 * 7 - (32 - rows)
    images = np.random.default_rng(0).integers(0, 256, (3, rows, columns, 1), np.uint8)
    found = space_displacement.output_map(trained.network, trained.params, images)
    prepared = trained.network.prepare(images)
    assert found.shape == (3, 8, 10) and prepared.shape == (3, 32, 60, 1)
    for window in range(8):
        part = prepared[:, :, 4 * window : 4 * window + 32]
        expected = trained.network.logits(trained.params, part)
        tolerance = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(found[:, window], expected, rtol=0, atol=tolerance)


@pytest.mark.commands
def test_an_image_of_one_digit_is_one_window():
    trained = untrained("paper")
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), np.uint8)
    (windows,) = space_displacement.output_map(trained.network, trained.params, images).swapaxes(
        0, 1
    )
    expected = trained.network.logits(trained.params, trained.network.prepare(images))
    np.testing.assert_allclose(windows, expected, rtol=1e-5)


# ---- the rule


def cost_of(windows, log_p, ink, digit_cost, ink_cost) -> float:
    """As lenet/space_displacement.py states it, pixel by pixel."""
    centers = [16 + 4 * window for window in windows]
    nearest = [min(abs(column - center) for center in centers) for column in range(len(ink))]
    spread = sum(amount * (d / 10) ** 2 for amount, d in zip(ink, nearest, strict=True))
    return sum(digit_cost - log_p[window] for window in windows) + ink_cost * spread


@given(st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_the_cheapest_reading_is_found(count, seed):
    """Against all readings."""
    random = np.random.default_rng(seed)
    log_p, ink = np.log(random.uniform(0.01, 1, count)), random.uniform(0, 9, 28 + 4 * count)
    costs = random.uniform(0.1, 3), random.uniform(0.005, 0.2)
    numbers = range(1, count + 1)
    readings = [c for n in numbers for c in itertools.combinations(range(count), n)]
    best = min(readings, key=lambda reading: cost_of(reading, log_p, ink, *costs))
    assert space_displacement.decode(log_p, ink, *costs) == list(best)


def test_each_piece_of_ink_is_read_once():
    ink = np.zeros(32 + 4 * 20)
    for center in (20, 44, 72):
        ink[center - 5 : center + 6] = 9
    found = space_displacement.decode(np.full(21, -0.1), ink)
    assert [16 + 4 * window for window in found] == [20, 44, 72]


def test_blank_paper_has_no_digits():
    assert space_displacement.decode(np.zeros(5), np.zeros(48)) == []


@pytest.mark.commands
def test_blank_images_have_no_digits():
    assert space_displacement.read(untrained("deck"), np.zeros((2, 28, 90, 1), np.uint8)) == [
        [],
        [],
    ]


@pytest.mark.parametrize("rows", [28, 32])
@pytest.mark.parametrize("columns", [1, 28, 36, 50, 51, 140])
def test_margins_let_a_window_be_centered_on_any_ink(rows, columns):
    images = np.full((1, rows, columns, 1), 255, np.uint8)
    wide = space_displacement.with_margins(images)
    assert wide.shape[1] == 32 and wide.shape[2] % 64 == 0
    (inked,) = np.nonzero(wide[0, 16, :, 0])
    assert len(inked) == columns and inked[0] <= 16 and inked[-1] <= wide.shape[2] - 15
