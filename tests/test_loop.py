"""The loop of both networks: stopped anywhere, a run ends the same.

First with a network of one layer, which compiles at once; then with LeNet-5 and AlexNet.
"""

import contextlib
import dataclasses
import functools
import json
import shutil
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
from alexnet.optimizer import Plateau
from common import checkpoint, loop, parallel, step
from common.checkpoint import Checkpointer
from common.errors import DataError, Interrupted, NonFiniteError, UserError
from common.examples import Examples
from common.losses import cross_entropy
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


class ToyConfig(NamedTuple):
    dataset: str = "toy"
    track: str = "validation"
    save_every_epochs: int = 1


class ToyState(NamedTuple):
    step: Any
    params: Any
    average: Any
    begun: Any  # epochs, counted by `before_epoch`
    scored: Any  # the sum of the losses that `after_epoch` was given



@functools.cache
def toy(rate: float = 0.3, chunk_steps: int = 2) -> loop.Task:
    """Three epochs of 5 steps, in chunks of 2, 2 and 1; the state tells what was called when."""
    draw = np.random.default_rng(0)
    examples = Examples(
        draw.integers(0, 256, (35, 2, 2, 1), np.uint8), draw.integers(0, 3, 35, np.int32), 3, "toy"
    )
    training, validation, test = examples[:22], examples[22:28], examples[28:]

    def logits(params, images):
        return images.reshape(len(images), -1) / 255.0 @ params["layer"]["kernel"]

    def one_step(add_up, state, batch):
        def sums_of(part):
            return step.gradient_sums(
                lambda params: logits(params, part["image"]),
                cross_entropy,
                state.params,
                part["label"],
            )

        grads, sums = add_up(sums_of, batch)
        scale = rate / (1 + state.begun) + 0.01 * rate * state.scored  # what was not called is felt
        grads = step.mean(grads, sums["count"])
        params = jax.tree.map(lambda w, g: w - scale * g, state.params, grads)
        average = step.average(state, params, 0.9)
        return state._replace(step=state.step + 1, params=params, average=average), sums

    def train_steps(state, chunk, add_up):
        state, sums = jax.lax.scan(functools.partial(one_step, add_up), state, chunk)
        return state, jax.tree.map(jnp.sum, sums)

    def eval_step(params, batch):
        outputs, label, mask = logits(params, batch["image"]), batch["label"], batch["mask"]
        return {
            "loss": jnp.sum(cross_entropy(outputs, label) * mask),
            "errors": jnp.sum((outputs.argmax(-1) != label) & mask),
            "count": jnp.sum(mask),
        }

    def chunks(first_step):
        while True:
            count = min(chunk_steps, EPOCH - first_step % EPOCH)
            uses = np.arange(BATCH * first_step, BATCH * (first_step + count)).reshape(count, BATCH)
            images, labels = training.read(order_of_uses(len(training), uses, 0))
            yield count, {"image": images, "label": labels}
            first_step += count

    def initial_state(params):
        params = {"layer": {"kernel": jnp.zeros((4, 3))}} if params is None else params
        return ToyState(jnp.int32(0), params, params, jnp.int32(0), jnp.float32(0))

    placement = parallel.place(train_steps, mode="jit", batch_size=BATCH, batch_axis=1)
    return loop.Task(
        config=ToyConfig(),
        num_steps=NUM_STEPS,
        epoch_steps=EPOCH,
        log_every_steps=3,
        save_every_steps=0,
        placement=placement,
        initial_state=initial_state,
        given_params=lambda target: None,
        chunks=chunks,
        train=lambda state, chunk, count: placement.run(state, placement.place_training(chunk)),
        eval_step=placement.over_devices(eval_step),
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


@pytest.mark.parametrize(
    "stop_at", [range(1, 20, 2), (1, 2, 4, 5, 6, 7), (3, 4, 5, 20, 21)], ids=str
)
def test_stopped_again_and_again_it_ends_the_same(tmp_path, straight, stop_at):
    assert outcome(fit(toy(), tmp_path / "run", stop_at), tmp_path / "run") == straight


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


@pytest.mark.parametrize(
    ("epochs", "steps", "saved"), [(2, 0, [10, 15]), (1, 2, [12, 14, 15]), (3, 4, [4, 12, 15])]
)
def test_checkpoints_come_when_they_are_due(tmp_path, straight, epochs, steps, saved):
    """The newest three; chunks of 2 steps are not cut for them."""
    task = toy()._replace(config=ToyConfig(save_every_epochs=epochs), save_every_steps=steps)
    assert outcome(fit(task, tmp_path / "run", [4, 9]), tmp_path / "run") == straight
    fit(task, tmp_path / "unstopped")
    assert saved_steps(tmp_path / "unstopped") == saved


def test_another_tracked_split_and_none_to_validate(tmp_path):
    splits = toy().splits | {"validation": toy().splits["validation"][:0]}
    task = toy()._replace(config=ToyConfig(track="test"), splits=splits)
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
        given_params=lambda target: seen.append(target) or given,
        before_epoch=lambda state, epoch: seen.append(jax.device_get(state)) or state,
    )
    with pytest.raises(Interrupted):
        loop.fit(task, tmp_path, asked([1]))
    assert seen[0]["layer"]["kernel"].shape == (4, 3)
    for weights in (seen[1].params, seen[1].average):
        np.testing.assert_array_equal(weights["layer"]["kernel"], given["layer"]["kernel"])


def test_the_train_step_is_compiled_once(tmp_path):
    """The state that an epoch's end gives has the types of the first one; so has a restored one."""
    fit(toy(), tmp_path / "warm")
    before = toy().placement.run._cache_size()
    fit(toy(), tmp_path / "run", [2, 5, 8])
    assert toy().placement.run._cache_size() == before


def test_a_changed_training_set_is_refused_by_what_differs(tmp_path):
    """By each thing that tells it; a checkpoint of an older version, which has none, is accepted."""
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


def test_a_loss_that_stays_at_chance_is_told_with_the_hint(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("common.writer.CHANCE_STEPS", 5)
    chance = toy(rate=0.0)._replace(chance_loss=float(np.log(3)), hint="try --seed")
    fit(chance, tmp_path / "run")
    assert capfd.readouterr().err.count("try --seed") == 2  # after 5 steps, and after 10
    fit(toy()._replace(chance_loss=float(np.log(3)), hint="try --seed"), tmp_path / "learning")
    assert "try --seed" not in capfd.readouterr().err


def test_a_run_of_one_chunk_has_a_speed(tmp_path):
    task = toy()._replace(num_steps=2, epoch_steps=2)
    assert fit(task, tmp_path / "run")["images_per_s"] > 0
