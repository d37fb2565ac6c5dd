"""The runs that faults are injected into, and what a run without faults leaves behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import alexnet.network
import lenet.network
from common.errors import UserError
from common.workdir import read_metrics, saved_steps

ROOT = Path(__file__).parents[2]


class Case(NamedTuple):
    """A training run of a few seconds on embedded or generated data, with a checkpoint at least
    every two seconds.
    """

    name: str
    network: ModuleType  # lenet.network or alexnet.network
    flags: tuple[str, ...]
    num_epochs: int
    devices: int = 1

    def command(self, workdir: Path) -> list[str]:
        settings = (*self.flags, f"--num_epochs={self.num_epochs}", f"--workdir={workdir}")
        return [sys.executable, "-m", self.network.__name__.replace("network", "train"), *settings]


DIGITS = ("--dataset=mnist10k", "--validation_size=500")
NOISE = (
    *("--flagfile=alexnet/presets/small.flags", "--dataset=fake", "--validation_size=64"),
    *("--noten_crop", "--batch_size=16", "--learning_rate=0.001", "--log_every_steps=3"),
)
DECK = Case("LeNet-5 `deck`", lenet.network, (*DIGITS, "--train_size=6000"), 8)
EIGHT = DECK._replace(name="LeNet-5 `deck`, 8 devices", devices=8)
PAPER_FLAGS = ("--flagfile=lenet/presets/paper.flags", *DIGITS, "--train_size=4000")
PAPER = Case("LeNet-5 `paper`", lenet.network, PAPER_FLAGS, 4)
SMALL_FLAGS = (*NOISE, "--train_size=320", "--save_every_steps=15")
SMALL = Case("AlexNet `small`", alexnet.network, SMALL_FLAGS, 8)
FIXED_FLAGS = (*NOISE, "--train_size=640", "--reduction=fixed")
FIXED = Case("AlexNet `small`, `--reduction=fixed`", alexnet.network, FIXED_FLAGS, 10)
HANGS_S = 600  # a process that takes longer is taken to hang
ENDLESS = DECK._replace(num_epochs=100_000)
TINY = DECK._replace(flags=(*DIGITS, "--train_size=1000"), num_epochs=3)
TINY_SMALL = SMALL._replace(flags=(*NOISE, "--train_size=96"), num_epochs=2)


class Start:
    """One process of a run, and what its workdir held before. A context manager that leaves no
    process behind.

    Args:
      prefix: a command that takes the run's as its arguments, such as ("nohup",).
      output: where its messages go; None: to a file, for `output`.
    """

    def __init__(
        self, case: Case, workdir: Path, prefix: tuple[str, ...] = (), output: int | None = None
    ):
        self.case, self.workdir = case, workdir
        self.resumed, self._before = self.newest(), self._metrics_file()
        self._log = workdir.with_suffix(".log")
        devices = f"--xla_force_host_platform_device_count={case.devices}"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*prefix, *case.command(workdir)],
                cwd=ROOT,
                env=os.environ | {"XLA_FLAGS": devices},
                stdout=log if output is None else output,
                stderr=log if output is None else output,
                process_group=0,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # what `prefix` started, too
        self.process.wait()

    def _metrics_file(self) -> int | None:
        path = self.workdir / "metrics.jsonl"
        return path.stat().st_ino if path.exists() else None

    def trained(self) -> bool:
        """Whether it has logged a step of its own. Before its first, a resumed run replaces
        metrics.jsonl by a new file with the lines up to its checkpoint.
        """
        return self._metrics_file() != self._before and self.last_line()[0] > self.resumed

    def wait(self, condition: Callable[[], bool]) -> bool:
        """Waits until the condition holds (True), or the process has ended or hangs (False)."""
        end = time.monotonic() + HANGS_S
        while not condition():
            if self.process.poll() is not None or time.monotonic() > end:
                return False
            time.sleep(0.003)
        return True

    def wait_s(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        return self.wait(lambda: time.monotonic() > end)

    def end(self, number: int | None = None) -> int:
        """Sends the signal, if any; waits for the exit code: -9 of a process that hangs, which is
        killed.
        """
        if number:
            self.process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(timeout=HANGS_S)
        os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()

    def output(self) -> list[str]:
        """The lines of its stdout and stderr."""
        return self._log.read_text(errors="backslashreplace").splitlines()

    def last_words(self) -> str:
        """The last line of these."""
        return (self.output() or ["nothing was printed"])[-1]

    def newest(self) -> int:
        """The step that a restart would resume from."""
        return max(saved_steps(self.workdir), default=0)

    def is_saving(self) -> bool:
        """Whether a checkpoint is being written, or was when the run was killed."""
        return is_saving(self.workdir)

    def last_line(self) -> tuple[int, str]:
        """(step, split) of the last line of metrics.jsonl; (0, "") if there is none."""
        lines = read_metrics(self.workdir)
        return (lines[-1]["step"], lines[-1]["split"]) if lines else (0, "")


def is_saving(workdir: Path) -> bool:
    return any(workdir.glob("checkpoints/*.orbax-checkpoint-tmp"))


def is_one_error_line(output: list[str]) -> bool:
    """Whether the error is reported on one line, without a traceback."""
    errors = sum(line.startswith("error: ") for line in output)
    return errors == 1 and not any("Traceback" in line for line in output)


def call(module: str, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """`python -m MODULE ARGUMENTS`, to its end; `prefix` is as for `Start`."""
    command = [*prefix, sys.executable, "-m", module, *arguments]
    return subprocess.run(
        ["timeout", "-s", "KILL", str(HANGS_S), *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="backslashreplace",
    )


def refusal(done: subprocess.CompletedProcess, named: str = "") -> str:
    """`refused` for a command that ended with one error line, which has `named` in it, and the exit
    code of a mistake; `other` if it succeeded; or what happened.
    """
    lines = done.stderr.splitlines()
    if done.returncode in (2, 65, 74) and is_one_error_line(lines) and named in lines[-1]:
        return "refused"
    return "other" if done.returncode == 0 else f"exit code {done.returncode}: {lines[-1:]}"


def score(workdir: Path, prefix: tuple[str, ...] = ()) -> str:
    """`same` if `scripts.evaluate` gives the error of the finished run's result.json; `other` if it
    gives another; or what happened.
    """
    done = call("scripts.evaluate", f"--workdir={workdir}", "--json", prefix=prefix)
    if done.returncode:
        return f"evaluate, exit code {done.returncode}: {done.stderr.splitlines()[-1:]}"
    result = json.loads((workdir / "result.json").read_text())
    return "same" if json.loads(done.stdout)["error_pct"] == result["test_error_pct"] else "other"


class Clean(NamedTuple):
    """A run without faults."""

    state_sha256: str
    lines: list[dict]  # of metrics.jsonl
    start_up_s: float  # to the first line
    training_s: float
    num_steps: int
    epoch_steps: int
    save_steps: int  # between checkpoints, at most

    def verdict(self, folder: Path, training_only: bool = False) -> str:
        """`same` if the run that left result.json and metrics.jsonl there ended like this one;
        otherwise `other`, or `none` if there is no result.

        With `training_only`, lines of evaluations are ignored: their sums have no fixed order on
        several devices.
        """

        def kept(lines: list[dict]) -> list[dict]:
            return [line for line in lines if line["split"] == "train" or not training_only]

        if not (folder / "result.json").exists():
            return "none"
        state = json.loads((folder / "result.json").read_text())["state_sha256"]
        is_same = state == self.state_sha256 and kept(read_metrics(folder)) == kept(self.lines)
        return "same" if is_same else "other"

    def end(self, run: Start) -> str:
        """Waits for a run's end. `same` or `other`, as `verdict`, if it succeeded; or what
        happened.
        """
        code, output, found = run.end(), run.output(), self.verdict(run.workdir)
        if found == "other" or (found == "same" and code == 0 and "Traceback" not in str(output)):
            return found
        return f"exit code {code}, result {found}: {output[-1:]}"


def run_clean(case: Case, workdir: Path) -> Clean:
    began = time.monotonic()
    with Start(case, workdir) as run:
        run.wait(run.trained)
        trained = time.monotonic()
        if run.end() != 0:
            raise UserError(f"a run without faults failed: {run.last_words()}")
    ended = time.monotonic()
    result = json.loads((workdir / "result.json").read_text())
    config = json.loads((workdir / "config.json").read_text())
    epoch_steps = result["num_steps"] // case.num_epochs
    return Clean(
        result["state_sha256"],
        read_metrics(workdir),
        start_up_s=trained - began,
        training_s=ended - trained,
        num_steps=result["num_steps"],
        epoch_steps=epoch_steps,
        save_steps=min(config.get("save_every_steps", epoch_steps), epoch_steps),
    )


def row(
    name: str, tried: int, survived: int, silent: int = 0, *, target: str, met: bool = True, **more
) -> dict:
    """One row of the table.

    Args:
      more: phases, outcomes or ends (counts), lost_steps (the most), seconds (per try), share_pct.
    """
    met = met and survived == tried and not silent
    counts = dict(name=name, tried=tried, survived=survived, silent=silent)
    return counts | dict(target=target, met=met) | more


def row_of(name: str, found: Iterable[tuple[str, str]], target: str, good=("same",)) -> dict:
    """The row of single tries; prints those that did not survive.

    Args:
      found: (what was tried, what came of it); `other` is a silent error.
      good: what a try that survived ends in.
    """
    outcomes = Counter()
    for what, outcome in found:
        if outcome not in good:
            print(f"{name}: {what}: {outcome}", file=sys.stderr)
        outcomes[outcome] += 1
    survived = sum(outcomes[outcome] for outcome in good)
    counts = dict(target=target, outcomes=dict(outcomes))
    return row(name, outcomes.total(), survived, outcomes["other"], **counts)
