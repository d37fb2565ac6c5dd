"""The benchmark: are PyTorch's networks and rules ours, are ratios what they say, does every suite
give its rows?

No timing is asserted.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import alexnet.train
import lenet.config
import lenet.train
from common import launch, parallel
from common.errors import UserError
from lenet.model import C3_TABLE, c3_mask, layer_table
from scripts import benchmark, report
from scripts import benchmark_suites as suites
from scripts.benchmark import gain, measure
from scripts.benchmark_suites import Case
from scripts.prepare.encode import encode_jpeg

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def peers(torch):
    torch.manual_seed(0)
    return suites.torch_peers()


# ---- the peers


def largest_difference(ours, theirs) -> float:
    """Over the largest value."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


SLOW = pytest.mark.slow
QUICKLY = os.environ | {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"
}  # how programs are compiled where only what they say counts


@pytest.mark.parametrize("pooling", ["average", pytest.param("max", marks=SLOW)])
def test_pytorchs_lenet_is_ours(peers, torch, pooling):
    config = lenet.config.Config(
        pooling=pooling, activation="tanh" if pooling == "average" else "relu"
    )
    model = lenet.train.build_model(config)
    layers = {} if pooling == "average" else dict(activation=torch.nn.ReLU, pool=torch.nn.MaxPool2d)
    theirs = peers.lenet(c3_mask(C3_TABLE), **layers)
    peers.copy_weights(theirs, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), np.uint8)
    with torch.no_grad():
        logits = theirs(peers.digits(torch.from_numpy(images))).numpy()
    prepare = lenet.train.build_prepare(config)
    assert largest_difference(jax.jit(lambda images: model(prepare(images)))(images), logits) < 1e-5


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("small", 28),
        ("cifar18", 24),
        *(
            pytest.param(*pair, marks=SLOW)
            for pair in (("deck", 67), ("paper", 64), ("small", 32), ("cifar13", 24))
        ),
    ],
)
def test_pytorchs_alexnets_are_ours(peers, torch, name, size):
    """At sizes where a pool that rounds otherwise would show: 28 -> 14 -> 7 -> 3 pixels, after the
    large conv1 15 -> 7.
    """
    changes = [] if "cifar" in name else ["--initialization=he"]
    config = suites.preset(alexnet, name, f"--crop_size={size}", "--dropout=0", *changes)
    num_classes = 10
    model = alexnet.train.build_model(config, num_classes)
    theirs = peers.cifar(name) if "cifar" in name else peers.alexnet(name, size, num_classes)
    theirs.eval()
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    peers.copy_weights(theirs, params)
    assert sum(w.numel() for w in theirs.parameters()) == sum(
        leaf.size for leaf in jax.tree.leaves(params)
    )
    images = 50 * np.random.default_rng(0).standard_normal((2, size, size, 3), np.float32)
    with torch.no_grad():
        logits = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert largest_difference(jax.jit(lambda images: model(images))(images), logits) < 1e-4


def test_pytorch_is_told_of_all_weights(peers):
    """At full size, as many parameters as the lecture deck and the paper have."""
    for name, size, total in (("deck", 227, 62_378_344), ("paper", 224, 60_965_224)):
        assert sum(w.numel() for w in peers.alexnet(name, size).parameters()) == total
    assert (
        sum(w.numel() for w in peers.lenet(c3_mask(C3_TABLE)).parameters())
        == 60_806 + 25 * 6 * 16 - 1500
    )  # C3's masked


RACE = dict(activation="relu", pooling="max", optimizer="adamw", momentum=0.0, learning_rate=0.004)


@pytest.mark.parametrize(
    ("form", "settings"),
    [("channels-last", {}), ("channels-last", RACE), pytest.param("eager", {}, marks=SLOW)],
)
def test_lenets_updates_are_the_same(peers, form, settings):
    """Three steps, of the deck's SGD or of what time_to_accuracy trains by, from the same weights
    on the same batches.
    """
    config = lenet.config.Config(batch_size=16, schedule="constant", **settings)
    training = suites.LeNetTraining(config, suites.embedded_digits(), 3)
    trainer = suites.lenet_trainers(suites.Setting(True, "", Path()), False, config)[form]
    trainer.restart(training.state.params)
    for batch in zip(*peers.tensors(training.chunk(0)), strict=True):
        trainer.step(*batch)
    training.run()
    assert_same_weights(training.state.params, trainer.model)


