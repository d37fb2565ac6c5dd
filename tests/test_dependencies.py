"""The architecture: scripts -> {lenet, alexnet} -> common, without circles; and what may not be
anywhere in the tree.
"""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {  # of the project's own packages; all others are free
    "common": {"common"},
    "lenet": {"common", "lenet"},
    "alexnet": {"common", "alexnet"},
    "scripts": {"common", "lenet", "alexnet", "scripts"},
    "tests": {"common", "lenet", "alexnet", "scripts", "tests"},
}
# Within a network's package only these know the others; the rest take plain values, so that each
# can be used alone.
HEADS = {"config", "data", "model", "optimizer", "network", "train"}
KNOW_HEADS = {
    "train": HEADS,
    "network": HEADS - {"train"},
    "data": {"config"},
    "optimizer": {"config"},
    "__init__": {"network"},
}
FORBIDDEN = {"tensorflow", "pickle", "cloudpickle", "dill", "joblib"}  # a pickle can run any code
UNSAFE_ARGUMENTS = {"allow_pickle": True, "weights_only": False}
# Absolute paths of the machine that a file was written on.
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(work|farm|root|home|Users)/")
MAX_LINES = 450  # of a Python file outside tests/; ruff checks the length of lines


def imports(path: Path, tree: ast.AST) -> Iterator[str]:
    """Dotted names that a module imports, at its top or in a function: `from a import b` gives
    'a.b', whatever b is.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = path.parent.parts
            package = parents[: len(parents) - node.level + 1] if node.level else ()
            module = ".".join([*package, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def violations(path: Path, source: str) -> list[str]:
    """What the Python file `path` (relative to the root) does that is not allowed."""
    tree, package, found = ast.parse(source), path.parts[0], []
    if path.name == "utils.py":
        found.append("a file is named after what it does, not utils.py")
    if package in ("common", "lenet", "alexnet") and path.stem in sys.stdlib_module_names:
        found.append(f"{path} hides a module of Python's own where it is run in its folder")
    num_lines = source.count("\n")  # as wc counts
    if package != "tests" and num_lines > MAX_LINES:
        found.append(f"{num_lines} lines, at most {MAX_LINES}")
    for name in imports(path, tree):
        top, *rest = name.split(".")
        if top in FORBIDDEN:
            found.append(f"imports {name}")
        if top in MAY_IMPORT and top not in MAY_IMPORT.get(package, MAY_IMPORT):
            found.append(f"{package} imports {name}")
        heads = HEADS & set(rest[:1]) if top == package in ("lenet", "alexnet") else set()
        if heads - KNOW_HEADS.get(path.stem, set()):
            found.append(f"{path.name} imports its sibling {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in UNSAFE_ARGUMENTS:
            safe = not UNSAFE_ARGUMENTS[node.arg]
            if not (isinstance(node.value, ast.Constant) and node.value.value is safe):
                found.append(f"{node.arg} is not {safe}")
    return found


def circle(sources: Mapping[Path, str]) -> list[str]:
    """Modules that import each other in a circle, first = last; empty if there is none."""
    names = {
        ".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in sources
    }
    graph = {}
    for name, path in names.items():
        found = imports(path, ast.parse(sources[path]))
        # `from a import b`: the module a.b if there is one, else a, which defines b.
        graph[name] = {i if i in names else i.rpartition(".")[0] for i in found} & names.keys()
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def project_files() -> list[Path]:
    """Every file of the project, relative to the root: tracked, or new and not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    git = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if git.returncode:
        pytest.skip(f"the files are listed by git: {git.stderr.strip()}")
    return [path for path in map(Path, git.stdout.split("\0")) if (ROOT / path).is_file()]


@pytest.fixture(scope="module")
def sources() -> dict[Path, str]:
    """The text of every Python file of the project."""
    return {path: (ROOT / path).read_text() for path in project_files() if path.suffix == ".py"}


def test_the_tree_keeps_the_rules(sources):
    assert Path("tests/test_dependencies.py") in sources
    assert [
        f"{path}: {what}" for path, source in sources.items() for what in violations(path, source)
    ] == []


def test_no_modules_import_each_other_in_a_circle(sources):
    assert circle(sources) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("common/launch.py", "def main():\n    import lenet.train"),
        ("common/data.py", "from scripts import evaluate"),
        ("lenet/model.py", "from alexnet.lrn import normalize"),
        ("lenet/train.py", "import scripts.summarize"),
        ("alexnet/model.py", "from lenet import model"),
        ("alexnet/data.py", "from scripts.prepare import encode"),
        ("lenet/model.py", "from . import data"),
        ("lenet/model.py", "from .config import Config"),
        ("lenet/network.py", "from lenet import train"),
        ("lenet/__init__.py", "from lenet.train import main"),
        ("lenet/codes.py", "import lenet.optimizer as o"),
        ("scripts/convert.py", "import tensorflow as tf"),
        ("scripts/convert.py", "from pickle import loads"),
        ("common/data.py", "np.load(path, allow_pickle=True)"),
        ("common/data.py", "np.load(path, allow_pickle=flag)"),
        ("scripts/convert.py", "torch.load(path, weights_only=False)"),
        ("common/utils.py", ""),
        ("lenet/string.py", ""),
        ("common/data.py", "pass\n" * (MAX_LINES + 1)),
    ],
)
def test_each_rule_detects_its_violation(path, source):
    assert len(violations(Path(path), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("lenet/train.py", "from lenet import data, model, network\nfrom common import launch"),
        ("lenet/network.py", "from lenet import config, data, model"),
        ("lenet/__init__.py", "def load():\n    from lenet.network import load"),
        ("lenet/model.py", "from lenet import codes\nfrom . import codes\nimport common.conv"),
        ("lenet/data.py", "import common.data\nimport tensorflow_datasets as tfds"),
        ("scripts/evaluate.py", "from alexnet import config\nfrom scripts import summarize"),
        ("scripts/convert.py", "torch.load(weights_only=True)\nnp.load(allow_pickle=False)"),
        ("tests/test_data.py", "pass\n" * (MAX_LINES + 1)),
    ],
)
def test_what_is_allowed(path, source):
    assert violations(Path(path), source) == []


@pytest.mark.parametrize(
    ("a", "b", "is_one"),
    [
        ("from common import b", "import common.a", True),
        ("from common.b import x", "def f():\n    from .a import y", True),
        ("from common.b import x", "import common", True),  # whose __init__ imports common.a
        ("def f():\n    import common.a", "", True),
        ("from common.b import a", "", False),
        ("from common import b", "import json", False),
    ],
)
def test_what_a_circle_is(a, b, is_one):
    sources = {"common/__init__.py": "import common.a", "common/a.py": a, "common/b.py": b}
    assert bool(circle({Path(path): source for path, source in sources.items()})) is is_one


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
