"""The real `python -m alexnet.train`, tiny: what it writes, its resumes bit for bit, devices that
agree, what it refuses.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from alexnet.config import Config
from alexnet.train import load_run, train_and_evaluate
from common.errors import DataError, Interrupted
from common.workdir import saved_steps
from scripts.prepare import builders

pytestmark = pytest.mark.usefixtures("compiled_quickly")

TINY = [
    "--flagfile=alexnet/presets/small.flags", "--dataset=noise10", "--validation_size=20", "--batch_size=16", "--num_epochs=2",
    "--learning_rate=0.001", "--log_every_steps=2",
]  # fmt: skip
CIFAR18 = [
    "--flagfile=alexnet/presets/cifar18.flags",
    "--drop_epochs=1",
    "--schedule=epochs",
    *TINY[1:],
]
AUGMENTED = [
    *TINY,
    "--dropout=0.5",
    "--average_decay=0.99",
    "--color_pca",
    "--augmentation=resized_crop_flip",
    "--pad=0",
]
FULL_SIZE = [
    "--dataset=fake", "--train_size=4", "--batch_size=2", "--validation_size=2", "--num_epochs=1", "--noten_crop",
    "--learning_rate=0.0001",
]  # fmt: skip


def write_damaged(folder) -> None:
    """`damaged`: noise like `streamed`; of 68 records 5 and 47 (training), 60 (validation) and 7
    (test) are damaged.
    """
    noise = np.random.default_rng(0).integers(0, 256, (68, 80, 80, 3), np.uint8)
    splits = {
        split: [(b"no image" if i in bad else image, i % 10) for i, image in enumerate(noise)]
        for split, bad in {"train": (5, 47, 60), "test": (7,)}.items()
    }
    builders.write_prepared(
        folder, "damaged", "1.0.0", splits, (80, 80, 3), map(str, range(10)), keep_order=True
    )


def write_misdescribed(folder) -> None:
    """`mislabelled` and `misshapen`: for both the descriptions say 80x80 pixels and 10 classes;
    they come with statistics.
    """
    for name, size, label in (("mislabelled", 80, 10), ("misshapen", 79, 0)):
        splits = {
            split: [(np.zeros((size, size, 3), np.uint8), label)] * 40
            for split in ("train", "test")
        }
        prepared = builders.write_prepared(
            folder, name, "1.0.0", splits, (80, 80, 3), map(str, range(11)), keep_order=True
        )
        features = prepared / "features.json"
        features.write_text(
            features.read_text().replace('"numClasses": "11"', '"numClasses": "10"')
        )
        np.savez(
            prepared / "statistics.npz",
            train_mean_image=np.zeros((80, 80, 3), np.float32),
            train_covariance=np.eye(3),
        )


@pytest.fixture(scope="module")
def sets(tmp_path_factory, write_set):
    """The folder of the sets that the commands below name: --data_dir."""
    folder, draw = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    write_set(folder, "noise10", draw.integers(0, 256, (68, 32, 32, 3), np.uint8))
    write_set(folder, "streamed", draw.integers(0, 256, (68, 80, 80, 3), np.uint8))
    write_damaged(folder)
    write_misdescribed(folder)
    write_set(folder, "wide", np.zeros((40, 32, 36, 3), np.uint8))
    write_set(folder, "grey", np.zeros((40, 32, 32, 1), np.uint8))
    write_set(folder, "tiny", np.zeros((40, 7, 7, 3), np.uint8))
    return folder


@pytest.fixture(scope="module", autouse=True)
def environment(sets):
    """Where the commands find the sets, and keep nothing of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(sets))
        patch.setenv("XDG_CACHE_HOME", str(sets / "cache"))
        yield


def command(workdir, *flags, module="alexnet.train"):
    return [sys.executable, "-m", module, f"--workdir={workdir}", *flags]


def train(workdir, *flags, devices=1):
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    done = subprocess.run(command(workdir, *flags), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads((workdir / "result.json").read_text())


def refuse(workdir, *flags, **more):
    """The exit code and the message of a run that must end before any compilation."""
    compiled = workdir.with_name(workdir.name + "_compiled")  # every compiled program is kept there
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(compiled)} | more
    done = subprocess.run(command(workdir, *flags), capture_output=True, text=True, env=environment)
    assert "Traceback" not in done.stderr
    assert not list(workdir.glob("checkpoints/*")) and not list(compiled.glob("*"))
    return done.returncode, done.stderr


