"""A run that starts from another one: which classes and examples it takes, which layers are loaded,
frozen and new, and at which rate its head learns.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
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
from alexnet.image_statistics import Statistics, fitted
from common import step
from common.checkpoint import Checkpointer
from common.classes import matched
from common.errors import Interrupted, UserError
from common.examples import Examples
from common.flags import from_preset
from common.loop import fit
from common.order import hold_out
from common.subset import first_of_each_class, of_classes
from common.transfer import frozen_layers, table
from common.workdir import saved_steps, to_text, write_config
from scripts.prepare.builders import write_prepared
from scripts.report.results import RESULTS
from scripts.studies import conduct, outcome, plan
from scripts.studies.catalog import STUDIES
from scripts.studies.plan import Study

pytestmark = pytest.mark.usefixtures("compiled_quickly", "compiled_once", "without_curves")

ROOT = Path(__file__).parents[1]
FRUITS = ("apple", "banana", "cherry", "date", "elder")
DIGITS = lenet.config.Config(
    dataset="mnist10k", classes="0,1,2,3,4", train_size=40, validation_size=40, batch_size=4,
    num_epochs=1,
)  # fmt: skip
PHOTOS = alexnet.config.Config(
    dataset="fruits", classes="apple,banana,cherry", validation_size=15, crop_size=16,
    widths="small", conv1_padding="symmetric", batch_size=3, num_epochs=1, ten_crop=False,
    num_workers=0, initialization="he", learning_rate=0.001,
)  # fmt: skip
NETWORKS = {"lenet": (lenet, DIGITS), "alexnet": (alexnet, PHOTOS)}
OTHERS = {"lenet": "5,6,7,8,9", "alexnet": "date,elder"}


@pytest.fixture(scope="module", autouse=True)
def sets(tmp_path_factory):
    """`fruits` of 20 pixels, in memory, and `streamed` of 80, with 30 training images of each."""
    folder, draw = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    for dataset, size in (("fruits", 20), ("larger", 24), ("streamed", 80)):
        splits = {
            split: [
                (draw.integers(0, 256, (size, size, 3), np.uint8), int(label))
                for label in draw.permutation(np.repeat(np.arange(5), count))
            ]
            for split, count in (("train", 30), ("test", 4))
        }
        shape = (size, size, 3)
        write_prepared(folder, dataset, "1.0.0", splits, shape, FRUITS, keep_order=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr(lenet.data, "steps_per_chunk", lambda batch_size: 1)


def train(net: str, workdir: Path, config, stop: bool = False) -> dict | None:
    """The result of a run to its end, or None of one that is stopped after its first chunk."""
    network, _ = NETWORKS[net]
    workdir.mkdir(exist_ok=True)
    write_config(config, workdir)
    task = network.train.make_task(config, workdir if saved_steps(workdir) else None)
    with contextlib.suppress(Interrupted):
        return fit(task, workdir, lambda: 15 if stop else None)


def state_of(net: str, workdir: Path, config):
    """The state of a run's newest checkpoint."""
    network, _ = NETWORKS[net]
    task = network.train.make_task(config, workdir)
    target = task.placement.abstract(lambda: task.initial_state(task.network.init()))
    with contextlib.closing(Checkpointer(workdir, read_only=True)) as checkpointer:
        return jax.device_get(checkpointer.restore_newest(target)[1])


@pytest.fixture(scope="module", params=["lenet", pytest.param("alexnet", marks=pytest.mark.slow)])
def source(request, tmp_path_factory, sets, compiled_quickly, compiled_once):
    """(network, folder of a run on some of its classes, config of one on others)."""
    net = request.param
    _, config = NETWORKS[net]
    workdir = tmp_path_factory.mktemp("sources") / net
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.writer.draw_curves", lambda *_: None)
        train(net, workdir, dataclasses.replace(config, seed=5))
    return net, workdir, dataclasses.replace(config, classes=OTHERS[net], init_from=str(workdir))


def same_bits(a, b) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: np.asarray(x).tobytes() == y.tobytes(), a, b))


# ---- some classes, some examples of each


def fruits(count: int = 40, names=FRUITS) -> Examples:
    labels = np.random.default_rng(1).integers(0, 5, count).astype(np.int32)
    images = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return Examples(images, labels, 5, "fruits", names)


