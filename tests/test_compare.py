"""The statistics of a study against scipy, hand-worked values and a simulation; its verdicts."""

import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from scripts.studies.compare import Measured, compare, holm, judge, pairs_for, summarize

LIMIT = 120  # epochs


def runs(values, first_seed=10) -> dict[int, Measured]:
    """By seed; a value beyond the limit is a run that did not get there."""
    return {
        seed: Measured(LIMIT, True) if value > LIMIT else Measured(float(value))
        for seed, value in enumerate(values, first_seed)
    }


def of_differences(differences, around=50.0) -> dict:
    differences = np.asarray(differences, float)
    return compare(runs([around] * len(differences)), runs(around + differences), ratio=False)


def errors(seed: int, num_pairs: int) -> np.ndarray:
    """Of a base and an arm."""
    return np.random.default_rng(seed).gamma(20, 0.05, (2, num_pairs))


# The sign-flip p


def test_p_of_three_pairs_by_hand():
    # Sums of +-3 +-2 +-1: +-6, +-4, +-2 and twice 0. Four of eight are as far from 0 as 3 + 2 - 1.
    assert of_differences([3, 2, -1])["p"] == 0.5
    assert of_differences([0.3, 0.2, -0.1], around=0.7)["p"] == 0.5  # whatever floats make of it


@pytest.mark.parametrize("num_pairs", [2, 5, 9, 12])
def test_p_is_that_of_scipys_exact_permutation_test(num_pairs):
    base, arm = errors(num_pairs, num_pairs)
    expected = stats.permutation_test(
        (arm, base),
        lambda a, b, axis: np.mean(a - b, axis),
        permutation_type="samples",
        n_resamples=np.inf,
    )
    assert compare(runs(base), runs(arm), ratio=False)["p"] == pytest.approx(expected.pvalue)


@pytest.mark.parametrize("num_pairs", [19, 20, 40])
def test_p_of_many_pairs_is_that_of_counting_all_flips(num_pairs):
    differences = np.random.default_rng(num_pairs).integers(-6, 9, num_pairs)
    ways = np.ones(1)  # to reach each sum of flipped integers, by multiplying polynomials
    for size in np.abs(differences):
        ways = np.convolve(ways, np.bincount([0, 2 * size], minlength=2 * size + 1))
    total = np.abs(differences).sum()
    far = np.abs(np.arange(-total, total + 1)) >= abs(differences.sum())
    exact = ways[far].sum() / 2.0**num_pairs
    # Below 20 pairs exact; from there 100,000 random flips, four standard errors.
    error = 1e-9 if num_pairs < 20 else 4 * np.sqrt(2 * exact / 100_000)
    assert of_differences(differences / 100)["p"] == pytest.approx(exact, abs=error)


@pytest.mark.parametrize("num_pairs", range(2, 13))
def test_the_smallest_p_is_two_in_all_flips(num_pairs):
    assert of_differences(np.arange(1, num_pairs + 1))["p"] == 2 / 2**num_pairs


def test_the_pairs_that_a_verdict_needs():
    assert [pairs_for(n) for n in range(1, 7)] == [6, 7, 7, 8, 8, 8]
    with pytest.raises(ValueError):
        pairs_for(0)


# The interval


def test_below_20_pairs_the_interval_is_students():
    base, arm = errors(1, 7)
    difference = compare(runs(base), runs(arm), ratio=False)
    expected = stats.ttest_rel(arm, base).confidence_interval(0.95)
    assert difference["method"] == "t"
    assert difference["interval"] == pytest.approx([expected.low, expected.high])
    assert difference["deviation"] == pytest.approx(np.std(arm - base, ddof=1))

    ratio = compare(runs(base), runs(arm), ratio=True)
    expected = stats.ttest_rel(np.log(arm), np.log(base)).confidence_interval(0.95)
    assert ratio["interval"] == pytest.approx(np.exp([expected.low, expected.high]))
    assert ratio["mean"] == pytest.approx(stats.gmean(arm) / stats.gmean(base))


