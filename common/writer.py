"""What a run tells: metrics.jsonl, TensorBoard events, curves.png, and a progress bar (plain lines without a terminal).

Numbers arrive as sums on the device and are fetched one call later, when the next steps are under way: the device never waits.
"""

import io
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

from common.checkpoint import SMALLER_RATE, last_good
from common.errors import NonFiniteError
from common.metrics import summarize
from common.parallel import is_first_process

SECONDS_BETWEEN_LINES = 10
SECONDS_BETWEEN_DRAWINGS = 30
SECONDS_BETWEEN_EVENTS = 120  # on disk, unless an evaluation or a checkpoint puts them there sooner
CHANCE_STEPS = 200  # so long may a training loss stay within 1% of chance before it is spoken of; then twice as long, and so on


class Writer:
    """Writes the metrics of one run; a context manager. Of several processes the first alone writes.

    A line of metrics.jsonl holds `step`, `epoch`, `split` and the metrics. Each step stands there once per split, whatever
    happened before: lines after `first_step`, and a last line torn by a kill, are dropped at the start.

    Args:
      workdir: the run's folder.
      first_step: the step to continue from; 0 for a new run.
      num_steps, steps_per_epoch: the length of the run and of an epoch, in steps.
      before: `totals` as saved with the checkpoint of `first_step`; None for a new run.
      chance_loss: the loss of a network that knows nothing, such as ln(classes); where training stays at it for long, this is
        said, with the advice `hint`.
      learning_rate: the schedule, from the number of steps done to the rate of the next; only to name it in an error.
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
        self._workdir, self._first_step, self._num_steps = Path(workdir), first_step, num_steps
        self._steps_per_epoch = steps_per_epoch
        self._before = before or {"images": 0, "seconds": 0.0, "timed_images": 0, "timed_seconds": 0.0}
        self._images = self._timed_images = 0
        self._timed_seconds = 0.0
        self._start = time.monotonic()
        self._chunk_start = None  # unknown for the first chunk, which is compiled as well
        self._line_due = self._drawing_due = self._events_due = 0.0
        self._pending = None
        self._learning_rate = learning_rate
        self._chance_loss, self._hint = chance_loss, hint
        self._chance_start, self._chance_steps = first_step, CHANCE_STEPS
        self._silent = not is_first_process()
        path = Path(os.devnull) if self._silent else self._workdir / "metrics.jsonl"
        self._written = set() if self._silent else _keep_lines(path, first_step)
        self._file = path.open("a")
        self._events = None if self._silent else _Events(self._workdir, first_step + 1 if first_step else 0)
        self._progress = None
        if sys.stderr.isatty() and not self._silent:
            self._progress = _progress_bar()
            self._task = self._progress.add_task(
                "", completed=first_step, total=num_steps, epoch=first_step / steps_per_epoch, speed="", metrics="",
            )  # fmt: skip
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
            endings += [] if self._silent else [self._events.close, lambda: draw_curves(self._workdir)]
            for end in endings:
                try:
                    end()
                except OSError:  # such as a full disk: no news where another error has come first, which is to be told
                    if error is None:
                        raise

    @property
    def images(self) -> int:
        """Images trained, over all resumes."""
        return self._before["images"] + self._images

    @property
    def seconds(self) -> float:
        """Wall time since the writers were made, over all resumes: compilation and evaluation included, lost work not."""
        return self._before["seconds"] + time.monotonic() - self._start

    @property
    def images_per_s(self) -> float:
        """Training speed over all resumes. The first chunk after each start (compilation) and evaluations do not count.

        A run of a single chunk has nothing else: then it is images over wall time.
        """
        seconds = self._before["timed_seconds"] + self._timed_seconds
        if not seconds:
            return self.images / self.seconds
        return (self._before["timed_images"] + self._timed_images) / seconds

    @property
    def totals(self) -> dict:
        """What to save with a checkpoint, and to give to the next writer as `before`."""
        return {
            "images": self.images,
            "seconds": self.seconds,
            "timed_images": self._before["timed_images"] + self._timed_images,
            "timed_seconds": self._before["timed_seconds"] + self._timed_seconds,
        }

    def write(self, step: int, split: str, sums: dict) -> None:
        """Takes the sums of `split` ("train", "validation" or "test") at `step`: device arrays `loss`, `errors` and `count`.

        Those of training are fetched by the next call. Call `flush` before an evaluation, so that its time does not count as
        training.

        Raises:
          NonFiniteError: a loss, this one or the one waiting, is NaN or infinite.
        """
        self._write_pending()
        if split == "train":
            self._pending = (step, sums)
            return
        self._record(step, split, summarize(jax.device_get(sums)))
        if not self._silent and time.monotonic() >= self._drawing_due:
            draw_curves(self._workdir)
            self._drawing_due = time.monotonic() + SECONDS_BETWEEN_DRAWINGS
        self._chunk_start = time.monotonic()

    def flush(self) -> None:
        """Puts everything given so far on disk. Call it before a checkpoint: a resume keeps the lines up to its step."""
        self._write_pending()
        self._file.flush()
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
        if self._chunk_start is not None:
            self._timed_images += images
            self._timed_seconds += now - self._chunk_start
        self._chunk_start = now
        metrics = summarize(sums)
        self._record(step, "train", metrics)
        self._watch_for_chance(step, metrics["loss"])

    def _watch_for_chance(self, step: int, loss: float) -> None:
        if self._chance_loss is None:
            return
        if abs(loss - self._chance_loss) > 0.01 * self._chance_loss:
            self._chance_start, self._chance_steps = step, CHANCE_STEPS
        elif step - self._chance_start >= self._chance_steps:
            self.say(
                f"not learning: for {step - self._chance_start:,} steps the training loss has been {loss:.3f}; guessing gives "
                f"{self._chance_loss:.3f}. {self._hint}"
            )
            self._chance_steps *= 2

    def _record(self, step: int, split: str, metrics: dict) -> None:
        if not math.isfinite(metrics["loss"]):
            rate = f", learning rate {float(self._learning_rate(step - 1)):.4g}" if self._learning_rate else ""
            raise NonFiniteError(
                f"the {split} loss is {metrics['loss']} at step {step}{rate}{last_finite(self._workdir)}. "
                f"{last_good(self._workdir)} {SMALLER_RATE}"
            )
        if (step, split) in self._written:
            return  # evaluated again after a resume at this very step
        epoch = step / self._steps_per_epoch
        self._file.write(json.dumps({"step": step, "epoch": epoch, "split": split} | metrics) + "\n")
        self._file.flush()
        if not self._silent:
            self._events.write(step, {f"{name}/{split}": value for name, value in metrics.items()})
            if time.monotonic() >= self._events_due:
                self._events.flush()
                self._events_due = time.monotonic() + SECONDS_BETWEEN_EVENTS
        self._show(step, epoch, split, metrics)

    def _show(self, step: int, epoch: float, split: str, metrics: dict) -> None:
        text = f"loss {metrics['loss']:.4f}  error {metrics['error_pct']:.2f}%"
        line = f"step {step:,}/{self._num_steps:,}  epoch {epoch:.2f}  {split} {text}"
        if self._progress:
            shown = {"metrics": text} if split == "train" else {}
            self._progress.update(
                self._task, completed=step, epoch=epoch, speed=f"{self.images_per_s:,.0f} images/s", refresh=True, **shown
            )
            if split != "train":
                self.say(line)
        elif split != "train":
            self.say(line)
        elif time.monotonic() >= self._line_due:
            self._line_due = time.monotonic() + SECONDS_BETWEEN_LINES
            done, elapsed = step - self._first_step, time.monotonic() - self._start
            remaining = timedelta(seconds=round(elapsed / max(done, 1) * (self._num_steps - step)))
            speed = f"  {self.images_per_s:,.0f} images/s  {remaining} left" if self.images_per_s else ""
            self.say(line + speed)

    def say(self, line: str) -> None:
        """Prints a line, above the progress bar where there is one."""
        if self._silent:
            return
        if self._progress:
            self._progress.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)


class _Events:
    """A new file of TensorBoard events in `workdir`; TensorBoard hides what older files hold from `purge_step` on.

    tensorboardX's own writer leaves the file to a thread, which a full disk ends: then the training would wait for it forever.
    """

    def __init__(self, workdir: Path, purge_step: int):
        from tensorboardX.proto import event_pb2, summary_pb2  # here, because it imports PyTorch if that is there: a second
        from tensorboardX.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._records = RecordWriter(str(workdir / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"))
        self._add(file_version="brain.Event:2")
        self._add(step=purge_step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
        self.flush, self.close = self._records.flush, self._records.close

    def _add(self, **content) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())

    def write(self, step: int, scalars: dict[str, float]) -> None:
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._add(step=step, summary=self._summary(value=values))


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes a whole file or nothing, even if the machine stops in between."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_metrics(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl, without one torn by a kill."""
    path = workdir / "metrics.jsonl"
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def last_finite(workdir: Path) -> str:
    """For an error message: the newest training loss in metrics.jsonl, which takes finite ones only; "" where there is none."""
    losses = [record for record in read_metrics(workdir) if record["split"] == "train"]
    return f" (last finite loss: {losses[-1]['loss']:.4g} at step {losses[-1]['step']})" if losses else ""


