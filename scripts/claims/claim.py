"""What a claim is, and the kinds of them, one constructor each: computed now, measured in runs,
decided by a study, not run.
"""

import statistics
from collections.abc import Callable
from typing import NamedTuple

from scripts.claims.facts import Facts
from scripts.report.verdicts import not_reached
from scripts.studies.catalog import STUDIES
from scripts.studies.compare import Measured, compare, judge, t_interval

NOW = "computed now"
REENCODED = "on re-encoded images"  # of CIFAR-10
NONE = "–"  # nothing of ours to show
EXACT, REPRODUCED, INCONSISTENT = "exact", "reproduced", "source inconsistent"
OPEN = "open in the source"  # it makes no statement that ours could agree with


class Claim(NamedTuple):
    """One statement.

    Attributes:
      id: stable, in kebab case.
      source: the deck or the paper, with the section.
      claim: what it is about.
      stated: what the source says.
      how: where ours comes from.
      check: the facts -> what we have, and the status: 'exact', 'reproduced', 'differs',
        'undecided at n = N', 'source inconsistent', 'open in the source' or 'not run: WHY'.
      structural: it follows from the code alone, so that 'differs' is a bug.
    """

    id: str
    source: str
    claim: str
    stated: str
    how: str
    check: Callable[[Facts], tuple[str, str]]
    structural: bool = False


def computed(
    id: str,
    source: str,
    claim: str,
    stated: str,
    compute: Callable[[Facts], str | float | tuple[str, bool]],
    status: str = EXACT,
    how: str = "",
) -> Claim:
    """`compute` gives a number, or what we have as the source writes it; or it says in words what
    we have, and whether that agrees. `status` is what agreement means: with INCONSISTENT, that the
    source contradicts itself and each step of the derivation holds. `how`, if given, says that ours
    comes from results/, or is another by choice: then 'differs' is no bug.
    """

    def check(facts: Facts) -> tuple[str, str]:
        found = compute(facts)
        if isinstance(found, tuple):
            ours, agrees = found
        else:
            ours = found if isinstance(found, str) else f"{found:,}"
            agrees = ours == stated
        return ours, status if agrees else "differs"

    now = f"{NOW}, derived" if status == INCONSISTENT else NOW
    return Claim(id, source, claim, stated, how or now, check, structural=not how)


def measured(
    id: str,
    source: str,
    claim: str,
    stated: str,
    arm: tuple[str, str, str],
    value: Callable[[dict], float | None],
    expected: float,
    tolerance: float,
    unit: str = "%",
    note: str = "",
) -> Claim:
    """The mean of a value over the runs of one arm, (network, study, arm). `value` takes it from a
    run; None: that run was kept without the curves which have it.

    Reproduced: the mean lies within `tolerance` of `expected`, and its 95% interval is not wider.
    Differs: the whole interval lies outside.
    """

    def check(facts: Facts) -> tuple[str, str]:
        runs = facts.runs_of(*arm)
        found = [number for run in runs if (number := value(run)) is not None]
        if not runs:
            return NONE, not_yet(arm[1])
        if not found:
            return NONE, "not run: the runs in results/ were kept without their curves"
        mean, n = statistics.mean(found), len(found)
        if n < 2:
            return f"{mean:.2f}{unit}, n = 1{note}", f"undecided at n = {n}"
        low, high = t_interval(found)
        ours = f"{mean:.2f}{unit} [{low:.2f}, {high:.2f}], n = {n}{note}"
        if low > expected + tolerance or high < expected - tolerance:
            return ours, "differs"
        close = abs(mean - expected) <= tolerance and (high - low) / 2 <= tolerance
        return ours, REPRODUCED if close else f"undecided at n = {n}"

    return Claim(id, source, claim, stated, "results: {} {}, {}".format(*arm), check)


def not_yet(study: str) -> str:
    """The status of what only runs that are not in results/ could say."""
    if study not in STUDIES:
        return "not run: results/ has no such run"
    hours = STUDIES[study].hours
    words = f"{hours:g} hour{'s' * (hours != 1)} on two cores"
    return f"not run: `python -m scripts.ablate --study={study}`, {words}"


def not_run(id: str, source: str, claim: str, stated: str, why: str) -> Claim:
    return Claim(id, source, claim, stated, NONE, lambda _: (NONE, f"not run: {why}"))


# ---- decided by a study

Verdict = Callable[[dict], bool | None]  # comparison -> agrees, or None: undecided


def says(*verdicts: str) -> Verdict:
    """The study's verdict on the arm against the base: 'lower', 'higher' or 'no difference', which
    one within the study's margin is, too.
    """

    def agrees(comparison: dict) -> bool | None:
        if comparison["verdict"] == "undecided":
            return None
        same = "no difference" in verdicts and comparison["within_margin"]
        return same or comparison["verdict"] in verdicts

    return agrees


