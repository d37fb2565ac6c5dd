"""Records that a run would both learn from and be scored on."""

import itertools
from collections.abc import Iterable

import numpy as np

LISTED = 4  # intervals in a message
# Set -> the split of it that consists of digits from MNIST's training set; "": every split.
MNIST_TRAINING_DIGITS = {"mnist": "train", "qmnist": "train", "mnist10k": ""}


def record_numbers(sizes: dict[str, int], intervals: Iterable[tuple]) -> np.ndarray:
    """(N,) int64: the records of some intervals, in order, numbered through all splits of a set;
    one number is left out between two splits.

    Args:
      sizes: split -> its number of records.
      intervals: (split, start, stop), as `PreparedSet.intervals` gives them.
    """
    starts = _starts(sizes)
    found = [
        np.arange(sizes[split])[start:stop] + starts[split] for split, start, stop in intervals
    ]
    return np.concatenate(found)


def shared_records(sizes: dict[str, int], parts: dict[str, np.ndarray]) -> list[str]:
    """A sentence for each two of `parts` ({"training": record numbers, ...}) that share records; it
    names both intervals.
    """
    return [
        f"{count:,} records are both {first} and {second} examples ({first}: "
        f"{_spans(sizes, parts[first])}; {second}: {_spans(sizes, parts[second])})"
        for first, second in itertools.combinations(parts, 2)
        if (count := len(np.intersect1d(parts[first], parts[second])))
    ]


def trained_on_digits(trained_on: str, dataset: str, split: str) -> str:
    """A warning where a network that learned MNIST's training digits in one set is scored on them
    in another, else "".

    Args:
      trained_on: the set that the network was trained on.
      dataset, split: what it is scored on.
    """
    sets = MNIST_TRAINING_DIGITS
    if trained_on == dataset or not {trained_on, dataset} <= sets.keys():
        return ""
    if sets[dataset] not in split:
        return ""
    return (
        f"WARNING: the digits of {dataset} {split} are training digits of MNIST, and so are those "
        f"of {trained_on}, on which the network was trained: this is no test error"
    )


def _starts(sizes: dict[str, int]) -> dict[str, int]:
    ends = itertools.accumulate((size + 1 for size in sizes.values()), initial=0)
    return dict(zip(sizes, ends, strict=False))


def _spans(sizes: dict[str, int], numbers: np.ndarray) -> str:
    """Record numbers as slices: `train[0:40] and test[5:9]`; of many the first."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    starts, words = _starts(sizes), []
    for first, last in ((int(run[0]), int(run[-1])) for run in runs[:LISTED]):
        split = max((name for name in sizes if starts[name] <= first), key=starts.get)
        words.append(f"{split}[{first - starts[split]}:{last - starts[split] + 1}]")
    more = f" and {len(runs) - LISTED:,} more" if len(runs) > LISTED else ""
    return " and ".join(words) + more
