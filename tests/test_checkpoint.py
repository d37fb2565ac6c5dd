"""A checkpoint comes back bit for bit or not at all."""

import contextlib
import errno
import hashlib
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from orbax.checkpoint._src.path import atomicity, deleter

from common import checkpoint, storage
from common.checkpoint import Checkpointer
from common.digests import describe, host_leaves, state_sha256
from common.errors import NonFiniteError, StorageError, UserError
from common.workdir import saved_steps


class State(NamedTuple):
    step: jax.Array
    params: Any
    key: jax.Array


def make_state(step: int, units: int = 6) -> State:
    params = nnx.state(nnx.Linear(5, units, rngs=nnx.Rngs(step)))
    return State(jnp.int32(step), params, jax.random.key(step))


def target_of(state):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), state
    )


def save(workdir, *steps: int, keep: int = 3) -> None:
    with contextlib.closing(Checkpointer(workdir, keep)) as checkpointer:
        for step in steps:
            checkpointer.save(step, make_state(step), {"seconds": step * 0.1})


def restore(workdir, target=None, **options):
    with contextlib.closing(Checkpointer(workdir, **options)) as checkpointer:
        return checkpointer.restore_newest(target_of(make_state(0)) if target is None else target)


def assert_is(restored, step: int) -> None:
    assert restored[0] == step
    assert state_sha256(restored[1]) == state_sha256(make_state(step))
    assert restored[2] == {"seconds": step * 0.1}


# ---- the digest


def test_digest_is_the_contract():
    """SHA-256 over the leaves sorted by path, each as path, dtype, shape and little-endian bytes:
    written out by hand.
    """
    state = {
        "b": jnp.array([[1.5, -2.0]], jnp.float32),
        "a": (jnp.int32(7), jnp.array([True, False])),
        "c": jnp.bfloat16(1.0),
    }
    expected = hashlib.sha256()
    expected.update(b"['a'][0]\nint32\n()\n" + struct.pack("<i", 7))
    expected.update(b"['a'][1]\nbool\n(2,)\n" + b"\x01\x00")
    expected.update(b"['b']\nfloat32\n(1, 2)\n" + struct.pack("<2f", 1.5, -2.0))
    expected.update(b"['c']\nbfloat16\n()\n" + b"\x80\x3f")
    assert state_sha256(state) == expected.hexdigest()


def test_digest_of_tuples_modules_and_keys():
    """The paths of a NamedTuple and of an nnx.State do not depend on the version of JAX."""
    state = State(
        jnp.int32(1), nnx.State({"kernel": nnx.Param(jnp.zeros((2, 1)))}), jax.random.key(5)
    )
    expected = hashlib.sha256()
    expected.update(b".key\nuint32\n(2,)\n" + struct.pack("<2I", 0, 5))
    expected.update(b".params['kernel'].value\nfloat32\n(2, 1)\n" + bytes(8))
    expected.update(b".step\nint32\n()\n" + struct.pack("<i", 1))
    assert state_sha256(state) == expected.hexdigest()


def test_digest_sees_every_bit_and_not_the_memory_layout():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    digest = state_sha256({"w": array})
    assert (
        state_sha256({"w": np.asfortranarray(array)})
        == digest
        == state_sha256({"w": jnp.asarray(array)})
    )
    flipped = array.copy()
    flipped.view(np.uint32)[2, 3] ^= 1
    others = [
        {"w": flipped},
        {"v": array},
        {"w": array.reshape(4, 3)},
        {"w": array.view(np.int32)},
        {"w": array, "x": array},
    ]
    assert len({digest, *map(state_sha256, others)}) == 6


# ---- saving and restoring


def test_nothing_saved_is_none(tmp_path):
    assert restore(tmp_path) is None
    assert restore(tmp_path / "absent", read_only=True) is None
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(("keep", "kept"), [(3, [3, 4, 5]), (2, [4, 5]), (1, [5])])
def test_newest_comes_back_and_so_many_are_kept(tmp_path, keep, kept):
    save(tmp_path, 1, 2, 3, 4, 5, keep=keep)
    assert saved_steps(tmp_path) == kept
    assert sorted(os.listdir(tmp_path / "checkpoints")) == [str(step) for step in kept]
    assert_is(restore(tmp_path), 5)