@pytest.mark.parametrize(
    "name", ["cifar18", pytest.param("cifar13", marks=SLOW), pytest.param("small", marks=SLOW)]
)
def test_alexnets_updates_are_the_same(peers, name):
    """Two steps on the centre crop without dropout: the rates and decays of every layer and of
    biases.
    """
    changes = ["--dataset=fake", "--batch_size=4", "--augmentation=none", "--dropout=0"] + [
        "--pad=0"
    ] * (name == "small")
    training = suites.AlexNetTraining(suites.preset(alexnet, name, *changes), 10)
    model, crops, optimizer, batch = training.theirs(name)
    trainer = peers.Trainer(model(), optimizer, peers.FORMS["channels-last"], augment=crops.center)
    trainer.model.eval()  # no dropout
    trainer.restart(training.state.params)
    for _ in range(2):
        trainer.step(*batch)
        training.run()
    assert_same_weights(training.state.params, trainer.model)


def assert_same_weights(params, model):
    for name, arrays in params.items():
        bias = getattr(model, name).bias.detach().numpy().reshape(np.shape(arrays["bias"]))
        np.testing.assert_allclose(
            arrays["bias"], bias, rtol=2e-3, atol=2e-5 * np.abs(bias).max(), err_msg=name
        )
        kernel = getattr(model, name).weight.detach().numpy()
        assert np.linalg.norm(arrays["kernel"]) == pytest.approx(
            np.linalg.norm(kernel), rel=1e-4
        ), name


def test_random_crops_are_cut_from_the_image(peers, torch):
    """Pixel numbers in, mean 0: each crop is a window of consecutive rows, and of columns in one of
    the two directions.
    """
    image = np.arange(20 * 20, dtype=np.float32).reshape(20, 20, 1).repeat(3, axis=2)
    images = torch.from_numpy((image % 256).astype(np.uint8)[None].repeat(64, axis=0))
    crops = peers.Crops(np.zeros((20, 20, 3), np.float32), 8).random(images).numpy()
    windows = np.lib.stride_tricks.sliding_window_view((image[..., 0] % 256), (8, 8)).reshape(
        -1, 8, 8
    )
    mirrored = 0
    for crop in crops[:, 0]:
        is_window, is_mirrored = (
            any(np.array_equal(window, x) for window in windows) for x in (crop, crop[:, ::-1])
        )
        assert is_window != is_mirrored
        mirrored += is_mirrored
    assert 10 < mirrored < 54 and len(np.unique(crops[:, 0, 0, 0])) > 10


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
)
def test_compiled_forms_do_the_same(peers, torch):
    examples, mask = suites.embedded_digits(), c3_mask(C3_TABLE)
    batch = peers.tensors({"image": examples.images[:8], "label": examples.labels[:8]})
    params = nnx.to_pure_dict(nnx.state(lenet.train.build_model(lenet.config.Config()), nnx.Param))
    weights, scores = [], []
    for form in ("eager", "compiled"):
        trainer = peers.Trainer(
            peers.lenet(mask), peers.sgd(0.1), peers.FORMS[form], prepare=peers.digits
        )
        trainer.restart(params)
        try:
            trainer.step(*batch)
        except torch._inductor.exc.InductorError as error:
            pytest.skip(f"no compiler: {error}")
        weights.append(trainer.model.c1.weight.detach().numpy().copy())
        scores.append(
            [float(x) for x in peers.scorer(trainer.model, peers.FORMS[form], peers.digits)(*batch)]
        )
    np.testing.assert_allclose(*weights, atol=1e-6)
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


