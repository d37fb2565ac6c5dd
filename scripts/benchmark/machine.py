"""What this machine can do at most."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common import provenance
from scripts.benchmark.measure import seconds

CORES = provenance.cores()


def best_seconds(run: Callable[[], Any], times: int = 5) -> float:
    """The shortest of several calls, after one as a warm-up."""
    run()
    return min(seconds(run) for _ in range(times))


def accelerated() -> bool:
    """Whether JAX computes on an accelerator rather than the CPU."""
    return jax.default_backend() != "cpu"


def has_bfloat16() -> bool:
    """Whether the hardware has bfloat16 instructions."""
    cpuinfo = Path("/proc/cpuinfo")
    return accelerated() or (cpuinfo.exists() and "bf16" in cpuinfo.read_text())


def load_average() -> list[float]:
    """Runnable processes over the last 1, 5 and 15 minutes."""
    return [round(load, 2) for load in os.getloadavg()]


def matmul_peak(dtype: str = "float32") -> float:
    """FLOP/s of a square matrix product, the best of ten.

    On a CPU: 2048 x 2048 in float32 whatever the `dtype`, by JAX or NumPy, whichever is faster. On
    an accelerator: 8192 x 8192 (float32 on a GPU is TF32).
    """
    return _matmul_peak(dtype if accelerated() else "float32")


@functools.cache
def _matmul_peak(dtype: str) -> float:
    n = 8192 if accelerated() else 2048
    a, product = np.random.default_rng(0).standard_normal((n, n), np.float32), jax.jit(jnp.matmul)
    b = jnp.asarray(a, dtype)
    best = best_seconds(lambda: product(b, b).block_until_ready(), 10)
    if not accelerated():
        best = min(best, best_seconds(lambda: a @ a, 10))
    return 2 * n**3 / best


@functools.cache
def copy_bandwidth(*, on_host: bool = False) -> float:
    """Bytes per second, read plus written, of a copy in memory, the best of ten: 1 GB on an
    accelerator, unless `on_host`, else 256 MB on all cores.
    """
    if accelerated() and not on_host:
        x, copied = jnp.ones(2**28, jnp.float32), jax.jit(lambda x: x + 1)
        return 2 * x.nbytes / best_seconds(lambda: copied(x).block_until_ready(), 10)
    source, target = (np.ones(2**26, np.float32) for _ in range(2))
    parts = [slice(i * len(source) // CORES, (i + 1) * len(source) // CORES) for i in range(CORES)]

    def copy(part: slice) -> None:
        np.copyto(target[part], source[part])

    with ThreadPoolExecutor(CORES) as threads:
        return 2 * source.nbytes / best_seconds(lambda: list(threads.map(copy, parts)), 10)
