"""What claims are checked against: networks from the live modules, and what results/ holds."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

import alexnet.config
import alexnet.network
import lenet.config
import lenet.network
from common.flags import from_preset
from scripts.studies import plan
from scripts.studies.catalog import STUDIES
from scripts.studies.outcome import is_of
from scripts.summarize import NUM_CLASSES, summarize

# Programs that run once: most of their time is compilation.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Live(NamedTuple):
    """A preset's network, without weights."""

    config: Any
    model: nnx.Module
    rows: dict[str, dict]  # of scripts.summarize, by layer
    total: dict[str, int]


class Facts(NamedTuple):
    deck_lenet: Live
    deck_alexnet: Live
    lenet: Live  # the paper's, as the next
    alexnet: Live
    used: dict[str, dict[str, np.ndarray]]  # of `lenet`, as `used_parameters` has them
    runs: Sequence[dict]
    studies: Mapping[str, dict]  # results/NAME/study.json, by NAME

    def runs_of(self, network: str, study: str, arm: str) -> list[dict]:
        """The runs of an arm. Arms of two studies may have the same settings: such a run is kept
        under the name of one of them. (Not where a setting was chosen: only its own records tell.)
        """
        place = (network, study, arm)
        found = [run for run in self.runs if (run["network"], run["study"], run["arm"]) == place]
        if study in STUDIES and arm not in STUDIES[study].choose:
            seeds = {run["seed"] for run in found}
            for planned in plan.runs(STUDIES[study], Path(), {}):
                if planned.arm == arm and planned.seed not in seeds:
                    same_seed = (run for run in self.runs if run["seed"] == planned.seed)
                    alike = (run for run in same_seed if is_of(run, STUDIES[study], planned))
                    found += itertools.islice(alike, 1)
        return found


def gather(runs: Sequence[dict], studies: Mapping[str, dict]) -> Facts:
    decks, papers = ((live_lenet(name), live_alexnet(name)) for name in ("deck", "paper"))
    return Facts(*decks, *papers, used_parameters(papers[0].config), runs, studies)


def live_lenet(preset: str, *flags: str) -> Live:
    config = from_preset(lenet.config.Config, preset, *flags)
    return _live(config, lambda: lenet.network.build_model(config))


def live_alexnet(preset: str) -> Live:
    config = from_preset(alexnet.config.Config, preset)
    return _live(config, lambda: alexnet.network.build_model(config, NUM_CLASSES[config.dataset]))


def _live(config, build: Callable[[], nnx.Module]) -> Live:
    summary = summarize(config)
    rows = {row["name"]: row for row in summary["layers"]}
    return Live(config, nnx.eval_shape(build), rows, summary["total"])


def used_parameters(config: lenet.config.Config) -> dict[str, dict[str, np.ndarray]]:
    """{layer: {parameter: bool array}}: which numbers the outputs of a LeNet-5 depend on."""

    @quickly
    def gradients(image):
        network = lenet.network.assemble(config, num_classes=10)
        return jax.grad(lambda params: network.logits(params, image).sum())(network.init())

    image = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 32, 32, 1)).astype(np.float32)
    return jax.tree.map(lambda gradient: np.asarray(gradient) != 0, gradients(image))


def quickly(function: Callable) -> Callable:
    """`function` compiled for one call."""
    return jax.jit(function, compiler_options=QUICKLY)


def curve(run: dict, split: str) -> dict[int, float]:
    """The error on a split after each pass; nothing if the run was kept without its curves."""
    found = run.get("curves", {}).get(split, {"epoch": [], "error_pct": []})
    return dict(zip(found["epoch"], found["error_pct"], strict=True))
