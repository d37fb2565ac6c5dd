"""Speed beside PyTorch's, on this machine and in one call, and how far it is from what the machine
allows:

    python -m scripts.benchmark [--suite=lenet_train,ops] [--json=results/benchmark.json]

Both sides take turns, A B A B ..., after a warm-up that compiles and is not counted. A row shows
the median of the rounds with the least and the most, and the ratio: the median of the rounds'
ratios, above 1 where ours is faster. PyTorch takes part in the fastest of its forms (eager,
channels last, compiled, for small work with one thread too), found by a few measurements of each. A
measurement of repeated work begins with a run that is not counted and goes on for 0.3 seconds. The
share of the limit is what ours reaches of what the row's words name: operations at the peak of a
float32 matrix product, bytes at the bandwidth of a copy, the bare decoder. Without PyTorch
(requirements-peers.txt) its columns say so. Each suite runs in a process of its own, and the file
is written after it, beside the rows that it has of others. On two quiet cores all suites take about
forty minutes.
"""

import gc
import importlib.metadata
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from absl import flags

from common import launch, provenance, runtime
from common.errors import UserError
from common.workdir import write_atomic
from scripts import benchmark_suites
from scripts.benchmark_suites import ONLY_IF_NAMED, SUITES, Case, Setting
from scripts.report import number

PAUSE_S = 0.02  # between the sides: threads that have just worked go on asking for work for some milliseconds


def define_flags(flag_values: flags.FlagValues) -> None:
    usual = f"all but {' and '.join(ONLY_IF_NAMED)} if empty."
    flags.DEFINE_list("suite", [], f"Some of {', '.join(SUITES)}; {usual}", flag_values=flag_values)
    flags.DEFINE_integer(
        "rounds", 5, "Measurements of each side.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_string(
        "data_dir",
        "",
        "Folder of the prepared sets; $TFDS_DATA_DIR if empty.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "json", "", "Write the rows to this file, after each suite.", flag_values=flag_values
    )
    flags.DEFINE_boolean(
        "smallest",
        False,
        "One round of the least work in one process, PyTorch not compiled: shows that all runs.",
        flag_values=flag_values,
    )


def main(flag_values: flags.FlagValues) -> None:
    unknown = [name for name in flag_values.suite if name not in SUITES]
    if unknown:
        raise UserError(f"--suite={unknown[0]} is none; allowed: {', '.join(SUITES)}")
    if flag_values.json and not Path(flag_values.json).absolute().parent.is_dir():
        raise UserError(f"--json={flag_values.json}: no such folder")
    names = flag_values.suite or [name for name in SUITES if name not in ONLY_IF_NAMED]
    how = (
        flag_values.smallest,
        flag_values.data_dir,
        1 if flag_values.smallest else flag_values.rounds,
        flag_values.json,
    )
    begun = {
        "commit": provenance.commit(),
        "load_average": load_average(),
    }  # before the file that is written changes a checkout
    for name in names:
        if flag_values.smallest:
            run_suite(name, *how, begun)
        else:
            in_fresh_process(run_suite, name, *how, begun)


