"""Scores a run again, from its checkpoint alone: `python -m scripts.evaluate --workdir=RUN
[--dataset=NAME] [--split=test]`.
"""

import json
import sys
from pathlib import Path

from absl import flags

import alexnet.augment
import alexnet.data
import alexnet.train
import lenet.data
import lenet.train
from common import launch, metrics
from common.errors import DataError, UserError
from common.examples import load
from common.prepared import data_dirs
from common.records import DamagedRecords


def define_flags(flag_values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", "", "The run's folder; required.", flag_values=flag_values)
    flags.DEFINE_string(
        "dataset", "", "A prepared set; the run's own if empty.", flag_values=flag_values
    )
    flags.DEFINE_string(
        "data_dir",
        "",
        "Folder of the prepared sets; the run's own if empty.",
        flag_values=flag_values,
    )
    split_help = "A split or a slice of one: test, train[55000:]; the run's test split if empty."
    flags.DEFINE_string("split", "", split_help, flag_values=flag_values)
    flags.DEFINE_enum(
        "crops",
        "center",
        ["center", "ten"],
        "AlexNet: what it sees of an image.",
        flag_values=flag_values,
    )
    flags.DEFINE_boolean("json", False, "Print one JSON object.", flag_values=flag_values)


def main(flag_values: flags.FlagValues) -> None:
    if not flag_values.workdir:
        raise UserError("--workdir is required: the run's folder, for example --workdir=runs/first")
    workdir = Path(flag_values.workdir).expanduser()
    score = score_alexnet if is_alexnet(workdir) else score_lenet
    result, sums = score(workdir, flag_values)
    result |= {"num_examples": int(sums["count"])}
    result |= metrics.summarize(
        {name: value for name, value in sums.items() if name != "confusion"}
    )
    if "confusion" in sums:
        result["confusion_matrix"] = sums["confusion"].tolist()
    if flag_values.json:
        print(json.dumps(result))
        return
    top5 = f" ({result['top5_error_pct']:.2f}% top-5)" if "top5_error_pct" in result else ""
    what, count = f"{result['dataset']} {result['split']}", f"{result['num_examples']:,} examples"
    print(
        f"{what}: {result['error_pct']:.2f}% error{top5} on {count}, after {result['step']:,} steps"
    )


def is_alexnet(workdir: Path) -> bool:
    """Whether the run in `workdir` is one of alexnet.train; what is no run is left to the networks'
    own messages.
    """
    try:
        return "net" in json.loads((workdir / "config.json").read_text())
    except (OSError, ValueError):
        return False


def score_lenet(workdir: Path, flag_values: flags.FlagValues) -> tuple[dict, dict]:
    """What was scored, and its sums."""
    if flag_values.crops != "center":
        raise UserError(
            f"--crops={flag_values.crops} is for AlexNet; {workdir} holds a LeNet-5 run"
        )
    run = lenet.train.load_run(workdir)
    dataset, split = flag_values.dataset or run.config.dataset, flag_values.split or "test"
    folders = data_dirs(flag_values.data_dir or run.config.data_dir, lenet.data.DIGITS)
    examples = load(dataset, split, folders)
    lenet.data.require_fit(examples)
    if not len(examples):
        raise UserError(f"--split={split} is empty")
    if examples.images.shape[-1] != run.in_channels or examples.num_classes > run.num_classes:
        raise DataError(
            f"{dataset} has {examples.images.shape[-1]} channels and {examples.num_classes} classes; "
            f"the run in {workdir} takes {run.in_channels} and {run.num_classes}"
        )
    sums = lenet.train.evaluate(run.eval_step, run.params, examples)
    return {"dataset": dataset, "split": split, "step": run.step}, sums


def score_alexnet(workdir: Path, flag_values: flags.FlagValues) -> tuple[dict, dict]:
    """What was scored, and its sums."""
    run = alexnet.train.load_run(workdir)
    dataset = flag_values.dataset or run.config.dataset
    data_dir = flag_values.data_dir or run.config.data_dir
    damaged = DamagedRecords(dataset, run.config.max_bad_records)
    split = flag_values.split or alexnet.data.find_test_split(
        dataset, data_dir, run.config.test_split
    )
    settings = dict(crop_size=run.config.crop_size, seed=run.config.seed, damaged=damaged)
    examples = alexnet.data.open_split(dataset, data_dir, split, **settings)
    if not len(examples):
        raise UserError(f"--split={split} is empty")
    if examples.image_shape != run.image_shape or examples.num_classes > run.num_classes:
        raise DataError(
            f"{dataset} has images of shape {examples.image_shape} and {examples.num_classes} classes; "
            f"the run in {workdir} takes {run.image_shape} and {run.num_classes}"
        )
    views = alexnet.augment.VIEWS if flag_values.crops == "ten" else 1
    batch_size = alexnet.train.eval_batch_size(run.config, views)
    sums = alexnet.train.evaluate(
        run.eval_steps[views],
        run.params,
        examples,
        batch_size=batch_size,
        num_threads=run.config.num_workers,
    )
    about = {"dataset": dataset, "split": split, "crops": flag_values.crops, "step": run.step}
    return about | {"damaged_records": damaged.count}, sums


if __name__ == "__main__":
    sys.exit(launch.run_tool(define_flags, main, sys.argv))
