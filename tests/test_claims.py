"""The ledger: what the deck and the papers state, beside what this project has."""

import dataclasses
import itertools
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import alexnet.model
import lenet.model
from alexnet.model import WIDTHS
from alexnet.pooling import average_pool, max_pool
from common import launch
from lenet import connections
from scripts.claims import __main__ as tool
from scripts.claims import deck, ledger
from scripts.claims import lenet as lenet_claims
from scripts.claims.claim import NOW, direction, measured, paired, says, studied, within
from scripts.claims.facts import Facts
from scripts.report import ledger as report_ledger
from scripts.report import results
from scripts.report.results import RESULTS
from scripts.studies import plan
from scripts.studies.catalog import STUDIES
from scripts.studies.compare import t_interval

STATUS = re.compile(
    r"exact|reproduced|differs|source inconsistent|open in the source"
    r"|undecided at n = \d+|not run: .+"
)
# The rows of layer tables.
LAYER = re.compile(r"(deck-)?(lenet|alexnet)-([csf]\d|output|(conv|pool|fc)\d)")
# What ours says where a source contradicts itself.
INCONSISTENT = {
    "deck-lenet-c3-parameters": ["1,516", "2,416", "1,500", "2,400"],
    "deck-lenet-c3-connections": ["151,600", "241,600", "150,000", "240,000"],
    "deck-lenet-ten-of-sixteen": ["16", "10"],
    "deck-lenet-table-1": ["60", "1,616"],
    "deck-lenet-every-convolution": ["C5"],
    "deck-alexnet-biases": ["62,378,344"],
    "deck-alexnet-norm-place": ["pool1"],
    "lenet-subsampling-input": ["average", "sum"],
    "lenet-pixel-variance": ["0.12", "0.15"],
    "lenet-multiply-accumulates": ["400,908"],
    "alexnet-neurons-of-conv1": ["290,400"],
    "alexnet-convolution-shares": ["conv3 1.45%", "conv4 1.09%"],
    "alexnet-relus": ["fc8"],
    "deck-alexnet-fc8-relu": ["none"],
    "deck-alexnet-millions": ["62.4"],
    "lenet-all-trainable": ["output"],
    "alexnet-conv1-size": ["54.25"],
    "alexnet-augmented-views": ["2,178"],
}
BY_CHOICE = {"lenet-initial-weights", "lenet-sdlm-rates", "alexnet-color-noise"}
CLAIMS = {claim.id: claim for claim in ledger.CLAIMS}


@pytest.fixture(scope="module")
def lines() -> dict[str, ledger.Line]:
    return {line.id: line for line in report_ledger.check(results.load(RESULTS))}


@pytest.fixture(scope="module")
def facts() -> Facts:
    return ledger.gather(results.load(RESULTS).runs, {})


def no_networks(runs=(), studies=None) -> Facts:
    return Facts(None, None, None, None, {}, runs, studies or {})


def comparison(base, arm, interval, verdict="undecided", ratio=False, bound=None, pairs=8):
    mean = interval and sum(interval) / 2
    place = {"arms": [base, arm], "mean": mean, "interval": interval, "pairs": pairs}
    within_margin = verdict == "no difference"
    return place | dict(verdict=verdict, ratio=ratio, bound=bound, within_margin=within_margin)


def study_of(*comparisons, choice=None, exploratory=False) -> dict:
    """What the ledger reads of a study.json."""
    found = {"comparisons": list(comparisons), "choice": choice or {}, "exploratory": exploratory}
    return found | {"metric": "epochs"}


# ---- the entries


def test_there_are_enough_and_each_is_one_of_its_own():
    ids = [claim.id for claim in ledger.CLAIMS]
    assert len(ids) >= 70 and len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z][a-z0-9-]+", name) for name in ids)
    assert sum(LAYER.fullmatch(name) is None for name in ids) >= len(ids) / 2
    statements = [(claim.source, claim.claim) for claim in ledger.CLAIMS]
    assert len(set(statements)) == len(statements)


