"""The benchmark: PyTorch's networks and updates are ours, the ratios are right, and every suite
gives its rows. No timing is asserted.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import lenet.config
from alexnet.lrn import local_response_normalization
from common import conv, launch, parallel
from common.errors import UserError
from lenet.connections import C3_TABLE, c3_mask
from lenet.data import DIGITS
from scripts.benchmark import __main__ as benchmark
from scripts.benchmark import alexnet as alexnet_suites
from scripts.benchmark import lenet as lenet_suites
from scripts.benchmark import ops, sets, suites, timing
from scripts.benchmark.measure import Case, gain, measure
from scripts.benchmark.training import (
    AlexNetTraining,
    LeNetTraining,
    embedded_digits,
    lenet_operations,
)
from scripts.compare_with_torch import difference
from scripts.prepare.encode import encode_jpeg
from scripts.report.results import kept_rows

ROOT = Path(__file__).parents[1]
# how programs are compiled where only their rows count
QUICKLY = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
SMALLEST = timing.Setting(True, "", Path())
pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture(scope="module")
def peers(torch):
    torch.manual_seed(0)
    return timing.torch_peers()


def tiers(names: str, first, *others):
    """Parametrizes: the first case is a slow test, the others are nightly ones."""
    cases = [pytest.param(*first, marks=pytest.mark.slow)]
    cases += [pytest.param(*case, marks=pytest.mark.nightly) for case in others]
    return pytest.mark.parametrize(names, cases)


# ---- PyTorch's networks


@tiers("pooling", ["average"], ["max"])
def test_pytorchs_lenet_is_ours(peers, torch, pooling):
    activation = "tanh" if pooling == "average" else "relu"
    config = lenet.config.Config(pooling=pooling, activation=activation)
    network = LeNetTraining(config, embedded_digits(), 1).network()
    params = network.init()
    theirs = lenet_suites.trainers(SMALLEST, False, config)["eager"].model
    peers.copy_weights(theirs, params)
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), np.uint8)
    with torch.no_grad():
        logits = theirs(peers.digits(torch.from_numpy(images))).numpy()
    ours = jax.jit(network.logits)(params, network.prepare(images))
    assert difference(ours, logits) < 1e-5


@tiers(
    "name, size",
    ("small", 28),
    *(("cifar18", 24), ("deck", 67), ("paper", 64), ("small", 32), ("cifar13", 24)),
)
def test_pytorchs_alexnets_are_ours(peers, torch, name, size):
    """At sizes where a pool that rounds differently would show: 28 -> 14 -> 7 -> 3 pixels, after
    the large conv1 15 -> 7.
    """
    changes = ["--batch_size=2", f"--crop_size={size}", "--dropout=0"]
    changes += [] if "cifar" in name else ["--initialization=he"]
    training = AlexNetTraining(name, 10, *changes)
    network, params = training.network, training.state.params
    model, *_ = alexnet_suites.theirs(name, training)
    theirs = model().eval()
    peers.copy_weights(theirs, params)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(w.numel() for w in theirs.parameters()) == count
    images = 50 * np.random.default_rng(0).standard_normal((2, size, size, 3), np.float32)
    with torch.no_grad():
        logits = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert difference(jax.jit(network.logits)(params, images), logits) < 1e-4


@pytest.mark.slow
def test_pytorchs_networks_have_all_weights(peers):
    """At full size: as many as the lecture deck, the paper and LeNet-5 with C3's masked ones."""

    def count(model):
        return sum(w.numel() for w in model.parameters())

    assert count(peers.alexnet("deck", 227)) == 62_378_344
    assert count(peers.alexnet("paper", 224)) == 60_965_224
    assert count(peers.lenet(c3_mask(C3_TABLE))) == 60_806 + 25 * 6 * 16 - 1500


# ---- PyTorch's updates

RACE = dict(activation="relu", pooling="max", optimizer="adamw", momentum=0.0, learning_rate=0.01)


