"""Which weights a run takes from another one (--init_from), and which do not learn (--freeze).

Both runs have the same layers. The last one, the head, has an output for each class: those of
classes that both runs know, by their names, keep what was learned, and all others are new.
"""

import dataclasses
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from common.classes import listed, matched
from common.digests import require_same_shapes, shapes
from common.errors import UserError
from common.flags import changes
from common.network import Network, Trained
from common.overlap import trained_on_digits
from common.processes import is_first_process

WIDTH = 100  # columns of the table
# Settings that change what the same weights compute.
FUNCTION_SETTINGS = {
    *("activation", "pooling", "subsampling", "codes", "scaling", "conv1_padding", "towers"),
    *("norm_order", "lrn", "lrn_size", "lrn_alpha", "lrn_alpha_over_n", "lrn_k"),
    *("dropout", "dropout_at", "dropout_scaling"),
}


def frozen_layers(freeze: str, params, head: str) -> tuple[str, ...]:
    """The layers that do not learn, in the order of the network.

    Args:
      freeze: none; conv: those that are not fully connected; all_but_head; or names.
      params: {layer: {parameter: array or its shape}}.

    Raises UserError: there is no such layer, or none that learns.
    """
    layers = sorted(params, key=_place)
    match freeze:
        case "none":
            frozen = []
        case "conv":
            frozen = [name for name in layers if not _is_fully_connected(params[name])]
        case "all_but_head":
            frozen = [name for name in layers if name != head]
        case _:
            frozen = [name.strip() for name in freeze.split(",")]
    if unknown := [name for name in frozen if name not in layers]:
        raise UserError(
            f"--freeze={freeze}: {unknown[0] or 'that'} is no layer with weights; allowed: none, "
            f"conv, all_but_head, or some of {','.join(layers)}"
        )
    if len(set(frozen)) == len(layers):
        raise UserError(f"--freeze={freeze} leaves no layer that learns; there are {len(layers)}")
    return tuple(name for name in layers if name in frozen)


def given_params(
    network: Network, load: Callable, names: tuple[str, ...] | None, target
) -> tuple[dict, dict | None]:
    """What a new run takes from the run --init_from.

    Lines on stderr say what is odd about it.

    Args:
      load: (folder, step) -> `Trained`.
      names: the classes of the new run.
      target: the shapes of its weights.

    Returns:
      The weights of the layers that do not start anew, on the host; and, for the result, which
      layers are loaded, new and frozen (a layer in both of the first has outputs of both kinds).
      Without --init_from and --freeze: ({}, None).

    Raises:
      UserError: there is no such run, its layers have other shapes, or its classes are in another
        order and the head has no weights.
    """
    source = load_init_from(network.config, load)
    if source is None:
        about = {"loaded": [], "new": sorted(target, key=_place), "frozen": list(network.frozen)}
        return {}, about if network.frozen else None
    given, head = jax.device_get(source.params), network.head
    theirs = given.pop(head, {})
    body = {layer: each for layer, each in target.items() if layer != head}
    advice = "--init_from needs a run of the same network."
    require_same_shapes(shapes(given), shapes(body), Path(network.config.init_from), advice)
    outputs = matched(names, source.class_names, network.num_classes, source.network.num_classes)
    if head not in target:
        _require_same_places(network.config, outputs, source.class_names)
    elif _inputs(theirs) != _inputs(target[head]):
        outputs = [None] * len(outputs)
    elif any(number is not None for number in outputs):
        given[head] = _head(network, theirs, outputs)
    _warn(network.config, source)
    return given, {
        "init_from": network.config.init_from,
        "step": source.step,
        "loaded": sorted(given, key=_place),
        "new": [head] * (head in target and None in outputs),
        "frozen": list(network.frozen),
        **_classes(names, outputs),
    }


def load_init_from(config, load: Callable) -> Trained | None:
    """The run --init_from, RUN or RUN@STEP; None without it. Raises UserError if there is none."""
    if not config.init_from:
        return None
    folder, step = config.init_from, "newest"
    named = re.fullmatch(r"(.+)@(best|newest|\d+)", folder, re.DOTALL)
    if named and not Path(folder).expanduser().exists():
        folder, step = named[1], named[2]
    return load(folder, step)


