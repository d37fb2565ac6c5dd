"""A label means a name: sets are matched with a run by the names of their classes, whatever numbers
they give them.
"""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import pytest

import alexnet.config
import alexnet.train
import lenet.config
import lenet.train
from common.checkpoint import Checkpointer
from common.errors import DataError, Interrupted, UserError
from common.loop import fit
from common.workdir import headline, write_config, write_result
from scripts.prepare.builders import write_prepared

pytestmark = pytest.mark.usefixtures("compiled_quickly", "compiled_once", "without_curves")

COLORS = {"red": 0, "green": 1, "blue": 2}  # name -> the channel that is bright
DIGITS = lenet.config.Config(
    dataset="colors", validation_size=6, batch_size=6, num_epochs=8, learning_rate=0.02
)
PHOTOS = alexnet.config.Config(
    dataset="photos", validation_size=6, batch_size=6, num_epochs=8, crop_size=8, net="cifar18",
    lrn="none", dropout=0.0, color_pca=False, learning_rate=0.001, weight_decay=0.0,
    schedule="constant", ten_crop=False, num_workers=0,
)  # fmt: skip
NETWORKS = {"lenet": (lenet, DIGITS), "alexnet": (alexnet, PHOTOS)}


def write_colors(folder, dataset: str, names: tuple[str, ...], size: int, shown=None) -> None:
    """36 training and 12 test images, each with a bright channel, of the classes `shown`."""
    draw, shown = np.random.default_rng(0), shown or names
    splits = {"train": [], "test": []}
    for split, count in (("train", 36), ("test", 12)):
        for i in range(count):
            name = shown[i % len(shown)]
            image = draw.integers(0, 60, (size, size, 3), np.uint8)
            image[..., COLORS.get(name, 0)] += 190
            splits[split].append((image, names.index(name)))
    write_prepared(folder, dataset, "1.0.0", splits, (size, size, 3), names, keep_order=True)