@pytest.mark.parametrize("classes", ["cherry", "date,apple", " elder , banana,apple"])
def test_examples_of_some_classes_keep_their_order_and_get_new_labels(classes):
    everything, chosen = fruits(), [name.strip() for name in classes.split(",")]
    found = of_classes(everything, classes)
    expected = [
        (image, chosen.index(FRUITS[label]))
        for image, label in enumerate(everything.labels.tolist())
        if FRUITS[label] in chosen
    ]
    assert [*zip(found.images.ravel().tolist(), found.labels.tolist(), strict=True)] == expected
    assert found.class_names == tuple(chosen) and found.num_classes == len(chosen)
    assert of_classes(everything, "") is everything


def test_classes_without_names_go_by_number():
    found = of_classes(fruits(names=None), "4,1")
    assert found.class_names == ("4", "1") and set(found.labels.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("classes", "named"),
    [("apple,kiwi", "kiwi"), ("apple,apple", "twice"), ("0,1", "0, 1"), ("apple,", "no class")],
)
def test_classes_that_a_set_does_not_have_are_named(classes, named):
    with pytest.raises(UserError, match=named) as caught:
        of_classes(fruits(), classes)
    assert f"--classes={classes}" in str(caught.value) and str(caught.value).isprintable()
    with pytest.raises(UserError, match="no examples"):
        of_classes(fruits()[:0], "apple")


@pytest.mark.parametrize("count", [1, 3, 4])
def test_the_first_of_each_class_are_chosen_after_the_validation_split(count):
    everything, seen, expected = fruits(), [0] * 5, []
    for image, label in enumerate(everything.labels[:35].tolist()):
        seen[label] += 1
        if seen[label] <= count:
            expected.append(image)
    training, validation = hold_out(
        everything, train_size=35, validation_size=5, train_per_class=count
    )
    assert training.images.ravel().tolist() == expected
    assert validation.images.ravel().tolist() == [35, 36, 37, 38, 39]
    assert np.bincount(training.labels).tolist() == [count] * 5
    with pytest.raises(UserError, match="--train_per_class=30") as caught:
        first_of_each_class(everything, 30)
    assert "apple" in str(caught.value)


@pytest.mark.parametrize("settings", [dict(classes="apple,date"), dict(train_per_class=2)])
@pytest.mark.parametrize("dataset", ["streamed", "fake"])
def test_streamed_sets_are_refused_in_words(settings, dataset):
    config = dataclasses.replace(PHOTOS, **dict(classes="", dataset=dataset) | settings)
    for ask in (alexnet.train.make_task, alexnet.data.require_disjoint):
        with pytest.raises(UserError, match=next(iter(settings))) as caught:
            ask(config)
        assert "memory" in str(caught.value)


@pytest.mark.parametrize(
    ("train_size", "test_split", "per_class"),
    [(0, "train[100:130]", 0), (30, "train[40:80]", 0), (0, "train[30:140]", 7), (9, "test", 0)],
)
def test_records_of_chosen_classes_are_shared_as_often_as_they_are_in_both(
    train_size, test_split, per_class
):
    """Against sets of places."""
    config = dataclasses.replace(
        PHOTOS, train_size=train_size, test_split=test_split, train_per_class=per_class
    )
    labels = alexnet.data.open_split("fruits", "", "train").labels
    places = [place for place in range(150) if labels[place] < 3]
    training, validation = places[:-15][: train_size or None], set(places[-15:])
    if per_class:
        of_each = [[p for p in training if labels[p] == label][:per_class] for label in range(3)]
        training = itertools.chain(*of_each)
    first, last = map(int, test_split[6:-1].split(":")) if test_split != "test" else (0, 0)
    scored = {place for place in range(first, last) if labels[place] < 3}
    counts = [len(part & scored) for part in (set(training), validation)]
    found = alexnet.data.overlaps(config)
    assert [int(line.split()[0]) for line in found] == [count for count in counts if count]
    assert all(len(line) < 400 for line in found)


# ---- which layers learn


