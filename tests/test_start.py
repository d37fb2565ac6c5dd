"""How a run of either network starts: from the weights of another run, or refused in one line
before anything is compiled.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alexnet.config
import alexnet.train
import lenet.config
import lenet.train
from common.checkpoint import Checkpointer
from common.errors import Interrupted, UserError
from common.flags import to_flagfile
from common.workdir import saved_steps

DIGITS = lenet.config.Config(
    dataset="mnist10k", train_size=40, validation_size=40, batch_size=4, num_epochs=1
)
PHOTOS = alexnet.config.Config(
    dataset="noise10", train_size=16, validation_size=16, crop_size=16, widths="small", conv1_padding="symmetric", batch_size=4,
    num_epochs=1, ten_crop=False, num_workers=0,
)  # fmt: skip
NETWORKS = {"lenet": (lenet.train, DIGITS), "alexnet": (alexnet.train, PHOTOS)}


@pytest.fixture(scope="module", autouse=True)
def sets(tmp_path_factory, write_set):
    """Where PHOTOS finds its set."""
    folder = tmp_path_factory.mktemp("sets")
    write_set(
        folder, "noise10", np.random.default_rng(0).integers(0, 256, (32, 20, 20, 3), np.uint8)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield


def first_state(network, config):
    """The state that a run of `config` starts with, by default."""
    tx = network.build_optimizer(config, 10)
    if network is lenet.train:
        return jax.jit(lambda: network.initial_state(config, tx, 1, 10))()
    blank = network.Statistics(jnp.zeros((20, 20, 3)), jnp.zeros((3, 3)))
    return jax.jit(lambda: network.initial_state(config, tx, 10, blank))()


def make_run(network, config, workdir, **parts):
    """A run that was saved with parts of its state replaced."""
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    facts = (
        {"in_channels": 1, "num_classes": 10}
        if network is lenet.train
        else {"num_classes": 10, "image_shape": [20, 20, 3]}
    )
    with contextlib.closing(Checkpointer(workdir)) as checkpointer:
        checkpointer.save(7, first_state(network, config)._replace(**parts), facts)


def train(network, config, workdir, stop=False):
    """The result of a run to its end, or None of one that is stopped as soon as possible."""
    workdir.mkdir(exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    if not stop:
        return network.train_and_evaluate(config, workdir, lambda: None)
    with pytest.raises(Interrupted):
        network.train_and_evaluate(config, workdir, lambda: 15)


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr(lenet.train, "steps_per_chunk", lambda batch_size: 1)


@pytest.mark.slow
@pytest.mark.parametrize("net", NETWORKS)
@pytest.mark.parametrize("average_decay", [0.0, 0.9])
def test_a_run_starts_from_the_weights_that_another_is_scored_with_and_nothing_else(
    net, average_decay, tmp_path
):
    network, config = NETWORKS[net]
    source = dataclasses.replace(
        config, seed=5, average_decay=average_decay, optimizer="adamw", momentum=0.0
    )
    given = first_state(network, dataclasses.replace(config, seed=6)).params
    make_run(
        network, source, tmp_path / "source", **{"average" if average_decay else "params": given}
    )
    still = dataclasses.replace(
        config, init_from=str(tmp_path / "source"), learning_rate=1e-30
    )  # too small a rate to be seen
    train(network, still, tmp_path / "run", stop=True)
    params = network.load_run(tmp_path / "run").params
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-25),
        params,
        given,
    )
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


def command(net, workdir, config, before="pass"):
    """(exit code, stdout, stderr) of the real command, and the programs that it compiled."""
    (workdir.parent / "flags.txt").write_text(to_flagfile(config))
    arguments = [f"--workdir={workdir}", f"--flagfile={workdir.parent}/flags.txt"]
    program = f"{before}; import runpy; runpy.run_module('{net}.train', run_name='__main__', alter_sys=True)"
    cache = workdir.parent / "cache"
    environment = {
        name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"
    }
    environment |= {"XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment
    )
    return (
        done.returncode,
        done.stdout,
        done.stderr,
        [path.name for path in cache.glob("lenet-alexnet/jax/*-cache")],
    )


OTHER_MODELS = {
    "lenet": [
        (
            {"pooling": "trainable"},
            r"['s2']['bias'] is float32 (6,) there and absent here. --init_from needs a run of the same",
        ),
        ({"c3": "random"}, "its --c3=random connects other maps; use its --c3 and --seed."),
    ],
    "alexnet": [({"crop_size": 40}, r"['fc6']['kernel'] is float32 (")],
}


@pytest.mark.slow
@pytest.mark.parametrize("net", NETWORKS)
def test_what_cannot_start_is_one_line_before_anything_is_compiled(net, tmp_path):
    network, config = NETWORKS[net]
    full = "import shutil; free = shutil.disk_usage('/')._replace(free=10_000); shutil.disk_usage = lambda path: free"
    code, output, errors, programs = command(net, tmp_path / "run", config, before=full)
    assert (code, output, programs) == (74, "", [])
    assert "twice that must be free" in errors.splitlines()[-1] and "Traceback" not in errors
    for number, (changes, message) in enumerate(OTHER_MODELS[net]):
        make_run(
            network, dataclasses.replace(config, **changes), source := tmp_path / f"source{number}"
        )
        code, output, errors, programs = command(
            net, tmp_path / "run", dataclasses.replace(config, init_from=str(source))
        )
        assert (code, output, programs) == (2, "", []) and "Traceback" not in errors
        assert errors.splitlines()[-1].startswith(f"error: {source} holds another model: ")
        assert message in errors.splitlines()[-1], errors
    # Nothing of that binds the workdir: the command that is right trains in it.
    code, output, errors, programs = command(net, tmp_path / "run", config)
    assert code == 0 and programs, errors


def test_a_model_axis_that_divides_no_layer_is_one_line_before_anything_is_compiled(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
    config = dataclasses.replace(PHOTOS, batch_size=3, mesh="data:1,model:3")
    code, output, errors, programs = command("alexnet", tmp_path / "run", config)
    assert (code, output, programs) == (2, "", []) and "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("error: --mesh with model:3 cannot split "), errors


@pytest.mark.parametrize("net", NETWORKS)
def test_what_is_no_run_of_the_network_is_named(net, tmp_path):
    network, config = NETWORKS[net]
    other = NETWORKS["alexnet" if net == "lenet" else "lenet"]
    make_run(*other, tmp_path / "other")
    for source, message in (("absent", "holds no run"), ("other", "is not that of a")):
        with pytest.raises(UserError, match=message):
            train(
                network,
                dataclasses.replace(config, init_from=str(tmp_path / source)),
                tmp_path / "run",
            )
