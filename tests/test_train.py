"""The real commands of both networks, tiny: what they write, that they resume bit for bit, what
they refuse.
"""

import contextlib
import dataclasses
import json
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

import alexnet.train
import lenet.train
from alexnet.data import open_split
from common import examples as in_memory
from common import launch, runtime
from common.curves import mean_by_epoch
from common.digests import state_sha256
from common.errors import UserError
from common.evaluation import evaluate
from common.metrics import summarize
from common.workdir import claimed, read_metrics, saved_steps, write_config
from lenet.data import DIGITS
from scripts.prepare.builders import write_prepared

pytestmark = pytest.mark.usefixtures("compiled_quickly")

GOLDEN = Path(__file__).parent / "golden"
NETWORKS = {"lenet": lenet, "alexnet": alexnet}
TINY = {
    "lenet": [
        "--dataset=mnist10k",
        "--train_size=500",
        "--validation_size=500",
        "--num_epochs=2",
        "--batch_size=32",
    ],
    "alexnet": [
        "--preset=small",
        "--dataset=noise10",
        "--validation_size=20",
        "--batch_size=16",
        "--num_epochs=2",
        "--learning_rate=0.001",
        "--log_every_steps=2",
        "--average_decay=0.5",
        "--crop_size=24",
        "--pad=0",
    ],
}
PAPER = ["--preset=paper", "--dataset=mnist10k", "--train_size=300", "--num_epochs=2"]
STREAMED = [*TINY["alexnet"], "--dataset=streamed"]
FULL_SIZE = [
    "--dataset=fake",
    "--train_size=4",
    "--batch_size=2",
    "--validation_size=2",
    "--num_epochs=1",
    "--noten_crop",
    "--learning_rate=0.0001",
]


def write_bad(folder: Path) -> None:
    """`damaged`: noise; records 5 and 47 (training), 60 (validation) and 7 (test) are no images.
    `mislabeled` and `misshapen`: their descriptions say 80x80 pixels and 10 classes.
    """
    noise = np.random.default_rng(0).integers(0, 256, (68, 80, 80, 3), np.uint8)
    names = [str(number) for number in range(11)]
    splits = {
        split: [(b"no image" if i in bad else image, i % 10) for i, image in enumerate(noise)]
        for split, bad in {"train": (5, 47, 60), "test": (7,)}.items()
    }
    options = dict(keep_order=True)
    write_prepared(folder, "damaged", "1.0.0", splits, (80, 80, 3), names[:10], **options)
    for name, size, label in (("mislabeled", 80, 10), ("misshapen", 79, 0)):
        examples = [(np.zeros((size, size, 3), np.uint8), label)] * 40
        splits = {"train": examples, "test": examples}
        made = write_prepared(folder, name, "1.0.0", splits, (80, 80, 3), names, **options)
        text = (made / "features.json").read_text()
        (made / "features.json").write_text(text.replace('Classes": "11"', 'Classes": "10"'))
        statistics = dict(train_mean_image=np.zeros((80, 80, 3), np.float32))
        np.savez(made / "statistics.npz", **statistics, train_covariance=np.eye(3))


FEW = ("--train_size=0", "--validation_size=4")  # of forty examples


