"""AlexNet's training loop in this process, a few tiny steps: stopped anywhere it goes on bit for
bit, and it counts right.
"""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alexnet import train
from alexnet.config import Config
from alexnet.data import VIEWS, Noise, open_split
from alexnet.optimizer import Plateau
from common import checkpoint, data, metrics
from common.errors import DataError, Interrupted, UserError

pytestmark = pytest.mark.usefixtures("compiled_quickly", "compiled_once", "without_curves")

# 18 images of 40x40 pixels in batches of 4: an epoch has 4 steps and leaves 2 images to the next.
# Lines after steps 3, 4, 6, 8, 9, 12; checkpoints after every second step; from the second epoch on
# the rate drops wherever the error is no better.
TINY = Config(
    dataset="noise10", test_split="test[:16]", train_size=18, validation_size=16, crop_size=8, net="cifar18", dropout=0.0,
    lrn="within_map", lrn_size=3, batch_size=4, num_epochs=3, patience=1, ten_crop=False, log_every_steps=3, save_every_steps=2,
)  # fmt: skip
SMALL = dataclasses.replace(
    TINY, net="alexnet", widths="small", crop_size=16, dropout=0.5, lrn="across", lrn_size=5, conv1_padding="symmetric",
    initialization="he", scaling="standardized",
)  # fmt: skip
EVERYTHING = dataclasses.replace(
    SMALL, augmentation="resized_crop_flip", optimizer="adamw", momentum=0.0, weight_decay=0.01, average_decay=0.9, towers=2,
    lrn="within_tower", label_smoothing=0.1,
)  # fmt: skip
COSINE = dataclasses.replace(TINY, schedule="cosine")


@pytest.fixture(scope="module", autouse=True)
def sets(tmp_path_factory, write_set):
    """Where the sets are that the configs above name."""
    folder, random = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    write_set(folder, "noise10", random.integers(0, 256, (50, 40, 40, 3), np.uint8))
    write_set(folder, "noise12", random.integers(0, 256, (50, 40, 40, 3), np.uint8), num_classes=12)
    write_set(folder, "streamed", random.integers(0, 256, (50, 80, 80, 3), np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


def run(config, workdir, stop_at=()):
    """Trains to the end; asked to stop at the given calls of `stop_requested`, it is started again.
    Returns the result.
    """
    calls = 0

    def stop_requested():
        nonlocal calls
        calls += 1
        return 15 if calls in stop_at else None

    workdir.mkdir(exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(config)))  # for load_run
    while True:
        try:
            return train.train_and_evaluate(config, workdir, stop_requested)
        except Interrupted:
            continue


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def outcome(config, workdir):
    """What a run gives, without times."""
    result = run(config, workdir)
    return {
        name: value for name, value in result.items() if name not in ("images_per_s", "wall_time_s")
    }, lines(workdir)


def restored(config, workdir, num_classes=10, image_shape=(40, 40, 3)) -> train.TrainState:
    """The newest checkpoint of a run."""
    blank = train.Statistics(jnp.zeros(image_shape), jnp.zeros((3, 3)))
    tx = train.build_optimizer(config, epoch_steps=1)
    target = jax.eval_shape(lambda: train.initial_state(config, tx, num_classes, blank))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), target
    )
    checkpointer = checkpoint.Checkpointer(workdir, read_only=True)
    _, state, _ = checkpointer.restore_newest(target)
    checkpointer.close()
    return state


# Stopping and going on


def same_end(straight, stopped, folder):
    """The state, the scores and the lines of the runs straight and stopped are the same."""
    times = ("images_per_s", "wall_time_s")
    assert {name: stopped[name] for name in stopped if name not in times} == {
        name: straight[name] for name in straight if name not in times
    }
    assert lines(folder / "stopped") == lines(folder / "straight")
    places = [(line["step"], line["split"]) for line in lines(folder / "stopped")]
    assert len(places) == len(set(places))
    assert [step for step, split in places if split == "train"] == [3, 4, 6, 8, 9, 12]
    assert [step for step, split in places if split != "train"] == [4, 8, 12]


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        TINY,
        dataclasses.replace(
            TINY, net="cifar13", lrn="none", optimizer="sgd", schedule="epochs", drop_epochs="1,2"
        ),
        EVERYTHING,
        dataclasses.replace(SMALL, pad=4, average_decay=0.9, parallel="pmap"),
        dataclasses.replace(
            TINY,
            dataset="fake",
            test_split="",
            num_epochs=3,
            save_every_epochs=2,
            save_every_steps=100,
        ),
        dataclasses.replace(
            COSINE,
            warmup_epochs=1.5,
            track="test",
            validation_size=0,
            dataset="streamed",
            num_workers=1,
        ),
    ],
    ids=["cifar18", "cifar13", "everything", "pmap", "fake", "streamed"],
)
def test_stopped_anywhere_it_ends_the_same(config, tmp_path):
    """Asked after each step and before each batch of an evaluation: stopped at every second
    question, thus after steps 1, 3, 5, 7, 9 and 11, while the split is scored at the end of each
    epoch, and in the final scores.
    """
    straight = run(config, tmp_path / "straight")
    stopped = run(config, tmp_path / "stopped", stop_at=range(1, 20, 2))
    same_end(straight, stopped, tmp_path)


