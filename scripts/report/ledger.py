"""The table of the ledger, from scripts/claims."""

from collections.abc import Iterable

from scripts.claims import ledger
from scripts.claims.ledger import Line
from scripts.report.results import Results
from scripts.report.studies import markdown


def check(results: Results) -> list[Line]:
    """Every claim against the live modules and these results."""
    studies = {study["name"]: study for study in results.studies}
    return ledger.check([*results.runs, *results.studied], studies)


def ledger_table(lines: Iterable[Line]) -> str:
    """How many claims have which status, and a row for each."""
    lines = list(lines)
    rows = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return f"{ledger.counts(lines)}.\n\n{markdown([list(Line._fields), *rows])}"
