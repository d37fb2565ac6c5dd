"""Everything that a report shows of a run, in order."""

from pathlib import Path

import numpy as np
import scipy.special

from scripts.inspect import about, examples, looked_at, weights
from scripts.inspect.looked_at import Picture
from scripts.inspect.opened import Run
from scripts.inspect.parts import Item, Subject
from scripts.inspect.pixels import reduced
from scripts.inspect.seen import layers_of, mistakes, respond
from scripts.pictures import read_fitted

NEAR_MISTAKES = 3  # the most confident ones get their nearest neighbors too


def of_run(run: Run, name: str, image: str) -> Subject:
    """What the run's folder gives, and its data and a picture where they are at hand.

    Args:
      image: a file to look at; "": the first test example.

    Raises UserError for an image that cannot be read.
    """
    picture, missing = picture_of(run, image), list(run.missing)
    if not picture:
        missing.append("With --image=FILE the report shows a picture of yours, layer by layer.")
    logits = predicted = features = None
    if run.test:
        logits, features = respond(run.trained, run.test.images, picture.hidden)
        predicted = logits.argmax(axis=1)
    parts = [
        about.what_was_run(run),
        about.errors(run),
        about.curves(run),
        about.confusions(run, predicted),
    ]
    if run.test:
        parts += [examples.mistakes_of(run, logits), examples.top_five(run, logits)]
    parts.append(weights.first_kernels(run))
    if run.network == "lenet":
        parts.append(weights.c3_table(run))
    if picture:
        parts += [
            looked_at.what_it_says(run, picture),
            looked_at.feature_maps(run, picture),
            looked_at.occlusion_map(run, picture),
        ]
    if run.train:
        lines = picture.title, examples.said(run, picture.probabilities)
        queries = [(Item(reduced(picture.image), lines), picture.features)]
        queries += mistaken(run, logits, features)
        _, of_training = respond(run.trained, run.train.images, picture.hidden)
        title = run.layer_title(picture.hidden)
        parts.append(examples.neighbors_of(run, title, of_training, queries))
    parts.append(about.settings(run))
    found = [part for part in parts if part is not None]
    return Subject(name, str(run.folder), about.summary(run), found, missing)


def mistaken(run: Run, logits, features) -> list[tuple[Item, np.ndarray]]:
    """The most confident mistakes on test examples, with their features."""
    found, test = [], run.test
    for n in mistakes(logits, test.labels)[:NEAR_MISTAKES].tolist():
        says = examples.said(run, scipy.special.softmax(logits[n]))
        lines = f"label {run.name_of(test.labels[n])}", says
        item = Item(reduced(test.images[n]), lines, f"test example {test.places[n]}")
        found.append((item, features[n]))
    return found


def picture_of(run: Run, image: str) -> Picture | None:
    """What is looked at: the user's picture, or the first test example; None without both."""
    if image:
        original, stored = read_fitted(Path(image).expanduser(), run.trained.network)
        title, label = Path(image).name, None
    elif run.test:
        original = stored = run.test.images[0]
        label = int(run.test.labels[0])
        title = f"test example {run.test.places[0]}"
    else:
        return None
    return Picture(original, stored, title, label, layers_of(run.trained, stored))