@pytest.mark.slow
def test_stopped_between_two_lines_it_ends_the_same(tmp_path):
    """After steps 5 and 7, whose sums stand in no line yet; and at the end of the first epoch,
    before its score.
    """
    same_end(
        run(TINY, tmp_path / "straight"),
        run(TINY, tmp_path / "stopped", stop_at=(4, 6, 8)),
        tmp_path,
    )


@pytest.mark.slow
def test_the_full_widths_stopped_in_an_epoch_end_the_same(tmp_path):
    config = dataclasses.replace(
        SMALL, widths="2012", crop_size=40, conv1_padding="bottom_right", towers=2, norm_order="code2012", lrn="within_tower",
        lrn_alpha_over_n=True, dropout_at="after", initialization="code2012", hidden_bias=1.0, scaling="mean_image",
        decay_biases=False, bias_rate_factor=2.0, drop_bias_rate=False, num_epochs=1, save_every_steps=100,
    )  # fmt: skip
    straight, stopped = (
        run(config, tmp_path / "straight"),
        run(config, tmp_path / "stopped", stop_at=(2,)),
    )
    shutil.rmtree(tmp_path / "straight" / "checkpoints")  # half a gigabyte
    shutil.rmtree(tmp_path / "stopped" / "checkpoints")
    assert stopped["state_sha256"] == straight["state_sha256"] and lines(
        tmp_path / "stopped"
    ) == lines(tmp_path / "straight")


def test_the_plateau_and_its_drops_survive_a_resume(tmp_path):
    """At a rate of 0 no error is better than the first: with patience 1 the rate drops after epochs
    2 and 3, then no more.
    """
    config = dataclasses.replace(TINY, learning_rate=0.0, num_drops=2, num_epochs=4)
    straight = run(config, tmp_path / "straight")
    errors = [
        line["error_pct"] for line in lines(tmp_path / "straight") if line["split"] == "validation"
    ]
    assert len(errors) == 4 and len(set(errors)) == 1 and errors[0] < 100

    (tmp_path / "stopped").mkdir()
    drops = []
    for questions in (
        4,
        5,
        5,
    ):  # the end of an epoch, before its score: asked after 4 steps, and for the score of the last one
        asked = iter([None] * (questions - 1) + [15])
        with pytest.raises(Interrupted):
            train.train_and_evaluate(config, tmp_path / "stopped", lambda asked=asked: next(asked))
        drops.append(int(restored(config, tmp_path / "stopped").plateau.drops))
    stopped = train.train_and_evaluate(config, tmp_path / "stopped", lambda: None)
    plateau = restored(config, tmp_path / "stopped").plateau
    assert [*drops, int(plateau.drops)] == [0, 0, 1, 2]
    assert (float(plateau.best_error_pct), int(plateau.epochs_since_best)) == (errors[0], 0)
    jax.tree.map(
        np.testing.assert_array_equal, plateau, restored(config, tmp_path / "straight").plateau
    )
    assert stopped["state_sha256"] == straight["state_sha256"]


