"""How a run of either network starts: from the weights of another run, or refused in one line
before anything is compiled. And how the program is started: as a module or as a file.
"""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

import alexnet.config
import alexnet.train
import lenet.config
import lenet.train
from common import __version__
from common.checkpoint import Checkpointer
from common.errors import Interrupted, UserError
from common.flags import to_flagfile
from common.loop import fit
from common.workdir import saved_steps, write_config

pytestmark = pytest.mark.usefixtures("compiled_quickly", "compiled_once")

ROOT = Path(__file__).parents[1]
DIGITS = lenet.config.Config(
    dataset="mnist10k", train_size=40, validation_size=40, batch_size=4, num_epochs=1
)
PHOTOS = alexnet.config.Config(
    dataset="noise10", train_size=16, validation_size=16, crop_size=16, widths="small",
    conv1_padding="symmetric", batch_size=4, num_epochs=1, ten_crop=False, num_workers=0,
)  # fmt: skip
NETWORKS = {"lenet": (lenet.train, DIGITS), "alexnet": (alexnet.train, PHOTOS)}


@pytest.fixture(scope="module", autouse=True)
def sets(tmp_path_factory, write_set):
    """Where PHOTOS finds its set."""
    folder = tmp_path_factory.mktemp("sets")
    images = np.random.default_rng(0).integers(0, 256, (32, 20, 20, 3), np.uint8)
    write_set(folder, "noise10", images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr(lenet.data, "steps_per_chunk", lambda batch_size: 1)


def make_run(network, config, workdir, weights="params", params=None) -> dict:
    """A run that was saved after 7 steps, with some weights replaced; returns its first params."""
    task = network.make_task(config)
    state = jax.jit(task.initial_state)(task.network.init())
    workdir.mkdir()
    write_config(config, workdir)
    with contextlib.closing(Checkpointer(workdir)) as checkpointer:
        saved = state if params is None else state._replace(**{weights: params})
        checkpointer.save(7, saved, task.facts | task.training_set)
    return state.params


def train(network, config, workdir, stop=False):
    """The result of a run to its end, or None of one that is stopped as soon as possible."""
    workdir.mkdir(exist_ok=True)
    write_config(config, workdir)
    task = network.make_task(config, workdir if saved_steps(workdir) else None)
    if not stop:
        return fit(task, workdir, lambda: None)
    with pytest.raises(Interrupted):
        fit(task, workdir, lambda: 15)


def command(net, workdir, config, before="pass"):
    """(exit code, stdout, stderr) of the real command, and the programs that it compiled."""
    (workdir.parent / "flags.txt").write_text(to_flagfile(config))
    arguments = [f"--workdir={workdir}", f"--flagfile={workdir.parent}/flags.txt"]
    run = f"runpy.run_module('{net}.train', run_name='__main__', alter_sys=True)"
    cache = workdir.parent / "cache"
    done = subprocess.run(
        [sys.executable, "-c", f"{before}; import runpy; {run}", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"XDG_CACHE_HOME": str(cache), "JAX_COMPILATION_CACHE_DIR": ""},
    )
    programs = list(cache.glob("lenet-alexnet/jax/*-cache"))
    return done.returncode, done.stdout, done.stderr, programs


# ---- from the weights of another run


@pytest.mark.slow
@pytest.mark.parametrize("net", NETWORKS)
@pytest.mark.parametrize("average_decay", [0.0, 0.9])
def test_a_run_starts_from_the_weights_that_another_is_scored_with_and_nothing_else(
    net, average_decay, tmp_path
):
    network, config = NETWORKS[net]
    given = make_run(network, dataclasses.replace(config, seed=6), tmp_path / "other")
    source = dataclasses.replace(
        config, seed=5, average_decay=average_decay, optimizer="adamw", momentum=0.0
    )
    make_run(network, source, tmp_path / "source", "average" if average_decay else "params", given)
    still = dataclasses.replace(  # too small a rate to be seen
        config, init_from=str(tmp_path / "source"), learning_rate=1e-30
    )
    train(network, still, tmp_path / "run", stop=True)
    params = {"lenet": lenet, "alexnet": alexnet}[net].load(tmp_path / "run").params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-25), params, given)
    assert saved_steps(tmp_path / "run") == [1]  # counted from 0


@pytest.mark.slow
@pytest.mark.parametrize("net", NETWORKS)
def test_a_resume_needs_the_other_run_no_more(net, tmp_path):
    network, config = NETWORKS[net]
    make_run(network, dataclasses.replace(config, seed=5), tmp_path / "source")
    config = dataclasses.replace(config, init_from=str(tmp_path / "source"))
    straight = train(network, config, tmp_path / "straight")
    train(network, config, tmp_path / "stopped", stop=True)
    shutil.rmtree(tmp_path / "source")
    stopped = train(network, config, tmp_path / "stopped")
    new = train(network, dataclasses.replace(config, init_from=""), tmp_path / "new")
    assert stopped["state_sha256"] == straight["state_sha256"] != new["state_sha256"]


@pytest.mark.commands
@pytest.mark.parametrize("net", NETWORKS)
def test_what_is_no_run_of_the_network_is_named(net, tmp_path):
    network, config = NETWORKS[net]
    other, theirs = NETWORKS["alexnet" if net == "lenet" else "lenet"]
    make_run(other, theirs, tmp_path / "other")
    for source in ("absent", "other"):
        from_there = dataclasses.replace(config, init_from=str(tmp_path / source))
        with pytest.raises(UserError, match=str(tmp_path / source)):
            train(network, from_there, tmp_path / "run")


