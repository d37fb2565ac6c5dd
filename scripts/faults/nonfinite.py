"""A loss that overflows."""

import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from common.errors import NonFiniteError
from scripts.faults.runs import DECK, EIGHT, SMALL, Start, is_one_error_line, row


def nonfinite(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """A weight decay so large that the weights grow at each step: the first saves are finite, the
    loss overflows later.
    """
    cases = [(DECK, ("--weight_decay=50",))]
    if full:
        cases += [(EIGHT, ("--weight_decay=50",))]
        cases += [(SMALL, ("--weight_decay=4000", "--save_every_steps=1"))]
    survived = 0
    for number, (case, more) in enumerate(cases):
        with Start(case._replace(flags=(*case.flags, *more)), folder / f"run{number}") as run:
            code, output = run.end(), run.output()
        good = code == NonFiniteError.exit_code and is_one_error_line(output)
        good = good and stopped_in_time(run, output[-1])
        survived += good
        if not good:
            found = f"exit code {code}, {output[-3:]}, newest step {run.newest()}"
            print(f"{case.name}: {found}", file=sys.stderr)
    target = f"exit code {NonFiniteError.exit_code}, names the step; only finite states are saved"
    yield row("loss not finite", len(cases), survived, target=target)


def stopped_in_time(run: Start, message: str) -> bool:
    """Whether the newest checkpoint is finite and of a step before the one that the message names
    first, and not before the checkpoint that it names last.
    """
    named = [int(step) for step in re.findall(r"\bstep (\d+)", message)]
    # The newest may still have been in writing when the message was composed.
    if len(named) < 2 or not named[-1] <= run.newest() < named[0]:
        return False
    loaded = run.case.network.load(run.workdir)
    leaves = jax.tree.leaves(loaded.params)
    return loaded.step == run.newest() and all(np.isfinite(leaf).all() for leaf in leaves)
