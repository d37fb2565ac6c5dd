"""From the start of a process to its first step."""

import functools
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lenet.data import DIGITS
from scripts.benchmark.machine import best_seconds
from scripts.benchmark.measure import Case
from scripts.benchmark.timing import PEERS, ROOT, Setting

CONTAINS = (
    "Python's start, imports, the embedded digits (decoded before), the first step of batch 128; "
    "ours is `python -m lenet.train` up to its first line of metrics. Limit: the imports of "
    "lenet.train alone."
)


def startup(setting: Setting) -> Iterator[Case]:
    """From the start of a process to its first step."""
    imports = [sys.executable, "-c", "import lenet.train"]
    imports_s = best_seconds(lambda: subprocess.run(imports, cwd=ROOT, check=True), 2)
    fresh = (setting.work / f"cache{i}" for i in itertools.count())
    kept = itertools.repeat(setting.work / "cache")
    first_step(setting.work / "start", kept)  # fills it
    for name, caches in (("empty compile cache", fresh), ("warm compile cache", kept)):
        yield Case(
            ((f"lenet.train to the first step, {name}", "s"),),
            functools.partial(first_step, setting.work / "start", caches),
            {"eager": first_step_theirs} if PEERS else {},
            CONTAINS,
            (imports_s,),
        )


def first_step(workdir: Path, caches: Iterator[Path]) -> tuple[float]:
    """Seconds of `lenet.train` with the next compile cache."""
    shutil.rmtree(workdir, ignore_errors=True)
    command = [sys.executable, "-m", "lenet.train", f"--workdir={workdir}", "--dataset=mnist10k"]
    command += ["--validation_size=500", "--train_size=128", "--num_epochs=1"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(next(caches))}
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics, start = workdir / "metrics.jsonl", time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, env=environment, **quiet) as process:
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended without a step")
            time.sleep(0.005)
        took = time.perf_counter() - start
        process.kill()  # what was compiled so far is in its cache
    return (took,)


def first_step_theirs() -> tuple[float]:
    """Seconds of PyTorch's."""
    code = f"from scripts.benchmark import torch_peers\ntorch_peers.first_step({str(DIGITS)!r})"
    command, start = [sys.executable, "-c", code], time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        if not process.stdout.readline():
            raise RuntimeError("PyTorch's first step failed")
        return (time.perf_counter() - start,)
