"""Claims of LeCun et al. 1998 on training LeNet-5, and on its errors."""

import re

import jax
import numpy as np
import optax

import lenet.network
from lenet import optimizer
from lenet.connections import c3_mask
from lenet.model import loss_function
from scripts.claims.claim import NONE, departs, exact, holds, measured, not_run
from scripts.claims.facts import Facts, live_lenet, quickly
from scripts.claims.lenet import digits, prepared

TRAINING, RESULTS, SDLM = "LeCun 1998, III.B", "LeCun 1998, III.B", "LeCun 1998, appendix C"
DATA, COMPARISON = "LeCun 1998, III.A", "LeCun 1998, III.C, Fig. 9"
PAPER, DISTORTED = ("lenet", "presets", "paper"), ("lenet", "presets", "paper_distortions")
NO_CURVES = "the runs in results/ were kept without their curves"


def _config(facts: Facts):
    return facts.lenet["paper"].config


def _rates(facts: Facts) -> str:
    """The schedule in passes: rate x how many."""
    config = _config(facts)
    schedule = optimizer.learning_rate_schedule(config, epoch_steps=1)
    rates = quickly(jax.vmap(schedule))(np.arange(config.num_epochs)).tolist()
    return ", ".join(f"{rate:g} x {rates.count(rate)}" for rate in dict.fromkeys(rates))


def _update(facts: Facts) -> tuple[str, bool]:
    """One step of the paper's optimizer against eq. 21, its constants from the text."""
    tx = optimizer.build_optimizer(_config(facts), epoch_steps=1)
    w, h, gradient = (np.array(x, np.float32) for x in ([1, -2, 3], [0, 0.5, 10], [4, -5, 6]))

    @quickly
    def step(params, h, gradient):
        state = tx.init(params)._replace(curvature=h)
        return optax.apply_updates(params, tx.update(gradient, state)[0])

    found = step(w, h, gradient)
    agrees = np.allclose(found, w - 0.0005 / (0.02 + h) * gradient, rtol=1e-6)
    return "the same to float32" if agrees else "another update", agrees


def first_pass_rates(facts: Facts, initialization: str) -> tuple[float, float]:
    """The least and the largest eta / (mu + h) of the weights and coefficients in the first pass,
    on the embedded digits.
    """
    config = _config(facts)
    live = live_lenet("paper", f"--initialization={initialization}")
    images, labels = digits(config.curvature_examples)
    x = prepared(facts, images)

    @quickly
    def curvature(x, labels):
        network = lenet.network.build_model(live.config)
        return optimizer.curvature(network, x, labels, loss_function("mse", config.output))

    h = jax.tree.map(np.asarray, curvature(x, labels))
    exists = c3_mask(live.model.connections) == 1
    h["c3"]["kernel"] = h["c3"]["kernel"][exists]
    weights = np.concatenate(
        [h[layer][kind].ravel() for layer in h for kind in h[layer] if kind != "bias"]
    )
    rates = optimizer.PAPER_RATES[1] / (optimizer.MU + weights)
    return float(rates.min()), float(rates.max())


def _first_pass(facts: Facts) -> tuple[str, bool]:
    low, high = first_pass_rates(facts, _config(facts).initialization)
    near = 0.5 < low / 7e-5 < 2 and 0.5 < high / 0.016 < 2
    return f"{low:.0e} to {high:.3f} of weights, on mnist10k", near


def _initial_weights(facts: Facts) -> str:
    initialization = _config(facts).initialization
    fan_in = 120
    kernel_init = lenet.model.uniform_by_fan_in(initialization)
    weights = np.asarray(quickly(lambda: kernel_init(jax.random.key(0), (fan_in, 84)))())
    bound = np.abs(weights).max()
    for name, limit in (("F", fan_in), ("√F", np.sqrt(fan_in))):
        if 0.99 < bound / (2.4 / limit) <= 1:
            return f"within ±2.4 / {name}"
    return f"within ±{bound:.3f}"


def _distorted(facts: Facts) -> str:
    """Of the runs with distortions: originals + copies, and how often each is used."""
    found = set()
    for run in facts.runs_of(*DISTORTED):
        if given := re.search(r"--distorted_copies=(\d+)", run["command"]):
            originals, copies = run["num_train_examples"], int(given[1])
            uses = run["num_steps"] / (originals * (1 + copies))
            found.add(f"{originals:,} + {copies * originals:,}, each used {uses:g} times")
    return "; ".join(sorted(found)) or NONE


def _sizes(facts: Facts) -> str:
    found = {
        f"{run['num_train_examples']:,} and {run['num_test_examples']:,}"
        for run in facts.runs_of(*PAPER)
    }
    return "; ".join(sorted(found)) or NONE


def _passes(facts: Facts) -> str:
    found = {
        f"{run['num_steps'] / run['num_train_examples']:g} of {run['num_train_examples']:,}"
        for run in facts.runs_of(*DISTORTED)
    }
    return "; ".join(sorted(found)) or NONE