def test_the_interval_of_six_pairs_covers_95_percent_and_p_finds_5_at_most():
    drawn = np.random.default_rng(0).normal(0, 1, (600, 6))
    found = [of_differences(differences) for differences in drawn]
    covered = sum(low <= 0 <= high for low, high in (one["interval"] for one in found))
    assert stats.binomtest(covered, 600, 0.95).pvalue > 0.05
    significant = sum(one["p"] <= 0.05 for one in found)
    assert stats.binomtest(significant, 600, 0.05, alternative="greater").pvalue > 0.05


@pytest.mark.parametrize("num_pairs", [20, 33])
def test_from_20_pairs_the_interval_is_scipys_bootstrap_of_pairs(num_pairs):
    base, arm = errors(2, num_pairs)
    expected = stats.bootstrap(
        (arm, base),
        lambda a, b, axis: np.mean(a, axis) - np.mean(b, axis),
        paired=True,
        method="BCa",
        n_resamples=20_000,
        rng=7,
    ).confidence_interval
    found = compare(runs(base), runs(arm), ratio=False)
    width = expected.high - expected.low
    assert found["method"] == "bca"
    assert found["interval"] == pytest.approx([expected.low, expected.high], abs=0.03 * width)


@pytest.mark.parametrize("num_pairs", [2, 6, 20, 30])
@pytest.mark.parametrize("difference", [0, 0.1, -0.3])
def test_equal_differences_are_their_own_interval(num_pairs, difference):
    base = np.linspace(0.7, 1.3, num_pairs)  # in floats, the differences are not quite equal
    found = compare(runs(base), runs(base + difference), ratio=False)
    assert found["method"] == "equal"
    assert found["interval"] == pytest.approx([difference] * 2)
    assert (found["p"] == 1) if difference == 0 else (found["p"] <= 0.5)


def test_a_single_different_pair_has_an_interval():
    low, high = of_differences([0.1] * 29 + [0.4])["interval"]
    assert 0.1 <= low <= 0.11 < high < 0.4


# Several comparisons


@pytest.mark.parametrize(
    ("ps", "adjusted"),
    [
        # 0.005 * 4, 0.01 * 3, 0.03 * 2; 0.04 * 1 is no less than the one before
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.01, None, 0.04], [0.02, None, 0.04]),
        ([0.5, 0.6, 0.4], [1, 1, 1]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.03], [0.03]),
        ([None], [None]),
        ([], []),
    ],
)
def test_holm(ps, adjusted):
    assert holm(ps) == pytest.approx(adjusted)


# Runs that did not get there


@pytest.mark.parametrize(
    ("base", "arm", "bound", "both"),
    [
        ([70, 80, 90], [10, 20, 30], None, 0),
        ([70, 80, 90], [10, 200, 30], "at least", 0),
        ([70, 200, 90], [10, 20, 30], "at most", 0),
        ([200, 80, 90], [10, 200, 30], "mixed", 0),
        ([70, 200, 90], [10, 200, 30], None, 1),
        ([200, 200, 90], [200, 20, 30], "at most", 1),
    ],
)
def test_bounds(base, arm, bound, both):
    for ratio in (False, True):
        found = compare(runs(base), runs(arm), ratio=ratio)
        assert (found["pairs"], found["both_censored"], found["bound"]) == (3, both, bound)


epochs = st.integers(1, 2 * LIMIT)


@given(st.lists(st.tuples(epochs, epochs), min_size=2, max_size=8))
def test_without_a_limit_the_mean_lies_where_the_bound_says(truth):
    limited = compare(runs(b for b, _ in truth), runs(a for _, a in truth), ratio=True)
    logs = [np.log(a / b) for b, a in truth if min(a, b) <= LIMIT]  # one of them got there
    if not logs:
        assert limited["mean"] is None
        return
    there, measured = np.mean(logs), np.log(limited["mean"])
    match limited["bound"]:
        case None:
            assert there == pytest.approx(measured)
        case "at least":
            assert there > measured
        case "at most":
            assert there < measured


def test_one_that_got_there_at_the_limit_is_better_than_one_that_did_not():
    there, not_there = {1: Measured(LIMIT)}, {1: Measured(LIMIT, True)}
    assert compare(there, not_there, ratio=True)["probability_better"] == 0
    assert compare(not_there, there, ratio=True)["probability_better"] == 1
    assert compare(there, there, ratio=True)["probability_better"] == 0.5


