"""Runs that are killed or stopped by a signal, and restarted until they are done."""

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from common.runtime import STOP_SIGNALS
from scripts.faults.runs import (
    DECK,
    EIGHT,
    PAPER,
    SMALL,
    Case,
    Clean,
    Start,
    row,
    row_of,
    run_clean,
)

# What a SIGKILL is aimed at, in turn.
AIMS = ("step", "save", "step", "evaluation", "step", "epoch end", "start-up")
HITS_PER_RUN = 3  # then it runs to its end


class Hit(NamedTuple):
    """What came of one signal.

    Attributes:
      phase: what the run was doing.
      lost_steps: logged, but not in a checkpoint.
      seconds: until the process ended.
      failure: what a stop did wrong; empty if nothing.
    """

    phase: str
    lost_steps: int
    seconds: float
    failure: str


def kill(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """SIGKILL at random moments, some aimed at start-ups, saves and evaluations."""
    tries = ((DECK, 20), (EIGHT, 10), (PAPER, 10), (SMALL, 10)) if full else ((DECK, 2), (SMALL, 1))
    for i, (case, number) in enumerate(tries):
        clean = run_clean(case, folder / f"clean{i}")
        yield interrupted(case, clean, signal.SIGKILL, number, folder / str(i), draw)


def stop(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """The signals that save and stop, at random moments of training; one that is ignored from the
    start.
    """
    # What a shell starts with & or nohup inherits that SIGINT or SIGHUP is ignored, and so would
    # the runs; they do not inherit a handler.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    clean = run_clean(DECK, folder / "clean")
    tries = {signal.SIGTERM: 10, signal.SIGINT: 5}
    tries |= dict.fromkeys(STOP_SIGNALS[2:] if full else (signal.SIGHUP,), 4)
    for number in tries:
        times = tries[number] if full else 1
        yield interrupted(DECK, clean, number, times, folder / str(number), draw)
    yield ignored(clean, 4 if full else 1, folder, draw)


def ignored(clean: Clean, tries: int, folder: Path, draw: random.Random) -> dict:
    """SIGHUP to a run that was started with `nohup`."""
    found = []
    for k in range(tries):
        with Start(DECK, folder / f"nohup{k}", ("nohup",)) as run:
            sent = wait_for_moment(run, "step", clean, draw)
            run.process.send_signal(signal.SIGHUP)
            found.append((f"try {k}", clean.end(run) if sent else "it ended before"))
    name = f"SIGHUP with `nohup`, {DECK.name}"
    return row_of(name, found, "ignored, the same bits")


def interrupted(
    case: Case, clean: Clean, number: signal.Signals, tries: int, folder: Path, draw: random.Random
) -> dict:
    """Sends `tries` signals, a few per run; compares how the runs end with the clean one."""
    folder.mkdir()
    killed = number == signal.SIGKILL
    aims = AIMS if killed else ("step", "evaluation")  # a compilation cannot be interrupted
    hits, ends = [], Counter()
    for k in range(10 * tries):
        workdir, before = folder / str(k), len(hits)
        while len(hits) < min(before + HITS_PER_RUN, tries):
            found = hit(case, workdir, number, aims[len(hits) % len(aims)], clean, draw)
            if found is None:
                break
            hits.append(found)
        with Start(case, workdir) as last:
            end = clean.verdict(workdir) if last.end() == 0 else last.last_words()
        for found in hits[before:]:
            ends[found.failure if end == "same" and found.failure else end] += 1
        shutil.rmtree(workdir)
        if len(hits) == tries:
            break
    lost = max((found.lost_steps for found in hits), default=0)
    counts = dict(
        phases=dict(Counter(found.phase for found in hits)), ends=dict(ends), lost_steps=lost
    )
    if killed:  # the steps since the last save, and those while that save was being written
        target, met = f"≤ {2 * clean.save_steps} steps lost", lost <= 2 * clean.save_steps
    else:
        seconds = [found.seconds for found in hits]
        target = f"exit code {128 + number} within 10 s, nothing lost"
        met, counts = max(seconds, default=0) <= 10, counts | {"seconds": seconds}
    met = met and len(hits) == tries
    name = f"{number.name}, {case.name}"
    return row(name, len(hits), ends["same"], ends["other"], target=target, met=met, **counts)


def hit(
    case: Case, workdir: Path, number: signal.Signals, aim: str, clean: Clean, draw: random.Random
) -> Hit | None:
    """Starts or resumes a run and sends it the signal; None if the run was done before, or was
    about to be.
    """
    with Start(case, workdir) as run:
        if not wait_for_moment(run, aim, clean, draw):
            return None
        phase, (step, _) = phase_of(run, clean), run.last_line()
        began = time.monotonic()
        code = run.end(number)
    seconds, killed = time.monotonic() - began, number == signal.SIGKILL
    if (workdir / "result.json").exists():
        if killed or step == clean.num_steps:
            return None
        return Hit(phase, 0, seconds, f"{number.name} ignored")
    if killed:
        phase = phase_of(run, clean)
    # A run that has not trained yet cannot lose anything.
    lost = 0 if phase == "start-up" else max(run.last_line()[0] - run.newest(), 0)
    failed = not killed and (code != 128 + number or lost)
    return Hit(phase, lost, seconds, f"exit code {code}, {lost} steps lost" if failed else "")


def wait_for_moment(run: Start, aim: str, clean: Clean, draw: random.Random) -> bool:
    """Waits until the signal is to be sent; False if the run ends before."""
    if aim == "start-up":
        return run.wait_s(draw.uniform(0, clean.start_up_s))
    # Steps are drawn, not seconds: the clean run also compiled, the others hit the cache.
    step, line_s = draw.uniform(run.resumed, clean.num_steps), clean.training_s / len(clean.lines)
    reached = run.wait(lambda: run.trained() and run.last_line()[0] > step)
    if not (reached and run.wait_s(draw.uniform(0, line_s))):
        return False
    if aim == "save":
        return run.wait(run.is_saving) and run.wait_s(draw.uniform(0, 0.1))
    if aim == "epoch end":
        return run.wait(lambda: is_evaluated(run))
    if aim == "evaluation":
        return run.wait(lambda: is_evaluating(run, clean)) and run.wait_s(draw.uniform(0, 0.02))
    return True


def is_evaluating(run: Start, clean: Clean) -> bool:
    step, split = run.last_line()
    return split == "train" and step % clean.epoch_steps == 0


def is_evaluated(run: Start) -> bool:
    """Whether an epoch has been evaluated whose checkpoint is not complete yet."""
    step, split = run.last_line()
    return split not in ("train", "") and step > run.newest()


def phase_of(run: Start, clean: Clean) -> str:
    """What a run is doing, or was when it was killed, as its workdir shows."""
    step, _ = run.last_line()
    if not run.trained():
        return "start-up"
    if run.is_saving():
        return "save"
    if is_evaluating(run, clean) or step == clean.num_steps == run.newest():
        return "evaluation"
    return "epoch end" if is_evaluated(run) else "step"