def _after(split: str, passes: int):
    """The error on a split after so many passes, of the runs with curves."""

    def values(runs: list[dict]) -> list[float]:
        curves = [run["curves"][split] for run in runs if split in run.get("curves", {})]
        return [
            curve["error_pct"][curve["epoch"].index(passes)]
            for curve in curves
            if passes in curve["epoch"]
        ]

    return values


def _rise(runs: list[dict]) -> list[float]:
    """The last test error minus the smallest after any pass."""
    curves = [run["curves"]["test"]["error_pct"] for run in runs if "test" in run.get("curves", {})]
    return [curve[-1] - min(curve) for curve in curves]


def _final(metric: str):
    return lambda runs: [run[metric] for run in runs]


CLAIMS = [
    exact(
        *("lenet-batch", TRAINING, "patterns per update", "1"),
        lambda facts: str(_config(facts).batch_size),
    ),
    exact(
        *("lenet-passes", TRAINING, "passes over the training set", "20"),
        lambda facts: str(_config(facts).num_epochs),
    ),
    exact(
        *("lenet-order", SDLM, "the order of the patterns", "the same in every pass"),
        lambda facts: (
            "another in every pass" if _config(facts).reshuffle else "the same in every pass"
        ),
    ),
    exact(
        *("lenet-rates", TRAINING, "the global rate, and for how many passes"),
        *("0.0005 x 2, 0.0002 x 3, 0.0001 x 3, 5e-05 x 4, 1e-05 x 8", _rates),
    ),
    exact(*("lenet-mu", TRAINING, "mu of eq. 21", "0.02"), lambda _: f"{optimizer.MU:g}"),
    exact(
        *("lenet-curvature-examples", TRAINING, "patterns for the curvature", "500"),
        lambda facts: str(_config(facts).curvature_examples),
    ),
    holds(
        *("lenet-update", "LeCun 1998, eq. 21", "the update of weight k"),
        *("w - eta / (mu + h) dE/dw", _update),
    ),
    holds(
        *("lenet-sdlm-rates", TRAINING, "effective rates of the first pass, within a factor of 2"),
        *("7e-05 to 0.016", _first_pass, "reproduced"),
    ),
    departs(
        *("lenet-initial-weights", TRAINING, "initial weights", "within ±2.4 / F"),
        "the authors' own program divides by the root",
        _initial_weights,
    ),
    exact(
        *("lenet-mnist", DATA, "training and test digits", "60,000 and 10,000", _sizes),
        how="results: lenet presets, paper",
    ),
    exact(
        *("lenet-distorted-set", RESULTS, "the set with distortions"),
        *("60,000 + 540,000, each used 2 times", _distorted),
        how="results: lenet presets, paper_distortions",
    ),
    exact(
        *("lenet-distorted-passes", RESULTS, "passes with distortions", "20 of 60,000", _passes),
        how="results: lenet presets, paper_distortions",
    ),
    # ---- errors
    measured(
        *("lenet-test-error", RESULTS, "test error, regular database", "0.95 ± 0.1%"),
        arm=PAPER,
        values=_final("test_error_pct"),
        expected=0.95,
        tolerance=0.1,
    ),
    measured(
        *("lenet-distortions-error", RESULTS, "test error with distortions", "0.8 ± 0.1%"),
        arm=DISTORTED,
        values=_final("test_error_pct"),
        expected=0.8,
        tolerance=0.1,
    ),
    measured(
        *("lenet-82-errors", "LeCun 1998, Fig. 8", "misclassified test digits", "82"),
        arm=DISTORTED,
        values=lambda runs: [
            run["num_test_examples"]
            - sum(run["confusion_matrix"][digit][digit] for digit in range(10))
            for run in runs
        ],
        expected=82,
        tolerance=10,
        unit="",
    ),
    measured(
        *("lenet-ten-passes", RESULTS, "test error after around 10 passes", "0.95%"),
        arm=PAPER,
        values=_after("test", 10),
        expected=0.95,
        tolerance=0.1,
        missing=NO_CURVES,
    ),
    measured(
        *("lenet-training-error", RESULTS, "training error after 19 passes", "0.35%"),
        arm=PAPER,
        values=_after("train", 19),
        expected=0.35,
        tolerance=0.1,
        missing=NO_CURVES,
    ),
    measured(
        *("lenet-no-over-training", RESULTS, "rise of the test error after its lowest", "none"),
        arm=PAPER,
        values=_rise,
        expected=0,
        tolerance=0.1,
        missing=NO_CURVES,
        unit=" points",
    ),
    not_run(
        *("lenet-1-error", COMPARISON, "LeNet-1, test error", "1.7%"), "LeNet-1 is not built here"
    ),
    not_run(
        *("lenet-4-error", COMPARISON, "LeNet-4, test error", "1.1%"), "LeNet-4 is not built here"
    ),
    not_run(
        *("lenet-boosted-error", COMPARISON, "boosted LeNet-4 with distortions", "0.7%"),
        "LeNet-4 is not built here",
    ),
    not_run(
        *("lenet-linear-error", COMPARISON, "linear classifier, test error", "12.0%"),
        "only convolutional networks are built here",
    ),
]