@pytest.fixture(scope="module", autouse=True)
def sets(tmp_path_factory, write_set):
    """Where the commands find their sets, and keep what they compute."""
    folder, draw = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    write_set(folder, "noise10", draw.integers(0, 256, (68, 32, 32, 3), np.uint8))
    write_set(folder, "streamed", draw.integers(0, 256, (68, 80, 80, 3), np.uint8))
    write_bad(folder)
    write_set(folder, "wide", np.zeros((40, 32, 36, 3), np.uint8))
    write_set(folder, "rgba", np.zeros((40, 32, 32, 4), np.uint8))
    write_set(folder, "small", np.zeros((40, 7, 7, 3), np.uint8))
    write_set(folder, "odd", np.zeros((40, 30, 28, 1), np.uint8))
    write_set(folder, "twelve", np.zeros((40, 28, 28, 1), np.uint8), num_classes=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


def command(network: str, workdir: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", f"{network}.train", f"--workdir={workdir}", *flags]


def train(network: str, workdir: Path, *flags: str) -> dict:
    done = subprocess.run(command(network, workdir, *flags), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((workdir / "result.json").read_text())


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """here(network, workdir, *flags): the command in this process, up to the first compilation:
    its exit code, its output and its errors.
    """
    for name in ("use_compilation_cache", "keep_freed_memory", "mute_library_logs"):
        monkeypatch.setattr(runtime, name, lambda: None)  # they belong to the process
    # Statistics that another test allowed damaged records for would pass here unread.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(network, workdir, *flags):
        module = NETWORKS[network].train
        monkeypatch.setattr(module, "fit", lambda *_: pytest.fail("it trains"))
        monkeypatch.setattr(sys, "argv", [f"{network}.train", f"--workdir={workdir}", *flags])
        with pytest.raises(SystemExit) as ended:
            launch.main(module.Config, module.make_task, module.fit)
        output, errors = capsys.readouterr()
        assert "Traceback" not in errors
        return ended.value.code, output, errors

    return run


@pytest.fixture(scope="module", params=NETWORKS)
def finished(request, tmp_path_factory, sets, compiled_quickly):
    """A finished run of TINY: its network, its folder and its result."""
    workdir = tmp_path_factory.mktemp("runs") / request.param
    return request.param, workdir, train(request.param, workdir, *TINY[request.param])


# ---- what a run leaves


@pytest.mark.commands
def test_what_a_run_leaves(finished):
    network, workdir, result = finished
    for name in ("config.json", "flags.txt", "metrics.jsonl", "curves.png", "checkpoints"):
        assert (workdir / name).exists(), name
    assert list(workdir.glob("events.out.tfevents.*"))
    steps = {"lenet": 30, "alexnet": 6}[network]
    count = {"lenet": 2000, "alexnet": 68}[network]
    assert (result["num_steps"], result["num_test_examples"]) == (steps, count)
    assert result["num_train_examples"] == {"lenet": 500, "alexnet": 48}[network]
    confusion = np.array(result["confusion_matrix"])
    labels = in_memory.load("mnist10k", "test", [DIGITS]).labels
    expected = np.bincount(labels) if network == "lenet" else [7] * 8 + [6] * 2
    assert confusion.sum(1).tolist() == list(expected)  # rows are the true classes
    error = 100 * (1 - np.trace(confusion) / count)
    assert result["test_error_pct"] == pytest.approx(error, abs=1e-12)
    assert len(result["state_sha256"]) == 64
    where = {"command", "commit", "seed", "dataset", "versions", "machine", "version"}
    assert where | {"images_per_s", "wall_time_s", "tracked"} <= result.keys()
    lines = read_metrics(workdir)
    places = [(line["step"], line["split"]) for line in lines]
    assert len(places) == len(set(places))
    of_training = [step for step, split in places if split == "train"]
    assert of_training == {"lenet": [15, 30], "alexnet": [2, 3, 4, 6]}[network]
    assert [step for step, split in places if split != "train"] == [steps // 2, steps]
    assert places[-1][1] == "validation"  # the test split is scored once, at the end
    assert result["validation_error_pct"] == lines[-1]["error_pct"]
    assert all(list(line)[:3] == ["step", "epoch", "split"] for line in lines)
    if network == "alexnet":
        assert result["top1_error_pct"] == result["test_error_pct"]
        for crops in ("", "ten_crop_"):
            assert 0 <= result[f"{crops}top5_error_pct"] <= result[f"{crops}top1_error_pct"] <= 100
        assert all(("top5_error_pct" in line) == (line["split"] != "train") for line in lines)


@pytest.mark.slow
def test_a_command_that_ends_at_an_error(tmp_path):
    """After the first epoch of ten at or below it; the newest checkpoint is left, and the one that
    was the best before it was scored.
    """
    flags = [*TINY["lenet"], "--num_epochs=10", "--keep=1"]
    flags += ["--schedule=constant", "--stop_at_train_error_pct=40"]
    result = train("lenet", tmp_path / "run", *flags)
    epochs, lines = result["stopped_after_epochs"], read_metrics(tmp_path / "run")
    errors = [error for _, error in mean_by_epoch(lines, "error_pct")["train"]]
    assert errors[-1] <= 40 < min(errors[:-1]) and len(errors) == epochs < 10
    assert result["stopped_by"] == "stop_at_train_error_pct"
    assert result["num_steps"] == 15 * epochs
    saved = saved_steps(tmp_path / "run")
    assert saved[-1] == 15 * epochs and len(saved) <= 2 and result["best_step"] in saved


@pytest.mark.commands
def test_the_same_command_is_complete_and_another_is_refused(finished, here):
    network, workdir, result = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    code, output, _ = here(network, workdir, *TINY[network])
    assert code == 0 and f"{result['test_error_pct']:.2f}%" in output
    code, _, errors = here(network, workdir, *TINY[network], "--learning_rate=0.02")
    assert (
        code == 2
        and "learning_rate" in errors
        and "0.02" in errors
        and (workdir / "metrics.jsonl").read_bytes() == before
    )
    assert "learning_rate" in (workdir / "flags.txt").read_text()
    assert "workdir" not in (workdir / "flags.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "flags"),
    [
        ("lenet", ["--schedule=constant", "--average_decay=0.9"]),
        pytest.param("alexnet", ["--schedule=plateau", "--patience=1"], marks=pytest.mark.nightly),
    ],
)
def test_a_finished_run_trained_longer_is_a_run_of_that_length(network, flags, tmp_path):
    flags = [*TINY[network], *flags]
    short = train(network, tmp_path / "run", *flags, "--num_epochs=1")
    longer = train(network, tmp_path / "run", *flags, "--num_epochs=3")
    at_once = train(network, tmp_path / "at_once", *flags, "--num_epochs=3")
    for name in ("state_sha256", "num_steps", "test_error_pct", "best_step"):
        assert longer.get(name) == at_once.get(name), name
    assert longer["num_steps"] == 3 * short["num_steps"]
    kept = tmp_path / "run" / "result_after_1_epochs.json"
    assert json.loads(kept.read_text()) == short
    runs = [read_metrics(tmp_path / name) for name in ("run", "at_once")]
    lines = [[(line["step"], line["split"], line["loss"]) for line in run] for run in runs]
    assert lines[0] == lines[1]


@pytest.mark.commands
@pytest.mark.parametrize("finished", ["lenet"], indirect=True)
def test_what_cannot_be_trained_longer(finished, here):
    """Where all rates depend on the length; and shorter is no longer."""
    _, workdir, _ = finished
    files = {path: path.read_bytes() for path in workdir.glob("[!.]*.*")}
    code, _, errors = here("lenet", workdir, *TINY["lenet"], "--num_epochs=9")
    assert code == 2 and "--schedule=cosine" in errors and "--init_from=" in errors
    code, _, errors = here("lenet", workdir, *TINY["lenet"], "--num_epochs=1")
    assert code == 2 and "num_epochs" in errors
    assert {path: path.read_bytes() for path in workdir.glob("[!.]*.*")} == files


@pytest.mark.commands
@pytest.mark.parametrize("finished", ["lenet"], indirect=True)
def test_files_of_a_run_that_somebody_edited(finished, here, score, tmp_path):
    """One line; and lines of metrics that no run wrote are dropped."""
    workdir = tmp_path / "run"
    shutil.copytree(finished[1], workdir)
    for content in (
        '{"settings": []}',
        '{"num_steps": "x"}',
        '{"num_steps": null}',
        "[" * 100_000,
        "[]",
        "{",
    ):
        (workdir / "result.json").write_text(content)
        code, _, errors = here("lenet", workdir, *TINY["lenet"])
        assert (code, errors.count("\n")) == (74, 1) and "result.json" in errors
    before = read_metrics(workdir)
    with (workdir / "metrics.jsonl").open("a") as file:
        lines = ("123", "null", "{}", "[]", '{"step": "x", "split": "train"}', '{"step": 1}')
        file.write("\n".join([*lines, '{"step": 1, "split": "train", "loss": NaN}', ""]))
    assert read_metrics(workdir) == before
    (workdir / "config.json").write_text("[" * 100_000)
    assert here("lenet", workdir, *TINY["lenet"])[0] == 74
    (workdir / "config.json").unlink()
    (workdir / "config.json").mkdir()
    assert score(workdir)[0] == 2


def copy_with_settings(run: Path, workdir: Path, **settings) -> Path:
    """A copy of a run whose config.json was edited."""
    shutil.copytree(run, workdir)
    config = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(config | settings))
    return workdir


@pytest.mark.commands
@pytest.mark.parametrize("finished", ["lenet"], indirect=True)
def test_nothing_is_trained_longer_without_a_checkpoint(finished, here, tmp_path):
    workdir = copy_with_settings(finished[1], tmp_path / "run", schedule="constant")
    shutil.rmtree(workdir / "checkpoints")
    flags = [*TINY["lenet"], "--schedule=constant", "--num_epochs=3"]
    code, _, errors = here("lenet", workdir, *flags)
    assert code == 74 and "no checkpoint" in errors and (workdir / "result.json").exists()


@pytest.mark.parametrize("flags_written", [False, True])  # a kill comes before or after
@pytest.mark.parametrize("saved", [False, True])
def test_a_longer_run_that_is_refused_changes_nothing(tmp_path, saved, flags_written):
    """Unless it has trained."""
    config = lenet.config.Config(schedule="constant", num_epochs=2)
    write_config(config, tmp_path)
    if not flags_written:
        (tmp_path / "flags.txt").unlink()
    (tmp_path / "result.json").write_text("{}")
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    files = {path.name: path.read_bytes() for path in tmp_path.glob("[!.]*.*")}
    longer = dataclasses.replace(config, num_epochs=3)
    with pytest.raises(UserError, match="refused"), claimed(longer, tmp_path) as finished:
        assert not finished
        if saved:
            (tmp_path / "checkpoints" / "15").mkdir()
        raise UserError("refused")
    after = {path.name: path.read_bytes() for path in tmp_path.glob("[!.]*.*")}
    assert (after == files) is not saved
    assert ("result_after_2_epochs.json" in after) is saved


@pytest.mark.commands
@pytest.mark.parametrize("finished", ["lenet"], indirect=True)
def test_a_result_of_another_run_is_not_this_ones(finished, here, tmp_path):
    workdir = copy_with_settings(finished[1], tmp_path / "run", seed=7)
    code, output, errors = here("lenet", workdir, *TINY["lenet"], "--seed=7")
    assert code == 2 and "result.json" in errors and "seed" in errors and "complete" not in output


@pytest.mark.commands
@pytest.mark.parametrize("finished", ["lenet"], indirect=True)
def test_nothing_begins_anew_where_the_checkpoints_were_removed(finished, here, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[1], workdir)
    (workdir / "result.json").unlink()
    shutil.rmtree(workdir / "checkpoints")
    before = (workdir / "metrics.jsonl").read_bytes()
    for _ in ("gone", "a file"):
        code, _, errors = here("lenet", workdir, *TINY["lenet"])
        assert (code, errors.count("\n")) == (74, 1) and "checkpoints" in errors
        assert (workdir / "metrics.jsonl").read_bytes() == before
        (workdir / "checkpoints").write_text("")


@pytest.mark.slow
def test_a_run_that_diverged_says_so(tmp_path):
    """Its loss is finite, so that nothing ended it."""
    flags = [*TINY["lenet"], "--learning_rate=50", "--schedule=constant"]
    done = subprocess.run(
        command("lenet", tmp_path / "run", *flags), capture_output=True, text=True
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["is_chance"] and "GUESSING" in done.stdout.splitlines()[-1]


@pytest.mark.nightly
def test_saved_flags_replay_the_run(finished, tmp_path):
    network, workdir, result = finished
    replay = train(network, tmp_path / "replay", f"--flagfile={workdir / 'flags.txt'}")
    for name in ("state_sha256", "confusion_matrix"):
        assert replay[name] == result[name]


@pytest.mark.parametrize(
    ("name", "network"), [("alexnet_cifar18", "lenet"), ("lenet_deck", "alexnet")]
)
def test_the_folder_of_the_other_network_is_refused(name, network, tmp_path, here):
    shutil.copytree(GOLDEN / name, tmp_path / "run")
    code, _, errors = here(network, tmp_path / "run", *TINY[network])
    assert code == 2 and str(tmp_path / "run") in errors


# ---- scored again


@pytest.mark.commands
def test_a_checkpoint_gives_the_scores_again(finished, score):
    network, workdir, result = finished
    code, output, _ = score(workdir, "--json")
    again = json.loads(output)
    assert code == 0 and again["step"] == result["num_steps"]
    assert again["num_examples"] == result["num_test_examples"]
    assert again["error_pct"] == pytest.approx(result["test_error_pct"], abs=1e-12)
    assert again["confusion_matrix"] == result["confusion_matrix"]
    held_out = "train[7500:]" if network == "lenet" else "train[48:]"
    again = json.loads(score(workdir, "--json", f"--split={held_out}")[1])
    assert again["error_pct"] == pytest.approx(result["validation_error_pct"], abs=1e-12)
    code, output, _ = score(workdir, "--split=test[:7]")
    assert code == 0 and output.count("\n") == 2 and " 7 examples" in output  # and by class
    assert str(result["num_steps"]) in output
    for flags, expected, named in (
        (["--dataset=wide"], 65, "wide"),
        (["--split=test[:0]"], 2, "--split"),
        (["--dataset=absent"], 65, "absent"),
        (["--crops=nine"], 2, "crops"),
    ):
        code, output, errors = score(workdir, *flags)
        assert (code, output, errors.count("\n")) == (expected, "", 1) and named in errors


@pytest.mark.commands
def test_the_best_checkpoint_has_a_name(finished, score):
    """For scoring, and for a run that starts from it."""
    network, workdir, result = finished
    best = result["best_step"]
    errors = {s["step"]: s["error_pct"] for s in read_metrics(workdir) if s["split"] != "train"}
    assert result["best_validation_error_pct"] == errors[best] == min(errors.values())
    named, numbered = (score(workdir, f"--step={s}", "--json")[1] for s in ("best", best))
    assert named == numbered and json.loads(named)["step"] == best
    code, _, error = score(workdir, "--step=7")
    assert code == 2 and "7" in error and str(best) in error
    at_best = NETWORKS[network].load(workdir, "best")
    params = at_best.params
    assert state_sha256(params) == state_sha256(NETWORKS[network].load(workdir, best).params)
    config = dataclasses.replace(at_best.config, init_from=f"{workdir}@best")
    again = at_best.network._replace(config=config)
    given, about = NETWORKS[network].network.given_params(again, at_best.class_names, params)
    assert state_sha256(given) == state_sha256(params)
    assert about["loaded"] and about["new"] == about["frozen"] == [] and about["step"] == best


@pytest.mark.slow
def test_alexnet_on_the_embedded_digits(tmp_path, score):
    """Without any download: gray, smaller than the crop, and not mirrored."""
    flags = ["--preset=small", "--dataset=mnist10k", "--train_size=256", "--validation_size=100"]
    result = train("alexnet", tmp_path / "run", *flags, "--num_epochs=1", "--test_split=test[:200]")
    assert result["num_test_examples"] == 200
    assert "top1_error_pct" in result and not any("ten_crop" in name for name in result)
    code, output, errors = score(tmp_path / "run", "--crops=ten")
    assert (code, output, errors.count("\n")) == (2, "", 1)  # ten times the same picture
    assert "--crops=ten" in errors and "32x32" in errors
    code, output, _ = score(tmp_path / "run", "--json")
    assert code == 0 and json.loads(output)["error_pct"] == result["test_error_pct"]
    trained = alexnet.load(tmp_path / "run")
    images = open_split("mnist10k", "", "test[:2]").images
    assert trained.predict(images).shape == trained.predict(images[..., 0]).shape == (2, 10)


@pytest.mark.commands
@pytest.mark.parametrize("finished", ["alexnet"], indirect=True)
def test_scores_against_forward_passes_one_by_one(finished, score):
    """The averaged weights, the center crop, and the ten crops cut by NumPy."""
    _, workdir, result = finished
    net = alexnet.load(workdir)
    assert net.class_names == tuple("0123456789")
    training, examples = (open_split("noise10", "", split) for split in ("train[:48]", "test"))
    pixels = training.images.reshape(-1, 3)
    x = ((examples.images - pixels.mean(0)) / pixels.std(0)).astype(np.float32)  # (68, 32, 32, 3)
    corners = [x[:, i : i + 24, j : j + 24] for i, j in ((4, 4), (0, 0), (0, 8), (8, 0), (8, 8))]
    crops = corners + [corner[:, :, ::-1] for corner in corners]
    forward = jax.jit(lambda params, images: net.network.logits(params, images))
    logits = np.stack([forward(net.params, crop) for crop in crops]).astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(net.predict(examples.images), probabilities[0], rtol=1e-3, atol=1e-5)
    for scores, prefix in ((probabilities[0], ""), (probabilities.mean(0), "ten_crop_")):
        ranks = np.argsort(-scores, axis=-1)
        for name, top in (("top1", 1), ("top5", 5)):
            hits = (ranks[:, :top] == examples.labels[:, None]).any(-1)
            expected = 100 * (1 - hits.mean())
            assert result[f"{prefix}{name}_error_pct"] == pytest.approx(expected, abs=1e-9)
    again = json.loads(score(workdir, "--json", "--crops=ten")[1])
    assert again["error_pct"] == result["ten_crop_top1_error_pct"]
    assert again["top5_error_pct"] == result["ten_crop_top5_error_pct"]


@pytest.mark.commands
@pytest.mark.parametrize("finished", ["lenet"], indirect=True)
def test_crops_are_for_alexnet_and_few_examples_are_all_counted(finished, score):
    _, workdir, _ = finished
    code, _, errors = score(workdir, "--crops=ten")
    assert code == 2 and "--crops=ten" in errors
    net = lenet.load(workdir)
    examples = in_memory.load("mnist10k", "test[:7]", [DIGITS])
    sums = evaluate(lenet.train.make_eval_step(net.network), net.params, examples, batch_size=1000)
    assert sums["count"] == 7 and sums["confusion"].sum() == 7
    wrong = net.predict(examples.images).argmax(-1) != examples.labels
    assert summarize(sums)["error_pct"] == pytest.approx(100 * wrong.mean())


# ---- killed, stopped and resumed


def wait_for_checkpoint(process, workdir: Path, after: list[int]) -> None:
    while process.poll() is None and saved_steps(workdir)[-1:] == after[-1:]:
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()


def ended_and_resumed(network: str, workdir: Path, flags, signals, seconds=0.0) -> dict:
    """Runs until the end, ended by each of the signals up to some seconds after a new checkpoint is
    there.
    """
    draw = random.Random(0)
    for number in signals:
        before = saved_steps(workdir)
        process = subprocess.Popen(
            command(network, workdir, *flags), stderr=subprocess.PIPE, text=True
        )
        wait_for_checkpoint(process, workdir, before)
        time.sleep(draw.uniform(0, seconds))
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
        if number == signal.SIGKILL:
            assert process.returncode == -number, "the run ended before it could be killed"
            continue
        assert process.returncode == 128 + number, errors
        last = errors.splitlines()[-1]
        assert signal.Signals(number).name in last and str(workdir) in last
        assert "Traceback" not in errors and "leaked" not in errors
        # Everything up to the stop is saved, and lines come up to it.
        steps = [line["step"] for line in read_metrics(workdir) if line["split"] == "train"]
        assert saved_steps(workdir)[-1] - 1 <= steps[-1] <= saved_steps(workdir)[-1]
    return train(network, workdir, *flags)


MINIBATCH = [
    *TINY["lenet"],
    "--distortions=elastic",
    "--average_decay=0.99",
    "--optimizer=adamw",
    "--momentum=0",
    "--learning_rate=0.01",
]
AUGMENTED = [
    *TINY["alexnet"],
    "--dropout=0.5",
    "--color_pca",
    "--augmentation=resized_crop_flip",
    "--save_every_steps=2",
]
CIFAR18 = ["--preset=cifar18", *TINY["alexnet"][1:-3], "--drop_epochs=12,24"]
KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT


@pytest.mark.usefixtures("compiled_well")
@pytest.mark.parametrize(
    ("network", "flags", "signals"),
    [
        pytest.param(
            "lenet", [*MINIBATCH, "--num_epochs=20"], (TERM, KILL), marks=pytest.mark.slow
        ),
        pytest.param(
            "alexnet", [*AUGMENTED, "--num_epochs=24"], (TERM, KILL), marks=pytest.mark.slow
        ),
        pytest.param(
            "lenet",
            [*PAPER, "--num_epochs=10", "--distortions=affine", "--distorted_copies=2"],
            (KILL, KILL),
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            "alexnet",
            [*CIFAR18, "--num_epochs=36", "--save_every_steps=2"],
            (KILL, TERM, KILL),
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            "alexnet",
            [*STREAMED, "--num_epochs=36", "--save_every_steps=3", "--num_workers=2"],
            (INT, KILL),
            marks=pytest.mark.nightly,
        ),
    ],
    ids=["lenet", "alexnet", "paper", "cifar18", "streamed"],
)
def test_ended_runs_end_with_the_state_of_an_uninterrupted_one(tmp_path, network, flags, signals):
    clean = train(network, tmp_path / "clean", *flags, *["--num_workers=0"] * (network != "lenet"))
    resumed = ended_and_resumed(network, tmp_path / "ended", flags, signals, seconds=0.3)
    assert resumed["state_sha256"] == clean["state_sha256"]
    assert resumed["confusion_matrix"] == clean["confusion_matrix"]
    assert read_metrics(tmp_path / "ended") == read_metrics(tmp_path / "clean")


@pytest.mark.nightly
def test_lenets_paper_preset_learns(tmp_path):
    """Two passes over 2,000 real digits, one at a time, by SDLM: from chance to well under 12%."""
    result = train("lenet", tmp_path / "paper", *PAPER, "--train_size=2000")
    assert result["num_steps"] == 4000 and result["test_error_pct"] < 12


# ---- damaged records


@pytest.mark.nightly
def test_damaged_records_are_skipped_alike_by_all_threads_and_counted_over_resumes(tmp_path, score):
    flags = [*STREAMED, "--dataset=damaged", "--max_bad_records=4", "--num_epochs=4"]
    clean = train("alexnet", tmp_path / "clean", *flags, "--num_workers=0")
    assert clean["damaged_records"] == 4 and clean["num_test_examples"] == 67
    assert clean["num_train_examples"] == 48
    killed = [*flags, "--num_epochs=4", "--save_every_steps=1", "--num_workers=2"]
    other = ended_and_resumed("alexnet", tmp_path / "killed", killed, [KILL])
    same = ("state_sha256", "damaged_records", "confusion_matrix", "train_error_pct")
    assert {name: other[name] for name in same} == {name: clean[name] for name in same}
    again = json.loads(score(tmp_path / "clean", "--json")[1])
    found = (again["num_examples"], again["damaged_records"], again["error_pct"])
    assert found == (67, 1, clean["test_error_pct"])


@pytest.mark.slow
def test_a_run_that_damage_ended_goes_on_where_more_is_allowed(tmp_path):
    """Two in the training set, found with its mean image; the third is met in the first validation,
    the fourth in the test.
    """
    flags = [*STREAMED, "--dataset=damaged", "--noten_crop"]
    for allowed, numbers in ((2, [5, 47, 60]), (3, [5, 47, 60, 7])):
        last = command("alexnet", tmp_path / "run", *flags, f"--max_bad_records={allowed}")
        done = subprocess.run(last, capture_output=True, text=True)
        message = done.stderr.splitlines()[-1]
        assert done.returncode == 65 and "Traceback" not in done.stderr
        assert f"--max_bad_records={allowed}" in message
        assert all(f"record {number} " in message for number in numbers)
    assert saved_steps(tmp_path / "run")[-1] == 6
    ended = train("alexnet", tmp_path / "run", *flags, "--max_bad_records=4")
    straight = train("alexnet", tmp_path / "straight", *flags, "--max_bad_records=9")
    for name in ("state_sha256", "damaged_records", "confusion_matrix"):
        assert ended[name] == straight[name], name


# ---- presets at full size


@pytest.mark.nightly
@pytest.mark.usefixtures("compiled_well")
@pytest.mark.parametrize("preset", ["deck", "paper", "caffe", "code2012", "torchvision", "modern"])
def test_presets_train_at_full_size(preset, tmp_path):
    """Two steps on noise; `deck` is killed after the first of them, and ends the same."""
    flags = [f"--preset={preset}", *FULL_SIZE]
    flags += {"modern": ["--warmup_epochs=0"], "deck": ["--save_every_steps=1"]}.get(preset, [])
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, tmp_path)  # gigabytes
        result = train("alexnet", tmp_path / "run", *flags)
        assert (result["num_steps"], result["num_test_examples"]) == (2, 256)
        losses = [line["loss"] for line in read_metrics(tmp_path / "run")]
        assert len(losses) == 2 and np.isfinite(losses).all()
        assert losses[-1] == pytest.approx(np.log(1000), rel=0.2)  # of a network that knows nothing
        if preset == "deck":
            resumed = ended_and_resumed("alexnet", tmp_path / "killed", flags, [KILL])
            assert resumed["state_sha256"] == result["state_sha256"]
            assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "run")


# ---- refusals


@pytest.mark.commands
@pytest.mark.parametrize(
    ("network", "flags", "code", "named"),
    [
        ("lenet", ["--batch_size=9000"], 2, "--batch_size=9000"),
        ("lenet", ["--validation_size=8000"], 2, "--validation_size=8000"),
        ("lenet", ["--optimizer=sdlm", "--momentum=0"], 2, "--pooling=trainable"),
        ("lenet", ["--subsampling=sum"], 2, "--pooling=trainable"),
        ("lenet", ["--codes=distance25"], 2, "--output=rbf"),
        ("lenet", ["--output=squashed"], 2, "--loss=mse"),
        ("lenet", ["--noshuffle"], 2, "--noreshuffle"),
        ("lenet", ["--optimizer=adamw"], 2, "--momentum=0"),
        ("lenet", ["--label_smoothing=0.1", "--loss=mse"], 2, "--loss=cross_entropy"),
        ("lenet", ["--distorted_copies=9"], 2, "--distortions"),
        ("lenet", ["--validation_size=0"], 2, "--track=test"),
        ("lenet", ["--warmup_epochs=20"], 2, "warmup_epochs"),
        ("lenet", ["--keep=0"], 2, "--keep=0"),
        ("lenet", ["--stop_at_train_error_pct=101"], 2, "--stop_at_train_error_pct=101"),
        ("lenet", ["--stop_at_validation_error_pct=5", "--track=test"], 2, "--track=validation"),
        ("lenet", ["--c3=full"], 2, "c3"),
        ("lenet", ["--learning_rate=fast"], 2, "learning_rate"),
        ("lenet", ["--flagfile=lenet/presets/none.flags"], 2, "none.flags"),
        ("lenet", ["--unknown=1"], 2, "unknown"),
        ("lenet", ["--dataset=kmnist"], 65, "kmnist"),
        ("lenet", ["--dataset=odd", "--validation_size=10"], 65, "28x28"),
        ("lenet", ["--preset=paper", "--dataset=twelve", *FEW], 2, "--output=rbf"),
        ("alexnet", ["--batch_size=49"], 2, "--batch_size=49"),
        ("alexnet", ["--validation_size=68"], 2, "--validation_size=68"),
        ("alexnet", ["--dataset=imagenet_64"], 65, "imagenet_64"),
        ("alexnet", ["--dataset=rgba"], 65, "rgba"),
        ("alexnet", ["--crop_size=7", "--dataset=small"], 2, "--crop_size=7"),
        ("alexnet", ["--optimizer=adamw"], 2, "--momentum=0"),
        ("alexnet", ["--num_classes=9"], 2, "--num_classes=9"),
        ("alexnet", ["--dataset=damaged"], 65, "record 5 "),
        ("alexnet", ["--dataset=damaged", "--max_bad_records=1"], 65, "damaged-train.array"),
        ("alexnet", ["--dataset=mislabeled"], 65, "label 10"),
        ("alexnet", ["--dataset=mislabeled", "--max_bad_records=9"], 65, "--max_bad_records=9"),
        ("alexnet", ["--dataset=misshapen"], 65, "79x79"),
        ("alexnet", ["--max_bad_records=-1"], 2, "--max_bad_records=-1"),
        ("alexnet", ["--norm_order=pool"], 2, "norm_order"),
    ],
)
def test_what_cannot_be_trained_is_one_line(tmp_path, here, network, flags, code, named):
    exit_code, output, errors = here(network, tmp_path / "run", *TINY[network], *flags)
    last = errors.splitlines()[-1]
    assert (exit_code, output) == (code, "") and last.startswith("error: ") and named in last
    assert not list(tmp_path.glob("run/checkpoints/*"))
