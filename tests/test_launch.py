"""Exit codes and messages of the real program, in real processes: a tiny training with the same
loop as the networks'.
"""

import dataclasses
import errno
import json
import os
import platform
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from absl import flags

from common import launch
from common.errors import DataError, UserError
from common.flags import setting

pytestmark = pytest.mark.usefixtures("compiled_quickly")

ROOT = Path(__file__).parents[1]

TINY = '''
"""A training of one vector."""
import contextlib, dataclasses, time
import jax, jax.numpy as jnp
from common import launch
from common.checkpoint import Checkpointer, state_sha256
from common.errors import UserError
from common.flags import setting
from common.writer import Writer


@dataclasses.dataclass(frozen=True)
class Config:
    dataset: str = setting("none", "A name.")
    seed: int = setting(0, "Where it starts.")
    rate: float = setting(0.5, "How far a step goes.", lower_bound=0.0)
    num_steps: int = setting(6, "How many.", lower_bound=1)
    size: int = setting(10, "Length of the vector.")
    mode: str = setting("plain", "What goes wrong.", choices=("plain", "bug", "stuck"))
    averaging: bool = setting(False, "A switch.")
    reduction: str = setting("fast", "How sums are made.", choices=("fast", "fixed"))
    pause_s: float = setting(0.0, "Seconds between steps.", changes_result=False)

    def __post_init__(self):
        if self.averaging and self.mode == "bug":
            raise UserError("--averaging excludes --mode=bug")


def train_and_evaluate(config, workdir, stop_requested):
    if config.mode == "bug":
        raise ZeroDivisionError("a bug")
    step_once = jax.jit(lambda state: {"w": state["w"] + config.rate * jnp.sin(state["w"]) * jnp.cumsum(state["w"])})
    state = {"w": jax.random.normal(jax.random.key(config.seed), (config.size,))}
    checkpointer = Checkpointer(workdir)
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    step, state, totals = checkpointer.restore_newest(target) or (0, state, None)
    log = Writer(workdir, first_step=step, num_steps=config.num_steps, steps_per_epoch=2, before=totals)
    with contextlib.closing(checkpointer), log:
        while step < config.num_steps:
            state = step_once(state)
            step += 1
            log.write(step, "train", {"loss": abs(state["w"][0]), "errors": step % 2, "count": 4})
            time.sleep(60 if config.mode == "stuck" else config.pause_s)
            stop = stop_requested()
            if step % 3 == 0 or stop:
                log.flush()
                checkpointer.save(step, state, log.totals)
            if stop:
                raise launch.Interrupted(stop)
    return {
        "test_error_pct": 1.25, "confusion_matrix": [[3, 1], [0, 4]], "num_steps": step, "state_sha256": state_sha256(state),
        "images_per_s": log.images_per_s, "wall_time_s": log.seconds,
    }


if __name__ == "__main__":
    launch.main(Config, train_and_evaluate)
'''