@tiers("form, settings", ("channels-last", RACE), ("channels-last", {}), ("eager", {}))
def test_lenets_updates_are_the_same(peers, form, settings):
    """Three steps of the deck's SGD, or of time_to_accuracy's Adam."""
    config = lenet.config.Config(batch_size=16, schedule="constant", **settings)
    training = LeNetTraining(config, embedded_digits(), 3)
    trainer = lenet_suites.trainers(SMALLEST, False, config)[form]
    trainer.restart(training.state.params)
    for batch in zip(*peers.tensors(training.chunk(0)), strict=True):
        trainer.step(*batch)
    training.run()
    assert_same_weights(training.state.params, trainer.model)


@tiers("name", ["cifar18"], ["cifar13"], ["small"])
def test_alexnets_updates_are_the_same(peers, name):
    """Two steps on the center crop without dropout: every layer's rate and decay, biases too."""
    changes = ["--batch_size=4", "--augmentation=none", "--dropout=0"]
    changes += ["--pad=0"] * (name == "small")
    training = AlexNetTraining(name, 10, *changes)
    model, crops, optimizer, batch = alexnet_suites.theirs(name, training)
    trainer = peers.Trainer(model(), optimizer, peers.FORMS["channels-last"], augment=crops.center)
    trainer.model.eval()  # no dropout
    trainer.restart(training.state.params)
    for _ in range(2):
        trainer.step(*batch)
        training.run()
    assert_same_weights(training.state.params, trainer.model)


def assert_same_weights(params, model):
    for name, arrays in params.items():
        layer = getattr(model, name)
        bias = layer.bias.detach().numpy().reshape(np.shape(arrays["bias"]))
        tolerance = dict(rtol=2e-3, atol=2e-5 * np.abs(bias).max())
        np.testing.assert_allclose(arrays["bias"], bias, **tolerance, err_msg=name)
        norm = np.linalg.norm(layer.weight.detach().numpy())
        assert np.linalg.norm(arrays["kernel"]) == pytest.approx(norm, rel=1e-4), name


@tiers("side, crop", (20, 8), (80, 72))  # all at once, and one by one
def test_random_crops_are_cut_from_the_image(peers, torch, side, crop):
    """With pixel numbers as the image and mean 0, a crop is a window of it or its mirror image."""
    image = np.arange(side * side, dtype=np.float32).reshape(side, side) % 256
    images = torch.from_numpy(image.astype(np.uint8)[None, :, :, None].repeat(3, 3).repeat(64, 0))
    mean = np.zeros((side, side, 3), np.float32)
    crops = peers.Crops(mean, crop).random(images).numpy()[:, 0]
    windows = np.lib.stride_tricks.sliding_window_view(image, (crop, crop))
    windows = windows.reshape(-1, crop, crop)

    def is_window(cut):
        return (windows == cut).all(axis=(1, 2)).any()

    mirrored = [is_window(cut[:, ::-1]) for cut in crops]
    assert [not is_window(cut) for cut in crops] == mirrored and 10 < sum(mirrored) < 54
    assert len(np.unique(crops[:, 0, 0])) > 10


@pytest.mark.nightly
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
)
def test_compiled_forms_do_the_same(peers, torch):
    digits, mask = embedded_digits(), c3_mask(C3_TABLE)
    batch = peers.tensors({"image": digits.images[:8], "label": digits.labels[:8]})
    params = LeNetTraining(lenet.config.Config(), digits, 1).state.params
    weights, scores = [], []
    for form in (peers.FORMS["eager"], peers.FORMS["compiled"]):
        trainer = peers.Trainer(peers.lenet(mask), peers.sgd(0.1), form, prepare=peers.digits)
        trainer.restart(params)
        try:
            trainer.step(*batch)
        except torch._inductor.exc.InductorError as error:
            pytest.skip(f"no compiler: {error}")
        weights.append(trainer.model.c1.weight.detach().numpy().copy())
        scores.append([float(x) for x in peers.scorer(trainer.model, form, peers.digits)(*batch)])
    np.testing.assert_allclose(*weights, atol=1e-6)
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["masked C3", "LRN", "max pooling"])
def test_pytorchs_operations_are_ours(peers, torch, what):
    """Values and gradients, for a random cotangent. `axes` of each array, outputs last: those of
    ours in the order of PyTorch's.
    """
    random = np.random.default_rng(0)
    if what == "masked C3":
        mask = c3_mask(C3_TABLE)
        ours, theirs = conv.masked(conv.batch_last_convolution(), mask), peers.convolution(mask)
        shapes, axes = [(14, 6, 14, 2), (5, 5, 6, 16)], [(3, 1, 0, 2), (3, 2, 0, 1), (3, 1, 0, 2)]
    else:
        ours, theirs = local_response_normalization, peers.Across()
        if what == "max pooling":
            ours, theirs = ops.max_pool, peers.nn.MaxPool2d(3, 2)
        shapes, axes = [(2, 11, 11, 16)], [(0, 3, 1, 2)] * 2
    arrays = [random.standard_normal(shape, np.float32) for shape in shapes]
    cotangent = ops.cotangent(ours, *arrays)
    outputs, gradients = jax.jit(ops.with_gradients(ours))(cotangent, *arrays)

    *inputs, their_cotangent = (
        torch.tensor(np.asarray(array).transpose(order), requires_grad=True)
        for array, order in zip([*arrays, cotangent], axes, strict=True)
    )
    their_outputs = theirs(*inputs)
    found = [*torch.autograd.grad(their_outputs, inputs, their_cotangent), their_outputs.detach()]
    for mine, order, their in zip([*gradients, outputs], axes, found, strict=True):
        assert difference(np.asarray(mine).transpose(order), their.numpy()) < 1e-5


