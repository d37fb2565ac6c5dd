"""The suites by name, and one of them: measured, printed, and written to the file."""

import gc
import importlib.metadata
import json
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

from common import provenance, runtime
from common.workdir import write_atomic
from scripts.benchmark import alexnet, lenet
from scripts.benchmark.attempts import attempts
from scripts.benchmark.checkpoints import checkpoints
from scripts.benchmark.growth import growth
from scripts.benchmark.machine import copy_bandwidth, load_average, matmul_peak
from scripts.benchmark.measure import A_PART, ANOTHER_FORM, measure
from scripts.benchmark.ops import ops
from scripts.benchmark.profile import profile
from scripts.benchmark.race import time_to_accuracy
from scripts.benchmark.reading import input_batches
from scripts.benchmark.startup import startup
from scripts.benchmark.timing import PEERS, Setting
from scripts.prepare.workers import worker_pool
from scripts.report.results import kept_rows
from scripts.report.speed import with_range

SUITES = {
    "lenet_train": lenet.train,
    "lenet_predict": lenet.predict,
    "alexnet_train": alexnet.train,
    "alexnet_predict": alexnet.predict,
    "cifar_train": alexnet.cifar_train,
    "ops": ops,
    "attempts": attempts,
    "profile": profile,
    "input": input_batches,
    "startup": startup,
    "checkpoint": checkpoints,
    "growth": growth,
    "time_to_accuracy": time_to_accuracy,
}
ONLY_IF_NAMED = ("attempts", "profile")  # they explain the others, and have a table of their own


def in_fresh_process(function: Callable, *arguments):
    """What a function returns in a Python process of its own. A suite that ran after others in one
    process, with their threads and fragmented memory, was up to a third slower.
    """
    with worker_pool(1, "other suites may need less") as pool:
        return pool.submit(function, *arguments).result()


def run_suite(
    name: str, smallest: bool, data_dir: str, rounds: int, json_path: str, begun: dict
) -> None:
    """Measures a suite, prints its rows, and writes them to `json_path`, if given, beside the rows
    of other suites that are there; after each case, so that a failure loses no other.

    `begun` has the command, the commit and the load average of the whole benchmark's start.
    """
    runtime.ignore_jax_environment()  # as every command does, and the next
    runtime.keep_freed_memory()
    source = machine() | begun | {"rounds": rounds, "smallest": smallest}
    where = {key: source.pop(key) for key in ("command", "commit")}
    path = Path(json_path)
    kept = kept_rows(path, "benchmark", "suite", [name], source) if json_path else []
    print(f"{describe(source)}\n\n{name}: {SUITES[name].__doc__}")
    if smallest:
        print("  Smallest: less work and smaller images than the rows' names say, one round.")
    with tempfile.TemporaryDirectory() as work:
        cases = SUITES[name](Setting(smallest, data_dir, Path(work)))
        found = []
        for rows in print_rows(cases, rounds, smallest):
            found += [{"suite": name} | row | where for row in rows]
            if json_path:
                write(path, kept + found, source | {"load_average_after": load_average()})


def write(path: Path, rows: list[dict], source: dict) -> None:
    """The rows in the order of SUITES."""
    order = [*SUITES, *(row["suite"] for row in rows)]  # a suite may have been renamed
    rows = sorted(rows, key=lambda row: order.index(row["suite"]))
    result = {"kind": "benchmark", "rows": rows, **source}
    write_atomic(path, json.dumps(result, indent=2) + "\n")


def print_rows(cases, rounds: int, smallest: bool) -> Iterator[list[dict]]:
    """Measures cases one after the other; each is built when its turn comes and dropped before the
    next one.
    """
    printed = ""
    for case in cases:
        rows = measure(case, rounds, warm_up=not smallest)
        for row in rows:
            print(line(row), flush=True)
        if case.contains != printed:
            printed = case.contains
            print(textwrap.indent(textwrap.fill(printed, 96), "    "))
        yield rows
        del case
        gc.collect()  # both networks and what was compiled for them
    print(flush=True)


def machine() -> dict:
    """Versions, machine, command, commit, and the limits measured here."""
    source = provenance.collect(seed=0, dataset="")
    del source["seed"], source["dataset"]
    torch = importlib.metadata.version("torch") if PEERS else "not installed"
    source["versions"]["torch"] = torch
    source["machine"]["matmul_gflop_per_s"] = round(matmul_peak() / 1e9, 1)
    source["machine"]["copy_gb_per_s"] = round(copy_bandwidth() / 1e9, 1)
    return source


def describe(source: dict) -> str:
    """The machine in a line."""
    machine, load = source["machine"], source["load_average"][0]
    names = ("python", "jax", "flax", "torch")
    versions = ", ".join(f"{name} {source['versions'][name]}" for name in names)
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['accelerator']}; {versions}; "
        f"load average {load:.2f}; limits: {machine['matmul_gflop_per_s']:.0f} GFLOP/s in a "
        f"float32 matrix product, {machine['copy_gb_per_s']:.0f} GB/s copied"
    )


def line(row: dict) -> str:
    """A row as text."""
    cells = [f"  {row['name']}: {with_range(row, 'ours')} {row['unit']}"]
    if row["ratio"] is not None:
        cells.append(f"PyTorch: {with_range(row, 'peer')} {row['peer_form']}")
        cells.append(f"ratio {row['ratio']:.2f}x")
    elif row["peer"] not in (ANOTHER_FORM, A_PART):
        cells.append(f"PyTorch: {row['peer']}")
    if row["share_of_limit"] is not None:
        cells.append(f"of the limit {100 * row['share_of_limit']:.0f}%")
    return " | ".join(cells)
