"""The weights of a run for other programs: safetensors, the program as StableHLO, a model card."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from jax import export

from common.errors import NonFiniteError, StorageError, UserError
from common.network import Network, Trained
from common.storage import make_folder
from common.workdir import write_atomic
from scripts.inspect import about
from scripts.inspect.opened import Run, read_result
from scripts.inspect.parts import Table
from scripts.prepare.entries import printable
from scripts.report import studies
from scripts.runs import load_run, network_name

WEIGHTS, PROGRAM, CARD = "model.safetensors", "predict.jax_export", "README.md"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# Of two probabilities that differ by rounding alone, by the type that layers compute in.
CLOSE = {"float32": 1e-5, "bfloat16": 2e-2}


def export_run(workdir: Path, folder: Path, step: str | None) -> str:
    """Writes the three files into `folder`; returns what to tell the user.

    Raises:
      UserError: there is no such run or checkpoint, or `folder` holds something.
      StorageError: they cannot be written.
    """
    trained = load_run(workdir, step)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} holds something already: name another folder")
        make_folder(folder)
    except OSError as error:
        raise StorageError(f"cannot write in {folder}: {error.strerror or error}") from error
    weights = {
        f"{layer}.{name}": np.asarray(array)
        for layer, arrays in trained.params.items()
        for name, array in arrays.items()
    }
    # a file that is passed on names no folder of this machine
    jax.config.update("jax_traceback_in_locations_limit", 0)
    program = stablehlo(trained.network, weights)
    _require_same(trained, program, weights)
    network = network_name(workdir)
    run = Run(workdir, network, trained, read_result(workdir)[0])
    metadata = {"network": network, "config": json.dumps(dataclasses.asdict(trained.config))}
    files = {
        WEIGHTS: safetensors.numpy.save(weights, metadata=metadata),
        PROGRAM: program,
        CARD: card(run).encode(),
    }
    try:
        for name, content in files.items():
            write_atomic(folder / name, content)
    except OSError as error:
        for name in files:  # all or nothing
            (folder / name).unlink(missing_ok=True)
        raise StorageError(f"cannot write in {folder}: {error.strerror}") from error
    return f"{folder}: " + ", ".join(f"{name} ({len(files[name]):,} bytes)" for name in files)


def stablehlo(network: Network, weights: dict[str, np.ndarray]) -> bytes:
    """(weights, stored images (B, H, W, C) uint8) -> (B, num_classes) float32 probabilities, with
    the preparation inside, for any B, as `jax.export` serializes it.
    """

    def predict(weights: dict[str, Any], images: jax.Array) -> jax.Array:
        params = {}
        for name, array in weights.items():
            layer, _, parameter = name.partition(".")
            params.setdefault(layer, {})[parameter] = array
        return jax.nn.softmax(network.logits(params, network.prepare(images)))

    arrays = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), weights)
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *network.image_shapes[0]), np.uint8)
    return export.export(jax.jit(predict), platforms=PLATFORMS)(arrays, images).serialize()


def _require_same(trained: Trained, program: bytes, weights: dict[str, np.ndarray]) -> None:
    """Raises RuntimeError unless the program gives what the run gives."""
    shape = (2, *trained.network.image_shapes[0])
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found, ours = export.deserialize(program).call(weights, images), trained.predict(images)
    if not np.isfinite(ours).all():
        raise NonFiniteError("the run's probabilities are not finite")
    difference = np.abs(np.asarray(found) - ours).max()
    if not difference <= CLOSE[trained.config.compute_dtype]:
        raise RuntimeError(f"the exported program is off by {difference:.1e}")


def card(run: Run) -> str:
    """The model card, in Markdown. Whatever the run's folder says is escaped."""
    network, weights = run.trained.network, run.trained.params
    measured = run.result.get("num_steps") == run.trained.step  # not of another checkpoint
    errors = about.errors(run) if measured else None
    accuracy = markdown(errors) if errors else "Accuracy not measured."
    layers = [
        (f"{layer}.{name}", " x ".join(map(str, array.shape)))
        for layer, arrays in weights.items()
        for name, array in arrays.items()
    ]
    names = run.trained.class_names or [str(number) for number in range(network.num_classes)]
    shape = ", ".join(map(str, network.image_shapes[0]))
    imported = about.imported_from(run).partition(",")[0]
    made = f"with {imported}" if imported else f"trained on {network.config.dataset}"
    return f"""# {studies.NETWORKS[run.network]}, {escaped(made)}

{accuracy}

## Where it comes from

{markdown(about.what_was_run(run))}

## What it takes and gives

(B, {shape}) uint8, 0 to 255, for any B -> (B, {network.num_classes}) float32, probabilities. The
preparation is part of the program: {preparation(run)}.

```python
from jax import export
from safetensors.numpy import load_file

predict = export.deserialize(open("{PROGRAM}", "rb").read())
probabilities = predict.call(load_file("{WEIGHTS}"), images)  # pip install jax safetensors
```

`predict.mlir_module()` is the program as StableHLO, for {", ".join(PLATFORMS)}.

Classes, in the order of the outputs: {escaped(", ".join(names))}.

## Weights

Kernels of convolutions are (rows, columns, inputs, outputs), of layers without shared weights
(`local3`) (rows, columns, 9 times inputs, outputs), others (inputs, outputs). Where maps become a
vector, the order is rows, columns, maps.

{rows_of(("array in " + WEIGHTS, "shape"), layers)}
"""


def preparation(run: Run) -> str:
    """What happens to the pixels, in a sentence."""
    config, statistics = run.trained.config, run.trained.statistics
    side = min(run.trained.network.image_shapes[0][:2])
    if run.network == "lenet":
        ranges = {"unit": "0 to 1", "paper": "-0.1 to 1.175", "hundredths": "0 to 2.55"}
        padded = "28x28 pixels are padded with zeros to 32x32, and " if side == 28 else ""
        return f"{padded}values become {ranges[config.scaling]} (background to foreground)"
    channels = "RGB" if statistics.mean_image.shape[-1] == 3 else "gray"
    mean = statistics.mean_image.mean(axis=(0, 1), dtype=np.float64)
    deviation = np.sqrt(np.diag(statistics.covariance))
    values = f"{channels} minus the mean image, whose channels average {numbers(mean)}"
    if config.scaling == "standardized":
        values = f"({channels} - {numbers(mean)}) / {numbers(deviation)}, channel by channel"
    crop = f"{config.crop_size}x{config.crop_size} pixels"
    place = "the central" if side >= config.crop_size else "padded with the median of the border to"
    return f"{place} {crop}, {values}{', as three equal channels' * (channels == 'gray')}"


def numbers(values: np.ndarray) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def markdown(table: Table) -> str:
    """A table of a report."""
    rows = rows_of(table.head or ("", ""), table.rows)
    return f"{escaped(table.note)}\n\n{rows}" if table.note else rows


def rows_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return studies.markdown([list(head), *([escaped(cell) for cell in row] for row in rows)])


def escaped(text: str) -> str:
    """As Markdown shows it unchanged."""
    return re.sub(r"([`*_\[\]|<>~#&])", r"\\\1", printable(text).replace("\\", "\\\\"))
