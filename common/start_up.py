"""The first lines of a run: what a user should know before it takes hours."""

from pathlib import Path

import numpy as np

from common import stopping
from common.classes import listed, name_of
from common.examples import Examples, cache_file, cached
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
