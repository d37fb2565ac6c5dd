"""Looks at the checkpoints of a run, while it trains or later, and changes nothing:

python -m scripts.checkpoint ls DIR      a table: size, age, scores, whether there are digests
python -m scripts.checkpoint verify DIR  reads every byte, compares each array with its SHA-256;
                                         exit code 74 on damage

DIR is the run's --workdir.
"""

import contextlib
import json
import re
import sys
import time
from pathlib import Path

from absl import flags, logging
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from common import launch
from common.checkpoint import Checkpointer
from common.errors import StorageError, UserError
from common.workdir import read_metrics, require_run, saved_steps


def define_flags(flag_values: flags.FlagValues) -> None:
    """No flags: the command takes two positional arguments."""


def main(flag_values: flags.FlagValues, command: str, folder: str) -> None:
    logging.set_verbosity(logging.FATAL)  # Orbax would log what we say in one line
    commands = {"ls": ls, "verify": verify}
    if command not in commands:
        raise UserError(f"{command!r} is none of {', '.join(commands)}.")
    workdir = Path(folder).expanduser()
    require_run(workdir)
    if not any(workdir.glob("checkpoints/*")):
        raise UserError(f"{workdir} has no checkpoint yet")
    with contextlib.closing(Checkpointer(workdir, read_only=True)) as checkpointer:
        commands[command](workdir, checkpointer)


def ls(workdir: Path, checkpointer: Checkpointer) -> None:
    """Prints a row for each checkpoint: finished, set aside as damaged, or not finished (yet)."""
    try:
        split = json.loads((workdir / "config.json").read_text())["track"]
        if split not in ("validation", "test"):
            raise ValueError(split)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StorageError(
            f"{workdir / 'config.json'} is not of a run, or damaged. `verify` does without it."
        ) from error
    scores = scores_of(workdir, split)
    table = Table(
        "step", "size", "age", f"{split} loss", "error", "state", box=box.SIMPLE, pad_edge=False
    )
    for column in table.columns[:-1]:
        column.justify = "right"
    names = re.compile(
        r"(\d+)[\w.-]*", re.ASCII
    )  # others, which a terminal may obey, are not shown
    found = [(names.fullmatch(path.name), path) for path in (workdir / "checkpoints").iterdir()]
    for step, entry in sorted((int(match[1]), entry) for match, entry in found if match):
        with contextlib.suppress(
            FileNotFoundError
        ):  # the run that trains here removed or renamed it meanwhile
            paths = () if entry.is_symlink() else entry.rglob("*")
            sizes = [path.lstat().st_size for path in paths if not path.is_dir()]
            age = duration(time.time() - entry.lstat().st_mtime)
            state = state_of(step, entry.name, checkpointer)
            table.add_row(str(step), decimal(sum(sizes)), age, *scores.get(step, ("", "")), state)
    Console(highlight=False).print(table)


def scores_of(workdir: Path, split: str) -> dict[int, tuple[str, str]]:
    """Step -> loss and error on the tracked split."""
    return {
        record["step"]: (f"{record['loss']:.4f}", f"{record['error_pct']:.2f}%")
        for record in read_metrics(workdir)
        if record["split"] == split
    }


def state_of(step: int, name: str, checkpointer: Checkpointer) -> str:
    """What is known of a checkpoint without reading its arrays."""
    if ".corrupt" in name:
        return f"damaged: {name}"
    if not name.isdecimal():
        return "unfinished"
    try:
        return f"{len(checkpointer.description(step)['leaves'])} digests"
    except Exception:  # whatever damaged files lead to
        return "damaged: no digests"


def duration(seconds: float) -> str:
    """In the largest unit that fits, such as 3.2 h."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def verify(workdir: Path, checkpointer: Checkpointer) -> None:
    """Prints a line for each finished checkpoint, the newest first. Raises StorageError if one is
    damaged.
    """
    intact, damaged, steps = [], [], saved_steps(workdir)
    while (
        steps and not intact + damaged
    ):  # again if the run that trains here has removed them all meanwhile
        for step in reversed(steps):
            damage = checkpointer.verify(step)
            if damage:
                time.sleep(1)  # it may be in the middle of removing it
                if step not in saved_steps(workdir):
                    print(
                        f"{step}: removed meanwhile by the run, which keeps its newest", flush=True
                    )
                    continue
            print(f"{step}: {f'damaged, {damage}' if damage else 'intact'}", flush=True)
            (damaged if damage else intact).append(step)
        steps = saved_steps(workdir)
    set_aside = [path.name for path in workdir.glob("checkpoints/*.corrupt*")]
    if not (intact or damaged or set_aside):
        raise UserError(f"{workdir} has no finished checkpoint")
    if not intact:
        then = "none is intact, and the training will not start from them"
    elif intact[0] > max(damaged, default=0):
        then = f"the training resumes from step {intact[0]}, which is intact"
    else:
        then = f"the training will fall back to step {intact[0]}"
    if damaged or not intact:
        names = ", ".join([*map(str, damaged), *set_aside])
        raise StorageError(f"damaged in {workdir / 'checkpoints'}: {names}; {then}.")


if __name__ == "__main__":
    sys.exit(launch.run_tool(define_flags, main, sys.argv, words=("ls|verify", "DIR")))
