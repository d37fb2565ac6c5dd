"""Measures how well LeNet-5 reads strings of digits in one pass (lenet/space_displacement.py):

    python -m scripts.strings RUN ... [--json=results/strings.json]
    python -m scripts.strings RUN ... --choose

1,000 strings are made of the run's test digits, five in each and each digit used once, 20 to 28
pixels apart from center to center; where two overlap, the lighter pixel stays. A string is read if
all digits are right and none is missing or added. It is read in three ways:

- in one pass, as `scripts.predict --string` does;
- cut apart: between its connected parts, each normalized as a picture of one digit is;
- in windows at the true places, which no reader knows.

Speed is that of the outputs of one string: in one pass, and by the network on all its windows in
one batch. Both are compiled and take turns; the shortest of the rounds counts, as others only say
what else the machine did.

--choose reads strings of validation digits, with each pair of the costs of the decoding rule, and
measures nothing else.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import jax
import numpy as np
from absl import flags
from scipy import ndimage

from common import launch, provenance
from common.errors import UserError
from common.examples import Examples
from common.network import Network, Trained
from common.storage import require_place
from common.workdir import to_text, write_atomic
from lenet import space_displacement
from lenet.data import load_splits
from lenet.network import load
from lenet.normalize import CENTER, INK_LEVEL, MIN_PART, SIZE, normalize_digit
from scripts.predict_string import require_digits

STRINGS, LENGTH = 1000, 5
DISTANCES = 20, 28  # pixels between two centers
SEED = 0
ROUNDS = 300
DIGIT_COSTS = 1.0, 2.0, 3.0, 4.0, 5.0, 6.0
INK_COSTS = 0.02, 0.03, 0.04, 0.05, 0.06, 0.08

# Of the cut strings; chosen on the strings of validation digits.
MAX_OVERLAP = 0.5  # of the narrower part's columns: with more the two belong to one digit
MAX_WIDTH = 24  # pixels: what is wider is two digits that touch


def define_flags(flag_values: flags.FlagValues) -> None:
    own = dict(flag_values=flag_values)
    flags.DEFINE_string("data_dir", "", "Folder of the prepared sets; a run's own if empty.", **own)
    flags.DEFINE_integer("strings", STRINGS, "How many.", lower_bound=1, **own)
    flags.DEFINE_boolean("choose", False, "Compare the costs, on validation digits.", **own)
    flags.DEFINE_string("json", "", "Write the result to this file.", **own)


def main(flag_values: flags.FlagValues, *runs: str) -> None:
    json_path = Path(flag_values.json).expanduser()
    if flag_values.json:
        require_place(json_path, "--json", ".json")
    opened = [(run, load(run), about(Path(run).expanduser())) for run in runs]
    for _, trained, _ in opened:
        require_digits(trained.network, "auto", "scripts.strings")
    rows = []
    for run, trained, training in opened:
        chosen = flag_values.data_dir or trained.config.data_dir
        _, validation, test = load_splits(replace(trained.config, data_dir=chosen))
        examples = validation if flag_values.choose else test
        images, labels, centers = compose(examples, flag_values.strings)
        if flag_values.choose:
            row = compare_costs(trained, images, labels)
            best = row["costs"][0]
            costs = f"{best['digit_cost']} and {best['ink_cost']}"
            print(f"{run}: best costs {costs}: {best['read_pct']:.1f}% of the strings")
        else:
            row = measure(trained, images, labels, centers)
            row["test_error_pct"] = error(trained, test)
            ways = ("one_pass", "cut_apart", "true_places")
            one, cut, true = (row[way]["read_pct"] for way in ways)
            read = f"{one:.1f}% in one pass, {cut:.1f}% cut apart, {true:.1f}% at the true places"
            print(f"{run}: {read}; {row['speed_up']:.1f} times as fast")
        rows.append({"run": Path(run).name} | training | row)
    if flag_values.json:
        datasets = sorted({trained.config.dataset for _, trained, _ in opened})
        source = provenance.collect(seed=SEED, dataset=",".join(datasets))
        result = {"kind": "strings", "strings": flag_values.strings, "rows": rows, **source}
        write_atomic(json_path, to_text(result))


def about(workdir: Path) -> dict:
    """How the run was trained, as its result.json says."""
    try:
        result = json.loads((workdir / "result.json").read_text())
        return {f"training_{name}": result[name] for name in ("command", "commit")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as reason:
        raise UserError(f"{workdir}: result.json is missing or damaged") from reason


def error(trained: Trained, examples: Examples) -> float:
    """In percent, on single digits."""
    return 100 * float(np.mean(trained.predict(examples.images).argmax(axis=1) != examples.labels))


# ---- the strings


def compose(examples: Examples, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Strings of digits that are all different ones.

    Returns:
      images (count, 28, 140, 1) uint8; their labels (count, LENGTH); the columns of the digits'
      centers (count, LENGTH).

    Raises UserError for too few examples.
    """
    if len(examples) < count * LENGTH:
        raise UserError(
            f"{count:,} strings need {count * LENGTH:,} digits, and {examples.name} has "
            f"{len(examples):,} here; see --strings"
        )
    random, columns = np.random.default_rng(SEED), SIZE + DISTANCES[1] * (LENGTH - 1)
    digits = random.permutation(len(examples))[: count * LENGTH].reshape(count, LENGTH)
    distances = random.integers(DISTANCES[0], DISTANCES[1] + 1, (count, LENGTH - 1))
    starts = np.pad(np.cumsum(distances, axis=1), ((0, 0), (1, 0)))
    starts += random.integers(0, columns - SIZE - starts[:, -1:] + 1)
    images = np.zeros((count, SIZE, columns, 1), np.uint8)
    for image, of_string, places in zip(images, digits, starts, strict=True):
        for digit, start in zip(of_string, places, strict=True):
            part = image[:, start : start + SIZE]
            np.maximum(part, examples.images[digit], out=part)
    return images, examples.labels[digits], starts + CENTER