def _keep_lines(path: Path, first_step: int) -> set[tuple[int, str]]:
    """Drops what lies beyond the checkpoint we continue from. Returns the (step, split) of the lines that stay."""
    kept = [record for record in read_metrics(path.parent) if first_step and record["step"] <= first_step]
    write_atomic(path, "".join(json.dumps(record) + "\n" for record in kept))
    return {(record["step"], record["split"]) for record in kept}


def _progress_bar() -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("epoch {task.fields[epoch]:.1f}"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TextColumn("{task.fields[speed]}"),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.fields[metrics]}"),
        console=Console(stderr=True),
        refresh_per_second=4,
    )


def draw_curves(workdir: Path) -> None:
    """Draws curves.png from metrics.jsonl: the error in percent over the epochs, for each split that was tracked."""
    from matplotlib.figure import Figure  # here, because importing it takes half a second
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    curves = error_curves(read_metrics(workdir))
    if not curves:
        return
    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    looks = {
        "train": ("training (while learning)", "#8a9bb0"),
        "validation": ("validation", "#c8452d"),
        "test": ("test", "#1f5a92"),
    }
    for split, (label, color) in looks.items():
        if split in curves:
            epochs, errors = zip(*curves[split], strict=True)
            marker = "o" if len(epochs) <= 30 else None
            axes.plot(
                epochs, errors, color=color, label=f"{label}: {errors[-1]:.2f}%", linewidth=1.8, marker=marker, markersize=3.5
            )
    positive = [error for curve in curves.values() for _, error in curve if error > 0]
    if positive and max(positive) > 4 * min(positive):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{error:g}%"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(left=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("error")
    axes.set_title(workdir.absolute().name, loc="left", fontsize=11)
    axes.grid(which="major", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_atomic(workdir / "curves.png", image.getvalue())


def error_curves(records: list[dict]) -> dict[str, list[tuple[float, float]]]:
    """Split -> (epoch, error in percent): one point per evaluation, and for training the mean over each epoch."""
    curves, epochs, last_step = {}, {}, 0
    for record in records:
        if record["split"] == "train":
            steps = record["step"] - last_step
            last_step = record["step"]
            epochs.setdefault(math.ceil(record["epoch"]), []).append((record["epoch"], record["error_pct"], steps))
        else:
            curves.setdefault(record["split"], []).append((record["epoch"], record["error_pct"]))
    for points in epochs.values():
        error = sum(error * steps for _, error, steps in points) / sum(steps for _, _, steps in points)
        curves.setdefault("train", []).append((points[-1][0], error))
    return curves