def test_every_study_is_a_claim():
    named = {claim.how.split("study ")[1] for claim in ledger.CLAIMS if "study " in claim.how}
    assert named == STUDIES.keys()


def test_the_studies_that_are_defined_have_the_arms_of_their_claims():
    made = {}
    for name, study in STUDIES.items():
        arms = itertools.combinations(study.arms, 2)
        pairs = [comparison(base, arm, [0.1, 0.2], "higher") for base, arm in arms]
        made[name] = study_of(*(pair | {"gap": pair} for pair in pairs))
    for claim in ledger.CLAIMS:
        if claim.how.removeprefix("study ") in made:
            assert "not run" not in claim.check(no_networks(studies=made))[1], claim.id


@pytest.mark.commands
def test_no_cell_is_blank_and_every_status_is_known(lines):
    for line in lines.values():
        assert all(cell.strip() for cell in line), line
        assert STATUS.fullmatch(line.status), line
        assert "no such run" not in line.status, line


@pytest.mark.commands
def test_what_follows_from_the_code_holds(lines):
    assert ledger.wrong(lines.values()) == []
    differing = {line.id: line.how for line in lines.values() if line.status == "differs"}
    of_the_code = {name for name, how in differing.items() if how.startswith(NOW)}
    assert of_the_code == BY_CHOICE


@pytest.mark.commands
def test_sources_that_contradict_themselves(lines):
    found = {line.id for line in lines.values() if line.status == "source inconsistent"}
    assert found == INCONSISTENT.keys()
    for name, parts in INCONSISTENT.items():
        assert all(part in lines[name].ours for part in parts), lines[name]


@pytest.mark.commands
def test_numbers_on_cifar10_say_what_images_they_are_of(lines):
    of_cifar = {name for name, study in STUDIES.items() if dataset(study) == "cifar10"}
    found = [
        line
        for line in lines.values()
        if "cifar10" in line.how or line.how.split("study ")[-1] in of_cifar
    ]
    measured_here = [line for line in found if "not run" not in line.status]
    assert len(measured_here) > 2
    assert all("on re-encoded images" in line.ours for line in measured_here)


def dataset(study: plan.Study) -> str:
    return next(iter(plan.first_configs(study).values())).dataset


# ---- ours can be wrong


@pytest.mark.commands
def test_another_table_of_c3_is_noticed(monkeypatch, capsys):
    table = (*connections.C3_TABLE[:-1], (0, 1, 2, 3, 4))
    monkeypatch.setattr(connections, "C3_TABLE", table)
    monkeypatch.setattr(ledger, "CLAIMS", (*deck.CLAIMS, *lenet_claims.CLAIMS))
    monkeypatch.setattr(launch.runtime, "keep_freed_memory", lambda: None)
    code = launch.run_tool(tool.define_flags, tool.main, ["claims", "--json"])
    output, errors = capsys.readouterr()
    broken = {line["id"] for line in json.loads(output) if line["status"] == "differs"} - BY_CHOICE
    expected = {"lenet-c3", "lenet-parameters", "lenet-connections", "lenet-table-1"}
    expected |= {"deck-lenet-c3", "deck-lenet-c3-parameters", "deck-lenet-ten-of-sixteen"}
    assert code == 1 and broken >= expected
    assert len(errors.splitlines()) == 1 and all(name in errors for name in broken)


@pytest.mark.parametrize(
    ("target", "value", "named"),
    [
        ("alexnet.augment.VIEWS", 5, "alexnet-ten-crops"),
        ("alexnet.augment.COLOR_NOISE", 0.2, "alexnet-color-noise"),
        ("alexnet.optimizer.DROP", 0.5, "alexnet-drops"),
        ("lenet.optimizer.MU", 0.2, "lenet-mu"),
        ("lenet.optimizer.PAPER_RATES", {1: 0.0005, 2: 0.0001}, "lenet-rates"),
    ],
)
@pytest.mark.commands
def test_a_changed_constant_is_noticed(monkeypatch, facts, target, value, named):
    monkeypatch.setattr(target, value)
    ours, status = CLAIMS[named].check(facts)
    assert status == "differs" and "N(0, 0.1)" not in ours


