"""One case, measured in rounds: ours and PyTorch's in turns, medians, and ratios."""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

PAUSE_S = 0.02  # between the two sides: threads that have just worked spin for some milliseconds
# In training the memory that an update allocates lies badly at first: `cifar18` takes a quarter
# longer, for up to 150 updates.
WARM_UP_S = 3
# Why a row has no peer.
ANOTHER_FORM, A_PART, ONE_SIDE = "another form of ours", "a part of ours", "not measured"

Numbers = tuple[float, ...]


class Case(NamedTuple):
    """One piece of work, ours and PyTorch's; each of its numbers becomes a row.

    Attributes:
      rows: (name, unit) of each number. For a unit per second more is better, for others less.
      ours: measures once and returns the numbers.
      peers: the same in PyTorch, by form; the fastest form is the peer. Empty without PyTorch, and
        where `no_peer` says why.
      contains: what the numbers include, in words.
      limits: the best that the machine allows for each number; None where there is no such limit.
      no_peer: why there is no peer even where PyTorch is installed.
    """

    rows: tuple[tuple[str, str], ...]
    ours: Callable[[], Numbers]
    peers: dict[str, Callable[[], Numbers]]
    contains: str
    limits: tuple[float | None, ...] = (None,)
    no_peer: str = ""


def measure(case: Case, rounds: int, *, warm_up: bool = True) -> list[dict]:
    """One row per number of a case. Without a warm-up our first round includes compilation."""
    form, tried = fastest(case, again=warm_up)
    if warm_up:
        for run in (case.ours, case.peers[form]) if form else (case.ours,):
            run_for(WARM_UP_S, run)
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(case.ours())
        if form:
            time.sleep(PAUSE_S)
            theirs.append(case.peers[form]())
            time.sleep(PAUSE_S)
    rows = []
    for i, ((name, unit), limit) in enumerate(zip(case.rows, case.limits, strict=True)):
        values = [numbers[i] for numbers in ours]
        row = {"name": name, "unit": unit} | _spread("ours", values)
        if form:
            peers = [numbers[i] for numbers in theirs]
            ratios = [gain(a, b, unit) for a, b in zip(values, peers, strict=True)]
            row |= _spread("peer", peers) | {"peer_form": form}
            row["peer_forms"] = {
                form: found if isinstance(found, str) else found[i] for form, found in tried.items()
            }
            row["ratio"] = statistics.median(ratios)
        else:
            row |= {"peer": case.no_peer or "not installed", "ratio": None}
        row |= {"limit": limit, "share_of_limit": gain(row["ours"], limit, unit) if limit else None}
        rows.append(row | {"rounds": rounds, "contains": case.contains})
    return rows


def seconds(run: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def run_for(least_s: float, run: Callable[[], Numbers]) -> None:
    """Measures, and counts nothing, until so many seconds are over; at least once."""
    end = time.perf_counter() + least_s
    run()
    while time.perf_counter() < end:
        run()


def _spread(side: str, values: list[float]) -> dict[str, float | list[float]]:
    return {side: statistics.median(values), f"{side}_range": [min(values), max(values)]}


def fastest(case: Case, *, again: bool = True) -> tuple[str | None, dict[str, Numbers | str]]:
    """The PyTorch form to measure, and what each form reached or why it does not run.

    The first number decides: the best of up to three measurements after the one that compiles, or
    that one alone without `again`. A form that is compiled may fail (no compiler, say); any other
    failure is raised.
    """
    unit, first, failed = case.rows[0][1], {}, {}
    for name, run in case.peers.items():
        try:
            first[name] = run()
        except Exception as error:
            if "compiled" not in name:
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            failed[name] = f"does not run here: {reason[:200]}"
            print(f"PyTorch, {name}, {failed[name]}", file=sys.stderr)
    if len(first) < 2:
        return next(iter(first), None), failed

    def score(numbers: Numbers) -> float:
        return gain(numbers[0], 1.0, unit)

    tried = {name: max(trials(case.peers[name]), key=score) for name in first} if again else first
    return max(tried, key=lambda name: score(tried[name])), tried | failed


def trials(run: Callable[[], Numbers]) -> list[Numbers]:
    """Three measurements, or fewer once they take more than 5 seconds together."""
    found, start = [], time.perf_counter()
    while len(found) < 3 and time.perf_counter() - start < 5:
        found.append(run())
    return found


def gain(ours: float, theirs: float, unit: str) -> float:
    """How many times better ours is: higher is better for a unit per second, lower for others."""
    return ours / theirs if unit.endswith("/s") else theirs / ours
