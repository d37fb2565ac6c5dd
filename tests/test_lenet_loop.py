"""The training loop in this process, its chunks a few steps long: stopped anywhere it goes on bit
for bit.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from common.errors import Interrupted, UserError
from lenet import train
from lenet.config import Config

pytestmark = pytest.mark.usefixtures("compiled_quickly", "compiled_once", "without_curves")

TINY = Config(
    dataset="mnist10k", train_size=50, validation_size=50, batch_size=4, num_epochs=3
)  # scored by one program
PAPER = dataclasses.replace(
    TINY, scaling="paper", activation="scaled_tanh", pooling="trainable", output="rbf", loss="map", optimizer="sdlm",
    momentum=0.0, schedule="paper", learning_rate=1.0, reshuffle=False,
)  # fmt: skip
ADAMW = dataclasses.replace(
    TINY,
    optimizer="adamw",
    momentum=0.0,
    learning_rate=0.003,
    distortions="elastic",
    average_decay=0.9,
)


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


@pytest.fixture
def short_chunks(monkeypatch):
    monkeypatch.setattr(train, "steps_per_chunk", lambda batch_size: 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        PAPER,
        dataclasses.replace(
            PAPER, distortions="affine", distorted_copies=2, batch_size=1, train_size=12
        ),
        ADAMW,
        dataclasses.replace(TINY, parallel="pmap"),
        dataclasses.replace(TINY, save_every_epochs=3, track="test"),
    ],
    ids=["sdlm", "copies", "average", "pmap", "save_every_3"],
)
def test_stopped_anywhere_it_ends_the_same(config, tmp_path, short_chunks):
    """12 steps an epoch in chunks of 5, 5 and 2: stopped inside epochs, at their ends, and twice in
    a row.
    """
    straight = run(config, tmp_path / "straight")
    stopped = run(config, tmp_path / "stopped", stop_at=(1, 3, 5, 6, 8))
    assert stopped["state_sha256"] == straight["state_sha256"]
    assert stopped["confusion_matrix"] == straight["confusion_matrix"]
    assert lines(tmp_path / "stopped") == lines(tmp_path / "straight")
    places = [(line["step"], line["split"]) for line in lines(tmp_path / "stopped")]
    assert len(places) == len(set(places))
    assert [step for step, split in places if split == "train"] == [
        5,
        10,
        12,
        17,
        22,
        24,
        29,
        34,
        36,
    ]


def test_chunks_and_curvature_come_when_they_should(tmp_path, short_chunks, monkeypatch):
    chunks, estimates = [], []
    real_chunk, real_curvature = train.training_chunk, train.make_curvature_step

    def recording_chunk(examples, **options):
        chunks.append((options["first_step"], options["num_steps"]))
        return real_chunk(examples, **options)

    def recording_curvature(*arguments):
        step = real_curvature(*arguments)

        def curvature_step(state, images, labels):
            estimates.append((int(state.step), len(images)))
            return step(state, images, labels)

        return curvature_step

    monkeypatch.setattr(train, "training_chunk", recording_chunk)
    monkeypatch.setattr(train, "make_curvature_step", recording_curvature)
    run(dataclasses.replace(PAPER, curvature_examples=20), tmp_path / "run")
    assert chunks == [(0, 5), (5, 5), (10, 2), (12, 5), (17, 5), (22, 2), (24, 5), (29, 5), (34, 2)]
    assert estimates == [(0, 20), (12, 20), (24, 20)]  # before each pass


def test_one_step_against_plain_optax():
    """Loss, gradient of the mean, update and average of one step, written out."""
    config = dataclasses.replace(TINY, weight_decay=0.01, average_decay=0.6, schedule="constant")
    model = train.build_model(config)
    graphdef, params = nnx.graphdef(model), nnx.to_pure_dict(nnx.state(model, nnx.Param))
    tx, loss, prepare = (
        train.build_optimizer(config, 12),
        train.build_loss(config),
        train.build_prepare(config),
    )
    steps = train.make_train_steps(graphdef, tx, loss, prepare, config.average_decay)
    draw = np.random.default_rng(0)
    images, labels = (
        draw.integers(0, 256, (3, 4, 28, 28, 1), np.uint8),
        draw.integers(0, 10, (3, 4)).astype(np.int32),
    )
    chunk = {"image": images, "label": labels, "draw": np.ones((3, 4), np.uint32)}
    state = train.initial_state(config, tx, 1, 10)
    state, sums = jax.jit(
        lambda state, chunk: steps(state, chunk, 2, lambda sums_of, batch: sums_of(batch))
    )(state, chunk)  # two of three

    @jax.jit
    @jax.value_and_grad
    def mean_loss_and_gradient(params, images, labels):
        return loss(nnx.merge(graphdef, params)(prepare(images)), labels).mean()

    average, velocity, loss_sum = params, jax.tree.map(jnp.zeros_like, params), 0.0
    for k in range(2):
        mean_loss, grads = mean_loss_and_gradient(params, images[k], labels[k])
        loss_sum += 4 * mean_loss
        velocity = jax.tree.map(lambda v, g, w: 0.9 * v + g + 0.01 * w, velocity, grads, params)
        params = jax.tree.map(lambda w, v: w - 0.1 * v, params, velocity)
        decay = min(0.6, (1 + k) / (10 + k))
        average = jax.tree.map(lambda a, w, d=decay: d * a + (1 - d) * w, average, params)
    assert state.step == 2 and sums["count"] == 8
    np.testing.assert_allclose(sums["loss"], loss_sum, rtol=1e-5)
    for ours, expected in (
        (state.params, params),
        (state.average, average),
        (train.evaluated_params(state), average),
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ours, expected
        )
    assert optax.tree.norm(jax.tree.map(jnp.subtract, state.average, state.params)) > 1e-3


# For each setting that changes the result: the config in which it is read, and another value for
# it.
CHANGES = {
    "train_size": (TINY, 40),
    "validation_size": (TINY, 90),
    "track": (TINY, "test"),
    "scaling": (TINY, "paper"),
    "distortions": (ADAMW, "affine"),
    "distortion_strength": (ADAMW, 0.5),
    "distorted_copies": (ADAMW, 2),
    "reshuffle": (TINY, False),
    "c3": (TINY, "random"),
    "activation": (TINY, "relu"),
    "pooling": (TINY, "max"),
    "output": (TINY, "rbf"),
    "initialization": (TINY, "fan_in"),
    "loss": (TINY, "mse"),
    "map_constant": (PAPER, 60.0),
    "label_smoothing": (TINY, 0.1),
    "optimizer": (dataclasses.replace(TINY, momentum=0.0), "adamw"),
    "learning_rate": (TINY, 0.05),
    "schedule": (TINY, "constant"),
    "warmup_epochs": (TINY, 1.5),
    "momentum": (TINY, 0.5),
    "weight_decay": (TINY, 0.01),
    "average_decay": (TINY, 0.9),
    "curvature_examples": (PAPER, 10),
    "curvature_loss": (dataclasses.replace(PAPER, map_constant=200.0), "same"),
    "compute_dtype": (TINY, "bfloat16"),
    "reduction": (dataclasses.replace(TINY, batch_size=16), "fixed"),
    "batch_size": (TINY, 5),
    "num_epochs": (TINY, 2),
    "seed": (TINY, 1),
}


def test_every_setting_is_in_the_list():
    names = {field.name for field in dataclasses.fields(Config) if field.metadata["changes_result"]}
    assert names - {"dataset", "init_from"} == CHANGES.keys()  # tests/test_start.py


@pytest.mark.slow
def test_every_setting_changes_the_result(tmp_path):
    """No setting is read by nobody, none is lost on its way. Saved at the end only, which takes
    longer than the training.
    """
    before = {}
    for number, (name, (config, value)) in enumerate(CHANGES.items()):
        config = dataclasses.replace(config, save_every_epochs=3)
        if config not in before:
            before[config] = outcome(config, tmp_path / f"before{number}")
        changed = outcome(dataclasses.replace(config, **{name: value}), tmp_path / name)
        assert changed != before[config], name


@pytest.mark.slow
def test_rgb_images_of_32_pixels_and_47_classes(tmp_path, write_set):
    images = np.random.default_rng(0).integers(0, 256, (94, 32, 32, 3), np.uint8)
    write_set(tmp_path, "rgb47", images, num_classes=47)
    config = dataclasses.replace(
        TINY, dataset="rgb47", data_dir=str(tmp_path), train_size=0, validation_size=10
    )
    result = run(config, tmp_path / "run")
    assert np.array(result["confusion_matrix"]).shape == (47, 47)
    assert result["num_test_examples"] == 94 and result["num_train_examples"] == 84


def test_a_run_of_one_chunk_has_a_speed(tmp_path):
    assert (
        run(dataclasses.replace(TINY, num_epochs=1, train_size=8), tmp_path / "run")["images_per_s"]
        > 0
    )


def test_load_run_refuses_what_is_no_lenet_run(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        train.load_run(tmp_path)
    for text in (
        '{"lrn": "none"}',
        "{",
        "[]",
        '{"seed": "x"}',
        '{"batch_size": 0}',
        '{"data_dir": null}',
        '{"flagfile": "x"}',
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match="not that of a LeNet-5 run"):
            train.load_run(tmp_path)
