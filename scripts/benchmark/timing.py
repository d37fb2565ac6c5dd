"""How a case times its work: repeated calls, the forms of PyTorch, processes of their own."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax

from scripts.benchmark.machine import accelerated

ROOT = Path(__file__).parents[2]
PEERS = importlib.util.find_spec("torch") is not None
MIN_S = 0.3  # how long repeated work is measured, so that what the other side left behind is small
QUEUED = 40  # calls that an accelerator has queued before their outputs are waited for


class Setting(NamedTuple):
    """What every suite is given. smallest: the least work that gives each row. data_dir: where
    prepared sets are. work: a temporary folder.
    """

    smallest: bool
    data_dir: str
    work: Path


def torch_peers() -> ModuleType | None:
    """The package of that name, or None without PyTorch. It computes where JAX does."""
    if not PEERS:
        return None
    if not accelerated():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from scripts.benchmark import torch_peers  # slow, and PyTorch need not be installed

    return torch_peers


def forms(setting: Setting, *, one_thread: bool = False, norms: bool = False) -> list[str]:
    """The PyTorch forms to try; none of them compiled for `--smallest`."""
    if not PEERS:
        return []
    names = ["eager", "channels-last", "compiled"] + ["channels-last, norms compiled"] * norms
    if one_thread and not accelerated():
        names += ["eager, 1 thread", "channels-last, 1 thread", "compiled, 1 thread"]
    return [name for name in names if not (setting.smallest and "compiled" in name)]


def timed(
    setting: Setting,
    run: Callable[[], Any],
    *,
    wait=jax.block_until_ready,
    one_by_one: bool = False,
) -> Callable[[], float]:
    """Returns a function that measures the seconds per call of `run`: of as many calls as fit in
    MIN_S, after one as a warm-up.

    On a CPU, or if `one_by_one`, it waits for the outputs of each call; else for those of every
    QUEUED-th, so that calls queue up as in training.
    """
    queued = 1 if one_by_one or setting.smallest or not accelerated() else QUEUED

    def measure() -> float:
        wait(run())
        start, runs, took = time.perf_counter(), 0, 0.0
        while not runs or (took < MIN_S and not setting.smallest):
            for _ in range(queued):
                outputs = run()
            wait(outputs)
            runs, took = runs + queued, time.perf_counter() - start
        return took / runs

    return measure


def timed_theirs(setting: Setting, run: Callable[[], Any], **options) -> Callable[[], float]:
    """The same for PyTorch."""
    return timed(setting, run, wait=lambda _: torch_peers().wait(), **options)


def rate(measure: Callable[[], float], count: int) -> Callable[[], tuple[float]]:
    """`count` per measured second."""
    return lambda: (count / measure(),)


def span(measure: Callable[[], float], unit_s: float, count: int = 1) -> Callable[[], tuple[float]]:
    """Measured time for each of `count`, in units of `unit_s` seconds."""
    return lambda: (measure() / count / unit_s,)


# Prints [what the call returned, the process's peak memory in MB]. On Linux ru_maxrss would start
# at the memory of the parent process.
IN_PROCESS = """
import json, re, resource, sys, {module} as module
number = module.{call}
peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
if sys.platform == "linux":
    peak_mb = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024 / 1e6
print(json.dumps([number, peak_mb]))
"""


def in_process(
    module: str, call: str, processes: int = 1, **environment: str
) -> tuple[float, float]:
    """What a call of a function of `module` returns in a Python process of its own, and the peak
    memory of that process, MB.

    With several `processes`, which find each other as torchrun's do: the largest number, and their
    memory added up.
    """
    code = IN_PROCESS.format(module=module, call=call)
    if processes > 1:
        environment |= dict(
            MASTER_ADDR="localhost", MASTER_PORT=str(free_port()), WORLD_SIZE=str(processes)
        )

    def run(rank: int) -> tuple[float, float]:
        variables = os.environ | environment | {"RANK": str(rank)}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{call}: {done.stderr}")
        return json.loads(done.stdout.splitlines()[-1])

    with ThreadPoolExecutor(processes) as threads:
        numbers, peaks_mb = zip(*threads.map(run, range(processes)), strict=True)
    return max(numbers), sum(peaks_mb)


def free_port() -> int:
    """A free TCP port of this machine."""
    with socket.socket() as opened:
        opened.bind(("localhost", 0))
        return opened.getsockname()[1]
