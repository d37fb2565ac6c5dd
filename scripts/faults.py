"""What a run survives: the real commands, killed, stopped and without disk space; checkpoints,
damaged; devices, changed:

    python -m scripts.faults [--full] [--only=kill,damage] [--json=results/faults.json]

A few tries of each fault, many with --full (about forty minutes on two quiet cores), at moments and
places drawn from --seed. A run survives if it ends as one that nothing happened to: the same
SHA-256 of the state, the same lines of metrics.jsonl. A silent error is a run that ends well with
another state, or a damaged checkpoint that is restored as if it were whole. The rows are written
after each fault, beside those that the file has of others. Exit code 1 if something did not
survive, or a target was missed.
"""

import contextlib
import importlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags, logging

import alexnet.config
import alexnet.train
import common.flags
import lenet.config
import lenet.train
from common import launch, provenance
from common.checkpoint import Checkpointer, state_sha256
from common.errors import Interrupted, LockedError, NonFiniteError, StorageError, UserError
from common.workdir import read_metrics, saved_steps, write_atomic

ROOT = Path(__file__).parents[1]
AIMS = (
    "step",
    "save",
    "step",
    "evaluation",
    "step",
    "epoch end",
    "start-up",
)  # of the signals, in turn
HITS_PER_RUN = 3  # then it may end


# ---- the runs that harm is done to


class Case(NamedTuple):
    """A training of some seconds on what comes with the project, with a checkpoint every two
    seconds or sooner.
    """

    name: str
    module: str
    flags: tuple[str, ...]
    num_epochs: int
    devices: int = 1

    def command(self, workdir: Path) -> list[str]:
        return [
            sys.executable,
            "-m",
            self.module,
            *self.flags,
            f"--num_epochs={self.num_epochs}",
            f"--workdir={workdir}",
        ]


DIGITS = ("--dataset=mnist10k", "--validation_size=500")
NOISE = (
    "--flagfile=alexnet/presets/small.flags",
    "--dataset=fake",
    "--validation_size=64",
    "--noten_crop",
)
NOISE += ("--batch_size=16", "--learning_rate=0.001", "--log_every_steps=3")
DECK = Case("LeNet-5 `deck`", "lenet.train", (*DIGITS, "--train_size=6000"), 8)
EIGHT = DECK._replace(name="LeNet-5 `deck`, 8 devices", devices=8)
PAPER = Case(
    "LeNet-5 `paper`",
    "lenet.train",
    ("--flagfile=lenet/presets/paper.flags", *DIGITS, "--train_size=4000"),
    4,
)
SMALL = Case(
    "AlexNet `small`", "alexnet.train", (*NOISE, "--train_size=320", "--save_every_steps=15"), 8
)
FIXED = Case(
    "AlexNet `small`, `--reduction=fixed`",
    "alexnet.train",
    (*NOISE, "--train_size=640", "--reduction=fixed"),
    10,
)
ENDLESS = DECK._replace(num_epochs=100_000)


