"""Exit codes, messages and run folders of the real program, in real processes: a tiny training with
the launcher, checkpoints and writer of both networks.
"""

import contextlib
import dataclasses
import errno
import json
import os
import pty
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from common import launch, runtime, workdir
from common.errors import INTERRUPTED, DataError, UserError
from common.flags import setting
from common.processes import Processes

pytestmark = pytest.mark.usefixtures("compiled_quickly")

ROOT = Path(__file__).parents[1]

TINY = '''
"""Trains a vector.

python -m tiny --workdir=runs/first
"""
import contextlib, dataclasses, os, time
import jax, jax.numpy as jnp
from common import launch
from common.checkpoint import Checkpointer
from common.digests import state_sha256
from common.errors import Interrupted, UserError
from common.flags import setting
from common.writer import Writer


@dataclasses.dataclass(frozen=True)
class Config:
    dataset: str = setting("none", "A name.", section="Data")
    seed: int = setting(0, "Where it starts.")
    rate: float = setting(0.5, "How far a step goes.", lower_bound=0.0)
    num_steps: int = setting(6, "How many.", section="Run", lower_bound=1)
    size: int = setting(10, "Length of the vector.")
    mode: str = setting("plain", "What goes wrong.", choices=("plain", "bug", "stuck"))
    averaging: bool = setting(False, "A switch.")
    reduction: str = setting("fast", "How sums are made.", choices=("fast", "fixed"))
    hold: str = setting("", "Wait at step 5 while this file exists.", changes_result=False)

    def __post_init__(self):
        if self.averaging and self.mode == "bug":
            raise UserError("--averaging excludes --mode=bug")


def make_task(config, resumed):
    return config


def fit(config, workdir, stop_requested):
    if config.mode == "bug":
        raise ZeroDivisionError("a bug")

    @jax.jit
    def step_once(state):
        w = state["w"]
        return {"w": w + config.rate * jnp.sin(w) * jnp.cumsum(w)}

    state = {"w": jax.random.normal(jax.random.key(config.seed), (config.size,))}
    checkpointer = Checkpointer(workdir)
    w = state["w"]
    target = {"w": jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=w.sharding)}
    step, state, totals = checkpointer.restore_newest(target) or (0, state, None)
    length = dict(num_steps=config.num_steps, steps_per_epoch=2)
    log = Writer(workdir, first_step=step, **length, before=totals)
    with contextlib.closing(checkpointer), log:
        while step < config.num_steps:
            state = step_once(state)
            step += 1
            log.write(step, "train", {"loss": abs(state["w"][0]), "errors": step % 2, "count": 4})
            if config.mode == "stuck":
                time.sleep(600)
            while step == 5 and os.path.exists(config.hold) and not stop_requested():
                time.sleep(0.01)
            stop = stop_requested()
            if step % 3 == 0 or stop:
                log.flush()
                checkpointer.save(step, state, log.totals)
            if stop:
                raise Interrupted(stop)
    return {
        "test_error_pct": 1.25, "confusion_matrix": [[3, 1], [0, 4]], "num_steps": step,
        "state_sha256": state_sha256(state),
    }


if __name__ == "__main__":
    launch.main(Config, make_task, fit)
'''


class Program:
    """Starts the tiny training in a folder of its own, with its cache and home."""

    def __init__(self, folder: Path):
        self.folder, self.started = folder, []
        (folder / "tiny.py").write_text(TINY)
        for network, preset in (folder.name, "quick"), ("other", "grand"):
            (folder.parent / network / "presets").mkdir(parents=True)
            text = "# Two steps.\n--num_steps=2\n--rate=0.125\n"
            (folder.parent / network / "presets" / f"{preset}.flags").write_text(text)
        self.environment = {
            name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"
        }
        self.environment |= {
            "PYTHONPATH": f"{ROOT}:{folder}",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "HOME": str(folder / "home"),
        }

    def start(self, *arguments: str, python=("-m", "tiny"), **environment) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", *python, *arguments],
            cwd=self.folder,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str, **more) -> tuple[int, str, str]:
        """(exit code, stdout, stderr) of a run to its end."""
        return end_of(self.start(*arguments, **more))

    def metrics(self, workdir: str) -> list[tuple[int, str]]:
        lines = (self.folder / workdir / "metrics.jsonl").read_text().splitlines()
        return [(record["step"], record["split"]) for record in map(json.loads, lines)]

    def result(self, workdir: str) -> dict:
        return json.loads((self.folder / workdir / "result.json").read_text())

    def config(self, workdir: str) -> dict:
        return json.loads((self.folder / workdir / "config.json").read_text())

    def wait_for_checkpoint(self, workdir: str, step: int) -> None:
        """And for the line of the step that follows; however long that takes."""
        saved = self.folder / workdir / "checkpoints" / str(step)
        while not (saved.exists() and len(self.metrics(workdir)) > step):
            assert self.started[-1].poll() is None
            time.sleep(0.01)


