"""Many devices and several processes, by the real commands: the same numbers everywhere, and what
does not go together.

Devices are virtual and processes on localhost; they share the cores of this machine.
"""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alexnet.config
import alexnet.train
import lenet.config
import lenet.train
from common import parallel
from common.errors import UserError
from common.workdir import read_metrics, saved_steps
from scripts.prepare.builders import write_prepared

pytestmark = pytest.mark.usefixtures("compiled_quickly")

LENET = [
    "lenet.train",
    "--dataset=mnist10k",
    "--train_size=1600",
    "--validation_size=50",
    "--batch_size=32",
    "--num_epochs=2",
    "--distortions=affine",
    "--reduction=fixed",
]
ALEXNET = [
    "alexnet.train",
    "--flagfile=alexnet/presets/small.flags",
    "--dataset=noise10",
    "--validation_size=20",
    "--batch_size=16",
    "--num_epochs=2",
    "--learning_rate=0.001",
    "--log_every_steps=1",
    "--noten_crop",
    "--reduction=fixed",
]
SMALL_STEPS = "--learning_rate=0.0000001"


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory, write_set):
    """Where AlexNet's commands find their sets: noise, and noise with five damaged records."""
    folder = tmp_path_factory.mktemp("sets")
    write_set(
        folder, "noise10", np.random.default_rng(0).integers(0, 256, (116, 32, 32, 3), np.uint8)
    )
    noise = np.random.default_rng(1).integers(0, 256, (68, 80, 80, 3), np.uint8)
    splits = {
        split: [(b"no image" if i in bad else image, i % 10) for i, image in enumerate(noise)]
        for split, bad in {"train": (5, 30, 60), "test": (7, 50)}.items()
    }
    write_prepared(
        folder, "damaged", "1.0.0", splits, (80, 80, 3), map(str, range(10)), keep_order=True
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield


ONE_STEP_CHUNKS = "import lenet.train; lenet.data.steps_per_chunk = lambda batch_size: 1"


def start(workdir, module, *flags, devices=1, processes=1, second=(), setup=""):
    """The processes of a run, started: each with its share of `devices` virtual devices, the second
    with flags of its own. `setup` is code to run before.
    """
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // processes}"
    }
    program = ["-m", module]
    if setup:
        program = [
            "-c",
            f"{setup}; launch = lenet.train.launch; t = lenet.train; "
            "launch.main(t.Config, t.make_task, t.fit)",
        ]
    command = [sys.executable, *program, f"--workdir={workdir}", *flags]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            command += ["--multihost", f"--coordinator_address=localhost:{free.getsockname()[1]}"]
        command += [f"--num_processes={processes}"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    own = [
        [f"--process_id={i}", *(second if i == 1 else ())] if processes > 1 else []
        for i in range(processes)
    ]
    return [subprocess.Popen(command + own[i], env=environment, **pipes) for i in range(processes)]


def ends(run, timeout=300):
    """[(exit code, stdout, stderr)] of a run's processes."""
    outputs = [process.communicate(timeout=timeout) for process in run]
    return [(process.returncode, *output) for process, output in zip(run, outputs, strict=True)]


def train(workdir, *command, **where):
    """The result of a run that must succeed."""
    for code, _, message in ends(start(workdir, *command, **where)):
        assert code == 0, message
    return json.loads((workdir / "result.json").read_text())


def stop(workdir, *command, **where):
    """Trains until there is a new checkpoint, then sends SIGTERM to the first process; returns the
    processes' ends.
    """
    before, run = saved_steps(workdir), start(workdir, *command, **where)
    while saved_steps(workdir) == before:
        assert run[0].poll() is None, run[0].communicate()[1]
        time.sleep(0.01)
    run[0].send_signal(signal.SIGTERM)
    return ends(run)


@pytest.mark.usefixtures("compiled_well")
@pytest.mark.parametrize(
    ("command", "counts", "others"),
    [
        pytest.param(LENET, (1, 2), {"pmap": 2}, marks=pytest.mark.slow),
        pytest.param(ALEXNET, (1, 2), {}, marks=pytest.mark.slow),
        pytest.param(LENET, (2, 4, 8), {"pmap": 4, "processes": 4}, marks=pytest.mark.nightly),
        pytest.param(ALEXNET, (2, 8), {"pmap": 4, "processes": 4}, marks=pytest.mark.nightly),
    ],
    ids=["lenet", "alexnet", "lenet_many", "alexnet_many"],
)
def test_fixed_reduction_gives_the_same_bits_everywhere(command, counts, others, tmp_path):
    """Distortions or dropout and augmentation on; pmap, and two processes of two devices."""
    runs = {
        str(devices): train(tmp_path / f"{devices}", *command, devices=devices)
        for devices in counts
    }
    for name, devices in others.items():
        how = dict(processes=2) if name == "processes" else {}
        flags = ["--parallel=pmap"] if name == "pmap" else []
        runs[name] = train(tmp_path / name, *command, *flags, devices=devices, **how)
    assert len({run["state_sha256"] for run in runs.values()}) == 1
    for name, run in runs.items():
        assert run["machine"]["devices"] == (others.get(name) or int(name))
        # Each line once: of several processes one writes.
        ours, first = (read_metrics(tmp_path / each) for each in (name, str(counts[0])))
        of_training = [[x for x in each if x["split"] == "train"] for each in (ours, first)]
        assert of_training[0] == of_training[1] and len(ours) == len(first), name


@pytest.mark.nightly
@pytest.mark.usefixtures("compiled_well")
@pytest.mark.parametrize("network", ["lenet", "alexnet"])
def test_devices_and_modes_agree(network, tmp_path):
    """In fast order, jit and pmap on 8 devices and one device agree to float tolerance; 20 and 68
    examples, which 8 does not divide, are all counted.

    AlexNet with tanh: a ReLU whose input is zero up to rounding is on with one device and off with
    eight on some processors, and moves the weights of its filter by twice the tolerance.
    """
    adamw = ["--optimizer=adamw", "--momentum=0", "--learning_rate=0.002"]
    command, tolerance = {
        "lenet": ([*LENET[:-1], *adamw, "--train_size=500"], dict(atol=2e-4, rtol=1e-3)),
        "alexnet": (
            [*ALEXNET[:-1], "--optimizer=paper", "--color_pca", "--activation=tanh"],
            dict(atol=2e-6, rtol=1e-5),
        ),
    }[network]
    runs = {
        "one": train(tmp_path / "one", *command),
        "jit": train(tmp_path / "jit", *command, devices=8),
        "pmap": train(tmp_path / "pmap", *command, "--parallel=pmap", devices=8),
    }
    load = {"lenet": lenet.load, "alexnet": alexnet.load}[network]
    one = load(tmp_path / "one").params
    for name in ("jit", "pmap"):
        close = functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=tolerance["atol"])
        jax.tree.map(close, load(tmp_path / name).params, one)
        losses = [[line["loss"] for line in read_metrics(tmp_path / run)] for run in (name, "one")]
        np.testing.assert_allclose(*losses, rtol=tolerance["rtol"])
        assert np.sum(runs[name]["confusion_matrix"]) == runs["one"]["num_test_examples"]