@pytest.mark.commands
def test_another_pool_is_noticed(facts):
    live = facts.alexnet
    live.model.pool = partial(max_pool, overlapping=False)
    ours, status = CLAIMS["alexnet-overlapping-pools"].check(facts)
    live.model.pool = partial(max_pool, overlapping=True)
    assert (ours, status) == ("maximum of 2x2, 2 apart", "differs")


@pytest.mark.commands
def test_another_width_is_noticed(monkeypatch):
    _, *rest = WIDTHS["2012"]
    monkeypatch.setitem(WIDTHS, "2012", ((96, 256, 384, 384, 258), *rest))
    facts = ledger.gather((), {})
    rows = [claim for claim in ledger.CLAIMS if LAYER.fullmatch(claim.id)]
    assert len(rows) == 32
    seen = {claim.id for claim in rows if claim.check(facts)[1] == "differs"}
    assert seen == {"deck-alexnet-conv5", "deck-alexnet-pool5", "deck-alexnet-fc6", "alexnet-conv5"}


@pytest.mark.commands
def test_a_network_that_does_otherwise_than_its_table_is_noticed(monkeypatch):
    """What its own layer table still says."""
    monkeypatch.setattr(lenet.model, "masked", lambda convolution, mask: convolution)  # dense
    monkeypatch.setattr(alexnet.model, "HIDDEN_BIAS", ("conv2",))
    monkeypatch.setattr(alexnet.model.pools, "max_pool", average_pool)
    facts = ledger.gather((), {})
    names = "lenet-c3", "lenet-parameters", "lenet-table-1", "lenet-asymmetry"
    names += "alexnet-initial-biases", "alexnet-overlapping-pools", "deck-alexnet-max-pools"
    assert {CLAIMS[name].check(facts)[1] for name in names} == {"differs"}
    forward = lenet.model.LeNet5.forward

    def unsquashed(network, images):
        found = forward(network, images)
        return found | {"c1": found["c1"] / 2}

    monkeypatch.setattr(lenet.model.LeNet5, "forward", unsquashed)
    for name in "lenet-squashed-layers", "deck-lenet-tanh":
        ours, status = CLAIMS[name].check(facts)
        assert status == "differs" and "C1" not in ours.split(", ") and "F6" in ours


# ---- what is measured

ARM = ("lenet", "s", "a")


@pytest.mark.parametrize(
    ("values", "expected", "status"),
    [
        ([0.88, 0.90, 0.86], 0.95, "reproduced"),
        ([1.50, 1.52, 1.48], 0.95, "differs"),
        ([0.50, 1.40, 0.95], 0.95, "undecided at n = 3"),  # a wide interval says nothing
        ([1.00, 1.10, 1.20], 0.95, "undecided at n = 3"),
        ([0.95], 0.95, "undecided at n = 1"),
        ([None], 0.95, "not run: the runs in results/ were kept without their curves"),
        ([], 0.95, "not run: results/ has no such run"),
    ],
)
def test_a_mean_beside_a_stated_number(values, expected, status):
    runs = [dict(network="lenet", study="s", arm="a", x=x) for x in values]
    claim = measured(
        *("an-id", "source", "claim", "0.95 ± 0.1%"),
        **dict(arm=ARM, value=lambda run: run["x"], expected=expected, tolerance=0.1),
    )
    ours, found = claim.check(no_networks(runs))
    assert found == status and ("not run" in status or f"n = {len(values)}" in ours)


def test_the_interval_is_students():
    low, high = t_interval([1.0, 2.0, 3.0, 4.0])
    assert (low, high) == pytest.approx((2.5 - 2.0543, 2.5 + 2.0543), abs=1e-4)  # t(3) = 3.1824


