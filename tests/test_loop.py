"""The loop of both networks: stopped anywhere, a run ends the same.

First with a network of one layer, which compiles at once; then with LeNet-5 and AlexNet.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alexnet.config
import alexnet.train
import lenet.config
import lenet.train
from common import digests, loop, parallel, step
from common.checkpoint import Checkpointer, best_step, restore_part
from common.curves import mean_by_epoch
from common.digests import state_sha256
from common.errors import DataError, Interrupted, NonFiniteError, UserError
from common.examples import Examples
from common.flags import setting
from common.losses import cross_entropy
from common.network import Network
from common.order import order_of_uses
from common.workdir import saved_steps

pytestmark = pytest.mark.usefixtures("compiled_quickly", "compiled_once", "without_curves")

TIMES = ("images_per_s", "wall_time_s")


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def places(workdir: Path, *splits: str) -> list[int]:
    """The steps of the lines of these splits."""
    return [line["step"] for line in lines(workdir) if line["split"] in splits]


def asked(stop_at=()):
    """A `stop_requested` that asks to stop at the given calls of it."""
    calls = iter(range(1, 100_000))
    return lambda: 15 if next(calls) in stop_at else None


def outcome(result: dict, workdir: Path) -> tuple[dict, list[dict]]:
    """What a run gives, without times; arrays as lists."""
    result = {name: value for name, value in result.items() if name not in TIMES}
    return jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), result), lines(workdir)


# ---- a network of one layer

BATCH, EPOCH, NUM_STEPS = 4, 5, 15  # 22 examples: each epoch leaves two to the next


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    dataset: str = setting("toy", "")
    track: str = setting("validation", "")
    save_every_epochs: int = setting(1, "", changes_result=False)
    num_epochs: int = setting(3, "")
    batch_size: int = setting(4, "")
    parallel: str = setting("jit", "")
    reduction: str = setting("fast", "")
    compute_dtype: str = setting("float32", "")
    keep: int = setting(3, "", changes_result=False)
    stop_at_train_error_pct: float = setting(0.0, "")
    stop_at_validation_error_pct: float = setting(0.0, "")
    rate_needs_length = False


TOY = ToyConfig()


class ToyState(NamedTuple):
    step: Any
    params: Any
    average: Any
    begun: Any  # epochs, counted by `before_epoch`
    scored: Any  # the sum of the losses that `after_epoch` was given


@functools.cache
def toy(rate: float = 0.3, chunk_steps: int = 2, config: ToyConfig = TOY) -> loop.Task:
    """Three epochs of 5 steps, in chunks of 2, 2 and 1; the state tells what was called when."""
    draw = np.random.default_rng(0)
    examples = Examples(
        draw.integers(0, 256, (35, 2, 2, 1), np.uint8), draw.integers(0, 3, 35, np.int32), 3, "toy"
    )
    training, validation, test = examples[:22], examples[22:28], examples[28:]

    def bind(params):
        return lambda images, keys=None: images @ params["layer"]["kernel"]

    def prepare(images, draw=None):
        return images.reshape(len(images), -1) / 255.0

    def init():
        return {"layer": {"kernel": jnp.zeros((4, 3))}}

    network = Network(config, 3, 12, ((2, 2, 1),), init, bind, prepare, cross_entropy)

    def one_step(add_up, state, batch):
        grads, sums = step.gradients(network, state.params, batch, add_up)
        scale = rate / (1 + state.begun) + 0.01 * rate * state.scored  # what was not called is felt
        params = jax.tree.map(lambda w, g: w - scale * g, state.params, grads)
        average = step.average(state, params, 0.9)
        return state._replace(step=state.step + 1, params=params, average=average), sums

    def train_steps(state, chunk, add_up):
        state, sums = jax.lax.scan(functools.partial(one_step, add_up), state, chunk)
        return state, jax.tree.map(jnp.sum, sums)

    def chunks(first_step):
        while True:
            count = min(chunk_steps, EPOCH - first_step % EPOCH)
            uses = np.arange(BATCH * first_step, BATCH * (first_step + count)).reshape(count, BATCH)
            images, labels = training.read(order_of_uses(len(training), uses, 0))
            yield count, {"image": images, "label": labels, "draw": labels}
            first_step += count

    def initial_state(params):
        return ToyState(jnp.int32(0), params, params, jnp.int32(0), jnp.float32(0))

    placement = parallel.place(train_steps, mode="jit", batch_size=BATCH, batch_axis=1)
    return loop.Task(
        network=network,
        log_every_steps=3,
        save_every_steps=0,
        placement=placement,
        initial_state=initial_state,
        given_params=lambda target: ({}, None),
        chunks=chunks,
        train=lambda state, chunk, count: placement.run(state, placement.place_training(chunk)),
        eval_step=placement.over_devices(
            step.make_eval_step(network, lambda params, images: bind(params)(prepare(images)))
        ),
        eval_batch_size=4,
        num_threads=0,
        splits={"train": training, "validation": validation, "test": test},
        facts={},
        training_set=training.fingerprint(),
        before_epoch=lambda state, epoch: state._replace(begun=state.begun + 1),
        after_epoch=lambda state, scores, say: state._replace(scored=state.scored + scores["loss"]),
    )


def fit(task, workdir: Path, stop_at=()) -> dict:
    """`loop.fit` to the end; asked to stop, it is started again."""
    workdir.mkdir(exist_ok=True)
    stop_requested = asked(stop_at)
    while True:
        try:
            return loop.fit(task, workdir, stop_requested)
        except Interrupted:
            continue


@pytest.fixture(scope="module")
def straight(tmp_path_factory, compiled_quickly, compiled_once):
    """What a run of the toy gives that nobody stopped."""
    workdir = tmp_path_factory.mktemp("toy") / "run"
    return outcome(fit(toy(), workdir), workdir)


@pytest.mark.commands
def test_what_a_run_gives(tmp_path):
    """Lines where they are due, each once; the test split is scored once, at the end."""
    result = fit(toy(), tmp_path / "run")
    # Logged after every third step, and at the ends of epochs; step 3 is inside a chunk.
    assert places(tmp_path / "run", "train") == [5, 9, 10, 12, 15]
    assert places(tmp_path / "run", "validation") == [5, 10, 15]
    assert places(tmp_path / "run", "test") == []
    assert saved_steps(tmp_path / "run") == [5, 10, 15]
    last = lines(tmp_path / "run")[-1]
    assert result["validation_error_pct"] == last["error_pct"]
    assert (result["num_steps"], result["tracked"]) == (15, "validation")
    assert (result["num_train_examples"], result["num_test_examples"]) == (22, 7)
    assert 0 <= result["test_error_pct"] <= 100 and 0 <= result["train_error_pct"] <= 100
    assert len(result["state_sha256"]) == 64
    assert result["images_per_s"] > 0 and result["wall_time_s"] > 0


@pytest.mark.commands
def test_stopped_at_any_question_it_ends_the_same(tmp_path, straight):
    """After each chunk, in each evaluation of an epoch and in the final scores: a signal is heard,
    the state is saved, and the run goes on to the same end.
    """
    where = []
    for call in range(1, 100):
        workdir = tmp_path / str(call)
        workdir.mkdir()
        try:
            loop.fit(toy(), workdir, asked([call]))
            break
        except Interrupted as interrupted:
            assert interrupted.args == (15,)
            where.append(saved_steps(workdir)[-1])
        assert outcome(fit(toy(), workdir), workdir) == straight, call
    # Three chunks and two batches an epoch; at the end two of test, six of training, two more.
    assert where == [2, 4, *[5] * 3, 7, 9, *[10] * 3, 12, 14, *[15] * 13]


@pytest.mark.commands
@pytest.mark.parametrize(
    "stop_at", [range(1, 20, 2), (1, 2, 4, 5, 6, 7), (3, 4, 5, 20, 21)], ids=str
)
def test_stopped_again_and_again_it_ends_the_same(tmp_path, straight, stop_at):
    assert outcome(fit(toy(), tmp_path / "run", stop_at), tmp_path / "run") == straight


@pytest.mark.commands
def test_an_epoch_is_saved_before_it_is_scored(tmp_path, straight):
    """A crash in the score of epoch 2 costs nothing but that score, which then comes once."""

    def crash(params, batch):
        if places(tmp_path, "validation") == [5] and places(tmp_path, "train")[-1] == 10:
            raise RuntimeError("the power fails")
        return toy().eval_step(params, batch)

    with pytest.raises(RuntimeError):
        loop.fit(toy()._replace(eval_step=crash), tmp_path, asked())
    assert saved_steps(tmp_path) == [5, 10]
    assert outcome(fit(toy(), tmp_path), tmp_path) == straight


@pytest.mark.commands
@pytest.mark.parametrize(
    ("epochs", "steps", "saved"), [(2, 0, [10, 15]), (1, 2, [5, 12, 14, 15]), (3, 4, [4, 12, 15])]
)
def test_checkpoints_come_when_they_are_due(tmp_path, straight, epochs, steps, saved):
    """The newest three and the best, if it was saved; chunks of 2 steps are not cut for them."""
    task = toy(config=ToyConfig(save_every_epochs=epochs))._replace(save_every_steps=steps)
    found, metrics = outcome(fit(task, tmp_path / "run", [4, 9]), tmp_path / "run")
    best = {"best_step", "best_validation_error_pct"}  # of those saved
    same = {name: value for name, value in straight[0].items() if name not in best}
    assert ({name: found[name] for name in same}, metrics) == (same, straight[1])
    assert outcome(fit(task, tmp_path / "unstopped"), tmp_path / "unstopped")[0] == found
    assert saved_steps(tmp_path / "unstopped") == saved


@pytest.mark.commands
@pytest.mark.parametrize("stop_at", [[], [4, 9], range(1, 20, 2)])
def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path, stop_at):
    """That of the least validation error, the earlier of two, whatever interrupts the run."""
    task = toy(config=ToyConfig(keep=1))
    result = fit(task, tmp_path, stop_at)
    errors = {s["step"]: s["error_pct"] for s in lines(tmp_path) if s["split"] == "validation"}
    best = min(errors, key=lambda s: (errors[s], s))
    assert list(errors.values()).count(errors[best]) > 1 and best < NUM_STEPS
    assert (result["best_step"], result["best_validation_error_pct"]) == (best, errors[best])
    assert saved_steps(tmp_path) == [best, NUM_STEPS] and best_step(tmp_path) == best


@pytest.mark.commands
def test_there_is_no_best_of_test_errors(tmp_path):
    result = fit(toy(config=ToyConfig(track="test", keep=1)), tmp_path)
    assert "best_step" not in result and saved_steps(tmp_path) == [NUM_STEPS]
    assert best_step(tmp_path) is None


@pytest.mark.commands
def test_a_save_that_fails_is_told_and_changes_no_bit(tmp_path, straight, monkeypatch, capfd):
    """The disk is full when the second epoch is saved, and has room again for the third."""

    def described(path, array):
        if path == ".step" and array == 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return digests.describe(path, array)

    monkeypatch.setattr("common.checkpoint.describe", described)
    monkeypatch.setattr(sys, "unraisablehook", lambda *_: None)  # of the writes beside it
    assert outcome(fit(toy(), tmp_path), tmp_path) == straight
    told = [line for line in capfd.readouterr().err.splitlines() if "warning: " in line]
    assert len(told) == 1 and "step 10" in told[0] and "No space left" in told[0]
    assert saved_steps(tmp_path) == [5, 15]


def test_another_tracked_split_and_none_to_validate(tmp_path):
    splits = toy().splits | {"validation": toy().splits["validation"][:0]}
    task = toy(config=ToyConfig(track="test"))._replace(splits=splits)
    result = fit(task, tmp_path / "run")
    assert places(tmp_path / "run", "test") == [5, 10, 15]
    assert "validation_error_pct" not in result and result["tracked"] == "test"
    assert result["test_error_pct"] == lines(tmp_path / "run")[-1]["error_pct"]


def test_before_and_after_each_epoch(tmp_path):
    """The curvature comes before a pass, the plateau after its score; not after the last."""
    calls = []

    def before(state, epoch):
        calls.append(("before", epoch))
        return state

    def after(state, scores, say):
        calls.append(("after", scores["error_pct"]))
        return state

    fit(toy()._replace(before_epoch=before, after_epoch=after), tmp_path / "run", [5])
    errors = [line["error_pct"] for line in lines(tmp_path / "run") if line["split"] != "train"]
    expected = [("before", 0), ("after", errors[0]), ("before", 1), ("after", errors[1])]
    assert calls == [*expected, ("before", 2)]  # the resume at the end of epoch 1 repeats nothing


def test_more_scores_are_part_of_the_result(tmp_path):
    def more_scores(test_scores, score):
        return {"again_error_pct": 100 * score(toy().splits["test"])["errors"] / 7}

    result = fit(toy()._replace(more_scores=more_scores), tmp_path / "run")
    assert result["again_error_pct"] == pytest.approx(result["test_error_pct"])


def test_it_starts_from_given_params(tmp_path):
    given = {"layer": {"kernel": np.ones((4, 3), np.float32)}}
    seen = []
    task = toy()._replace(
        given_params=lambda target: (seen.append(target) or given, None),
        before_epoch=lambda state, epoch: seen.append(jax.device_get(state)) or state,
    )
    with pytest.raises(Interrupted):
        loop.fit(task, tmp_path, asked([1]))
    assert seen[0]["layer"]["kernel"].shape == (4, 3)
    for weights in (seen[1].params, seen[1].average):
        np.testing.assert_array_equal(weights["layer"]["kernel"], given["layer"]["kernel"])


@pytest.mark.commands
def test_the_train_step_is_compiled_once(tmp_path):
    """The state that an epoch's end gives has the types of the first one; so has a restored one."""
    fit(toy(), tmp_path / "warm")
    before = toy().placement.run._cache_size()
    fit(toy(), tmp_path / "run", [2, 5, 8])
    assert toy().placement.run._cache_size() == before