@pytest.mark.parametrize(
    "name",
    [b"a[1]", b"[ab]", b"a*", b"?", b"a**b", b"a\\b", b"gs:", b" b'\"%20#\n{~}$", b"\xff\xc3("],
)
def test_whatever_the_path_looks_like_what_was_saved_comes_back(tmp_path, name):
    """Orbax takes a path for a pattern of `glob`, TensorStore a backslash for a slash."""
    (tmp_path / "ab").mkdir()  # what a pattern would find
    workdir = tmp_path / os.fsdecode(name) / "run"
    save(workdir, 1, 2)
    assert saved_steps(workdir) == [1, 2]
    assert_is(restore(workdir), 2)
    assert_is(restore(workdir, read_only=True), 2)
    with contextlib.closing(Checkpointer(workdir, read_only=True)) as checkpointer:
        assert checkpointer.verify(1) is None
    (tmp_path / "moved[1]").mkdir()
    assert_is(restore(workdir.rename(tmp_path / "moved[1]" / "run")), 2)
    assert os.listdir(tmp_path / "ab") == []


def test_a_path_that_orbax_cannot_take_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "OPEN_FILES", "/absent")  # no Linux
    with pytest.raises(UserError, match=r"a\[1\]"):
        Checkpointer(tmp_path / "a[1]")


def test_fewer_are_kept_from_the_next_save_on(tmp_path):
    save(tmp_path, 1, 2, 3)
    assert_is(restore(tmp_path, keep=1), 3)
    assert saved_steps(tmp_path) == [1, 2, 3]  # a restore removes nothing
    save(tmp_path, 4, keep=1)
    assert saved_steps(tmp_path) == [4]


def test_saving_a_step_again_changes_nothing(tmp_path):
    save(tmp_path, 1, 2)
    with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
        checkpointer.save(2, make_state(9), {})
        checkpointer.save(3, make_state(3), {"seconds": 3 * 0.1})
        checkpointer.save(3, make_state(9), {})  # while the first save may still be under way
    assert_is(restore(tmp_path), 3)
    shutil.rmtree(tmp_path / "checkpoints" / "3")
    assert_is(restore(tmp_path), 2)


def test_an_older_step_is_never_dropped_in_silence(tmp_path):
    with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
        checkpointer.save(5, make_state(5), {})
        with pytest.raises(RuntimeError, match="step 4"):
            checkpointer.save(4, make_state(4), {})


def test_the_saved_state_is_the_one_given_even_if_it_is_donated_at_once(tmp_path):
    """The save runs in the background while the next step overwrites the buffers."""
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 1.5 + 1, state), donate_argnums=0)
    state = step({"w": jnp.arange(1_000_000, dtype=jnp.float32), "b": jnp.ones(3)})
    digest, target = state_sha256(state), target_of(state)
    with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
        checkpointer.save(1, state, {})
        for _ in range(10):
            state = step(state)
    assert state_sha256(restore(tmp_path, target)[1]) == digest


def test_the_digests_are_made_while_training_goes_on(tmp_path, monkeypatch):
    """And are of the state as it was given, though the next steps took over its memory."""
    go_on = threading.Event()
    monkeypatch.setattr(
        "common.checkpoint.describe", lambda *leaf: go_on.wait(60) and describe(*leaf)
    )
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 1.5 + 1, state), donate_argnums=0)
    state = step({"w": jnp.arange(1_000_000, dtype=jnp.float32)})
    digest, target = state_sha256(state), target_of(state)
    with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
        checkpointer.save(1, state, {})
        for _ in range(10):
            state = jax.block_until_ready(step(state))
        assert (
            saved_steps(tmp_path) == [] and not go_on.is_set()
        )  # without digests there is no checkpoint
        go_on.set()
    assert state_sha256(restore(tmp_path, target)[1]) == digest


def test_without_its_digests_nothing_counts_as_saved(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr(sys, "unraisablehook", lambda *_: None)  # of the writes that it abandons
    with monkeypatch.context() as patch:
        patch.setattr("common.checkpoint.describe", lambda *_: 1 / 0)
        checkpointer = Checkpointer(tmp_path)
        checkpointer.save(2, make_state(2), {})
        with pytest.raises(ZeroDivisionError):
            checkpointer.close()
    assert_is(restore(tmp_path), 1)
    assert saved_steps(tmp_path) == [1]


def test_restores_to_the_sharding_asked_for(tmp_path):
    save(tmp_path, 1)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), make_state(0)
    )
    _, state, _ = restore(tmp_path, target)
    assert {leaf.sharding for leaf in jax.tree.leaves(state)} == {sharding}


