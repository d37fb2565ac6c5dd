"""Names what is on pictures, with a trained network of either kind:

python -m scripts.predict --workdir=RUN PICTURE...

A picture is a JPEG, PNG, WebP, BMP or TIFF file of any size, a folder of them, or - for one on
standard input. With a network that was trained on MNIST's digits a photo or scan of one digit will
do, dark on light or light on dark: it is cut out and centered as MNIST's are. With --string a
LeNet-5 reads a line of digits.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags

from alexnet.augment import VIEWS, views_differ
from common import launch, runtime
from common.classes import name_of
from common.errors import DataError, UserError
from common.network import PREDICT_BATCH_SIZE, Network, Trained
from common.order import NUM_THREADS
from common.storage import require_place
from scripts import predict_string
from scripts.inspect.pixels import reduced
from scripts.pictures import find_pictures, read_fitted, takes_digits
from scripts.prepare.entries import printable
from scripts.progress import FileProgress
from scripts.runs import is_alexnet, load_run
from scripts.show import MAX_SHOWN, THUMBNAIL, show, show_lines


class Prediction(NamedTuple):
    """What a network takes a picture for.

    Attributes:
      file: as it was named.
      thumbnail: the picture, smaller; None without --show.
      image: (H, W, C) uint8, as the network's training set would store it.
      labels: the numbers of the most probable classes, the most probable one first.
      names: of those classes; their numbers where the run has no names.
      probabilities: of those classes, 0 to 1.
    """

    file: str
    thumbnail: np.ndarray | None
    image: np.ndarray
    labels: list[int]
    names: list[str]
    probabilities: list[float]


def define_flags(flag_values: flags.FlagValues) -> None:
    own = dict(flag_values=flag_values)
    flags.DEFINE_string("workdir", "", "The run's folder.", **own)
    flags.DEFINE_string(
        "step", "", "A checkpoint: its step, best (by validation error), or the newest.", **own
    )
    flags.DEFINE_integer("top_k", 5, "How many classes to print.", lower_bound=1, **own)
    flags.DEFINE_boolean("json", False, "Print one JSON object a picture.", **own)
    flags.DEFINE_enum(
        "crops", "center", ["center", "ten"], "AlexNet: the parts of an image that it sees.", **own
    )
    flags.DEFINE_enum(
        "digit",
        "auto",
        ["auto", "on", "off"],
        "Find the digit on a picture and center it; auto: where a network was trained on MNIST's "
        "digits, unless the picture has their size.",
        **own,
    )
    flags.DEFINE_boolean("string", False, "LeNet-5: read a line of digits on each.", **own)
    flags.DEFINE_string(
        "show", "", f"A PNG file to write: {MAX_SHOWN} pictures and what the network saw.", **own
    )


def main(flag_values: flags.FlagValues, *words: str) -> None:
    if not flag_values.workdir:
        raise UserError("--workdir is missing: the run's folder, such as --workdir=runs/first")
    show_at = Path(flag_values.show).expanduser()
    if flag_values.show:
        require_place(show_at, "--show", ".png")
    workdir = Path(flag_values.workdir).expanduser()
    if flag_values.string:
        predict_string.require_fit(workdir, flag_values)
    files = list(find_pictures(words))
    runtime.use_compilation_cache()
    trained = load_run(workdir, flag_values.step or None)
    shape = trained.network.image_shapes[0]
    if flag_values.digit == "on" and not takes_digits(trained.network):
        raise UserError(
            "--digit=on is for networks of gray images of 28x28 pixels; this one was trained on "
            f"{trained.config.dataset}"
        )
    if flag_values.crops == "ten":
        if not is_alexnet(workdir):
            raise UserError(f"--crops=ten is for AlexNet; {workdir} is a LeNet-5 run")
        if not views_differ(shape, trained.config.crop_size, trained.config.mirror):
            raise UserError("--crops=ten: all ten are the same picture, the whole image")
    if flag_values.string:
        predict_string.require_digits(trained.network, flag_values.digit)
        in_words, in_json, draw = predict_string.as_line, predict_string.as_json, show_lines
        all_found = predict_string.read_lines(trained, files, flag_values.digit)
    else:
        in_words, in_json, draw = as_line, as_json, partial(show, network=trained.network)
        all_found = predict(trained, files, flag_values)
    refused, shown = [], []
    for found in all_found:
        if isinstance(found, DataError):
            if len(files) == 1:
                raise found
            print(f"error: {found}", file=sys.stderr, flush=True)
            refused.append(found)
            continue
        print(in_json(found) if flag_values.json else in_words(found))
        if flag_values.show and len(shown) < MAX_SHOWN:
            shown.append(found)
    if shown:
        draw(shown, path=show_at)
        if len(files) - len(refused) > len(shown):
            line = f"{show_at}: the first {len(shown)} of {len(files):,} pictures"
            print(line, file=sys.stderr, flush=True)
    if refused:
        raise DataError(f"{len(refused):,} of {len(files):,} pictures could not be used: see above")


def predict(
    trained: Trained, files: Sequence[str], flag_values: flags.FlagValues
) -> Iterator[Prediction | DataError]:
    """What the network takes each file for, in order, or why it could not be used."""
    network = trained.network

    def read(file: str) -> tuple[np.ndarray | None, np.ndarray] | DataError:
        try:
            picture, image = read_fitted(file, network, flag_values.digit)
            return reduced(picture, THUMBNAIL) if flag_values.show else None, image
        except DataError as error:
            return error

    views = VIEWS if flag_values.crops == "ten" else 1
    # A power of two, so that few numbers of pictures need a program of their own.
    size = min(1 << (len(files) - 1).bit_length(), PREDICT_BATCH_SIZE // views)
    batches = [files[start : start + size] for start in range(0, len(files), size)]
    lines = None if len(files) == 1 or sys.stdout.isatty() else sys.stderr  # or they are progress
    with ThreadPoolExecutor(NUM_THREADS) as pool, FileProgress("", len(files), lines) as progress:
        following = pool.map(read, batches[0])
        for batch, later in zip_longest(batches, batches[1:], fillvalue=()):
            current, following = following, pool.map(read, later)
            read_now = list(current)
            images = [found[1] for found in read_now if not isinstance(found, DataError)]
            most_probable = iter(_scored(trained, images, size, flag_values))
            for file, found in zip(batch, read_now, strict=True):
                if isinstance(found, DataError):
                    yield found
                    continue
                labels, probabilities = next(most_probable)
                names = [name_of(label, trained.class_names) for label in labels]
                yield Prediction(file, *found, labels, names, probabilities)
            progress.advance(len(batch))


def _scored(
    trained: Trained, images: Sequence[np.ndarray], size: int, flag_values: flags.FlagValues
) -> list[tuple[list[int], list[float]]]:
    """The most probable labels of each image, and their probabilities."""
    if not images:
        return []
    batch = np.zeros((size, *images[0].shape), np.uint8)  # one program for all
    batch[: len(images)] = images
    if flag_values.crops == "ten":
        probabilities = np.asarray(_ten_views(trained.network, trained.params, batch))
    else:
        probabilities = trained.predict(batch)
    probabilities = probabilities[: len(images)]
    labels = np.argsort(-probabilities, axis=1, kind="stable")[:, : flag_values.top_k]
    return [(of.tolist(), row[of].tolist()) for of, row in zip(labels, probabilities, strict=True)]


@partial(jax.jit, static_argnums=0)
def _ten_views(network: Network, params, images):
    """The mean of the probabilities (Krizhevsky et al. 2012, 4.1)."""
    views = [network.prepare(images, view=view) for view in range(VIEWS)]
    return sum(jax.nn.softmax(network.logits(params, view)) for view in views) / VIEWS


def as_line(found: Prediction) -> str:
    """`seven.png: 99.98% 7, 0.01% 1`."""
    parts = zip(found.probabilities, found.names, strict=True)
    words = [f"{100 * probability:.2f}% {printable(name)}" for probability, name in parts]
    return f"{printable(found.file)}: {', '.join(words)}"


def as_json(found: Prediction) -> str:
    predictions = [
        {"label": label, "name": name, "probability": probability}
        for label, name, probability in zip(
            found.labels, found.names, found.probabilities, strict=True
        )
    ]
    return json.dumps({"file": found.file, "predictions": predictions})


if __name__ == "__main__":
    words = ("PICTURE", "[PICTURE ...]")
    sys.exit(launch.run_tool(define_flags, main, sys.argv, words))
