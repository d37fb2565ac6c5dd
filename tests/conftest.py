"""What several test files share. Tests run on the one device that JAX finds; those that need eight
start a subprocess.

Annotations of the project's functions are checked at every call in this process: shapes and dtypes
by jaxtyping, everything else by beartype.
"""

import os
import shutil
import signal
from pathlib import Path

import jax
import pytest
from hypothesis import settings
from jax.experimental.compilation_cache import compilation_cache
from jaxtyping import install_import_hook

# Before the packages are imported. An int may stand for a float, as everywhere in Python.
install_import_hook(
    ["lenet", "alexnet", "common"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

# What a shell starts with & inherits that SIGINT is ignored, and so would the tests' commands.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("no deadline", deadline=None, max_examples=30)  # machines are shared
settings.load_profile("no deadline")


@pytest.fixture(scope="module")
def compiled_quickly():
    """XLA without its expensive passes, here and in subprocesses: half the time where tests compile
    much and compute little.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def compiled_well(compiled_quickly, monkeypatch):
    """In such a file, a test that is compiled like a user's command, subprocesses too: what it says
    hangs on the last bits.
    """
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Programs that were compiled once are kept for the module's next run in this process."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def without_curves(monkeypatch):
    """Runs in this process draw no curves.png, which takes longer than training a tiny network."""
    monkeypatch.setattr("common.writer.draw_curves", lambda *_: None)


@pytest.fixture(params=["cpu", "gpu"])
def backend(request, monkeypatch):
    """The forms for a CPU, then those for a GPU, computed on what there is."""
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)


@pytest.fixture(scope="session")
def full_mnist() -> str:
    """The data_dir that holds all of MNIST (60,000 / 10,000), prepared."""
    data_dir = os.environ.get("TFDS_DATA_DIR")
    if not data_dir or not list(Path(data_dir).glob("mnist/*/dataset_info.json")):
        pytest.skip("$TFDS_DATA_DIR holds no mnist: python -m scripts.prepare_data --dataset=mnist")
    return data_dir


@pytest.fixture(scope="session")
def torch():
    """PyTorch, for side-by-side checks."""
    return pytest.importorskip(
        "torch", reason="PyTorch is not installed: pip install -r requirements-peers.txt"
    )


@pytest.fixture(scope="session")
def mnist10k_train():
    """The embedded set's training digits as the paper preset sees them: ((8000, 32, 32, 1) float32,
    (8000,) labels).
    """
    from lenet.config import Config
    from lenet.data import load_splits, prepare_function

    train, _, _ = load_splits(Config(dataset="mnist10k", validation_size=0, track="test"))
    return prepare_function("paper", "none")(train.images), train.labels


@pytest.fixture(scope="session")
def write_set():
    """write_set(folder, name, images, num_classes=10): a prepared set, labels 0, 1, 2 ..., train
    and test alike.
    """
    from scripts.prepare.builders import write_prepared

    def write(folder, name, images, num_classes=10):
        labels = [i % num_classes for i in range(len(images))]
        splits = {split: list(zip(images, labels, strict=True)) for split in ("train", "test")}
        names = [str(label) for label in range(num_classes)]
        return write_prepared(
            folder, name, "1.0.0", splits, images.shape[1:], names, keep_order=True
        )

    return write


@pytest.fixture
def score(monkeypatch, capsys):
    """score(workdir, *flags): scripts.evaluate here: its exit code, output and errors."""
    from common import launch, runtime
    from scripts import evaluate

    monkeypatch.setattr(runtime, "keep_freed_memory", lambda: None)

    def run(workdir, *flags):
        argv = ["evaluate", f"--workdir={workdir}", *flags]
        code = launch.run_tool(evaluate.define_flags, evaluate.main, argv)
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, that of the system or Playwright's own."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is missing: pip install -r requirements-dev.txt"
    )
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with playwright.sync_playwright() as started:
        try:
            opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium: apt-get install chromium ({str(error).splitlines()[0]})")
        yield opened
        opened.close()


@pytest.fixture
def contrasts():
    """contrasts(page): [text, contrast] of the elements of a page in the browser that have text of
    their own, by WCAG 2's formula, lowest first; what is translucent is laid over what is below it.
    """
    return lambda page: page.evaluate(CONTRASTS)


CONTRASTS = """
() => {
  const parse = color => {
    const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = (top, below) => below.map((v, i) => top[i] * top[3] + v * (1 - top[3]));
  const ground = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement)
      layers.push(parse(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const light = color => {
    const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const [r, g, b] = color.map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility()) continue;
    const below = ground(e), text = over(parse(getComputedStyle(e).color), below);
    const [low, high] = [light(below), light(text)].sort((a, b) => a - b);
    found.push([e.textContent.trim().slice(0, 40), (high + .05) / (low + .05)]);
  }
  return found.sort((a, b) => a[1] - b[1]);
}
"""