@pytest.mark.slow
def test_a_drop_of_the_rate_is_felt(tmp_path):
    """After the drop of epoch 2 a step is a tenth as long: a run that may drop ends elsewhere than
    one that may not.
    """
    config = dataclasses.replace(
        TINY, train_size=4, num_epochs=3, momentum=0.0, weight_decay=0.0, learning_rate=1e-7
    )
    ends = {}
    for drops in (0, 1):
        config = dataclasses.replace(config, num_drops=drops)
        states = []
        for epochs in (2, 3):
            run(dataclasses.replace(config, num_epochs=epochs), tmp_path / f"{drops}{epochs}")
            states.append(restored(config, tmp_path / f"{drops}{epochs}"))
        assert int(states[1].plateau.drops) == drops
        ends[drops] = states
    for kept, dropped in zip(ends[0][0].params.values(), ends[1][0].params.values(), strict=True):
        jax.tree.map(
            np.testing.assert_array_equal, kept, dropped
        )  # the first drop comes at the end of epoch 2
    bias = [
        ends[drops][1].params["fc10"]["bias"] - ends[drops][0].params["fc10"]["bias"]
        for drops in (0, 1)
    ]
    np.testing.assert_allclose(bias[1], 0.1 * bias[0], rtol=1e-3)


def test_a_train_step_is_compiled_once(tmp_path, monkeypatch):
    """The state that an epoch's end or a checkpoint gives has the types of the one that a run
    starts with.
    """
    traces, make_train_step = [], train.make_train_step

    def counting(*arguments):
        step = make_train_step(*arguments)

        def train_step(state, batch, add_up):
            traces.append(
                jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), state)
            )
            return step(state, batch, add_up)

        return train_step

    monkeypatch.setattr(train, "make_train_step", counting)
    run(TINY, tmp_path / "run", stop_at=(6,))
    assert len(traces) == 2 and traces[0] == traces[1]  # once before the stop, once after


def test_a_training_set_that_changed_is_refused(tmp_path, write_set):
    random = np.random.default_rng(1)
    config = dataclasses.replace(TINY, data_dir=str(tmp_path / "data"), dataset="changing")
    write_set(tmp_path / "data", "changing", random.integers(0, 256, (50, 40, 40, 3), np.uint8))
    (tmp_path / "run").mkdir()
    with pytest.raises(Interrupted):
        train.train_and_evaluate(config, tmp_path / "run", lambda: 15)
    shutil.rmtree(tmp_path / "data" / "changing")
    write_set(tmp_path / "data", "changing", random.integers(0, 256, (50, 40, 40, 3), np.uint8))
    with pytest.raises(
        DataError, match=r"changing is not the set that .* was started with: its mean image differs"
    ):
        train.train_and_evaluate(config, tmp_path / "run", lambda: None)
    assert checkpoint.saved_steps(tmp_path / "run") == [1]


# One step


