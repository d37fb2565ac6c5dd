"""Speed next to PyTorch's, measured on this machine in one call, and how far it is from what the
machine allows:

    python -m scripts.benchmark [--suite=lenet_train,ops] [--json=results/benchmark.json]

Both sides take turns, A B A B ..., after three seconds of each that are not counted. A row shows
the median of the rounds, the range, and the ratio: the median of the rounds' ratios, above 1 where
ours is faster. PyTorch runs in its fastest form (eager, channels last, its normalizations or all of
it compiled; for small work with one thread too), found by a few measurements of each. A measurement
of repeated work starts with a run that is not counted and lasts 0.3 seconds. The share of the limit
is how much ours reaches of the limit that the row's text names: operations at the peak of a float32
matrix product, bytes at the bandwidth of a copy, the bare decoder. Without PyTorch
(requirements-peers.txt) its columns say so. Each suite runs in a process of its own, and one that
fails stops no other; the file is written after each row, and keeps those of other suites. On two
idle cores all suites take about an hour and a half."""

import sys
from pathlib import Path

from absl import flags

from common import launch, provenance
from common.errors import UserError
from common.storage import require_place
from scripts.benchmark import race
from scripts.benchmark.machine import load_average
from scripts.benchmark.suites import ONLY_IF_NAMED, SUITES, in_fresh_process, run_suite


def define_flags(flag_values: flags.FlagValues) -> None:
    default = f"all but {' and '.join(ONLY_IF_NAMED)} if empty."
    flags.DEFINE_list(
        "suite", [], f"Some of {', '.join(SUITES)}; {default}", flag_values=flag_values
    )
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
        "json", "", "Write the rows to this file, as they come.", flag_values=flag_values
    )
    flags.DEFINE_boolean(
        "smallest",
        False,
        "One round of the least work, in one process, PyTorch not compiled: a test that all runs.",
        flag_values=flag_values,
    )


def main(flag_values: flags.FlagValues) -> None:
    unknown = [name for name in flag_values.suite if name not in SUITES]
    if unknown:
        raise UserError(f"--suite={unknown[0]} does not exist; allowed: {', '.join(SUITES)}")
    if flag_values.data_dir and not Path(flag_values.data_dir).is_dir():
        raise UserError(f"--data_dir={flag_values.data_dir}: no such folder")
    if flag_values.json:
        require_place(Path(flag_values.json), "--json", ".json")
    # What the suites' own processes cannot see: the command, and the commit before the file that
    # they write changes the checkout.
    begun = {
        "command": provenance.command(),
        "commit": provenance.commit(),
        "load_average": load_average(),
    }
    smallest, failed = flag_values.smallest, []
    names = flag_values.suite or [name for name in SUITES if name not in ONLY_IF_NAMED]
    if "time_to_accuracy" in names and not smallest and race.mnist(flag_values.data_dir) is None:
        print("mnist is not prepared: time_to_accuracy will train on mnist10k.", file=sys.stderr)
    for name in names:
        rounds = 1 if smallest else flag_values.rounds
        arguments = (name, smallest, flag_values.data_dir, rounds, flag_values.json, begun)
        try:
            if smallest:
                run_suite(*arguments)
            else:
                in_fresh_process(run_suite, *arguments)
        except UserError:  # as of the file
            raise
        except Exception as error:
            print(f"{name} failed: {error}", file=sys.stderr, flush=True)
            failed.append(error)
    if failed:
        raise ExceptionGroup("some suites failed", failed)


if __name__ == "__main__":
    sys.exit(launch.run_tool(define_flags, main, sys.argv))
