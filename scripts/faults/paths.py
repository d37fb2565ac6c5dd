"""Folders whose names something might take for more than a name."""

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

from scripts.faults.runs import DECK, Clean, Start, row_of, run_clean, score

NAMES = (b"a[1]", b"?*", b" ", b"'\"", b"100%d", b"two\nlines", b"a\\b", b"caf\xe9")
NOT_UTF8 = NAMES[-1]
CASE = DECK._replace(num_epochs=4)


def paths(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """The name of the workdir, or of the folder that it is in."""
    clean, found = run_clean(CASE, folder / "clean"), []
    names = NAMES if full else (b" ".join(NAMES[:-1]), NAMES[-1])
    for name in names:
        for inner in ("", "run") if full else ("run",):
            workdir = folder / f"odd{len(found)}" / os.fsdecode(name) / inner
            workdir.parent.mkdir(parents=True)
            end = stopped_and_resumed(clean, workdir)
            if (end == "refused") != (name == NOT_UTF8):
                end = f"{end}, against the rule"
            found.append((f"{name}, {inner}", end))
    target = "stopped, resumed, evaluated: the same bits; what is not UTF-8: refused at the start"
    yield row_of("odd name of the workdir or its parent", found, target, ("same", "refused"))


def stopped_and_resumed(clean: Clean, workdir: Path) -> str:
    """What comes of a SIGTERM in the first epoch, the same command again and an evaluation."""
    with Start(CASE, workdir) as run:
        trained = run.wait(run.trained)
        code = run.end(signal.SIGTERM)
        if not trained and code in (2, 74) and len(run.output()) == 1:
            return "refused"
    if code != 128 + signal.SIGTERM or run.newest() != run.last_line()[0]:
        return f"SIGTERM: exit code {code}, {run.newest()} saved: {run.output()[-1:]}"
    with Start(CASE, workdir) as run:
        end = clean.end(run)
    return score(workdir) if end == "same" else end
