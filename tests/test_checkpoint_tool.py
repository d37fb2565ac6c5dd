"""`python -m scripts.checkpoint` tells what a training would find, and changes nothing."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alexnet.config
import alexnet.train
import lenet.config
import lenet.train
from common import launch
from common.checkpoint import Checkpointer
from common.digests import describe
from common.errors import StorageError
from common.workdir import saved_steps
from scripts import checkpoint

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def command(*arguments) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the real command."""
    command = [sys.executable, "-W", "error", "-m", "scripts.checkpoint", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "80"}
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def tool(monkeypatch, capsys):
    """tool(*arguments): the command in this process, its exit code, output and errors."""
    monkeypatch.setattr(launch.runtime, "keep_freed_memory", lambda: None)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()  # what a training said before
        argv, words = ["checkpoint", *map(str, arguments)], ("ls|verify", "DIR")
        code = launch.run_tool(checkpoint.define_flags, checkpoint.main, argv, words)
        return code, *capsys.readouterr()

    return run


def state_of(step: int) -> dict:
    weights = np.random.default_rng(step).random((4, 200), np.float32)
    return {
        "params": {"c1": {"kernel": jnp.asarray(weights)}},
        "step": jnp.int32(step),
        "pair": (jnp.ones(3), jnp.zeros(2)),
    }


def make_run(workdir, *steps: int) -> None:
    workdir.mkdir()
    (workdir / "config.json").write_text('{"track": "validation"}')
    with contextlib.closing(Checkpointer(workdir)) as checkpointer:
        for step in steps:
            checkpointer.save(step, state_of(step), {})


def flip_weights(workdir, step: int) -> None:
    """Flips a bit of the largest file, which holds the kernel."""
    files = [
        path
        for path in (workdir / "checkpoints" / str(step) / "state").rglob("*")
        if path.is_file()
    ]
    path = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def snapshot(workdir) -> dict:
    return {
        path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in workdir.rglob("*")
    }