@pytest.mark.parametrize(
    ("value", "dtype"), [(np.nan, jnp.float32), (-np.inf, jnp.float32), (np.inf, jnp.bfloat16)]
)
def test_non_finite_is_never_saved(tmp_path, value, dtype):
    save(tmp_path, 1)
    broken = make_state(2)
    broken.params["bias"][...] = broken.params["bias"][...].astype(dtype).at[3].set(value)
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "epoch": 1, "split": "train", "loss": 0.5, "error_pct": 9}\n{"step": 2}\n'
    )
    message = r"bias.* step 2 .*0\.5 at step 1\b.* step 1 is safe"
    with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
        with pytest.raises(NonFiniteError, match=message):
            checkpointer.save(2, broken, {})
        checkpointer.save(3, make_state(3), {"seconds": 3 * 0.1})
    assert saved_steps(tmp_path) == [1, 3]


def test_what_a_killed_save_left_is_gone_when_the_checkpoints_are_opened(tmp_path):
    save(tmp_path, 1)
    unfinished = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    for read_only in (True, False):
        unfinished.mkdir(exist_ok=True)
        with contextlib.closing(Checkpointer(tmp_path, read_only=read_only)):
            assert unfinished.exists() == read_only
    assert_is(restore(tmp_path), 1)


def test_finite_numbers_whose_sum_is_not_are_saved(tmp_path):
    large = {"w": jnp.full((4,), 3e38), "v": jnp.asarray([3e38, 3e38, -3e38, -3e38])}
    with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
        checkpointer.save(1, large, {})
    assert state_sha256(restore(tmp_path, target_of(large))[1]) == state_sha256(large)


def test_who_looks_while_the_only_step_is_replaced_gets_the_new_one(tmp_path, monkeypatch):
    save(tmp_path, 1)
    original = Checkpointer._restore

    def replaced_meanwhile(checkpointer, step, *arguments):
        if step == 1:
            shutil.rmtree(tmp_path / "checkpoints" / "1")
            save(tmp_path, 2)
        return original(checkpointer, step, *arguments)

    monkeypatch.setattr(Checkpointer, "_restore", replaced_meanwhile)
    assert_is(restore(tmp_path, read_only=True), 2)


@pytest.mark.parametrize(("missing", "refused"), [(0, False), (1, True)])
def test_twice_the_state_must_be_free(tmp_path, monkeypatch, missing, refused):
    save(tmp_path, 1)
    free = 2 * (4 + 4 * (5 * 6 + 6) + 8) - missing  # bytes: of the step, the layer and the key
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert_is(restore(tmp_path, read_only=True), 1)  # who only looks needs no space
    if refused:
        with pytest.raises(StorageError, match=str(tmp_path)) as caught:
            restore(tmp_path)
        assert caught.value.exit_code == 74 and "\n" not in str(caught.value)
    else:
        assert_is(restore(tmp_path), 1)


def test_a_save_that_the_disk_refuses_is_one_line_and_keeps_the_last_one(tmp_path):
    big = {"w": jnp.asarray(np.random.default_rng(0).random(100_000), jnp.float32)}
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, big, {})
    checkpointer._manager.wait_until_finished()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(StorageError, match=r"File too large.* step 1 is safe") as caught:
            checkpointer.save(2, big, {})  # returns at once; the error is the next call's
            checkpointer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    checkpointer.close()
    assert "\n" not in str(caught.value)
    assert restore(tmp_path, target_of(big))[0] == 1
    assert saved_steps(tmp_path) == [1]


@pytest.fixture
def failing(monkeypatch) -> set:
    """The steps whose saves fail in the background, as on a disk that is full just then."""
    steps = set()

    def described(path, array):
        if path == ".step" and int(array) in steps:
            raise OSError(errno.ENOSPC, "No space left on device")
        return describe(path, array)

    monkeypatch.setattr("common.checkpoint.describe", described)
    monkeypatch.setattr(sys, "unraisablehook", lambda *_: None)  # of the writes beside it
    return steps


