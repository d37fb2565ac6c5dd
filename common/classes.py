"""The names of classes: a label means a name, whatever number a set gives it."""

from collections.abc import Sequence

import numpy as np

from common.errors import DataError

LISTED = 10  # names in a message


def listed(names: Sequence[str]) -> str:
    """The names for a message; of many the first."""
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def renumbered(examples, known: tuple[str, ...] | None, whose: str) -> np.ndarray | None:
    """(classes of the set,) int32: the number that a network gives to each label of `examples`.

    Args:
      known: the names of the network's classes, in the order of its outputs.
      whose: says in a message what knows them.

    Returns:
      None where either has no names: labels then go by their position.

    Raises:
      DataError: classes of the set that the network does not know; the message names them.
    """
    names = examples.class_names
    if names is None or known is None:
        return None
    if unknown := [name for name in names if name not in set(known)]:
        raise DataError(
            f"{examples.name} has classes that {whose} does not know: {listed(unknown)}; it knows "
            f"{listed(known)}"
        )
    numbers = {name: number for number, name in enumerate(known)}
    return np.array([numbers[name] for name in names], np.int32)


def moved(
    names: tuple[str, ...] | None, source: tuple[str, ...] | None, num_outputs: int
) -> np.ndarray | None:
    """(num_outputs,) int64: which output of another network is for the class of each of ours.

    Outputs without a class on either side are paired in order.

    Args:
      names, source: the classes of our outputs and of its; there may be fewer than outputs.

    Returns:
      None where they are in the same order, or where either has no names.
    """
    if names is None or source is None or names == source:
        return None
    numbers = {name: number for number, name in enumerate(source)}
    chosen = [numbers.get(name) for name in names] + [None] * (num_outputs - len(names))
    rest = iter(sorted(set(range(num_outputs)) - set(chosen)))
    return np.array([next(rest) if number is None else number for number in chosen])


def error_pcts(confusion: np.ndarray, names: Sequence[str] | None) -> str:
    """A line with the error in percent of each class that a confusion matrix [true, predicted] has
    examples of, by name; of many classes those with the largest errors.
    """
    counts = confusion.sum(axis=1)
    errors = {
        number: 100 * (1 - confusion[number, number] / count)
        for number, count in enumerate(counts.tolist())
        if count
    }
    worst = sorted(errors, key=lambda number: -errors[number])[:LISTED]
    shown = list(errors) if len(errors) <= LISTED else worst
    words = [f"{name_of(number, names)} {errors[number]:.2f}%" for number in shown]
    what = f"worst {LISTED} of {len(errors)} classes" if len(errors) > LISTED else "by class"
    return f"{what}: {', '.join(words)}"


def name_of(number: int, names: Sequence[str] | None) -> str:
    """The name of a class, or its number where it has none."""
    return names[number] if names and number < len(names) else str(number)