def end_of(process: subprocess.Popen) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=600)
    return process.returncode, output, errors


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    (folder := tmp_path_factory.mktemp("networks") / "tiny").mkdir()
    program = Program(folder)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's is inherited
    yield program
    signal.signal(signal.SIGHUP, before)
    for process in program.started:  # what a failed test left running
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def clean_run(program) -> tuple[int, str, str]:
    return program.run("--workdir=clean", "--rate=0.25", f"--flagfile={os.devnull}")


STEPS = [(step, "train") for step in range(1, 7)]


# ---- a whole run


@pytest.mark.commands
def test_a_run_ends_with_its_result_and_says_where_it_comes_from(program, clean_run):
    code, output, errors = clean_run
    assert code == 0 and "clean/result.json" in output and "1.25%" in output
    first = r"python 3\.\d+\.\d+ jax [\d.]+ flax [\d.]+; 1 x cpu, \d+ cores; commit "
    assert re.match(first, errors), errors
    folder = program.folder / "clean"
    files = "config.json flags.txt metrics.jsonl curves.png checkpoints result.json"
    assert set(files.split()) <= set(os.listdir(folder)) and not list(folder.glob(".*.tmp"))
    assert program.config("clean")["rate"] == 0.25 and program.metrics("clean") == STEPS
    assert "workdir" not in (folder / "flags.txt").read_text()
    assert list((program.folder / "cache" / "lenet-alexnet" / "jax").iterdir())
    assert not (program.folder / "home" / ".cache").exists()

    result, text = program.result("clean"), (folder / "result.json").read_text()
    null = os.path.relpath(os.devnull, program.folder)
    assert result["command"] == f"python -m tiny --workdir=clean --rate=0.25 --flagfile={null}"
    assert (result["seed"], result["dataset"]) == (0, "none")
    assert re.fullmatch(r"\d+\.\d+\.\d+", result["version"])
    assert result["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", result["commit"])
    assert set(result["machine"]) == {"processor", "cores", "accelerator", "devices"}
    assert {"python", "jax", "jaxlib", "flax", "optax", "numpy"} < set(result["versions"])
    for place in (str(program.folder), str(ROOT), os.uname().nodename):  # names no place
        assert place not in text.split()
    assert '"confusion_matrix": [\n    [3, 1],\n    [0, 4]\n  ]' in text


@pytest.mark.commands
def test_what_the_same_and_other_commands_do_to_a_finished_run(program, clean_run):
    before = (program.folder / "clean" / "result.json").read_bytes()
    code, output, errors = program.run("--workdir=clean", "--rate=0.25", "--hold=a")
    assert (code, output, errors) == (0, clean_run[1], "")
    code, _, errors = program.run("--workdir=clean", "--seed=3", "--averaging")
    assert code == 2
    for changed in (r"seed +0 -> 3", r"rate +0.25 -> 0.5", r"averaging +False -> True"):
        assert re.search(changed, errors)
    assert "--init_from=clean" in errors
    assert (program.folder / "clean" / "result.json").read_bytes() == before


@pytest.mark.commands
def test_twice_in_one_process_as_in_a_notebook_and_its_flagfile_replays_it(program, clean_run):
    calls = [["--flagfile=clean/flags.txt", f"--workdir={program.folder}/replay"]]
    calls.append(["--workdir=second", "--preset=quick", "--seed=1"])
    code = f"""
import contextlib, sys
from common import launch
import tiny
for arguments in {calls}:
    sys.argv = ["tiny", *arguments]
    with contextlib.suppress(SystemExit):
        launch.main(tiny.Config, tiny.make_task, tiny.fit)
"""
    assert program.run(code, python=["-c"])[0] == 0
    assert program.result("replay")["state_sha256"] == program.result("clean")["state_sha256"]
    assert "--workdir=replay" in program.result("replay")["command"]  # given as an absolute path
    assert "--preset=quick" in program.result("second")["command"]
    config = program.config("second")
    assert (config["num_steps"], config["rate"], config["seed"]) == (2, 0.125, 1)


