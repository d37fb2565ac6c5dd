"""`scripts.strings`: strings of digits are made, read and measured."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common import examples, launch, runtime
from common.errors import UserError
from lenet import data
from lenet.space_displacement import DIGIT_COST, INK_COST
from scripts import strings

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
compose = strings.compose
TEST = examples.load("mnist10k", "test", [data.DIGITS])
CHOICE = json.loads((ROOT / "results" / "strings_choice.json").read_text())


@pytest.fixture
def finished(tmp_path):
    """The folder of a finished run."""
    folder = shutil.copytree(GOLDEN / "lenet_paper", tmp_path / "finished")
    result = {"command": "python -m lenet.train --preset=paper", "commit": None}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def measured(monkeypatch, tmp_path, capsys):
    """measured(*arguments) -> (exit code, the file of --json, errors)."""
    monkeypatch.setattr(runtime, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(strings, "ROUNDS", 2)
    out = tmp_path / "out.json"

    def run(*arguments):
        argv = ["strings", *map(str, arguments), f"--json={out}"]
        code = launch.run_tool(strings.define_flags, strings.main, argv, ("RUN", "[RUN ...]"))
        return code, json.loads(out.read_text()) if out.exists() else None, capsys.readouterr().err

    return run


def test_strings_are_of_different_digits_at_their_places():
    images, labels, centers = strings.compose(TEST, 400)
    assert images.shape == (400, 28, 140, 1) and labels.shape == centers.shape == (400, 5)
    assert sorted(labels.ravel()) == sorted(TEST.labels)  # each of the 2,000 once
    assert set(np.unique(np.diff(centers))) == set(range(20, 29))
    assert centers.min() == 14 and centers.max() == 126
    ink = images[..., 0].sum(axis=1) / 255  # (400, 140)
    columns = np.arange(140)
    near = np.abs(columns - centers[:, :, None]).min(axis=1) <= 10
    assert (ink * near).sum() > 0.98 * ink.sum()
    with pytest.raises(UserError, match="2,005"):
        strings.compose(TEST, 401)


def test_a_string_is_cut_between_digits():
    """As many pieces as digits, but where one is in parts, or two that touch are narrow."""
    images, *_ = strings.compose(TEST, 60)
    counts = [len(strings.cut_apart(image[..., 0])) for image in images]
    assert np.mean(np.array(counts) == 5) > 0.9
    alone = strings.cut_apart(np.pad(TEST.images[7, ..., 0], ((0, 0), (30, 30))))
    np.testing.assert_allclose(alone[0, ..., 0].astype(int), TEST.images[7, ..., 0], atol=60)


@pytest.mark.commands
def test_a_run_is_measured(measured, finished):
    code, found, errors = measured(finished, "--strings=12")
    (row,) = found["rows"]
    assert code == 0 and not errors and found["strings"] == 12 and row["windows"] == 41
    for way in ("one_pass", "cut_apart", "true_places"):
        assert 0 <= row[way]["read_pct"] <= row[way]["complete_pct"] <= 100
    assert row["speed_up"] > 0


@pytest.mark.commands
def test_costs_are_compared(measured, finished, monkeypatch):
    monkeypatch.setattr(strings, "DIGIT_COSTS", (1.0, 3.0))
    monkeypatch.setattr(strings, "compose", lambda _, count: compose(TEST, count))
    code, found, errors = measured(finished, "--strings=8", "--choose")
    (row,) = found["rows"]
    assert code == 0 and not errors and len(row["costs"]) == 2 * len(strings.INK_COSTS)
    assert row["costs"][0]["read_pct"] == max(cost["read_pct"] for cost in row["costs"])


@pytest.mark.commands
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["FINISHED", "--strings=401"], "--strings"),
        ([GOLDEN / "lenet_paper"], "result.json"),
        ([GOLDEN / "alexnet_cifar18"], "LeNet-5"),
        (["absent"], "absent"),
    ],
)
def test_wrong_use_is_one_line(measured, finished, arguments, named):
    words = [finished if word == "FINISHED" else word for word in arguments]
    code, found, errors = measured(*words)
    assert code == UserError.exit_code and found is None
    assert named in errors and errors.count("\n") == 1


def test_no_other_costs_are_better_by_half_a_point():
    """On the mean of the runs, of the pairs in the record."""
    assert CHOICE["strings"] == strings.STRINGS and not CHOICE["commit"].endswith("-dirty")
    means = {(cost["digit_cost"], cost["ink_cost"]): [] for cost in CHOICE["rows"][0]["costs"]}
    for row in CHOICE["rows"]:
        for cost in row["costs"]:
            means[cost["digit_cost"], cost["ink_cost"]].append(cost["read_pct"])
    best = max(map(np.mean, means.values()))
    assert np.mean(means[DIGIT_COST, INK_COST]) >= best - 0.5


@pytest.mark.nightly
def test_a_network_reads_strings(measured, tmp_path):
    """Of 10,000 training digits; those of all of MNIST read 95% (results/strings.json)."""
    command = [sys.executable, "-m", "lenet.train", f"--workdir={tmp_path / 'run'}"]
    settings = ["--dataset=mnist10k", "--validation_size=500", "--distortions=elastic"]
    subprocess.run([*command, *settings], cwd=ROOT, check=True, capture_output=True)
    _, found, _ = measured(tmp_path / "run", "--strings=400")
    (row,) = found["rows"]
    assert row["one_pass"]["read_pct"] > 84 and row["one_pass"]["complete_pct"] > 98
    assert row["one_pass"]["read_pct"] > row["cut_apart"]["read_pct"] - 3
