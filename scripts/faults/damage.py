"""Corrupt checkpoints: one file of the newest is damaged, then restored in this process."""

import contextlib
import io
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from absl import logging

import lenet.config
import lenet.train
from common.checkpoint import Checkpointer
from common.digests import state_sha256
from common.errors import UserError
from common.workdir import read_config, saved_steps
from scripts.faults.runs import DECK, row, run_clean

DAMAGES = {  # kind: (name of the row, tries)
    "flip": ("a bit of a checkpoint flipped", 1000),
    "truncate": ("a file of a checkpoint truncated", 100),
    "delete": ("a file of a checkpoint deleted", 100),
    "zero": ("a file of a checkpoint zeroed", 100),
}
SURVIVED = ("harmless", "older step, one line", "refused")


def damage(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """Damages the newer of two checkpoints, in each way."""
    saved, first = folder / "saved", folder / "first"
    clean = run_clean(DECK._replace(num_epochs=2), saved)
    task = lenet.train.make_task(read_config(lenet.config.Config, saved, "a LeNet-5"))
    target = task.placement.abstract(lambda: task.initial_state(task.network.init()))
    logging.set_verbosity(logging.FATAL)  # as in a run
    older, newer = saved_steps(saved)
    shutil.copytree(saved / "checkpoints" / str(older), first / "checkpoints" / str(older))
    right = [restored(first, target)[0], restored(saved, target)[0]]
    assert [step for step, *_ in right] == [older, newer]
    assert right[1][1] == clean.state_sha256 != right[0][1]
    for kind, (name, tries) in DAMAGES.items():
        outcomes = Counter()
        for number in range(tries if full else 10):
            copy = folder / "copy" / "checkpoints"
            shutil.copytree(saved / "checkpoints", copy)
            damage_file(copy / str(newer), kind, any_byte=number % 2 == 0, draw=draw)
            outcomes[outcome(restored(folder / "copy", target), right)] += 1
            shutil.rmtree(folder / "copy")
        yield row(
            name,
            outcomes.total(),
            sum(outcomes[kind] for kind in SURVIVED),
            outcomes["silently wrong"],
            outcomes=dict(outcomes),
            target="nothing restored that was not saved",
        )


def damage_file(step: Path, kind: str, *, any_byte: bool, draw: random.Random) -> None:
    """Damages one file under `step`: with `any_byte` drawn in proportion to its size, otherwise
    uniformly.
    """
    paths = [path for path in sorted(step.rglob("*")) if path.is_file() and path.stat().st_size]
    (path,) = draw.choices(paths, [path.stat().st_size if any_byte else 1 for path in paths])
    content = bytearray(path.read_bytes())
    path.unlink()
    if kind == "flip":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    elif kind == "truncate":
        path.write_bytes(content[: draw.randrange(len(content))])
    elif kind == "zero":
        path.write_bytes(bytes(len(content)))


def restored(workdir: Path, target) -> tuple:
    """((step, digest of the state, meta) or the error, the lines on stderr)."""
    stderr = io.StringIO()
    with (
        contextlib.redirect_stderr(stderr),
        contextlib.closing(Checkpointer(workdir)) as checkpointer,
    ):
        try:
            step, state, meta = checkpointer.restore_newest(target)
            found = step, state_sha256(state), meta
        except Exception as error:
            found = error
    return found, stderr.getvalue().splitlines()


def outcome(found_and_lines: tuple, right: list[tuple]) -> str:
    """What came of the damage, in a few words; `right` is what was saved at the older step and at
    the newer one.
    """
    found, lines = found_and_lines
    if isinstance(found, Exception):
        return "refused" if isinstance(found, UserError) else f"{type(found).__name__}: {found}"
    if found not in right:
        return "silently wrong"
    if found == right[1]:
        return "harmless"
    return "older step, one line" if len(lines) == 1 else f"older step, {len(lines)} lines"
