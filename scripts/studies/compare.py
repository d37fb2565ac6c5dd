"""Two arms of a study compared, paired by seed: the mean difference with its 95% interval, a
sign-flip test, Holm's correction for several comparisons, and one sentence with the verdict.

The same seed gives both arms the same order and, where shapes agree, the same initial weights. With
n pairs, no two-sided sign-flip p is below 2 / 2^n, so a verdict needs six pairs or more. Below 20
pairs the interval is Student's t, since BCa's bootstrap is too narrow there.

All results are plain JSON values: null where a number cannot be computed, never NaN.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

SIGNIFICANCE = 0.05
POWER = 0.8
MANY_PAIRS = 20  # from here on the bootstrap's interval, and random sign flips
NUM_FLIPS = 100_000
MOST_PAIRS = 1000  # that a sentence names
ROUNDING = 1e-9  # differences that agree to this share of their size are equal

BOUNDS = {  # of arm - base and arm / base, by which arm has runs that did not get there
    (False, False): None,
    (True, False): "at least",
    (False, True): "at most",
    (True, True): "mixed",
}


class Measured(NamedTuple):
    """One run: an error in percent, or the epochs until an error was reached. Censored: it did not
    get there, and `value` is the limit, which is the same in both arms.
    """

    value: float
    censored: bool = False


def pairs_for(num_comparisons: int) -> int:
    """The fewest pairs whose smallest sign-flip p survives Holm's correction."""
    if num_comparisons < 1:
        raise ValueError(f"num_comparisons={num_comparisons}: at least 1")
    return next(n for n in itertools.count(1) if num_comparisons * 2 / 2**n < SIGNIFICANCE)


# One arm


def summarize(values: Sequence[Measured], *, ratio: bool = False) -> dict:
    """The runs of one arm, a censored one as its limit; `ratio` adds their geometric mean."""
    numbers = _finite([run.value for run in values], positive=ratio)
    summary = {
        "n": len(values),
        "mean": _mean(numbers),
        "deviation": _deviation(numbers),
        "least": float(numbers.min()) if values else None,
        "most": float(numbers.max()) if values else None,
        "censored": sum(run.censored for run in values),
    }
    if ratio:
        summary["geometric_mean"] = math.exp(_mean(np.log(numbers))) if values else None
    return summary


def _finite(values: Sequence[float], *, positive: bool) -> np.ndarray:
    numbers = np.array(values, np.float64)
    if not np.isfinite(numbers).all() or (positive and (numbers <= 0).any()):
        raise ValueError(f"not finite{' and positive' if positive else ''}: {numbers.tolist()}")
    return numbers


def _mean(numbers: np.ndarray) -> float | None:
    return float(numbers.mean()) if len(numbers) else None


def _deviation(numbers: np.ndarray) -> float | None:
    return float(numbers.std(ddof=1)) if len(numbers) > 1 else None


# Two arms


def compare(base: dict[int, Measured], arm: dict[int, Measured], *, ratio: bool) -> dict:
    """arm - base, or arm / base for `ratio`, over the seeds that both have.

    Pairs where neither run got there are counted in `pairs` and `both_censored` and used nowhere
    else. A pair where one got there makes `bound` say on which side of the mean the true one lies:
    arm censored: "at least"; base censored: "at most"; pairs of both kinds: "mixed".
    """
    seeds = sorted(base.keys() & arm.keys())
    pairs = [(base[seed], arm[seed]) for seed in seeds]
    used = [(b, a) for b, a in pairs if not (b.censored and a.censored)]
    bases, arms = (_finite([pair[i].value for pair in used], positive=ratio) for i in (0, 1))
    differences = np.log(arms) - np.log(bases) if ratio else arms - bases
    back = math.exp if ratio else float  # from the scale of the differences to the metric's

    mean, (interval, method) = _mean(differences), _interval(differences)
    base_censored = sum(b.censored for b, _ in used)
    arm_censored = sum(a.censored for _, a in used)
    # Runs compare as tuples: at the same number of epochs, the censored one is the worse.
    better = [1.0 if a < b else 0.5 if a == b else 0.0 for b, a in used]
    return {
        "ratio": ratio,
        "pairs": len(pairs),
        "seeds": seeds,
        "both_censored": len(pairs) - len(used),
        "base_censored": base_censored,
        "arm_censored": arm_censored,
        "mean": None if mean is None else back(mean),
        "interval": None if interval is None else [back(end) for end in interval],
        "method": method,
        "deviation": _deviation(differences),
        "p": _sign_flip_p(differences),
        "probability_better": sum(better) / len(better) if better else None,
        "bound": BOUNDS[arm_censored > 0, base_censored > 0],
    }