@pytest.mark.parametrize("what", ["masked C3", "LRN", "max pooling"])
def test_pytorchs_operations_are_ours(peers, torch, what):
    """Values and gradients, for a cotangent of random numbers."""
    random = np.random.default_rng(0)
    if what == "masked C3":
        mask, kernel = c3_mask(C3_TABLE), random.standard_normal((5, 5, 6, 16), np.float32)
        x, theirs = random.standard_normal((2, 14, 14, 6), np.float32), peers.convolution(mask)
        arrays, tensors = (
            (x.transpose(1, 3, 2, 0), kernel),
            (x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1)),
        )
        back = [
            lambda y: y.transpose(3, 1, 0, 2),
            lambda g: g.transpose(3, 1, 0, 2),
            lambda g: g.transpose(3, 2, 0, 1),
        ]
        ours = suites.conv.masked(suites.conv.batch_last_convolution(), mask)
    else:
        x = random.standard_normal((2, 11, 11, 16), np.float32)
        lrn = what == "LRN"
        theirs = peers.Across() if lrn else peers.nn.MaxPool2d(3, 2)
        arrays, tensors, back = (
            (x,),
            (x.transpose(0, 3, 1, 2),),
            [lambda y: y.transpose(0, 3, 1, 2)] * 2,
        )
        pool = suites.functools.partial(suites.alexnet.pooling.max_pool, overlapping=True)
        ours = suites.alexnet.lrn.local_response_normalization if lrn else pool
    inputs = [torch.tensor(array, requires_grad=True) for array in tensors]
    outputs = theirs(*inputs)
    moved = back[0](np.asarray(ours(*arrays)))
    assert largest_difference(moved, outputs.detach().numpy()) < 1e-5
    cotangent = suites.cotangent(ours, *arrays)
    gradients = torch.autograd.grad(outputs, inputs, torch.tensor(back[0](np.asarray(cotangent))))
    _, found = jax.jit(suites.with_gradients(ours))(cotangent, *arrays)
    for move, mine, gradient in zip(back[1:], found, gradients, strict=True):
        assert largest_difference(move(np.asarray(mine)), gradient.numpy()) < 1e-5


# ---- the numbers


def test_ratios_are_the_median_of_pairs():
    """Counted by hand. The machine slows down to half: both sides do, the ratio does not."""
    ours, theirs = iter([9, 30.0, 20.0, 10.0]), iter([9, 10.0, 8.0, 5.0])  # first the warm-up
    case = Case(
        (("a", "images/s"),),
        lambda: (next(ours),),
        {"eager": lambda: (next(theirs),)},
        "words",
        (40.0,),
    )
    (row,) = measure(case, 3)
    assert (row["ours"], row["ours_range"], row["peer"], row["peer_range"]) == (
        20.0,
        [10.0, 30.0],
        8.0,
        [5.0, 10.0],
    )
    assert (
        row["ratio"] == 2.5 and row["share_of_limit"] == 0.5 and row["peer_form"] == "eager"
    )  # of 3, 2.5 and 2


def test_times_count_the_other_way_round():
    assert gain(2.0, 6.0, "ms") == 3.0 == gain(6.0, 2.0, "batches/s")


def test_the_fastest_form_of_pytorch_takes_part():
    def failing():
        raise RuntimeError("no compiler\nand a page of text")

    peers = {"eager": lambda: (5.0, 1.0), "channels-last": lambda: (3.0, 2.0), "compiled": failing}
    rows = measure(
        Case((("a", "s"), ("b", "MB")), lambda: (6.0, 4.0), peers, "words", (None, 1.0)), 2
    )
    assert [row["peer_form"] for row in rows] == ["channels-last"] * 2
    assert [row["ratio"] for row in rows] == [0.5, 0.5] and [
        row["share_of_limit"] for row in rows
    ] == [None, 0.25]
    why = "does not run here: no compiler"
    assert rows[0]["peer_forms"] == {"eager": 5.0, "channels-last": 3.0, "compiled": why}
    assert rows[1]["peer_forms"] == {"eager": 1.0, "channels-last": 2.0, "compiled": why}