class Program:
    """Starts the tiny training from a folder of its own, with a compilation cache and a home there."""

    def __init__(self, folder: Path):
        self.folder, self.started = folder, []
        (folder / "tiny.py").write_text(TINY)
        self.environment = {
            name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"
        }
        self.environment |= {
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "HOME": str(folder / "home"),
        }

    def start(self, *arguments: str, **options) -> subprocess.Popen:
        command = [sys.executable, "-W", "error", "-m", "tiny", *arguments]
        pipes = dict(
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        process = subprocess.Popen(
            command, cwd=self.folder, env=self.environment, **pipes, **options
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str, **options) -> tuple[int, str, str]:
        """(exit code, stdout, stderr) of a run to its end."""
        return end_of(self.start(*arguments, **options))

    def metrics(self, workdir: str) -> list[tuple[int, str]]:
        records = map(
            json.loads, (self.folder / workdir / "metrics.jsonl").read_text().splitlines()
        )
        return [(record["step"], record["split"]) for record in records]

    def result(self, workdir: str) -> dict:
        return json.loads((self.folder / workdir / "result.json").read_text())

    def wait_for_steps(self, workdir: str, steps: int) -> None:
        for _ in range(600):
            path = self.folder / workdir / "metrics.jsonl"
            if path.exists() and path.read_text().count("\n") >= steps:
                return
            time.sleep(0.05)
        raise AssertionError(f"no {steps} steps within 30 s")


def end_of(process: subprocess.Popen) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def by_hand(address: str, processes: int, number: int) -> list[str]:
    return [
        f"--coordinator_address={address}",
        f"--num_processes={processes}",
        f"--process_id={number}",
    ]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    program = Program(tmp_path_factory.mktemp("tiny"))
    yield program
    for process in program.started:  # what a failed test left running
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def clean_run(program) -> tuple[int, str, str]:
    return program.run("--workdir=clean", "--rate=0.25", f"--flagfile={os.devnull}")


# ---- a whole run


def test_a_run_ends_with_its_result(program, clean_run):
    code, output, errors = clean_run
    assert code == 0
    assert output == "complete: test error 1.25%, 6 steps; clean/result.json\n"
    assert re.match(
        r"python 3\.\d+\.\d+ jax [\d.]+ flax [\d.]+; 1 x cpu, \d+ cores; commit ", errors
    ), errors
    folder = program.folder / "clean"
    assert {
        "config.json",
        "flags.txt",
        "metrics.jsonl",
        "curves.png",
        "checkpoints",
        "result.json",
    } <= set(os.listdir(folder))
    assert not list(folder.glob(".*.tmp"))
    assert json.loads((folder / "config.json").read_text())["rate"] == 0.25
    assert (
        "--rate=0.25\n" in (folder / "flags.txt").read_text()
        and "workdir" not in (folder / "flags.txt").read_text()
    )
    assert program.metrics("clean") == [(step, "train") for step in range(1, 7)]


def test_the_result_says_where_it_comes_from_and_names_no_place(program, clean_run):
    result = program.result("clean")
    loop = [
        "test_error_pct",
        "confusion_matrix",
        "num_steps",
        "state_sha256",
        "images_per_s",
        "wall_time_s",
    ]
    assert list(result) == [*loop, "command", "commit", "seed", "dataset", "versions", "machine"]
    assert (
        result["command"]
        == f"python -m tiny --workdir=clean --rate=0.25 --flagfile={os.path.relpath(os.devnull, program.folder)}"
    )
    assert (result["seed"], result["dataset"]) == (0, "none")
    assert list(result["versions"]) == [
        "python",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "numpy",
    ]
    assert list(result["machine"]) == ["processor", "cores", "accelerator", "devices"]
    assert result["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", result["commit"])
    text = (program.folder / "clean" / "result.json").read_text()
    assert (
        str(program.folder) not in text
        and str(ROOT) not in text
        and os.uname().nodename not in text.split()
    )
    assert '"confusion_matrix": [\n    [3, 1],\n    [0, 4]\n  ]' in text


def test_the_same_command_again_says_that_it_is_complete(program, clean_run):
    before = (program.folder / "clean" / "result.json").read_bytes()
    code, output, errors = program.run("--workdir=clean", "--rate=0.25", "--pause_s=9")
    assert (code, output, errors) == (
        0,
        "complete: test error 1.25%, 6 steps; clean/result.json\n",
        "",
    )
    assert (program.folder / "clean" / "result.json").read_bytes() == before


def test_its_flagfile_replays_it(program, clean_run):
    assert program.run("--flagfile=clean/flags.txt", f"--workdir={program.folder}/replay")[0] == 0
    assert program.result("replay")["state_sha256"] == program.result("clean")["state_sha256"]
    assert "--workdir=replay" in program.result("replay")["command"]  # typed as an absolute path


def test_compiled_programs_are_kept(program, clean_run):
    assert list((program.folder / "cache" / "lenet-alexnet" / "jax").iterdir())
    assert not (program.folder / "home" / ".cache").exists()


def test_changed_settings_are_refused_with_a_table(program, clean_run):
    code, _, errors = program.run("--workdir=clean", "--seed=3", "--averaging")
    assert code == 2
    assert errors.splitlines() == [
        "error: clean holds a run with other settings:",
        "  seed       0 -> 3",
        "  rate       0.25 -> 0.5",
        "  averaging  False -> True",
        "Use the old settings to resume, or another --workdir; --init_from=clean there starts from the weights of this run.",
    ]


def test_a_start_that_trained_nothing_does_not_bind_its_workdir(program):
    """Such as one that did not find its data set: the next command may name another."""
    assert program.run("--workdir=again", "--mode=bug")[0] == 1
    assert program.run("--workdir=again", "--num_steps=2")[0] == 0


def test_help_lists_every_flag_in_its_order(program):
    code, output, errors = program.run("--help")
    assert (code, errors) == (0, "")
    assert output.startswith("usage: python -m tiny --workdir=DIR")
    names = [
        "--workdir=DIR",
        "--flagfile=FILE",
        "--dataset=none",
        "--seed=0",
        "--rate=0.5",
        "--num_steps=6",
        "--size=10",
        "--mode=plain",
    ]
    places = [output.index(f"\n  {name}") for name in [*names, "--[no]averaging"]]
    assert places == sorted(places)
    assert "one of plain, bug, stuck" in output and "How far a step goes." in output


# ---- wrong use: one line, exit code 2, nothing made


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--workdir=x", "--no_such=1"], "no_such"),
        (["--workdir=x", "--averaging", "--mode=bug"], "--averaging excludes --mode=bug"),
    ],
)
def test_wrong_use_is_one_line_and_makes_nothing(program, arguments, named):
    code, output, errors = program.run(*arguments)
    assert (code, output) == (2, "")
    assert errors.startswith("error: ") and errors.count("\n") == 1 and named in errors, errors
    assert not (program.folder / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=x", "--no_such=1"], "Unknown command line flag 'no_such'"),
        (["--workdir=x", "--seed=many"], "--seed=many.*invalid literal"),
        (["--workdir=x", "--seed=1.5"], "--seed=1.5.*invalid literal"),
        (["--workdir=x", "--rate=nan"], "--rate must be a finite number"),
        (["--workdir=x", "--rate=-1"], "--rate=-1.*non-negative"),
        (["--workdir=x", "--pooling=median"], "--pooling=median.*average|max"),
        (["--workdir=x", "--flagfile=absent.flags"], "absent.flags"),
        (["--workdir=x", "--flagfile=bytes.flags"], "can't decode byte 0xff"),
        (
            ["--workdir=x", "--flagfile=break.flags"],
            "--dataset must be one line without blanks around it",
        ),
        (
            ["--workdir=x", "--dataset=a\n--seed=1"],
            "--dataset must be one line without blanks around it",
        ),
        (["--workdir=x", "rate=1"], "unexpected argument 'rate=1'"),
        (["--rate=1"], "--workdir is required"),
        (["--workdir=x", "--seed=13"], "bad luck"),
        (["--workdir=x", "--num_processes=2"], "need each other and --multihost"),
        (["--workdir=x", "--num_processes=0"], "need each other and --multihost"),
        (["--workdir=x", "--process_id=0"], "need each other and --multihost"),
        (["--workdir=x", "--num_processes=-2"], "-2 is not integer >= -1"),
        (["--workdir=x", "--multihost", *by_hand("a:1", 0, 0)], "need each other and --multihost"),
        (["--workdir=x", "--multihost", *by_hand("a:1", 2, 2)], "need each other and --multihost"),
        (["--workdir=x", *by_hand("a:1", 2, 1)], "need each other and --multihost"),
        (
            ["--workdir=x", "--multihost", *by_hand("a", 2, 1)],
            "--coordinator_address=a must be HOST:PORT",
        ),
    ],
)
def test_the_line_names_what_is_wrong(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bytes.flags").write_bytes(b"--rate=1\n\xff\xfe\n")
    (tmp_path / "break.flags").write_text("--dataset=a\v--seed=1\n")
    with pytest.raises(UserError, match=message) as caught:
        launch._parse(Config, flags.FlagValues(), ["program", *arguments])
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


# ---- signals, kills, locks


def test_stopped_by_a_signal_it_saves_and_resumes(program, clean_run):
    command = ("--workdir=stopped", "--rate=0.25")
    process = program.start(*command, "--pause_s=0.3")
    program.wait_for_steps("stopped", 1)
    process.send_signal(signal.SIGTERM)
    code, output, errors = end_of(process)
    assert (code, output) == (143, "")
    last = errors.splitlines()[-1]
    assert last == "stopped by SIGTERM; everything is saved in stopped. The same command resumes."
    assert not (program.folder / "stopped" / "result.json").exists()
    assert 2 <= len(program.metrics("stopped")) < 6
    assert program.run(*command)[0] == 0
    assert program.metrics("stopped") == [(step, "train") for step in range(1, 7)]
    assert program.result("stopped")["state_sha256"] == program.result("clean")["state_sha256"]


def test_a_second_run_is_kept_out_and_a_second_signal_ends_the_first_at_once(program):
    first = program.start(
        "--workdir=stuck", "--mode=stuck"
    )  # one call of a minute that no signal ends
    lines = iter(first.stderr.readline, "")
    next(line for line in lines if "jax" in line)
    code, output, errors = program.run("--workdir=stuck", "--mode=stuck")
    assert (code, output) == (75, "")
    assert (
        errors
        == f"error: stuck is in use by process {first.pid}. Wait for it, or use another --workdir.\n"
    )
    first.send_signal(signal.SIGINT)
    assert (
        next(line for line in lines if "SIG" in line)
        == "SIGINT: finishing these steps and saving; once more stops at once.\n"
    )
    assert first.poll() is None
    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=5) == 130
    first.communicate()


