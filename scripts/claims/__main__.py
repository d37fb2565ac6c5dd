"""The ledger: each statement of the lecture deck and of the two papers that can be checked, beside
what this project has:

    python -m scripts.claims [--json | --markdown]

Statements on the layers, the data and the training procedure are computed from the live modules;
errors and comparisons come from results/. A status is exact, reproduced, differs, undecided at n
(too few runs), source inconsistent (the source contradicts itself; the derivation is checked), open
in the source (it makes no such statement; a study asks what one would ask), or not run with its
reason. Exit code 1: a statement on the code itself does not hold. A terminal of 150 columns or more
also shows the source, the claim, and where ours comes from.
"""

import json
import sys

from absl import flags
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common import launch
from common.errors import UserError
from scripts.claims.ledger import Line, counts, wrong
from scripts.report import ledger, results
from scripts.report.results import RESULTS

WIDE = 150  # columns of a terminal that has room for all of a line
COLORS = {"exact": "green", "reproduced": "green", "differs": "red", "not run": "dim"}


class WrongClaim(UserError):
    """A statement on the code itself does not hold: a bug."""

    exit_code = 1


def define_flags(flag_values: flags.FlagValues) -> None:
    own = dict(flag_values=flag_values)
    flags.DEFINE_boolean("json", False, "Print an array of objects, one a claim.", **own)
    flags.DEFINE_boolean("markdown", False, "Print the table of results/README.md.", **own)
    flags.register_multi_flags_validator(
        ["json", "markdown"],
        lambda given: not all(given.values()),
        "--json and --markdown exclude each other.",
        **own,
    )


def main(flag_values: flags.FlagValues) -> None:
    lines = ledger.check(results.load(RESULTS))
    if flag_values.json:
        print(json.dumps([line._asdict() for line in lines], indent=1, ensure_ascii=False))
    elif flag_values.markdown:
        print(ledger.ledger_table(lines))
    else:
        print_table(lines)
    if broken := wrong(lines):
        raise WrongClaim(f"not as stated, though it follows from the code: {', '.join(broken)}")


def print_table(lines: list[Line]) -> None:
    console = Console()
    columns = Line._fields if console.width >= WIDE else ("claim", "stated", "ours", "status")
    table = Table(title=counts(lines), pad_edge=False, show_lines=True)
    for column in columns:
        table.add_column(column, overflow="fold", min_width=12)
    for line in lines:
        kind = line.status.split(":")[0]
        cells = [escape(cell) for name, cell in line._asdict().items() if name in columns]
        table.add_row(*cells[:-1], f"[{COLORS.get(kind, 'yellow')}]{cells[-1]}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(launch.run_tool(define_flags, main, sys.argv))