@pytest.fixture(scope="module", autouse=True)
def sets(tmp_path_factory):
    """`colors` of 28 pixels, in memory; `photos` of 80, streamed; and others of the same sizes."""
    folder = tmp_path_factory.mktemp("sets")
    for dataset, size in (("colors", 28), ("photos", 80)):
        write_colors(folder, dataset, ("blue", "green", "red"), size)
        write_colors(folder, f"{dataset}_two", ("green", "red"), size)
        write_colors(folder, f"{dataset}_turned", ("red", "blue", "green"), size)
        write_colors(folder, f"{dataset}_other", ("green", "orange"), size)
        write_colors(folder, f"{dataset}_four", ("blue", "green", "red", "violet"), size)
        write_colors(folder, f"{dataset}_nameless", ("green", "red"), size)
        (folder / f"{dataset}_nameless/1.0.0/label.labels.txt").unlink()
        write_colors(folder, f"{dataset}_one", ("blue", "green", "red"), size, shown=("green",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


def train(net: str, workdir, stop=False, **changes) -> dict | None:
    """The result of a run to its end; None of one that is stopped after its first chunk."""
    network, config = NETWORKS[net]
    config = dataclasses.replace(config, **changes)
    workdir.mkdir(exist_ok=True)
    write_config(config, workdir)
    with contextlib.suppress(Interrupted):
        return fit(network.train.make_task(config), workdir, lambda: 15 if stop else None)


def headline_of(workdir, result: dict) -> str:
    write_result(workdir, result)
    return headline(None, workdir)


def forget_names(net: str, workdir, copy) -> None:
    """A copy of a run as older programs wrote it: without names."""
    network, config = NETWORKS[net]
    task = network.train.make_task(config)
    target = task.placement.abstract(lambda: task.initial_state(task.network.init()))
    copy.mkdir()
    write_config(config, copy)
    with contextlib.closing(Checkpointer(workdir, read_only=True)) as source:
        step, state, meta = source.restore_newest(target)
    del meta["class_names"]
    with contextlib.closing(Checkpointer(copy)) as checkpointer:
        checkpointer.save(step, state, meta)


@pytest.fixture(scope="module", params=["lenet", pytest.param("alexnet", marks=pytest.mark.slow)])
def finished(request, tmp_path_factory, sets, compiled_quickly, compiled_once):
    """(network, folder, result) of a run that tells blue, green and red apart."""
    workdir = tmp_path_factory.mktemp("runs") / request.param
    result = train(request.param, workdir)
    assert result["test_error_pct"] == 0
    return request.param, workdir, result


@pytest.mark.commands
def test_a_subset_in_any_order_is_scored_by_name(finished, score):
    net, workdir, result = finished
    dataset = NETWORKS[net][1].dataset
    rows = {"two": [0, 6, 6], "turned": [4, 4, 4], "one": [0, 12, 0]}
    for name, counts in rows.items():
        code, output, errors = score(workdir, f"--dataset={dataset}_{name}", "--json")
        found = json.loads(output)
        assert (code, found["error_pct"], errors) == (0, 0.0, "")
        assert found["class_names"] == ["blue", "green", "red"]
        assert np.diag(found["confusion_matrix"]).tolist() == counts
    assert list(result["class_names"]) == ["blue", "green", "red"]
    _, output, _ = score(workdir, f"--dataset={dataset}_two")
    assert "green 0.00%" in output and "red 0.00%" in output and "blue" not in output


@pytest.mark.commands
def test_there_are_no_top5_errors_among_three_classes(finished, score):
    """They would always be 0."""
    _, workdir, result = finished
    lines = [(workdir / "metrics.jsonl").read_text(), headline_of(workdir, result)]
    lines += [score(workdir, *flags)[1] for flags in ((), ("--json",))]
    assert not any("top5" in line or "top-5" in line for line in [*lines, *result])


@pytest.mark.commands
def test_names_that_a_run_does_not_know_are_refused_by_name(finished, score):
    net, workdir, _ = finished
    for name, unknown in (("other", "orange"), ("four", "violet")):
        dataset = f"{NETWORKS[net][1].dataset}_{name}"
        code, output, errors = score(workdir, f"--dataset={dataset}")
        assert (code, output, errors.count("\n")) == (65, "", 1)
        assert dataset in errors and unknown in errors and "blue, green, red" in errors


@pytest.mark.commands
def test_without_names_labels_go_by_position_and_a_line_says_so(finished, score, tmp_path):
    net, workdir, _ = finished
    dataset = NETWORKS[net][1].dataset
    forget_names(net, workdir, tmp_path / "old")
    for folder, name, who in (
        (workdir, f"{dataset}_nameless", f"{dataset}_nameless"),
        (tmp_path / "old", f"{dataset}_two", str(tmp_path / "old")),
    ):
        code, output, errors = score(folder, f"--dataset={name}", "--json")
        found = json.loads(output)
        assert (code, found["error_pct"]) == (0, 100.0)  # green is taken for blue
        assert errors.count("\n") == 1 and "position" in errors and who in errors
    assert score(tmp_path / "old", "--json")[0] == 0
    code, output, errors = score(tmp_path / "old", "--classes=green")
    assert (code, output, errors.count("\n")) == (2, "", 1) and "--classes=green" in errors


@pytest.mark.commands
def test_predictions_have_names(finished):
    net, workdir, _ = finished
    network, _ = NETWORKS[net]
    trained, size = network.load(workdir), {"lenet": 28, "alexnet": 80}[net]
    images = np.zeros((3, size, size, 3), np.uint8)
    for image, name in zip(images, ("red", "blue", "green"), strict=True):
        image[..., COLORS[name]] = 220
    assert trained.classify(images) == ["red", "blue", "green"]
    assert trained._replace(class_names=None).classify(images) == ["2", "0", "1"]
    assert trained.classify(images[:0]) == []


@pytest.mark.commands
def test_a_run_starts_from_the_weights_of_the_same_classes_in_another_order(
    finished, tmp_path, capsys
):
    """What the source knows, the new run knows before it has learned anything."""
    net, workdir, _ = finished
    dataset = NETWORKS[net][1].dataset
    result = train(
        net,
        tmp_path / "turned",
        dataset=f"{dataset}_turned",
        init_from=str(workdir),
        learning_rate=1e-30,
        num_epochs=1,
    )
    assert result["test_error_pct"] == 0
    assert list(result["class_names"]) == ["red", "blue", "green"]
    assert "--init_from" not in capsys.readouterr().err


@pytest.mark.commands
def test_other_classes_than_those_of_init_from_are_named(finished, sets, capsys):
    net, workdir, _ = finished
    dataset, size = NETWORKS[net][1].dataset, {"lenet": 28, "alexnet": 80}[net]
    write_colors(sets, f"{dataset}_fruits", ("apple", "green", "kiwi"), size)
    network, config = NETWORKS[net]
    config = dataclasses.replace(config, dataset=f"{dataset}_fruits", init_from=str(workdir))
    task = network.train.make_task(config)
    params, about = task.given_params(jax.eval_shape(task.network.init))
    assert about["new_classes"] == ["apple", "kiwi"] and about["known_classes"] == ["green"]
    assert about["new"] == [task.network.head] and params.keys() == set(about["loaded"])
    assert capsys.readouterr().err == ""


@pytest.mark.commands
def test_codes_of_digits_cannot_be_put_in_another_order(tmp_path, sets):
    """--output=rbf has no weights to move."""
    digits = tuple("0123456789")
    for dataset, names in (("forwards", digits), ("backwards", digits[::-1])):
        write_colors(sets, dataset, names, 28)
    config = dataclasses.replace(DIGITS, dataset="forwards", output="rbf", loss="map", num_epochs=1)
    task = lenet.train.make_task(config)
    write_run(task, tmp_path / "source", config)
    again = dataclasses.replace(config, init_from=str(tmp_path / "source"))
    params = jax.eval_shape(task.network.init)
    assert "f6" in lenet.train.make_task(again).given_params(params)[0]
    turned = dataclasses.replace(again, dataset="backwards")
    with pytest.raises(UserError, match="--output=rbf"):
        lenet.train.make_task(turned).given_params(params)


def write_run(task, workdir, config) -> None:
    state = jax.jit(task.initial_state)(task.network.init())
    workdir.mkdir()
    write_config(config, workdir)
    with contextlib.closing(Checkpointer(workdir)) as checkpointer:
        checkpointer.save(1, state, task.facts | task.training_set)


@pytest.mark.commands
def test_a_run_is_not_resumed_with_its_classes_in_another_order(tmp_path, sets):
    """Of streamed images only the description differs, neither their number nor their mean."""
    workdir, labels = tmp_path / "run", sets / "photos_two/1.0.0/label.labels.txt"
    assert train("alexnet", workdir, stop=True, dataset="photos_two") is None
    labels.write_text("red\ngreen\n")
    with pytest.raises(DataError, match="class_names"):
        train("alexnet", workdir, dataset="photos_two")
    labels.unlink()  # a set that lost its names goes on
    assert train("alexnet", workdir, stop=True, dataset="photos_two") is None
    labels.write_text("green\nred\n")


@pytest.mark.commands
def test_a_run_knows_the_size_of_its_images(tmp_path, write_set, monkeypatch, compiled_quickly):
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 1), dtype=np.uint8)
    write_set(tmp_path / "data", "wide", images)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    config = dict(dataset="wide", validation_size=20, batch_size=20, num_epochs=1)
    train("lenet", tmp_path / "run", **config)
    trained = lenet.load(tmp_path / "run")
    assert trained.network.image_shapes[0] == (32, 32, 1)
    assert trained.predict(images[:2]).shape == (2, 10)