def table(about: dict | None, network: Network) -> list[str]:
    """The lines of a table of what `given_params` says; [] of None."""
    if not about:
        return []
    head, head_rate = network.head, network.config.head_rate
    source = f"{about['init_from']}, step {about['step']:,}" if "init_from" in about else ""
    rows = Table("layer", "starts from", "learns")
    for layer in sorted({*about["loaded"], *about["new"]}, key=_place):
        start = [source] * (layer in about["loaded"]) + ["new weights"] * (layer in about["new"])
        if layer == head and "new_classes" in about:
            kinds = (("loaded", "known_classes"), ("new", "new_classes"))
            shown = [listed(about[classes]) for kind, classes in kinds if layer in about[kind]]
            start = [f"{each} ({of})" for each, of in zip(start, shown, strict=True)]
        rate = f"at {head_rate:g} times the rate" if layer == head and head_rate != 1 else "yes"
        rows.add_row(layer, "\n".join(start), "no" if layer in about["frozen"] else rate)
    console = Console(file=io.StringIO(), width=WIDTH, markup=False, highlight=False)
    console.print(rows)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def _head(network: Network, theirs: dict, outputs: list[int | None]) -> dict[str, np.ndarray]:
    """The weights of the head: of each output theirs, or, where that is None, new ones."""
    ours = [place for place, number in enumerate(outputs) if number is not None]
    chosen = [outputs[place] for place in ours]
    if len(ours) == len(outputs):
        return {name: leaf[..., chosen] for name, leaf in theirs.items()}
    new = jax.device_get(jax.jit(lambda: network.init()[network.head])())
    found = {name: leaf.copy() for name, leaf in new.items()}
    for name, leaf in found.items():
        leaf[..., ours] = theirs[name][..., chosen]
    return found


def _require_same_places(config, outputs: list[int | None], known: tuple[str, ...] | None) -> None:
    """A head without weights cannot be put in another order. Raises UserError."""
    if any(number not in (None, place) for place, number in enumerate(outputs)):
        raise UserError(
            f"--init_from={config.init_from} has its classes in another order ({listed(known)}), "
            "which --output=rbf with its fixed codes cannot follow"
        )


def _classes(names: tuple[str, ...] | None, outputs: list[int | None]) -> dict[str, list[str]]:
    """Which classes keep what was learned of them, and which start anew; {} without names."""
    if names is None:
        return {}
    pairs = list(zip(names, outputs, strict=False))
    return {
        "known_classes": [name for name, number in pairs if number is not None],
        "new_classes": [name for name, number in pairs if number is None],
    }


def _warn(config, source: Trained) -> None:
    """Lines on stderr: digits that were seen before, outputs without names, other settings."""
    theirs, given = source.config, f"--init_from={config.init_from}"
    lines = [trained_on_digits(theirs.dataset, config.dataset, "test")]
    if not source.class_names:
        lines.append(f"{given} has no class names: outputs go by position")
    found = changes(dataclasses.asdict(theirs), config)
    if other := [
        f"{name} {was}, not {now}" for name, was, now in found if name in FUNCTION_SETTINGS
    ]:
        lines.append(f"{given} was trained with other settings: {'; '.join(other)}")
    for line in filter(None, lines if is_first_process() else ()):
        print(line, file=sys.stderr, flush=True)


def _inputs(layer: dict) -> dict[str, tuple[int, ...]]:
    """The shapes of a head's weights, without the number of outputs."""
    return {name: leaf.shape[:-1] for name, leaf in layer.items()}


def _is_fully_connected(layer: dict[str, Any]) -> bool:
    return "kernel" in layer and len(layer["kernel"].shape) == 2


def _place(layer: str) -> float:
    """Sorts layers, which are numbered in their papers; without a number: the last one."""
    return int(re.sub(r"\D", "", layer) or 99)
