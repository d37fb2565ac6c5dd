"""Runs that are started twice, restarted, or continued on other numbers of devices."""

import random
import signal
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from common.errors import LockedError
from scripts.faults.runs import ENDLESS, FIXED, ROOT, Start, row, run_clean


def locked(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """A second run in the workdir of one that is training."""
    seconds, survived = [], 0
    with Start(ENDLESS, folder / "run") as first:
        first.wait(first.trained)
        command, pid = ["timeout", "60", *ENDLESS.command(first.workdir)], first.process.pid
        for _ in range(5 if full else 1):
            began = time.monotonic()
            second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            seconds.append(time.monotonic() - began)
            named = f"process {pid}" in second.stderr and second.stderr.count("\n") == 1
            refused = second.returncode == LockedError.exit_code
            survived += refused and named and first.process.poll() is None
    counts = dict(met=max(seconds) < 3, seconds=seconds)
    target = f"exit code {LockedError.exit_code} within 3 s, names the first"
    yield row("a second run in the same workdir", len(seconds), survived, target=target, **counts)


def restart(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """The time from the start of a killed run's command to its first new step, with a warm
    compilation cache.
    """
    seconds, survived = [], 0
    with Start(ENDLESS, folder / "run") as run:
        run.wait(lambda: run.newest() > 0)
    for _ in range(7 if full else 1):
        began = time.monotonic()
        with Start(ENDLESS, folder / "run") as run:
            survived += run.wait(run.trained) and run.resumed > 0
            seconds.append(time.monotonic() - began)
    counts = dict(met=statistics.median(seconds) <= 5, seconds=seconds)
    target = "≤ 5 s (median) to the first step"
    yield row("LeNet-5 `deck` restarted", len(seconds), survived, target=target, **counts)


def devices(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """With dropout and augmentation: on several numbers of devices, and moved between them."""
    case = FIXED if full else FIXED._replace(num_epochs=2)
    clean = run_clean(case, folder / "1")
    ends, numbers = Counter(), (2, 4, 8) if full else (8,)
    for number in numbers:
        with Start(case._replace(devices=number), folder / str(number)) as run:
            run.end()
        ends[clean.verdict(run.workdir, training_only=True)] += 1
    name = f"{case.name}, {clean.num_steps} steps on"
    on = f"{name} {', '.join(map(str, numbers))} devices"
    counts = dict(target="the same bits as on 1", ends=dict(ends))
    yield row(on, len(numbers), ends["same"], ends["other"], **counts)

    workdir, stopped = folder / "moved", True
    for number in (1, 8):
        with Start(case._replace(devices=number), workdir) as run:
            run.wait(run.trained)
            run.wait_s(draw.uniform(0, clean.training_s / 4))
            stopped &= run.end(signal.SIGTERM) == 128 + signal.SIGTERM
    with Start(case._replace(devices=2), workdir) as run:
        run.end()
    end = clean.verdict(workdir, training_only=True)
    counts = dict(target="the same bits", ends={end: 1})
    same = stopped and end == "same"
    yield row(f"{name} 1, then 8, then 2 devices", 1, int(same), int(end == "other"), **counts)
