"""The shell scripts: environment.sh and test.sh in little trees of their own, and the whole of
quickstart.sh once.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.commands

ROOT = Path(__file__).parents[1]
VERSION = "{}.{}".format(*sys.version_info)
SCRIPTS = sorted([ROOT / ".ci/run", *ROOT.glob("scripts/*.sh")])


def run(tree: Path, *command: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs a command in `tree` as a user would, with the Python that runs the tests unless told
    otherwise.
    """
    environment = {**os.environ, "PYTHON": sys.executable, **environment}
    pipes = dict(stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return subprocess.run(command, cwd=tree, env=environment, **pipes)


@pytest.fixture
def tree(tmp_path) -> Path:
    """The scripts in a folder of their own, with nothing to install: needs no network."""
    (tmp_path / "scripts").mkdir()
    for script in ROOT.glob("scripts/*.sh"):
        shutil.copy(script, tmp_path / "scripts")
    (tmp_path / "requirements.txt").touch()
    return tmp_path


def python_with(tree: Path, name: str, content: str) -> str:
    """This Python, with a module of that name in the place of its own."""
    (tree / "fake").mkdir()
    (tree / "fake" / f"{name}.py").write_text(content)
    python = tree / "fake" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tree}/fake" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return str(python)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_it(script):
    assert run(ROOT, "bash", "-n", str(script)).stderr == ""


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh"])
def test_missing_ensurepip_gets_one_line(tree, script):
    python = python_with(tree, "ensurepip", "raise ImportError")
    result = run(tree, "bash", f"scripts/{script}", PYTHON=python)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and f"apt install python{VERSION}-venv" in result.stderr
    assert not (tree / ".venv").exists()


@pytest.mark.parametrize("version", ["(3, 10, 14)", "(3, 14, 0)", "(2, 7, 18)"])
def test_another_python_is_refused_in_one_line(tree, version):
    python = python_with(tree, "sitecustomize", f"import sys\nsys.version_info = {version}")
    result = run(tree, "bash", "scripts/quickstart.sh", PYTHON=python)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and "3.11, 3.12 or 3.13" in result.stderr


def test_no_python_gets_one_line(tree):
    result = run(tree, "bash", "scripts/quickstart.sh", PYTHON="python-of-another-age")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and "python-of-another-age" in result.stderr


@pytest.mark.slow
def test_installs_once_and_again_where_something_changed(tree):
    def install() -> str:
        script = "set -euo pipefail; source scripts/environment.sh; install requirements.txt"
        result = run(tree, "bash", "-c", script, PIP_NO_INDEX="1")
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert "Installing requirements.txt" in install()
    assert install() == ""

    (tree / "requirements.txt").write_text("# other\n")
    assert "Installing requirements.txt" in install()
    (tree / ".venv/requirements.txt").unlink()  # as after an interrupted installation
    assert "Installing requirements.txt" in install()
    assert install() == ""

    python = tree / ".venv/bin/python"
    python.unlink()  # it is a link to this Python
    python.write_text("#!/bin/sh\necho 3.9\n")
    python.chmod(0o755)
    replaced = install()
    assert "Python 3.9 made it" in replaced and "Installing requirements.txt" in replaced
    assert install() == ""

    (tree / "requirements.txt").write_text("a-package-that-nobody-wrote\n")
    for _ in range(2):  # a failed installation fails, and is tried again
        result = run(tree, "bash", "scripts/quickstart.sh", PIP_NO_INDEX="1")
        assert result.returncode == 1 and "requirements.txt failed" in result.stderr


TIERS = """
import pytest

def test_unit(): pass

@pytest.mark.commands
def test_commands(): pass

@pytest.mark.slow
def test_slow(): pass

@pytest.mark.nightly
def test_nightly(): pass
"""


@pytest.mark.parametrize(
    ("arguments", "minutes", "code", "passed"),
    [
        ([], "5 min", 0, {"unit", "commands"}),
        (["--quick", "-p", "no:cacheprovider"], "1 min", 0, {"unit"}),
        (["--ci"], "25 min", 0, {"unit", "commands", "slow"}),
        (["--ci", "-k", "slow or nightly"], "25 min", 0, {"slow"}),
        (["--all", "-k", "slow or nightly"], "45 min", 0, {"slow", "nightly"}),
        (["--quick", "-k", "slow"], "1 min", 5, set()),  # pytest's code for no tests
        (["--no_such_option"], "5 min", 4, set()),  # and for wrong use
    ],
)
def test_tiers(tree, arguments, minutes, code, passed):
    """With the packages of the Python that runs the tests instead of an installation."""
    (tree / "requirements-dev.txt").touch()
    (tree / "tests").mkdir()
    (tree / "tests/test_tiers.py").write_text(TIERS)
    shutil.copy(ROOT / "pyproject.toml", tree)
    (binaries := tree / ".venv/bin").mkdir(parents=True)
    for name in ("requirements.txt", "requirements-dev.txt"):
        shutil.copy(tree / name, tree / ".venv")
    for name, body in (
        ("pip", "exit 1"), ("ruff", 'echo ruff "$@"'), ("python", f'exec "{sys.executable}" "$@"')
    ):  # fmt: skip
        (binaries / name).write_text(f"#!/bin/sh\n{body}\n")
        (binaries / name).chmod(0o755)
    result = run(tree, "bash", "scripts/test.sh", *arguments, PYTEST_ADDOPTS="-v")
    assert result.returncode == code, result.stdout + result.stderr
    assert minutes in result.stdout and "ruff check ." in result.stdout
    assert set(re.findall(r"PASSED \S+::test_(\w+)", result.stdout)) == passed


@pytest.mark.nightly  # installs a gigabyte, then trains 60 epochs
def test_quickstart_from_nothing_then_again(tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(
        ROOT,
        tree,
        ignore=shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*_cache"),
    )
    try:
        first = run(tmp_path, "bash", "tree/scripts/quickstart.sh")  # from another folder
        assert first.returncode == 0, first.stdout + first.stderr
        written = (tree / "runs/quickstart/result.json").read_text()
        result = json.loads(written)
        assert result["num_test_examples"] == 2000 and result["test_error_pct"] <= 2.0
        assert (tree / "runs/quickstart/curves.png").exists()
        assert "Mistakes" in (tree / "runs/quickstart/report.html").read_text()
        assert first.stdout.rstrip().endswith("open runs/quickstart/report.html in a browser.")
        assert f"{result['test_error_pct']:.2f}%" in first.stdout and "2,000" in first.stdout
        assert "0.95%" in first.stdout and "runs/quickstart" in first.stdout

        again = run(tree, "bash", "scripts/quickstart.sh")
        assert again.returncode == 0, again.stdout + again.stderr
        assert "Installing" not in again.stdout and "complete" in again.stdout + again.stderr
        assert (tree / "runs/quickstart/result.json").read_text() == written
    finally:
        shutil.rmtree(tree / ".venv", ignore_errors=True)  # a gigabyte