def test_killed_it_frees_the_lock_and_resumes_bit_for_bit(program, clean_run):
    command = ("--workdir=killed", "--rate=0.25")
    process = program.start(*command, "--pause_s=0.5")
    program.wait_for_steps("killed", 4)  # the checkpoint of step 3 is done
    process.kill()
    assert end_of(process)[0] == -signal.SIGKILL
    assert program.run(*command)[0] == 0
    assert program.metrics("killed") == [(step, "train") for step in range(1, 7)]
    assert program.result("killed")["state_sha256"] == program.result("clean")["state_sha256"]


# ---- storage


def test_a_full_disk_is_one_line(program):
    process = program.start("--workdir=full", "--size=200000")
    resource.prlimit(
        process.pid, resource.RLIMIT_FSIZE, (300_000, 300_000)
    )  # it is still importing
    code, output, errors = end_of(process)
    assert (code, output) == (74, "")
    assert "Traceback" not in errors
    assert re.fullmatch(
        r"error: a checkpoint could not be written to .*full/checkpoints: File too large\. No checkpoint was saved before\. "
        r"Mend that, then repeat the same command: it resumes\.",
        errors.splitlines()[-1],
    ), errors


@pytest.mark.slow
def test_a_disk_that_fills_up_later_costs_no_more_than_the_steps_since_the_last_save(program):
    assert program.run("--workdir=roomy", "--size=200000")[0] == 0
    process = program.start("--workdir=filling", "--size=200000", "--pause_s=0.5")
    program.wait_for_steps("filling", 4)  # the checkpoint of step 3 is under way or done
    while not (program.folder / "filling" / "checkpoints" / "3").exists():
        assert process.poll() is None
        time.sleep(0.01)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (300_000, 300_000))
    code, output, errors = end_of(process)
    assert (code, output) == (74, "") and "Traceback" not in errors
    assert re.fullmatch(
        r"error: a checkpoint could not be written to .*filling/checkpoints: File too large\. "
        r"The checkpoint of step 3 is safe\. Mend that, then repeat the same command: it resumes\.",
        errors.splitlines()[-1],
    ), errors
    assert program.run("--workdir=filling", "--size=200000")[0] == 0
    assert program.result("filling")["state_sha256"] == program.result("roomy")["state_sha256"]
    assert program.metrics("filling") == program.metrics("roomy")


