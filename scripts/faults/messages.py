"""Messages that cannot be written."""

import os
import pty
import random
from collections.abc import Iterator
from pathlib import Path

from scripts.faults.runs import TINY, TINY_SMALL, Case, Clean, Start, row_of, run_clean

WAYS = {  # the messages of "$0" "$@"
    "a pipe whose reader ended": ("bash", "-c", 'set -o pipefail; "$0" "$@" 2>&1 | head -1'),
    "closed": ("sh", "-c", 'exec "$0" "$@" >&- 2>&-'),
    "a full disk": ("sh", "-c", 'exec "$0" "$@" > /dev/full 2>&1'),
}


def messages(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """stdout and stderr that cannot be written to, from the start or later."""
    found = []
    for number, case in enumerate((TINY, TINY_SMALL) if full else (TINY,)):
        clean = run_clean(case, folder / f"clean{number}")
        for way, prefix in list(WAYS.items())[: None if full else 1]:
            with Start(case, folder / f"{way}{number}", prefix) as run:
                found.append((f"{way}, {case.name}", clean.end(run)))
        end = on_a_closed_terminal(clean, case, folder / f"terminal{number}")
        found.append((f"a closed terminal, {case.name}", end))
    yield row_of("messages cannot be written", found, "the same bits and metrics")


def on_a_closed_terminal(clean: Clean, case: Case, workdir: Path) -> str:
    ours, theirs = pty.openpty()
    with Start(case, workdir, output=theirs) as run:
        os.close(theirs)
        os.read(ours, 1)  # waits for its first message
        os.close(ours)
        return clean.end(run)
