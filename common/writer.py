"""The metrics of a run: metrics.jsonl, TensorBoard events, curves.png, and a progress bar (lines of
text without a terminal).

Metrics arrive as sums on the device and are fetched one call later, when the next steps are under
way: but for the first, the device never waits.
"""

import json
import math
import os
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import jax
import numpy as np
import rich.progress
from rich.console import Console

from common.curves import draw_curves
from common.errors import NonFiniteError
from common.metrics import summarize
from common.processes import is_first_process
from common.runtime import hidden
from common.workdir import (
    SMALLER_RATE,
    best_of,
    last_finite,
    last_good,
    read_metrics,
    write_atomic,
)

SECONDS_BETWEEN_LINES = 10
SECONDS_BETWEEN_DRAWINGS = 30
SECONDS_BETWEEN_EVENTS = 120  # on disk, unless an evaluation or a checkpoint comes before
CHANCE_STEPS = 200  # with a loss within 1% of chance before a warning; then twice as many, ...


class Writer:
    """Writes the metrics of one run; a context manager. Of several processes only the first
    writes.

    A line of metrics.jsonl holds `step`, `epoch`, `split` and the metrics, one line per step and
    split: lines after `first_step`, and a last line cut off by a kill, are dropped at the start.

    Args:
      workdir: the run's folder.
      first_step: the step to continue from; 0 for a new run.
      num_steps, steps_per_epoch: the length of the run and of an epoch, in steps.
      before: `totals` as saved with the checkpoint of `first_step`; None for a new run.
      chance_loss: the loss of guessing, such as ln(classes); a training loss that stays there is
        reported, with the advice `hint`.
      learning_rate: the schedule, from the number of steps done to the rate of the next, for
        curves.png and error messages; None where there is none.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        first_step: int,
        num_steps: int,
        steps_per_epoch: int,
        before: dict | None = None,
        chance_loss: float | None = None,
        hint: str = "",
        learning_rate: Callable[[int], float] | None = None,
    ):
        self._workdir, self._num_steps = Path(workdir), num_steps
        self._steps_per_epoch = steps_per_epoch
        self._before = before or {
            "images": 0,
            "seconds": 0.0,
            "timed_images": 0,
            "timed_seconds": 0.0,
        }
        self._epoch = self._before.get("epoch", {"number": 0, "errors": 0, "images": 0})
        self._images = self._timed_images = 0
        self._timed_seconds = 0.0
        self._start = time.monotonic()
        self._chunk_start = None  # unknown for the first chunk, which is compiled as well
        self._timed_since = None  # when that one ended, and its step
        self._line_due = self._events_due = 0.0
        self._drawing_due = self._start + SECONDS_BETWEEN_DRAWINGS
        self._pending = None
        self._learning_rate = learning_rate
        self._chance_loss, self._hint = chance_loss, hint
        self._chance_start, self._chance_steps = first_step, CHANCE_STEPS
        self._silent = not is_first_process()
        path = Path(os.devnull) if self._silent else self._workdir / "metrics.jsonl"
        kept = [] if self._silent else _keep_lines(path, first_step)
        self._written = {(record["step"], record["split"]) for record in kept}
        scored = [record for record in kept if record["split"] == "validation"]
        self.validation_errors = dict(self._before.get("validation_errors", ()))
        self.validation_errors |= {record["step"]: record["error_pct"] for record in scored}
        self._file = path.open("a")
        self._events = (
            None if self._silent else _Events(self._workdir, first_step + 1 if first_step else 0)
        )
        self._progress = None
        if sys.stderr.isatty() and not self._silent:
            self._progress = _progress_bar()
            self._task = self._progress.add_task(
                "",
                completed=first_step,
                total=num_steps,
                epoch=first_step / steps_per_epoch,
                speed="",
                metrics="",
                best="",
            )
            self._progress.start()

    def __enter__(self):
        return self

    def __exit__(self, error_type, error, traceback):
        try:
            if error is None:
                self.flush()
        except Exception as found:
            error = found
            raise
        finally:
            if self._progress:
                self._progress.stop()
            endings = [self._file.close]
            if not self._silent:
                endings += [self._events.close, self._draw_curves]
            for end in endings:
                try:
                    end()
                except OSError:  # a full disk, perhaps; an earlier error is the one to report
                    if error is None:
                        raise

    @property
    def images(self) -> int:
        """Images trained, over all resumes."""
        return self._before["images"] + self._images

    @property
    def seconds(self) -> float:
        """Wall time over all resumes, with compilation and evaluation, without lost work."""
        return self._before["seconds"] + time.monotonic() - self._start

    @property
    def images_per_s(self) -> float:
        """Training speed over all resumes, without evaluations and without the first chunk after
        each start, which is compiled. A run of a single chunk has only that: images over wall time.
        """
        seconds = self._before["timed_seconds"] + self._timed_seconds
        if not seconds:
            return self.images / self.seconds
        return (self._before["timed_images"] + self._timed_images) / seconds

    @property
    def epoch_error_pct(self) -> float:
        """Training error of the newest epoch so far, measured while learning; infinite if it has no
        line yet.
        """
        errors, images = self._epoch["errors"], self._epoch["images"]
        return 100.0 * errors / images if images else math.inf

    @property
    def totals(self) -> dict:
        """What to save with a checkpoint; the next writer's `before`."""
        return {
            "images": self.images,
            "seconds": self.seconds,
            "timed_images": self._before["timed_images"] + self._timed_images,
            "timed_seconds": self._before["timed_seconds"] + self._timed_seconds,
            "epoch": self._epoch,
            "validation_errors": list(self.validation_errors.items()),
        }

    def write(self, step: int, split: str, sums: dict) -> None:
        """Takes the sums of `split` ("train", "validation" or "test") at `step`: device arrays
        `loss`, `errors` and `count`.

        Those of training are fetched by the next call; the first at once, because the clock starts
        when they are done. Call `flush` before an evaluation, so that its time does not count as
        training.

        Raises NonFiniteError if a loss, this one or the pending one, is NaN or infinite.
        """
        self._write_pending()
        if split == "train":
            self._pending = (step, sums)
            if self._chunk_start is None:
                self._write_pending()
            return
        self._record(step, split, summarize(jax.device_get(sums)))
        if not self._silent and time.monotonic() >= self._drawing_due:
            self._draw_curves()
            self._drawing_due = time.monotonic() + SECONDS_BETWEEN_DRAWINGS
        if self._chunk_start is not None:
            self._chunk_start = time.monotonic()

    def flush(self) -> None:
        """Puts all metrics so far on disk. Call it before a checkpoint: a resume keeps the lines up
        to its step.
        """
        self._write_pending()
        if not self._silent:  # the null device cannot be synchronized
            os.fsync(self._file.fileno())
            self._events.flush()

    def _write_pending(self) -> None:
        if self._pending is None:
            return
        (step, sums), self._pending = self._pending, None
        sums = jax.device_get(sums)  # waits until these steps are done
        now, images = time.monotonic(), int(np.sum(sums["count"]))
        self._images += images
        self._add_to_epoch(step, int(np.sum(sums["errors"])), images)
        if self._chunk_start is None:
            self._timed_since = now, step
        else:
            self._timed_images += images
            self._timed_seconds += now - self._chunk_start
        self._chunk_start = now
        metrics = summarize(sums)
        self._record(step, "train", metrics)
        self._watch_for_chance(step, metrics["loss"])

    def _add_to_epoch(self, step: int, errors: int, images: int) -> None:
        number = -(-step // self._steps_per_epoch)  # no line covers parts of two
        if number == self._epoch["number"]:
            errors, images = errors + self._epoch["errors"], images + self._epoch["images"]
        self._epoch = {"number": number, "errors": errors, "images": images}

    def _watch_for_chance(self, step: int, loss: float) -> None:
        if self._chance_loss is None:
            return
        if abs(loss - self._chance_loss) > 0.01 * self._chance_loss:
            self._chance_start, self._chance_steps = step, CHANCE_STEPS
        elif step - self._chance_start >= self._chance_steps:
            self.say(
                f"not learning: the training loss has been {loss:.3f} for "
                f"{step - self._chance_start:,} steps; guessing gives {self._chance_loss:.3f}. "
                f"{self._hint}"
            )
            self._chance_steps *= 2

    def _record(self, step: int, split: str, metrics: dict) -> None:
        if not math.isfinite(metrics["loss"]):
            rate = ""
            if self._learning_rate:
                rate = f", learning rate {float(self._learning_rate(step - 1)):.4g}"
            raise NonFiniteError(
                f"the {split} loss is {metrics['loss']} at step {step}{rate}"
                f"{last_finite(self._workdir)}. {last_good(self._workdir)} {SMALLER_RATE}"
            )
        if (step, split) in self._written:
            return  # evaluated again after a resume at this very step
        epoch = step / self._steps_per_epoch
        record = {"step": step, "epoch": epoch, "split": split} | metrics
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if split == "validation":
            self.validation_errors[step] = metrics["error_pct"]
        if not self._silent:
            self._events.write(step, {f"{name}/{split}": value for name, value in metrics.items()})
            if time.monotonic() >= self._events_due:
                self._events.flush()
                self._events_due = time.monotonic() + SECONDS_BETWEEN_EVENTS
        self._show(step, epoch, split, metrics)

    def _show(self, step: int, epoch: float, split: str, metrics: dict) -> None:
        text = f"loss {metrics['loss']:.4f}  error {metrics['error_pct']:.2f}%"
        line = f"step {step:,}/{self._num_steps:,}  epoch {epoch:.2f}  {split} {text}"
        speed = f"{self.images_per_s:,.0f} images/s" if self._timed_seconds else ""
        if self._progress:
            shown = {"metrics": text} if split == "train" else {}
            errors = self.validation_errors
            best = best_of(errors, list(errors))
            if best is not None:
                best_epoch = best / self._steps_per_epoch
                shown["best"] = f"best validation error {errors[best]:.2f}% (epoch {best_epoch:g})"
            self._progress.update(
                self._task,
                completed=step,
                epoch=epoch,
                speed=speed,
                refresh=True,
                **shown,
            )
            if split != "train":
                self.say(line)
        elif split != "train":
            self.say(line)
        elif time.monotonic() >= self._line_due:
            if speed:  # after the first line, which has none, another one follows at once
                self._line_due = time.monotonic() + SECONDS_BETWEEN_LINES
                start, first = self._timed_since
                seconds = (time.monotonic() - start) / (step - first) * (self._num_steps - step)
                speed = f"  {speed}  {timedelta(seconds=round(seconds))} left"
            self.say(line + speed)

    def _draw_curves(self) -> None:
        draw_curves(self._workdir, self._learning_rate)

    def say(self, line: str) -> None:
        """Prints a line on stderr, above the progress bar if there is one."""
        if self._silent:
            return
        if self._progress:
            self._progress.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)