def test_after_a_save_that_failed_the_next_one_counts(tmp_path, failing, capfd):
    failing |= {2}
    with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
        checkpointer.save(1, make_state(1), {"seconds": 0.1})
        checkpointer.save(2, make_state(2), {"seconds": 0.2})
        checkpointer.save(3, make_state(3), {"seconds": 3 * 0.1})
        (told,) = (line for line in capfd.readouterr().err.splitlines() if "warning: " in line)
        assert "step 2" in told and "No space left" in told and "step 1 is safe" in told
        checkpointer.save(3, make_state(9), {})  # waits for the one above
        assert saved_steps(tmp_path) == [1, 3]
    assert_is(restore(tmp_path), 3)


def test_a_step_whose_save_failed_is_not_taken_for_saved(tmp_path, failing):
    """A signal asks for the step again that an epoch ended with."""
    failing |= {2}
    with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
        checkpointer.save(1, make_state(1), {"seconds": 0.1})
        checkpointer.save(2, make_state(2), {"seconds": 0.2})
        with pytest.raises(StorageError, match=r"No space left.* step 1 is safe"):
            checkpointer.save(2, make_state(2), {"seconds": 0.2})
    assert_is(restore(tmp_path), 1)


def test_two_saves_that_fail_in_a_row_end_the_run_and_none_of_them_counts(tmp_path, failing):
    failing |= {2, 3, 4}
    checkpointer = Checkpointer(tmp_path)
    for step in (1, 2, 3):
        checkpointer.save(step, make_state(step), {"seconds": step * 0.1})
    with pytest.raises(StorageError, match=r"No space left.* step 1 is safe"):
        checkpointer.save(4, make_state(4), {})
    checkpointer.close()
    assert_is(restore(tmp_path), 1)


def test_a_last_save_that_fails_ends_the_run(tmp_path, failing):
    failing |= {2}
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, make_state(1), {"seconds": 0.1})
    checkpointer.save(2, make_state(2), {"seconds": 0.2})
    with pytest.raises(StorageError, match=r"No space left.* step 1 is safe"):
        checkpointer.close()
    assert_is(restore(tmp_path), 1)


# ---- one alone is kept


@pytest.mark.commands
@pytest.mark.parametrize("keep", [1, 3])
def test_wherever_a_save_is_killed_there_is_an_intact_checkpoint(tmp_path, monkeypatch, keep):
    """The folder is copied, as a kill would leave it, before and in the middle of all that moves or
    removes something; the restart finds a step, and goes on to save.
    """
    workdir, copies = tmp_path / "run", []

    def snapshot(name: str, remove=()):
        copies.append(tmp_path / f"{len(copies)}_{name}")
        try:
            shutil.copytree(workdir, copies[-1])
        except shutil.Error as error:  # the writing goes on: its lock files come and go
            if not all(Path(source).suffix == ".__lock" for source, *_ in error.args[0]):
                raise
        for path in remove:
            (copies[-1] / path.relative_to(workdir)).unlink()

    def before(owner, name, removing=False):
        original = getattr(owner, name)

        def call(*arguments, **options):
            snapshot(name)
            if removing:  # its files go in any order
                files = sorted(path for path in Path(arguments[1]).rglob("*") if path.is_file())
                snapshot(f"half_{name}", files[::2])
                snapshot(f"other_half_{name}", files[1::2])
                snapshot(f"most_of_{name}", files)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    save(workdir, *range(1, keep + 1), keep=keep)
    before(checkpoint, "describe")  # while the files are written
    before(Checkpointer, "_read_back")
    before(atomicity, "on_commit_callback")  # gives the folder its name
    before(deleter.PathDeleter, "delete", removing=True)
    save(workdir, keep + 1, keep=keep)
    snapshot("end")
    monkeypatch.undo()
    found = []
    for copy in copies:
        restored = restore(copy, keep=keep)
        assert_is(restored, restored[0])
        found.append(restored[0])
        assert not list(copy.glob("checkpoints/*.corrupt"))
        save(copy, keep + 2, keep=keep)
        assert saved_steps(copy)[-1] == keep + 2 and len(saved_steps(copy)) == keep
    assert found == sorted(found) and {found[0], found[-1]} == {keep, keep + 1}
    names = {copy.name.partition("_")[2] for copy in copies}
    expected = {"describe", "on_commit_callback", "delete", "most_of_delete", "end"}
    assert names >= expected | {"_read_back"}


