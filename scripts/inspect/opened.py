"""A run as a report opens it: its network, its numbers, and its data where that is at hand."""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import alexnet.data
import lenet.data
from common.classes import name_of, renumbered
from common.errors import DataError, UserError
from common.network import Trained
from common.records import DamagedRecords
from common.workdir import read_metrics
from scripts.report.results import read_json
from scripts.runs import load_run, network_name

# Stored pixels that are read of a split: all of MNIST's test digits, 305 photos of 256x256.
TEST_PX, TRAIN_PX = 20_000_000, 10_000_000


class Examples(NamedTuple):
    """Some examples of a split, evenly spread over it.

    Attributes:
      images: (N, H, W, C) uint8, as stored.
      labels: (N,): the network's numbers of the classes.
      places: (N,): where they are in the split.
      total: the examples of the split.
    """

    images: np.ndarray
    labels: np.ndarray
    places: np.ndarray
    total: int

    @property
    def count(self) -> str:
        """How many these are, and of how many."""
        some = f"{len(self.labels):,}"
        return some if len(self.labels) == self.total else f"{some} of {self.total:,}"


class Run(NamedTuple):
    """A run.

    Attributes:
      network: "lenet" or "alexnet".
      result: what result.json holds; {} of a run that is not finished. Anybody may have written it.
      records: the lines of metrics.jsonl.
      train, test: None where the data is not at hand.
      missing: what is not here, and why: a sentence each.
    """

    folder: Path
    network: str
    trained: Trained
    result: dict[str, Any]
    records: Sequence[dict] = ()
    train: Examples | None = None
    test: Examples | None = None
    missing: Sequence[str] = ()

    @property
    def first_layer(self) -> str:
        """C1 or conv1."""
        return "c1" if self.network == "lenet" else "conv1"

    def name_of(self, label: int | np.integer) -> str:
        """The name of a class."""
        return f"{name_of(int(label), self.trained.class_names)}"

    def layer_title(self, name: str) -> str:
        """As the papers write it."""
        is_layer = self.network == "lenet" and name != "output"
        return name.upper() if is_layer else name


def open_run(folder: Path, data_dir: str) -> Run:
    """Raises UserError where there is no run, or none with weights."""
    trained, network = load_run(folder), network_name(folder)
    result, missing = read_result(folder)
    train = test = None
    try:
        train, test = read_data(network, trained, folder, data_dir)
    except UserError as error:
        reason = str(error).replace(os.path.expanduser("~"), "~")  # a report may be passed on
        missing.append(f"The data is not at hand, so that no example can be shown: {reason}")
    return Run(folder, network, trained, result, read_metrics(folder), train, test, missing)


def read_result(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """result.json, and what to say where there is none."""
    try:
        result = read_json(folder / "result.json")
    except UserError:
        return {}, ["result.json is damaged."]
    return result, [] if result else ["The run is not finished: it has no result.json."]


def read_data(
    network: str, trained: Trained, folder: Path, data_dir: str
) -> tuple[Examples, Examples]:
    """Training and test examples. Raises UserError, such as DataError, where they are not at hand
    or do not fit.
    """
    config = trained.config
    if data_dir:
        config = dataclasses.replace(config, data_dir=data_dir)
    if network == "lenet":
        train, _, test = lenet.data.load_splits(config)
    else:
        damaged = DamagedRecords(config.dataset, config.max_bad_records)
        train, _, test = alexnet.data.load_splits(config, damaged)
    return tuple(
        read_some(examples, trained, folder, pixels)
        for examples, pixels in ((train, TRAIN_PX), (test, TEST_PX))
    )


def read_some(examples, trained: Trained, folder: Path, pixels: int) -> Examples:
    """As many examples as have so many `pixels`, without damaged ones. Raises DataError."""
    if not len(examples):
        raise DataError(f"{examples.name} has no examples to show")
    numbers = renumbered(examples, trained, f"the run in {folder}")
    count = min(len(examples), max(pixels // math.prod(examples.image_shape[:2]), 1))
    places = np.linspace(0, len(examples) - 1, count).astype(int)
    images = np.zeros((count, *examples.image_shape), np.uint8)
    labels, intact = np.zeros(count, np.int32), np.ones(count, bool)
    found = examples.read_into(places, images, labels, intact)
    if examples.damaged is not None:
        examples.damaged.add(found)
    if not intact.any():
        raise DataError(f"{examples.name}: none of {count:,} records is intact")
    if numbers is not None:
        labels = numbers[labels]
    return Examples(images[intact], labels[intact], places[intact], len(examples))


def number(result: dict, name: str) -> float | None:
    """A number of result.json that a run may have written; None where there is none."""
    value = result.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return value if abs(value) < 1e15 else None  # false for NaN
