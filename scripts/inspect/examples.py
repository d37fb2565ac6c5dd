"""A network on examples: what it says, its mistakes, and what is near in the space of its last
hidden layer.
"""

import numpy as np
import scipy.special

from scripts.inspect.opened import Run
from scripts.inspect.parts import Bar, Gallery, Item, percent
from scripts.inspect.pixels import SMALL_PX, reduced
from scripts.inspect.seen import mistakes, neighbors

SHOWN_SMALL, SHOWN_LARGE = 60, 24  # mistakes, of small and of large images
NEIGHBORS = 5  # of each picture


def bars(run: Run, probabilities: np.ndarray, label: int | None) -> tuple[Bar, ...]:
    """The five most probable classes of (num_classes,)."""
    top = np.argsort(-probabilities, kind="stable")[:5].tolist()
    return tuple(
        Bar(run.name_of(n), float(probabilities[n]), None if label is None else bool(n == label))
        for n in top
    )


def said(run: Run, probabilities: np.ndarray) -> str:
    """'says 4: 98.2%'."""
    best = int(probabilities.argmax())
    return f"says {run.name_of(best)}: {percent(probabilities[best])}"


def top_five(run: Run, logits: np.ndarray) -> Gallery:
    """The first four test examples, and the four on which the network is least sure."""
    examples, probabilities = run.test, scipy.special.softmax(logits, axis=1)
    least_sure = np.argsort(probabilities.max(axis=1), kind="stable")[:4].tolist()
    chosen = list(dict.fromkeys([*range(min(4, len(probabilities))), *least_sure]))
    items = [
        Item(
            reduced(examples.images[n]),
            (f"test example {examples.places[n]}: {run.name_of(examples.labels[n])}",),
            bars=bars(run, probabilities[n], examples.labels[n]),
        )
        for n in chosen
    ]
    note = (
        "The first test examples, and those on which the network is least sure, each with its "
        "label and the most probable classes; * marks the label."
    )
    return Gallery("top5", "The most probable classes", note, items)


def mistakes_of(run: Run, logits: np.ndarray) -> Gallery | None:
    """The mistakes on test examples, the most confident first; None where there are none."""
    examples = run.test
    wrong = mistakes(logits, examples.labels)
    if not len(wrong):
        return None
    is_small = max(examples.images.shape[1:3]) <= SMALL_PX
    limit = SHOWN_SMALL if is_small else SHOWN_LARGE
    items = [
        Item(
            reduced(examples.images[n], 96),
            (
                f"label {run.name_of(examples.labels[n])}",
                said(run, scipy.special.softmax(logits[n])),
            ),
            f"test example {examples.places[n]}",
        )
        for n in wrong[:limit].tolist()
    ]
    count, total = len(wrong), len(examples.labels)
    note = f"{count:,} of {examples.count} test examples: {100 * count / total:.2f}% error. "
    note += "The most confident first" + (f", {limit} of them." if count > limit else ".")
    return Gallery("mistakes", "Mistakes", note, items)


def neighbors_of(
    run: Run, title: str, train_features: np.ndarray, queries: list[tuple[Item, np.ndarray]]
) -> Gallery:
    """Of each query, a picture with its features (units,), the nearest training examples."""
    examples, items = run.train, []
    for picture, features in queries:
        items.append(picture._replace(leads=True))
        for n, distance in neighbors(train_features, features, NEIGHBORS):
            label, place = run.name_of(examples.labels[n]), examples.places[n]
            lines = (f"{label}", f"distance {distance:.2f}")
            items.append(Item(reduced(examples.images[n], 96), lines, f"training example {place}"))
    note = (
        f"Each row: a picture, then the nearest of {examples.count} training examples, by the "
        f"distance between what {title} makes of them ({train_features.shape[1]:,} numbers each)."
    )
    return Gallery("neighbors", f"Nearest neighbors in the space of {title}", note, items)