# ---- the numbers


def numbers(*values: float):
    """A measurement that gives these one after the other."""
    found = iter(values)
    return lambda: (next(found),)


def test_ratios_are_the_median_of_pairs(monkeypatch):
    """Computed by hand: the machine slows down to half, but both sides do, so not the ratio."""
    monkeypatch.setattr("scripts.benchmark.measure.WARM_UP_S", 0)
    ours, theirs = numbers(9, 30.0, 20.0, 10.0), numbers(9, 9, 10.0, 8.0, 5.0)  # 9: the warm-up
    (row,) = measure(Case((("a", "images/s"),), ours, {"eager": theirs}, "words", (40.0,)), 3)
    assert row == {
        "name": "a",
        "unit": "images/s",
        "ours": 20.0,
        "ours_range": [10.0, 30.0],
        "peer": 8.0,
        "peer_range": [5.0, 10.0],
        "peer_form": "eager",
        "peer_forms": {},
        "ratio": 2.5,  # of 3, 2.5 and 2
        "limit": 40.0,
        "share_of_limit": 0.5,
        "rounds": 3,
        "contains": "words",
    }
    assert gain(2.0, 6.0, "ms") == 3.0 == gain(6.0, 2.0, "batches/s")


def test_the_fastest_form_of_pytorch_takes_part(monkeypatch):
    monkeypatch.setattr("scripts.benchmark.measure.WARM_UP_S", 0)

    def failing():
        raise RuntimeError("no compiler\nand a page of text")

    peers = {"eager": lambda: (5.0, 1.0), "channels-last": lambda: (3.0, 2.0), "compiled": failing}
    case = Case((("a", "s"), ("b", "MB")), lambda: (6.0, 4.0), peers, "words", (None, 1.0))
    rows, why = measure(case, 2), "does not run here: no compiler"
    assert [row["peer_form"] for row in rows] == ["channels-last"] * 2
    assert [row["ratio"] for row in rows] == [0.5, 0.5]
    assert [row["share_of_limit"] for row in rows] == [None, 0.25]
    assert rows[0]["peer_forms"] == {"eager": 5.0, "channels-last": 3.0, "compiled": why}
    assert rows[1]["peer_forms"] == {"eager": 1.0, "channels-last": 2.0, "compiled": why}

    with pytest.raises(RuntimeError, match="no compiler"):  # of another form, this is a bug
        measure(case._replace(peers={"eager": failing}), 1)
    (row, _) = measure(case._replace(peers={}, no_peer="a part of ours"), 1)
    assert row["peer"] == "a part of ours" and row["ratio"] is None and "peer_form" not in row


def test_a_form_is_judged_by_the_best_of_three(monkeypatch):
    """After the first. By single measurements `noisy` would lose."""
    monkeypatch.setattr("scripts.benchmark.measure.WARM_UP_S", 0)
    noisy, steady = numbers(9.0, 7.0, 2.0, 6.0, 9.0, 3.0), numbers(9.0, 5.0, 5.0, 5.0)
    case = Case((("a", "s"),), lambda: (6.0,), {"noisy": noisy, "steady": steady}, "words")
    (row,) = measure(case, 1)
    assert row["peer_forms"] == {"noisy": 2.0, "steady": 5.0}
    assert row["peer_form"] == "noisy" and row["ratio"] == 0.5