def score(workdir, *flags):
    done = subprocess.run(
        command(workdir, "--json", *flags, module="scripts.evaluate"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, environment):
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
    assert (
        result["num_test_examples"] == 68
        and result["num_train_examples"] == 48
        and result["num_steps"] == 6
    )
    confusion = np.array(result["confusion_matrix"])
    assert confusion.sum(1).tolist() == [7] * 8 + [6] * 2  # rows are the true classes
    assert (
        result["test_error_pct"]
        == result["top1_error_pct"]
        == pytest.approx(100 * (1 - np.trace(confusion) / 68), abs=1e-12)
    )
    for crops in ("", "ten_crop_"):
        assert 0 <= result[f"{crops}top5_error_pct"] <= result[f"{crops}top1_error_pct"] <= 100
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
    assert places == [
        (2, "train"),
        (3, "train"),
        (3, "validation"),
        (4, "train"),
        (6, "train"),
        (6, "validation"),
    ]
    assert result["validation_error_pct"] == lines[-1]["error_pct"]
    assert all(list(line)[:3] == ["step", "epoch", "split"] for line in lines)
    assert all(("top5_error_pct" in line) == (line["split"] == "validation") for line in lines)


def test_the_same_command_says_that_the_run_is_complete(tiny):
    workdir, result = tiny
    before = (workdir / "metrics.jsonl").read_bytes()
    done = subprocess.run(command(workdir, *TINY), capture_output=True, text=True)
    assert done.returncode == 0 and "complete" in done.stdout
    for name, what in (
        ("test_error_pct", "test error"),
        ("ten_crop_top5_error_pct", "ten_crop_top5 error"),
    ):
        assert f"{what} {result[name]:.2f}%" in done.stdout
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_saved_flags_replay_the_run(tiny, tmp_path):
    workdir, result = tiny
    assert "workdir" not in (workdir / "flags.txt").read_text()
    replay = train(tmp_path / "replay", f"--flagfile={workdir / 'flags.txt'}")
    assert replay["state_sha256"] == result["state_sha256"]
    assert replay["confusion_matrix"] == result["confusion_matrix"]


def test_changed_flags_are_refused_with_a_table(tiny):
    workdir, _ = tiny
    done = subprocess.run(
        command(workdir, *TINY, "--learning_rate=0.002"), capture_output=True, text=True
    )
    assert done.returncode == 2 and "learning_rate  0.001 -> 0.002" in done.stderr


# Scoring again


def test_evaluation_from_the_checkpoint_gives_the_number_again(tiny):
    workdir, result = tiny
    again = score(workdir)
    assert again["confusion_matrix"] == result["confusion_matrix"]
    assert (again["error_pct"], again["top5_error_pct"]) == (
        result["top1_error_pct"],
        result["top5_error_pct"],
    )
    assert (again["num_examples"], again["step"]) == (68, 6)


def test_evaluation_by_ten_crops_gives_the_number_again(tiny):
    workdir, result = tiny
    again = score(workdir, "--crops=ten")
    assert again["error_pct"] == result["ten_crop_top1_error_pct"]
    assert again["top5_error_pct"] == result["ten_crop_top5_error_pct"]


@pytest.mark.slow
def test_evaluation_of_another_split(tiny):
    workdir, result = tiny
    for split, name, count in (
        ("train[48:]", "validation_error_pct", 20),
        ("train[:48]", "train_error_pct", 48),
    ):
        again = score(workdir, f"--split={split}")
        assert (again["error_pct"], again["num_examples"]) == (result[name], count)
    done = subprocess.run(
        command(workdir, "--split=test[:7]", module="scripts.evaluate"),
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 0
        and done.stdout.count("\n") == 1
        and "top-5) on 7 examples, after 6 steps" in done.stdout
    )


def test_evaluation_refuses_images_of_another_shape(tiny):
    workdir, _ = tiny
    done = subprocess.run(
        command(workdir, "--dataset=wide", module="scripts.evaluate"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 65 and done.stderr.count("\n") == 1
    assert "images of shape (32, 36, 3)" in done.stderr and "takes (32, 32, 3)" in done.stderr


# Killed, stopped and resumed


def wait_for_checkpoint(process, workdir, after=()):
    while process.poll() is None and saved_steps(workdir)[-1:] == list(after)[-1:]:
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()


def killed_and_resumed(workdir, flags, signals, seconds=0.0):
    """Runs until the end, ended by each of the signals up to some seconds after a new checkpoint is
    there.
    """
    draw = random.Random(0)
    for number in signals:
        before = saved_steps(workdir)
        process = subprocess.Popen(command(workdir, *flags), stderr=subprocess.PIPE, text=True)
        wait_for_checkpoint(process, workdir, before)
        time.sleep(draw.uniform(0, seconds))
        process.send_signal(number)
        process.communicate()
        expected = 128 + number if number == signal.SIGTERM else -number
        assert process.returncode == expected, "the run ended before it could be killed"
    return train(workdir, *flags)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_well")
@pytest.mark.parametrize(
    ("flags", "num_epochs"),
    [(AUGMENTED, 24), ([*CIFAR18, "--drop_epochs=12,24"], 36)],
    ids=["small", "cifar18"],
)
def test_killed_runs_end_with_the_state_of_an_uninterrupted_one(tmp_path, flags, num_epochs):
    flags = [*flags, f"--num_epochs={num_epochs}", "--save_every_steps=2"]
    clean = train(tmp_path / "clean", *flags)
    resumed = killed_and_resumed(
        tmp_path / "killed", flags, (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL), seconds=1.0
    )
    assert resumed["state_sha256"] == clean["state_sha256"]
    assert resumed["confusion_matrix"] == clean["confusion_matrix"]
    assert metric_lines(tmp_path / "killed") == metric_lines(tmp_path / "clean")


def test_sigterm_saves_what_is_done(tmp_path):
    workdir = tmp_path / "run"
    flags = [*CIFAR18, "--num_epochs=4000", "--save_every_steps=3"]
    process = subprocess.Popen(command(workdir, *flags), stderr=subprocess.PIPE, text=True)
    wait_for_checkpoint(process, workdir)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in message
    last = message.splitlines()[-1]
    assert last.startswith("stopped by SIGTERM") and str(workdir) in last
    stopped_at = saved_steps(workdir)[-1]
    assert (
        stopped_at - 1 <= max(line["step"] for line in metric_lines(workdir)) <= stopped_at
    )  # a line every second step


def processes_of_session(session: int) -> list[str]:
    """The living processes of a session, each as its command."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except OSError:  # it has just ended
            continue
        state, _, _, number = rest.split()[:4]
        if int(number) == session and state != "Z":
            found.append(name)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the table of processes")
def test_ctrl_c_ends_the_readers_too(tmp_path):
    """A terminal sends SIGINT to all processes of a command: the main one saves, the readers end,
    one line is said.
    """
    flags = [
        *TINY,
        "--dataset=streamed",
        "--num_workers=2",
        "--num_epochs=400",
        "--save_every_steps=3",
    ]
    workdir = tmp_path / "run"
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command(workdir, *flags), start_new_session=True, **pipes) as process:
        try:
            wait_for_checkpoint(process, workdir)
            assert len(processes_of_session(process.pid)) >= 3  # with two readers
            os.killpg(process.pid, signal.SIGINT)
            printed, message = process.communicate(timeout=60)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 130 and printed == ""
    assert "Traceback" not in message and "leaked" not in message
    last = message.splitlines()[-1]
    assert last.startswith("stopped by SIGINT") and str(workdir) in last
    deadline = time.monotonic() + 10
    while processes_of_session(process.pid):
        assert time.monotonic() < deadline, processes_of_session(process.pid)
        time.sleep(0.05)
    finishing = [*flags, "--num_workers=0"]  # no setting of the result
    process = subprocess.Popen(command(workdir, *finishing), stderr=subprocess.DEVNULL)
    wait_for_checkpoint(process, workdir, saved_steps(workdir))
    process.terminate()
    assert process.wait(timeout=60) == 143


# Damaged records


@pytest.mark.slow
def test_damaged_records_are_skipped_alike_by_whoever_reads_and_counted_over_resumes(tmp_path):
    flags = [*TINY, "--dataset=damaged", "--max_bad_records=4", "--num_epochs=4"]
    clean = train(tmp_path / "clean", *flags, "--num_workers=0")
    assert clean["damaged_records"] == 4 and clean["num_test_examples"] == 67
    assert clean["num_train_examples"] == 48
    workers = train(tmp_path / "workers", *flags, "--num_workers=2")
    killed = killed_and_resumed(
        tmp_path / "killed", [*flags, "--save_every_steps=1", "--num_workers=1"], [signal.SIGKILL]
    )
    for other in (workers, killed):
        for name in (
            "state_sha256",
            "damaged_records",
            "confusion_matrix",
            "validation_error_pct",
            "train_error_pct",
        ):
            assert other[name] == clean[name], name
    again = score(tmp_path / "clean")
    assert (again["num_examples"], again["damaged_records"], again["error_pct"]) == (
        67,
        1,
        clean["test_error_pct"],
    )


@pytest.mark.slow
def test_a_run_that_damage_ended_goes_on_where_more_is_allowed(tmp_path):
    """Two in the training set, found with its mean image; the third is met in the first validation,
    the fourth in the test.
    """
    flags = [*TINY, "--dataset=damaged"]
    for allowed, numbers in ((2, [5, 47, 60]), (3, [5, 47, 60, 7])):
        done = subprocess.run(
            command(tmp_path / "run", *flags, f"--max_bad_records={allowed}"),
            capture_output=True,
            text=True,
        )
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 65 and "Traceback" not in done.stderr
        assert last.startswith(
            f"error: damaged has more damaged records than --max_bad_records={allowed}: "
        )
        assert all(f"record {number} (neither JPEG nor PNG)" in last for number in numbers)
    assert saved_steps(tmp_path / "run")[-1] == 6
    ended = train(tmp_path / "run", *flags, "--max_bad_records=4")
    straight = train(tmp_path / "straight", *flags, "--max_bad_records=9")
    for name in ("state_sha256", "damaged_records", "confusion_matrix"):
        assert ended[name] == straight[name], name


# Devices


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_well")
def test_devices_and_modes_agree_and_checkpoints_move(tmp_path):
    """jit on 8, pmap on 8 and one device agree to float tolerance, dropout and augmentation on; a
    run goes on with another number of devices, in fixed order with the same bits; 20 and 68
    examples, which 8 does not divide, are all counted.

    With tanh: a ReLU whose input is zero up to rounding is on with one device and off with eight on
    some processors, and moves the weights of its filter by twice the tolerance.
    """
    flags = [*TINY, "--optimizer=paper", "--color_pca", "--average_decay=0.5", "--activation=tanh"]
    runs = {
        "one": train(tmp_path / "one", *flags),
        "jit": train(tmp_path / "jit", *flags, devices=8),
        "pmap": train(tmp_path / "pmap", *flags, "--parallel=pmap", devices=8),
    }
    params = {name: load_run(tmp_path / name).params for name in runs}
    for name in ("jit", "pmap"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), params["one"], params[name]
        )
        losses = [[line["loss"] for line in metric_lines(tmp_path / run)] for run in ("one", name)]
        np.testing.assert_allclose(*losses, rtol=1e-5)
        assert np.sum(runs[name]["confusion_matrix"]) == runs[name]["num_test_examples"] == 68
    assert runs["jit"]["machine"]["devices"] == 8

    longer = [*CIFAR18, "--num_epochs=6", "--save_every_steps=3", "--reduction=fixed"]
    process = subprocess.Popen(command(tmp_path / "moved", *longer), stderr=subprocess.DEVNULL)
    wait_for_checkpoint(process, tmp_path / "moved")
    process.kill()
    process.wait()
    moved = train(tmp_path / "moved", *longer, devices=8)
    straight = train(tmp_path / "straight", *longer)
    assert (moved["machine"]["devices"], straight["machine"]["devices"]) == (8, 1) and moved[
        "num_steps"
    ] == 18
    assert moved["state_sha256"] == straight["state_sha256"]


# Presets at full size


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_well")
@pytest.mark.parametrize("preset", ["deck", "paper", "caffe", "code2012", "torchvision", "modern"])
def test_presets_train_at_full_size(preset, tmp_path):
    """Two steps on noise; `deck` is killed after the first of them, and ends the same."""
    flags = [f"--flagfile=alexnet/presets/{preset}.flags", *FULL_SIZE]
    if preset == "modern":
        flags += ["--warmup_epochs=0"]  # five are more than there are
    if preset == "deck":
        flags += ["--save_every_steps=1"]
    try:
        result = train(tmp_path / "run", *flags)
        assert (
            result["num_steps"] == 2
            and result["dataset"] == "fake"
            and result["num_test_examples"] == 256
        )
        losses = [line["loss"] for line in metric_lines(tmp_path / "run")]
        assert len(losses) == 2 and np.isfinite(losses).all()
        assert losses[-1] == pytest.approx(np.log(1000), rel=0.2)  # of a network that knows nothing
        if preset == "deck":
            resumed = killed_and_resumed(tmp_path / "killed", flags, [signal.SIGKILL])
            assert resumed["state_sha256"] == result["state_sha256"]
            assert metric_lines(tmp_path / "killed") == metric_lines(tmp_path / "run")
    finally:
        shutil.rmtree(tmp_path)  # gigabytes


# Refusals


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--batch_size=49"], 2, "--batch_size=49 is larger than the training set (48 examples)"),
        (["--validation_size=68"], 2, "leaves 0 to train on"),
        (["--dataset=imagenet_64"], 65, "data set 'imagenet_64' not found"),
        (
            ["--dataset=grey"],
            65,
            "RGB images at least as large; those of grey have 32x32 pixels and 1 channels",
        ),
        (
            ["--crop_size=33"],
            65,
            "--crop_size=33 cuts squares from RGB images at least as large; those of noise10 have 32x32 pixels",
        ),
        (
            ["--crop_size=7", "--dataset=tiny"],
            2,
            "--crop_size=7 leaves nothing after pool5; this conv1 needs at least 8",
        ),
        (["--optimizer=adamw"], 2, "add --momentum=0"),
        (["--num_classes=9"], 2, "--num_classes=9 is less than the 10 classes of noise10"),
        (["--dataset=damaged"], 65, "record 5 (neither JPEG nor PNG)"),
        (
            ["--dataset=damaged", "--max_bad_records=1"],
            65,
            "than --max_bad_records=1: split train, shard damaged-train.array",
        ),
        (["--dataset=mislabelled"], 65, "(label 10; allowed: 0 to 9)"),
        (
            ["--dataset=mislabelled", "--max_bad_records=9"],
            65,
            "mislabelled has more damaged records than --max_bad_records=9",
        ),
        (["--dataset=misshapen"], 65, "(an image of 79x79 pixels, not 80x80)"),
        (["--max_bad_records=-1"], 2, "--max_bad_records=-1"),
        (["--norm_order=pool"], 2, "norm_pool|pool_norm|code2012"),
    ],
)
def test_what_cannot_be_trained_gets_one_clear_line(tmp_path, flags, code, message):
    exit_code, error = refuse(tmp_path / "run", *TINY, *flags)
    assert exit_code == code and message in error
    assert error.strip().splitlines()[-1].startswith("error: ")


def test_a_training_set_of_another_size_is_refused(tmp_path, write_set):
    """Where the mean image is the same."""

    def go_on():
        with pytest.raises(Interrupted):
            train_and_evaluate(config, tmp_path, lambda: 15)

    data_dir = tmp_path / "data"
    config = Config(
        dataset="plain",
        data_dir=str(data_dir),
        validation_size=4,
        batch_size=4,
        net="cifar18",
        crop_size=16,
        dropout=0.0,
    )
    write_set(data_dir, "plain", np.zeros((24, 16, 16, 3), np.uint8))
    go_on()
    shutil.rmtree(data_dir / "plain")
    write_set(data_dir, "plain", np.zeros((23, 16, 16, 3), np.uint8))
    with pytest.raises(
        DataError,
        match=r"plain is not the set that .* was started with: its training examples differ",
    ):
        go_on()


def test_batch_must_be_divisible_by_the_devices(tmp_path):
    code, error = refuse(
        tmp_path / "run",
        *TINY,
        "--batch_size=12",
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
    )
    assert code == 2 and "must be divisible by the number of devices, 8" in error


@pytest.mark.slow
def test_the_workdir_of_a_lenet_run_is_refused_and_the_reverse(tmp_path, tiny):
    lenet = [
        "--dataset=mnist10k",
        "--train_size=64",
        "--validation_size=64",
        "--num_epochs=1",
        "--batch_size=32",
    ]
    subprocess.run(
        command(tmp_path / "lenet", *lenet, module="lenet.train"), check=True, capture_output=True
    )
    for workdir, module, flags in (
        (tmp_path / "lenet", "alexnet.train", TINY),
        (tiny[0], "lenet.train", lenet),
    ):
        done = subprocess.run(
            command(workdir, *flags, module=module), capture_output=True, text=True
        )
        assert (
            done.returncode == 2
            and "holds a run of another program" in done.stderr
            and done.stderr.count("\n") == 1
        )
    again = score(tmp_path / "lenet")
    assert (
        again["error_pct"]
        == json.loads((tmp_path / "lenet" / "result.json").read_text())["test_error_pct"]
    )
