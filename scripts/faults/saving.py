"""What saving a checkpoint costs."""

import random
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import alexnet.config
import alexnet.train
from common.checkpoint import Checkpointer
from common.errors import Interrupted
from common.loop import fit
from common.workdir import saved_steps
from scripts.faults.runs import is_saving, row


def save(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """The cost of saving AlexNet (--full: all of its 62,378,344 parameters, and momentum), in this
    process.

    It is the time that the loop waits in a save, and by how much the steps during its write exceed
    the median of those between saves. (The first steps of a process are slower.)
    """
    every, saves = (9, 10) if full else (4, 3)
    settings = {} if full else dict(widths="small", crop_size=32, conv1_padding="symmetric")
    settings |= dict(validation_size=8, batch_size=32 if full else 16, save_every_steps=every)
    config = alexnet.config.Config(dataset="fake", **settings)
    times, writing, waits, complete = timed_training(config, folder / "run", (saves + 1) * every)
    took = np.diff(times)  # from the second step on
    idle = [took[k] for k in range(every, len(took)) if not writing[k] and (k + 1) % every]
    quiet = float(np.median(idle or took[1 : every - 1]))  # or: a write takes all steps
    costs = []
    # Each save: the step that contains it, and those after it.
    for first in range(every - 1, saves * every, every):
        busy = [took[k] for k in range(first, first + every) if k == first or writing[k]]
        costs.append(float(sum(busy) - quiet * len(busy)))
    share_pct = 100 * statistics.median(costs) / (100 * quiet)
    wait_s = statistics.median(waits[:saves])
    what = f"a save per 100 steps of {quiet:.2f} s, the loop waiting {wait_s:.2f} s"
    name = f"AlexNet{'' if full else ' `small`'} saved, {config.batch_size} images per step"
    yield row(
        name,
        len(costs),
        sum(complete[:saves]),
        target="≤ 2% of the time",
        met=share_pct <= 2,
        seconds=costs,
        stalls_s=waits[:saves],
        step_s=quiet,
        share_pct=share_pct,
        outcomes={what: len(costs)},
    )


def timed_training(
    config, workdir: Path, num_steps: int
) -> tuple[list, list[bool], list[float], list[bool]]:
    """Trains for `num_steps`.

    Returns:
      Before each step: when, and whether a checkpoint was being written. Of each save: the seconds
      that the loop waited, and whether it was complete when the next one began.
    """
    times, writing, waits, complete, steps = [], [], [], [], []
    task = alexnet.train.make_task(config)

    def timed_train(*args):
        times.append(time.monotonic())
        writing.append(is_saving(workdir))
        return task.train(*args)

    def stop_requested() -> int | None:
        return signal.SIGTERM if len(times) == num_steps else None

    def timed_save(checkpointer, step, *args):
        began = time.monotonic()
        original(checkpointer, step, *args)
        waits.append(time.monotonic() - began)
        complete.append(not steps or steps[-1] in saved_steps(workdir))
        steps.append(step)

    original, Checkpointer.save = Checkpointer.save, timed_save
    try:
        # One long epoch: no scores in between, and no other saves.
        long = {"train_examples": 10**6 * config.batch_size}
        fit(task._replace(train=timed_train, training_set=long), workdir, stop_requested)
    except Interrupted:
        pass
    finally:
        Checkpointer.save = original
    return times, writing, waits, complete[1:]