# ---- reading them


def measure(
    trained: Trained, images: np.ndarray, labels: np.ndarray, centers: np.ndarray
) -> dict[str, object]:
    in_one_pass = [
        [digit.label for digit in found] for found in space_displacement.read(trained, images)
    ]
    pieces = [cut_apart(image[..., 0]) for image in images]
    of_pieces = iter(trained.predict(np.concatenate(pieces)).argmax(axis=1).tolist())
    wide, side = space_displacement.with_margins(images), np.arange(space_displacement.WINDOW)
    first = centers + space_displacement.MARGIN - space_displacement.CENTER  # (strings, LENGTH)
    windows = wide[np.arange(len(wide))[:, None, None], :, first[..., None] + side]
    windows = windows.swapaxes(2, 3).reshape(
        -1, space_displacement.WINDOW, space_displacement.WINDOW, 1
    )
    at_true_places = trained.predict(windows).argmax(axis=1).reshape(labels.shape)
    return {
        "one_pass": shares(in_one_pass, labels),
        "cut_apart": shares([[next(of_pieces) for _ in found] for found in pieces], labels),
        "true_places": shares(at_true_places.tolist(), labels),
        **speed(trained, wide[:1]),
    }


def shares(found: list[list[int]], labels: np.ndarray) -> dict[str, float]:
    """Of the strings, in percent: those read, and those with as many digits as there are."""
    read = [digits == expected for digits, expected in zip(found, labels.tolist(), strict=True)]
    complete = [len(digits) == LENGTH for digits in found]
    return {"read_pct": 100 * float(np.mean(read)), "complete_pct": 100 * float(np.mean(complete))}


def cut_apart(strip: np.ndarray) -> np.ndarray:
    """(28, columns) uint8 -> (digits, 28, 28, 1): its connected parts, from left to right, each
    normalized. Parts that lie above each other belong to one digit; of two that touch, the cut is
    at the column with the least ink near their middle.
    """
    numbers, count = ndimage.label(strip >= INK_LEVEL * 255, np.ones((3, 3)))
    ink = ndimage.sum_labels(strip, numbers, np.arange(1, count + 1))
    groups = []  # [first column, the one after the last, numbers of the parts]
    for first, end, number in sorted(
        (columns.start, columns.stop, number)
        for number, (_, columns) in enumerate(ndimage.find_objects(numbers), 1)
        if ink[number - 1] >= MIN_PART * ink.max()
    ):
        if groups:
            start, stop, parts = groups[-1]
            if min(stop, end) - first > MAX_OVERLAP * min(stop - start, end - first):
                groups[-1] = [start, max(stop, end), [*parts, number]]
                continue
        groups.append([first, end, [number]])
    digits = []
    for first, end, parts in groups:
        only = strip * ndimage.binary_dilation(np.isin(numbers, parts), iterations=2)
        ends = [max(first - 2, 0), end + 2]
        if end - first > MAX_WIDTH:
            third = (end - first) // 3
            middle = only[:, first + third : end - third].sum(axis=0)
            ends.insert(1, first + third + int(middle.argmin()))
        pieces = [only[:, left:right] for left, right in pairwise(ends)]
        digits += [normalize_digit(np.pad(piece, 4)) for piece in pieces]
    return np.stack([digit for digit in digits if digit is not None])[..., None]


def compare_costs(trained: Trained, images: np.ndarray, labels: np.ndarray) -> dict[str, list]:
    """The share of the strings that is read with each pair of costs, the best pair first."""
    log_p, ink = space_displacement.windows_of(trained, images)
    best, digits = log_p.max(axis=-1), log_p.argmax(axis=-1)
    found = []
    for digit_cost, ink_cost in product(DIGIT_COSTS, INK_COSTS):
        read = [
            of_string[space_displacement.decode(*of_windows, digit_cost, ink_cost)].tolist()
            for of_string, *of_windows in zip(digits, best, ink, strict=True)
        ]
        costs = {"digit_cost": digit_cost, "ink_cost": ink_cost}
        found.append(costs | shares(read, labels))
    return {"costs": sorted(found, key=lambda row: -row["read_pct"])}


# ---- speed


def speed(trained: Trained, strip: np.ndarray) -> dict[str, object]:
    """Of one string, (1, 32, columns, 1)."""
    network, params = trained.network, trained.params
    starts = range(0, strip.shape[2] - space_displacement.WINDOW + 1, space_displacement.STEP)
    windows = np.concatenate(
        [strip[:, :, start : start + space_displacement.WINDOW] for start in starts]
    )
    rounds = []
    for _ in range(ROUNDS):
        rounds.append(
            (
                seconds(space_displacement.output_map, network, params, strip),
                seconds(_each, network, params, windows),
            )
        )
    one_pass, sliding = 1000 * np.min(rounds, axis=0)
    return {
        "windows": len(windows),
        "rounds": ROUNDS,
        "one_pass_ms": float(one_pass),
        "sliding_ms": float(sliding),
        "speed_up": float(sliding / one_pass),
    }


@partial(jax.jit, static_argnums=0)
def _each(network: Network, params, windows):
    return network.logits(params, network.prepare(windows))


def seconds(function: Callable, *arguments) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(launch.run_tool(define_flags, main, sys.argv, ("RUN", "[RUN ...]")))