def test_work_is_repeated_for_a_while_after_a_warm_up(monkeypatch):
    """On a clock of whole seconds: each run takes one, the first ten."""
    now, took = [0.0], itertools.chain([10.0], itertools.repeat(1.0))

    def run():
        now[0] += next(took)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing, "MIN_S", 4.0)
    assert timing.timed(timing.Setting(False, "", Path()), run)() == 1.0 and now[0] == 14.0
    assert timing.span(lambda: 6.0, 1e-3, 2)() == (3000.0,)
    assert timing.rate(lambda: 0.5, 8)() == (16.0,)


@pytest.mark.slow
def test_operations_of_a_step():
    """Two per multiply-add forward; backward twice as many, less conv1's gradient of the image."""
    multiply_adds, config = 784 * 150 + 150_000 + 48_000 + 10_080 + 840, lenet.config.Config()
    assert lenet_operations(config, training=False) == 2 * multiply_adds
    assert lenet_operations(config, training=True) == 2 * (3 * multiply_adds - 784 * 150)
    training = AlexNetTraining("cifar18", 10, "--batch_size=1")
    multiply_adds = 576 * 32 * 75 + 144 * 32 * 800 + 36 * 64 * 800 + 576 * 10
    assert training.operations(training=False) == 2 * multiply_adds


def test_noise_is_as_large_as_a_photo():
    sizes = [len(encode_jpeg(sets.noise_image(seed))) for seed in range(8)]
    assert 28_000 < np.mean(sizes) < 36_000


# ---- the command


@pytest.mark.commands
def test_a_suite_has_a_process_of_its_own():
    assert suites.in_fresh_process(os.getpid) != os.getpid()
    with pytest.raises(UserError, match="--mesh"):  # a mistake is one line from there too
        suites.in_fresh_process(parallel.mesh_shape, "x")
    with pytest.raises(UserError, match="killed"):
        suites.in_fresh_process(signal.raise_signal, signal.SIGKILL)


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("--suite=lenet", "lenet_train"),
        ("--json={}/none/b.json", "--json"),
        ("--json={}", "--json"),
        ("--data_dir={}/none", "--data_dir"),
        ("--rounds=0", "rounds"),
    ],
)
def test_mistakes_get_one_line(tmp_path, capsys, argument, named):
    argv = ["benchmark", argument.format(tmp_path)]
    assert launch.run_tool(benchmark.define_flags, benchmark.main, argv) == 2
    captured = capsys.readouterr()
    assert named in captured.err and len(captured.err.splitlines()) == 1 and not captured.out


def test_rows_of_other_suites_stay_and_other_machines_are_refused(tmp_path):
    source = {
        "machine": {"processor": "A", "cores": 2, "accelerator": "cpu"},
        "smallest": False,
        "versions": {"jax": "1"},
    }
    path = tmp_path / "benchmark.json"

    def kept(measured: str, **other) -> list[dict]:
        return kept_rows(path, "benchmark", "suite", [measured], source | other)

    path.write_text(json.dumps(source | {"kind": "benchmark", "rows": [{"suite": "ops"}]}))
    assert kept("growth") == [{"suite": "ops"}] and kept("ops") == []
    for other, named in (
        ({"machine": source["machine"] | {"cores": 4}}, "cores"),
        ({"smallest": True}, "smallest"),
        ({"versions": {"jax": "2"}}, "jax"),
    ):
        with pytest.raises(UserError, match=f"{path}.*{named} "):
            kept("growth", **other)
        assert kept("ops", **other) == []  # nothing is mixed
    others = '{"kind": "faults"}', '{"kind": "benchmark"}', "[" * 10_000
    several = json.dumps(source | {"kind": "benchmark", "rows": [1]})
    for content in ("{", "[]", several, *others):
        path.write_text(content)
        with pytest.raises(UserError, match=str(path)):
            kept("growth")