def trainer_restores(workdir):
    """The step that a training goes on from."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), state_of(0)
    )
    with contextlib.closing(Checkpointer(workdir)) as checkpointer:
        return checkpointer.restore_newest(target)[0]


def test_an_intact_run_is_said_to_be_and_left_alone(tmp_path, tool):
    workdir = tmp_path / "run"
    make_run(workdir, 10, 20, 30)
    records = [
        {"step": 20, "epoch": 2.0, "split": "train", "loss": 9.0, "error_pct": 90.0},
        {"step": 20, "epoch": 2.0, "split": "validation", "loss": 0.25, "error_pct": 1.5},
    ]
    (workdir / "metrics.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in records) + '{"step": 30, "ep'
    )
    (workdir / "checkpoints" / "9.corrupt").mkdir()
    (workdir / "checkpoints" / "40.orbax-checkpoint-tmp").mkdir()  # of a save under way
    before = snapshot(workdir)
    assert tool("verify", workdir) == (0, "30: intact\n20: intact\n10: intact\n", "")
    code, output, errors = tool("ls", workdir)
    assert (code, errors) == (0, "") and snapshot(workdir) == before
    header, _, *rows = [line.strip() for line in output.splitlines() if line.strip()]
    assert header.split() == ["step", "size", "age", "validation", "loss", "error", "state"]
    assert [row.split()[0] for row in rows] == ["9", "10", "20", "30", "40"]
    assert rows[0].endswith("damaged: 9.corrupt") and rows[4].endswith("unfinished")
    assert all(row.endswith("4 digests") for row in rows[1:4])
    assert rows[2].split()[-4:-2] == ["0.2500", "1.50%"] and "%" not in rows[1] + rows[3]
    size = sum(
        path.stat().st_size
        for path in (workdir / "checkpoints" / "20").rglob("*")
        if path.is_file()
    )
    assert f"{size / 1000:.1f} kB" in rows[2] and " s " in rows[2]


@pytest.mark.commands
def test_a_damaged_newest_step_means_falling_back(tmp_path, tool):
    workdir = tmp_path / "run"
    make_run(workdir, 10, 20, 30)
    flip_weights(workdir, 30)
    before = snapshot(workdir)
    code, output, errors = tool("verify", str(workdir))
    assert code == 74 and snapshot(workdir) == before
    first, *others = output.splitlines()
    assert first.startswith("30: damaged, ") and "kernel" in first, first
    assert others == ["20: intact", "10: intact"]
    assert errors.count("\n") == 1 and f"{workdir}/checkpoints: 30;" in errors and " 20" in errors
    assert trainer_restores(workdir) == 20


@pytest.mark.commands
def test_a_damaged_older_step_leaves_the_newest(tmp_path, tool):
    workdir = tmp_path / "run"
    make_run(workdir, 10, 20, 30)
    (workdir / "checkpoints" / "20" / "meta" / "metadata").write_text("{}")
    code, output, errors = tool("verify", workdir)
    assert (code, output.splitlines()[::2]) == (74, ["30: intact", "10: intact"])
    assert "checkpoints: 20;" in errors and " 30" in errors
    assert "20 " in (listed := tool("ls", workdir)[1]) and listed.count("damaged: no digests") == 1
    assert trainer_restores(workdir) == 30


@pytest.mark.commands
def test_no_intact_step_means_no_training(tmp_path, tool):
    workdir = tmp_path / "run"
    make_run(workdir, 10, 20)
    for step in (10, 20):
        flip_weights(workdir, step)
    for damaged in ("20, 10", "10.corrupt, 20.corrupt"):  # before and after a training has tried
        code, _, errors = tool("verify", workdir)
        assert code == 74 and errors.count("\n") == 1
        assert sorted(errors.split("checkpoints: ")[1].split(";")[0].split(", ")) == sorted(
            damaged.split(", ")
        )
        with pytest.raises(StorageError):
            trainer_restores(workdir)


def test_wrong_digests_of_right_arrays_are_named_by_leaf(tmp_path, monkeypatch):
    """The arrays that were saved are whole; those that were described are others."""
    make_run(tmp_path / "run", 10)
    monkeypatch.setattr(Checkpointer, "_read_back", lambda self: None)
    with contextlib.closing(Checkpointer(tmp_path / "run")) as checkpointer:
        with monkeypatch.context() as patch:
            for module in ("checkpoint", "checkpoint_files"):  # which reads each save back
                wrong = f"common.{module}.describe"
                patch.setattr(wrong, lambda path, array: [*describe(path, array)[:2], path])
            checkpointer.save(20, state_of(20), {})
            checkpointer._manager.wait_until_finished()
        assert checkpointer.verify(10) is None
        found = checkpointer.verify(20)
        leaves = "['pair'][0]", "['pair'][1]", "['params']['c1']['kernel']", "['step']"
        assert all(leaf in found for leaf in leaves)


@pytest.mark.commands
def test_the_states_of_both_networks_are_understood(tmp_path):
    """NamedTuples, tuples and empty parts of an optimizer's state, scalars: read without the code
    that made them.
    """
    digits = lenet.config.Config(optimizer="adamw", momentum=0.0, average_decay=0.9)
    photos = alexnet.config.Config(widths="small", crop_size=40)
    blank = alexnet.train.Statistics(np.zeros((48, 48, 3), np.float32), np.eye(3))
    numbers, things = lenet.train.assemble(digits), alexnet.train.assemble(photos, 10, blank)
    tx, other = lenet.train.build_optimizer(digits, 10), alexnet.train.build_optimizer(photos, 10)
    states = (
        jax.jit(lambda: lenet.train.initial_state(numbers, tx, numbers.init())),
        jax.jit(lambda: alexnet.train.initial_state(things, other, blank, things.init())),
    )
    with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
        for step, state in enumerate(states):
            state = state()
            checkpointer.save(step, state, {})
            checkpointer._manager.wait_until_finished()
            assert checkpointer.verify(step) is None
            assert len(checkpointer.description(step)["leaves"]) == len(jax.tree.leaves(state))


SAVING = """
import contextlib, sys, time
from pathlib import Path
import numpy as np
from common.checkpoint import Checkpointer

with contextlib.closing(Checkpointer(Path(sys.argv[1]))) as checkpointer:
    for step in range(1, 10_000):
        checkpointer.save(step, {"w": np.random.default_rng(step).random(500_000)}, {})
