"""A run loaded as a network that predicts: tests/golden holds runs that older versions wrote."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import alexnet.model
import alexnet.network
import lenet.codes
import lenet.model
import lenet.network
from alexnet.image_statistics import Statistics
from common.errors import StorageError, UserError
from lenet.config import Config
from lenet.data import load_splits

pytestmark = pytest.mark.usefixtures("compiled_quickly")

GOLDEN = Path(__file__).parent / "golden"
RUNS = {
    "lenet_deck": (lenet, 64, (28, 28, 1)),
    "lenet_paper": (lenet, 4096, (28, 28, 1)),
    "alexnet_cifar18": (alexnet, 9, (32, 32, 3)),
}


@pytest.fixture(scope="module", params=RUNS)
def trained(request, compiled_quickly):
    """A golden run: its name, the loaded network, and 257 images as the files have them."""
    module, step, shape = RUNS[request.param]
    net = module.load(GOLDEN / request.param)
    assert net.step == step
    images = np.random.default_rng(0).integers(0, 256, (257, *shape), np.uint8)
    if module is lenet:
        images[:20] = load_splits(Config(dataset="mnist10k"))[2].images[:20]
    return request.param, net, images


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


# ---- what is loaded


@pytest.mark.commands
def test_importing_a_package_is_cheap():
    code = "import sys, lenet, alexnet; lenet.load, alexnet.load; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize("module", [lenet, alexnet], ids=["lenet", "alexnet"])
def test_what_is_no_run_of_the_network_is_refused(module, tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        module.load(tmp_path)
    other = {lenet: '{"lrn": "none"}', alexnet: '{"c3": "table"}'}[module]
    values = ['{"seed": "x"}', '{"batch_size": 0}', '{"data_dir": null}', '{"flagfile": "x"}']
    for text in (other, "{", "[]", *values):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"config\.json"):
            module.load(str(tmp_path))
    config = dataclasses.asdict(module.network.Config())
    (tmp_path / "config.json").write_text(json.dumps(config))
    for step in (None, "newest", 5):
        with pytest.raises(UserError, match=str(tmp_path)) as caught:
            module.load(tmp_path, step)
        assert caught.value.exit_code == 2


@pytest.mark.commands
@pytest.mark.parametrize("name", RUNS)
def test_load_takes_a_path_as_str_and_a_step(name):
    module, step, _ = RUNS[name]
    for run in (module.load(str(GOLDEN / name)), module.load(GOLDEN / name, step)):
        assert run.step == step and run.config == module.load(GOLDEN / name, "newest").config
        assert run.config.seed == 3 and run.class_names is None  # none were saved then
        assert {"kernel", "bias"} <= next(iter(run.params.values())).keys()
    for wrong in (step + 1, 0, "nonsense"):
        with pytest.raises(UserError, match=str(wrong)) as caught:
            module.load(GOLDEN / name, wrong)
        assert str(step) in str(caught.value)
    with pytest.raises(UserError, match="no best checkpoint"):  # none was kept then
        module.load(GOLDEN / name, "best")
    other = alexnet if module is lenet else lenet
    with pytest.raises(UserError, match=r"config\.json"):
        other.load(GOLDEN / name)


def files(workdir: Path) -> dict:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in workdir.rglob("*")}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_newest_checkpoint_means_the_one_before_and_nothing_is_changed(tmp_path, capfd):
    workdir = tmp_path / "run"
    shutil.copytree(GOLDEN / "lenet_deck", workdir)
    intact = lenet.load(workdir)
    # The same state as that of another step: the description names its own.
    shutil.copytree(workdir / "checkpoints" / "64", workdir / "checkpoints" / "96")
    before = files(workdir)
    run = lenet.load(workdir)
    assert run.step == 64 and files(workdir) == before
    warning = capfd.readouterr().err
    assert warning.count("\n") == 1 and "96" in warning and "warning" in warning
    jax.tree.map(np.testing.assert_array_equal, run.params, intact.params)
    with pytest.raises(StorageError) as caught:  # asked for by name, it is not replaced
        lenet.load(workdir, 96)
    assert caught.value.exit_code == 74 and files(workdir) == before


def test_weights_are_read_without_the_optimizer(tmp_path):
    """The state of the optimizer may be as it likes: it is not read."""
    workdir = tmp_path / "run"
    shutil.copytree(GOLDEN / "lenet_deck", workdir)
    config = json.loads((workdir / "config.json").read_text())
    config |= {"optimizer": "adamw", "momentum": 0.0, "schedule": "constant", "num_epochs": 77}
    (workdir / "config.json").write_text(json.dumps(config))
    ours, theirs = lenet.load(workdir).params, lenet.load(GOLDEN / "lenet_deck").params
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_weights_that_do_not_fit_the_config_are_named(tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(GOLDEN / "lenet_deck", workdir)
    config = json.loads((workdir / "config.json").read_text()) | {"pooling": "trainable"}
    (workdir / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="s2"):
        lenet.load(workdir)


def test_class_names_are_those_of_the_set():
    assert lenet.network.class_names({"class_names": ["0", "1"]}) == ("0", "1")
    assert lenet.network.class_names({"class_names": None}) is None
    assert lenet.network.class_names({}) is None


# ---- what it predicts


@pytest.mark.commands
def test_any_number_of_images_in_any_batches(trained):
    _, net, images = trained
    classes = net.network.num_classes
    assert net.predict(images[:0]).shape == (0, classes)
    everything = net.predict(images)
    assert everything.shape == (257, classes) and everything.dtype == np.float32
    np.testing.assert_allclose(everything.sum(-1), 1, rtol=1e-5)
    for one in (0, 256):
        np.testing.assert_allclose(
            net.predict(images[one : one + 1])[0], everything[one], 1e-3, 1e-6
        )
    if images.shape[-1] == 1:
        np.testing.assert_array_equal(net.predict(images[..., 0]), everything)


@pytest.mark.commands
def test_probabilities_are_the_softmax_of_the_logits_of_prepared_images(trained):
    """With RBF outputs of minus the distances, which the logits are."""
    name, net, images = trained
    network, few = net.network, images[:20]
    forward = jax.jit(lambda params, images: network.logits(params, network.prepare(images)))
    logits = np.asarray(forward(net.params, few), np.float64)
    np.testing.assert_allclose(net.predict(few), softmax(logits), rtol=1e-4, atol=1e-7)
    if name == "lenet_paper":
        assert logits.max() <= 0  # squared distances from the codes
        f6 = np.asarray(net.activations(few)["f6"], np.float64)
        codes = lenet.codes.digit_codes()
        distances = ((f6[:, None] - np.asarray(codes, np.float64)) ** 2).sum(-1)
        np.testing.assert_allclose(net.predict(few), softmax(-distances), rtol=1e-3, atol=1e-6)


@pytest.mark.commands
def test_activations_are_the_layers_of_the_table(trained):
    name, net, images = trained
    model, few = net.network.bind(net.params), images[:3]
    table = (
        lenet.model.layer_table(model)
        if name.startswith("lenet")
        else alexnet.model.layer_table(model, net.config.crop_size)
    )
    found = net.activations(few)
    assert list(found) == [row["name"] for row in table]
    for row in table:
        values = found[row["name"]]
        assert values.shape == (3, *row["output"])  # (B, H, W, maps) or (B, units)
        assert values.dtype == np.float32 and np.isfinite(values).all()
    last = found[table[-1]["name"]].astype(np.float64)
    np.testing.assert_allclose(softmax(last), net.predict(few), rtol=1e-3, atol=1e-6)
    assert all(len(values) == 0 for values in net.activations(few[:0]).values())


@pytest.mark.parametrize("name", RUNS)
def test_images_that_do_not_fit_are_refused_before_anything_is_compiled(name, monkeypatch):
    module, _, shape = RUNS[name]
    net = module.load(GOLDEN / name)
    monkeypatch.setattr("common.network._predict", None)
    monkeypatch.setattr("common.network._activations", None)
    height, width, channels = shape
    for wrong in (
        np.zeros((2, *shape), np.float32),
        np.zeros((2, *shape), np.int32),
        np.zeros((2, height, width - 1, channels), np.uint8),
        np.zeros((2, height, width, channels + 1), np.uint8),
        np.zeros(shape[:2], np.uint8),
        np.zeros((2, 2, *shape), np.uint8),
        np.zeros((2, channels, height, width), np.uint8),
    ):
        for ask in (net.predict, net.activations):
            with pytest.raises(ValueError, match="uint8"):
                ask(wrong)


def test_a_network_counts_its_parameters():
    digits = lenet.network.assemble(lenet.network.Config())
    assert digits.num_parameters == 60_806 and digits.image_shapes == ((28, 28, 1), (32, 32, 1))
    blank = Statistics(np.zeros((256, 256, 3), np.float32), np.eye(3))
    photos = alexnet.network.assemble(alexnet.network.Config(), 1000, blank)
    assert photos.num_parameters == 62_378_344 and photos.image_shapes == ((256, 256, 3),)