@pytest.mark.parametrize("drops_before", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_two_steps_against_the_papers_rule_written_out(drops_before):
    """Crops, colours, dropout, the gradient of the mean, the velocity that holds the rate, and the
    average of the weights.

    Each image for itself: what happens to it depends on the seed and its own draw alone.
    """
    config = dataclasses.replace(
        SMALL,
        optimizer="paper",
        bias_rate_factor=2.0,
        decay_biases=False,
        average_decay=0.6,
        seed=3,
    )
    random = np.random.default_rng(0)
    statistics = train.Statistics(
        np.float32(random.uniform(100, 150, (20, 20, 3))), np.diag([4000.0, 3000.0, 2000.0])
    )
    images = random.integers(0, 256, (2, 4, 20, 20, 3), np.uint8)
    labels, draws = (
        random.integers(0, 10, (2, 4)).astype(np.int32),
        np.arange(1, 9, dtype=np.uint32).reshape(2, 4),
    )
    model = train.build_model(config, 10)
    graphdef, params = nnx.graphdef(model), nnx.to_pure_dict(nnx.state(model, nnx.Param))
    tx, loss, prepare = (
        train.build_optimizer(config, 4),
        train.build_loss(config),
        train.build_prepare(config, statistics),
    )
    step = train.make_train_step(graphdef, tx, loss, prepare, config.average_decay, config.seed)
    state = train.initial_state(config, tx, 10, statistics)
    drops = jnp.int32(drops_before)
    state = state._replace(plateau=Plateau(jnp.float32(90.0), jnp.int32(0), drops))
    compiled = jax.jit(
        lambda state, batch: step(state, batch, lambda sums_of, batch: sums_of(batch))
    )

    @jax.jit
    def of_one_image(params, image, label, draw):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 2**31 + 1), draw)

        def loss_of(params):
            logits = nnx.merge(graphdef, params)(prepare(image[None], draw[None]), key[None])[0]
            return jax.nn.logsumexp(logits) - logits[label], logits

        return jax.value_and_grad(loss_of, has_aux=True)(params)

    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    average, velocity = weights, jax.tree.map(np.zeros_like, weights)
    for k in range(2):
        state, sums = compiled(state, {"image": images[k], "label": labels[k], "draw": draws[k]})
        here = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), weights)
        parts = [
            of_one_image(here, *of_image)
            for of_image in zip(images[k], labels[k], draws[k], strict=True)
        ]
        grads = jax.tree.map(
            lambda *leaves: np.mean(np.array(leaves, np.float64), axis=0),
            *(grads for _, grads in parts),
        )
        rate = 0.01 / 10**drops_before
        for layer, leaves in weights.items():
            v = velocity[layer]
            v["kernel"] = (
                0.9 * v["kernel"] - 0.0005 * rate * leaves["kernel"] - rate * grads[layer]["kernel"]
            )
            v["bias"] = 0.9 * v["bias"] - 2 * rate * grads[layer]["bias"]
        weights = jax.tree.map(np.add, weights, velocity)
        decay = min(0.6, (1 + k) / (10 + k))
        average = jax.tree.map(lambda a, w, d=decay: d * a + (1 - d) * w, average, weights)
        assert sums["count"] == 4
        np.testing.assert_allclose(sums["loss"], sum(loss for (loss, _), _ in parts), rtol=1e-5)
        assert sums["errors"] == sum(
            int(np.argmax(logits) != label)
            for ((_, logits), _), label in zip(parts, labels[k], strict=True)
        )
    assert state.step == 2 and state.plateau.drops == drops_before

    def same_change(a, b, s):
        """From s on. Weights are float32: either side is rounded, however small the change."""
        rounding = 2 * np.spacing(np.abs(np.asarray(s, np.float32)).max())
        np.testing.assert_allclose(
            a - s, b - s, rtol=1e-3, atol=1e-3 * np.abs(b - s).max() + rounding
        )

    for ours, expected, start in (
        (state.params, weights, params),
        (train.evaluated_params(state), average, params),
    ):
        jax.tree.map(same_change, ours, expected, start)
    assert (
        max(jax.tree.leaves(jax.tree.map(lambda a, w: np.abs(a - w).max(), average, weights)))
        > 1e-6
    )


@pytest.mark.slow
def test_dropout_and_augmentation_are_a_function_of_seed_and_use():
    """The same images again, as their next use or under another seed: other crops, other units
    dropped.
    """
    statistics = train.Statistics(np.full((20, 20, 3), 127.0, np.float32), np.eye(3) * 5000)
    random = np.random.default_rng(0)
    batch = {
        "image": random.integers(0, 256, (4, 20, 20, 3), np.uint8),
        "label": np.arange(4, dtype=np.int32),
    }

    def loss(draws, **changes):
        config = dataclasses.replace(SMALL, **changes)
        tx = train.build_optimizer(config, 4)
        graphdef = nnx.graphdef(nnx.eval_shape(lambda: train.build_model(config, 10)))
        prepare = train.build_prepare(config, statistics)
        step = train.make_train_step(
            graphdef, tx, train.build_loss(config), prepare, 0.0, config.seed
        )
        state = train.initial_state(
            dataclasses.replace(config, seed=0), tx, 10, statistics
        )  # the same weights
        _, sums = jax.jit(
            lambda state, batch: step(state, batch, lambda sums_of, batch: sums_of(batch))
        )(state, batch | {"draw": np.array(draws, np.uint32)})
        return float(sums["loss"])

    for changes in ({"augmentation": "none", "color_pca": False}, {"dropout": 0.0}):
        assert (
            len(
                {
                    loss([1, 2, 3, 4], **changes),
                    loss([5, 6, 7, 8], **changes),
                    loss([1, 2, 3, 4], **changes, seed=1),
                }
            )
            == 3
        )
        assert loss([1, 2, 3, 4], **changes) == loss([1, 2, 3, 4], **changes)
    still = dict(augmentation="none", color_pca=False, dropout=0.0)
    assert (
        loss([1, 2, 3, 4], **still)
        == loss([5, 6, 7, 8], **still)
        == loss([1, 2, 3, 4], **still, seed=1)
    )


# What a setting does