def test_curves_give_the_landmarks():
    """Of the paper's settings, in whichever study."""
    study = STUDIES["codes"]

    def curves(last, seed):
        run = plan.Run("distance13", seed, (), Path())
        settings = dataclasses.asdict(plan.config(study, run))
        place = dict(network="lenet", study="codes", arm="distance13", seed=seed)
        test = {"epoch": list(range(1, 21)), "error_pct": [1.0] * 9 + [0.94] + [0.9] * 9 + [last]}
        train = {"epoch": list(range(1, 21)), "error_pct": [0.5] * 18 + [0.36, 0.34]}
        return place | {"curves": {"test": test, "train": train}, "settings": settings}

    other = curves(0.5, 13)
    other["settings"]["map_constant"] = 1.0
    facts = no_networks([curves(0.9, 10), curves(0.92, 11), curves(0.91, 12), other])
    for name, value in (
        ("lenet-ten-passes", "0.94%"),
        ("lenet-training-error", "0.36%"),
        ("lenet-no-over-training", "0.01 points"),
    ):
        ours, status = CLAIMS[name].check(facts)
        assert status == "reproduced" and ours.startswith(value) and "n = 3" in ours


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("verdict", "agrees", "status"),
    [
        ("lower", says("lower"), "reproduced"),
        ("higher", says("lower"), "differs"),
        ("no difference", says("lower"), "differs"),
        ("no difference", says("lower", "no difference"), "reproduced"),
        ("undecided", says("lower"), "undecided at n = 8"),
    ],
)
def test_a_verdict_becomes_a_status(verdict, agrees, status, turned):
    found = comparison("none", "dropout", [-1.5, -0.5], verdict)
    if turned:  # the study has them the other way round
        other = {"lower": "higher", "higher": "lower"}.get(verdict, verdict)
        found = comparison("dropout", "none", [0.5, 1.5], other)
    claim = studied(
        *("an-id", "source", "claim", "stated"),
        *("s", ("dropout", "none"), agrees, ", on such images"),
    )
    ours, result = claim.check(no_networks(studies={"s": study_of(found)}))
    expected = "dropout against none: -1.00 points [-1.50, -0.50], n = 8{}, on such images"
    assert (ours, result) == (expected.format(""), status)
    later = no_networks(studies={"s": study_of(found, exploratory=True)})
    assert claim.check(later) == (expected.format("; exploratory"), status)


def test_a_difference_too_small_to_matter_is_none():
    found = comparison("average", "sum", [-0.03, -0.01], "lower") | {"within_margin": True}
    assert says("no difference")(found) and says("lower")(found) and not says("higher")(found)
    assert not says("no difference")(found | {"within_margin": False})


@pytest.mark.parametrize(
    ("interval", "verdict", "agrees"),
    [
        ([-0.5, -0.1], "lower", True),
        ([0.1, 0.5], "higher", False),
        ([-0.45, 0.03], "no difference", None),  # -0.4 lies in it
        ([-0.2, 0.2], "no difference", False),
        ([-0.6, 0.2], "undecided", None),
        (None, "undecided", None),  # of one pair
    ],
)
def test_a_direction(interval, verdict, agrees):
    assert direction(-0.4)(comparison("a", "b", interval, verdict)) is agrees


def test_a_gap_is_that_of_test_and_training_errors():
    errors = comparison("dropout", "none", [-1.3, -0.5], "lower")
    study = study_of(errors | {"gap": comparison("dropout", "none", [0.4, 0.8], "higher")})
    facts = no_networks(studies={"dropout": study})
    ours, status = CLAIMS["deck-dropout-overfitting"].check(facts)
    assert ours.startswith("dropout against none: -0.60 points [-0.80, -0.40]")
    assert status == "reproduced"
    assert CLAIMS["alexnet-dropout-error"].check(facts)[1] == "open in the source"


