"""Several processes as one run: joining them (`--multihost`), and what they tell each other.

Every function that communicates must be called by all processes at the same place; with a single
process each is the identity.
"""

import dataclasses
import json
import os
import re
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from common.errors import INTERRUPTED, UserError

# Settings that may differ between the processes of one run.
PER_PROCESS = ("data_dir", "num_workers")


def is_first_process() -> bool:
    """Whether this process is the one that writes: process 0, or the only one."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def broadcast(*values):
    """The first process's numbers, in all processes, as a tuple. Also a barrier."""
    if not jax.distributed.is_initialized():
        return values
    return tuple(
        np.asarray(value).item()
        for value in multihost_utils.broadcast_one_to_all(tuple(map(np.asarray, values)))
    )


def all_gather_text(text: str) -> list[str]:
    """The `text` of each process, in all of them, ordered by process."""
    if not jax.distributed.is_initialized():
        return [text]
    content = np.frombuffer(text.encode(), np.uint8)
    lengths = _all_gather(len(content)).ravel()
    contents = multihost_utils.process_allgather(np.pad(content, (0, lengths.max() - len(content))))
    return [
        row[:length].tobytes().decode()
        for row, length in zip(np.asarray(contents), lengths, strict=True)
    ]


def all_true(value: bool) -> bool:
    """Whether `value` is true in all processes."""
    return bool(_all_gather(value).all()) if jax.distributed.is_initialized() else value


def agreed(stop_requested: Callable[[], int | None]) -> Callable[[], int | None]:
    """`stop_requested` with the same answer in all processes: the highest signal number that any of
    them received, or None.

    A scheduler's signal reaches the processes at different moments, but they must stop at the same
    step.
    """
    if not jax.distributed.is_initialized():
        return stop_requested
    return lambda: int(_all_gather(stop_requested() or 0).max()) or None


def _all_gather(number) -> np.ndarray:
    return multihost_utils.process_allgather(np.int32(number))


class Processes(NamedTuple):
    """The flags that join several processes into one run; none of them is a setting of the run."""

    multihost: bool = False
    coordinator_address: str = ""
    num_processes: int = -1
    process_id: int = -1

    @staticmethod
    def define(flag_values: flags.FlagValues) -> None:
        """Declares the flags."""
        own, elsewhere = dict(flag_values=flag_values), "With --multihost elsewhere than there: "
        what = "Join several processes into one run: under SLURM, Kubernetes, or on TPU slices."
        flags.DEFINE_boolean("multihost", False, what, **own)
        what = f"{elsewhere}HOST:PORT of process 0, the same in all processes."
        flags.DEFINE_string("coordinator_address", "", what, **own)
        numbers = {
            "num_processes": "the number of processes.",
            "process_id": "the number of this process, from 0.",
        }
        for name, what in numbers.items():
            flags.DEFINE_integer(name, -1, f"{elsewhere}{what}", lower_bound=-1, **own)

    @classmethod
    def read(cls, flag_values: flags.FlagValues) -> "Processes":
        """The parsed flags. Raises UserError where one of them needs another."""
        given = cls(*(flag_values[name].value for name in cls._fields))
        manual = [
            given.coordinator_address != "",
            given.num_processes != -1,
            given.process_id != -1,
        ]
        if not any(manual):
            return given
        if not (given.multihost and all(manual) and given.process_id < given.num_processes):
            raise UserError(
                "--coordinator_address, --num_processes and --process_id (0 to --num_processes - 1)"
                " need each other and --multihost"
            )
        if not re.fullmatch(r".+:\d+", given.coordinator_address):
            raise UserError(
                f"--coordinator_address={given.coordinator_address} must be HOST:PORT, "
                "such as host0:8476"
            )
        return given

    def start(self) -> None:
        """Joins the processes. Raises UserError where that fails."""
        if not self.multihost:
            return
        manual = {
            name: value
            for name, value in self._asdict().items()
            if value not in ("", -1) and name != "multihost"
        }
        # In another thread: it waits for the others in C code, for minutes, where the main thread
        # could not receive Ctrl-C.
        joining = ThreadPoolExecutor(1).submit(jax.distributed.initialize, **manual)
        try:
            joining.result()
        except KeyboardInterrupt:
            print(INTERRUPTED, file=sys.stderr, flush=True)
            os._exit(130)  # the waiting thread cannot be stopped, and there is nothing to lose
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"--multihost: {' '.join(str(error).split())[:200]}. Outside SLURM, Kubernetes and "
                "TPU slices add --coordinator_address=HOST:PORT --num_processes=N --process_id=K, "
                "the same address in all processes, K from 0 to N - 1."
            ) from error


def require_same_flags(config) -> None:
    """Raises UserError, in all processes, unless all have the same settings."""
    first, *others = map(json.loads, all_gather_text(json.dumps(dataclasses.asdict(config))))
    for number, other in enumerate(others, start=1):
        for name, value in first.items():
            if name not in PER_PROCESS and other.get(name) != value:
                raise UserError(
                    f"--{name} is {value} in process 0 and {other.get(name)} in process {number}: "
                    "all processes of a run need the same flags, except "
                    f"{' and '.join(f'--{name}' for name in PER_PROCESS)}."
                )


def require_same_workdir(workdir: Path) -> None:
    """Raises UserError, in all processes, unless they share `workdir`: each writes its part of a
    checkpoint there.
    """
    # A new name each time: it is not left over from an earlier run, and no network file system has
    # cached that it does not exist.
    mark = workdir / f".{all_gather_text(uuid.uuid4().hex)[0]}"
    if is_first_process():
        mark.touch()
    broadcast(0)  # barrier: the file exists
    shared = all_true(mark.exists())
    if is_first_process():
        mark.unlink()
    if not shared:
        raise UserError(
            f"--workdir={workdir} is not the same folder in all processes: it must be on a disk "
            "that they share."
        )