def direction(points: float) -> Verdict:
    """The direction of a difference whose size the source gives for other data. No difference
    contradicts it where ours excludes that size.
    """

    def agrees(comparison: dict) -> bool | None:
        if comparison["verdict"] == "undecided":
            return None
        if comparison["verdict"] in ("lower", "higher"):
            return comparison["verdict"] == ("lower" if points < 0 else "higher")
        low, high = comparison["interval"]
        return None if low <= points <= high else False

    return agrees


def within(low: float, high: float) -> Verdict:
    """The mean ratio lies between these ends, which the source's digits leave open, and its
    interval spans less than a factor of 1.5.
    """

    def agrees(comparison: dict) -> bool | None:
        if comparison["verdict"] == "undecided":
            return None
        (least, most), bound = comparison["interval"], comparison["bound"]
        # With a bound the true ratio lies farther in one direction, and may lie within.
        if (most < low and bound != "at least") or (least > high and bound != "at most"):
            return False
        precise = not bound and most < 1.5 * least
        return True if precise and low <= comparison["mean"] <= high else None

    return agrees


def studied(
    id: str,
    source: str,
    claim: str,
    stated: str,
    study: str,
    arms: tuple[str, str],
    agrees: Verdict | None,
    note: str = "",
    gap: bool = False,
) -> Claim:
    """Two arms of a study, (arm, base), whichever of them the study has first; `gap`: their test
    minus training errors. An arm that ended before it could be compared decides nothing. Without
    `agrees` the source leaves the question open.
    """
    arm, base = arms

    def check(facts: Facts) -> tuple[str, str]:
        if study not in facts.studies:
            return NONE, not_yet(study)
        made = facts.studies[study]
        ended = [made["choice"][name] for name in arms if name in made["choice"]]
        ended = [choice for choice in ended if not choice["reached"]]
        if found := find_comparison(made, base, arm, gap):
            status = _status(agrees(found), found["pairs"]) if agrees else OPEN
            text = in_words(found)
        elif ended:
            status = _status(None, min(len(runs) for runs in ended[0]["values"].values()))
            text = "; ".join(not_reached(made, arms))
        else:
            return NONE, f"not run: the study does not compare {base} with {arm}"
        return f"{text}{'; exploratory' * made['exploratory']}{note}", status

    return Claim(id, source, claim, stated, f"study {study}", check)


def paired(
    id: str,
    source: str,
    claim: str,
    stated: str,
    study: str,
    arms: tuple[str, str],
    value: Callable[[dict], float | None],
    agrees: Verdict,
    note: str = "",
) -> Claim:
    """Two arms, (arm, base), of a study, compared by a value that `value` takes from a run; None:
    that run was kept without it.
    """

    def check(facts: Facts) -> tuple[str, str]:
        arm, base = (
            {
                run["seed"]: Measured(number)
                for run in facts.runs_of(STUDIES[study].network(name), study, name)
                if (number := value(run)) is not None
            }
            for name in arms
        )
        again = facts.studies.get(study, {}).get("exploratory", False)
        comparison = compare(base, arm, ratio=False)
        if not comparison["pairs"]:
            return NONE, not_yet(study)
        comparison |= {"arms": arms[::-1], "p_adjusted": comparison["p"]}
        options = dict(unit="points", margin=STUDIES[study].margin, exploratory=again)
        comparison = judge(comparison, names=arms[::-1], **options)
        status = _status(agrees(comparison), comparison["pairs"])
        return in_words(comparison) + "; exploratory" * again + note, status

    return Claim(id, source, claim, stated, f"runs of study {study}", check)


def _status(agrees: bool | None, pairs: int) -> str:
    if agrees is None:
        return f"undecided at n = {pairs}"
    return REPRODUCED if agrees else "differs"


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


def find_comparison(study: dict, base: str, arm: str, gap: bool = False) -> dict | None:
    """The comparison of two arms of a results/NAME/study.json, as of `arm` against `base`; `gap`:
    of test minus training errors.
    """
    for found in study["comparisons"]:
        found = found["gap"] if gap else found
        if found["arms"] == [base, arm]:
            return found
        if found["arms"] == [arm, base]:
            return turned(found)
    return None


def turned(comparison: dict) -> dict:
    """The same comparison, of its base against its arm."""

    def turn(value: float) -> float:
        return 1 / value if comparison["ratio"] else -value

    words = {"lower": "higher", "higher": "lower", "at least": "at most", "at most": "at least"}
    found = {"arms": comparison["arms"][::-1]}
    found |= {key: words.get(comparison[key], comparison[key]) for key in ("verdict", "bound")}
    if comparison["interval"]:
        found["mean"] = turn(comparison["mean"])
        found["interval"] = [turn(end) for end in reversed(comparison["interval"])]
    return comparison | found