def layers(net: str, preset: str, *flags: str) -> dict:
    network = NETWORKS[net][0].network
    config = from_preset(NETWORKS[net][0].config.Config, preset, *flags)
    if net == "lenet":
        return jax.eval_shape(network.assemble(config).init)
    blank = Statistics(np.zeros((32, 32, 3), np.float32), np.eye(3))
    return jax.eval_shape(network.assemble(config, 10, blank).init)


@pytest.mark.parametrize(
    ("net", "preset", "conv", "head"),
    [
        ("lenet", "deck", "c1 c3 c5", "output"),
        ("lenet", "lush", "c1 s2 c3 s4 c5", "output"),
        ("alexnet", "small", "conv1 conv2 conv3 conv4 conv5", "fc8"),
        ("alexnet", "cifar13", "conv1 conv2 local3 local4", "fc10"),
    ],
)
def test_freeze_names_layers_by_their_kind_or_their_name(net, preset, conv, head):
    params = layers(net, preset)
    assert frozen_layers("none", params, head) == ()
    assert frozen_layers("conv", params, head) == tuple(conv.split())
    everything = frozen_layers("all_but_head", params, head)
    assert {*everything, head} == params.keys() and head not in everything
    assert frozen_layers(f"{head}, {everything[0]}", params, head) == (everything[0], head)
    for wrong in ("c9", "", f"{head},"):
        with pytest.raises(UserError, match="--freeze") as caught:
            frozen_layers(wrong, params, head)
        assert everything[0] in str(caught.value)
    with pytest.raises(UserError, match="no layer that learns"):
        frozen_layers(",".join(params), params, head)


def test_nothing_would_learn_before_codes_that_are_fixed():
    config = from_preset(lenet.config.Config, "paper", "--freeze=all_but_head")
    with pytest.raises(UserError, match="--freeze=all_but_head"):
        lenet.network.assemble(config)
    with pytest.raises(UserError, match="--head_rate"):
        from_preset(lenet.config.Config, "paper", "--head_rate=10")


class State(NamedTuple):
    step: Any
    params: Any
    opt_state: Any
    average: Any


OPTIMIZERS = {
    "lenet sgd": (lenet, dict(momentum=0.9)),
    "lenet adamw": (lenet, dict(optimizer="adamw", momentum=0.0)),
    "lenet sdlm": (lenet, dict(optimizer="sdlm", momentum=0.0)),
    "alexnet paper": (alexnet, dict(optimizer="paper")),
    "alexnet sgd": (alexnet, dict(optimizer="sgd")),
    "alexnet adamw": (alexnet, dict(optimizer="adamw", momentum=0.0)),
}


