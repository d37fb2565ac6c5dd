"""A run folder from a stranger is read without harm: whatever its checkpoint says, nothing outside
the folder is read, memory stays bounded, and each command answers in one line.

The demonstrations are those of scripts/faults/stranger.py.
"""

import contextlib
import resource
import shutil
from pathlib import Path

import jax
import pytest

import lenet.network
import scripts.checkpoint
import scripts.runs
from common import launch
from common.checkpoint import Checkpointer
from common.errors import UserError
from lenet.config import Config
from lenet.network import assemble, given_params
from scripts.faults.stranger import (
    DEMONSTRATIONS,
    GOLDEN,
    any_read,
    demonstrate,
    forget_reads,
)


@pytest.fixture
def little_memory():
    """Whoever allocates gigabytes fails, or is ended by the library's allocator."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_the_folder_that_the_demonstrations_change_is_good(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "run")
    assert lenet.network.load(tmp_path / "run").step == 64
    with contextlib.closing(Checkpointer(tmp_path / "run", read_only=True)) as checkpointer:
        assert checkpointer.verify(64) is None


@pytest.mark.commands
@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_a_strangers_checkpoint_is_refused(tmp_path, name, little_memory, capfd):
    workdir = demonstrate(name, tmp_path)
    outside = forget_reads(workdir.with_name("outside"))
    assert len(outside) > 1 or not any(word in name for word in ("path", "link"))
    with pytest.raises(UserError) as caught:
        lenet.network.load(workdir)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 600
    assert not capfd.readouterr().err

    network = assemble(Config(init_from=str(workdir)))
    with pytest.raises(UserError):
        given_params(network, None, jax.eval_shape(network.init))

    assert tool("ls", str(workdir)) == 0
    assert tool("verify", str(workdir)) == 74
    printed = capfd.readouterr()
    lines = printed.out.splitlines() + printed.err.splitlines()
    assert all(line.isprintable() for line in lines) and "Traceback" not in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not any_read(outside)


def tool(*arguments: str) -> int:
    """The exit code of `python -m scripts.checkpoint`, in this process."""
    define, main = scripts.checkpoint.define_flags, scripts.checkpoint.main
    return launch.run_tool(define, main, ["checkpoint", *arguments], words=("ls|verify", "DIR"))


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "checkpoints"])
def test_what_a_link_names_outside_the_folder_is_not_read(tmp_path, name, capfd):
    workdir = tmp_path / "run"
    shutil.copytree(GOLDEN, workdir)
    shutil.move(workdir / name, tmp_path / "elsewhere")
    (workdir / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="link"):
        lenet.network.load(workdir)
    assert tool("ls", str(workdir)) == tool("verify", str(workdir)) == 2


@pytest.mark.parametrize("text", ["[" * 100_000, "7", '{"\x1b[2J": 1}', '{"num_epochs": "\x1b"}'])
def test_a_config_that_no_run_writes_is_refused_on_one_line(tmp_path, text):
    workdir = tmp_path / "run"
    shutil.copytree(GOLDEN, workdir)
    (workdir / "config.json").write_text(text)
    assert not scripts.runs.is_alexnet(workdir)
    with pytest.raises(UserError) as caught:
        lenet.network.load(workdir)
    assert str(caught.value).isprintable()


def test_names_that_a_terminal_would_obey_are_not_printed(tmp_path, capfd):
    workdir = tmp_path / "run"
    shutil.copytree(GOLDEN, workdir)
    for name in ("7.corrupt[x]", "8\x1b[2J", "٩", "010"):
        (workdir / "checkpoints" / name).mkdir()
    assert tool("ls", str(workdir)) == 0
    printed = capfd.readouterr()
    assert "corrupt" not in printed.out and "\x1b" not in printed.out and "64" in printed.out
    (workdir / "metrics.jsonl").write_text('{"split": "validation", "step": 64}\n')
    assert tool("ls", str(workdir)) == 0  # a line that no run wrote is none