def test_pairs_where_both_failed_are_used_nowhere_else():
    base, arm = [70, 80, 90, 60], [10, 30, 20, 25]
    without = compare(runs(base), runs(arm), ratio=True)
    with_them = compare(runs([*base, 200, 200]), runs([*arm, 200, 200]), ratio=True)
    counts = {"pairs": 6, "seeds": [10, 11, 12, 13, 14, 15], "both_censored": 2}
    assert with_them == without | counts


# What must hold for all values

percents = st.integers(1, 10_000).map(lambda errors: errors / 100)  # of 10,000 images
pairs = st.lists(st.tuples(percents, percents), min_size=2, max_size=10)
CHANGING = ("mean", "interval", "probability_better", "bound", "base_censored", "arm_censored")


def close(found: dict, expected: dict, *without: str) -> bool:
    """Also where one set of differences is equal by a rounding error and the other is not."""
    kept = found.keys() - {*without, "method"}
    return all(
        found[key] == pytest.approx(expected[key], rel=1e-6, abs=1e-6)
        if isinstance(expected[key], float | list)
        else found[key] == expected[key]
        for key in kept
    )


@given(pairs, st.booleans())
def test_swapped_arms(values, ratio):
    base, arm = (runs(column) for column in zip(*values, strict=True))
    forth, back = compare(base, arm, ratio=ratio), compare(arm, base, ratio=ratio)
    assert close(forth, back, *CHANGING)
    assert forth["probability_better"] == pytest.approx(1 - back["probability_better"])
    low, high = back["interval"]
    turned = [1 / high, 1 / low, 1 / back["mean"]] if ratio else [-high, -low, -back["mean"]]
    assert [*forth["interval"], forth["mean"]] == pytest.approx(turned, rel=1e-6, abs=1e-6)


@given(pairs, percents)
def test_a_constant_added_to_both_arms_changes_no_difference(values, constant):
    base, arm = (np.array(column) for column in zip(*values, strict=True))
    assume(max(values)[0] + constant <= LIMIT and arm.max() + constant <= LIMIT)
    moved = compare(runs(base + constant), runs(arm + constant), ratio=False)
    assert close(moved, compare(runs(base), runs(arm), ratio=False), "probability_better")


@given(pairs, st.floats(0.01, 1))
def test_a_factor_on_both_arms_changes_no_ratio(values, factor):
    base, arm = (np.array(column) for column in zip(*values, strict=True))
    scaled = compare(runs(base * factor), runs(arm * factor), ratio=True)
    assert close(scaled, compare(runs(base), runs(arm), ratio=True))


@given(pairs, st.randoms())
def test_the_order_of_the_seeds_does_not_matter(values, random):
    shuffled = random.sample(values, len(values))
    found = [
        compare(*(runs(column) for column in zip(*order, strict=True)), ratio=False)
        for order in (values, shuffled)
    ]
    assert close(*found)


def test_runs_are_paired_by_seed():
    base, arm = runs([5, 6, 7, 8]), runs([1, 2, 3, 4], first_seed=12)
    found = compare(base, dict(reversed(arm.items())), ratio=False)
    assert (found["seeds"], found["mean"], found["pairs"]) == ([12, 13], -6, 2)


@pytest.mark.parametrize("num_pairs", [0, 1, 2, 6, 20])
@pytest.mark.parametrize("ratio", [False, True])
def test_results_are_plain_json(num_pairs, ratio):
    base, arm = (runs(values) for values in errors(3, num_pairs))
    found = compare(base, arm, ratio=ratio)
    found["p_adjusted"] = holm([found["p"]])[0]
    judged = judge(found, names=("a", "b"), unit="points", margin=0.1, exploratory=False)
    for result in (judged, summarize(list(arm.values()), ratio=ratio)):
        assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (found["interval"] is None) == (found["p"] is None) == (num_pairs < 2)


def test_values_that_have_no_mean_are_refused():
    for value, ratio in itertools.product([float("nan"), float("inf"), -1.0, 0.0], [False, True]):
        if ratio or not np.isfinite(value):
            with pytest.raises(ValueError):
                compare({1: Measured(2.0)}, {1: Measured(value)}, ratio=ratio)