@pytest.mark.parametrize("keep", [1, 3])
def test_each_is_read_back_before_it_counts_as_saved(tmp_path, monkeypatch, keep):
    """Other bytes on disk than were given: the save fails, and the older one stays."""
    save(tmp_path, 1, keep=keep)
    written = Checkpointer._read_back

    def damaged(checkpointer):
        (folder,) = (tmp_path / "checkpoints").glob("2.*")
        shutil.copytree(tmp_path / "checkpoints/1/state", folder / "state", dirs_exist_ok=True)
        written(checkpointer)

    monkeypatch.setattr(Checkpointer, "_read_back", damaged)
    with pytest.raises(StorageError, match=r"kernel.*step 1 is safe") as caught:
        save(tmp_path, 2, keep=keep)
    assert caught.value.exit_code == 74 and saved_steps(tmp_path) == [1]
    monkeypatch.undo()
    assert_is(restore(tmp_path), 1)
    save(tmp_path, 2, keep=keep)
    assert saved_steps(tmp_path)[-1] == 2


SAVING = """
import contextlib, sys
from pathlib import Path
import jax
import numpy as np
from common.checkpoint import Checkpointer

with contextlib.closing(Checkpointer(Path(sys.argv[1]), keep=1)) as checkpointer:
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {"w": jax.ShapeDtypeStruct((200_000,), np.float32, sharding=here)}
    step = (checkpointer.restore_newest(target) or [0])[0]
    while True:
        step += 1
        checkpointer.save(step, {"w": np.random.default_rng(step).random(200_000, np.float32)}, {})
"""


@pytest.mark.slow
def test_killed_again_and_again_the_only_checkpoint_is_intact(tmp_path):
    draw, newest = random.Random(0), 0
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVING, str(tmp_path)], stderr=subprocess.PIPE, text=True
        )
        try:
            while max(saved_steps(tmp_path), default=0) < newest + 3:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.3))
        finally:
            process.kill()
            process.communicate()
        newest = saved_steps(tmp_path)[-1]
        with contextlib.closing(Checkpointer(tmp_path, read_only=True)) as checkpointer:
            assert checkpointer.verify(newest) is None
    assert not list(tmp_path.glob("checkpoints/*.corrupt"))


# ---- the weights alone


def test_weights_are_not_read_as_float64(tmp_path):
    save(tmp_path, 1)
    with jax.enable_x64(True), pytest.raises(UserError, match="JAX_ENABLE_X64"):
        checkpoint.restore_part(tmp_path, None, lambda meta: {}, None)


