"""Who may import whom (scripts -> {lenet, alexnet} -> common), and what may stand nowhere in the
tree.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {  # of the project's own packages; every other package is free
    "common": {"common"},
    "lenet": {"common", "lenet"},
    "alexnet": {"common", "alexnet"},
    "scripts": {"common", "lenet", "alexnet", "scripts"},
    "tests": {"common", "lenet", "alexnet", "scripts", "tests"},
}
# Inside a network's package only train.py knows these; the others take plain values, so each serves
# in a notebook.
HEADS = {"config", "data", "model", "optimizer", "train"}
FORBIDDEN = {
    "tensorflow",
    "pickle",
    "cloudpickle",
    "dill",
    "joblib",
}  # a pickle runs whatever code it carries
UNSAFE_ARGUMENTS = {"allow_pickle": True, "weights_only": False}
MACHINE_PATH = re.compile(
    r"(?<![\w.~-])/(work|farm|root|home|Users)/"
)  # absolute, of the machine it was written on


def imports(path: Path, tree: ast.AST) -> Iterator[str]:
    """Dotted names that a module imports, anywhere in it: `from a import b` gives 'a.b', whatever b
    is.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = (
                path.parent.parts[: len(path.parent.parts) - node.level + 1] if node.level else ()
            )
            module = ".".join([*package, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def violations(path: Path, source: str) -> list[str]:
    """What the Python file `path` (relative to the root) does that it may not."""
    tree, package, found = ast.parse(source), path.parts[0], []
    if path.name == "utils.py":
        found.append("a file is named after what it does, not utils.py")
    for name in imports(path, tree):
        top, *rest = name.split(".")
        if top in FORBIDDEN:
            found.append(f"imports {name}")
        if top in MAY_IMPORT and top not in MAY_IMPORT.get(package, MAY_IMPORT):
            found.append(f"{package} imports {name}")
        if (
            package in ("lenet", "alexnet")
            and top == package
            and path.name != "train.py"
            and HEADS & set(rest[:1])
        ):
            found.append(f"{path.name} imports its sibling {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in UNSAFE_ARGUMENTS:
            safe = not UNSAFE_ARGUMENTS[node.arg]
            if not (isinstance(node.value, ast.Constant) and node.value.value is safe):
                found.append(f"{node.arg} is not {safe}")
    return found


def project_files() -> list[Path]:
    """Every file of the project, relative to the root: tracked, or new and not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    git = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if git.returncode:
        pytest.skip(f"the files are listed by git: {git.stderr.strip()}")
    return [path for path in map(Path, git.stdout.split("\0")) if (ROOT / path).is_file()]


def test_the_tree_keeps_the_rules():
    modules = [path for path in project_files() if path.suffix == ".py"]
    assert Path("tests/test_dependencies.py") in modules
    assert [
        f"{path}: {what}"
        for path in modules
        for what in violations(path, (ROOT / path).read_text())
    ] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("common/launch.py", "def main():\n    import lenet.train"),
        ("common/data.py", "from scripts import evaluate"),
        ("lenet/model.py", "from alexnet.lrn import normalize"),
        ("lenet/train.py", "import scripts.summarize"),
        ("alexnet/model.py", "from lenet import model"),
        ("lenet/model.py", "from . import data"),
        ("lenet/model.py", "from .config import Config"),
        ("lenet/__init__.py", "from lenet.train import main"),
        ("lenet/codes.py", "import lenet.optimizer as o"),
        ("scripts/convert.py", "import tensorflow as tf"),
        ("scripts/convert.py", "from pickle import loads"),
        ("common/data.py", "np.load(path, allow_pickle=True)"),
        ("common/data.py", "np.load(path, allow_pickle=flag)"),
        ("scripts/convert.py", "torch.load(path, weights_only=False)"),
        ("common/utils.py", ""),
    ],
)
def test_each_rule_bites(path, source):
    assert len(violations(Path(path), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("lenet/train.py", "from lenet import data, model, optimizer\nfrom common import launch"),
        (
            "lenet/model.py",
            "from lenet import codes\nfrom . import codes\nfrom common.conv import conv",
        ),
        ("lenet/data.py", "import common.data\nimport tensorflow_datasets as tfds"),
        (
            "scripts/evaluate.py",
            "from alexnet import config\nfrom lenet import config, model\nfrom scripts import summarize",
        ),
        (
            "scripts/convert.py",
            "torch.load(path, weights_only=True)\nnp.load(path, allow_pickle=False)",
        ),
    ],
)
def test_what_is_allowed(path, source):
    assert violations(Path(path), source) == []


def test_no_paths_of_a_machine():
    found = []
    for path in project_files():
        content = (ROOT / path).read_bytes()
        if b"\0" not in content:  # text
            lines = content.decode(errors="replace").splitlines()
            found += [f"{path}: {line.strip()}" for line in lines if MACHINE_PATH.search(line)]
    assert found == []


@pytest.mark.parametrize(
    ("text", "is_one"), [("--data_dir={}/me/tfds", True), ("https://example.org{}/a ~{}/b", False)]
)
def test_what_a_path_of_a_machine_is(text, is_one):
    assert bool(MACHINE_PATH.search(text.replace("{}", "/home"))) is is_one
