"""A run folder from the weights that another program trained."""

import contextlib
import hashlib
import itertools
from pathlib import Path

import numpy as np
from flax import nnx

import common.flags
from alexnet.config import Config
from alexnet.image_statistics import Statistics
from alexnet.network import build_model
from common import provenance
from common.checkpoint import Checkpointer
from common.classes import listed
from common.errors import DataError, UserError
from common.network import num_elements
from common.workdir import claimed, saved_steps, write_result
from scripts.convert.layouts import CAFFE, DEVIATION, LAYERS, LAYOUTS, Layout, their_shape, to_ours
from scripts.convert.reading import FLOATS, Weights, opened, read_npy
from scripts.prepare.layouts import synsets

DATASET = "imagenet_256"  # what both were trained on, as this project prepares it
IMAGE_SHAPE = (256, 256, 3)
MEAN_SHAPE = (3, 256, 256)  # of Caffe's mean image, blue first
MAX_CLASSES = 22_000  # more than ImageNet has


def import_weights(
    file: Path, workdir: Path, layout: str, names: tuple[str, ...], mean_image: Path | None
) -> str:
    """Writes a run folder with the weights in `file`; returns what to tell the user.

    Args:
      layout: a key of LAYOUTS, or auto.
      names: of the outputs; (): those of ImageNet where there are 1,000, else none.
      mean_image: a .npy file with Caffe's mean image.

    Raises:
      UserError: `workdir` holds something, or an argument does not fit.
      DataError: the weights do not fit or are damaged.
    """
    if saved_steps(workdir):
        raise UserError(f"{workdir} holds a run already: name another folder")
    with opened(file) as weights:
        chosen = LAYOUTS[_layout_of(file, weights) if layout == "auto" else layout]
        config = common.flags.from_preset(
            Config, chosen.preset, f"--dataset={DATASET}", *chosen.flags
        )
        num_classes = _num_classes(file, weights, chosen)
        shapes = nnx.to_pure_dict(
            nnx.state(nnx.eval_shape(lambda: build_model(config, num_classes)), nnx.Param)
        )
        _require_fit(file, weights, chosen, shapes)
        if not names and num_classes == len(synsets()):
            names = tuple(synsets())
        if names and (len(names) != num_classes or len(set(names)) != num_classes):
            raise UserError(
                f"--class_names must be {num_classes:,} different names, one for each output; "
                f"these are {len(names):,}, {len(set(names)):,} of them different"
            )
        statistics = _statistics(chosen, mean_image)
        params = _read(file, weights, chosen, shapes)

    imported = {"file": file.name, "sha256": _sha256(file), "weights": chosen.owner}
    facts = {"num_classes": num_classes, "image_shape": IMAGE_SHAPE, "class_names": names}
    settings = common.flags.settings_of(config)
    state = {"params": params, "statistics": statistics}
    with claimed(config, workdir):
        with contextlib.closing(Checkpointer(workdir)) as checkpointer:
            checkpointer.save(0, state, facts | settings | {"imported": imported})
        source = provenance.collect(seed=config.seed, dataset=config.dataset)
        write_result(workdir, {"imported": imported, "num_steps": 0} | source | settings)
    return (
        f"{workdir}: {chosen.owner}, {num_elements(params):,} parameters, {num_classes:,} classes; "
        "accuracy not measured (python -m scripts.evaluate does so)"
        + "; CaffeNet's file looks the same: import one with --layout=caffenet"
        * (layout == "auto" and chosen is CAFFE)
    )


def _layout_of(file: Path, weights: Weights) -> str:
    """torchvision or caffe, by the names in the file. Raises DataError for others."""
    for name in ("torchvision", "caffe"):
        if f"{LAYOUTS[name].names['conv1']}.weight" in weights.headers:
            return name
    raise DataError(
        f"{file} has neither features.0.weight, as torchvision's AlexNet, nor conv1.weight, as "
        f"Caffe's; it has {listed(sorted(weights.headers)) or 'nothing'}"
    )


