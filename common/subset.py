"""Parts of a set: some of its classes (--classes), some examples of each (--train_per_class)."""

import dataclasses

import numpy as np

from common.classes import listed, name_of
from common.errors import UserError
from common.examples import Examples


def of_classes(examples, classes: str):
    """The examples of some classes, in the order of the set; a label is a place in `classes`.

    Args:
      classes: names, comma-separated, or numbers where the set has no names; "": all classes.

    Raises:
      UserError: the set is streamed, or has no such names or no examples of them.
    """
    if not classes:
        return examples
    require_in_memory(examples, f"--classes={classes}")
    chosen = tuple(name.strip() for name in classes.split(","))
    known = examples.class_names or tuple(map(str, range(examples.num_classes)))
    if unknown := [name for name in chosen if name not in known]:
        raise UserError(
            f"--classes={classes}: {examples.name} has no class {listed(unknown)}; it has "
            f"{listed(known)}"
        )
    if len(set(chosen)) < len(chosen):
        raise UserError(f"--classes={classes} names a class twice")
    new_label = np.full(examples.num_classes, -1, np.int32)
    new_label[[known.index(name) for name in chosen]] = np.arange(len(chosen))
    labels = new_label[examples.labels]
    kept = labels >= 0
    if not kept.any():
        raise UserError(f"--classes={classes}: {examples.name} has no examples of them")
    return dataclasses.replace(
        examples,
        images=examples.images[kept],
        labels=labels[kept],
        num_classes=len(chosen),
        class_names=chosen,
    )


def first_of_each_class(examples, count: int):
    """The first `count` examples of each class, in the order of the set; 0: all examples.

    Raises UserError: the set is streamed, or a class has fewer.
    """
    if not count:
        return examples
    require_in_memory(examples, f"--train_per_class={count}")
    places = [np.flatnonzero(examples.labels == label) for label in range(examples.num_classes)]
    for label, of_class in enumerate(places):
        if len(of_class) < count:
            raise UserError(
                f"--train_per_class={count}: {examples.name} has {len(of_class):,} training "
                f"examples of class {listed([name_of(label, examples.class_names)])}"
            )
    kept = np.sort(np.concatenate([of_class[:count] for of_class in places]))
    return dataclasses.replace(examples, images=examples.images[kept], labels=examples.labels[kept])


def require_in_memory(examples, flag: str) -> None:
    """Raises UserError, which names the flag, where not all labels of a set are known."""
    if not isinstance(examples, Examples):
        raise UserError(
            f"{flag} is for sets that are held in memory, of at most 64 pixels; {examples.name} is "
            "streamed: prepare a set of those images alone (scripts.prepare_data --source=DIR)"
        )
