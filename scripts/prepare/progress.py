"""Progress of a preparation: a bar on a terminal, plain lines otherwise."""

import datetime
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from scripts.prepare.imagenet import Shard

LINE_EVERY_S = 10.0  # without a terminal


class ShardProgress:
    """Called with each finished shard; a context manager. Corrupt files are printed at once."""

    def __init__(self, dataset: str, num_files: int):
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task(dataset, total=num_files, speed="")
        self._num_files = num_files
        self._done = self._resumed = 0  # files; those of earlier runs
        self._start = self._last_line = time.monotonic()

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *_):
        self._bar.stop()

    def __call__(self, shard: Shard) -> None:
        for name, reason in shard.damaged:
            self._bar.console.print(
                f"corrupt: {name} ({reason})", markup=False, highlight=False, soft_wrap=True
            )
        num_files = shard.count + len(shard.damaged)
        self._done += num_files
        self._resumed += num_files * shard.resumed
        now = time.monotonic()
        images_per_s = (self._done - self._resumed) / max(now - self._start, 1e-9)
        speed = f"{images_per_s:.0f} images/s"
        if images_per_s:
            left_s = round((self._num_files - self._done) / images_per_s)
            speed += f", {datetime.timedelta(seconds=left_s)} left"
        self._bar.update(self._task, completed=self._done, speed=speed)
        is_due = now - self._last_line > LINE_EVERY_S or self._done == self._num_files
        if self._bar.disable and is_due:
            self._last_line = now
            print(f"{self._done:,} of {self._num_files:,} files, {speed}", flush=True)