@pytest.mark.nightly
def test_every_process_ends_at_the_same_error(tmp_path):
    """The criteria are asked of sums that all processes have; the checkpoints that are kept, the
    newest and the best, are read back by the first.
    """
    command = [*LENET, "--train_size=160", "--num_epochs=20", "--keep=1"]
    command += ["--stop_at_train_error_pct=60", "--stop_at_validation_error_pct=10"]
    results = [
        train(tmp_path / "two", *command, devices=2, processes=2),
        train(tmp_path / "pmap", *command, "--parallel=pmap", devices=2),
    ]
    assert 1 < results[0]["stopped_after_epochs"] < 20
    for name in ("state_sha256", "stopped_after_epochs", "stopped_by", "num_steps", "best_step"):
        assert results[0][name] == results[1][name], name
    kept = sorted({results[0]["best_step"], results[0]["num_steps"]})
    for folder in ("two", "pmap"):
        assert saved_steps(tmp_path / folder) == kept


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_well")
def test_fixed_reduction_adds_up_a_large_product_the_same(monkeypatch):
    """On a CPU the rounding of such a product depends on the number of threads, and that on the
    number of devices.
    """
    code = """
import hashlib, jax, numpy as np
from common import runtime
if {fixed}:
    runtime.use_deterministic_reductions()
x, y = (np.random.default_rng(0).normal(size=(4608, n)).astype(np.float32) for n in (90, 64))
print(hashlib.sha256(np.asarray(jax.jit(lambda x, y: x.T @ y)(x, y)).tobytes()).hexdigest())
"""

    def hashes(fixed):
        found = set()
        for devices in (1, 8):
            monkeypatch.setenv("XLA_FLAGS", f"--xla_force_host_platform_device_count={devices}")
            command = [sys.executable, "-c", code.format(fixed=fixed)]
            found.add(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        return found

    assert len(hashes(True)) == 1
    if os.cpu_count() < 8:
        assert len(hashes(False)) == 2  # otherwise this tests nothing


@pytest.mark.usefixtures("compiled_well")
@pytest.mark.nightly
def test_a_run_moves_between_devices_and_processes(tmp_path):
    """One device, then eight, then two processes, then two devices: in fixed order the bits of a
    run that never moved.
    """
    command = [*LENET, "--num_epochs=20"]
    clean = train(tmp_path / "clean", *command, devices=2)
    for where in (dict(devices=1), dict(devices=8), dict(devices=4, processes=2)):
        for code, _, message in stop(tmp_path / "moved", *command, **where):
            assert code == 143, message
    assert train(tmp_path / "moved", *command, devices=2)["state_sha256"] == clean["state_sha256"]
    assert [line for line in read_metrics(tmp_path / "moved") if line["split"] == "train"] == [
        line for line in read_metrics(tmp_path / "clean") if line["split"] == "train"
    ]


@pytest.mark.nightly
def test_a_damaged_checkpoint_is_set_aside_by_two_processes(tmp_path):
    command = [*LENET, "--num_epochs=40"]
    where = dict(devices=2, processes=2)
    stop(tmp_path / "run", *command, **where)
    stop(tmp_path / "run", *command, **where)
    older, newest = saved_steps(tmp_path / "run")[-2:]
    largest = max(
        (tmp_path / "run/checkpoints" / str(newest)).rglob("*"),
        key=lambda path: path.stat().st_size,
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    (first, second) = stop(tmp_path / "run", *command, **where)
    assert (first[0], second[0]) == (143, 143)
    assert f"checkpoint {newest} is damaged" in first[2] and "is damaged" not in second[2]
    assert (tmp_path / f"run/checkpoints/{newest}.corrupt").is_dir() and older < newest


@pytest.mark.nightly
def test_damaged_records_are_counted_over_all_processes(tmp_path):
    """Each process meets some of the five; the others' count too, once each."""
    command = [*ALEXNET, "--dataset=damaged", "--num_epochs=2", "--num_workers=0"]
    one = train(tmp_path / "one", *command, "--max_bad_records=5", devices=2)
    two = train(tmp_path / "two", *command, "--max_bad_records=5", devices=2, processes=2)
    for name in ("damaged_records", "num_test_examples", "test_error_pct", "state_sha256"):
        assert one[name] == two[name], name
    assert (two["damaged_records"], two["num_test_examples"]) == (5, 66)
    for code, _, message in ends(
        start(tmp_path / "ended", *command, "--max_bad_records=4", devices=2, processes=2)
    ):
        assert code == 65 and "more damaged records than --max_bad_records=4: " in message, message


@pytest.mark.usefixtures("compiled_well")
@pytest.mark.nightly
def test_lenets_fast_reduction_stays_close(tmp_path):
    """The loss of each of the first 100 steps of the preset deck, on one device and on eight:
    within 1e-5 of each other.
    """
    flags = ["--batch_size=64", "--train_size=6400", "--validation_size=500", "--num_epochs=1"]
    losses = []
    for devices in (1, 8):
        workdir = tmp_path / f"{devices}"
        train(workdir, "lenet.train", *flags, *LENET[1:2], devices=devices, setup=ONE_STEP_CHUNKS)
        lines = read_metrics(workdir)
        losses.append([line["loss"] for line in lines if line["split"] == "train"])
    assert len(losses[0]) == 100 and losses[0][-1] < losses[0][0] / 4
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.usefixtures("compiled_well")
@pytest.mark.nightly
def test_alexnets_fast_reduction_stays_close(tmp_path):
    """The same of AlexNet, by its command.

    It takes small steps here, which move the losses by 0.4 to 1.6%, in four seeds, and leave them
    within 4e-7. With larger ones a ReLU or a maximum that falls on the other side by a rounding is
    enough to part the two runs for good, whatever the convolutions: by more than 1e-5 in one seed
    of five at a rate of 1e-6, in three of four at 1e-5, with `lax` in one of four.
    """
    losses = []
    for devices in (1, 8):
        train(
            tmp_path / f"{devices}", *ALEXNET[:-1], "--num_epochs=17", SMALL_STEPS, devices=devices
        )
        found = [
            line["loss"]
            for line in read_metrics(tmp_path / f"{devices}")
            if line["split"] == "train"
        ]
        losses.append(np.array(found[:100]))
    assert len(losses[0]) == 100
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.nightly
def test_a_model_axis_changes_nothing_but_the_traffic(tmp_path):
    """Eight devices as four pairs that share fc6 to fc8: the losses of eight equal ones, also after
    a resume, there by two processes; fewer bytes.
    """
    command, mesh = [*ALEXNET[:-1], "--num_epochs=6", SMALL_STEPS], "--mesh=data:4,model:2"
    plain = train(tmp_path / "plain", *command, devices=8)
    stop(tmp_path / "split", *command, mesh, devices=8)
    split = train(tmp_path / "split", *command, mesh, devices=8, processes=2)
    assert plain["num_steps"] == split["num_steps"] == 36
    plain_losses, split_losses = (
        [line["loss"] for line in read_metrics(tmp_path / name)] for name in ("plain", "split")
    )
    np.testing.assert_allclose(plain_losses, split_losses, rtol=1e-5)

    summary = [
        sys.executable,
        "-m",
        "scripts.summarize",
        "--model=alexnet",
        "--json",
        *ALEXNET[1:-1],
    ]
    summary += ["--num_classes=10", mesh]
    done = subprocess.run(summary, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    parameters = summary["total"]["parameters"]
    sent = {mesh: sum(kinds.values()) for mesh, kinds in summary["collectives"].items()}
    assert set(sent) == {"data:8", "data:4,model:2"}
    assert 4 * parameters <= sent["data:8"] <= 4 * parameters + 100  # the gradients and three sums
    fully_connected = sum(
        layer["parameters"] for layer in summary["layers"] if layer["name"].startswith("fc")
    )
    assert sent["data:4,model:2"] < sent["data:8"] - 0.4 * 4 * fully_connected


@pytest.mark.parametrize(
    ("second", "named"),
    [
        pytest.param("--learning_rate=0.01", "--learning_rate", marks=pytest.mark.slow),
        pytest.param("--workdir=elsewhere", "folder", marks=pytest.mark.nightly),
    ],
)
def test_processes_that_are_not_one_run_all_say_so(tmp_path, second, named):
    """In the middle of a training nothing would show it: the weights of the two would only drift
    apart.
    """
    second = [second.replace("elsewhere", str(tmp_path / "elsewhere"))]
    where = dict(devices=2, processes=2, second=second)
    for code, _, error in ends(start(tmp_path / "run", *LENET, **where), timeout=60):
        assert code == 2 and named in error and error.count("\n") == 1, error
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.commands
def test_several_processes_need_an_address(tmp_path):
    before = time.monotonic()
    ((code, _, error),) = ends(start(tmp_path / "run", *LENET, "--multihost"))
    assert code == 2 and "--multihost" in error and "Traceback" not in error
    assert time.monotonic() - before < 60


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (dict(mode="pmap", mesh="data:1,model:2"), "--parallel=pmap"),
        (dict(reduction="fixed", mesh="data:1,model:2"), "--reduction=fixed"),
        (dict(mesh="data:2"), "--mesh"),
        (dict(mesh="data:0"), "--mesh=data:0"),
        (dict(mesh="model:2"), "--mesh=model:2"),
        (dict(reduction="fixed", batch_size=12), "--batch_size=12"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, named):
    with pytest.raises(UserError, match=named):
        parallel.place(
            lambda state, batch, add_up: (state, {}), **dict(mode="jit", batch_size=16) | settings
        )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (dict(mode="pmap"), "--parallel=pmap"),
        (dict(batch_size=1), "--batch_size=1"),
        (dict(mesh="data:2"), "--mesh"),
        (dict(batch_size=18), "--batch_size=18"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(settings, named, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    with pytest.raises(UserError, match=named):
        parallel.require_possible(**dict(mode="jit", batch_size=16) | settings)


@pytest.mark.parametrize(
    ("net", "settings", "named"),
    [
        (lenet, dict(reduction="fixed", batch_size=12), "--batch_size=12"),
        (alexnet, dict(reduction="fixed", batch_size=12), "--batch_size=12"),
        (alexnet, dict(parallel="pmap", mesh="data:1,model:2"), "--parallel=pmap"),
        (alexnet, dict(reduction="fixed", mesh="data:1,model:2"), "--reduction=fixed"),
        (alexnet, dict(mesh="data:3", batch_size=4), "--batch_size=4"),
        (alexnet, dict(mesh="data:2"), "--mesh"),
    ],
)
def test_what_does_not_go_together_is_refused_before_data_is_read(net, settings, named, tmp_path):
    """The set is not there, which nobody must have noticed."""
    config = net.config.Config(dataset="absent", data_dir=str(tmp_path / "absent"), **settings)
    with pytest.raises(UserError, match=named):
        net.train.make_task(config)


@pytest.mark.commands
def test_jit_and_pmap_agree(monkeypatch):
    """On 1, 2 and 4 devices, sums made as these like; three steps of a layer and its gradient."""
    code = """
import jax, jax.numpy as jnp, numpy as np
from common import parallel

def train(state, batch, rate, add_up):
    def sums_of(part):
        return jax.value_and_grad(lambda w: jnp.sum(jnp.tanh(part["image"] @ w) ** 2))(state)
    loss, gradient = add_up(sums_of, batch)
    return state - rate * gradient, loss

random, found = np.random.default_rng(0), []
batches = [{"image": random.normal(size=(16, 50)).astype(np.float32)} for _ in range(3)]
for mode in ("jit", "pmap"):
    for devices in (1, 2, 4):
        placement = parallel.place(train, mode=mode, batch_size=16, mesh=f"data:{devices}")
        assert placement.num_devices == devices
        state = placement.place_state(jnp.linspace(-0.1, 0.1, 50 * 7).reshape(50, 7))
        for batch in batches:
            state, loss = placement.run(state, placement.place_training(batch), 0.01)
        found.append(np.append(placement.replicate(state), loss))
for other in found[1:]:
    np.testing.assert_allclose(other, found[0], rtol=1e-5, atol=1e-7)
"""
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_fixed_sums_are_those_of_the_parts_in_order():
    """On one device: eight parts, added from the first to the last in float32."""
    batch = jnp.asarray(np.random.default_rng(0).normal(size=(16, 1000)), jnp.float32)
    add_up = parallel.adder("data", 1, 8)
    sums = jax.vmap(lambda batch: add_up(lambda part: part.sum(axis=0), batch), axis_name="data")(
        batch[None]
    )[0]
    expected = np.zeros(1000, np.float32)
    for part in np.asarray(batch).reshape(8, 2, 1000):
        expected = expected + (part[0] + part[1])
    np.testing.assert_array_equal(sums, expected)