def test_summary():
    assert summarize([Measured(2), Measured(4), Measured(6, True)]) == {
        "n": 3,
        "mean": 4,
        "deviation": 2,
        "least": 2,
        "most": 6,
        "censored": 1,
    }
    assert summarize([Measured(2), Measured(8)], ratio=True)["geometric_mean"] == pytest.approx(4)
    one = summarize([Measured(3)])
    assert (one["n"], one["mean"], one["deviation"]) == (1, 3, None)


# The verdict

TANH = [69, 72, 65, 70, 75, 68, 71, 66]  # epochs
RELU = [11, 12, 11, 10, 11, 12, 10, 11]
WAVE = np.array([1, -2, 3, -1, 2, -3, 1, -1]) / 100  # differences around their mean


def judged(base, arm, *, ratio=False, margin=0.05, exploratory=False, changed=(), **more) -> dict:
    found = compare(runs(base), runs(arm), ratio=ratio)
    found |= {"p_adjusted": found["p"], **dict(changed)}
    unit = "epochs" if ratio else "points"
    names = ("tanh", "relu")
    return judge(found, names=names, unit=unit, margin=margin, exploratory=exploratory, **more)


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


def apart(difference: float, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    base = np.full(8, 5.0)
    return base, base + difference + scale * WAVE


@pytest.mark.parametrize(
    ("base", "arm", "ratio", "verdict"),
    [
        (*apart(-0.2), False, "lower"),
        (*apart(0.2), False, "higher"),
        (*apart(0), False, "no difference"),
        (*apart(0, scale=20), False, "undecided"),
        (TANH, RELU, True, "lower"),
        (RELU, TANH, True, "higher"),
        (TANH, [70, 71, 65, 70, 74, 69, 71, 66], True, "no difference"),
        (TANH, [40, 99, 50, 80, 75, 60, 90, 66], True, "undecided"),
    ],
)
def test_the_sentence_of_a_verdict_names_both_arms_and_the_interval(base, arm, ratio, verdict):
    found = judged(base, arm, ratio=ratio)
    sentence, interval = found["sentence"], found["interval"]
    assert found["verdict"] == verdict
    assert "tanh" in sentence and "relu" in sentence
    assert ("epochs" if ratio else "points") in sentence
    if verdict == "no difference":
        scale, equal = (100, 1) if ratio else (1, 0)
        (beyond,) = numbers(sentence)
        farther = scale * max(abs(end - equal) for end in interval)
        assert beyond == pytest.approx(farther, abs=0.005)
    else:
        low, high = sorted(map(abs, interval)) if verdict == "lower" else interval
        assert numbers(sentence)[:2] == pytest.approx([low, high], abs=0.005)
    if not ratio and verdict in ("lower", "higher"):
        assert f"{verdict} than tanh's" in sentence


def test_a_ratio_in_words():
    assert re.fullmatch(
        r"relu needs 0\.\d+ to 0\.\d+ of tanh's epochs", judged(TANH, RELU, ratio=True)["sentence"]
    )
    assert " times tanh's epochs" in judged(RELU, TANH, ratio=True)["sentence"]


def test_a_small_but_certain_difference_is_lower_and_said_to_be_small():
    found = judged(*apart(-0.2, scale=0.1), margin=0.3)
    assert found["verdict"] == "lower"
    assert "0.3 points" in found["sentence"]
    assert "0.3 points" not in judged(*apart(-0.4), margin=0.3)["sentence"]


def test_ends_near_zero_are_not_rounded_to_it():
    low, high = numbers(judged(*apart(-0.002, scale=0.05))["sentence"])[:2]
    assert 0 < low < high < 0.01


@pytest.mark.parametrize("p", [0.0500001, None])
def test_a_verdict_needs_the_adjusted_p(p):
    found = judged(*apart(-0.2), changed={"p_adjusted": p})
    assert found["p"] < 0.05 and found["verdict"] == "undecided"


def test_a_verdict_needs_an_interval_without_zero():
    assert judged(*apart(0, scale=20), changed={"p_adjusted": 0.01})["verdict"] == "undecided"


@pytest.mark.parametrize(
    ("num_pairs", "num_comparisons", "needed"), [(5, 1, 6), (1, 1, 6), (0, 1, 6), (7, 4, 8)]
)
def test_too_few_pairs_are_no_verdict(num_pairs, num_comparisons, needed):
    for difference in (0.0, -0.2):
        base, arm = apart(difference)
        arms = base[:num_pairs], arm[:num_pairs]
        found = judged(*arms, margin=1, num_comparisons=num_comparisons)
        assert found["verdict"] == "undecided"
        assert f"{needed} pairs" in found["sentence"] and "relu" in found["sentence"]


@pytest.mark.parametrize(
    ("margin", "pairs"), [(1, "10"), (0.8, "15"), (0.5, "34"), (0.2, "199"), (0.05, ">1,000")]
)
def test_the_pairs_that_would_tell_are_those_of_power_tables(margin, pairs):
    """Of a paired t-test, two-sided at 5%, 80% power, for effects in standard deviations."""
    base, arm = apart(0, scale=100)
    sentence = judged(base, arm, margin=margin, changed={"deviation": 1.0})["sentence"]
    assert f"{pairs} pairs would tell {margin} points" in sentence


def test_several_comparisons_ask_for_more_pairs():
    """At 5% / 2, two-sided, 80% power: (2.241 + 0.842)^2 / 0.5^2 and the t-test's correction."""
    base, arm = apart(0, scale=100)
    changed = {"deviation": 1.0}
    sentence = judged(base, arm, margin=0.5, changed=changed, num_comparisons=2)["sentence"]
    assert "about 41 pairs would tell" in sentence


def test_a_bound_lies_within_no_margin():
    base, arm = [115] * 6 + [200] * 2, [110] * 8
    found = judged(base, arm, ratio=True, margin=0.5, changed={"p_adjusted": 0.01})
    assert found["verdict"] == "lower" and "at most" in found["sentence"]
    assert not found["within_margin"] and "margin" not in found["sentence"]


def test_the_pairs_that_would_tell_a_factor_are_counted_in_logarithms():
    changed = {"deviation": np.log(2)}  # so that a factor of 2 is one deviation
    sentence = judged([10] * 8, [1, 100] * 4, ratio=True, margin=1, changed=changed)["sentence"]
    assert "about 10 pairs would tell 100% of the epochs" in sentence


def test_no_fewer_pairs_are_asked_for_than_there_are():
    base, arm = apart(0, scale=20)
    sentence = judged(base, arm, margin=0.3, changed={"deviation": 0.1})["sentence"]
    assert "more pairs" in sentence and "about" not in sentence


@pytest.mark.parametrize(
    ("base", "arm", "verdict", "words"),
    [
        ([*TANH[:6], 200, 200], RELU, "lower", ["at most", "in 2 of 8 pairs tanh"]),
        (RELU, [*TANH[:6], 200, 200], "higher", ["at least", "in 2 of 8 pairs relu"]),
        ([*TANH, 200, 200], [*RELU, 200, 200], "lower", ["in 2 of 10 pairs neither"]),
        # Without the limit it might be the other way round.
        (TANH, [*RELU[:7], 200], "undecided", ["at least", "in 1 of 8 pairs relu"]),
        ([*RELU[:7], 200], TANH, "undecided", ["at most", "in 1 of 8 pairs tanh"]),
        ([*TANH[:7], 200], [200, *RELU[1:]], "undecided", ["pairs relu", "pairs tanh"]),
        ([115] * 7 + [200], [115] * 8, "undecided", ["at most"]),
        ([200] * 8, [200] * 8, "undecided", ["6 pairs", "in 8 of 8 pairs neither"]),
    ],
)
def test_runs_that_did_not_get_there_are_named(base, arm, verdict, words):
    # As if the test had found a difference in either case.
    found = judged(base, arm, ratio=True, changed={"p_adjusted": 0.01})
    assert found["verdict"] == verdict
    assert [word for word in words if word not in found["sentence"]] == []


def test_a_difference_of_at_most_a_negative_number_is_lower_by_at_least_that():
    for base, arm, words in [
        ([*TANH[:7], 200], RELU, "at least"),
        (RELU, [*TANH[:7], 200], "at least"),
    ]:
        sentence = judged(base, arm)["sentence"]
        assert words in sentence and "at most" not in sentence


def test_what_was_changed_after_the_start_is_told():
    words = "; exploratory: the study changed after it started"
    for difference in (-0.2, 0, 0.2):
        plain = judged(*apart(difference))
        told = judged(*apart(difference), exploratory=True)
        assert told == plain | {"sentence": plain["sentence"] + words}
