"""Run folders written by older versions resume and evaluate: people have such folders.

Each folder in tests/golden was interrupted in the middle; its expected.json says what the same run
ended in, uninterrupted, and what an evaluation of the folder gave.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from common import provenance
from scripts.faults.releases import GOLDEN, write_noise10

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def noise10(tmp_path_factory) -> Path:
    """The data_dir of the noise that the AlexNet folder was trained on."""
    folder = tmp_path_factory.mktemp("sets")
    write_noise10(folder)
    return folder


def run(module: str, *flags: str, data_dir: Path) -> str:
    environment = os.environ | {"TFDS_DATA_DIR": str(data_dir), "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)
    command = [sys.executable, "-m", module, *flags]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("lenet_deck", marks=pytest.mark.commands),
        pytest.param("lenet_paper", marks=pytest.mark.slow),
        pytest.param("alexnet_cifar18", marks=pytest.mark.slow),
    ],
)
def test_an_old_run_evaluates_and_resumes(name, noise10, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(GOLDEN / name, workdir)
    expected = json.loads((workdir / "expected.json").read_text())
    then, complete = expected["evaluation_then"], expected["complete"]

    options = [f"--workdir={workdir}", "--json"]
    now = json.loads(run("scripts.evaluate", *options, data_dir=noise10))
    assert now["step"] == then["step"] == expected["interrupted_at_step"]
    assert now["loss"] == pytest.approx(then["loss"], rel=1e-4)
    assert now["error_pct"] == pytest.approx(then["error_pct"], abs=0.2)

    flags = [f"--flagfile={workdir}/flags.txt", f"--workdir={workdir}"]
    run(f"{name.partition('_')[0]}.train", *flags, data_dir=noise10)
    result = json.loads((workdir / "result.json").read_text())
    assert result["num_steps"] == complete["num_steps"]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    places = [(line["step"], line["split"]) for line in lines]
    assert len(places) == len(set(places)) and places[-1][0] == complete["num_steps"]

    here = provenance.machine()
    same_machine = here["processor"] == complete["machine"]["processor"]
    if same_machine and jax.__version__ == complete["versions"]["jax"]:
        assert result["state_sha256"] == complete["state_sha256"]
        errors = {key: value for key, value in complete.items() if key.endswith("_error_pct")}
        assert {key: result[key] for key in errors} == errors
