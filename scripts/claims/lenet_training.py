"""Claims of LeCun et al. 1998 on training LeNet-5, and on its errors."""

import re

import jax
import numpy as np
import optax

import lenet.network
from lenet import optimizer
from lenet.connections import c3_mask
from lenet.model import loss_function
from scripts.claims.claim import EXACT, NONE, NOW, REPRODUCED, computed, measured, not_run
from scripts.claims.facts import Facts, curve, live_lenet, quickly
from scripts.claims.lenet import digits, prepared

TRAINING, RESULTS, SDLM = "LeCun 1998, III.B", "LeCun 1998, III.B", "LeCun 1998, appendix C"
OUTPUTS, LUSH = "LeCun 1998, II.C", "the authors' program (Lush, 2002)"
DATA, COMPARISON = "LeCun 1998, III.A", "LeCun 1998, III.C, Fig. 9"
PAPER, DISTORTED = ("lenet", "presets", "paper"), ("lenet", "presets", "paper_distortions")
CURVES = ("lenet", "lenet_loss", "eq9_j3")  # the settings of PAPER, kept with their curves


def _rates(facts: Facts) -> str:
    """The schedule in passes: rate x how many."""
    config = facts.lenet.config
    schedule = optimizer.learning_rate_schedule(config, epoch_steps=1)
    rates = quickly(jax.vmap(schedule))(np.arange(config.num_epochs)).tolist()
    return ", ".join(f"{rate:g} x {rates.count(rate)}" for rate in dict.fromkeys(rates))


def _order(facts: Facts) -> str:
    config = facts.lenet.config
    first = "random" if config.shuffle else "the files'"
    return f"{first}, {'another' if config.reshuffle else 'the same'} in every pass"


def _update(facts: Facts) -> tuple[str, bool]:
    """One step of the paper's optimizer against eq. 21, its constants from the text."""
    tx = optimizer.build_optimizer(facts.lenet.config, epoch_steps=1)
    w, h, gradient = (np.array(x, np.float32) for x in ([1, -2, 3], [0, 0.5, 10], [4, -5, 6]))

    @quickly
    def step(params, h, gradient):
        state = tx.init(params)._replace(curvature=h)
        return optax.apply_updates(params, tx.update(gradient, state)[0])

    found = step(w, h, gradient)
    agrees = np.allclose(found, w - 0.0005 / (0.02 + h) * gradient, rtol=1e-6)
    return "the same to float32" if agrees else "another update", agrees


def _first_rates(*kinds: str):
    """The least and the largest eta / (mu + h) of these parameters in the first pass, on the
    embedded digits.
    """

    def compute(facts: Facts) -> tuple[str, bool]:
        config = facts.lenet.config
        images, labels = digits(config.curvature_examples)

        @quickly
        def curvature(x, labels):
            network = lenet.network.build_model(config)
            return optimizer.curvature(network, x, labels, loss_function("mse", config.output))

        h = jax.tree.map(np.asarray, curvature(prepared(facts, images), labels))
        exists = c3_mask(facts.lenet.model.connections) == 1
        h["c3"]["kernel"] = h["c3"]["kernel"][exists]
        found = [h[layer][kind].ravel() for layer in h for kind in h[layer] if kind in kinds]
        rates = optimizer.PAPER_RATES[1] / (optimizer.MU + np.concatenate(found))
        low, high = rates.min(), rates.max()
        near = 0.5 < low / 7e-5 < 2 and 0.5 < high / 0.016 < 2
        return f"{low:.0e} to {high:.3f} on mnist10k", near

    return compute


def _initial_weights(facts: Facts) -> str:
    fan_in = 120
    kernel_init = lenet.model.uniform_by_fan_in(facts.lenet.config.initialization)
    weights = np.asarray(quickly(lambda: kernel_init(jax.random.key(0), (fan_in, 84)))())
    bound = np.abs(weights).max()
    for name, limit in (("F", fan_in), ("√F", np.sqrt(fan_in))):
        if 0.99 < bound / (2.4 / limit) <= 1:
            return f"within ±2.4 / {name}"
    return f"within ±{bound:.3f}"


# ---- of runs


def _of_runs(arm: tuple[str, str, str], describe):
    """What `describe` says of the runs of an arm: once, where it is the same of all."""

    def compute(facts: Facts) -> str:
        return "; ".join(sorted({describe(run) for run in facts.runs_of(*arm)})) or NONE

    return compute


def _distorted(run: dict) -> str:
    """Originals + copies, and how often each is used."""
    originals = run["num_train_examples"]
    copies = int(re.search(r"--distorted_copies=(\d+)", run["command"])[1])
    uses = run["num_steps"] / (originals * (1 + copies))
    return f"{originals:,} + {copies * originals:,}, each used {uses:g} times"


def _rise(run: dict) -> float | None:
    """The last test error minus the smallest after any pass."""
    errors = list(curve(run, "test").values())
    return errors[-1] - min(errors) if errors else None