# For each setting that changes the result: the config in which it is read, and another value for
# it.
CHANGES = {
    "dataset": (TINY, "noise12"),
    "train_split": (TINY, "train[5:]"),
    "test_split": (TINY, "test[16:32]"),
    "train_size": (TINY, 17),
    "validation_size": (TINY, 20),
    "track": (COSINE, "test"),
    "num_classes": (TINY, 11),
    "scaling": (SMALL, "mean_image"),
    "crop_size": (TINY, 10),
    "pad": (TINY, 2),
    "augmentation": (TINY, "none"),
    "color_pca": (TINY, False),
    "net": (dataclasses.replace(TINY, lrn="none"), "cifar13"),
    "widths": (dataclasses.replace(SMALL, crop_size=40, num_epochs=1), "one_weird_trick"),
    "conv1_padding": (SMALL, "bottom_right"),
    "towers": (SMALL, 2),
    "lrn": (TINY, "none"),
    "lrn_size": (TINY, 5),
    "lrn_alpha": (TINY, 1e-3),
    "lrn_alpha_over_n": (TINY, True),
    "lrn_k": (TINY, 1.0),
    "norm_order": (SMALL, "norm_pool"),
    "activation": (TINY, "tanh"),
    "pooling": (TINY, "non_overlapping"),
    "dropout": (SMALL, 0.4),
    "dropout_at": (SMALL, "after"),
    "dropout_scaling": (SMALL, "training"),
    "initialization": (SMALL, "caffe"),
    "hidden_bias": (SMALL, 1.0),
    "label_smoothing": (TINY, 0.1),
    "optimizer": (COSINE, "sgd"),
    "learning_rate": (TINY, 0.02),
    "schedule": (TINY, "constant"),
    "patience": (TINY, 2),
    "num_drops": (TINY, 0),
    "drop_epochs": (dataclasses.replace(TINY, schedule="epochs", drop_epochs="1"), "2"),
    "warmup_epochs": (COSINE, 1.5),
    "momentum": (TINY, 0.5),
    "weight_decay": (TINY, 0.01),
    "decay_biases": (TINY, False),
    "bias_rate_factor": (TINY, 2.0),
    "drop_bias_rate": (TINY, False),
    "average_decay": (TINY, 0.9),
    "compute_dtype": (TINY, "bfloat16"),
    "reduction": (dataclasses.replace(TINY, batch_size=16), "fixed"),
    "batch_size": (TINY, 5),
    "num_epochs": (TINY, 2),
    "seed": (TINY, 1),
}
# For each setting that does not: another value for it. `data_dir` is the folder of the sets.
NO_CHANGES = {
    "data_dir": "sets",
    "ten_crop": True,
    "parallel": "pmap",  # up to rounding
    "mesh": "data:1",
    "num_workers": 0,
    "max_bad_records": 3,
    "log_every_steps": 5,
    "save_every_epochs": 2,
    "save_every_steps": 1,
}


def test_every_setting_is_in_the_lists():
    names = {True: set(), False: set()}
    for field in dataclasses.fields(Config):
        names[field.metadata["changes_result"]].add(field.name)
    assert names == {True: CHANGES.keys() | {"init_from"}, False: NO_CHANGES.keys()}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
def test_every_setting_changes_the_result(backend, tmp_path):
    """No setting is read by nobody, none is lost on its way. Few saves: each takes longer than a
    step. In the forms for a GPU, which compile in half the time; tests/test_conv.py,
    test_alexnet_lrn.py and test_alexnet_pooling.py ask the same of both.
    """
    before = {}
    for number, (name, (config, value)) in enumerate(CHANGES.items()):
        config = dataclasses.replace(config, save_every_steps=100)
        if config not in before:
            before[config] = outcome(config, tmp_path / f"before{number}")
        changed = outcome(dataclasses.replace(config, **{name: value}), tmp_path / name)
        assert changed != before[config], name
        shutil.rmtree(tmp_path / name / "checkpoints")


@pytest.mark.slow
def test_the_other_settings_do_not(tmp_path, sets):
    """On images that are read as they are needed, by two processes, one, or a thread."""
    config = dataclasses.replace(TINY, dataset="streamed", num_epochs=2, train_size=16)
    reference = run(config, tmp_path / "reference")
    for name, value in NO_CHANGES.items():
        value = str(sets) if name == "data_dir" else value
        result = run(dataclasses.replace(config, **{name: value}), tmp_path / name)
        if name != "parallel":
            assert result["state_sha256"] == reference["state_sha256"], name
        assert result["confusion_matrix"] == reference["confusion_matrix"], name
        ends = [
            [line for line in lines(tmp_path / folder) if line["split"] == "validation"]
            for folder in ("reference", name)
        ]
        assert [line["step"] for line in ends[0]] == [line["step"] for line in ends[1]] == [4, 8]
        np.testing.assert_allclose(*([line["loss"] for line in end] for end in ends), rtol=1e-5)
    one = run(dataclasses.replace(config, num_workers=1), tmp_path / "one")
    assert one["state_sha256"] == reference["state_sha256"]
    ours, theirs = (
        restored(config, tmp_path / name, image_shape=(80, 80, 3)).params
        for name in ("reference", "parallel")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ours, theirs)