@pytest.mark.commands
def test_a_changed_training_set_is_refused_by_what_differs(tmp_path):
    """By each thing that tells it; older checkpoints, which have none, are accepted."""
    for name, value in (("train_examples", 21), ("train_labels_sha256", "ab"), ("mean", [1])):
        workdir = tmp_path / name
        workdir.mkdir()
        told = toy().training_set | ({name: [0]} if name == "mean" else {})
        with pytest.raises(Interrupted):
            loop.fit(toy()._replace(training_set=told), workdir, asked([1]))
        with pytest.raises(DataError, match=name):
            loop.fit(toy()._replace(training_set=told | {name: value}), workdir, asked())
        assert saved_steps(workdir) == [2]
    old = toy()._replace(training_set={"train_examples": 22})
    (tmp_path / "old").mkdir()
    with pytest.raises(Interrupted):
        loop.fit(old, tmp_path / "old", asked([1]))
    assert fit(toy(), tmp_path / "old")["num_train_examples"] == 22


@pytest.mark.parametrize(
    ("setting", "value"), [("track", "test"), ("reduction", "fixed"), ("num_epochs", 2)]
)
def test_a_checkpoint_of_a_run_with_other_settings_is_refused(setting, value, tmp_path):
    """Copied into the folder, or beside a config.json that was edited."""
    with pytest.raises(Interrupted):
        loop.fit(toy(), tmp_path, asked([1]))
    config = dataclasses.replace(TOY, **{setting: value})
    with pytest.raises(UserError, match=rf"{setting} .*{value}"):
        loop.fit(toy()._replace(network=toy().network._replace(config=config)), tmp_path, asked())
    params = jax.eval_shape(toy().network.init)
    for given, expected in (
        (TOY, contextlib.nullcontext()),
        (config, pytest.raises(UserError, match=setting)),
    ):
        with expected:
            restore_part(tmp_path, given, lambda meta: {"params": params}, None)
    assert saved_steps(tmp_path) == [2]  # nothing was set aside


