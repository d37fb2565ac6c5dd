"""Runs the trainings of a study, several at a time; Ctrl-C stops them with their state saved."""

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from common import runtime
from common.errors import Interrupted, LockedError
from common.workdir import read_metrics
from scripts.studies import plan
from scripts.studies.plan import Run, Study

ROOT = Path(__file__).parents[2]
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_BETWEEN_TRIES = 30  # for a run that another process trains
SECONDS_BETWEEN_LINES = 600  # without a terminal: how often the progress is printed


class Failure(NamedTuple):
    """Why a run ended without a result."""

    exit_code: int
    last_line: str

    def __str__(self) -> str:
        return f"exit code {self.exit_code}: {self.last_line}"


def train(
    study: Study,
    todo: Sequence[Run],
    *,
    jobs: int,
    threads: int,
    finished: Callable[[Run], str],
) -> dict[Run, Failure]:
    """Trains `todo`; returns those that failed, which stop no other.

    Args:
      jobs: how many train at a time.
      threads: of XLA's thread pool on a CPU in each of them: it decides in which order sums are
        made, so that jobs and cores change no bit.
      finished: called after each run that is complete; returns its result in words.

    Raises Interrupted after a signal, when all have saved their state and ended.
    """
    waiting, running, failed = deque(todo), {}, {}
    stopped, next_try, elsewhere = None, 0.0, set()
    try:
        with runtime.stop_signals() as stop_requested, _Progress(study, todo) as progress:
            while waiting or running:
                if stopped is None and (stopped := stop_requested()):
                    waiting.clear()
                    for process in running.values():
                        process.terminate()
                while waiting and len(running) < jobs and time.monotonic() >= next_try:
                    run = waiting.popleft()
                    running[run] = start(study, run, threads)
                for run in [run for run, process in running.items() if process.poll() is not None]:
                    code = running.pop(run).returncode
                    if code == 0:
                        progress.end(run, finished(run))
                    elif code == LockedError.exit_code and not stopped:
                        waiting.append(run)  # by a study that was killed, perhaps
                        if run not in elsewhere:
                            progress.say(f"{run}: another process trains it; waiting for that")
                        elsewhere.add(run)
                        next_try = time.monotonic() + SECONDS_BETWEEN_TRIES
                    elif not stopped:
                        failed[run] = Failure(code, last_line(log_file(run)))
                        progress.end(run, f"failed, {failed[run]}")
                progress.look(running)
                time.sleep(SECONDS_BETWEEN_LOOKS)
    finally:
        for process in running.values():  # after an error here: they save their state
            process.terminate()
        for process in running.values():
            process.wait()
    if stopped:
        raise Interrupted(stopped)
    return failed


def start(study: Study, run: Run, threads: int) -> subprocess.Popen:
    """The training of a run in a process of its own. A terminal's Ctrl-C does not reach it: it gets
    one signal, from here.
    """
    run.workdir.parent.mkdir(parents=True, exist_ok=True)
    with log_file(run).open("a") as log:
        return subprocess.Popen(
            plan.command(study, run),
            env=os.environ | environment(threads),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
        )


def environment(threads: int) -> dict[str, str]:
    """What fixes the number of XLA's threads on a CPU, and finds the project from any folder."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {"NPROC": str(threads), "PYTHONPATH": path}


def log_file(run: Run) -> Path:
    return run.workdir.with_suffix(".log")


def last_line(path: Path) -> str:
    """The last line of a log, in at most 200 characters."""
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "no output")[:200]


class _Progress:
    """A bar with the time left for all runs; without a terminal a line for each run that ends, and
    one every ten minutes.
    """

    def __init__(self, study: Study, todo: Sequence[Run]):
        self._name, self._ended = study.name, 0
        self._num_epochs = {run: plan.config(study, run).num_epochs for run in todo}
        self._shares = {run: self._share(run) for run in todo}  # of each run that is done
        self._start, self._first = time.monotonic(), sum(self._shares.values())
        self._console = Console(stderr=True)
        self._interval = 2.0 if self._console.is_terminal else SECONDS_BETWEEN_LINES
        self._due = self._start + self._interval
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task(self._name, total=len(todo), left="")

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *_):
        self._bar.update(self._task, left=f"{self._ended}/{len(self._shares)} runs done")
        self._bar.stop()

    def _share(self, run: Run) -> float:
        lines = read_metrics(run.workdir)
        return lines[-1]["epoch"] / self._num_epochs[run] if lines else 0.0

    def end(self, run: Run, words: str) -> None:
        """A line for a run that has ended."""
        self._ended += 1
        self._shares[run] = 1.0
        self._bar.update(self._task, completed=sum(self._shares.values()))
        self.say(f"{self._ended}/{len(self._shares)}: {run}: {words}")

    def look(self, running: Iterable[Run]) -> None:
        """Brings the bar up to date."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + self._interval
        self._shares |= {run: self._share(run) for run in running}
        done, total = sum(self._shares.values()), len(self._shares)
        left = "unknown"
        if done > self._first:
            seconds = (now - self._start) * (total - done) / (done - self._first)
            left = str(timedelta(seconds=round(seconds)))
        words = f"{self._ended}/{total} runs done, {left} left"
        self._bar.update(self._task, completed=done, left=words)
        if self._bar.disable:
            self.say(words)

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._bar.disable:
            print(f"{self._name} {line}", file=sys.stderr, flush=True)
        else:
            self._bar.console.print(f"{self._name} {line}", markup=False, highlight=False)