def in_fresh_process(function: Callable, *arguments):
    """What a function gives in a Python of its own: a suite that runs after others finds their
    threads and their memory in pieces, and was up to a third slower.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def run_suite(
    name: str, smallest: bool, data_dir: str, rounds: int, json_path: str, begun: dict
) -> None:
    """Measures a suite, prints its rows, and writes them to the file, if one is named, beside what
    it has of others.
    """
    runtime.keep_freed_memory()  # as every command does
    source = machine() | begun | {"rounds": rounds, "smallest": smallest}
    where = {name: source.pop(name) for name in ("command", "commit")}
    path, said = Path(json_path), ""
    rows = rows_of(path, source) if json_path and path.exists() else []
    print(f"{describe(source)}\n\n{name}: {SUITES[name].__doc__}")
    found = []
    with tempfile.TemporaryDirectory() as work:
        for case in SUITES[name](Setting(smallest, data_dir, Path(work))):
            measured = measure(case, rounds, warm_up=not smallest)
            for row in measured:
                print(line(row), flush=True)
            if case.contains != said:
                print(
                    textwrap.fill(
                        said := case.contains, 120, initial_indent="    ", subsequent_indent="    "
                    )
                )
            found += [{"suite": name} | row | where for row in measured]
            del case
            gc.collect()  # what was compiled, and both networks
    print(flush=True)
    source["load_average_after"] = load_average()
    rows = sorted(
        [row for row in rows if row["suite"] != name] + found,
        key=lambda row: list(SUITES).index(row["suite"]),
    )
    if json_path:
        write_atomic(
            path, json.dumps({"kind": "benchmark", "rows": rows, **source}, indent=2) + "\n"
        )


def machine() -> dict:
    """Versions, machine, command, commit, and the limits measured here."""
    source = provenance.collect(seed=0, dataset="")
    del source["seed"], source["dataset"]
    source["versions"]["torch"] = (
        importlib.metadata.version("torch") if benchmark_suites.PEERS else "not installed"
    )
    source["machine"]["matmul_gflop_per_s"] = round(benchmark_suites.matmul_peak() / 1e9, 1)
    source["machine"]["copy_gb_per_s"] = round(benchmark_suites.copy_bandwidth() / 1e9, 1)
    return source


def rows_of(path: Path, source: dict) -> list[dict]:
    """What the file has already. Raises UserError if that is no benchmark, or was measured
    elsewhere or otherwise.
    """
    try:
        earlier = json.loads(path.read_text())
    except ValueError:
        earlier = None
    if not isinstance(earlier, dict) or earlier.get("kind") != "benchmark":
        raise UserError(f"--json={path} is there and holds no benchmark: name another file.")
    for name in ("processor", "cores", "accelerator"):
        if (there := earlier["machine"][name]) != source["machine"][name]:
            raise UserError(
                f"--json={path} has rows of another machine ({name} {there}): name another file."
            )
    for name, version in source["versions"].items():
        if (there := earlier["versions"].get(name)) != version:
            raise UserError(
                f"--json={path} has rows of {name} {there}, and here is {version}: name another file."
            )
    if earlier["smallest"] != source["smallest"]:
        raise UserError(
            f"--json={path} has rows of --smallest={str(earlier['smallest']).lower()}: name another file."
        )
    return earlier["rows"]


def load_average() -> list[float]:
    """Processes that wanted to run in the last 1, 5 and 15 minutes."""
    return [round(load, 2) for load in os.getloadavg()]


def describe(source: dict) -> str:
    """The machine in a line or two."""
    machine = source["machine"]
    versions = ", ".join(
        f"{name} {source['versions'][name]}" for name in ("python", "jax", "flax", "torch")
    )
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['accelerator']}; {versions}; load average "
        f"{source['load_average'][0]:.2f}; limits: {machine['matmul_gflop_per_s']:.0f} GFLOP/s in a float32 matrix product, "
        f"{machine['copy_gb_per_s']:.0f} GB/s copied"
    )


def measure(case: Case, rounds: int, *, warm_up: bool = True) -> list[dict]:
    """A row for each number of a case; without a warm-up the first of ours contains compiling."""
    if warm_up:
        case.ours()
    form, tried = fastest(case, again=warm_up)
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(case.ours())
        if form:
            time.sleep(PAUSE_S)
            theirs.append(case.peers[form]())
            time.sleep(PAUSE_S)
    rows = []
    for i, (name, unit) in enumerate(case.rows):
        values, limit = [numbers[i] for numbers in ours], case.limits[i]
        limit = limit() if callable(limit) else limit
        row = {
            "name": name,
            "unit": unit,
            "ours": statistics.median(values),
            "ours_range": [min(values), max(values)],
        }
        if form:
            peers = [numbers[i] for numbers in theirs]
            row |= {
                "peer": statistics.median(peers),
                "peer_range": [min(peers), max(peers)],
                "peer_form": form,
            }
            row["peer_forms"] = {
                form: found if isinstance(found, str) else found[i] for form, found in tried.items()
            }
            row["ratio"] = statistics.median(
                gain(a, b, unit) for a, b in zip(values, peers, strict=True)
            )
        else:
            row |= {"peer": case.no_peer or "not installed", "ratio": None}
        row |= {"limit": limit, "share_of_limit": gain(row["ours"], limit, unit) if limit else None}
        rows.append(row | {"rounds": rounds, "contains": case.contains})
    return rows


def fastest(
    case: Case, *, again: bool = True
) -> tuple[str | None, dict[str, tuple[float, ...] | str]]:
    """The form of PyTorch that is to be measured, by the first of its numbers; the best that each
    form reached, if there are several, and why others do not run. Without `again`, by the run that
    compiles.
    """
    unit, first, failed = case.rows[0][1], {}, {}
    for name, run in case.peers.items():
        try:
            first[name] = run()
        except Exception as error:
            if "compiled" not in name:
                raise
            reason = (
                str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            )
            failed[name] = f"does not run here: {reason[:200]}"
            print(f"PyTorch, {name}, {failed[name]}", file=sys.stderr)
    if len(first) < 2:
        return next(iter(first), None), failed
    tried = first
    if again:
        tried = {
            name: max(trials(case.peers[name]), key=lambda numbers: gain(numbers[0], 1.0, unit))
            for name in first
        }
    return max(tried, key=lambda name: gain(tried[name][0], 1.0, unit)), tried | failed


def trials(run: Callable[[], tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Three measurements, or fewer if they take long."""
    found, start = [], time.perf_counter()
    while len(found) < 3 and time.perf_counter() - start < 5:
        found.append(run())
    return found


def gain(ours: float, theirs: float, unit: str) -> float:
    """How much better ours is, as a factor: more is better of what is counted per second, less of
    anything else.
    """
    return ours / theirs if unit.endswith("/s") else theirs / ours


def line(row: dict) -> str:
    """A row as text."""
    ours = f"{number(row['ours'])} ({number(row['ours_range'][0])} to {number(row['ours_range'][1])}) {row['unit']}"
    if row["ratio"] is None:
        theirs = row["peer"]
    else:
        low, high = map(number, row["peer_range"])
        theirs = f"{number(row['peer'])} ({low} to {high}) {row['peer_form']}"
    ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}x"
    share = "-" if row["share_of_limit"] is None else f"{100 * row['share_of_limit']:.0f}%"
    return f"  {row['name']}: {ours} | PyTorch: {theirs} | ratio {ratio} | of the limit {share}"


if __name__ == "__main__":
    sys.exit(launch.run_tool(define_flags, main, sys.argv))