# Classes


@pytest.mark.parametrize("num_classes", [pytest.param(0, marks=pytest.mark.slow), 20])
def test_as_many_outputs_as_classes_or_more(num_classes, tmp_path):
    config = dataclasses.replace(
        TINY, dataset="noise12", num_classes=num_classes, num_epochs=1, test_split="test"
    )
    result = run(config, tmp_path / "run")
    outputs = num_classes or 12
    confusion = np.array(result["confusion_matrix"])
    assert confusion.shape == (outputs, outputs)
    assert confusion.sum(1).tolist() == [5, 5] + [4] * 10 + [0] * (
        outputs - 12
    )  # of 50 images; rows are the true classes
    assert result["top1_error_pct"] == pytest.approx(
        100 * (1 - np.trace(confusion) / 50), abs=1e-12
    )
    assert train.load_run(tmp_path / "run").num_classes == outputs


def test_fewer_outputs_than_classes_are_refused(tmp_path):
    with pytest.raises(UserError, match="--num_classes=11 is less than the 12 classes of noise12"):
        run(dataclasses.replace(TINY, dataset="noise12", num_classes=11), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


# Counting


class Table(nnx.Module):
    """Logits that are known: of an image whose first pixel is i, row i of a table."""

    def __init__(self, logits):
        self.logits = nnx.Param(jnp.asarray(logits, jnp.float32))

    def __call__(self, images, keys=None):
        assert keys is None
        return self.logits[...][images[:, 0, 0, 0].astype(jnp.int32)]


def known(count, classes, views=1, seed=0):
    """(graphdef, params, prepare, examples, logits): logits (views, count, classes) that the
    examples get in each view.
    """
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (views, count, classes)).astype(np.float32)
    graphdef, params = nnx.split(Table(logits.reshape(-1, classes)), nnx.Param)
    images = np.zeros((count, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    labels = random.integers(0, classes, count).astype(np.int32)

    def prepare(images, draw=None, view=None):
        return images.astype(jnp.float32) + count * (view or 0)

    return graphdef, params, prepare, data.Examples(images, labels, classes, "known"), logits


def counted(probabilities, labels, top):
    """How many labels are not among the `top` most probable classes."""
    ranks = np.argsort(-probabilities, axis=-1)[:, :top]
    return sum(label not in rank for rank, label in zip(ranks, labels, strict=True))


def softmax(logits):
    exponentials = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.parametrize("batch_size", [1, 7, 16, 97, 1000])
@pytest.mark.parametrize(("classes", "views"), [(10, 1), (10, VIEWS), (3, 1), (101, 1)])
def test_every_example_counts_once_whatever_the_batch_size(batch_size, classes, views):
    graphdef, params, prepare, examples, logits = known(97, classes, views)
    loss = train.build_loss(TINY)
    sums = train.evaluate(
        train.make_eval_step(graphdef, loss, prepare, views),
        params,
        examples,
        batch_size=batch_size,
    )
    probabilities = softmax(logits).mean(
        axis=0
    )  # the paper averages probabilities, not logits (4.1)
    assert sums["count"] == 97
    assert sums["errors"] == counted(probabilities, examples.labels, 1)
    assert sums["top5_errors"] == counted(probabilities, examples.labels, 5)
    np.testing.assert_allclose(
        sums["loss"], -np.log(probabilities[np.arange(97), examples.labels]).sum(), rtol=1e-5
    )
    if classes > 100:
        assert "confusion" not in sums
        return
    confusion = np.zeros((classes, classes), int)
    for label, row in zip(examples.labels, probabilities, strict=True):
        confusion[label, row.argmax()] += 1
    assert (sums["confusion"] == confusion).all()


def test_the_mean_of_probabilities_is_not_that_of_logits():
    """The sets above tell them apart."""
    _, _, _, examples, logits = known(97, 10, VIEWS)
    assert counted(softmax(logits).mean(0), examples.labels, 1) != counted(
        softmax(logits.mean(0)), examples.labels, 1
    )


@pytest.mark.parametrize(
    ("crop_size", "views", "size"),
    [
        (227, 1, 64),
        (227, VIEWS, 6),
        (224, VIEWS, 6),
        (24, 1, 1000),
        (24, VIEWS, 578),
        (2000, VIEWS, 1),
    ],
)
def test_as_many_examples_are_scored_at_once_as_fit(crop_size, views, size):
    """Ten million values: 64 crops of 227x227x3."""
    assert train.eval_batch_size(dataclasses.replace(Config(), crop_size=crop_size), views) == size


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run that scored the test split by one crop and by ten: its workdir and its result."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    config = dataclasses.replace(
        SMALL, test_split="test[3:46]", num_epochs=2, average_decay=0.5, ten_crop=True
    )
    return workdir, run(config, workdir)


def test_a_checkpoint_gives_the_scores_again(finished):
    workdir, result = finished
    loaded = train.load_run(workdir)
    assert (loaded.step, loaded.num_classes, loaded.image_shape) == (8, 10, (40, 40, 3))
    examples = open_split("noise10", "", "test[3:46]")
    for views, prefix in ((1, ""), (VIEWS, "ten_crop_")):
        again = metrics.summarize(
            train.evaluate(loaded.eval_steps[views], loaded.params, examples, batch_size=10)
        )
        assert again["error_pct"] == result[f"{prefix}top1_error_pct"]
        assert again["top5_error_pct"] == result[f"{prefix}top5_error_pct"]


def test_scores_against_forward_passes_one_by_one(finished):
    """The averaged weights, the centre crop, and the ten crops cut by NumPy."""
    workdir, result = finished
    loaded = train.load_run(workdir)
    model = train.build_model(loaded.config, 10)
    nnx.update(model, nnx.State(jax.tree.map(nnx.Param, loaded.params)))
    training, examples = (
        open_split("noise10", "", "train[:18]"),
        open_split("noise10", "", "test[3:46]"),
    )
    pixels = training.images.reshape(-1, 3)
    x = ((examples.images - pixels.mean(0)) / pixels.std(0)).astype(np.float32)  # (43, 40, 40, 3)
    corners = [
        x[:, i : i + 16, j : j + 16] for i, j in ((12, 12), (0, 0), (0, 24), (24, 0), (24, 24))
    ]
    crops = corners + [corner[:, :, ::-1] for corner in corners]
    forward = jax.jit(lambda crop: model(crop))
    probabilities = np.stack([softmax(np.asarray(forward(crop))) for crop in crops])
    for scores, prefix in ((probabilities[0], ""), (probabilities.mean(0), "ten_crop_")):
        for name, top in (("top1", 1), ("top5", 5)):
            expected = 100 * counted(scores, examples.labels, top) / 43
            assert result[f"{prefix}{name}_error_pct"] == pytest.approx(expected, abs=1e-9)
    assert (
        result["test_error_pct"] == result["top1_error_pct"] and result["num_test_examples"] == 43
    )


# Sets


@pytest.mark.slow
def test_noise_trains_and_says_so(tmp_path):
    config = dataclasses.replace(TINY, dataset="fake", test_split="", num_epochs=1, train_size=8)
    result = run(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["dataset"] == "fake"
    assert result["num_test_examples"] == 256 and result["num_train_examples"] == 8
    assert "confusion_matrix" not in result  # of 1,000 classes
    assert isinstance(
        train.load_splits("fake", "", train_size=8, validation_size=4, crop_size=8, seed=0)[0],
        Noise,
    )


def test_a_run_of_one_step_has_a_speed(tmp_path):
    assert (
        run(dataclasses.replace(TINY, num_epochs=1, train_size=4), tmp_path / "run")["images_per_s"]
        > 0
    )


def test_load_run_refuses_what_is_no_alexnet_run(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        train.load_run(tmp_path)
    for text in (
        '{"c3": "table"}',
        "{",
        "[]",
        '{"seed": "x"}',
        '{"batch_size": 0}',
        '{"data_dir": null}',
        '{"flagfile": "x"}',
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match="not that of an AlexNet run"):
            train.load_run(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(TINY)))
    with pytest.raises(UserError, match="no checkpoint yet"):
        train.load_run(tmp_path)