def _interval(differences: np.ndarray) -> tuple[list[float] | None, str | None]:
    """The 95% interval of the mean, and the method that gave it."""
    n = len(differences)
    if n < 2:
        return None, None
    mean = float(differences.mean())
    if np.ptp(differences) <= ROUNDING * np.abs(differences).max():
        return [mean, mean], "equal"  # where BCa gives NaN
    if n < MANY_PAIRS:
        return t_interval(differences), "t"
    found = stats.bootstrap(
        (differences,), np.mean, confidence_level=1 - SIGNIFICANCE, method="BCa", rng=0
    ).confidence_interval
    return [float(found.low), float(found.high)], "bca"


def t_interval(values: Sequence[float]) -> list[float]:
    """The 95% interval of the mean (Student's t) of two values or more."""
    mean, error = np.mean(values), np.std(values, ddof=1) / math.sqrt(len(values))
    half = stats.t.ppf(1 - SIGNIFICANCE / 2, len(values) - 1) * error
    return [float(mean - half), float(mean + half)]


def _sign_flip_p(differences: np.ndarray) -> float | None:
    """Two-sided: the share of all ways to flip the signs whose mean is as far from 0."""
    size = np.abs(differences).sum()
    if len(differences) < 2:
        return None
    if size == 0:
        return 1.0
    shares = differences / size
    if len(shares) < MANY_PAIRS:
        sums = np.zeros(1)
        for share in shares:
            sums = np.concatenate([sums + share, sums - share])
        return float(np.mean(np.abs(sums) >= abs(shares.sum()) - ROUNDING))
    found = stats.permutation_test(
        (shares,),
        lambda flipped, axis: np.round(flipped.sum(axis), 9),  # ties stay ties
        permutation_type="samples",
        n_resamples=NUM_FLIPS,
        batch=NUM_FLIPS // 10,  # less memory
        rng=0,
    )
    return float(found.pvalue)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values (1979), in the order given; a None is no comparison."""
    order = sorted((i for i, p in enumerate(ps) if p is not None), key=lambda i: ps[i])
    adjusted, highest = [None] * len(ps), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * ps[i]))
        adjusted[i] = highest
    return adjusted


# The verdict


def judge(
    comparison: dict,
    *,
    names: tuple[str, str],
    unit: str,
    margin: float,
    exploratory: bool,
    metric: str = "error",
    num_comparisons: int = 1,
) -> dict:
    """The comparison with its "verdict" on the arm, whether it lies "within_margin", and a
    "sentence" that says both.

    Lower or higher: `p_adjusted`, which the caller has set, is at most 0.05, the interval excludes
    0 (a ratio's 1), and the pairs with one censored run point the same way. No difference: no such
    pair, and the whole interval lies within 0 +- margin (1 +- margin). Otherwise, and with fewer
    pairs than `num_comparisons` asks for, undecided.

    Args:
        names: of the base and of the arm, in `compare`'s order.
        unit: of a difference, such as points; of a ratio, what is needed, such as epochs.
        metric: what a difference is of.
    """
    used = comparison["pairs"] - comparison["both_censored"]
    decides = used >= pairs_for(num_comparisons)
    verdict = _verdict(comparison, margin) if decides else "undecided"
    sentence = _where(comparison, names, unit, metric)
    percent = 100 if comparison["ratio"] else 1
    unit = f"% of the {unit}" if comparison["ratio"] else f" {unit}"
    small = f"{percent * margin:g}{unit}"
    within_margin = verdict != "undecided" and _is_small(comparison, margin)
    if verdict == "undecided":
        advice = _advice(comparison, small, margin, used, num_comparisons)
        sentence = f"undecided ({sentence}): {advice}"
    elif verdict == "no difference":
        beyond = f"{_range([percent * _farthest(comparison)])}{unit}"
        sentence = f"no difference beyond {beyond} between {names[1]} and {names[0]}"
    elif within_margin:
        sentence += f", within the margin of {small}"
    sentence += _not_there(comparison, names)
    if exploratory:
        sentence += "; exploratory: the study changed after it started"
    return comparison | {"verdict": verdict, "within_margin": within_margin, "sentence": sentence}


def _farthest(comparison: dict) -> float:
    """The distance of the interval's farther end from no difference."""
    return max(abs(end - comparison["ratio"]) for end in comparison["interval"])


def _is_small(comparison: dict, margin: float) -> bool:
    """Whether all of the interval matters little; behind a bound the true mean may lie outside."""
    return comparison["bound"] is None and _farthest(comparison) <= margin


def _verdict(comparison: dict, margin: float) -> str:
    (low, high), equal = comparison["interval"], int(comparison["ratio"])
    bound, p = comparison["bound"], comparison["p_adjusted"]
    significant = p is not None and p <= SIGNIFICANCE
    if significant and high < equal and bound in (None, "at most"):
        return "lower"
    if significant and low > equal and bound in (None, "at least"):
        return "higher"
    return "no difference" if _is_small(comparison, margin) else "undecided"


def _advice(comparison: dict, small: str, margin: float, used: int, comparisons: int) -> str:
    """How an undecided comparison of `used` pairs, one of `comparisons`, could be decided."""
    if used < (needed := pairs_for(comparisons)):
        return f"a verdict needs {needed} pairs, not {used}"
    if comparison["bound"]:
        return "a higher limit or more pairs would tell"
    pairs = _pairs_to_tell(comparison, margin, needed, comparisons)
    if pairs is None:
        return f">{MOST_PAIRS:,} pairs would tell {small}"
    return f"about {pairs} pairs would tell {small}" if pairs > used else "more pairs would tell"


def _pairs_to_tell(comparison: dict, margin: float, least: int, comparisons: int) -> int | None:
    """The fewest pairs with which a t-test finds a true difference of `margin` in 80% of studies,
    if it is the first of Holm's `comparisons`; None beyond MOST_PAIRS.
    """
    distance = math.log1p(margin) if comparison["ratio"] else margin
    n = np.arange(least, MOST_PAIRS + 1)
    shift = distance / max(comparison["deviation"], 1e-12) * np.sqrt(n)
    power = stats.nct.sf(  # its power is 1 long before 30, where it loses its digits
        stats.t.isf(SIGNIFICANCE / comparisons / 2, n - 1), n - 1, np.minimum(shift, 30)
    )
    return int(n[np.argmax(power >= POWER)]) if power[-1] >= POWER else None


# Words


def _where(comparison: dict, names: tuple[str, str], unit: str, metric: str) -> str:
    """Where the interval lies: relu's error is 0.05 to 0.12 points lower than tanh's."""
    (base, arm), ends = names, comparison["interval"]
    if ends is None:
        return f"{arm} against {base}"
    bound = {"at least": "at least ", "at most": "at most "}.get(comparison["bound"], "")
    if comparison["ratio"]:
        times = "of" if ends[1] < 1 else "times"
        return f"{arm} needs {bound}{_range(ends, 1)} {times} {base}'s {unit}"
    if ends[0] <= 0 <= ends[1]:
        return f"{arm}'s {metric} minus {base}'s is {bound}{_range(ends)} {unit}"
    side = "higher"
    if ends[1] < 0:  # a difference of at most -0.1 is lower by at least 0.1
        side, ends = "lower", [-ends[1], -ends[0]]
        bound = {"at least ": "at most ", "at most ": "at least "}.get(bound, "")
    return f"{arm}'s {metric} is {bound}{_range(ends)} {unit} {side} than {base}'s"


def _range(ends: Sequence[float], equal: float = 0) -> str:
    """With two decimals, or as many as tell each end from 0 and from `equal`."""
    distances = [abs(end - zero) for end in ends for zero in (0, equal)]
    visible = [distance for distance in distances if distance > 1e-6]
    decimals = next(n for n in itertools.count(2) if all(round(x, n) for x in visible))
    return " to ".join(dict.fromkeys(f"{end:z.{decimals}f}" for end in ends))  # once if they agree


def _not_there(comparison: dict, names: tuple[str, str]) -> str:
    """The censored pairs: (in 2 of 6 pairs neither got there)."""
    base, arm = (f"{name} did not get there" for name in names)
    who = {"both_censored": "neither got there", "arm_censored": arm, "base_censored": base}
    pairs = comparison["pairs"]
    told = [f"in {comparison[key]} of {pairs} pairs {who[key]}" for key in who if comparison[key]]
    return f" ({', '.join(told)})" if told else ""