def steps_with(network_module, settings: dict, *, frozen=(), head_rate=1.0, factor=1.0):
    """The state after three updates by fixed gradients, and its first parameters."""
    own = dict(output="squashed", loss="mse", pooling="trainable")
    own = own if settings["optimizer"] == "sdlm" else {}
    decay = {} if own else dict(weight_decay=0.01)
    config = network_module.config.Config(
        learning_rate=0.1 * factor, head_rate=head_rate, average_decay=0.9, schedule="constant",
        **settings, **own, **decay,
    )  # fmt: skip
    network = lenet.network.assemble(lenet.config.Config())._replace(
        config=config, head="head", frozen=frozen
    )
    draw = np.random.default_rng(0)
    shapes = {"body": {"kernel": (3, 2), "bias": (2,)}, "head": {"kernel": (2, 4), "bias": (4,)}}

    def random():
        return jax.tree.map(
            lambda shape: draw.normal(size=shape).astype(np.float32),
            shapes,
            is_leaf=lambda leaf: isinstance(leaf, tuple),
        )

    params = random()
    params["body"]["kernel"][0] = -0.0
    tx = network_module.optimizer.build_optimizer(config, 5)
    state = State(jnp.int32(0), params, tx.init(network.learning(params)), params)
    for _ in range(3):
        state = State(**step.update(network, tx, state, network.learning(random())))
    return state, params


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_heads_rate_is_multiplied_and_nothing_else(name):
    """Against optimizers at one rate and at five times that rate, each for all layers."""
    module, settings = OPTIMIZERS[name]
    settings = dict(optimizer="sgd") | settings
    found, _ = steps_with(module, settings, head_rate=5.0)
    slow, _ = steps_with(module, settings)
    fast, _ = steps_with(module, settings, factor=5.0)
    for field in ("params", "average"):
        ours = getattr(found, field)
        assert same_bits(ours["body"], getattr(slow, field)["body"])
        for kind, leaf in getattr(fast, field)["head"].items():
            np.testing.assert_allclose(ours["head"][kind], leaf, rtol=1e-5, atol=1e-6)
    assert not np.allclose(fast.params["head"]["kernel"], slow.params["head"]["kernel"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_weights_keep_their_bits_and_have_no_memory(name):
    """Decay and averages too; -0.0 stays -0.0."""
    module, settings = OPTIMIZERS[name]
    settings = dict(optimizer="sgd") | settings
    found, params = steps_with(module, settings, frozen=("body",))
    free, _ = steps_with(module, settings)
    for tree in (found.params, found.average):
        assert same_bits(params["body"], jax.device_get(tree["body"]))
    assert "body" not in str(jax.tree_util.tree_structure(found.opt_state))
    if "adam" not in name and "sdlm" not in name:
        assert "body" in str(jax.tree_util.tree_structure(free.opt_state))


# ---- what is loaded


@pytest.mark.parametrize(
    ("names", "known", "num_outputs", "num_known", "expected"),
    [
        ("abc", "abc", 3, 3, [0, 1, 2]),
        ("cab", "abc", 3, 3, [2, 0, 1]),
        ("bx", "abc", 2, 3, [1, None]),
        ("xy", "ab", 2, 2, [None, None]),
        ("ab", "ab", 4, 3, [0, 1, 2, None]),
        (None, "ab", 2, 2, [0, 1]),
        ("ab", None, 2, 2, [0, 1]),
        ("ab", None, 2, 3, [None, None]),
    ],
)
def test_outputs_are_matched_by_the_names_of_their_classes(
    names, known, num_outputs, num_known, expected
):
    names, known = (text and tuple(text) for text in (names, known))
    assert matched(names, known, num_outputs, num_known) == expected


@pytest.mark.commands
def test_the_head_keeps_what_both_know_and_the_rest_is_new(source):
    net, workdir, config = source
    network, first = NETWORKS[net]
    names = {"lenet": "7,1,8,0,4", "alexnet": "date,banana,apple"}[net]
    task = network.train.make_task(dataclasses.replace(config, classes=names))
    params, about = task.given_params(jax.eval_shape(task.network.init))
    theirs, new = network.network.load(workdir), jax.device_get(jax.jit(task.network.init)())
    head, ours = task.network.head, names.split(",")
    assert about["init_from"] == str(workdir) and about["step"] == theirs.step
    assert set(about["loaded"]) == new.keys() and about["new"] == [head]
    assert about["known_classes"] == [name for name in ours if name in first.classes.split(",")]
    for place, name in enumerate(ours):
        known = name in about["known_classes"]
        for kind, leaf in params[head].items():
            number = theirs.class_names.index(name) if known else place
            expected = (theirs.params if known else new)[head][kind][..., number]
            np.testing.assert_array_equal(leaf[..., place], expected)
    del params[head]
    assert same_bits(params, {name: jax.device_get(theirs.params[name]) for name in params})
    text = "\n".join(table(about, task.network))
    assert str(workdir)[:20] in text and "new weights" in text and ours[0] in text


def test_a_table_shows_no_control_characters():
    about = {"init_from": "run", "step": 3, "loaded": ["f6"], "new": ["output"], "frozen": ["f6"]}
    about |= {"known_classes": [], "new_classes": ["\x1b[31mred[/]", "[bold]"]}
    network = lenet.network.assemble(dataclasses.replace(DIGITS, head_rate=10.0))
    text = "\n".join(table(about, network))
    assert "\x1b" not in text and "[bold]" in text and "10 times" in text
    assert table(None, network) == []


@pytest.mark.slow
@pytest.mark.parametrize("freeze", ["conv", "all_but_head"])
def test_a_frozen_run_resumes_to_the_bit_and_moves_nothing_that_is_frozen(source, freeze, tmp_path):
    """The source's folder is needed no more."""
    net, workdir, config = source
    shutil.copytree(workdir, tmp_path / "source")
    config = dataclasses.replace(
        config, init_from=str(tmp_path / "source"), freeze=freeze, head_rate=10.0, num_epochs=2,
        average_decay=0.9, weight_decay=0.01,
    )  # fmt: skip
    straight = train(net, tmp_path / "straight", config)
    train(net, tmp_path / "stopped", config, stop=True)
    shutil.rmtree(tmp_path / "source")
    stopped = train(net, tmp_path / "stopped", config)
    assert stopped["state_sha256"] == straight["state_sha256"]
    network, _ = NETWORKS[net]
    theirs = jax.device_get(network.network.load(workdir).params)
    state, about = state_of(net, tmp_path / "stopped", config), stopped["transfer"]
    assert about == straight["transfer"]
    head = {"lenet": "output", "alexnet": "fc8"}[net]
    assert about["new"] == [head] and about["new_classes"] == OTHERS[net].split(",")
    assert {*about["loaded"], head} == theirs.keys() and about["known_classes"] == []
    for layer in about["loaded"]:
        frozen = layer in about["frozen"]
        for tree in (state.params, state.average):
            assert same_bits(theirs[layer], tree[layer]) == frozen
    kept = str(jax.tree_util.tree_structure(state.opt_state))
    assert [name for name in theirs if f"'{name}'" in kept] == [
        name for name in theirs if name not in about["frozen"]
    ]
    again = network.network.load(tmp_path / "stopped")
    assert again.class_names == tuple(OTHERS[net].split(","))


@pytest.mark.slow
def test_images_are_prepared_as_those_of_the_source(tmp_path):
    train("alexnet", tmp_path / "source", PHOTOS)
    theirs = alexnet.network.load(tmp_path / "source").statistics
    config = dataclasses.replace(PHOTOS, classes="date,elder", init_from=str(tmp_path / "source"))
    train("alexnet", tmp_path / "run", config)
    assert same_bits(theirs, alexnet.network.load(tmp_path / "run").statistics)
    other = dataclasses.replace(config, init_from="")
    train("alexnet", tmp_path / "other", other)
    assert not same_bits(theirs, alexnet.network.load(tmp_path / "other").statistics)
    larger = dataclasses.replace(config, dataset="larger")
    with pytest.raises(UserError, match=r"20x20x3.*24x24x3"):
        alexnet.train.make_task(larger)
    task = alexnet.train.make_task(dataclasses.replace(larger, scaling="standardized"))
    state = jax.device_get(jax.jit(lambda: task.initial_state(task.network.init()))())
    assert state.statistics.mean_image.shape == (24, 24, 3)
    means = theirs.mean_image.mean((0, 1))
    np.testing.assert_allclose(state.statistics.mean_image[3, 5], means, rtol=1e-5)


def test_statistics_of_gray_images_are_not_for_color():
    gray = Statistics(np.ones((8, 8, 1), np.float32), np.eye(1, dtype=np.float32))
    assert fitted(gray, (8, 8, 1), "mean_image", "it") is gray
    with pytest.raises(UserError, match="8x8x1"):
        fitted(gray, (8, 8, 3), "standardized", "it")


@pytest.mark.commands
def test_other_settings_and_layers_are_told(source, tmp_path, capsys):
    net, workdir, config = source
    network, _ = NETWORKS[net]
    task = network.train.make_task(dataclasses.replace(config, activation="sigmoid"))
    task.given_params(jax.eval_shape(task.network.init))
    (line,) = capsys.readouterr().err.splitlines()
    assert str(workdir) in line and "activation" in line and "sigmoid" in line
    other = {"lenet": dict(pooling="trainable"), "alexnet": dict(widths="half_small")}[net]
    task = network.train.make_task(dataclasses.replace(config, **other))
    with pytest.raises(UserError, match="another model"):
        task.given_params(jax.eval_shape(task.network.init))


@pytest.mark.slow
def test_layers_may_be_frozen_as_they_were_drawn(tmp_path):
    config = dataclasses.replace(DIGITS, freeze="c1,c3")
    result = train("lenet", tmp_path / "run", config)
    new = lenet.train.make_task(config).network.init()
    params = jax.device_get(lenet.network.load(tmp_path / "run").params)
    assert [name for name in new if same_bits(new[name], params[name])] == ["c1", "c3"]
    assert result["transfer"]["loaded"] == [] and result["transfer"]["frozen"] == ["c1", "c3"]


@pytest.mark.slow
def test_the_second_order_method_leaves_frozen_layers_alone(tmp_path):
    """Its first update of the others is the one that it makes without --freeze."""
    config = from_preset(
        lenet.config.Config, "lush", "--dataset=mnist10k", "--train_size=4", "--validation_size=4",
        "--track=validation", "--num_epochs=1", "--curvature_examples=4",
    )  # fmt: skip
    frozen = dataclasses.replace(config, freeze="conv")
    for name, each in (("free", config), ("frozen", frozen)):
        train("lenet", tmp_path / name, each, stop=True)
    new = jax.device_get(jax.jit(lenet.train.make_task(config).network.init)())
    free, found = (
        state_of("lenet", tmp_path / name, each).params
        for name, each in (("free", config), ("frozen", frozen))
    )
    for layer in new:
        expected = free if layer == "output" else new
        assert same_bits(expected[layer], found[layer]), layer
        assert not same_bits(free[layer], new[layer]), layer


# ---- scored, and from the command line


@pytest.mark.commands
def test_a_run_on_some_classes_is_scored_on_these(source, score, sets):
    net, workdir, _ = source
    _, config = NETWORKS[net]
    names, dataset = config.classes.split(","), config.dataset
    code, output, errors = score(workdir, "--json")
    assert (code, errors) == (0, "")
    found = json.loads(output)
    labels = of_classes(alexnet.data.open_split(dataset, "", "test"), config.classes).labels
    assert found["class_names"] == names and found["num_examples"] == len(labels)
    assert np.sum(found["confusion_matrix"], 1).tolist() == np.bincount(labels).tolist()
    turned = f"--classes={names[2]},{names[0]}"
    part = json.loads(score(workdir, turned, "--json")[1])
    rows = np.array(found["confusion_matrix"])
    rows[[row for row in range(len(names)) if row not in (0, 2)]] = 0
    assert part["confusion_matrix"] == rows.tolist()
    code, _, errors = score(workdir, f"--classes={OTHERS[net]}")
    assert code == 65 and OTHERS[net].split(",")[0] in errors
    code, _, errors = score(workdir, "--classes=no_such")
    assert code == 2 and "no_such" in errors


def command(net: str, *flags: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"{net}.train", *flags],
        cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip


TINY = (
    *("--preset=deck", "--dataset=mnist10k", "--train_size=256", "--validation_size=100"),
    *("--num_epochs=1", "--batch_size=64"),
)


@pytest.mark.slow
def test_the_command_says_what_is_loaded_frozen_and_new(tmp_path):
    first = command("lenet", *TINY, "--classes=0,1,2,3,4", "--workdir=first", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "transfer" not in json.loads((tmp_path / "first" / "result.json").read_text())
    again = ("--classes=5,6,7,8,9", "--train_per_class=13", "--init_from=first", "--head_rate=10")
    done = command(
        "lenet", *TINY, "--train_size=0", *again, "--freeze=conv", "--workdir=second", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("│")[1:-1] for line in done.stderr.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["c1", "first, step 4", "no"],
        ["c3", "first, step 4", "no"],
        ["c5", "first, step 4", "no"],
        ["f6", "first, step 4", "yes"],
        ["output", "new weights (5, 6, 7, 8, 9)", "at 10 times the rate"],
    ]
    result = json.loads((tmp_path / "second" / "result.json").read_text())
    assert result["num_train_examples"] == 65
    assert result["class_names"] == ["5", "6", "7", "8", "9"]
    assert result["transfer"] == {
        "init_from": "first", "step": 4, "loaded": ["c1", "c3", "c5", "f6"], "new": ["output"],
        "frozen": ["c1", "c3", "c5"], "known_classes": [],
        "new_classes": ["5", "6", "7", "8", "9"],
    }  # fmt: skip
    for wrong in ("--freeze=c2", "--freeze=c1,c3,c5,f6,output", "--classes=5,ten"):
        bad = command("lenet", *TINY, *again, wrong, "--workdir=third", cwd=tmp_path)
        assert bad.returncode == 2 and wrong in bad.stderr.splitlines()[-1], bad.stderr
        assert "Traceback" not in bad.stderr and not saved_steps(tmp_path / "third")


# ---- studies whose arms start from another run


STUDY = Study(
    "from_digits",
    "Does it help?",
    (*TINY, "--classes=5,6,7,8,9"),
    {"scratch": (), "transfer": ("--init_from={pretrained}", "--freeze=c1")},
    pretraining=("--classes=0,1,2,3,4",),
    pairs=2,
)


def test_arms_start_from_the_run_of_their_seed(tmp_path):
    plan.require_sound(STUDY)
    runs = plan.runs(STUDY, tmp_path, {})
    first = plan.pretraining_runs(STUDY, runs, tmp_path)
    assert [run.seed for run in first] == [10, 11]
    for run, source in zip(runs[1::2], first, strict=True):
        config = plan.config(STUDY, run)
        assert config.init_from == str(source.workdir) and config.freeze == "c1"
    ours, theirs = plan.config(STUDY, runs[0]), plan.config(STUDY, first[0])
    assert (ours.init_from, ours.classes) == ("", "5,6,7,8,9")
    assert theirs.classes == "0,1,2,3,4" and theirs.seed == ours.seed == 10
    assert plan.pretraining_runs(STUDY, runs[:1], tmp_path) == []
    chosen = STUDY._replace(choose={"transfer": "learning_rate=0.1,0.2"})
    tried = plan.choice_runs(chosen, "transfer", ["0.1", "0.2"], tmp_path)
    assert [run.seed for run in plan.pretraining_runs(chosen, tried, tmp_path)] == [0, 1, 2]
    path = tmp_path / "study.json"
    path.write_text(to_text(plan.to_json(STUDY)))
    plan.require_same(STUDY, plan.from_json(path), tmp_path)
    with pytest.raises(UserError, match="pretraining"):
        plan.require_same(STUDY._replace(pretraining=()), plan.from_json(path), tmp_path)


def test_runs_in_results_count_whichever_folder_their_pretraining_had(tmp_path):
    """As long as the study is the same."""
    study = STUDIES["transfer_lenet"]
    choice = conduct.choice_made(study, tmp_path, RESULTS)
    _, runs = conduct.final_runs(study, tmp_path, choice)
    assert list(outcome.read_all(study, runs, RESULTS)) == runs
    other = study._replace(pretraining=(*study.pretraining, "--num_epochs=1"))
    found = outcome.read_all(other, runs, RESULTS)
    assert {run.arm for run in found} == {"scratch"} and len(found) == study.pairs


@pytest.mark.parametrize(
    "changes",
    [
        dict(pretraining=()),
        dict(arms={"scratch": (), "frozen": ("--freeze=c1",)}),
        dict(pretraining=("--no_such=1",)),
        dict(arms=STUDY.arms | {"other": ("--classes=1,2",)}),
    ],
)
def test_pretraining_that_nothing_starts_from_and_the_reverse_are_refused(changes):
    with pytest.raises(UserError):
        plan.require_sound(STUDY._replace(**changes))


@pytest.mark.slow
def test_a_study_trains_what_its_arms_start_from_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workdir, kept = Path("study"), tmp_path / "kept"
    workdir.mkdir()
    options = dict(jobs=2, threads=1, add=False)
    conduct.conduct(STUDY, workdir, kept, **options)
    found = json.loads((workdir / "study.json").read_text())
    assert found["missing"] == [] and found["comparisons"][0]["pairs"] == 2
    for seed in (10, 11):
        result = json.loads((workdir / "transfer" / f"seed{seed}" / "result.json").read_text())
        source = workdir / "pretrained" / f"seed{seed}"
        assert result["transfer"]["init_from"] == str(source)
        theirs, ours = (
            jax.device_get(lenet.network.load(folder).params["c1"])
            for folder in (source, workdir / "transfer" / f"seed{seed}")
        )
        assert same_bits(theirs, ours)
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("*/*/result.json")}
    assert len(before) == 6
    conduct.conduct(STUDY, workdir, kept, **options)
    assert before == {path: path.stat().st_mtime_ns for path in before}
