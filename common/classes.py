"""The names of classes: a label means a name, whatever number a set gives it."""

from collections.abc import Sequence

import numpy as np

from common.errors import DataError

LISTED = 10  # names in a message


def listed(names: Sequence[str]) -> str:
    """The names for a message; of many the first. A set may call its classes anything."""
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    text = ", ".join(names[:LISTED]) + more
    return "".join(character if character.isprintable() else "?" for character in text)


def renumbered(examples, trained, whose: str) -> np.ndarray | None:
    """(classes of the set,) int32: the number that a network gives to each label of `examples`.

    Args:
      trained: `common.network.Trained`.
      whose: says in a message whose network that is.

    Returns:
      None where either has no names: labels then go by their position.

    Raises:
      DataError: images of a shape, or classes, that the network does not take.
    """
    network, known, names = trained.network, trained.class_names, examples.class_names
    by_name = names is not None and known is not None
    if by_name and (unknown := [name for name in names if name not in set(known)]):
        raise DataError(
            f"{examples.name} has classes that {whose} does not know: {listed(unknown)}; it knows "
            f"{listed(known)} (--classes=... scores some classes of a set)"
        )
    fits = examples.image_shape in network.image_shapes
    if not fits or examples.num_classes > network.num_classes:
        raise DataError(
            f"{examples.name} has images of {examples.image_shape} and {examples.num_classes} "
            f"classes; {whose} takes {' or '.join(map(str, network.image_shapes))} "
            f"and {network.num_classes}"
        )
    if not by_name:
        return None
    numbers = {name: number for number, name in enumerate(known)}
    return np.array([numbers[name] for name in names], np.int32)


def matched(
    names: tuple[str, ...] | None,
    known: tuple[str, ...] | None,
    num_outputs: int,
    num_known: int,
) -> list[int | None]:
    """For each of `num_outputs`, the one of another network's `num_known` that is for the same
    class; None where it has none.

    Outputs without a class are paired in order. Where either has no names, outputs go by their
    position if they are as many.

    Args:
      names, known: the classes of our outputs and of its; there may be fewer than outputs.
    """
    if names is None or known is None:
        return [place if num_outputs == num_known else None for place in range(num_outputs)]
    numbers = {name: number for number, name in enumerate(known)}
    without_class = [*range(len(known), num_known), *[None] * num_outputs]
    return [*map(numbers.get, names), *without_class][:num_outputs]


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
    words = [f"{listed([name_of(number, names)])} {errors[number]:.2f}%" for number in shown]
    what = f"worst {LISTED} of {len(errors)} classes" if len(errors) > LISTED else "by class"
    return f"{what}: {', '.join(words)}"


def name_of(number: int, names: Sequence[str] | None) -> str:
    """The name of a class, or its number where it has none."""
    return names[number] if names and number < len(names) else str(number)