class Start:
    """One start of a command, and what its workdir held before. A context manager, which leaves no
    process behind.
    """

    def __init__(self, case: Case, workdir: Path):
        self.case, self.workdir = case, workdir
        self.resumed, self._before = self.newest(), self._metrics_file()
        self._log = workdir.with_suffix(".log")
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={case.devices}"
        }
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                case.command(workdir), cwd=ROOT, env=environment, stdout=log, stderr=log
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def _metrics_file(self) -> int | None:
        path = self.workdir / "metrics.jsonl"
        return path.stat().st_ino if path.exists() else None

    def trained(self) -> bool:
        """Whether it has logged a step of its own; before that it writes a new file, of the lines
        that stay.
        """
        return self._metrics_file() != self._before and self.last_line()[0] > self.resumed

    def wait(self, condition: Callable[[], bool]) -> bool:
        """Waits until the condition holds (True) or the process has ended (False)."""
        while not condition():
            if self.process.poll() is not None:
                return False
            time.sleep(0.003)
        return True

    def wait_s(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        return self.wait(lambda: time.monotonic() > end)

    def end(self, number: int | None = None) -> int:
        """Sends the signal, if any; waits for the exit code."""
        if number:
            self.process.send_signal(number)
        return self.process.wait(timeout=600)

    def said(self) -> list[str]:
        """The lines of its stdout and stderr."""
        return self._log.read_text().splitlines()

    def newest(self) -> int:
        """The step that a start would resume from."""
        return max(saved_steps(self.workdir), default=0)

    def half_saved(self) -> bool:
        """Whether a checkpoint is being written, or was when the run was killed."""
        return half_saved(self.workdir)

    def last_line(self) -> tuple[int, str]:
        """(step, split) of the last line of metrics.jsonl; (0, "") where there is none."""
        lines = read_metrics(self.workdir)
        return (lines[-1]["step"], lines[-1]["split"]) if lines else (0, "")


def half_saved(workdir: Path) -> bool:
    return any(workdir.glob("checkpoints/*.orbax-checkpoint-tmp"))


def one_line(said: list[str]) -> bool:
    """Whether what went wrong is said in one line, without a traceback."""
    return sum(line.startswith("error: ") for line in said) == 1 and not any(
        "Traceback" in line for line in said
    )


class Clean(NamedTuple):
    """A run that nothing happened to."""

    state_sha256: str
    lines: list[dict]  # of metrics.jsonl
    start_up_s: float  # to the first line
    training_s: float
    num_steps: int
    epoch_steps: int
    save_steps: int  # from one checkpoint to the next, at most

    def verdict(self, folder: Path, training_only: bool = False) -> str:
        """`same` if the run that left result.json and metrics.jsonl there ended as this one;
        `other` or `none` if not.

        With `training_only` lines of evaluations do not count: their sums have no fixed order on
        many devices.
        """

        def kept(lines: list[dict]) -> list[dict]:
            return [line for line in lines if line["split"] == "train" or not training_only]

        if not (folder / "result.json").exists():
            return "none"
        state = json.loads((folder / "result.json").read_text())["state_sha256"]
        return (
            "same"
            if (state, kept(read_metrics(folder))) == (self.state_sha256, kept(self.lines))
            else "other"
        )


def run_clean(case: Case, workdir: Path) -> Clean:
    began = time.monotonic()
    with Start(case, workdir) as run:
        run.wait(run.trained)
        trained = time.monotonic()
        if run.end() != 0:
            raise UserError(f"a run without any fault failed: {run.said()[-1]}")
    seconds = trained - began, time.monotonic() - trained
    result, config = (
        json.loads((workdir / name).read_text()) for name in ("result.json", "config.json")
    )
    epoch_steps = result["num_steps"] // case.num_epochs
    save_steps = min(config.get("save_every_steps", epoch_steps), epoch_steps)
    return Clean(
        result["state_sha256"],
        read_metrics(workdir),
        *seconds,
        result["num_steps"],
        epoch_steps,
        save_steps,
    )


# ---- the faults: each is called with (full, an empty folder, what to draw from) and yields rows


def row(
    name: str, tried: int, survived: int, silent: int = 0, *, target: str, met: bool = True, **more
) -> dict:
    """One row; `more` is of phases or outcomes (counts), lost_steps (the most), seconds (of each
    try), share_pct.
    """
    met = met and survived == tried and not silent
    return (
        dict(name=name, tried=tried, survived=survived, silent=silent, target=target, met=met)
        | more
    )


def kill(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """SIGKILL at random moments, some aimed at start-ups, saves and evaluations; started again
    until the run is done.
    """
    tries = ((DECK, 20), (EIGHT, 10), (PAPER, 10), (SMALL, 10)) if full else ((DECK, 2), (SMALL, 1))
    for i, (case, number) in enumerate(tries):
        yield interrupted(
            case,
            run_clean(case, folder / f"clean{i}"),
            signal.SIGKILL,
            number,
            folder / str(i),
            draw,
        )


def stop(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """SIGTERM and SIGINT at random moments of training."""
    clean = run_clean(DECK, folder / "clean")
    for number, tries in ((signal.SIGTERM, 10), (signal.SIGINT, 5)):
        yield interrupted(DECK, clean, number, tries if full else 1, folder / str(number), draw)


def interrupted(
    case: Case, clean: Clean, number: signal.Signals, tries: int, folder: Path, draw: random.Random
) -> dict:
    folder.mkdir()
    killed = number == signal.SIGKILL
    aims = AIMS if killed else ("step", "evaluation")  # a compilation is not interrupted
    ends, phases, lost, seconds = Counter(), Counter(), [0], []
    for k in range(10 * tries):
        workdir, hits, failures = folder / str(k), 0, Counter()
        while hits < HITS_PER_RUN and ends.total() + hits < tries:
            with Start(case, workdir) as run:
                if not wait_for_moment(run, aims[phases.total() % len(aims)], clean, draw):
                    break  # it was quicker
                aimed_at = phase_of(run, clean)
                began = time.monotonic()
                code = run.end(number)
            if (workdir / "result.json").exists():
                break  # it was done before it heard of the signal
            seconds.append(time.monotonic() - began)
            phase = phase_of(run, clean) if killed else aimed_at
            phases[phase] += 1
            hits += 1
            # At a start-up there is nothing to lose.
            lost.append(0 if phase == "start-up" else max(run.last_line()[0] - run.newest(), 0))
            if not killed and (code != 128 + number or lost[-1]):
                failures[f"exit code {code}, {lost[-1]} steps lost"] += 1
        with Start(case, workdir) as last:
            end = clean.verdict(workdir) if last.end() == 0 else last.said()[-1]
        ends += (
            Counter({end: hits - failures.total()}) + failures
            if end == "same"
            else Counter({end: hits})
        )
        shutil.rmtree(workdir)
        if ends.total() == tries:
            break
    counts = dict(phases=dict(phases), ends=dict(+ends), lost_steps=max(lost))
    if killed:  # what was trained since the last save, and while that save was still being written
        target, met = f"≤ {2 * clean.save_steps} steps lost", max(lost) <= 2 * clean.save_steps
    else:
        target = f"exit code {128 + number} within 10 s, nothing lost"
        met, counts = max(seconds, default=0) <= 10, counts | {"seconds": seconds}
    name = f"{number.name}, {case.name}"
    return row(
        name,
        ends.total(),
        ends["same"],
        ends["other"],
        target=target,
        met=met and ends.total() == tries,
        **counts,
    )


def wait_for_moment(run: Start, aim: str, clean: Clean, draw: random.Random) -> bool:
    """Waits until the signal is to be sent; False if the run ends before."""
    if aim == "start-up":
        return run.wait_s(draw.uniform(0, clean.start_up_s))
    # Steps are drawn, not seconds: the clean run compiled what the others find in the cache, and
    # seconds of it come too late.
    step, line_s = draw.uniform(run.resumed, clean.num_steps), clean.training_s / len(clean.lines)
    if not (
        run.wait(lambda: run.trained() and run.last_line()[0] > step)
        and run.wait_s(draw.uniform(0, line_s))
    ):
        return False
    if aim == "save":
        return run.wait(run.half_saved) and run.wait_s(draw.uniform(0, 0.1))
    if aim == "epoch end":
        return run.wait(lambda: is_scored(run))
    return aim == "step" or (
        run.wait(lambda: is_scoring(run, clean)) and run.wait_s(draw.uniform(0, 0.02))
    )


def is_scoring(run: Start, clean: Clean) -> bool:
    step, split = run.last_line()
    return split == "train" and step % clean.epoch_steps == 0


def is_scored(run: Start) -> bool:
    """Whether an epoch has been evaluated whose checkpoint is not there yet."""
    step, split = run.last_line()
    return split not in ("train", "") and step > run.newest()


def phase_of(run: Start, clean: Clean) -> str:
    """What a start is doing, or was when it was killed, from what is in its workdir."""
    step, _ = run.last_line()
    if not run.trained():
        return "start-up"
    if run.half_saved():
        return "save"
    if is_scoring(run, clean) or step == clean.num_steps == run.newest():
        return "evaluation"
    return "epoch end" if is_scored(run) else "step"


DAMAGES = {  # kind: (in words, tries)
    "flip": ("a bit of a checkpoint flipped", 1000),
    "truncate": ("a file of a checkpoint cut short", 100),
    "delete": ("a file of a checkpoint deleted", 100),
    "zero": ("a file of a checkpoint zeros", 100),
}


def damage(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """One file of the newest checkpoint damaged, an older one behind it; restored in this process."""
    saved, first = folder / "saved", folder / "first"
    clean = run_clean(DECK._replace(num_epochs=2), saved)
    config = common.flags.from_json(lenet.config.Config, (saved / "config.json").read_text())
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(
            lambda: lenet.train.initial_state(config, lenet.train.build_optimizer(config, 1), 1, 10)
        ),
    )
    logging.set_verbosity(logging.FATAL)  # as in a run
    older, newer = saved_steps(saved)
    shutil.copytree(saved / "checkpoints" / str(older), first / "checkpoints" / str(older))
    right = [restored(first, target)[0], restored(saved, target)[0]]
    assert [step for step, *_ in right] == [older, newer] and right[1][
        1
    ] == clean.state_sha256 != right[0][1]
    for kind, (name, tries) in DAMAGES.items():
        outcomes = Counter()
        for number in range(tries if full else 10):
            shutil.copytree(saved / "checkpoints", folder / "copy" / "checkpoints")
            damage_file(
                folder / "copy" / "checkpoints" / str(newer),
                kind,
                any_byte=number % 2 == 0,
                draw=draw,
            )
            outcomes[outcome(restored(folder / "copy", target), right)] += 1
            shutil.rmtree(folder / "copy")
        survived = outcomes["harmless"] + outcomes["older step, one line"] + outcomes["refused"]
        counts = dict(outcomes=dict(outcomes), target="nothing restored that was not saved")
        yield row(name, outcomes.total(), survived, outcomes["silently wrong"], **counts)


def damage_file(step: Path, kind: str, *, any_byte: bool, draw: random.Random) -> None:
    """Damages one of the files under `step`: that of a byte drawn from all, or one that is drawn
    itself.
    """
    paths = [path for path in sorted(step.rglob("*")) if path.is_file() and path.stat().st_size]
    (path,) = draw.choices(paths, [path.stat().st_size if any_byte else 1 for path in paths])
    content = bytearray(path.read_bytes())
    if kind == "flip":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.unlink()
    if kind != "delete":
        path.write_bytes(
            {
                "flip": content,
                "truncate": content[: draw.randrange(len(content))],
                "zero": bytes(len(content)),
            }[kind]
        )


def restored(workdir: Path, target) -> tuple:
    """((step, digest of the state, meta) or the error, the lines that were said)."""
    said = io.StringIO()
    with (
        contextlib.redirect_stderr(said),
        contextlib.closing(Checkpointer(workdir)) as checkpointer,
    ):
        try:
            step, state, meta = checkpointer.restore_newest(target)
            found = step, state_sha256(state), meta
        except Exception as error:
            found = error
    return found, said.getvalue().splitlines()


def outcome(found_and_said: tuple, right: list[tuple]) -> str:
    """What came of a damage, in a word or two; `right` is what was saved, the older step and the
    newer.
    """
    found, said = found_and_said
    if isinstance(found, Exception):
        return "refused" if isinstance(found, UserError) else f"{type(found).__name__}: {found}"
    if found not in right:
        return "silently wrong"
    if found == right[1]:
        return "harmless"
    return "older step, one line" if len(said) == 1 else f"older step, {len(said)} lines"


FULL_DISK = """mount -t tmpfs -o size=20m none "$0" && head -c $((20 * 1024 * 1024 - $1)) /dev/zero > "$0"/ballast || exit 99
out=$2; shift 2; "$@" > "$out/said" 2>&1; code=$?
rm "$0"/ballast; "$@" > /dev/null 2>&1; cp "$0"/run/*.json* "$out"; exit $code
"""


def disk(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """Files that cannot grow (ulimit) after the first checkpoint; a disk that fills up, where the
    system lets us mount one.
    """
    target = f"exit code {StorageError.exit_code}, one line; goes on when there is room"
    clean, tries = run_clean(DECK, folder / "clean"), 3 if full else 1
    ends, survived = Counter(), 0
    for number in range(tries):
        with Start(DECK, folder / f"limit{number}") as run:
            run.wait(lambda newest=run.newest: newest() > 0)
            resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (50_000, 50_000))
            code, said = run.end(), run.said()
            told = one_line(said) and f"The checkpoint of step {run.newest()} is safe." in said[-1]
        with Start(DECK, run.workdir) as again:
            again.end()
        ends[end := clean.verdict(run.workdir)] += 1
        survived += (good := code == StorageError.exit_code and told and end == "same")
        if not good:
            print(f"files of 50,000 bytes: exit code {code}, {said[-3:]}, {end}", file=sys.stderr)
    yield row("files cannot grow", tries, survived, ends["other"], target=target, ends=dict(ends))

    ends, survived = Counter(), 0
    for number in range(tries):
        mounted, out = folder / f"disk{number}", folder / f"out{number}"
        mounted.mkdir()
        out.mkdir()
        room = str(int(draw.uniform(0.1, 1.5) * 1e6))  # less than one checkpoint to three
        words = [FULL_DISK, str(mounted), room, str(out), *DECK.command(mounted / "run")]
        code = subprocess.run(
            ["unshare", "--map-root-user", "--mount", "sh", "-c", *words], cwd=ROOT
        ).returncode
        if not (out / "said").exists():
            print("no disk can be mounted here: not tried", file=sys.stderr)
            return
        said, end = (out / "said").read_text().splitlines(), clean.verdict(out)
        ends[end] += 1
        survived += (good := code == StorageError.exit_code and one_line(said) and end == "same")
        if not good:
            print(f"{room} bytes free: exit code {code}, {said[-3:]}, {end}", file=sys.stderr)
    yield row("disk full", tries, survived, ends["other"], target=target, ends=dict(ends))


def nonfinite(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """Weight decays so large that the weights grow with each step: the first saves are finite, the
    loss overflows later.
    """
    survived, digits = 0, [(DECK, ("--weight_decay=50",)), (EIGHT, ("--weight_decay=50",))]
    cases = (
        [*digits, (SMALL, ("--weight_decay=4000", "--save_every_steps=1"))] if full else digits[:1]
    )
    for number, (case, more) in enumerate(cases):
        with Start(case._replace(flags=(*case.flags, *more)), folder / f"run{number}") as run:
            code, said = run.end(), run.said()
        survived += (
            good := code == NonFiniteError.exit_code
            and one_line(said)
            and stopped_in_time(run, said[-1])
        )
        if not good:
            print(
                f"{case.name}: exit code {code}, {said[-3:]}, newest step {run.newest()}",
                file=sys.stderr,
            )
    target = f"exit code {NonFiniteError.exit_code}, names the step; only finite states are saved"
    yield row("loss not finite", len(cases), survived, target=target)


def stopped_in_time(run: Start, message: str) -> bool:
    """Whether the message names a step and a safe checkpoint, and the newest one is of an earlier
    step and finite.
    """
    found = re.search(r" at step (\d+)[ ,;].*The checkpoint of step (\d+) is safe", message)
    # The newest may be one that was still being saved when the message was written.
    if not found or not int(found[2]) <= run.newest() < int(found[1]):
        return False
    loaded = importlib.import_module(run.case.module).load_run(run.workdir)
    return loaded.step == run.newest() and all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(loaded.params)
    )


def locked(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """A second run in the workdir of one that is training."""
    seconds, survived = [], 0
    with Start(ENDLESS, folder / "run") as first:
        first.wait(first.trained)
        for _ in range(5 if full else 1):
            began = time.monotonic()
            second = subprocess.run(
                ENDLESS.command(first.workdir), cwd=ROOT, capture_output=True, text=True
            )
            seconds.append(time.monotonic() - began)
            named = (
                f"in use by process {first.process.pid}." in second.stderr
                and second.stderr.count("\n") == 1
            )
            survived += (
                second.returncode == LockedError.exit_code
                and named
                and first.process.poll() is None
            )
    target = f"exit code {LockedError.exit_code} within 3 s, names the first"
    yield row(
        "a second run in the same workdir",
        len(seconds),
        survived,
        target=target,
        met=max(seconds) < 3,
        seconds=seconds,
    )


def restart(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """From the start of a killed run's command to its first new step, everything compiled before."""
    seconds, survived = [], 0
    with Start(ENDLESS, folder / "run") as run:
        run.wait(lambda: run.newest() > 0)
    for _ in range(7 if full else 1):
        began = time.monotonic()
        with Start(ENDLESS, folder / "run") as run:
            survived += run.wait(run.trained) and run.resumed > 0
            seconds.append(time.monotonic() - began)
    met, target = statistics.median(seconds) <= 5, "≤ 5 s (median) to the first step"
    yield row(
        "LeNet-5 `deck` started again",
        len(seconds),
        survived,
        target=target,
        met=met,
        seconds=seconds,
    )


def devices(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """Dropout and augmentation on: as many devices as there may be, and a run that moves between
    them.
    """
    case = FIXED if full else FIXED._replace(num_epochs=2)
    clean = run_clean(case, folder / "1")
    ends, numbers = Counter(), (2, 4, 8) if full else (8,)
    for number in numbers:
        with Start(case._replace(devices=number), folder / str(number)) as run:
            run.end()
        ends[clean.verdict(run.workdir, training_only=True)] += 1
    name, target = f"{case.name}, {clean.num_steps} steps on", "the same bits"
    on = f"{name} {', '.join(map(str, numbers))} devices"
    yield row(
        on, len(numbers), ends["same"], ends["other"], target=f"{target} as on 1", ends=dict(ends)
    )

    workdir, stopped = folder / "moved", True
    for number in (1, 8):
        with Start(case._replace(devices=number), workdir) as run:
            run.wait(run.trained)
            run.wait_s(draw.uniform(0, clean.training_s / 4))
            stopped &= run.end(signal.SIGTERM) == 128 + signal.SIGTERM
    with Start(case._replace(devices=2), workdir) as run:
        run.end()
    end = clean.verdict(workdir, training_only=True)
    same = stopped and end == "same"
    yield row(
        f"{name} 1, then 8, then 2 devices",
        1,
        int(same),
        int(end == "other"),
        target=target,
        ends={end: 1},
    )


def save(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """What saving AlexNet costs (--full: with all of its 62,378,344 parameters, and momentum), in
    this process.

    The loop asks once a step whether to stop: so the steps are timed from outside. What a save
    costs is the time that the loop waits in it and what the steps take longer while it is being
    written, above the median of the steps before the first save.
    """
    every, saves = (9, 10) if full else (4, 3)
    sizes = {} if full else dict(widths="small", crop_size=32, conv1_padding="symmetric")
    sizes |= dict(validation_size=8, batch_size=32 if full else 16, save_every_steps=every)
    config = alexnet.config.Config(dataset="fake", **sizes)
    times, writing, stalls = (
        [],
        [],
        [],
    )  # after each step: when, and whether a checkpoint is being written

    def stop_requested() -> int | None:
        times.append(time.monotonic())
        writing.append(half_saved(folder / "run"))
        return signal.SIGTERM if len(times) == (saves + 1) * every else None

    def timed_save(checkpointer, *args):
        began = time.monotonic()
        original(checkpointer, *args)
        stalls.append(time.monotonic() - began)

    original, Checkpointer.save = Checkpointer.save, timed_save
    try:
        alexnet.train.train_and_evaluate(config, folder / "run", stop_requested)
    except Interrupted:
        pass
    finally:
        Checkpointer.save = original
    took = np.diff(times)  # of the steps from the second
    quiet = float(np.median(took[1 : every - 1]))
    costs = []
    for first in range(
        every - 1, saves * every, every
    ):  # the step that has the save in it, and those after it
        busy = [took[k] for k in range(first, first + every) if k == first or writing[k]]
        costs.append(float(sum(busy) - quiet * len(busy)))
    share_pct = 100 * statistics.median(costs) / (100 * quiet)
    what = f"a save after 100 steps of {quiet:.2f} s, the loop waiting {statistics.median(stalls[:saves]):.2f} s"
    name = f"AlexNet{'' if full else ' `small`'} saved, {config.batch_size} images a step"
    more = dict(
        seconds=costs,
        stalls_s=stalls[:saves],
        step_s=quiet,
        share_pct=share_pct,
        outcomes={what: len(costs)},
    )
    saved = (
        len(costs) if saved_steps(folder / "run")[-1] >= saves * every else 0
    )  # of all, only the newest are kept
    yield row(name, len(costs), saved, target="≤ 2% of the time", met=share_pct <= 2, **more)


FAULTS = dict(kill=kill, stop=stop, damage=damage, disk=disk, nonfinite=nonfinite)
FAULTS |= dict(locked=locked, restart=restart, devices=devices, save=save)


def define_flags(flag_values: flags.FlagValues) -> None:
    flags.DEFINE_boolean(
        "full",
        False,
        "As often as README's table says, not a few times each.",
        flag_values=flag_values,
    )
    flags.DEFINE_list(
        "only", [], f"Some of {', '.join(FAULTS)}; all if empty.", flag_values=flag_values
    )
    flags.DEFINE_string(
        "json",
        "",
        "Write the rows to this file, after each; others' stay.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "seed", 0, "Decides moments and places.", lower_bound=0, flag_values=flag_values
    )


def main(flag_values: flags.FlagValues) -> None:
    chosen, path = flag_values.only or list(FAULTS), Path(flag_values.json).absolute()
    unknown = [name for name in chosen if name not in FAULTS]
    if unknown:
        raise UserError(f"--only={unknown[0]} is none; allowed: {', '.join(FAULTS)}")
    if flag_values.json and not path.parent.is_dir():
        raise UserError(f"--json={flag_values.json}: no such folder")
    source = provenance.collect(seed=flag_values.seed, dataset="")
    del source["dataset"]
    of_each = {"full": flag_values.full, "seed": source.pop("seed"), "commit": source.pop("commit")}
    earlier = json.loads(path.read_text())["rows"] if flag_values.json and path.exists() else []
    earlier, new = [found for found in earlier if found["fault"] not in chosen], []
    if earlier:
        _require_same_place(json.loads(path.read_text()), source, flag_values.json)
    for name in chosen:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            for found in FAULTS[name](
                flag_values.full, Path(folder), random.Random(f"{flag_values.seed} {name}")
            ):
                ended = time.monotonic()
                new.append({"fault": name} | found | of_each | {"took_s": ended - began})
                began = ended
                print(line(new[-1]), flush=True)
                if flag_values.json:
                    rows = sorted(
                        earlier + new, key=lambda found: list(FAULTS).index(found["fault"])
                    )
                    write_atomic(
                        path,
                        json.dumps({"kind": "faults", "rows": rows, **source}, indent=2) + "\n",
                    )
    if any(found["silent"] or found["survived"] < found["tried"] for found in new):
        sys.exit("error: not everything survived, see above.")
    if missed := [found["name"] for found in new if not found["met"]]:
        sys.exit(f"error: everything survived, but targets were missed: {'; '.join(missed)}.")


def _require_same_place(written: dict, source: dict, name: str) -> None:
    """Raises UserError unless the rows that a file keeps were made here, for it says once where
    they all were made.
    """
    before, now = ({**place["machine"], **place["versions"]} for place in (written, source))
    changed = [
        f"{key} {before.get(key)} -> {now.get(key)}"
        for key in before | now
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise UserError(
            f"--json={name} has rows made elsewhere ({', '.join(changed)}): name another file, or leave out --only."
        )


def line(found: dict) -> str:
    """A row as text."""
    parts = [
        f"{found['name']}: tried {found['tried']}, survived {found['survived']}, silently wrong {found['silent']}"
    ]
    parts += [str(found[counts]) for counts in ("phases", "outcomes", "ends") if counts in found]
    parts += [f"lost at most {found['lost_steps']} steps"] if "lost_steps" in found else []
    if found.get("seconds"):
        parts.append(
            f"{statistics.median(found['seconds']):.2f} s (at most {max(found['seconds']):.2f})"
        )
    parts += [f"{found['share_pct']:.2f}% of the time"] if "share_pct" in found else []
    missed = "" if found["met"] else ": MISSED"
    return f"{', '.join(parts)}; target: {found['target']}{missed} [{found['took_s']:.0f} s]"


if __name__ == "__main__":
    sys.exit(launch.run_tool(define_flags, main, sys.argv))
