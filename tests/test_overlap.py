"""No record is both trained on and scored, unless the user says so."""

import contextlib
import dataclasses
import json
import runpy
import sys

import jax
import numpy as np
import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st

import alexnet.config
import alexnet.train
import lenet.config
import lenet.train
from common import launch, runtime
from common.checkpoint import Checkpointer
from common.flags import parse
from common.workdir import write_config
from scripts import evaluate
from scripts.prepare.builders import write_prepared

pytestmark = pytest.mark.usefixtures("compiled_quickly", "compiled_once", "without_curves")

PHOTOS = alexnet.config.Config(
    dataset="noise", validation_size=8, crop_size=8, net="cifar18", lrn="none", dropout=0.0,
    batch_size=4, num_epochs=1, schedule="constant", ten_crop=False, num_workers=0,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def sets(tmp_path_factory):
    """`noise`: 40 training, 20 test examples."""
    folder, draw = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    splits = {
        split: [(draw.integers(0, 256, (10, 10, 3), np.uint8), i % 10) for i in range(count)]
        for split, count in (("train", 40), ("test", 20))
    }
    names = [str(number) for number in range(10)]
    write_prepared(folder, "noise", "1.0.0", splits, (10, 10, 3), names, keep_order=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


@pytest.fixture
def command(monkeypatch, capsys):
    """command(config, workdir, *flags): alexnet.train here: its exit code and errors."""
    for name in ("use_compilation_cache", "keep_freed_memory", "mute_library_logs"):
        monkeypatch.setattr(runtime, name, lambda: None)  # they belong to the process

    def run(config, workdir, *flags):
        settings = [f"--{name}={value}" for name, value in dataclasses.asdict(config).items()]
        argv = ["alexnet.train", f"--workdir={workdir}", *settings, *flags]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(alexnet.train.__file__, run_name="__main__")
        return ended.value.code, capsys.readouterr().err

    return run


# train: [0:32], validation: [32:40], unless the flags say otherwise
OVERLAPS = {
    "test in train": ("--test_split=train[:5]", ["train[0:32]", "train[0:5]"]),
    "test in validation": ("--test_split=train[35:]", ["train[32:40]", "train[35:40]"]),
    "one record": ("--test_split=test+train[31:32]", ["train[31:32]", "test[0:20]"]),
    "train in test": ("--train_split=train+test[:10]", ["train[0:40] and test[0:2]"]),
    "same": ("--train_split=test", ["test[0:12]", "test[0:20]"]),
    "repeated": ("--train_split=train+train[:1]", ["train[33:40] and train[0:1]", "train[0:33]"]),
    "noise": ("--dataset=fake --test_split=train", ["train[0:1272]", "train[0:1280]"]),
}


@pytest.mark.commands
@pytest.mark.parametrize("flags", OVERLAPS)
def test_overlapping_splits_are_refused_by_their_intervals(flags, command, tmp_path):
    arguments, named = OVERLAPS[flags]
    code, errors = command(PHOTOS, tmp_path / "run", *arguments.split())
    last = errors.splitlines()[-1]
    assert code == 2 and "--allow_overlap" in last
    assert all(interval in last for interval in named), last
    assert not list(tmp_path.glob("run/checkpoints/*"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(test_split="train[32:]", validation_size=0, train_size=32, track="test"),
        dict(train_size=12, test_split="train[12:32]"),
        dict(train_split="test[:12]", test_split="test[12:]"),
        dict(dataset="fake"),
    ],
)
def test_other_splits_share_nothing(changes):
    config = dataclasses.replace(PHOTOS, **changes)
    assert alexnet.data.overlaps(config) == []
    alexnet.data.require_disjoint(config)


SLICES = st.tuples(st.sampled_from(["train", "test"]), st.integers(0, 20), st.integers(0, 20))


@given(train=st.lists(SLICES, min_size=1, max_size=3), test=SLICES)
def test_records_are_shared_as_often_as_they_are_in_both(train, test):
    """Against sets of pairs."""
    held_out, text = 3, "{}[{}:{}]".format
    places = [(split, i) for split, start, stop in train for i in range(start, stop)]
    scored = {(test[0], i) for i in range(test[1], test[2])}
    if len(places) <= held_out or not scored:
        return
    config = dataclasses.replace(
        PHOTOS,
        train_split="+".join(text(*each) for each in train),
        test_split=text(*test),
        validation_size=held_out,
        batch_size=1,
    )
    parts = [set(places[:-held_out]), set(places[-held_out:]), scored]
    pairs = [(parts[0], parts[1]), (parts[0], parts[2]), (parts[1], parts[2])]
    expected = [len(first & second) for first, second in pairs if first & second]
    found = alexnet.data.overlaps(config)
    assert [int(sentence.split()[0]) for sentence in found] == expected


@pytest.mark.slow
def test_a_run_that_may_overlap_says_so(command, tmp_path):
    flags = ["--test_split=train[:5]", "--allow_overlap"]
    code, errors = command(PHOTOS, tmp_path / "run", *flags)
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert code == 0 and result["allow_overlap"] is True
    assert "train[0:5]" in result["overlap"][0] and "train[0:5]" in errors


@pytest.mark.commands
def test_an_old_folder_with_overlapping_splits_resumes(command, tmp_path):
    """Its flags.txt does not have the flag."""
    config = dataclasses.replace(PHOTOS, test_split="train[:5]")
    task, workdir = alexnet.train.make_task(config), tmp_path / "run"
    state = jax.jit(task.initial_state)(task.network.init())
    workdir.mkdir()
    write_config(config, workdir)
    saved = json.loads((workdir / "config.json").read_text())
    del saved["allow_overlap"]
    (workdir / "config.json").write_text(json.dumps(saved))
    with contextlib.closing(Checkpointer(workdir)) as checkpointer:
        checkpointer.save(0, state, task.facts | task.training_set)
    code, errors = command(config, workdir)
    assert code == 0, errors
    result = json.loads((workdir / "result.json").read_text())
    assert result["allow_overlap"] is False and "train[0:5]" in result["overlap"][0]
    values = flags.FlagValues()
    evaluate.define_flags(values)
    parse(values, ["evaluate", f"--workdir={workdir}", "--split=train"])
    evaluate.main(values)  # is free to score what was trained on


# ---- the embedded digits are MNIST's


DIGITS = lenet.config.Config(dataset="mnist10k", train_size=40, validation_size=40, batch_size=4)


@pytest.mark.slow
def test_the_embedded_digits_are_no_test_set_of_a_network_trained_on_mnist(
    tmp_path, sets, capsys, monkeypatch
):
    monkeypatch.setattr(runtime, "keep_freed_memory", lambda: None)
    digits = [(np.zeros((28, 28, 1), np.uint8), i % 10) for i in range(8)]
    splits, names = {"train": digits, "test": digits}, "0123456789"
    write_prepared(sets, "mnist", "3.0.1", splits, (28, 28, 1), names, keep_order=True)
    task = lenet.train.make_task(DIGITS)
    state = jax.jit(task.initial_state)(task.network.init())
    for trained_on in ("mnist", "mnist10k"):
        workdir = tmp_path / trained_on
        workdir.mkdir()
        write_config(dataclasses.replace(DIGITS, dataset=trained_on), workdir)
        with contextlib.closing(Checkpointer(workdir)) as checkpointer:
            checkpointer.save(1, state, task.facts | task.training_set)
        for dataset, split in (("mnist10k", "test[:9]"), ("mnist", "test"), ("mnist", "train")):
            flags = [f"--workdir={workdir}", f"--dataset={dataset}", f"--split={split}"]
            argv = ["evaluate", *flags]
            assert launch.run_tool(evaluate.define_flags, evaluate.main, argv) == 0
            warned = trained_on != dataset and (dataset, split) != ("mnist", "test")
            errors = capsys.readouterr().err
            assert errors.count("\n") == warned and ("MNIST" in errors) == warned
    again = dataclasses.replace(DIGITS, init_from=str(tmp_path / "mnist"))
    shapes = jax.eval_shape(task.network.init)
    lenet.train.make_task(again).given_params(shapes)
    assert "MNIST" in capsys.readouterr().err