def _num_classes(file: Path, weights: Weights, layout: Layout) -> int:
    """The outputs of fc8; 1 where the file has none, which `_require_fit` says."""
    name = f"{layout.names['fc8']}.bias"
    if name not in weights.headers:
        return 1
    shape = weights.headers[name].shape
    if not shape or not 1 <= shape[-1] <= MAX_CLASSES:
        raise DataError(f"{file}: {name} should have 1 to {MAX_CLASSES:,} values; it has {shape}")
    return shape[-1]


def _require_fit(file: Path, weights: Weights, layout: Layout, shapes: dict) -> None:
    """Raises DataError, naming what does not fit, unless the file has the weights and biases of all
    layers and nothing else.
    """
    expected = {}
    for layer, kind in itertools.product(LAYERS, ("weight", "bias")):
        leaf = shapes[layer]["kernel" if kind == "weight" else "bias"]
        shape = their_shape(leaf.shape) if kind == "weight" else leaf.shape
        expected[f"{layout.names[layer]}.{kind}"] = shape
    missing = sorted(expected.keys() - weights.headers.keys())
    more = sorted(weights.headers.keys() - expected.keys())
    wrong = [f"lacks {listed(missing)}"] * bool(missing) + [f"also has {listed(more)}"] * bool(more)
    for name in sorted(expected.keys() & weights.headers.keys()):
        dtype, shape = weights.headers[name]
        if _plain(shape, len(expected[name])) != expected[name]:
            wrong.append(f"has {name} of {shape}, not {expected[name]}")
        elif dtype not in FLOATS:
            wrong.append(f"has {name} of {dtype}, not {', '.join(sorted(FLOATS))}")
    if wrong:
        raise DataError(f"{file} is not {layout.owner}: it {'; it '.join(wrong[:3])}")


def _plain(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Old Caffe files give each array four axes: (1, 1, 1, 96) is (96,)."""
    extra = max(len(shape) - rank, 0)
    return shape[extra:] if shape[:extra] == (1,) * extra else shape


def _read(file: Path, weights: Weights, layout: Layout, shapes: dict) -> dict:
    """{layer: {"kernel", "bias"}} as the network here has them."""
    maps, params = shapes["conv5"]["bias"].shape[0], {}
    for layer in LAYERS:
        found = {}
        for kind in ("weight", "bias"):
            name = f"{layout.names[layer]}.{kind}"
            found[kind] = weights.read(name)
            if not np.isfinite(found[kind]).all():
                raise DataError(f"{file}: {name} holds NaN, infinity, or more than float32 can")
        kernel, bias = (shapes[layer][kind].shape for kind in ("kernel", "bias"))
        weight = found["weight"].reshape(their_shape(kernel))
        params[layer] = {
            "kernel": to_ours(weight, layer, maps=maps, is_bgr=layout.is_bgr),
            "bias": found["bias"].reshape(bias),
        }
    return params


def _statistics(layout: Layout, mean_image: Path | None) -> Statistics:
    """What its images were prepared with. Of the covariance only the variances are known."""
    mean = np.broadcast_to(np.float32(layout.mean), IMAGE_SHAPE).copy()
    if mean_image:
        if not layout.is_bgr:
            raise UserError(f"--mean_image is for Caffe's weights; these are {layout.owner}")
        header, read = read_npy(mean_image)
        if header.shape != MEAN_SHAPE or header.dtype not in FLOATS:
            raise UserError(
                f"{mean_image} should hold floats of {MEAN_SHAPE}; it has {header.dtype} of "
                f"{header.shape}"
            )
        mean = np.ascontiguousarray(read()[::-1].transpose(1, 2, 0))
        if not (np.isfinite(mean).all() and mean.min() >= 0 and mean.max() <= 255):
            raise UserError(f"{mean_image} should hold values of 0 to 255")
    return Statistics(mean, np.diag(np.float32(DEVIATION) ** 2))


def _sha256(file: Path) -> str:
    with file.open("rb") as opened_file:
        return hashlib.file_digest(opened_file, "sha256").hexdigest()
