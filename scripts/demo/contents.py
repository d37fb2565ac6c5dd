"""What the page needs of a run, as plain values."""

import base64
import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from common.classes import name_of, renumbered
from common.errors import UserError
from common.network import Trained
from lenet.codes import digit_codes
from lenet.config import Config
from lenet.connections import c3_connections
from lenet.data import load_splits
from lenet.model import layer_table
from scripts.inspect.page import without_controls
from scripts.inspect.seen import mistakes, respond

MAX_SAMPLES = 20  # test examples that can be chosen, each of another class
MAX_MISTAKES = 5  # and of those that the network gets wrong


class Contents(NamedTuple):
    """A page's contents.

    Attributes:
      config: the run's settings.
      network: what JavaScript reads: the weights, settings and class names, and examples.
      layers: name -> the row of `lenet.model.layer_table`.
      num_parameters: of the network.
      num_right, num_tested: of the test examples; both 0 where they are not at hand.
      missing: why they are not at hand.
    """

    config: Config
    network: dict[str, Any]
    layers: dict[str, dict]
    num_parameters: int
    num_right: int
    num_tested: int
    missing: str


def contents_of(trained: Trained, data_dir: str = "") -> Contents:
    """Raises UserError for a run that the page cannot show as it is."""
    config, network = trained.config, trained.network
    channels = network.image_shapes[0][-1]
    if channels != 1:
        raise UserError(
            f"the run takes images of {channels} channels; what is drawn on the page has one"
        )
    if config.compute_dtype != "float32":
        raise UserError(
            f"the run computes in {config.compute_dtype}; JavaScript would show other numbers"
        )
    samples, wrong, num_right, num_tested, missing = [], [], 0, 0, ""
    try:
        samples, wrong, num_right, num_tested = examples_of(trained, data_dir)
    except UserError as error:
        missing = str(error)
    names = [name_of(label, trained.class_names) for label in range(network.num_classes)]
    exported = {
        "activation": config.activation,
        "pool": "max" if config.pooling == "max" else config.subsampling,
        "output": config.output,
        "scaling": config.scaling,
        "connections": [list(map(int, seen)) for seen in c3_connections(config.c3, config.seed)],
        "codes": digit_codes(config.codes).astype(int).tolist() if config.output == "rbf" else None,
        "classNames": [without_controls(name) for name in names],
        "samples": samples,
        "mistakes": wrong,
        "params": {
            layer: {name: encoded(values) for name, values in parameters.items()}
            for layer, parameters in jax.device_get(trained.params).items()
        },
    }
    layers = {row["name"]: row for row in layer_table(network.bind(trained.params))}
    tested = num_right, num_tested, missing
    return Contents(config, exported, layers, network.num_parameters, *tested)


def encoded(values: np.ndarray) -> dict[str, Any]:
    """An array: its shape, and its bytes as little-endian float32."""
    content = np.ascontiguousarray(values, "<f4").tobytes()
    return {"shape": list(values.shape), "base64": base64.b64encode(content).decode()}


def examples_of(trained: Trained, data_dir: str) -> tuple[list[dict], list[dict], int, int]:
    """A test example of each class, some that the network gets wrong, the most confident first, how
    many it gets right, and of how many. Raises UserError where the set is not at hand or is another
    now.
    """
    config = trained.config
    if data_dir:
        config = dataclasses.replace(config, data_dir=data_dir)
    _, _, test = load_splits(config)
    numbers = renumbered(test, trained, "the run")
    labels = test.labels if numbers is None else numbers[test.labels]
    logits, _ = respond(trained, test.images, "c5")
    read_as = logits.argmax(axis=1)

    def example(place: int) -> dict[str, Any]:
        pixels = base64.b64encode(test.images[place].tobytes()).decode()
        return {
            "label": int(labels[place]),
            "readAs": int(read_as[place]),
            "side": test.image_shape[0],
            "pixels": pixels,
        }

    present = np.unique(labels)
    spread = np.linspace(0, len(present) - 1, min(len(present), MAX_SAMPLES)).astype(int)
    samples = [example(np.flatnonzero(labels == present[number])[0]) for number in spread]
    wrong = [example(place) for place in mistakes(logits, labels)[:MAX_MISTAKES]]
    return samples, wrong, int((read_as == labels).sum()), len(labels)