def test_what_a_task_notes_comes_back_after_a_restore(tmp_path):
    found = []
    task = toy()._replace(
        notes=lambda: {"damaged": ["record 3"]},
        facts={"num_classes": 3},
        restored=lambda state, meta: found.append((int(state.step), meta)),
    )
    fit(task, tmp_path / "run", [3])
    ((at, meta),) = found
    assert at == 5 and meta["damaged"] == ["record 3"] and meta["num_classes"] == 3


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    with pytest.raises(NonFiniteError, match=r"step [45]\b") as caught:
        fit(toy(rate=float("inf")), tmp_path / "run")
    assert caught.value.exit_code == 70 and saved_steps(tmp_path / "run") == []


@pytest.mark.commands
def test_a_loss_that_stays_at_chance_is_told_with_the_hint(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("common.writer.CHANCE_STEPS", 5)
    chance = toy(rate=0.0)._replace(chance_loss=float(np.log(3)), hint="try --seed")
    fit(chance, tmp_path / "run")
    assert capfd.readouterr().err.count("try --seed") == 2  # after 5 steps, and after 10


def test_a_run_of_one_chunk_has_a_speed(tmp_path):
    task = toy(config=ToyConfig(num_epochs=1))._replace(training_set={"train_examples": 2 * BATCH})
    assert fit(task, tmp_path / "run")["images_per_s"] > 0


# ---- a run that ends at an error


class Killed(BaseException):
    """Nothing is saved any more."""


def stopping_toy(**settings) -> loop.Task:
    """Up to five epochs at a rate that is too high: the errors, both in percent, go up and down
    (training 70, 60, 60, 70, 40; validation 50, 50, 25, 12.5, 37.5).
    """
    task = toy(10.0, config=ToyConfig(num_epochs=5, **settings))
    return task._replace(splits=task.splits | {"validation": task.splits["train"][:8]})


STOPS = [
    # --stop_at_train_error_pct, --stop_at_validation_error_pct, the epoch, what stopped it
    (70.0, 0.0, 1, "train"),
    (60.0, 0.0, 2, "train"),
    (59.9, 0.0, 5, "train"),  # the last epoch of all counts
    (39.9, 0.0, None, None),
    (0.0, 49.9, 3, "validation"),
    (0.0, 12.5, 4, "validation"),
    (0.0, 12.4, None, None),
    (40.0, 12.5, 4, "validation"),
    (60.0, 25.0, 2, "train"),
]


@pytest.mark.commands
@pytest.mark.parametrize(("train", "validation", "epoch", "by"), STOPS)
def test_it_ends_after_the_first_epoch_at_the_error(train, validation, epoch, by, tmp_path, capfd):
    settings = dict(stop_at_train_error_pct=train, stop_at_validation_error_pct=validation)
    task = stopping_toy(**settings, save_every_epochs=5, keep=1)
    result = fit(task, tmp_path / "run")
    curves = mean_by_epoch(lines(tmp_path / "run"), "error_pct")
    met = [
        end
        for split, limit in (("train", train), ("validation", validation))
        for end, error_pct in curves[split]
        if error_pct <= limit and limit
    ]
    assert met == ([epoch] * len(met) if epoch else [])  # never before the last epoch
    assert (result["stopped_after_epochs"], result["stopped_by"]) == (
        epoch,
        by and f"stop_at_{by}_error_pct",
    )
    ended = epoch or 5
    assert (result["num_steps"], curves["train"][-1][0]) == (EPOCH * ended, ended)
    assert saved_steps(tmp_path / "run") == [EPOCH * ended]
    # The weights of that epoch are scored, and its state is the one that an undisturbed run had.
    assert result["validation_error_pct"] == curves["validation"][-1][1]
    assert result["state_sha256"] == state_after(ended)
    said = capfd.readouterr().err
    assert all(f"{limit:g}%" in said for limit in (train, validation) if limit)


@functools.cache
def state_after(epochs: int) -> str:
    """The hash of the state that a run without a criterion has after so many of five epochs."""
    hashes = []

    def after_epoch(state, scores, say):
        hashes.append(state_sha256(state))
        return toy().after_epoch(state, scores, say)

    task = stopping_toy()._replace(after_epoch=after_epoch)
    with tempfile.TemporaryDirectory() as folder:
        hashes.append(fit(task, Path(folder))["state_sha256"])
    return hashes[epochs - 1]


def test_without_a_criterion_the_result_says_nothing_of_it(tmp_path):
    assert not any("stop" in name for name in fit(toy(), tmp_path / "run"))


@pytest.mark.parametrize("killed", [False, True], ids=["signal", "kill"])
@pytest.mark.parametrize(
    ("settings", "epoch"),
    [
        pytest.param({"stop_at_train_error_pct": 60.0}, 2, marks=pytest.mark.commands),
        pytest.param({"stop_at_validation_error_pct": 49.9}, 3, marks=pytest.mark.slow),
    ],
    ids=["train", "validation"],
)
def test_a_run_that_ends_at_an_error_may_be_ended_anywhere(tmp_path, settings, epoch, killed):
    """Asked to stop, or killed, at each question, it resumes to the same end: also in the score of
    its last epoch, and in the final scores.
    """
    task = stopping_toy(**settings, save_every_epochs=2, keep=1)
    straight = outcome(fit(task, tmp_path / "straight"), tmp_path / "straight")
    assert straight[0]["num_steps"] == EPOCH * epoch
    saved = set()
    for call in range(1, 100):
        workdir = tmp_path / str(call)
        workdir.mkdir()
        questions = asked([call])

        def stop_requested(questions=questions):
            if (number := questions()) and killed:
                raise Killed
            return number

        try:
            loop.fit(task, workdir, stop_requested)
            break
        except Interrupted:
            saved.add(saved_steps(workdir)[-1])
        except Killed:
            saved.update(saved_steps(workdir))
            with (workdir / "metrics.jsonl").open("a") as file:
                file.write('{"step": 1, "epo')
        assert outcome(fit(task, workdir), workdir) == straight, call
    assert call > 20 and EPOCH * epoch in saved


@pytest.mark.commands
def test_the_training_error_of_an_epoch_needs_no_metrics(tmp_path):
    """Stopped inside epoch 2, whose training error ends the run, or in its score: the checkpoint
    knows the errors so far, also where lines of metrics.jsonl are lost.
    """
    task = stopping_toy(stop_at_train_error_pct=60.0)
    straight, _ = outcome(fit(task, tmp_path / "straight"), tmp_path / "straight")
    for question, saved in ((7, 9), (9, 10)):
        workdir = tmp_path / str(saved)
        workdir.mkdir()
        with pytest.raises(Interrupted):
            loop.fit(task, workdir, asked([question]))
        assert saved_steps(workdir)[-1] == saved
        (workdir / "metrics.jsonl").unlink()
        assert outcome(fit(task, workdir), workdir)[0] == straight


# ---- both networks

# LeNet-5: 12 steps an epoch in chunks of 5, 5 and 2.
DIGITS = lenet.config.Config(
    dataset="mnist10k", train_size=50, validation_size=50, batch_size=4, num_epochs=3
)
PAPER = dataclasses.replace(
    DIGITS,
    scaling="paper",
    activation="scaled_tanh",
    pooling="trainable",
    output="rbf",
    loss="map",
    optimizer="sdlm",
    momentum=0.0,
    schedule="paper",
    learning_rate=1.0,
    reshuffle=False,
)
COPIES = dataclasses.replace(
    PAPER, distortions="affine", distorted_copies=2, batch_size=1, train_size=12
)
ADAMW = dataclasses.replace(
    DIGITS,
    optimizer="adamw",
    momentum=0.0,
    learning_rate=0.003,
    distortions="elastic",
    average_decay=0.9,
)
# AlexNet: 18 images of 40x40 pixels in batches of 4: an epoch has 4 steps and leaves 2 images to
# the next. Lines after steps 3, 4, 6, 8, 9, 12; from the second epoch on the rate drops wherever
# the error is no better.
PHOTOS = alexnet.config.Config(
    dataset="noise10",
    test_split="test[:16]",
    train_size=18,
    validation_size=16,
    crop_size=8,
    net="cifar18",
    dropout=0.0,
    lrn="within_map",
    lrn_size=3,
    batch_size=4,
    num_epochs=3,
    patience=1,
    ten_crop=False,
    log_every_steps=3,
    save_every_steps=2,
)
SMALL = dataclasses.replace(
    PHOTOS,
    net="alexnet",
    widths="small",
    crop_size=16,
    dropout=0.5,
    lrn="across",
    lrn_size=5,
    conv1_padding="symmetric",
    initialization="he",
    scaling="standardized",
)
EVERYTHING = dataclasses.replace(
    SMALL,
    augmentation="resized_crop_flip",
    optimizer="adamw",
    momentum=0.0,
    weight_decay=0.01,
    average_decay=0.9,
    towers=2,
    lrn="within_tower",
    label_smoothing=0.1,
)
FULL_WIDTHS = dataclasses.replace(
    SMALL,
    widths="2012",
    crop_size=40,
    conv1_padding="bottom_right",
    towers=2,
    norm_order="code2012",
    lrn="within_tower",
    lrn_alpha_over_n=True,
    dropout_at="after",
    initialization="code2012",
    hidden_bias=1.0,
    scaling="mean_image",
    decay_biases=False,
    bias_rate_factor=2.0,
    drop_bias_rate=False,
    num_epochs=1,
    save_every_steps=100,
)
COSINE = dataclasses.replace(PHOTOS, schedule="cosine")


@pytest.fixture(scope="module")
def sets(tmp_path_factory, write_set):
    """Where the sets are that AlexNet's configs name."""
    folder, draw = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    write_set(folder, "noise10", draw.integers(0, 256, (50, 40, 40, 3), np.uint8))
    write_set(folder, "noise12", draw.integers(0, 256, (50, 40, 40, 3), np.uint8), num_classes=12)
    write_set(folder, "streamed", draw.integers(0, 256, (50, 80, 80, 3), np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


@pytest.fixture
def short_chunks(monkeypatch):
    monkeypatch.setattr(lenet.data, "steps_per_chunk", lambda batch_size: 5)


def network_of(config):
    return lenet if isinstance(config, lenet.config.Config) else alexnet


def run(config, workdir: Path, stop_at=()) -> tuple[dict, list[dict]]:
    """The outcome of a run to the end; asked to stop, it is started again."""
    workdir.mkdir(exist_ok=True)
    stop_requested = asked(stop_at)
    while True:
        try:
            result = loop.fit(network_of(config).train.make_task(config), workdir, stop_requested)
            return outcome(result, workdir)
        except Interrupted:
            continue


def restored(config, workdir: Path, image_shape=(40, 40, 3)) -> alexnet.train.TrainState:
    """The newest state of an AlexNet run."""
    blank = alexnet.train.Statistics(np.zeros(image_shape, np.float32), np.eye(3))
    network = alexnet.train.assemble(config, 10, blank)
    tx = alexnet.train.build_optimizer(config, 4)
    state = jax.eval_shape(lambda: alexnet.train.initial_state(network, tx, blank, network.init()))
    with contextlib.closing(Checkpointer(workdir, read_only=True)) as checkpointer:
        return checkpointer.restore_newest(state)[1]


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        pytest.param(PAPER, 36, id="sdlm", marks=pytest.mark.slow),
        pytest.param(PHOTOS, 12, id="plateau", marks=pytest.mark.slow),
        pytest.param(COPIES, 36, id="copies", marks=pytest.mark.nightly),
        pytest.param(ADAMW, 36, id="average", marks=pytest.mark.nightly),
        pytest.param(
            dataclasses.replace(DIGITS, parallel="pmap", save_every_epochs=3, track="test"),
            36,
            id="pmap",
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            dataclasses.replace(
                PHOTOS,
                net="cifar13",
                lrn="none",
                optimizer="sgd",
                schedule="epochs",
                drop_epochs="1,2",
            ),
            12,
            id="cifar13",
            marks=pytest.mark.nightly,
        ),
        pytest.param(EVERYTHING, 12, id="everything", marks=pytest.mark.nightly),
        pytest.param(
            dataclasses.replace(SMALL, pad=4, average_decay=0.9, parallel="pmap"),
            12,
            id="alexnet_pmap",
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            dataclasses.replace(PHOTOS, dataset="fake", test_split="", save_every_epochs=2),
            12,
            id="fake",
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            dataclasses.replace(
                COSINE,
                warmup_epochs=1.5,
                track="test",
                validation_size=0,
                dataset="streamed",
                num_workers=1,
            ),
            12,
            id="streamed",
            marks=pytest.mark.nightly,
        ),
        pytest.param(FULL_WIDTHS, 4, id="full_widths", marks=pytest.mark.nightly),
    ],
)
def test_stopped_anywhere_a_network_ends_the_same(config, steps, tmp_path, sets, short_chunks):
    """Inside epochs, at their ends, while the split is scored there, and in the final scores."""
    straight = run(config, tmp_path / "straight")
    stop_at = (2,) if config is FULL_WIDTHS else (1, 3, 5, 6, 8, 10, 12, 13, 14, 17, 19)
    assert run(config, tmp_path / "stopped", stop_at) == straight
    result, found = straight
    assert result["num_steps"] == steps
    at = [(line["step"], line["split"]) for line in found]
    assert len(at) == len(set(at))
    if network_of(config) is alexnet and steps == 12:
        assert places(tmp_path / "stopped", "train") == [3, 4, 6, 8, 9, 12]
    if steps == 36:
        assert places(tmp_path / "stopped", "train") == [5, 10, 12, 17, 22, 24, 29, 34, 36]
    assert places(tmp_path / "stopped", config.track)[-1] == steps
    if config.dataset == "fake":
        assert result["num_test_examples"] == 256 and "confusion_matrix" not in result
    shutil.rmtree(tmp_path)  # of the full widths half a gigabyte


@pytest.mark.slow
def test_the_plateau_and_its_drops_survive_a_resume(tmp_path, sets):
    """At a rate of 0 no error is better than the first: with patience 1 the rate drops after epochs
    2 and 3, then no more. Stopped in each score, whose drop comes after the resume, once.
    """
    config = dataclasses.replace(PHOTOS, learning_rate=0.0, num_drops=2, num_epochs=4)
    straight = run(config, tmp_path / "straight")
    errors = [line["error_pct"] for line in straight[1] if line["split"] == "validation"]
    assert len(errors) == 4 and len(set(errors)) == 1 and errors[0] < 100
    (tmp_path / "stopped").mkdir()
    drops = []
    for question in (5, 6, 6):  # 4 steps, then the first batch of the score; after a resume, both
        with pytest.raises(Interrupted):
            loop.fit(alexnet.train.make_task(config), tmp_path / "stopped", asked([question]))
        drops.append(int(restored(config, tmp_path / "stopped").plateau.drops))
    assert run(config, tmp_path / "stopped") == straight
    plateau = restored(config, tmp_path / "stopped").plateau
    assert [*drops, int(plateau.drops)] == [0, 0, 1, 2]
    assert (float(plateau.best_error_pct), int(plateau.epochs_since_best)) == (errors[0], 0)


@pytest.mark.nightly
def test_a_drop_of_the_rate_is_felt(tmp_path, sets):
    """After the drop of epoch 2 a step is a tenth as long: a run that may drop ends elsewhere than
    one that may not.
    """
    config = dataclasses.replace(
        PHOTOS, train_size=4, momentum=0.0, weight_decay=0.0, learning_rate=1e-7
    )
    ends = {}
    for drops in (0, 1):
        for epochs in (2, 3):
            workdir = tmp_path / f"{drops}{epochs}"
            run(dataclasses.replace(config, num_drops=drops, num_epochs=epochs), workdir)
            ends[drops, epochs] = restored(config, workdir)
        assert int(ends[drops, 3].plateau.drops) == drops
    jax.tree.map(np.testing.assert_array_equal, ends[0, 2].params, ends[1, 2].params)
    kept, dropped = (
        ends[drops, 3].params["fc10"]["bias"] - ends[drops, 2].params["fc10"]["bias"]
        for drops in (0, 1)
    )
    np.testing.assert_allclose(dropped, 0.1 * kept, rtol=1e-3)


@pytest.mark.slow
def test_a_networks_train_step_is_compiled_once(tmp_path, sets, monkeypatch):
    """Also over the drops of a plateau, checkpoints and a resume: once before it and once after."""
    traces, make_train_step = [], alexnet.train.make_train_step

    def counting(*arguments):
        step = make_train_step(*arguments)

        def train_step(state, batch, add_up):
            traces.append(
                jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), state)
            )
            return step(state, batch, add_up)

        return train_step

    monkeypatch.setattr(alexnet.train, "make_train_step", counting)
    run(PHOTOS, tmp_path / "run", [6])
    assert len(traces) == 2 and traces[0] == traces[1]