# id, source, claim, stated, what computes ours; also the status of agreement where it is not
# EXACT, and where ours comes from where 'differs' is no bug
# fmt: off
COMPUTED = (
    ("lenet-batch", SDLM, "patterns per update", "1",
     lambda facts: facts.lenet.config.batch_size),
    ("lenet-passes", TRAINING, "passes over the training set", "20",
     lambda facts: facts.lenet.config.num_epochs),
    ("lenet-order", SDLM, "the order of the patterns", "random, the same in every pass", _order),
    ("lenet-rates", TRAINING, "the global rate, and for how many passes",
     "0.0005 x 2, 0.0002 x 3, 0.0001 x 3, 5e-05 x 4, 1e-05 x 8", _rates),
    ("lenet-mu", TRAINING, "mu of eq. 21", "0.02", lambda _: optimizer.MU),
    ("lenet-curvature-examples", TRAINING, "patterns for the curvature", "500",
     lambda facts: facts.lenet.config.curvature_examples),
    ("lenet-update", "LeCun 1998, eq. 21", "the update of weight k",
     "w - eta / (mu + h) dE/dw", _update),
    ("lenet-curvature-passes", TRAINING, "the curvature is estimated again before", "each pass",
     lambda facts: {1: "each pass"}.get(facts.lenet.config.curvature_every_epochs, "others")),
    ("lenet-sdlm-rates", TRAINING,
     "effective rates of the first pass, of all parameters, within a factor of 2",
     "7e-05 to 0.016", _first_rates("kernel", "coefficient", "bias"), REPRODUCED,
     f"{NOW}; the rates of biases that many units share are lower"),
    ("lenet-sdlm-rates-of-weights", TRAINING, "the same without the biases",
     "7e-05 to 0.016", _first_rates("kernel", "coefficient"), REPRODUCED),
    ("lenet-initial-weights", "LeCun 1998, appendix A", "initial weights", "within ±2.4 / F",
     _initial_weights, EXACT, f"{NOW}; the authors' own program divides by the root"),
    ("lenet-lush-parameters", LUSH, "parameters of the network", "51,046",
     lambda _: live_lenet("lush").total["parameters"]),
    ("lenet-mnist", DATA, "training and test digits", "60,000 and 10,000",
     _of_runs(PAPER, lambda run: "{num_train_examples:,} and {num_test_examples:,}".format(**run)),
     EXACT, "results: lenet presets, paper"),
    ("lenet-distorted-set", RESULTS, "the set with distortions",
     "60,000 + 540,000, each used 2 times", _of_runs(DISTORTED, _distorted),
     EXACT, "results: lenet presets, paper_distortions"),
    ("lenet-distorted-passes", RESULTS, "passes with distortions", "20 of 60,000",
     _of_runs(DISTORTED, lambda run: "{:g} of {:,}".format(
         run["num_steps"] / run["num_train_examples"], run["num_train_examples"])),
     EXACT, "results: lenet presets, paper_distortions"),
)
# id, source, claim, stated, arm, its value of a run, number expected, tolerance, unit if not %
MEASURED = (
    ("lenet-test-error", RESULTS, "test error, regular database", "0.95 ± 0.1%",
     PAPER, lambda run: run["test_error_pct"], 0.95, 0.1),
    ("lenet-distortions-error", RESULTS, "test error with distortions", "0.8 ± 0.1%",
     DISTORTED, lambda run: run["test_error_pct"], 0.8, 0.1),
    ("lenet-82-errors", "LeCun 1998, Fig. 8", "misclassified test digits", "82", DISTORTED,
     lambda run: run["num_test_examples"] - np.trace(run["confusion_matrix"]).item(), 82, 10, ""),
    ("lenet-ten-passes", RESULTS, "test error after around 10 passes", "0.95%",
     CURVES, lambda run: curve(run, "test").get(10), 0.95, 0.1),
    ("lenet-training-error", RESULTS, "training error after 19 passes", "0.35%",
     CURVES, lambda run: curve(run, "train").get(19), 0.35, 0.1),
    ("lenet-no-over-training", RESULTS, "rise of the test error after its lowest", "none",
     CURVES, _rise, 0, 0.1, " points"),
    ("lenet-lush-error", f"{LUSH}, run by Bottou in 2019", "test error", "0.82 ± 0.2%",
     ("lenet", "presets", "lush"), lambda run: run["test_error_pct"], 0.82, 0.2),
)
# id, source, claim, stated, why it is not run
NOT_RUN = (
    ("lenet-1-error", COMPARISON, "LeNet-1, test error", "1.7%", "LeNet-1 is not built here"),
    ("lenet-4-error", COMPARISON, "LeNet-4, test error", "1.1%", "LeNet-4 is not built here"),
    ("lenet-boosted-error", COMPARISON, "boosted LeNet-4 with distortions", "0.7%",
     "LeNet-4 is not built here"),
    ("lenet-neighbors-error", COMPARISON, "nearest neighbors, test error", "5.0%",
     "only convolutional networks are built here"),
    ("lenet-perceptron-error", COMPARISON, "a 300-100-10 network, test error", "3.05%",
     "only convolutional networks are built here"),
    ("lenet-svm-error", COMPARISON, "a polynomial support vector machine, test error", "1.1%",
     "only convolutional networks are built here"),
    ("lenet-days", "LeCun 1998, III.D", "training on one processor of an Origin 2000",
     "2 to 3 days", "no such machine"),
    ("lenet-collapse", OUTPUTS, "eq. 8 where the centers of the RBF learn, too", "collapses",
     "the codes are constants here"),
    ("lenet-linear-error", COMPARISON, "linear classifier, test error", "12.0%",
     "only convolutional networks are built here"),
    ("lenet-lush-lost-digits", f"{LUSH}, run by Bottou in 2019", "error on QMNIST's lost digits",
     "1.08 ± 0.1%", "their files are not at hand; `--dataset=qmnist --split=test50k` scores them"),
)
# fmt: on

CLAIMS = [
    *(computed(*row) for row in COMPUTED),
    *(measured(*row) for row in MEASURED),
    *(not_run(*row) for row in NOT_RUN),
]