class _Events:
    """A new file of TensorBoard events in `workdir`; TensorBoard hides what older files hold from
    `purge_step` on.

    tensorboardX's own writer writes in a thread; a full disk ends that, and training would wait for
    it forever.
    """

    def __init__(self, workdir: Path, purge_step: int):
        with hidden("torch"):  # which it imports where it can, and does not need here
            from tensorboardX.proto import event_pb2, summary_pb2
            from tensorboardX.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        # Absolute, as it takes gs: and s3: at the beginning for a cloud's storage.
        self._records = RecordWriter(str(workdir.absolute() / name))
        self._add(file_version="brain.Event:2")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(step=purge_step, session_log=start)
        self.flush, self.close = self._records.flush, self._records.close

    def _add(self, **content) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())

    def write(self, step: int, scalars: dict[str, float]) -> None:
        values = [
            self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()
        ]
        self._add(step=step, summary=self._summary(value=values))


def _keep_lines(path: Path, first_step: int) -> list[dict]:
    """Drops the lines after the checkpoint that we continue from; returns those that stay."""
    records = read_metrics(path.parent) if first_step else []
    kept = [record for record in records if record["step"] <= first_step]
    write_atomic(path, "".join(json.dumps(record) + "\n" for record in kept))
    return kept


def _progress_bar() -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("epoch {task.fields[epoch]:.1f}"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TextColumn("{task.fields[speed]}"),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.fields[metrics]}"),
        rich.progress.TextColumn("{task.fields[best]}"),
        console=Console(stderr=True),
        refresh_per_second=4,
    )
