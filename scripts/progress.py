"""Progress of work on many files: a bar on a terminal, plain lines otherwise."""

import datetime
import sys
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

LINE_EVERY_S = 10.0  # without a terminal


class FileProgress:
    """A context manager; `advance` is called as files are done.

    Args:
      lines: where the plain lines go; None: there are none, and no bar.
    """

    def __init__(self, description: str, num_files: int, lines: TextIO | None):
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            console=Console(stderr=True),
            disable=lines is None or not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task(description, total=num_files, speed="")
        self._num_files, self._lines = num_files, lines
        self._done = self._resumed = 0  # files; those of earlier runs
        self._start = self._last_line = time.monotonic()

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *_):
        self._bar.stop()

    def print(self, line: str) -> None:
        """A line on stderr, above the bar."""
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def advance(self, num_files: int, *, resumed: bool = False) -> None:
        """So many more are done; `resumed`: by an earlier run, which does not count as speed."""
        self._done += num_files
        self._resumed += num_files * resumed
        now = time.monotonic()
        images_per_s = (self._done - self._resumed) / max(now - self._start, 1e-9)
        speed = f"{images_per_s:.0f} images/s"
        if images_per_s:
            left_s = round((self._num_files - self._done) / images_per_s)
            speed += f", {datetime.timedelta(seconds=left_s)} left"
        self._bar.update(self._task, completed=self._done, speed=speed)
        is_due = now - self._last_line > LINE_EVERY_S or self._done == self._num_files
        if self._bar.disable and is_due and self._lines:
            self._last_line = now
            line = f"{self._done:,} of {self._num_files:,} files, {speed}"
            print(line, file=self._lines, flush=True)
