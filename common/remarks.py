"""What a user should know of a run before it takes hours."""

from pathlib import Path

import numpy as np

from common.classes import listed, name_of
from common.examples import Examples, cache_file, cached
from common.records import Records, parse

MAX_READ = 10_000  # records of a streamed split that are read for their labels


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
                f"{split} examples: none of {len(absent):,} of {examples.num_classes:,} classes "
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