@pytest.mark.slow
@pytest.mark.parametrize(("every", "steps"), [(1, (0, 12, 24)), (2, (0, 24))])
def test_chunks_and_curvature_come_when_they_should(
    every, steps, tmp_path, short_chunks, monkeypatch
):
    """The curvature before each pass, or every second; not after the resume at 10."""
    estimates, make_curvature_step = [], lenet.train.make_curvature_step

    def recording(*arguments):
        step = make_curvature_step(*arguments)

        def curvature_step(state, images, labels):
            estimates.append((int(state.step), len(images)))
            return step(state, images, labels)

        return curvature_step

    monkeypatch.setattr(lenet.train, "make_curvature_step", recording)
    config = dataclasses.replace(PAPER, curvature_examples=20, curvature_every_epochs=every)
    run(config, tmp_path / "run", [2])
    assert estimates == [(step, 20) for step in steps]


# ---- what tells one training set from another


@pytest.mark.commands
def test_a_changed_set_of_digits_or_photos_is_told(tmp_path, write_set, monkeypatch):
    """In memory by the number of examples and the labels, streamed by the shards; AlexNet's also by
    the mean image. Nothing is compiled.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def task(network, images, **changes):
        shutil.rmtree(tmp_path / "changing", ignore_errors=True)
        write_set(tmp_path, "changing", images)
        settings = dict(dataset="changing", data_dir=str(tmp_path), validation_size=4, batch_size=4)
        return network.train.make_task(network.config.Config(**settings | changes))

    def differ(one, other):
        assert one.training_set.keys() == other.training_set.keys()
        return {
            name for name, value in one.training_set.items() if value != other.training_set[name]
        }

    gray = np.zeros((24, 28, 28, 1), np.uint8)
    digits = task(lenet, gray)
    assert differ(digits, task(lenet, gray + 1)) == {"train_images_sha256"}
    assert "train_examples" in differ(digits, task(lenet, gray[:23]))
    images = digits.splits["train"]
    assert images.fingerprint() == digits.training_set
    relabeled = dataclasses.replace(images, labels=images.labels[::-1].copy())
    changed = relabeled.fingerprint().items() - digits.training_set.items()
    assert dict(changed).keys() == {"train_labels_sha256"}

    photo = dict(net="cifar18", crop_size=16, dropout=0.0)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 80, 80, 3), np.uint8)
    photos = task(alexnet, pixels, **photo)
    assert "train_shards" in photos.training_set
    records = photos.splits["train"]
    found = []
    for made_from in ("one", "other"):  # the same names and sizes of shards
        (records.folder / "source.json").write_text(made_from)
        found.append(records.fingerprint())
    assert [name for name in found[0] if found[0][name] != found[1][name]] == [
        "train_source_sha256"
    ]
    changed = task(alexnet, pixels[:39], **photo)
    assert "train_examples" in differ(photos, changed)
    state = jax.eval_shape(lambda: photos.initial_state(photos.network.init()))
    statistics = alexnet.train.statistics(photos.splits["train"], 0)
    state = state._replace(statistics=jax.tree.map(np.float32, statistics))
    photos.restored(state, {})
    with pytest.raises(DataError, match="mean image"):
        task(alexnet, pixels[::-1], **photo).restored(state, {})


# ---- what a setting does

# For each setting that changes the result: the config in which it is read, and another value for
# it.
CHANGES = {
    "lenet": {
        "classes": (dataclasses.replace(DIGITS, classes="0,1,2,3"), "3,2,1,0"),
        "train_size": (DIGITS, 40),
        "train_per_class": (dataclasses.replace(DIGITS, train_size=100), 3),
        "validation_size": (DIGITS, 90),
        "track": (DIGITS, "test"),
        "scaling": (DIGITS, "paper"),
        "distortions": (ADAMW, "affine"),
        "distortion_strength": (ADAMW, 0.5),
        "distorted_copies": (ADAMW, 2),
        "shuffle": (PAPER, False),
        "reshuffle": (DIGITS, False),
        "c3": (DIGITS, "random"),
        "activation": (DIGITS, "relu"),
        "pooling": (DIGITS, "max"),
        "subsampling": (PAPER, "sum"),
        "output": (DIGITS, "rbf"),
        "codes": (PAPER, "distance25"),
        "initialization": (DIGITS, "fan_in"),
        "freeze": (DIGITS, "c1"),
        "loss": (DIGITS, "mse"),
        "map_constant": (PAPER, 60.0),
        "label_smoothing": (DIGITS, 0.1),
        "optimizer": (dataclasses.replace(DIGITS, momentum=0.0), "adamw"),
        "learning_rate": (DIGITS, 0.05),
        "head_rate": (DIGITS, 0.5),
        "schedule": (DIGITS, "constant"),
        "warmup_epochs": (DIGITS, 1.5),
        "momentum": (DIGITS, 0.5),
        "weight_decay": (DIGITS, 0.01),
        "average_decay": (DIGITS, 0.9),
        "curvature_examples": (PAPER, 10),
        "curvature_every_epochs": (PAPER, 2),
        "curvature_loss": (dataclasses.replace(PAPER, map_constant=200.0), "same"),
        "compute_dtype": (DIGITS, "bfloat16"),
        "reduction": (dataclasses.replace(DIGITS, batch_size=16), "fixed"),
        "batch_size": (DIGITS, 5),
        "num_epochs": (DIGITS, 2),
        "stop_at_train_error_pct": (DIGITS, 100.0),
        "stop_at_validation_error_pct": (DIGITS, 100.0),
        "seed": (DIGITS, 1),
    },
    "alexnet": {
        "dataset": (PHOTOS, "noise12"),
        "train_split": (PHOTOS, "train[5:]"),
        "test_split": (PHOTOS, "test[16:32]"),
        "classes": (
            dataclasses.replace(PHOTOS, classes="0,1,2,3", train_size=0, validation_size=6),
            "3,2,1,0",
        ),
        "train_size": (PHOTOS, 17),
        "train_per_class": (PHOTOS, 1),
        "validation_size": (PHOTOS, 20),
        "track": (COSINE, "test"),
        "num_classes": (PHOTOS, 11),
        "scaling": (SMALL, "mean_image"),
        "crop_size": (PHOTOS, 10),
        "pad": (PHOTOS, 2),
        "augmentation": (PHOTOS, "none"),
        "color_pca": (PHOTOS, False),
        "mirror": (PHOTOS, "never"),
        "net": (dataclasses.replace(PHOTOS, lrn="none"), "cifar13"),
        "widths": (dataclasses.replace(SMALL, crop_size=40, num_epochs=1), "one_weird_trick"),
        "conv1_padding": (SMALL, "bottom_right"),
        "conv4": (SMALL, False),
        "towers": (SMALL, 2),
        "lrn": (PHOTOS, "none"),
        "lrn_size": (PHOTOS, 5),
        "lrn_alpha": (PHOTOS, 1e-3),
        "lrn_alpha_over_n": (PHOTOS, True),
        "lrn_k": (PHOTOS, 1.0),
        "norm_order": (SMALL, "norm_pool"),
        "activation": (PHOTOS, "tanh"),
        "pooling": (PHOTOS, "non_overlapping"),
        "dropout": (SMALL, 0.4),
        "dropout_at": (SMALL, "after"),
        "dropout_scaling": (SMALL, "training"),
        "initialization": (SMALL, "caffe"),
        "freeze": (PHOTOS, "conv"),
        "hidden_bias": (SMALL, 1.0),
        "label_smoothing": (PHOTOS, 0.1),
        "optimizer": (COSINE, "sgd"),
        "learning_rate": (PHOTOS, 0.02),
        "head_rate": (PHOTOS, 0.5),
        "schedule": (PHOTOS, "constant"),
        "patience": (PHOTOS, 2),
        "num_drops": (PHOTOS, 0),
        "drop_epochs": (dataclasses.replace(PHOTOS, schedule="epochs", drop_epochs="1"), "2"),
        "warmup_epochs": (COSINE, 1.5),
        "momentum": (PHOTOS, 0.5),
        "weight_decay": (PHOTOS, 0.01),
        "decay_biases": (PHOTOS, False),
        "bias_rate_factor": (PHOTOS, 2.0),
        "drop_bias_rate": (PHOTOS, False),
        "average_decay": (PHOTOS, 0.9),
        "compute_dtype": (PHOTOS, "bfloat16"),
        "reduction": (dataclasses.replace(PHOTOS, batch_size=16), "fixed"),
        "batch_size": (PHOTOS, 5),
        "num_epochs": (PHOTOS, 2),
        "stop_at_train_error_pct": (PHOTOS, 100.0),
        "stop_at_validation_error_pct": (PHOTOS, 100.0),
        "seed": (PHOTOS, 1),
    },
}
# For each setting that does not: another value for it.
NO_CHANGES = {
    "lenet": {"data_dir": "sets", "parallel": "pmap", "save_every_epochs": 2, "keep": 1},
    "alexnet": {
        "data_dir": "sets",
        "ten_crop": True,
        "parallel": "pmap",  # up to rounding
        "mesh": "data:1",
        "num_workers": 0,
        "max_bad_records": 3,
        "allow_overlap": True,
        "log_every_steps": 5,
        "save_every_epochs": 2,
        "save_every_steps": 1,
        "keep": 1,
    },
}


@pytest.mark.parametrize("network", [lenet, alexnet], ids=["lenet", "alexnet"])
def test_every_setting_is_in_the_lists(network):
    names = {True: set(), False: set()}
    for field in dataclasses.fields(network.config.Config):
        names[field.metadata["changes_result"]].add(field.name)
    changes = CHANGES[network.__name__].keys() | {"dataset", "init_from"}  # tests/test_start.py
    assert names == {True: changes, False: NO_CHANGES[network.__name__].keys()}


@pytest.mark.nightly
@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
@pytest.mark.parametrize("network", [lenet, alexnet], ids=["lenet", "alexnet"])
def test_every_setting_changes_the_result(network, backend, tmp_path, sets):
    """No setting is read by nobody, none is lost on its way. Saved at the end only, which takes
    longer than the training; in the forms for a GPU, which compile in half the time.
    """
    before = {}
    for number, (name, (config, value)) in enumerate(CHANGES[network.__name__].items()):
        seldom = {"save_every_steps": 100} if network is alexnet else {}
        config = dataclasses.replace(config, save_every_epochs=3, **seldom)
        if config not in before:
            before[config] = run(config, tmp_path / f"before{number}")
        changed = run(dataclasses.replace(config, **{name: value}), tmp_path / name)
        assert changed != before[config], name
        shutil.rmtree(tmp_path / name / "checkpoints")


@pytest.mark.nightly
def test_the_other_settings_do_not(tmp_path, sets):
    """On images that are read as they are needed, by two threads or none."""
    config = dataclasses.replace(PHOTOS, dataset="streamed", num_epochs=2, train_size=16)
    reference, found = run(config, tmp_path / "reference")
    for name, value in NO_CHANGES["alexnet"].items():
        value = str(sets) if name == "data_dir" else value
        result, other = run(dataclasses.replace(config, **{name: value}), tmp_path / name)
        if name != "parallel":
            assert result["state_sha256"] == reference["state_sha256"], name
        assert result["confusion_matrix"] == reference["confusion_matrix"], name
        ends = [[x for x in each if x["split"] == "validation"] for each in (found, other)]
        assert [line["step"] for line in ends[0]] == [line["step"] for line in ends[1]] == [4, 8]
        np.testing.assert_allclose(*([line["loss"] for line in end] for end in ends), rtol=1e-5)
    ours, theirs = (
        restored(config, tmp_path / name, (80, 80, 3)).params for name in ("reference", "parallel")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ours, theirs)


# ---- classes and channels


@pytest.mark.nightly
def test_rgb_images_of_32_pixels_and_47_classes(tmp_path, write_set):
    images = np.random.default_rng(0).integers(0, 256, (94, 32, 32, 3), np.uint8)
    write_set(tmp_path, "rgb47", images, num_classes=47)
    config = dataclasses.replace(
        DIGITS, dataset="rgb47", data_dir=str(tmp_path), train_size=0, validation_size=10
    )
    result, _ = run(config, tmp_path / "run")
    assert np.array(result["confusion_matrix"]).shape == (47, 47)
    assert result["num_test_examples"] == 94 and result["num_train_examples"] == 84


@pytest.mark.nightly
@pytest.mark.parametrize("num_classes", [0, 20])
def test_as_many_outputs_as_classes_or_more(num_classes, tmp_path, sets):
    config = dataclasses.replace(
        PHOTOS, dataset="noise12", num_classes=num_classes, num_epochs=1, test_split="test"
    )
    result, _ = run(config, tmp_path / "run")
    outputs = num_classes or 12
    confusion = np.array(result["confusion_matrix"])
    assert confusion.shape == (outputs, outputs)
    per_class = [5, 5] + [4] * 10 + [0] * (outputs - 12)  # of 50 images; rows are the true classes
    assert confusion.sum(1).tolist() == per_class
    error = 100 * (1 - np.trace(confusion) / 50)
    assert result["top1_error_pct"] == pytest.approx(error, abs=1e-12)


def test_fewer_outputs_than_classes_are_refused(sets):
    with pytest.raises(UserError, match="--num_classes=11"):
        alexnet.train.make_task(dataclasses.replace(PHOTOS, dataset="noise12", num_classes=11))