@pytest.mark.commands
def test_pytorchs_processes_do_not_import_jax(peers):
    """Whose start and memory are compared with ours."""
    code = "import sys, common.records\nfrom scripts.benchmark import torch_peers\n"
    code += f"torch_peers.first_step({str(DIGITS)!r})\nsys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "first step\n"), done.stderr


@pytest.mark.nightly
def test_every_suite_gives_its_rows(peers, tmp_path):
    path = tmp_path / "benchmark.json"
    command = [sys.executable, "-m", "scripts.benchmark", "--smallest", f"--json={path}"]
    command += [f"--suite={','.join(suites.SUITES)}"]
    done = subprocess.run(command, cwd=ROOT, env=QUICKLY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert result["kind"] == "benchmark"
    assert {row["command"].split(" --")[0] for row in result["rows"]} == {
        "python -m scripts.benchmark"
    }
    assert result["machine"].keys() >= {"processor", "cores", "matmul_gflop_per_s", "copy_gb_per_s"}
    names = {
        suite: [row["name"] for row in rows]
        for suite, rows in itertools.groupby(result["rows"], lambda row: row["suite"])
    }
    both = [f"{name}, batch {size}" for name in ("deck", "paper") for size in (1, 32)]
    both += ["deck, batch 32, bfloat16"] * ("deck, batch 32, bfloat16" in names["alexnet_train"])
    arrays = ("masked C3, 2x14x14x6", "dense C3, 2x14x14x6", "LRN, 2x55x55x96")
    arrays += ("max pooling 3/2, 2x33x33x32", "max pooling 3/2, 2x55x55x96")
    passes, readers = ("forward", "forward and backward"), ("1 thread", "2 workers")
    assert {suite: names.pop(suite) for suite in list(names)[:5]} == {
        "lenet_train": [f"deck, batch {size}" for size in (1, 32, 128, 1024)],
        "lenet_predict": ["deck, batch 1", "deck, batch 1024"],
        "alexnet_train": both,
        "alexnet_predict": both,
        "cifar_train": ["cifar18, batch 8", "cifar13, batch 8", "small, batch 8"],
    }
    assert names.pop("ops") == [f"{name}, {what}" for name in arrays for what in passes]
    streams = [f"{kind} records, {who}" for kind in ("jpeg", "raw") for who in readers]
    found = names.pop("input")  # on a machine of more cores, as many workers too
    assert set(streams) < set(found) and found[-1] == "digits in memory, batch 128"
    assert {suite: len(found) for suite, found in names.items()} == {
        "attempts": 2 * 2 + 3 + 2 + 7 * 4 + 6 + 2 * 5 + 2 * 4,
        "profile": (2 + 12) + 2 * (2 + 22) + 6 + 2 * 4 + 4 + 2 * 5,
        "startup": 2,
        "checkpoint": 6,
        "growth": 10,
        "time_to_accuracy": 3,
    }
    for row in result["rows"]:
        assert row["ours"] > 0 and row["contains"] and row["unit"]
        if row["suite"] in suites.ONLY_IF_NAMED:
            assert row["peer"] in ("another form of ours", "a part of ours")
            assert row["ratio"] is None
        elif row["unit"] == "%":
            assert row["peer"] == "not measured" and row["ratio"] is None
        else:
            expected = gain(row["ours"], row["peer"], row["unit"])
            assert row["ratio"] == pytest.approx(expected)
        if row["unit"] != "%" and row["suite"] != "profile":  # some of these have no limit
            expected = gain(row["ours"], row["limit"], row["unit"])
            assert row["share_of_limit"] == pytest.approx(expected) and expected > 0


@pytest.mark.slow
def test_without_pytorch(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from scripts.benchmark.__main__ import define_flags, launch, main\n"
        "sys.exit(launch.run_tool(define_flags, main, sys.argv))"
    )
    path, names = tmp_path / "b.json", "lenet_train,input,time_to_accuracy"
    command = [sys.executable, "-c", code, "--smallest", f"--suite={names}", f"--json={path}"]
    done = subprocess.run(command, cwd=ROOT, env=QUICKLY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    peers = [row["peer"] for row in result["rows"] if row["unit"] != "%"]
    assert peers == ["not installed"] * (4 + 5 + 1)
    assert result["versions"]["torch"] == "not installed"
