"""Sums that become metrics."""

import numpy as np
import pytest

from common.errors import NonFiniteError
from common.metrics import is_chance, scores_of, summarize


def test_a_loss_that_is_not_finite_gives_no_score():
    sums = {"loss": np.float32(np.nan), "errors": 3, "count": 4}
    with pytest.raises(NonFiniteError, match="validation"):
        scores_of(sums, "validation")
    assert scores_of(sums | {"loss": 2.0}, "test") == {"loss": 0.5, "error_pct": 75.0}


def test_every_example_counts_once():
    sums = {"loss": [3.0, 1.0], "errors": [1, 1], "count": [4, 1], "top5_errors": [0, 1]}
    assert summarize(sums) == {"loss": 0.8, "error_pct": 40.0, "top5_error_pct": 20.0}


@pytest.mark.parametrize(
    ("confusion", "expected"),
    [
        ([[0, 9], [0, 1]], True),  # always the rarer class
        ([[9, 0], [1, 0]], True),  # always the more frequent one
        ([[9, 0], [0, 1]], False),
        ([[8, 1], [0, 1]], True),  # as many errors as that
        ([[4, 0], [0, 0]], False),  # one class, and all of it right
        ([[2, 2], [1, 3]], False),
        ([[2, 2], [2, 2]], True),
    ],
)
def test_a_guess_names_the_most_frequent_class(confusion, expected):
    confusion = np.array(confusion)
    count = confusion.sum()
    sums = {"errors": count - np.trace(confusion), "count": count, "confusion": confusion}
    assert is_chance(sums, 2) is expected


@pytest.mark.parametrize(("errors", "expected"), [(49_949, False), (49_950, True)])
def test_a_guess_among_a_thousand_classes(errors, expected):
    assert is_chance({"errors": errors, "count": 50_000}, 1000) is expected
