"""Scores a run again, from its checkpoint alone: `python -m scripts.evaluate --workdir=RUN [--dataset=NAME] [--split=test]`."""

import json
import sys
from pathlib import Path

from absl import flags

from common import data, launch, metrics
from common.errors import DataError, UserError
from lenet import train
from lenet.data import DIGITS, require_fit


def define_flags(flag_values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", "", "The run's folder; required.", flag_values=flag_values)
    flags.DEFINE_string("dataset", "", "A prepared set; the run's own if empty.", flag_values=flag_values)
    flags.DEFINE_string("data_dir", "", "Folder of the prepared sets; the run's own if empty.", flag_values=flag_values)
    flags.DEFINE_string("split", "test", "A split or a slice of one: test, train[55000:].", flag_values=flag_values)
    flags.DEFINE_boolean("json", False, "Print one JSON object.", flag_values=flag_values)


def main(flag_values: flags.FlagValues) -> None:
    if not flag_values.workdir:
        raise UserError("--workdir is required: the run's folder, for example --workdir=runs/first")
    run = train.load_run(Path(flag_values.workdir).expanduser())
    dataset = flag_values.dataset or run.config.dataset
    examples = data.load(dataset, flag_values.split, data.data_dirs(flag_values.data_dir or run.config.data_dir, DIGITS))
    require_fit(examples)
    if not len(examples):
        raise UserError(f"--split={flag_values.split} is empty")
    if examples.images.shape[-1] != run.in_channels or examples.num_classes > run.num_classes:
        raise DataError(
            f"{dataset} has {examples.images.shape[-1]} channels and {examples.num_classes} classes; "
            f"the run in {flag_values.workdir} takes {run.in_channels} and {run.num_classes}"
        )
    sums = train.evaluate(run.eval_step, run.params, examples)
    result = {
        "dataset": dataset,
        "split": flag_values.split,
        "step": run.step,
        "num_examples": int(sums["count"]),
        **metrics.summarize({name: sums[name] for name in ("loss", "errors", "count")}),
        "confusion_matrix": sums["confusion"].tolist(),
    }
    if flag_values.json:
        print(json.dumps(result))
    else:
        count = f"{result['num_examples']:,} examples"
        print(f"{dataset} {flag_values.split}: {result['error_pct']:.2f}% error on {count}, after {run.step:,} steps")


if __name__ == "__main__":
    sys.exit(launch.run_tool(define_flags, main, sys.argv))