def test_a_form_is_judged_by_the_best_of_three():
    """Of 1 to 4 the first is the warm-up. By single measurements `noisy` would lose."""
    noisy, steady = iter([9.0, 7.0, 2.0, 6.0, 3.0]), iter([9.0, 5.0, 5.0, 5.0])
    peers = {"noisy": lambda: (next(noisy),), "steady": lambda: (next(steady),)}
    (row,) = measure(Case((("a", "s"),), lambda: (6.0,), peers, "words"), 1)
    assert (
        row["peer_form"] == "noisy"
        and row["peer_forms"] == {"noisy": 2.0, "steady": 5.0}
        and row["ratio"] == 0.5
    )


def test_work_is_repeated_for_a_while_after_a_run_that_does_not_count(monkeypatch, tmp_path):
    """A clock of whole seconds: each run takes one, the first ten."""
    now, took = [0.0], iter([10.0, *[1.0] * 10])

    def run():
        now[0] += next(took)

    monkeypatch.setattr(suites.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(suites, "LEAST_S", 4.0)
    assert suites.timed(suites.Setting(False, "", tmp_path), run)() == 1.0 and now[0] == 14.0
    assert suites.span(lambda: 6.0, 1e-3, 2)() == (3000.0,) and suites.rate(lambda: 0.5, 8)() == (
        16.0,
    )


def test_a_peer_that_fails_otherwise_is_a_bug():
    def failing():
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        measure(Case((("a", "s"),), lambda: (1.0,), {"eager": failing}, "words"), 1)


def test_operations_of_a_step():
    """Forward two a multiply-add; backward twice as many, without conv1's gradient of the image."""
    lenet_layers = layer_table(lenet.train.build_model(lenet.config.Config()))
    multiply_adds = 784 * 150 + 150_000 + 48_000 + 10_080 + 840
    assert suites.operations(lenet_layers, training=False) == 2 * multiply_adds
    assert suites.operations(lenet_layers, training=True) == 2 * (3 * multiply_adds - 784 * 150)
    training = suites.AlexNetTraining(
        suites.preset(alexnet, "cifar18", "--dataset=fake", "--batch_size=1"), 10
    )
    assert training.operations(training=False) == 2 * (
        576 * 32 * 75 + 144 * 32 * 800 + 36 * 64 * 800 + 576 * 10
    )


def test_noise_is_as_large_as_a_photograph():
    sizes = [len(encode_jpeg(suites.noise_image(seed))) for seed in range(8)]
    assert 28_000 < np.mean(sizes) < 36_000


def test_targets():
    row = {"suite": "a", "name": "b", "ratio": 1.2, "share_of_limit": 0.69, "ours": 4.0}
    targets = {("a", "b"): (1.2, 0.7, 4)}
    assert report.target_of(row, targets) == "1.2x: met, 70% of the limit: missed, at most 4 s: met"
    assert report.target_of(row | {"name": "c"}, targets) == ""


def test_every_target_names_a_row_that_was_measured():
    result = json.loads((ROOT / "results" / "benchmark.json").read_text())
    assert set(report.TARGETS) <= {(row["suite"], row["name"]) for row in result["rows"]}


def test_table():
    row = {
        "suite": "ops", "name": "LRN", "unit": "ms", "ours": 65.4, "ours_range": [60.0, 70.0], "peer": 1234.5,
        "peer_range": [1234.5, 1234.5], "peer_form": "eager", "ratio": 18.876, "limit": 10.0, "share_of_limit": 0.153,
        "command": "python -m scripts.benchmark", "commit": "0123456789",
    }  # fmt: skip
    alone = row | {
        "name": "devices",
        "peer": "none: no such thing",
        "ratio": None,
        "limit": None,
        "share_of_limit": None,
    }
    result = {
        "rows": [row, alone], "load_average": [0.5, 1, 1], "load_average_after": [2, 1, 1],
        "versions": dict.fromkeys(("python", "jax", "flax", "torch"), "1"),
        "machine": {
            "processor": "X", "cores": 2, "accelerator": "cpu", "matmul_gflop_per_s": 200.4, "copy_gb_per_s": 30.2,
        },
    }  # fmt: skip
    lines = report.benchmark_table({"benchmark": [result]}).splitlines()
    assert lines[2] == "| `ops`: LRN | ms | 65.4 (60 to 70) | 1,234, eager | **18.88** | 15% |  |"
    assert (
        lines[3]
        == "| `ops`: devices | ms | 65.4 (60 to 70) | none: no such thing | – | not measured |  |"
    )
    assert "commit `01234567`" in lines[-1] and "200 GFLOP/s" in lines[-1]
    assert "|" not in report.benchmark_table({})

    def deck(suite, name, ours):
        return row | {"suite": suite, "name": name, "ours": ours}

    rows = [
        deck("input", "jpeg records, 1 thread", 2000.0),
        deck("input", "raw records, 1 thread", 5000.0),
    ]
    last = report.benchmark_table({"benchmark": [result | {"rows": rows}]}).splitlines()[-1]
    assert (
        last
        == "Raw records are read 2.5 times as fast as JPEG ones in one thread (target 3: missed)."
    )

    readers = [
        deck("input", "jpeg records, 1 thread", 2000.0),
        deck("input", "jpeg records, 14 workers", 12000.0),
    ]
    for trained, waits in (
        (18001.0, "training waits for its images"),
        (9001.0, "its images wait for training"),
    ):
        rows = [
            deck("alexnet_train", "deck, batch 128", trained),
            deck("alexnet_predict", "deck, batch 128", 1.0),
            *readers,
        ]
        text = report.gpu_table({"benchmark_gpu": [result | {"rows": rows}]})
        assert (
            "target" not in text
            and f"| `alexnet_train`: deck, batch 128 | ms | {trained:,.0f}" in text
        )
        assert (
            f"takes {trained:,.0f} images/s here, and 14 workers of this machine read 12,000/s from JPEG records: {waits}."
            in text
        )
    on_cpu = result | {"rows": [deck(suite, "a", 1.0) for suite in ("startup", "growth", "input")]}
    text = report.gpu_table({"benchmark": [on_cpu], "benchmark_gpu": [result | {"rows": readers}]})
    assert [line for line in text.splitlines() if line.endswith("| not measured | | | |")] == [
        "| `startup` | | not measured | | | |",
        "| `growth` | | not measured | | | |",
    ]
    errors = row | {"suite": "time_to_accuracy", "name": "mnist: test error then", "unit": "%"}
    text = report.benchmark_table({"benchmark": [result | {"rows": [row, errors]}]})
    last = "mnist, the test error then: of our network 65.4 (60 to 70)%, of PyTorch's 1,234%."
    assert text.count("test error") == 1 and text.splitlines()[-1] == last
    assert report.gpu_table({}) == "Not measured yet."


# ---- the command


def test_a_suite_has_a_process_of_its_own():
    assert benchmark.in_fresh_process(os.getpid) != os.getpid()
    with pytest.raises(UserError, match="devices per axis"):  # a mistake is one line from there too
        benchmark.in_fresh_process(parallel.mesh_shape, "x")


def test_mistakes_get_one_line(tmp_path, capsys):
    for arguments, message in (
        (["--suite=lenet"], "lenet_train, lenet_predict"),
        ([f"--json={tmp_path}/none/b.json"], "no such folder"),
        (["--rounds=0"], "rounds"),
    ):
        assert (
            launch.run_tool(benchmark.define_flags, benchmark.main, ["benchmark", *arguments]) == 2
        )
        captured = capsys.readouterr()
        assert message in captured.err and len(captured.err.splitlines()) == 1 and not captured.out


def test_rows_of_other_suites_stay_and_other_machines_are_refused(tmp_path):
    source = {
        "machine": {"processor": "A", "cores": 2, "accelerator": "cpu"},
        "smallest": False,
        "versions": {"jax": "1"},
    }
    path = tmp_path / "benchmark.json"
    path.write_text(json.dumps(source | {"kind": "benchmark", "rows": [{"suite": "ops"}]}))
    assert benchmark.rows_of(path, source) == [{"suite": "ops"}]
    for other in (
        {"machine": source["machine"] | {"cores": 4}},
        {"smallest": True},
        {"versions": {"jax": "2"}},
    ):
        with pytest.raises(UserError, match="name another file"):
            benchmark.rows_of(path, source | other)
    for content in ("{", "[]", '{"kind": "faults"}'):
        path.write_text(content)
        with pytest.raises(UserError, match="name another file"):
            benchmark.rows_of(path, source)


@pytest.mark.slow
def test_every_suite_gives_its_rows(peers, tmp_path):
    command = [
        sys.executable,
        "-m",
        "scripts.benchmark",
        "--smallest",
        f"--json={tmp_path}/benchmark.json",
    ]
    command += [f"--suite={','.join(suites.SUITES)}"]
    done = subprocess.run(command, cwd=ROOT, env=QUICKLY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "benchmark.json").read_text())
    assert result["kind"] == "benchmark" and result["versions"]["torch"] == peers.torch.__version__
    assert result["machine"].keys() >= {"processor", "cores", "matmul_gflop_per_s", "copy_gb_per_s"}
    names = {
        suite: [row["name"] for row in result["rows"] if row["suite"] == suite]
        for suite in suites.SUITES
    }
    assert names["lenet_train"] == [f"deck, batch {size}" for size in (1, 32, 128, 1024)]
    assert names["lenet_predict"] == ["deck, batch 1", "deck, batch 1024"]
    both = [f"{name}, batch {size}" for name in ("deck", "paper") for size in (1, 32)]
    assert names["alexnet_train"] == names["alexnet_predict"]
    assert names["alexnet_train"][:4] == both and set(names["alexnet_train"][4:]) <= {
        "deck, batch 32, bfloat16"
    }
    assert names["cifar_train"] == ["cifar18, batch 8", "cifar13, batch 8", "small, batch 8"]
    ops = (
        "masked C3, 2x14x14x6",
        "dense C3, 2x14x14x6",
        "LRN, 2x55x55x96",
        "max pooling 3/2, 2x33x33x32",
    )
    ops += ("max pooling 3/2, 2x55x55x96",)
    assert names["ops"] == [
        f"{name}, {what}" for name in ops for what in ("forward", "forward and backward")
    ]
    assert len(names["attempts"]) == 2 * 2 + 3 + 2 + 7 * 4 + 6 + 2 * 5 + 2 * 4
    parts = {
        what: sum(name.startswith(what) for name in names["profile"])
        for what in ("cifar18", "LRN", "max", "jpeg", "raw")
    }
    assert parts == {"cifar18": 2 + 12, "LRN": 6, "max": 2 * 4, "jpeg": 5, "raw": 5}
    readers = [
        f"{kind} records, {who}" for kind in ("jpeg", "raw") for who in ("1 thread", "2 workers")
    ]
    assert names["input"] == [*readers, "digits in memory, batch 128"]
    assert (
        len(names["startup"]) == 2 and len(names["checkpoint"]) == 6 and len(names["growth"]) == 8
    )
    assert len(names["time_to_accuracy"]) == 2
    for row in result["rows"]:
        assert row["ours"] > 0 and row["contains"] and row["unit"]
        if row["suite"] in ("attempts", "profile"):
            assert (
                row["peer"] in ("another form of ours", "a part of ours") and row["ratio"] is None
            )
        else:
            assert row["peer"] > 0 and row["ratio"] == pytest.approx(
                gain(row["ours"], row["peer"], row["unit"])
            )
        if row["unit"] == "%" or row["suite"] == "profile":
            continue  # not all of these have a limit
        assert row["share_of_limit"] > 0
        assert row["share_of_limit"] == pytest.approx(gain(row["ours"], row["limit"], row["unit"]))


@pytest.mark.slow
def test_without_pytorch(tmp_path):
    hidden = "import sys; sys.modules['torch'] = None; from scripts.benchmark import define_flags, launch, main; "
    code = hidden + "sys.exit(launch.run_tool(define_flags, main, sys.argv))"
    flags = [
        "--smallest",
        "--suite=lenet_train,input,time_to_accuracy",
        f"--json={tmp_path}/b.json",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags], cwd=ROOT, env=QUICKLY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "b.json").read_text())
    assert (
        {row["peer"] for row in result["rows"]}
        == {"not installed"}
        == {result["versions"]["torch"]}
    )
    assert len(result["rows"]) == 4 + 5 + 2
