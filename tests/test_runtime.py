"""What a run sets up in its process, and what it says about itself."""

import contextlib
import importlib
import os
import platform
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import jax
import pytest

import lenet.config
import lenet.train
from common import provenance, runtime
from common.errors import UserError
from common.start_up import start_up_lines


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("", "--xla_gpu_deterministic_ops=true"),
        (
            "--xla_cpu_use_acl=false",
            "--xla_cpu_use_acl=false --xla_gpu_deterministic_ops=true",
        ),
        ("--xla_gpu_deterministic_ops=false", "--xla_gpu_deterministic_ops=false"),
    ],
)
def test_deterministic_reductions_restrict_xla_before_jax_starts(monkeypatch, given, used):
    monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setenv("NPROC", "3")
    jax.devices()
    with pytest.raises(UserError, match="--reduction=fixed"):
        runtime.use_deterministic_reductions()
    assert os.environ["XLA_FLAGS"] == given
    monkeypatch.setattr(runtime.xla_bridge, "backends_are_initialized", lambda: False)
    runtime.use_deterministic_reductions()
    assert (os.environ["XLA_FLAGS"], os.environ["NPROC"]) == (used, "8")
    monkeypatch.undo()


def test_only_the_writes_that_orbax_abandons_are_muted(monkeypatch):
    reported = []
    for module, name in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(module, name, lambda *arguments: reported.append(arguments))
    runtime.mute_orbax_tracebacks()
    abandoned = RuntimeError("Event loop is closed")
    for error in (abandoned, RuntimeError("another"), ValueError("Event loop is closed")):
        sys.excepthook(type(error), error, None)
        for hook in (sys.unraisablehook, threading.excepthook):
            hook(SimpleNamespace(exc_type=type(error), exc_value=error))
    assert len(reported) == 2 * 3
    assert abandoned not in {arguments[1] for arguments in reported if len(arguments) == 3}


@pytest.mark.commands
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
@pytest.mark.parametrize("kept", [False, True])
def test_freed_memory_is_kept_for_every_thread(kept):
    """Page faults of the second time that a thread fills 64 MB: without, one for each 4 KiB."""
    code = f"""
import ctypes, resource, threading
from common import runtime

def fill():
    global faults
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(2**26)
    ctypes.memset(block, 1, 2**26)
    libc.free(block)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if {kept}:
    runtime.keep_freed_memory()
for _ in range(2):
    thread = threading.Thread(target=fill)
    thread.start()
    thread.join()
print(faults)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 100) == kept


@pytest.mark.commands
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
@pytest.mark.parametrize(
    ("limit_gb", "setting", "most_gb"), [(4, "", 1), (None, "0", 0.1), (None, "", None)]
)
def test_the_addresses_that_are_reserved_leave_room_under_a_limit(limit_gb, setting, most_gb):
    code = """
import re
from pathlib import Path
from common import runtime

def peak_gb():
    return int(re.search(r"VmPeak:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1e6

before = peak_gb()
runtime.keep_freed_memory()
print(peak_gb() - before)
"""
    limit = f"ulimit -v {limit_gb * 10**6}; " if limit_gb else ""
    done = subprocess.run(
        ["sh", "-c", limit + 'exec "$0" "$@"', sys.executable, "-c", code],
        env=os.environ | {"LENET_ALEXNET_KEEP_MEMORY": setting},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) <= most_gb if most_gb else float(done.stdout) > 0.1


@pytest.mark.parametrize(
    ("line", "file", "group", "text"),
    [
        ("0::/user/job\n", "memory.max", "user", "3000\n"),  # of a group above; "max" below
        ("5:cpu:/\n4:memory:/job\n", "memory/memory.limit_in_bytes", "job", "3000\n"),
        ("0::/hidden/by/a/container\n", "memory.max", "", "3000\n"),
    ],
)
def test_the_limit_of_the_control_group(tmp_path, line, file, group, text):
    (tmp_path / "cgroup").write_text(line)
    folder, name = os.path.split(file)
    for place, content in (
        (tmp_path / folder / "user" / "job", "max\n"),
        (tmp_path / folder / group, text),
    ):
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(content)
    assert runtime.control_group_limit(tmp_path / "cgroup", tmp_path) == 3000
    assert runtime.control_group_limit(tmp_path / "absent", tmp_path) is None


def test_the_start_up_lines_say_what_is_trained():
    config = lenet.config.Config(dataset="mnist10k", validation_size=500, batch_size=64)
    task = lenet.train.make_task(config)
    lines = start_up_lines(task, step=0)
    assert len(lines) == 3 and max(map(len, lines)) <= 100
    text = "\n".join(lines)
    for fact in (
        "mnist10k", "7,500 train", "500 validation", "2,000 test", "10 classes", "1 channel",
        "60,806 parameters", "float32", "1 device ", "jit", "20 epochs", "117 steps", "2,340 steps",
    ):  # fmt: skip
        assert fact in text, fact
    assert start_up_lines(task, step=351)[:-1] == lines
    assert {"351", "3.00"} <= set(re.findall(r"[\d.]+", start_up_lines(task, step=351)[-1]))


def test_a_copy_of_the_code_inside_another_checkout_has_no_commit(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    (tmp_path / "provenance.py").touch()
    assert provenance.commit() is None


def test_results_do_not_make_a_commit_dirty(tmp_path, monkeypatch):
    """A study writes there, and its next run is of the same code."""

    def git(*words):
        name = ["-c", "user.name=a", "-c", "user.email=a"]
        command = ["git", "-C", tmp_path, *name, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    code, result = tmp_path / "common/provenance.py", tmp_path / "results/choice.json"
    for file in (code, result):
        file.parent.mkdir()
        file.write_text("1")
    git("add", ".")
    git("commit", "-qm", "all")
    monkeypatch.setattr(provenance, "__file__", str(code))
    head = git("rev-parse", "HEAD").strip()
    result.write_text("2")
    assert provenance.commit() == head
    code.write_text("2")
    assert provenance.commit() == f"{head}-dirty"


def test_a_hidden_module_cannot_be_imported_until_the_end(tmp_path, monkeypatch):
    (tmp_path / "hidden_here.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for error in (None, RuntimeError):
        with contextlib.suppress(RuntimeError), runtime.hidden("hidden_here"):
            with pytest.raises(ImportError):
                importlib.import_module("hidden_here")
            if error:
                raise error
        assert "hidden_here" not in sys.modules
    module = importlib.import_module("hidden_here")
    with runtime.hidden("hidden_here"):  # what is imported already stays
        assert sys.modules["hidden_here"] is module
    assert sys.modules["hidden_here"] is module
