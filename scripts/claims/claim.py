"""What a claim is, and the kinds of them, one constructor each."""

import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from scripts.claims.facts import Facts, mean_interval

NOW = "computed now"
REENCODED = "on re-encoded images"  # of CIFAR-10
NONE = "–"  # nothing of ours to show

Check = Callable[[Facts], tuple[str, str]]


class Claim(NamedTuple):
    """One statement.

    Attributes:
      id: stable, in kebab case.
      source: the deck or the paper, with the section.
      claim: what it is about.
      stated: what the source says.
      how: where ours comes from.
      check: the facts -> what we have, and the status: 'exact', 'reproduced', 'differs',
        'undecided at n = N', 'source inconsistent' or 'not run: WHY'.
      structural: it follows from the code alone, so that 'differs' is a bug.
      layer_row: it is a row of a layer table.
    """

    id: str
    source: str
    claim: str
    stated: str
    how: str
    check: Check
    structural: bool = False
    layer_row: bool = False


# ---- computed now


def exact(
    id: str,
    source: str,
    claim: str,
    stated: str,
    compute: Callable[[Facts], str],
    layer_row: bool = False,
    how: str = NOW,
) -> Claim:
    """`compute` writes what we have as the source writes it; `how` says if that is of results/."""

    def check(facts: Facts) -> tuple[str, str]:
        ours = compute(facts)
        return ours, "exact" if ours == stated else "differs"

    return Claim(id, source, claim, stated, how, check, how == NOW, layer_row)


def holds(
    id: str,
    source: str,
    claim: str,
    stated: str,
    compute: Callable[[Facts], tuple[str, bool]],
    status: str = "exact",
) -> Claim:
    """`compute` also says whether what the code has agrees with the source."""

    def check(facts: Facts) -> tuple[str, str]:
        ours, agrees = compute(facts)
        return ours, status if agrees else "differs"

    return Claim(id, source, claim, stated, NOW, check, structural=True)


def inconsistent(
    id: str,
    source: str,
    claim: str,
    stated: str,
    compute: Callable[[Facts], tuple[str, Iterable[bool]]],
) -> Claim:
    """The source contradicts itself. `compute` also gives the steps of the derivation; a step that
    fails makes the claim wrong.
    """

    def check(facts: Facts) -> tuple[str, str]:
        ours, derivation = compute(facts)
        steps = list(derivation)
        return ours, "source inconsistent" if steps and all(steps) else "differs"

    return Claim(id, source, claim, stated, f"{NOW}, derived", check, structural=True)


def departs(
    id: str, source: str, claim: str, stated: str, why: str, compute: Callable[[Facts], str]
) -> Claim:
    """Ours is another by choice."""

    def check(facts: Facts) -> tuple[str, str]:
        ours = compute(facts)
        return ours, "exact" if ours == stated else "differs"

    return Claim(id, source, claim, stated, f"{NOW}; {why}", check)


# ---- measured


def measured(
    id: str,
    source: str,
    claim: str,
    stated: str,
    *,
    arm: tuple[str, str, str],
    values: Callable[[list[dict]], Sequence[float]],
    expected: float,
    tolerance: float,
    missing: str = "results/ has no such run",
    unit: str = "%",
    note: str = "",
) -> Claim:
    """A mean over the runs of one arm, (network, study, arm). `values` takes what it can from the
    runs; nothing: 'not run' because of `missing`.

    Reproduced: the mean lies within `tolerance` of the stated value, and its 95% interval is not
    wider. Differs: the whole interval lies outside.
    """

    def check(facts: Facts) -> tuple[str, str]:
        found = list(values(facts.runs_of(*arm)))
        if not found:
            return NONE, f"not run: {missing}"
        mean, n = statistics.mean(found), len(found)
        if n < 2:
            return f"{mean:.2f}{unit}, n = 1{note}", f"undecided at n = {n}"
        low, high = mean_interval(found)
        ours = f"{mean:.2f}{unit} [{low:.2f}, {high:.2f}], n = {n}{note}"
        if low > expected + tolerance or high < expected - tolerance:
            return ours, "differs"
        close = abs(mean - expected) <= tolerance and (high - low) / 2 <= tolerance
        return ours, "reproduced" if close else f"undecided at n = {n}"

    network, study, name = arm
    return Claim(id, source, claim, stated, f"results: {network} {study}, {name}", check)


Verdict = Callable[[dict], bool | None]  # comparison -> agrees, or None: undecided