def damage_largest_file(workdir, step: int) -> None:
    """Flips a bit of the file that holds the largest leaf."""
    files = [path for path in (workdir / f"checkpoints/{step}/state").rglob("*") if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_weights_are_read_though_the_optimizers_state_is_damaged(tmp_path, capfd):
    """Nothing but the weights is read. The optimizer's state fills most of the bytes here."""
    params = {"c1": {"kernel": jnp.arange(6.0)}}
    noise = jnp.asarray(np.random.default_rng(0).random(500_000), jnp.float32)
    state = {"params": params, "opt_state": {"velocity": noise}}
    with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
        checkpointer.save(1, state, {"num_classes": 3})
    damage_largest_file(tmp_path, 1)

    def target(meta):
        assert meta == {"num_classes": 3}
        return {"params": jax.eval_shape(lambda: params)}

    for step in (None, "newest", 1):
        found, part, meta = checkpoint.restore_part(tmp_path, None, target, step)
        assert (found, meta) == (1, {"num_classes": 3})
        assert state_sha256(part) == state_sha256({"params": params})
    with contextlib.closing(Checkpointer(tmp_path, read_only=True)) as checkpointer:
        assert "velocity" in checkpointer.verify(1)
    with pytest.raises(UserError, match=r"params\.c1\.kernel"):
        checkpoint.restore_part(
            tmp_path,
            None,
            lambda meta: {"params": {"c1": {"kernel": jax.ShapeDtypeStruct((7,), "f4")}}},
            1,
        )
    assert not capfd.readouterr().err


# ---- another model


@pytest.mark.commands
@pytest.mark.parametrize(
    ("other", "leaf"),
    [
        (lambda state: make_state(0, units=7), r"params\.bias.*\(6,\).*\(7,\)"),
        (lambda state: state._replace(step=jnp.float32(0)), r" step .*int32.*float32"),
        (lambda state: state._replace(key=()), r" key .*absent"),
        (lambda state: state._replace(key=(state.key, state.key)), r" key .*absent"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_leaf_and_left_alone(tmp_path, other, leaf):
    save(tmp_path, 1, 2)
    with pytest.raises(UserError, match=leaf) as caught:
        restore(tmp_path, target_of(other(make_state(0))))
    assert caught.value.exit_code == 2
    assert saved_steps(tmp_path) == [1, 2]
    assert_is(restore(tmp_path), 2)


# ---- damage


def damage(path, kind: str, where: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if kind == "delete":
        path.unlink()
        return
    if kind == "truncate":
        del content[where.randrange(max(len(content), 1)) :]
    elif kind == "zero":
        content = bytearray(len(content))
    else:
        bit = where.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    save(workdir, 1, 2)
    return workdir


def check_damage(
    two_checkpoints, folder, kind: str, name: str, where: random.Random, capfd
) -> bool:
    """Damages one file of step 2, and checks that step 2 comes back exactly or else step 1 does.
    True if it fell back.
    """
    workdir = folder / f"{kind}-{where.random()}"
    shutil.copytree(two_checkpoints, workdir)
    damage(workdir / "checkpoints" / "2" / name, kind, where)
    restored = restore(workdir)
    assert_is(restored, restored[0])
    lines = [
        line
        for line in capfd.readouterr().err.splitlines()
        if not line.startswith(("WARNING:absl", "ERROR:absl"))
    ]
    if restored[0] == 2:  # nothing that matters was hit
        assert lines == [] and saved_steps(workdir) == [1, 2]
    else:
        assert len(lines) == 1 and lines[0].startswith("warning: checkpoint 2 is damaged"), lines
        assert lines[0].endswith("set aside as 2.corrupt.")
        assert saved_steps(workdir) == [1] and (workdir / "checkpoints" / "2.corrupt").is_dir()
    shutil.rmtree(workdir)
    return restored[0] == 1


def files_of(workdir) -> list[str]:
    step = workdir / "checkpoints" / "2"
    return sorted(str(path.relative_to(step)) for path in step.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("truncate", marks=pytest.mark.slow),
        *(pytest.param(kind, marks=pytest.mark.nightly) for kind in ("delete", "zero")),
    ],
)
def test_no_damaged_file_is_ever_taken_for_good(two_checkpoints, tmp_path, kind, capfd):
    where = random.Random(kind)
    fell_back = [
        check_damage(two_checkpoints, tmp_path, kind, name, where, capfd)
        for name in files_of(two_checkpoints)
    ]
    assert sum(fell_back) >= 3  # at least the description, the manifest and the arrays


def flips(two_checkpoints, tmp_path, count: int, capfd) -> int:
    where = random.Random(0)
    names = [
        name
        for name in files_of(two_checkpoints)
        if "commit_success" not in name and not name.startswith("_CHECK")
    ]
    return sum(
        check_damage(two_checkpoints, tmp_path, "flip", where.choice(names), where, capfd)
        for _ in range(count)
    )


@pytest.mark.slow
def test_no_flipped_bit_is_ever_taken_for_good(two_checkpoints, tmp_path, capfd):
    flips(two_checkpoints, tmp_path, 16, capfd)


@pytest.mark.nightly
def test_no_flipped_bit_is_ever_taken_for_good_at_length(two_checkpoints, tmp_path, capfd):
    assert (
        flips(two_checkpoints, tmp_path, 40, capfd) >= 6
    )  # of about 14: the others hit what no restore reads


@pytest.mark.commands
def test_after_a_fall_back_training_saves_the_same_step_again(two_checkpoints, tmp_path, capfd):
    workdir = tmp_path / "run"
    shutil.copytree(two_checkpoints, workdir)
    for names in (["1", "2.corrupt"], ["1", "2.corrupt", "2.corrupt_"]):
        damage(workdir / "checkpoints/2/state/manifest.ocdbt", "delete", random.Random(0))
        with contextlib.closing(Checkpointer(workdir)) as checkpointer:
            assert_is(checkpointer.restore_newest(target_of(make_state(0))), 1)
            assert sorted(os.listdir(workdir / "checkpoints")) == names
            checkpointer.save(2, make_state(2), {"seconds": 2 * 0.1})
        assert_is(restore(workdir), 2)


def test_wrong_weights_that_orbax_accepts_are_caught_by_the_digest(tmp_path, monkeypatch, capfd):
    """The same fault without luck: Orbax returns other weights than were saved."""
    save(tmp_path, 1)
    monkeypatch.setattr(Checkpointer, "_read_back", lambda self: None)
    with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
        monkeypatch.setattr(
            "common.checkpoint.host_leaves",
            lambda state, original=host_leaves: original(make_state(2)),
        )
        checkpointer.save(2, make_state(3), {})
        monkeypatch.undo()
    assert_is(restore(tmp_path), 1)
    assert "not what was saved" in capfd.readouterr().err


def test_a_renamed_step_is_no_other_step(tmp_path):
    save(tmp_path, 1, 2)
    shutil.move(tmp_path / "checkpoints" / "1", tmp_path / "checkpoints" / "3")
    assert_is(restore(tmp_path), 2)


@pytest.mark.commands
def test_a_run_whose_checkpoints_are_all_damaged_never_starts_anew_unasked(
    two_checkpoints, tmp_path, capfd
):
    workdir = tmp_path / "run"
    shutil.copytree(two_checkpoints, workdir)
    for step in (1, 2):
        damage(workdir / "checkpoints" / str(step) / "meta" / "metadata", "zero", random.Random(0))
    for _ in range(2):  # and the second time, when there are only steps set aside, neither
        with pytest.raises(StorageError, match=r"--workdir") as caught:
            restore(workdir)
        assert caught.value.exit_code == 74


TOO_MANY = (
    "RESOURCE_EXHAUSTED: Failed to open: \"/run/d/0\": Too many open files [os_error_code='24'] "
    "[source='file.cc:1']"
)


@pytest.mark.commands
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (OSError(errno.ESTALE, "Stale file handle"), "Stale file handle"),
        (ValueError(TOO_MANY), "Too many open files"),
    ],
)
def test_what_the_system_cannot_read_is_not_called_damaged(
    two_checkpoints, tmp_path, monkeypatch, capfd, error, reason
):
    workdir = tmp_path / "run"
    shutil.copytree(two_checkpoints, workdir)

    def fail(*_, **__):
        raise RuntimeError("in a thread") from error

    with monkeypatch.context() as patch:
        patch.setattr("common.checkpoint.read_arrays", fail)
        with pytest.raises(StorageError, match=f"checkpoint 2 .*{reason}"):
            restore(workdir)
        with (
            contextlib.closing(Checkpointer(workdir, read_only=True)) as checkpointer,
            pytest.raises(StorageError),
        ):
            checkpointer.verify(1)
    assert sorted(os.listdir(workdir / "checkpoints")) == ["1", "2"] and not capfd.readouterr().err
    assert_is(restore(workdir), 2)


def test_verify_reads_the_bytes_that_belong_to_no_array_too(two_checkpoints, monkeypatch):
    read = []

    def opened(path, *arguments, **options):
        read.append(path)
        if path.name == broken:
            raise OSError(errno.EIO, "Input/output error")
        return open(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", opened)
    with contextlib.closing(Checkpointer(two_checkpoints, read_only=True)) as checkpointer:
        broken = None
        assert checkpointer.verify(1) is None
        files = {
            path for path in (two_checkpoints / "checkpoints" / "1").rglob("*") if path.is_file()
        }
        assert files <= set(read)
        broken = "_CHECKPOINT_METADATA"
        assert broken in {path.name for path in files}
        with pytest.raises(StorageError, match=r"checkpoint 1 .*Input/output error"):
            checkpointer.verify(1)


@pytest.mark.commands
def test_reading_someone_elses_run_changes_nothing(two_checkpoints, tmp_path, capfd):
    workdir = tmp_path / "run"
    shutil.copytree(two_checkpoints, workdir)
    damage(workdir / "checkpoints" / "2" / "meta" / "metadata", "truncate", random.Random(0))
    (workdir / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir()  # of a save under way

    def snapshot():
        return {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}

    before = snapshot()
    assert_is(restore(workdir, read_only=True), 1)
    assert snapshot() == before
    assert "trying the one before" in capfd.readouterr().err
    damage(workdir / "checkpoints" / "1" / "meta" / "metadata", "zero", random.Random(0))
    with pytest.raises(StorageError, match="is intact"):
        restore(workdir, read_only=True)