# ---- the same without a process each


@dataclasses.dataclass(frozen=True)
class Config:
    dataset: str = setting("none", "A name.")
    seed: int = setting(0, "A number.")
    rate: float = setting(0.5, "A rate.", lower_bound=0.0)
    pooling: str = setting("average", "A choice.", choices=("average", "max"))
    reduction: str = setting("fast", "A choice.", choices=("fast", "fixed"))

    def __post_init__(self):
        if self.seed == 13:
            raise UserError("--seed=13 brings bad luck")


@pytest.fixture
def run_here(monkeypatch):
    monkeypatch.setattr(launch, "_use_compilation_cache", lambda: None)  # belongs to the process

    def run(workdir, train=lambda *_: {"num_steps": 1}, config=Config()) -> int:
        return launch._run(config, workdir, launch.Processes(False, "", -1, -1), train)

    return run


@pytest.mark.parametrize(
    ("reduction", "given", "used"),
    [
        ("fast", "", ""),
        ("fixed", "", "--xla_gpu_deterministic_ops=true"),
        (
            "fixed",
            "--xla_cpu_use_acl=false",
            "--xla_cpu_use_acl=false --xla_gpu_deterministic_ops=true",
        ),
        ("fixed", "--xla_gpu_deterministic_ops=false", "--xla_gpu_deterministic_ops=false"),
    ],
)
def test_fixed_reduction_keeps_xla_to_what_repeats_itself(
    tmp_path, run_here, monkeypatch, reduction, given, used
):
    monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setenv("NPROC", "3")
    seen = []

    def train(*_):
        seen.append((os.environ["XLA_FLAGS"], os.environ["NPROC"]))
        return {"num_steps": 1}

    assert run_here(tmp_path / "run", train, Config(reduction=reduction)) == 0
    assert seen == [(used, "8" if reduction == "fixed" else "3")]


