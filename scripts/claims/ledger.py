"""All claims, checked."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from scripts.claims import (
    alexnet,
    alexnet_errors,
    alexnet_training,
    deck,
    lenet,
    lenet_training,
    studied,
)
from scripts.claims.claim import Claim
from scripts.claims.facts import gather

MODULES = (deck, lenet, lenet_training, alexnet, alexnet_training, studied, alexnet_errors)
CLAIMS: tuple[Claim, ...] = tuple(claim for module in MODULES for claim in module.CLAIMS)


class Line(NamedTuple):
    """A claim, and what became of it."""

    id: str
    source: str
    claim: str
    stated: str
    ours: str
    how: str
    status: str


def check(runs: Sequence[dict], studies: Mapping[str, dict]) -> list[Line]:
    """Every claim against the live modules, the runs and the studies of results/."""
    facts = gather(runs, studies)
    lines = []
    for each in CLAIMS:
        ours, status = each.check(facts)
        lines.append(Line(each.id, each.source, each.claim, each.stated, ours, each.how, status))
    return lines


def wrong(lines: Iterable[Line]) -> list[str]:
    """The claims on the code itself that do not hold."""
    structural = {claim.id for claim in CLAIMS if claim.structural}
    return [line.id for line in lines if line.id in structural and line.status == "differs"]


def counts(lines: Iterable[Line]) -> str:
    """How many have which status."""
    kinds = Counter(line.status.split(":")[0].split(" at n")[0] for line in lines)
    return f"{kinds.total()} claims: " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
