"""What is odd about a run is said at its start, in a line each."""

import contextlib
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

import alexnet.config
import alexnet.train
import lenet.config
import lenet.train
from common import start_up as module
from common.checkpoint import Checkpointer
from common.errors import DataError, UserError
from common.loop import fit
from common.start_up import absent_classes, remarks, require_trainable
from scripts.prepare.builders import write_prepared

DIGITS = lenet.config.Config(dataset="mnist10k", validation_size=500)
PHOTOS = alexnet.config.Config(
    dataset="photos", validation_size=4, crop_size=8, net="cifar18", lrn="none", dropout=0.0,
    batch_size=4, num_workers=0,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def sets(tmp_path_factory):
    """`photos` (in memory) and `streamed`: no `dogs` in train, no `dog` in test, no `owl`."""
    folder, draw = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    names = ("cat", "dog", "dogs", "owl")
    labels = {"train": [0, 1] * 12, "test": [2, 0, 2, 0]}
    for dataset, size in (("photos", 10), ("streamed", 80)):
        splits = {
            split: [(draw.integers(0, 256, (size, size, 3), np.uint8), label) for label in each]
            for split, each in labels.items()
        }
        write_prepared(folder, dataset, "1.0.0", splits, (size, size, 3), names, keep_order=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


def said(config) -> list[str]:
    network = alexnet if isinstance(config, alexnet.config.Config) else lenet
    return remarks(network.train.make_task(config))


def test_an_ordinary_run_has_no_remarks():
    assert said(DIGITS) == []


@pytest.mark.parametrize(
    ("config", "facts"),
    [
        (dict(validation_size=5000), ["5,000", "3,000", "--validation_size"]),
        (dict(train_size=499), ["500", "499", "--validation_size"]),
        (dict(batch_size=3751), ["single step", "--batch_size=3751", "7,500"]),
        (dict(train_size=3, validation_size=0, track="test", batch_size=1), ["train", "7 of 10"]),
    ],
)
def test_what_is_odd_about_a_run_is_a_line(config, facts):
    (line,) = said(dataclasses.replace(DIGITS, **config))
    assert all(fact in line for fact in facts), line
    assert len(line) <= 150


@pytest.mark.parametrize("dataset", ["photos", "streamed"])
def test_a_class_that_a_split_lacks_is_named(dataset):
    lines = said(dataclasses.replace(PHOTOS, dataset=dataset))
    named = [line for line in lines if ": no example of " in line]
    assert [(line.partition(":")[0], line[line.index("(") :]) for line in named] == [
        ("train", "(dogs, owl)"),
        ("validation", "(dogs, owl)"),
        ("test", "(dog, owl)"),
    ]
    assert any("top-5" in line and "4" in line for line in lines)  # classes


def test_of_many_absent_classes_some_are_named(write_set, tmp_path):
    write_set(tmp_path, "many", np.zeros((3, 28, 28, 1), np.uint8), num_classes=47)
    config = dict(dataset="many", data_dir=str(tmp_path), validation_size=0, track="test")
    lines = said(dataclasses.replace(DIGITS, **config, batch_size=1))
    assert len(lines) == 2 and all("44 of 47" in line and len(line) < 150 for line in lines)


def test_long_streamed_splits_are_not_read_for_their_labels(monkeypatch):
    config = dataclasses.replace(PHOTOS, dataset="streamed")
    monkeypatch.setattr(module, "MAX_READ", 10)
    train, _, test = alexnet.data.load_splits(config)
    assert absent_classes(train) == [] and absent_classes(test) == ["dog", "owl"]


@pytest.mark.commands
@pytest.mark.usefixtures("compiled_quickly", "without_curves")
def test_the_lines_are_printed(tmp_path, capsys):
    config = dict(train_size=4, validation_size=8, batch_size=4, num_epochs=1)
    fit(lenet.train.make_task(dataclasses.replace(DIGITS, **config)), tmp_path, lambda: None)
    errors = capsys.readouterr().err
    assert "--validation_size" in errors and "single step" in errors


def trainable(num_classes=10, sha256="a"):
    """What `require_trainable` reads of a task."""
    return SimpleNamespace(
        network=SimpleNamespace(num_classes=num_classes),
        config=SimpleNamespace(dataset="photos"),
        training_set={"train_examples": 4, "train_source_sha256": sha256},
        facts={"class_names": ("cat", "dog")},
    )


def test_one_class_is_refused(tmp_path):
    task = lenet.train.make_task(dataclasses.replace(DIGITS, classes="7"))
    with (
        contextlib.closing(Checkpointer(tmp_path)) as checkpointer,
        pytest.raises(UserError, match="--classes"),
    ):
        module.restore_or_start(task, checkpointer, tmp_path)


def test_processes_with_other_data_are_refused(monkeypatch):
    told = []
    monkeypatch.setattr(module, "all_gather_text", lambda text: told.append(text) or told)
    require_trainable(trainable())
    require_trainable(trainable())
    with pytest.raises(DataError, match="photos"):
        require_trainable(trainable(sha256="b"))
