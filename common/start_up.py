"""How a run begins: from its newest checkpoint or anew, and what a user should know before it takes
hours.
"""

import json
from pathlib import Path

import jax
import numpy as np

from common import stopping
from common.checkpoint import Checkpointer
from common.classes import listed, name_of
from common.errors import DataError, UserError
from common.examples import Examples, cache_file, cached
from common.flags import require_settings
from common.processes import all_gather_text
from common.records import Records, parse

MAX_READ = 10_000  # records of a streamed split that are read for their labels


def start_up_lines(task, step: int) -> list[str]:
    """What a training (`common.loop.Task`) is about to do, in three lines, and a fourth if it
    resumes from `step`.
    """
    config, network, num_devices = task.config, task.network, task.placement.num_devices
    sizes = {split: len(examples) for split, examples in task.splits.items()}
    sizes["train"] = task.training_set["train_examples"]
    splits = ", ".join(f"{size:,} {split}" for split, size in sizes.items())
    channels = task.splits["train"].image_shape[-1]
    until = stopping.until(config)
    lines = [
        f"{config.dataset}: {splits} examples; {network.num_classes:,} classes, "
        f"{channels} channel{'s' * (channels > 1)}",
        f"{network.num_parameters:,} parameters; {config.compute_dtype} on {num_devices} "
        f"device{'s' * (num_devices > 1)} ({config.parallel}, {config.reduction} reduction)",
        f"{'up to ' * bool(until)}{config.num_epochs:,} epoch{'s' * (config.num_epochs > 1)} of "
        f"{task.epoch_steps:,} steps: {task.num_steps:,} steps, batch size {config.batch_size:,}"
        f"{', until ' * bool(until)}{until}",
    ]
    resumed = f"resuming from step {step:,} (epoch {step / task.epoch_steps:.2f})"
    return lines + [resumed] * (step > 0)


def remarks(task) -> list[str]:
    """A line for each oddity of a training (`common.loop.Task`) that is allowed."""
    config, splits = task.config, task.splits
    num_train, num_held_out = task.training_set["train_examples"], len(splits["validation"])
    lines = list(task.remarks)
    if num_held_out > num_train:
        lines.append(
            f"more examples are held out for validation ({num_held_out:,}) than train "
            f"({num_train:,}): see --validation_size"
        )
    if task.epoch_steps == 1:
        lines.append(
            f"an epoch is a single step: --batch_size={config.batch_size} of {num_train:,} examples"
        )
    for split, examples in splits.items():
        if split == "train" and len(examples) < num_train:
            continue  # a part of it, which is scored
        if absent := absent_classes(examples):
            lines.append(
                f"{split}: no example of {len(absent):,} of {examples.num_classes:,} classes "
                f"({listed(absent)})"
            )
    return lines


def absent_classes(examples) -> list[str]:
    """The classes of the set that a split has no example of, by name; [] where nothing is known of
    its labels: for noise, for long streamed splits, and where there are no examples.
    """
    labels = _labels(examples)
    if labels is None or not len(labels):
        return []
    absent = sorted(set(range(examples.num_classes)) - set(labels.tolist()))
    return [name_of(number, examples.class_names) for number in absent]


def _labels(examples) -> np.ndarray | None:
    if isinstance(examples, Examples):
        return examples.labels
    if not isinstance(examples, Records) or len(examples) > MAX_READ:
        return None
    shards = [Path(part.filename) for part in examples.slices]
    selection = [(part.skip, part.take) for part in examples.slices]
    path = cache_file(f"{examples.name}-labels", examples.folder, shards, selection)
    try:
        (labels,) = cached(path, ("labels",), lambda: (_read_labels(examples),))
    except Exception:  # of a record, whatever it is; training and scoring say more of it
        return None
    return labels


def _read_labels(records: Records) -> np.ndarray:
    """(n,) int32: the labels of the records. Raises what reading a damaged one does."""
    return np.array([parse(records.source[i])[1] for i in range(len(records))], np.int32)


def restore_or_start(task, checkpointer: Checkpointer, workdir: Path) -> tuple:
    """(step, state, what was saved with it) of the newest checkpoint, or of a new run.

    Raises DataError where `task` (`common.loop.Task`) has another training set than the run, and as
    `require_trainable` does.
    """

    def new_state(params):  # those of the layers that do not start anew
        return task.initial_state({**task.network.init(), **params})

    require_trainable(task)
    target = task.placement.abstract(lambda: new_state({}))
    task.placement.state_shardings(target)  # refuses what cannot be split, before compiling
    if restored := checkpointer.restore_newest(target):
        step, state, meta = restored
        require_settings(task.config, meta, workdir / "checkpoints")
        names = list(task.facts.get("class_names") or ())
        for name, value in (task.training_set | {"class_names": names}).items():
            if value and (meta.get(name) or value) != value:  # older checkpoints lack some
                raise other_training_set(task.config, f"{name} in {workdir}")
        task.restored(state, meta)
    else:
        # On a CPU, compiling for speed takes much longer than it saves; the bits are the same.
        on_cpu = jax.default_backend() == "cpu"
        quickly = {"xla_backend_optimization_level": 1} if on_cpu else None
        start = jax.jit(
            new_state, out_shardings=task.placement.replicated, compiler_options=quickly
        )
        given, transfer = task.given_params(target.params)
        step, state, meta = 0, start(given), {"transfer": transfer}
    return step, task.placement.place_state(state), meta


def require_trainable(task) -> None:
    """Raises UserError where there is one class, and DataError, in all processes, where they have
    different training sets.
    """
    if task.network.num_classes < 2:
        advice = "; give --classes two or more" * bool(task.config.classes)
        raise UserError(f"{task.config.dataset} has one class here: nothing to learn{advice}")
    data = task.training_set | {"class_names": task.facts.get("class_names")}
    if len(set(all_gather_text(json.dumps(data)))) > 1:
        raise DataError(
            f"{task.config.dataset} is another training set in some processes: --data_dir of each "
            "must hold a copy of one prepared set"
        )


def other_training_set(config, what: str) -> DataError:
    """The error of a resume on other data."""
    return DataError(
        f"{config.dataset} is not the training set that this run was started with: {what} "
        "differs. Point --data_dir at the old one, or use another --workdir."
    )
