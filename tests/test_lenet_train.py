"""The real `python -m lenet.train`, tiny: what it writes, that it resumes bit for bit, that devices
agree, what it refuses.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from flax import nnx

from common import builders, checkpoint, data
from common.errors import DataError, Interrupted
from common.workdir import saved_steps
from lenet.config import Config
from lenet.data import DIGITS
from lenet.train import (
    build_loss,
    build_model,
    build_prepare,
    evaluate,
    load_run,
    make_eval_step,
    steps_per_chunk,
    train_and_evaluate,
)

TINY = [
    "--dataset=mnist10k",
    "--train_size=500",
    "--validation_size=500",
    "--num_epochs=2",
    "--batch_size=32",
]
PAPER = [
    "--flagfile=lenet/presets/paper.flags",
    "--dataset=mnist10k",
    "--train_size=300",
    "--num_epochs=2",
]


def command(workdir, *flags):
    return [sys.executable, "-m", "lenet.train", f"--workdir={workdir}", *flags]


def train(workdir, *flags, devices=1):
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    done = subprocess.run(command(workdir, *flags), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads((workdir / "result.json").read_text())


def refuse(workdir, *flags):
    """The exit code and the message of a run that must end before any compilation."""
    start = time.monotonic()
    done = subprocess.run(command(workdir, *flags), capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert not list(workdir.glob("checkpoints/*")) and time.monotonic() - start < 30
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A finished run of TINY: its workdir and its result."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    return workdir, train(workdir, *TINY)


def metric_lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_what_a_run_leaves(tiny):
    workdir, result = tiny
    for name in (
        "config.json",
        "flags.txt",
        "metrics.jsonl",
        "curves.png",
        "checkpoints",
        "result.json",
    ):
        assert (workdir / name).exists(), name
    assert list(workdir.glob("events.out.tfevents.*"))
    assert result["num_test_examples"] == 2000 and result["num_steps"] == 2 * (500 // 32)
    confusion = np.array(result["confusion_matrix"])
    assert confusion.sum() == 2000
    assert result["test_error_pct"] == 100 * (1 - np.trace(confusion) / 2000)
    assert (
        confusion.sum(1) == np.bincount(data.load("mnist10k", "test", [DIGITS]).labels)
    ).all()  # rows are the true classes
    assert len(result["state_sha256"]) == 64
    assert {
        "images_per_s",
        "wall_time_s",
        "command",
        "commit",
        "seed",
        "dataset",
        "versions",
        "machine",
    } <= result.keys()
    lines = metric_lines(workdir)
    places = [(line["step"], line["split"]) for line in lines]
    assert len(places) == len(set(places))
    assert [step for step, split in places if split == "validation"] == [15, 30]
    assert (
        result["validation_error_pct"]
        == [line["error_pct"] for line in lines if line["split"] == "validation"][-1]
    )
    assert not any(
        split == "test" for _, split in places
    )  # the test split is scored once, at the end
    assert all(list(line)[:3] == ["step", "epoch", "split"] for line in lines)


def test_the_same_command_says_that_the_run_is_complete(tiny):
    workdir, result = tiny
    before = (workdir / "metrics.jsonl").read_bytes()
    done = subprocess.run(command(workdir, *TINY), capture_output=True, text=True)
    assert (
        done.returncode == 0
        and "complete" in done.stdout
        and f"{result['test_error_pct']:.2f}%" in done.stdout
    )
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_saved_flags_replay_the_run(tiny, tmp_path):
    workdir, result = tiny
    assert "workdir" not in (workdir / "flags.txt").read_text()
    replay = train(tmp_path / "replay", f"--flagfile={workdir / 'flags.txt'}")
    assert replay["state_sha256"] == result["state_sha256"]
    assert replay["confusion_matrix"] == result["confusion_matrix"]


def test_changed_flags_are_refused_with_a_table(tiny):
    workdir, _ = tiny
    done = subprocess.run(
        command(workdir, *TINY, "--learning_rate=0.2"), capture_output=True, text=True
    )
    assert done.returncode == 2 and "learning_rate  0.1 -> 0.2" in done.stderr


def test_evaluation_from_the_checkpoint_gives_the_number_again(tiny):
    workdir, result = tiny
    done = subprocess.run(
        [sys.executable, "-m", "scripts.evaluate", f"--workdir={workdir}", "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert again["error_pct"] == pytest.approx(result["test_error_pct"], abs=1e-12)
    assert again["confusion_matrix"] == result["confusion_matrix"]
    run = load_run(workdir)
    few = evaluate(run.eval_step, run.params, data.load("mnist10k", "test[:7]", [DIGITS]))
    assert few["count"] == 7 and few["confusion"].sum() == 7


@pytest.mark.parametrize("size", [1, 7, 333, 1000, 2000])
def test_every_test_example_counts_once_whatever_the_batch_size(size, monkeypatch):
    config = Config()
    model = build_model(config)
    graphdef, params = nnx.split(model, nnx.Param)
    examples = data.load("mnist10k", "test", [DIGITS])[:999]
    monkeypatch.setattr("lenet.train.EVAL_BATCH_SIZE", size)
    sums = evaluate(
        make_eval_step(graphdef, build_loss(config), build_prepare(config)), params, examples
    )
    logits = model(build_prepare(config)(examples.images))
    assert sums["count"] == 999 and sums["errors"] == int(
        (logits.argmax(-1) != examples.labels).sum()
    )
    np.testing.assert_allclose(
        sums["loss"], build_loss(config)(logits, examples.labels).sum(), rtol=1e-4
    )


def test_chunks_are_at_least_a_step_and_about_4096_images():
    assert [steps_per_chunk(b) for b in (1, 32, 128, 4096, 20000)] == [2048, 128, 32, 1, 1]


def killed_and_resumed(workdir, flags, kills):
    """Runs until the end, each time killed by SIGKILL as soon as a new checkpoint is there."""
    for _ in range(kills):
        before = saved_steps(workdir)
        process = subprocess.Popen(command(workdir, *flags), stderr=subprocess.PIPE, text=True)
        while process.poll() is None and saved_steps(workdir) == before:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    return train(workdir, *flags)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        [*TINY, "--num_epochs=6", "--distortions=elastic", "--average_decay=0.99", "--optimizer=adamw", "--momentum=0",
         "--learning_rate=0.01"],
        [*PAPER, "--num_epochs=5", "--distortions=affine", "--distorted_copies=2"],
    ],
    ids=["minibatch", "paper"],
)  # fmt: skip
def test_killed_runs_end_with_the_state_of_an_uninterrupted_one(tmp_path, flags):
    clean = train(tmp_path / "clean", *flags)
    resumed = killed_and_resumed(tmp_path / "killed", flags, kills=2)
    assert resumed["state_sha256"] == clean["state_sha256"]
    assert resumed["confusion_matrix"] == clean["confusion_matrix"]
    assert metric_lines(tmp_path / "killed") == metric_lines(tmp_path / "clean")


def test_sigterm_saves_what_is_done(tmp_path):
    flags = [*TINY, "--num_epochs=400"]
    process = subprocess.Popen(command(tmp_path / "run", *flags), stderr=subprocess.PIPE, text=True)
    while not saved_steps(tmp_path / "run"):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=20)
    assert process.returncode == 143 and "stopped by SIGTERM" in message
    stopped_at = saved_steps(tmp_path / "run")[-1]
    assert [line["step"] for line in metric_lines(tmp_path / "run") if line["split"] == "train"][
        -1
    ] == stopped_at


@pytest.mark.slow
def test_devices_and_modes_agree_and_checkpoints_move(tmp_path):
    """jit on 8, pmap on 8 and one device agree to float tolerance; a run goes on with another
    number of devices.
    """
    flags = [
        *TINY,
        "--optimizer=adamw",
        "--momentum=0",
        "--learning_rate=0.002",
        "--distortions=affine",
    ]
    runs = {
        "one": train(tmp_path / "one", *flags),
        "jit": train(tmp_path / "jit", *flags, devices=8),
        "pmap": train(tmp_path / "pmap", *flags, "--parallel=pmap", devices=8),
    }
    params = {name: load_run(tmp_path / name).params for name in runs}
    for name in ("jit", "pmap"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), params["one"], params[name]
        )
        losses = [[line["loss"] for line in metric_lines(tmp_path / run)] for run in ("one", name)]
        np.testing.assert_allclose(*losses, rtol=1e-3)
    assert runs["jit"]["machine"]["devices"] == 8

    killed_at_epoch_1 = [*flags, "--num_epochs=3"]
    process = subprocess.Popen(
        command(tmp_path / "moved", *killed_at_epoch_1), stderr=subprocess.DEVNULL
    )
    while not saved_steps(tmp_path / "moved"):
        time.sleep(0.005)
    process.kill()
    process.wait()
    moved = train(tmp_path / "moved", *killed_at_epoch_1, devices=8)
    assert moved["machine"]["devices"] == 8
    straight = train(tmp_path / "straight", *killed_at_epoch_1)
    ours, theirs = (load_run(tmp_path / name).params for name in ("moved", "straight"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), ours, theirs)
    assert moved["num_steps"] == straight["num_steps"]


@pytest.mark.slow
def test_the_paper_preset_learns(tmp_path):
    """One pass over 2,000 real digits, one at a time, by SDLM: from chance to well under 12% error."""
    result = train(tmp_path / "paper", *PAPER, "--train_size=2000")
    assert result["num_steps"] == 4000
    assert result["test_error_pct"] < 12


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ["--batch_size=9000", "--dataset=mnist10k"],
            "--batch_size=9000 is larger than the training set",
        ),
        (["--dataset=mnist10k", "--validation_size=8000"], "leaves 0"),
        (["--optimizer=sdlm", "--momentum=0"], "needs --pooling=trainable and --output=rbf"),
        (["--optimizer=adamw"], "add --momentum=0"),
        (["--label_smoothing=0.1", "--loss=mse"], "needs --loss=cross_entropy"),
        (["--distorted_copies=9"], "needs --distortions=affine or elastic"),
        (["--validation_size=0"], "--track=test"),
        (["--warmup_epochs=20"], "--warmup_epochs"),
        (["--c3=full"], "table|dense|random"),
        (["--learning_rate=fast"], "learning_rate"),
        (["--flagfile=lenet/presets/none.flags"], "none.flags"),
        (["--unknown=1"], "unknown"),
    ],
)
def test_wrong_flags_get_one_clear_line(tmp_path, flags, message):
    code, error = refuse(tmp_path / "run", *flags)
    assert code == 2 and message in error
    assert error.strip().splitlines()[-1].startswith("error: ")


def test_a_set_that_is_not_there_and_images_that_do_not_fit(tmp_path, write_set):
    code, error = refuse(tmp_path / "a", "--dataset=kmnist", f"--data_dir={tmp_path}")
    assert code == 65 and "mnist10k" in error and "--data_dir" in error
    write_set(tmp_path, "wide", np.zeros((600, 30, 28, 1), np.uint8))
    code, error = refuse(
        tmp_path / "b", "--dataset=wide", f"--data_dir={tmp_path}", "--validation_size=10"
    )
    assert code == 65 and "28x28 or 32x32" in error
    write_set(tmp_path, "twelve", np.zeros((600, 28, 28, 1), np.uint8), num_classes=12)
    flags = ["--dataset=twelve", f"--data_dir={tmp_path}", "--flagfile=lenet/presets/paper.flags"]
    code, error = refuse(tmp_path / "c", *flags)
    assert code == 2 and "ten digits" in error


@pytest.mark.slow
def test_a_training_set_that_changed_is_refused(tmp_path, monkeypatch):
    def write(number, shift=0):
        shutil.rmtree(tmp_path / "changing", ignore_errors=True)
        examples = [(np.full((28, 28, 1), i, np.uint8), (i + shift) % 10) for i in range(number)]
        splits = {"train": examples, "test": examples}
        builders.write_prepared(
            tmp_path, "changing", "1.0.0", splits, (28, 28, 1), map(str, range(10)), keep_order=True
        )

    def go_on():
        with pytest.raises(Interrupted):
            train_and_evaluate(config, tmp_path, lambda: 15)

    def save_as_once(checkpointer, step, state, meta):
        save(
            checkpointer,
            step,
            state,
            {name: meta[name] for name in ("totals", "in_channels", "num_classes")},
        )

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = Config(dataset="changing", data_dir=str(tmp_path), validation_size=4, batch_size=4)
    save = checkpoint.Checkpointer.save
    write(24)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpointer, "save", save_as_once)
        go_on()
    go_on()
    for changed in (dict(number=23), dict(number=24, shift=1)):  # fewer examples, other labels
        write(**changed)
        with pytest.raises(
            DataError,
            match=r"changing is not the set that .* was started with: its training examples differ",
        ):
            go_on()


def test_batch_must_be_divisible_by_the_devices(tmp_path):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    flags = [*TINY, "--batch_size=12"]
    done = subprocess.run(
        command(tmp_path / "run", *flags), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2 and "must be divisible by the number of devices, 8" in done.stderr