def says(*verdicts: str) -> Verdict:
    """The study's verdict on the arm against the base: 'lower', 'higher' or 'no difference'."""
    return lambda comparison: (
        None if comparison["verdict"] == "undecided" else comparison["verdict"] in verdicts
    )


def within(low: float, high: float) -> Verdict:
    """The interval of the ratio overlaps these ends, which the source's digits leave open, and
    spans less than a factor of 1.5.
    """

    def agrees(comparison: dict) -> bool | None:
        if comparison["verdict"] == "undecided":
            return None
        least, most = comparison["interval"]
        too_low, too_high = most < low, least > high
        if comparison["bound"]:  # the true ratio lies farther in one direction
            beyond = {"at most": too_low, "at least": too_high}.get(comparison["bound"])
            return False if beyond else None
        if too_low or too_high:
            return False
        return True if most < 1.5 * least else None

    return agrees


def studied(
    id: str,
    source: str,
    claim: str,
    stated: str,
    study: str,
    base: str,
    arm: str,
    agrees: Verdict,
    note: str = "",
) -> Claim:
    """A comparison of a study's `arm` with its `base`, whichever of them the study has first."""
    return _of_study(id, source, claim, stated, study, [((base, arm), agrees)], note)


def ordered(
    id: str,
    source: str,
    claim: str,
    stated: str,
    study: str,
    order: Sequence[str],
    note: str = "",
) -> Claim:
    """The arms of a study from the lowest to the highest, each compared with the next."""
    pairs = [((after, before), says("lower")) for before, after in itertools.pairwise(order)]
    return _of_study(id, source, claim, stated, study, pairs, note)


def _of_study(
    id: str,
    source: str,
    claim: str,
    stated: str,
    study: str,
    needed: Sequence[tuple[tuple[str, str], Verdict]],
    note: str,
) -> Claim:
    """A claim that all of the `needed` comparisons must agree with."""

    def check(facts: Facts) -> tuple[str, str]:
        if study not in facts.studies:
            return NONE, f"not run: no results/{study}/study.json"
        texts, verdicts, pairs = [], [], []
        for arms, agrees in needed:
            found = find_comparison(facts.studies[study], *arms)
            if found is None:
                return NONE, f"not run: the study does not compare {' with '.join(arms)}"
            texts.append(in_words(found))
            verdicts.append(agrees(found))
            pairs.append(found["pairs"])
        ours = "; ".join(texts) + note
        if False in verdicts:
            return ours, "differs"
        return ours, f"undecided at n = {min(pairs)}" if None in verdicts else "reproduced"

    return Claim(id, source, claim, stated, f"study {study}", check)


def in_words(comparison: dict) -> str:
    """Such as: relu against tanh: x0.16 [0.14, 0.18], n = 6."""
    base, arm = comparison["arms"]
    n = f"n = {comparison['pairs']}"
    if comparison["interval"] is None:
        return f"{arm} against {base}: {n}"
    low, high = comparison["interval"]
    mean = ("x{:.2f}" if comparison["ratio"] else "{:+.2f} points").format(comparison["mean"])
    bound = f"{comparison['bound']} " if comparison["bound"] else ""
    return f"{arm} against {base}: {bound}{mean} [{low:.2f}, {high:.2f}], {n}"


def find_comparison(study: dict, base: str, arm: str) -> dict | None:
    """The comparison of two arms of a results/NAME/study.json, as of `arm` against `base`."""
    for comparison in study["comparisons"]:
        if comparison["arms"] == [base, arm]:
            return comparison
        if comparison["arms"] == [arm, base]:
            return reversed_comparison(comparison)
    return None


def reversed_comparison(comparison: dict) -> dict:
    def turned(value: float) -> float:
        return 1 / value if comparison["ratio"] else -value

    words = {"lower": "higher", "higher": "lower", "at least": "at most", "at most": "at least"}
    interval, mean = comparison["interval"], comparison["mean"]
    return comparison | {
        "arms": comparison["arms"][::-1],
        "mean": None if mean is None else turned(mean),
        "interval": interval and [turned(end) for end in reversed(interval)],
        "verdict": words.get(comparison["verdict"], comparison["verdict"]),
        "bound": words.get(comparison["bound"], comparison["bound"]),
    }


def not_run(id: str, source: str, claim: str, stated: str, why: str) -> Claim:
    return Claim(id, source, claim, stated, NONE, lambda _: (NONE, f"not run: {why}"))
