"""Run folders written by older versions resume and evaluate: people have such folders."""

import json
import shutil

import pytest

from scripts.faults.releases import GOLDEN, evaluated, resumed, write_noise10


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("lenet_deck", marks=pytest.mark.commands),
        pytest.param("lenet_paper", marks=pytest.mark.slow),
        pytest.param("alexnet_cifar18", marks=pytest.mark.slow),
    ],
)
def test_an_old_run_evaluates_and_resumes(name, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS", raising=False)
    write_noise10(tmp_path / "sets")
    shutil.copytree(GOLDEN / name, tmp_path / name)
    expected = json.loads((tmp_path / name / "expected.json").read_text())
    assert evaluated(tmp_path / name, expected) == "same"
    assert resumed(tmp_path / name, name, expected) == "same"