def test_another_value_of_the_runs_of_a_study():
    values = dict(dropout=[2.9, 3.0, 3.1, 2.8, 3.2, 3.0], none=[4.0, 3.9, 4.2, 3.8, 4.1, 4.0])
    runs = [
        dict(network="alexnet", study="dropout", arm=arm, seed=seed, x=value)
        for arm, found in values.items()
        for seed, value in enumerate(found, 10)
    ]
    claim = paired(
        *("an-id", "source", "claim", "stated", "dropout", ("dropout", "none")),
        *(lambda run: run["x"], says("lower")),
    )
    ours, status = claim.check(no_networks(runs))
    assert ours.startswith("dropout against none: -1.00 points [") and status == "reproduced"
    assert claim.check(no_networks(runs[:9]))[1] == "undecided at n = 3"
    assert claim.check(no_networks(runs[:6]))[1].startswith("not run: ")


def test_an_arm_that_ended_in_its_choice_decides_nothing():
    choice = {"setting": "learning_rate", "values": {"0.1": [120], "1": [120]}, "reached": False}
    study = study_of(comparison("b", "a", [-2, -1], "lower"), choice={"c": choice})
    claim = studied("an-id", "source", "claim", "stated", "s", ("a", "c"), says("lower"))
    ours, status = claim.check(no_networks(studies={"s": study}))
    assert status == "undecided at n = 1" and "c did not reach it" in ours and "0.1, 1" in ours


@pytest.mark.parametrize(
    ("interval", "bound", "status"),
    [
        ([0.15, 0.19], None, "reproduced"),
        ([0.15, 0.19], "at most", "undecided at n = 8"),  # it may be any smaller
        ([0.18, 0.26], None, "undecided at n = 8"),  # it touches a sixth; its mean is none
        ([0.05, 0.6], None, "undecided at n = 8"),
        ([0.3, 0.4], None, "differs"),
        ([0.3, 0.4], "at most", "undecided at n = 8"),  # where some of tanh's runs never got there
        ([0.05, 0.1], "at most", "differs"),
    ],
)
def test_a_factor(interval, bound, status):
    found = comparison("tanh", "relu", interval, "lower", ratio=True, bound=bound)
    claim = studied(
        *("an-id", "source", "claim", "x0.17"),
        *("s", ("relu", "tanh"), within(1 / 6.5, 1 / 5.5)),
    )
    ours, found = claim.check(no_networks(studies={"s": study_of(found)}))
    assert found == status and ours.startswith(f"relu against tanh: {f'{bound} ' * bool(bound)}x0.")


@pytest.mark.commands
def test_studies_are_those_of_results(monkeypatch):
    chosen = (CLAIMS["deck-relu-tanh-error"], CLAIMS["deck-max-pooling"])
    monkeypatch.setattr(ledger, "CLAIMS", chosen)
    activation = study_of(comparison("tanh", "relu", [-0.1, -0.02], "lower", pairs=20))
    pooling = study_of(comparison("average", "max", [-0.1, -0.02], "lower", pairs=20))
    made = [activation | {"name": "lenet_activation"}, pooling | {"name": "lenet_pooling"}]
    lines = report_ledger.check(results.Results([], {}, made))
    assert [line.status for line in lines] == ["reproduced", "open in the source"]
    assert all("n = 20" in line.ours for line in lines)


# ---- the command


@pytest.mark.commands
def test_the_real_command(lines):
    command = [sys.executable, "-m", "scripts.claims"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [tuple(each.values()) for each in json.loads(done.stdout)] == list(lines.values())


def test_the_table_fits_80_columns_and_shows_every_id(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    line = ledger.Line("an-id-of-so-many-characters", *["[b]word and more words"] * 5, "exact")
    tool.print_table([line])
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in output and "[b]" in output


def test_two_forms_at_once_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(launch.runtime, "keep_freed_memory", lambda: None)
    argv = ["claims", "--json", "--markdown"]
    assert launch.run_tool(tool.define_flags, tool.main, argv) == 2
    output, errors = capsys.readouterr()
    assert output == "" and "--markdown" in errors and len(errors.splitlines()) == 1