"""


@pytest.mark.slow
def test_beside_a_run_that_saves_all_the_time_it_finds_no_damage_and_does_none(tmp_path):
    (tmp_path / "config.json").write_text('{"track": "test"}')
    process = subprocess.Popen(
        [sys.executable, "-c", SAVING, str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    try:
        while len(saved_steps(tmp_path)) < 3:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        for _ in range(2):
            for word in ("ls", "verify"):
                before = saved_steps(tmp_path)[-1]
                code, output, errors = command(word, tmp_path)
                assert (code, errors) == (0, ""), output + errors
                assert saved_steps(tmp_path)[-1] > before  # it did save meanwhile
                assert "intact" in output or word == "ls"
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    assert not list(tmp_path.glob("checkpoints/*.corrupt*"))


@pytest.mark.commands
def test_all_steps_removed_while_it_reads_are_no_damage(tmp_path, monkeypatch, capsys):
    with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
        checkpointer.save(1, {"w": jnp.ones(3)}, {})
    verified = Checkpointer.verify

    def verify(self, step):
        if step == 1:
            shutil.rmtree(tmp_path / "checkpoints" / "1")
            with contextlib.closing(Checkpointer(tmp_path)) as other:
                other.save(2, {"w": jnp.ones(3)}, {})
        return verified(self, step)

    monkeypatch.setattr(Checkpointer, "verify", verify)
    with contextlib.closing(Checkpointer(tmp_path, read_only=True)) as checkpointer:
        checkpoint.verify(tmp_path, checkpointer)
    assert (
        capsys.readouterr().out
        == "1: removed meanwhile by the run, which keeps its newest\n2: intact\n"
    )


@pytest.mark.parametrize(
    "content", [b"", b'{"steps": 1}', b"[]", b'"track"', b"\xff", b'{"track": "[/]"}']
)
def test_a_torn_or_foreign_config_gets_one_line(tmp_path, tool, content):
    make_run(tmp_path / "run", 1)
    (tmp_path / "run" / "config.json").write_bytes(content)
    code, output, errors = tool("ls", tmp_path / "run")
    assert (code, output, errors.count("\n")) == (74, "", 1) and "config.json" in errors
    assert tool("verify", tmp_path / "run") == (0, "1: intact\n", "")


def test_mistakes_get_one_line(tmp_path, tool):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text('{"track": "test"}')
    for arguments, named in (
        ([], "ls|verify"),
        (["ls"], "DIR"),
        (["list", tmp_path], "ls, verify"),
        (["ls", tmp_path], str(tmp_path)),
        (["verify", tmp_path / "absent"], "absent"),
        (["ls", tmp_path / "new"], "new"),
        (["verify", tmp_path / "new"], "new"),
        (["ls", tmp_path, "more"], "more"),
        (["ls", tmp_path, "--json"], "json"),
    ):
        code, output, errors = tool(*arguments)
        assert (code, output, errors.count("\n")) == (2, "", 1) and named in errors, errors
    assert not (tmp_path / "absent").exists() and os.listdir(tmp_path / "new") == ["config.json"]


@pytest.mark.commands
def test_the_real_command(tmp_path):
    make_run(tmp_path / "run", 10, 20)
    before = snapshot(tmp_path / "run")
    assert command("verify", tmp_path / "run") == (0, "20: intact\n10: intact\n", "")
    flip_weights(tmp_path / "run", 20)
    assert command("verify", tmp_path / "run")[0] == 74
    code, output, errors = command("ls", "--help")
    assert (code, errors) == (0, "") and "verify DIR" in output
    assert snapshot(tmp_path / "run").keys() == before.keys()


@pytest.mark.commands
def test_a_reader_that_ends_early_is_no_error():
    """`| head -1`, and a disk without room."""
    command = f"{sys.executable} -m scripts.checkpoint --help"
    ended = subprocess.run(["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"], stderr=-1)
    assert ended.returncode in (0, 141) and not ended.stderr
    if os.path.exists("/dev/full"):
        full = subprocess.run(["bash", "-c", f"{command} > /dev/full"], stderr=-1, text=True)
        assert full.returncode == 74 and full.stderr.count("\n") == 1
