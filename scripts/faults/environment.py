"""Settings of the environment that a run was not written for."""

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

from scripts.faults.runs import TINY, TINY_SMALL, Start, row_of, run_clean, score

JAX = (
    *("JAX_ENABLE_X64=1", "JAX_NUMPY_RANK_PROMOTION=raise"),
    *("JAX_DEFAULT_MATMUL_PRECISION=bfloat16", "JAX_DEBUG_NANS=1", "JAX_DISABLE_JIT=1"),
    *("JAX_DEFAULT_PRNG_IMPL=rbg", "JAX_NUMPY_DTYPE_PROMOTION=strict"),
)
HOMELESS = ("env", "-u", "HOME", "-u", "XDG_CACHE_HOME")
SYSTEM = {
    "no HOME": HOMELESS,
    "a home that cannot be written": (*HOMELESS, "HOME=/proc"),
    "a user without a name": ("unshare", "--map-user=12345", *HOMELESS),
    "an ASCII locale": ("env", "LC_ALL=C", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0"),
    "4 GB of addresses": ("sh", "-c", 'ulimit -v 4000000; exec "$0" "$@"'),
    "2 GB of addresses": ("sh", "-c", 'ulimit -v 2000000; exec "$0" "$@"'),
}


def environment(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """JAX's variables, each by itself and all at once; the user, the locale, limits."""
    together = {"JAX's all at once, no HOME": (*HOMELESS, *JAX)}
    each = {setting: ("env", setting) for setting in JAX} | SYSTEM
    found = []
    tries = [(TINY, each | together), (TINY_SMALL, together)] if full else [(TINY, together)]
    for case, commands in tries:
        clean = run_clean(case, folder / f"clean, {case.name}")
        for setting, prefix in commands.items():
            name = f"{setting}, {case.name}"
            if subprocess.run([*prefix, "true"]).returncode:
                if full:  # a published table says so
                    found.append((name, "not permitted here"))
                continue
            with Start(case, folder / name, prefix) as run:
                end = clean.end(run)
            found.append((name, score(run.workdir, prefix) if end == "same" else end))
    target = "the same bits, the same error in `evaluate`"
    yield row_of("settings of the environment", found, target)