# ---- refused before anything is compiled

OTHER_MODELS = {
    "lenet": [({"pooling": "trainable"}, "['s2']['bias']"), ({"c3": "random"}, "--c3=random")],
    "alexnet": [({"widths": "half_small"}, "['conv1']['bias']")],
}


@pytest.mark.slow
@pytest.mark.parametrize("net", NETWORKS)
def test_what_cannot_start_is_one_line_before_anything_is_compiled(net, tmp_path):
    network, config = NETWORKS[net]
    full = "import shutil; usage = shutil.disk_usage('/')._replace(free=10_000)"
    full += "; shutil.disk_usage = lambda path: usage"
    code, output, errors, programs = command(net, tmp_path / "run", config, before=full)
    assert (code, output, programs) == (74, "", []) and "Traceback" not in errors, errors
    assert "checkpoints" in errors.splitlines()[-1]
    for number, (changes, named) in enumerate(OTHER_MODELS[net]):
        source = tmp_path / f"source{number}"
        make_run(network, dataclasses.replace(config, **changes), source)
        from_there = dataclasses.replace(config, init_from=str(source))
        code, output, errors, programs = command(net, tmp_path / "run", from_there)
        assert (code, output, programs) == (2, "", []) and "Traceback" not in errors, errors
        last = errors.splitlines()[-1]
        assert last.startswith("error: ") and str(source) in last and named in last
    # Nothing of that binds the workdir: the command that is right trains in it.
    code, output, errors, programs = command(net, tmp_path / "run", config)
    assert code == 0 and programs, errors


@pytest.mark.commands
def test_a_model_axis_that_divides_no_layer_is_one_line_before_anything_is_compiled(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
    config = dataclasses.replace(PHOTOS, batch_size=3, mesh="data:1,model:3")
    code, output, errors, programs = command("alexnet", tmp_path / "run", config)
    assert (code, output, programs) == (2, "", []) and "Traceback" not in errors, errors
    assert errors.splitlines()[-1].startswith("error: --mesh"), errors


# ---- how the program is started


@pytest.mark.commands
@pytest.mark.parametrize("net", NETWORKS)
def test_run_as_a_file_it_is_the_same_where_installed_and_else_one_line(net, tmp_path):
    arguments = [
        ROOT / net / "train.py",
        "--preset=deck",
        f"--workdir={tmp_path}",
        "--num_epochs=0",
    ]
    run = dict(cwd=tmp_path, capture_output=True, text=True)
    code = "import importlib.util as u, sys; sys.exit(u.find_spec('lenet') is not None)"
    alone = os.environ | {"PYTHONPATH": ""}
    if subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=alone).returncode == 0:
        done = subprocess.run([sys.executable, *arguments], env=alone, **run)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1 and "pip install -e ." in done.stderr
    installed = os.environ | {"PYTHONPATH": str(ROOT)}  # as an installation would
    done = subprocess.run([sys.executable, *arguments], env=installed, **run)
    assert done.returncode == 2 and "--num_epochs=0" in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", [b"c[1]\\ b'\"%20*\n", b"c\xff"])
def test_whatever_the_folder_of_the_clone_is_called(tmp_path, name):
    """It works, or is refused in one line, before training."""
    clone = tmp_path / os.fsdecode(name)
    for package in ("common", "lenet", "alexnet", "scripts"):
        shutil.copytree(ROOT / package, clone / package)
    run = dict(cwd=clone, capture_output=True, text=True)
    run |= {"env": os.environ | {"PYTHONPATH": "", "XDG_CACHE_HOME": str(tmp_path)}}
    sizes = ["--train_size=8", "--validation_size=8", "--batch_size=4", "--num_epochs=1"]
    train = [sys.executable, "-m", "lenet.train", "--workdir=run", "--dataset=mnist10k", *sizes]
    done = subprocess.run(train, **run)
    if b"\xff" in name:
        assert (done.returncode, done.stdout) == (65, ""), done.stderr
        assert "UTF-8" in done.stderr.splitlines()[-1] and not saved_steps(clone / "run")
        return
    assert done.returncode == 0, done.stderr
    evaluate = [sys.executable, "-m", "scripts.evaluate", "--workdir=run", "--split=test[:8]"]
    done = subprocess.run(evaluate, **run)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.commands
def test_importing_a_network_is_cheap():
    code = "import lenet, alexnet, sys; lenet.load, alexnet.load; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.commands
def test_a_wheel_has_the_version_the_dependencies_the_presets_and_the_digits(tmp_path):
    """Built with the setuptools of this environment: needs no network."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("pyproject.toml needs setuptools 77")
    for name in ("common", "lenet", "alexnet", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / "tree" / name)
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "tree")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    command = [*pip, "--no-index", f"--wheel-dir={tmp_path}", tmp_path / "tree"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wheel = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
    folder = f"lenet_alexnet-{__version__}.dist-info"
    metadata = wheel.read(f"{folder}/METADATA").decode()
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert metadata.count("Requires-Dist: ") == sum(not line.startswith("#") for line in lines)
    data = [*ROOT.glob("*/presets/*.flags"), *ROOT.glob("lenet/digits/mnist10k/*/*")]
    assert {str(path.relative_to(ROOT)) for path in data} < set(wheel.namelist())