def test_a_workdir_that_cannot_be_written_is_one_line(tmp_path, run_here, capsys):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        assert run_here(workdir) == 74
        message = capsys.readouterr().err
        assert (
            message.startswith(f"error: cannot write in {workdir}: ") and message.count("\n") == 1
        )
    assert run_here(Path("/proc/run")) == 74


def test_a_folder_of_other_things_is_refused_and_left_alone(tmp_path, run_here, capsys):
    (tmp_path / "thesis.tex").write_text("")
    assert run_here(tmp_path) == 2
    assert "holds other files and no run" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_run_of_another_program_is_refused(tmp_path, run_here, capsys):
    (tmp_path / "config.json").write_text('{"dataset": "none", "seed": 0, "lrn": true}')
    assert run_here(tmp_path) == 2
    assert "a run of another program (it sets lrn)" in capsys.readouterr().err
    for damaged in ("{", "3", "[1]"):
        (tmp_path / "config.json").write_text(damaged)
        assert run_here(tmp_path) == 74


def raising(error):
    def train(*_):
        raise error

    return train


def test_errors_of_the_user_and_of_the_storage_are_lines_and_bugs_are_not(
    tmp_path, run_here, capsys
):
    assert run_here(tmp_path, raising(DataError("labels reach 12; allowed: 0 to 9"))) == 65
    assert capsys.readouterr().err.splitlines()[-1] == "error: labels reach 12; allowed: 0 to 9"
    for bug in (ZeroDivisionError("a bug"), OSError(errno.EBADF, "a bug")):
        with pytest.raises(type(bug), match="a bug"):
            run_here(tmp_path, raising(bug))
    assert run_here(tmp_path) == 0  # and none of these left the lock behind


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE]
)
def test_an_error_of_the_disk_is_one_line_that_says_what_is_safe(
    tmp_path, run_here, monkeypatch, capsys, number
):
    (tmp_path / "run/checkpoints/30").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text("{}")
    error = OSError(number, os.strerror(number), "metrics.jsonl")
    assert run_here(tmp_path / "run", raising(error)) == 74
    said = f"error: {error}. The checkpoint of step 30 is safe. Mend that, then repeat the same command: it resumes."
    assert capsys.readouterr().err.splitlines()[-1] == said
    monkeypatch.setattr(launch, "last_good", lambda workdir: raising(error)())
    assert run_here(tmp_path / "run", raising(error)) == 74
    assert "Checkpoints cannot be read now either." in capsys.readouterr().err