@pytest.mark.commands
def test_a_home_that_cannot_be_written_is_not_a_failure(program):
    places = {"HOME": "/proc/absent", "XDG_CACHE_HOME": ""}
    code, output, errors = program.run("--workdir=homeless", "--num_steps=2", **places)
    assert code == 0 and "homeless" in output, errors
    assert {line.split()[0] for line in errors.splitlines()} == {"python", "step"}, errors


@pytest.mark.commands
def test_settings_of_the_environment_change_nothing_and_are_named(program, clean_run):
    ignored = {
        "JAX_DISABLE_JIT": "1",
        "JAX_ENABLE_X64": "1",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
        "JAX_DEFAULT_PRNG_IMPL": "rbg",
        "JAX_THREEFRY_PARTITIONABLE": "0",
        "JAX_RANDOM_SEED_OFFSET": "3",
        "JAX_TRANSFER_GUARD": "disallow",
    }
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ascii_only["PYTHONIOENCODING"] = "ascii:strict"
    places = {"JAX_DEBUG_NANS": "1", **ascii_only}
    # A user without a name and a home, as containers have it.
    code = "import os, pwd, runpy, sys; del os.environ['HOME'], os.environ['XDG_CACHE_HOME']; "
    code += "pwd.getpwuid = {}.__getitem__; sys.argv[0] = 'tiny'; "
    code += "runpy.run_module('tiny', run_name='__main__', alter_sys=True)"
    arguments = ("--workdir=odd", "--rate=0.25")
    code, output, errors = program.run(*arguments, python=("-c", code), **ignored, **places)
    assert code == 0 and "odd" in output, errors
    assert program.result("odd")["state_sha256"] == program.result("clean")["state_sha256"]
    warnings = [line for line in errors.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == len(ignored) and "Traceback" not in errors, errors
    assert all(any(f"{name}=" in line for line in warnings) for name in ignored)
    assert not (program.folder / "~").exists()


@pytest.mark.commands
def test_help_has_the_description_presets_and_flags_in_sections(program):
    code, output, errors = program.run("--help")
    assert (code, errors) == (0, "")
    parts = [
        *("Trains a vector.", "python -m tiny --workdir=runs/first", "  quick  Two steps."),
        *("  --workdir=", "  --preset=", "  --flagfile=", "  --[no]multihost"),
        *("Data:", "  --dataset=none", "  --rate=0.5", "Run:", "  --num_steps=6"),
        *("  --mode=plain  (one of plain, bug, stuck)", "  --[no]averaging"),
    ]
    places = [output.index(f"\n{part}" if part != parts[0] else part) for part in parts]
    assert places == sorted(places) and max(map(len, output.splitlines())) <= 100


# ---- wrong use: one line, exit code 2, nothing made


def by_hand(address: str, processes: int, number: int) -> list[str]:
    return [
        f"--coordinator_address={address}",
        f"--num_processes={processes}",
        f"--process_id={number}",
    ]


@pytest.mark.commands
def test_a_bug_shows_its_traceback_and_wrong_use_one_line_and_makes_nothing(program):
    named = {
        "--no_such=1": "no_such",
        "--averaging --mode=bug": "--averaging excludes --mode=bug",
        "--preset=grand": "--preset=grand is a preset of other, not of tiny; tiny has quick",
    }
    code = f"""
import sys
from common import launch
import tiny
for arguments in {[*named, "--workdir=y --mode=bug"]}:
    sys.argv = ["tiny", "--workdir=x", *arguments.split()]
    try:
        launch.main(tiny.Config, tiny.make_task, tiny.fit)
    except SystemExit as error:
        assert error.code == 2
"""
    code, output, errors = program.run(code, python=["-c"])
    assert (code, output) == (1, "") and errors.splitlines()[-1] == "ZeroDivisionError: a bug"
    lines = errors.splitlines()[: len(named)]
    for line, name in zip(lines, named.values(), strict=True):
        assert line.startswith("error: ") and name in line
    assert "Traceback" in errors and not (program.folder / "x").exists()


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


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--workdir=x", "--no_such=1"], "no_such"),
        (["--workdir=x", "--seed=many"], "--seed=many"),
        (["--workdir=x", "--seed=1.5"], "--seed=1.5"),
        (["--workdir=x", f"--seed={'1' * 5000}"], r"--seed=1{40,60}\.\.\. .*digits"),
        (["--workdir=x", f"--seed=0x{'f' * 5000}"], r"--seed=0xf{40,60}\.\.\. .*digits"),
        (["--workdir=x", "--seed", "1" * 5000], r"1{40,60}\.\.\. .*digits"),
        (["--workdir=x", "--flagfile=digits.flags"], r"--seed=1{40,60}\.\.\. .*digits"),
        (["--workdir=x", "--rate=nan"], "--rate"),
        (["--workdir=x", "--rate=-1"], "--rate=-1"),
        (["--workdir=x", "--pooling=median"], "--pooling=median.*average|max"),
        (["--workdir=x", "--flagfile=absent.flags"], "absent.flags"),
        (["--workdir=x", "--flagfile=bytes.flags"], "byte 0xff"),
        (["--workdir=x", "--flagfile=break.flags"], "--dataset"),
        (["--workdir=x", "--preset=none"], "--preset=none"),
        (["--workdir=x", "--preset"], "--preset="),
        (["--workdir=x", "--dataset=a\n--seed=1"], "--dataset"),
        (["--workdir=x", "rate=1"], "rate=1"),
        (["--workdir=x\udcff"], r"x\\udcff.*UTF-8"),
        (["--workdir=~nobody.of.this.name/x"], "home"),
        (["--rate=1"], "--workdir"),
        (["--workdir="], "--workdir is required"),
        (["--workdir= \t"], "--workdir is required"),
        (["--workdir=x", "--seed=13"], "--seed=13"),
        (["--workdir=x", "--num_processes=2"], "--multihost"),
        (["--workdir=x", "--num_processes=0"], "--multihost"),
        (["--workdir=x", "--process_id=0"], "--multihost"),
        (["--workdir=x", "--num_processes=-2"], "-2"),
        (["--workdir=x", "--multihost", *by_hand("a:1", 0, 0)], "--multihost"),
        (["--workdir=x", "--multihost", *by_hand("a:1", 2, 2)], "--multihost"),
        (["--workdir=x", *by_hand("a:1", 2, 1)], "--multihost"),
        (["--workdir=x", "--multihost", *by_hand("a", 2, 1)], "--coordinator_address=a.*HOST:PORT"),
    ],
)
def test_the_line_names_what_is_wrong(tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bytes.flags").write_bytes(b"--rate=1\n\xff\xfe\n")
    (tmp_path / "break.flags").write_text("--dataset=a\v--seed=1\n")
    (tmp_path / "digits.flags").write_text(f"--seed={'1' * 5000}\n")
    with pytest.raises(UserError, match=named) as caught:
        launch._parse(Config, ["program", *arguments], None)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300 and caught.value.exit_code == 2


# ---- messages that cannot be written


@pytest.mark.commands
@pytest.mark.parametrize("broken", ["pipe", "terminal", "full", "closed", "blocked"])
def test_a_message_that_cannot_be_written_changes_nothing(program, clean_run, broken):
    """The reader of a pipe ends, a terminal is closed, stderr is a full disk, is not open, or is a
    pipe that nobody empties and that does not wait.
    """
    ours, theirs = {"terminal": pty.openpty, "full": lambda: (-1, -1)}.get(broken, os.pipe)()
    if broken == "full":
        theirs = os.open("/dev/full", os.O_WRONLY)
    if broken == "blocked":
        os.set_blocking(theirs, False)
        with contextlib.suppress(BlockingIOError):
            while os.write(theirs, bytes(2**12)):
                pass
    closed = ["-c", 'exec "$0" "$@" >&- 2>&-'] if broken == "closed" else ["-c", 'exec "$0" "$@"']
    run = [sys.executable, "-m", "tiny", f"--workdir={broken}", "--rate=0.25"]
    process = subprocess.Popen(
        ["sh", *closed, *run],
        cwd=program.folder,
        env=program.environment,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    program.started.append(process)
    os.close(theirs)
    if broken in ("pipe", "terminal"):
        os.read(ours, 1)
        os.close(ours)
    assert process.wait(timeout=600) == 0
    assert program.metrics(broken) == STEPS
    assert program.result(broken)["state_sha256"] == program.result("clean")["state_sha256"]
    if broken in ("closed", "blocked"):
        os.close(ours)


# ---- signals, kills, locks


def held(program, name: str) -> str:
    """The flag with which a run waits at step 5 until that file is removed."""
    (path := program.folder / f"{name}.hold").touch()
    return f"--hold={path}"


@pytest.mark.parametrize(
    ("name", "code", "lines"),
    [
        pytest.param("SIGTERM", 143, 5, marks=pytest.mark.commands),
        pytest.param("SIGKILL", -9, 4, marks=pytest.mark.slow),
    ],
)
def test_stopped_or_killed_it_resumes_bit_for_bit(program, clean_run, name, code, lines):
    command = (f"--workdir={name}", "--rate=0.25")
    process = program.start(*command, held(program, name))
    program.wait_for_checkpoint(name, 3)
    process.send_signal(signal.Signals[name])
    stopped, output, errors = end_of(process)
    assert (stopped, output) == (code, "")
    assert name == "SIGKILL" or name in errors.splitlines()[-1]
    assert not (program.folder / name / "result.json").exists()
    assert program.metrics(name) == STEPS[:lines]
    assert program.run(*command)[0] == 0 and program.metrics(name) == STEPS
    assert program.result(name)["state_sha256"] == program.result("clean")["state_sha256"]


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGINT"])
@pytest.mark.parametrize("ignored", [False, True])
def test_every_signal_of_a_scheduler_is_a_request_to_save(name, ignored, monkeypatch):
    """Unless it was ignored when the program started, as with nohup. The system sends SIGHUP and
    SIGXCPU again by itself.
    """
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    number = signal.Signals[name]
    before = signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with runtime.stop_signals() as stop_requested:
            for _ in range(3):
                os.kill(os.getpid(), number)
                time.sleep(0.05)
            assert stop_requested() == (None if ignored else number)
        assert signal.getsignal(number) == (signal.SIG_IGN if ignored else signal.SIG_DFL)
    finally:
        signal.signal(number, before)
    assert ended == ([128 + number] * 2 if (name, ignored) == ("SIGINT", False) else [])


@pytest.mark.commands
def test_a_second_run_is_kept_out_and_a_second_signal_ends_the_first_at_once(program):
    command = ("--workdir=stuck", "--mode=stuck")  # one call of minutes that no signal ends
    first = program.start(*command)
    lines = iter(first.stderr.readline, "")
    next(line for line in lines if "jax" in line)
    code, output, errors = program.run(*command)
    assert (code, output) == (75, "") and f"process {first.pid}" in errors
    assert errors.count("\n") == 1
    first.send_signal(signal.SIGINT)
    assert "SIGINT" in next(line for line in lines if "SIG" in line)
    assert first.poll() is None
    first.send_signal(signal.SIGINT)
    assert end_of(first)[0] == 130


@pytest.mark.commands
def test_ctrl_c_is_heard_while_the_other_processes_are_awaited(program):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    process = program.start("--workdir=alone", "--multihost", *by_hand(f"localhost:{port}", 2, 0))
    with socket.socket() as caller:
        while caller.connect_ex(("localhost", port)):  # until it listens, as the coordinator
            assert process.poll() is None
            time.sleep(0.05)
    time.sleep(0.5)  # by then it waits
    process.send_signal(signal.SIGINT)
    code, output, errors = end_of(process)
    assert (code, output, errors) == (130, "", f"{INTERRUPTED}\n")


# ---- storage


LARGE = ("--rate=0.25", "--size=200000")


def fills_up(program, process) -> str:
    """The last line of a run whose files can grow no more."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (300_000, 300_000))
    for path in program.folder.glob("*.hold"):
        path.unlink()
    code, output, errors = end_of(process)
    assert (code, output) == (74, "") and "Traceback" not in errors, errors
    last = errors.splitlines()[-1]
    assert "/checkpoints: File too large" in last, errors
    return last


@pytest.mark.commands
def test_a_disk_that_is_full_is_one_line(program):
    process = program.start("--workdir=full_disk", *LARGE)  # it is still importing
    last = fills_up(program, process)
    assert "full_disk/" in last and "is safe" not in last


@pytest.mark.slow
def test_a_disk_that_fills_up_later_costs_no_more_than_the_steps_since_the_last_save(program):
    process = program.start("--workdir=filling", *LARGE, held(program, "filling"))
    program.wait_for_checkpoint("filling", 3)
    assert "step 3 is safe" in fills_up(program, process)
    for name in ("filling", "roomy"):
        assert program.run(f"--workdir={name}", *LARGE)[0] == 0
        assert program.metrics(name) == STEPS
    assert program.result("filling")["state_sha256"] == program.result("roomy")["state_sha256"]


@pytest.fixture
def run_here(monkeypatch):
    monkeypatch.setattr(runtime, "use_compilation_cache", lambda: None)  # belongs to the process

    def run(workdir, train=lambda *_: {"num_steps": 1}, config=Config()) -> int:
        return launch._run(config, workdir, Processes(), train)

    return run


def raising(error):
    def train(*_, **__):
        raise error

    return train


def test_a_workdir_that_cannot_be_used_is_one_line_and_left_alone(tmp_path, run_here, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"dataset": "none", "lrn": true}')
    for name, code, named in [
        ("file", 74, "file"), ("file/run", 74, "file/run"), ("/proc/run", 74, "/proc/run"),
        ("other", 2, "other"), ("foreign", 2, "lrn"),
    ]:  # fmt: skip
        assert run_here(tmp_path / name) == code, name
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1 and named in message
    assert os.listdir(tmp_path / "other") == ["thesis.tex"]
    os.symlink("gone", tmp_path / "link")
    for name in ("link", "link/run"):
        assert run_here(tmp_path / name) == 74, name
        message = capsys.readouterr().err
        assert f"{tmp_path}/link is a link to gone, which does not exist" in message
        assert message.startswith("error: ") and message.count("\n") == 1
    for damaged in ("{", "3", "[1]"):
        (tmp_path / "foreign" / "config.json").write_text(damaged)
        assert run_here(tmp_path / "foreign") == 74
    assert run_here(tmp_path / "run") == 0
    (tmp_path / "run" / "result.json").write_text("{")
    assert run_here(tmp_path / "run") == 74 and "result.json" in capsys.readouterr().err


def test_errors_of_the_user_the_disk_and_the_device_are_lines_and_bugs_are_not(
    tmp_path, run_here, monkeypatch, capsys
):
    assert run_here(tmp_path / "new", raising(DataError("labels reach 12"))) == 65
    assert capsys.readouterr().err.splitlines()[-1] == "error: labels reach 12"
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 123 bytes.\nAnd more.")
    assert run_here(tmp_path / "new", raising(full)) == 2
    assert "--batch_size" in capsys.readouterr().err.splitlines()[-1]
    assert run_here(tmp_path / "new", raising(MemoryError("Unable to allocate 9 TiB"))) == 2
    assert "9 TiB" in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "run/checkpoints/30").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text("{}")
    for number in launch.STORAGE_ERRORS:
        error = OSError(number, os.strerror(number), "metrics.jsonl")
        assert run_here(tmp_path / "run", raising(error)) == 74
        last = capsys.readouterr().err.splitlines()[-1]
        assert str(error) in last and "step 30 is safe" in last
    with monkeypatch.context() as patch:
        patch.setattr(launch, "last_good", raising(error))
        assert run_here(tmp_path / "run", raising(error)) == 74
    bugs = [ZeroDivisionError("a bug"), OSError(errno.EBADF, "a bug")]
    bugs.append(jax.errors.JaxRuntimeError("INTERNAL: shapes"))
    for bug in bugs:
        with pytest.raises(type(bug)):
            run_here(tmp_path / "new", raising(bug))
    # None of these left the lock behind, or bound the folder to its settings.
    assert run_here(tmp_path / "new", config=Config(seed=1)) == 0


@pytest.mark.parametrize("content", ["", "2011 another-host"])
def test_a_lock_that_a_killed_process_left_is_named(
    tmp_path, run_here, monkeypatch, capsys, content
):
    """As on a disk without locks, where a file with content stands for one."""
    (tmp_path / ".lock").write_text(content)
    monkeypatch.setattr(workdir.filelock, "FileLock", raising(workdir.filelock.Timeout(".lock")))
    assert run_here(tmp_path) == 75
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and (f"remove {tmp_path / '.lock'}" in error) == bool(content)


def test_signals_before_and_after_the_training(tmp_path, run_here, monkeypatch, capsys):
    for owner, name in (
        (workdir, "require_same_config"), (launch.provenance, "collect"), (launch, "write_result"),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda *_, **__: raising(KeyboardInterrupt())())
            assert run_here(tmp_path) == 130, name
        assert capsys.readouterr().err.splitlines()[-1] == INTERRUPTED

    def signalled(path, content, write=workdir.write_atomic):
        if path.name == "result.json":
            os.kill(os.getpid(), signal.SIGTERM)
        write(path, content)

    monkeypatch.setattr(workdir, "write_atomic", signalled)
    assert run_here(tmp_path) == 0 and (tmp_path / "result.json").exists()
