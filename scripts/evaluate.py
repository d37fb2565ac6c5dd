"""Scores a run again, from its checkpoint alone:

python -m scripts.evaluate RUN [--dataset=NAME] [--split=test] [--step=best]
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
from absl import flags

import alexnet.augment
import alexnet.data
import alexnet.network
import alexnet.train
import lenet.data
import lenet.network
import lenet.train
from common import classes, launch, metrics
from common import examples as in_memory
from common.errors import UserError
from common.evaluation import evaluate
from common.network import Trained
from common.overlap import trained_on_digits
from common.prepared import data_dirs, find_test_split
from common.records import DamagedRecords
from common.subset import of_classes
from common.workdir import require_run
from scripts.runs import is_alexnet


def define_flags(flag_values: flags.FlagValues) -> None:
    for name, what in (
        ("workdir", "The run's folder, if it is not given as RUN."),
        ("dataset", "A prepared set; the run's own if empty."),
        ("data_dir", "Folder of the prepared sets; the run's own if empty."),
        ("step", "A checkpoint: its step, best (by validation error), or the newest if empty."),
        ("split", "A split or a slice: test, train[55000:]; the run's test split if empty."),
        ("classes", "Names of the set's classes to score; of the run's own set its own if empty."),
    ):
        flags.DEFINE_string(name, "", what, flag_values=flag_values)
    crops = "AlexNet: the part of an image that it sees."
    flags.DEFINE_enum("crops", "center", ["center", "ten"], crops, flag_values=flag_values)
    flags.DEFINE_boolean("json", False, "Print one JSON object.", flag_values=flag_values)


def main(flag_values: flags.FlagValues, *runs: str) -> None:
    given = [*runs, flag_values.workdir] if flag_values.workdir else runs
    if len(given) != 1:
        raise UserError("name the folder of one run, such as runs/first")
    workdir = Path(given[0]).expanduser()
    require_run(workdir)
    score = score_alexnet if is_alexnet(workdir) else score_lenet
    result, sums = score(workdir, flag_values.step or None, flag_values)
    names = result.pop("class_names")
    result |= {"num_examples": int(sums["count"])} | metrics.scores_of(sums, result["split"])
    if "confusion" in sums:
        result |= {"confusion_matrix": sums["confusion"].tolist(), "class_names": names}
    if flag_values.json:
        print(json.dumps(result))
        return
    top5 = f" ({result['top5_error_pct']:.2f}% top-5)" if "top5_error_pct" in result else ""
    what, count = f"{result['dataset']} {result['split']}", f"{result['num_examples']:,} examples"
    crops = ", ten crops" * (result.get("crops") == "ten")
    steps = f", after {result['step']:,} steps" * bool(result["step"])  # 0: imported weights
    print(f"{what}{crops}: {result['error_pct']:.2f}% error{top5} on {count}{steps}")
    if "confusion" in sums:
        print(classes.error_pcts(sums["confusion"], names))


def score_lenet(
    workdir: Path, step: str | None, flag_values: flags.FlagValues
) -> tuple[dict, dict]:
    """What was scored, and its sums."""
    if flag_values.crops != "center":
        raise UserError(f"--crops={flag_values.crops} is for AlexNet; {workdir} is a LeNet-5 run")
    trained = lenet.network.load(workdir, step)
    config = trained.config
    dataset = flag_values.dataset or config.dataset
    folders = data_dirs(flag_values.data_dir or config.data_dir, lenet.data.DIGITS)
    split = flag_values.split or find_test_split(dataset, folders)
    examples = of_classes(
        in_memory.load(dataset, split, folders), chosen_classes(flag_values, trained)
    )
    lenet.data.require_fit(examples)
    eval_step = lenet.train.make_eval_step(trained.network)
    eval_step, names = by_name(eval_step, examples, trained, workdir, split)
    batch_size = lenet.train.EVAL_BATCH_SIZE
    sums = evaluate(eval_step, trained.params, examples, batch_size=batch_size)
    about = {"dataset": dataset, "split": split, "step": trained.step, "class_names": names}
    return about, sums


def score_alexnet(
    workdir: Path, step: str | None, flag_values: flags.FlagValues
) -> tuple[dict, dict]:
    """What was scored, and its sums."""
    trained = alexnet.network.load(workdir, step)
    config = trained.config
    dataset = flag_values.dataset or config.dataset
    data_dir = flag_values.data_dir or config.data_dir
    split = flag_values.split or alexnet.data.find_test_split(dataset, data_dir, config.test_split)
    damaged = DamagedRecords(dataset, config.max_bad_records)
    examples = alexnet.data.open_split(
        dataset, data_dir, split, crop_size=config.crop_size, seed=config.seed, damaged=damaged
    )
    examples = of_classes(examples, chosen_classes(flag_values, trained))
    ten, size = flag_values.crops == "ten", config.crop_size
    if ten and not alexnet.augment.views_differ(examples.image_shape, size, config.mirror):
        raise UserError(
            f"--crops=ten: of {examples.name} all ten are the same picture, the whole image, as "
            f"crops have {size}x{size} pixels and are not mirrored"
        )
    views = alexnet.augment.VIEWS if ten else 1
    eval_step = alexnet.train.make_eval_step(trained.network, views)
    eval_step, names = by_name(eval_step, examples, trained, workdir, split)
    sums = evaluate(
        eval_step,
        trained.params,
        examples,
        batch_size=alexnet.train.eval_batch_size(config, views),
        num_threads=config.num_workers,
    )
    about = {"dataset": dataset, "split": split, "crops": flag_values.crops, "step": trained.step}
    return about | {"damaged_records": damaged.count, "class_names": names}, sums


def chosen_classes(flag_values: flags.FlagValues, trained: Trained) -> str:
    """The classes to score: of another set all, unless --classes names some. Raises UserError where
    the network's classes have no names, as some by position would be taken for its first ones.
    """
    if flag_values.classes and not trained.class_names:
        raise UserError(f"--classes={flag_values.classes}: the run's classes have no names")
    own = flag_values.dataset in ("", trained.config.dataset)
    return flag_values.classes or (trained.config.classes if own else "")


def by_name(
    eval_step: Callable, examples, trained: Trained, workdir: Path, split: str
) -> tuple[Callable, tuple[str, ...] | None]:
    """The evaluation step for labels as `examples` number them, and the names of the network's
    classes. Without names labels go by their position, and a line on stderr says so; another one
    warns of digits that the network was trained on in another set.

    Raises UserError for no examples, DataError for images or classes of another kind.
    """
    if not len(examples):
        raise UserError(f"the --split of {examples.name} is empty")
    known = trained.class_names
    numbers = classes.renumbered(examples, trained, f"the run in {workdir}")
    if warning := trained_on_digits(trained.config.dataset, examples.name, split):
        print(warning, file=sys.stderr, flush=True)
    if numbers is None:
        nameless = examples.name if known else f"the run in {workdir}"
        line = f"{nameless} has no class names: labels are matched by their position"
        print(line, file=sys.stderr, flush=True)
        return eval_step, known or examples.class_names

    def renumbering_step(params, batch):
        return eval_step(params, batch | {"label": jnp.asarray(numbers)[batch["label"]]})

    return renumbering_step, known


if __name__ == "__main__":
    sys.exit(launch.run_tool(define_flags, main, sys.argv, ("[RUN ...]",)))