def test_too_little_memory_on_the_device_is_one_line(tmp_path, run_here, capsys):
    error = jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123 bytes.\nAnd more."
    )
    assert run_here(tmp_path, raising(error)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "allocate 123 bytes" in said and said.endswith(
        "a smaller --batch_size in another --workdir."
    )
    with pytest.raises(jax.errors.JaxRuntimeError):  # any other is a bug
        run_here(tmp_path, raising(jax.errors.JaxRuntimeError("INTERNAL: shapes")))


def test_ctrl_c_outside_of_the_training_is_one_line(tmp_path, run_here, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    for name in (
        "_require_same_config",
        "provenance",
        "_result_text",
    ):  # before the training, and after
        with monkeypatch.context() as patch:
            patch.setattr(launch, name, interrupted)
            assert run_here(tmp_path) == 130, name
        assert (
            capsys.readouterr().err.splitlines()[-1]
            == "interrupted; the same command goes on from here."
        )
    assert run_here(tmp_path) == 0


def test_a_signal_between_the_training_and_its_result_loses_nothing(
    tmp_path, run_here, monkeypatch
):
    written = launch.write_atomic

    def signalled(path, text):
        if path.name == "result.json":
            os.kill(os.getpid(), signal.SIGTERM)
        written(path, text)

    monkeypatch.setattr(launch, "write_atomic", signalled)
    assert run_here(tmp_path) == 0 and (tmp_path / "result.json").exists()


def test_ctrl_c_is_heard_while_the_other_processes_are_awaited(program):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # what a shell starts with & inherits that it is ignored
    process = program.start("--workdir=alone", "--multihost", *by_hand(f"localhost:{port}", 2, 0))
    signal.signal(signal.SIGINT, before)
    with socket.socket() as caller:
        while caller.connect_ex(("localhost", port)):  # until it listens, as the coordinator
            assert process.poll() is None
            time.sleep(0.05)
    time.sleep(0.5)  # by then it waits
    process.send_signal(signal.SIGINT)
    assert end_of(process) == (130, "", "interrupted; the same command goes on from here.\n")


def test_a_bug_shows_its_traceback_and_exits_with_1(program):
    code, _, errors = program.run("--workdir=bug", "--mode=bug")
    assert code == 1
    assert "Traceback" in errors and errors.splitlines()[-1] == "ZeroDivisionError: a bug"


def test_only_abandoned_writes_go_unheard(monkeypatch):
    heard = []
    for module, name in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(module, name, lambda *arguments: heard.append(arguments))
    launch._leave_abandoned_writes_unheard()
    errors = [
        RuntimeError("Event loop is closed"),
        RuntimeError("another"),
        ValueError("Event loop is closed"),
    ]
    for error in errors:
        sys.excepthook(type(error), error, None)
        for hook in (sys.unraisablehook, threading.excepthook):
            hook(SimpleNamespace(exc_type=type(error), exc_value=error))
    assert len(heard) == 2 * 3 and errors[0] not in {
        arguments[1] for arguments in heard if len(arguments) == 3
    }


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
@pytest.mark.parametrize("kept", [False, True])
def test_freed_memory_is_kept_for_every_thread(kept):
    """Page faults of the second time that a thread fills 64 MB: without, one for each 4 KiB."""
    code = f"""
import ctypes, resource, threading
from common import launch

def fill():
    global faults
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(2**26)
    ctypes.memset(block, 1, 2**26)
    libc.free(block)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if {kept}:
    launch.keep_freed_memory()
for _ in range(2):
    thread = threading.Thread(target=fill)
    thread.start()
    thread.join()
print(faults)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 100) == kept
