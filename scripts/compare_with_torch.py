"""Compares the preset `torchvision` with the same layers in PyTorch, with the same weights: how far
apart are logits and gradients?

    python -m scripts.compare_with_torch [--json=results/alexnet_torchvision_agreement.json]

PyTorch draws the weights; images and labels are drawn from --seed; there is no dropout. Differences
are relative to the largest value of each array. Needs `pip install -r requirements-peers.txt`.

The two round differently, by about 1e-6 of a layer's outputs. Where a pre-activation is that close
to zero, or two values in a pooling window that close to each other, ReLU or pooling may pass on
another unit, and below it the gradient of that image differs. So the gradients of each image are
compared separately, and images with such a unit are counted and reported apart.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from absl import flags

import common.flags
from alexnet.config import Config
from alexnet.image_statistics import Statistics
from alexnet.network import assemble
from common import launch, provenance
from common.errors import UserError
from common.storage import require_place
from common.workdir import write_atomic
from scripts.convert.layouts import LAYERS, to_ours


def define_flags(flag_values: flags.FlagValues) -> None:
    flags.DEFINE_integer("batch_size", 8, "Images.", lower_bound=1, flag_values=flag_values)
    flags.DEFINE_integer(
        "seed", 0, "Seed of weights, images and labels.", lower_bound=0, flag_values=flag_values
    )
    flags.DEFINE_string("json", "", "Write the result to this file.", flag_values=flag_values)


def main(flag_values: flags.FlagValues) -> None:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "PyTorch is not installed: pip install -r requirements-peers.txt"
        ) from error
    json_path = Path(flag_values.json).expanduser()
    if flag_values.json:
        require_place(json_path, "--json", ".json")
    result = compare(torch, flag_values.batch_size, flag_values.seed)
    if flag_values.json:
        source = provenance.collect(seed=flag_values.seed, dataset=preset().dataset)
        source["versions"]["torch"] = torch.__version__
        result = {"kind": "agreement", **result, **source}
        write_atomic(json_path, json.dumps(result, indent=2) + "\n")
    print(
        f"relative difference of the logits {result['logits_relative_difference']:.1e}, of the "
        f"gradients at most {result['gradients_relative_difference']:.1e} "
        f"({result['gradients_farthest']}); units that rounding switched, by image "
        f"{result['units_switched']}, there at most "
        f"{result['switched_gradients_relative_difference']:.1e}"
    )


def preset() -> Config:
    """The config of the preset, without what is random."""
    return common.flags.from_preset(Config, "torchvision", "--dropout=0", "--dataset=fake")


def torch_alexnet(torch):
    """torchvision's AlexNet without dropout: (B, 3, 224, 224) -> (B, 1000)."""
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Flatten(),
        nn.Linear(9216, 4096),
        nn.ReLU(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Linear(4096, 1000),
    )


def compare(torch, batch_size: int, seed: int) -> dict:
    """The largest differences of one training step."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    images = random.standard_normal((batch_size, 224, 224, 3), np.float32)
    labels = random.integers(0, 1000, batch_size)

    # ---- theirs: (kind, inputs, outputs) of each layer
    theirs = torch_alexnet(torch)
    x, their_steps = torch.tensor(images.transpose(0, 3, 1, 2).copy()), []
    for layer in theirs:
        kind = {"Conv2d": "conv", "MaxPool2d": "pool", "Linear": "fc"}.get(type(layer).__name__)
        their_steps.append((kind, x, layer(x)))
        x = their_steps[-1][2]
    losses = torch.nn.functional.cross_entropy(x, torch.tensor(labels), reduction="none")

    # ---- ours, with their weights
    unused = Statistics(np.zeros((224, 224, 3), np.float32), np.eye(3, dtype=np.float32))
    network = assemble(preset(), 1000, unused)  # the images are prepared already
    with_weights = (layer for layer in theirs if hasattr(layer, "weight"))
    layers = dict(zip(LAYERS, with_weights, strict=True))
    params = {
        name: {
            "kernel": to_ours(layer.weight.detach().numpy(), name),
            "bias": layer.bias.detach().numpy(),
        }
        for name, layer in layers.items()
    }
    order = network.bind(params).order

    @jax.jit
    def forward(params):  # (inputs, outputs) of each layer
        module, x, steps = network.bind(params), images, []
        for name in order:
            steps.append((x, module.layer(name, x)))
            x = steps[-1][1]
        return steps

    @jax.jit
    def gradients(params, i):  # of the loss of image i in its batch
        def loss(params):
            return network.loss(network.logits(params, images), labels)[i]

        return jax.grad(loss)(params)

    def to_torch(x):  # (B, H, W, C) -> (B, C, H, W)
        x = np.asarray(x)
        return torch.tensor(x.transpose(0, 3, 1, 2).copy() if x.ndim == 4 else x)

    our_steps = forward(params)
    ours = [
        (name[:-1], *map(to_torch, arrays)) for name, arrays in zip(order, our_steps, strict=True)
    ]

    # ---- differences
    switched = np.zeros(batch_size, int)  # units of each image
    for a, b in zip(choices(torch, ours), choices(torch, their_steps), strict=True):
        switched += (a != b).reshape(batch_size, -1).sum(1).numpy()
    if switched.all():
        raise UserError(
            f"--seed={seed}: rounding switched a unit in every image, so there is nothing to "
            "compare; try another"
        )
    parameters = [array for layer in layers.values() for array in (layer.weight, layer.bias)]
    farthest = {True: (0.0, ""), False: (0.0, "")}  # whether units switched: (largest, where)
    for i in range(batch_size):
        found = iter(torch.autograd.grad(losses[i], parameters, retain_graph=True))
        our_grads = gradients(params, i)
        for name in layers:
            for kind in ("kernel", "bias"):
                their_grad = next(found).numpy()
                their_grad = to_ours(their_grad, name) if kind == "kernel" else their_grad
                there = difference(our_grads[name][kind], their_grad), f"{name} {kind}, image {i}"
                farthest[switched[i] > 0] = max(farthest[switched[i] > 0], there)
    return {
        "batch_size": batch_size,
        "logits_relative_difference": difference(our_steps[-1][1], x.detach().numpy()),
        "gradients_relative_difference": farthest[False][0],
        "gradients_farthest": farthest[False][1],
        "units_switched": switched.tolist(),
        "switched_gradients_relative_difference": farthest[True][0],
    }


def choices(torch, steps: list[tuple]) -> list:
    """Which units ReLU and pooling pass on, for steps (kind of layer, inputs, outputs): the
    positions of the maxima in each pooling's inputs, and the signs of the outputs of layers with
    weights.
    """
    found = []
    for kind, inputs, outputs in steps:
        if kind == "pool":
            found.append(torch.nn.functional.max_pool2d(inputs, 3, 2, return_indices=True)[1])
        elif kind in ("conv", "fc"):
            found.append(outputs > 0)
    return found


def difference(ours, theirs: np.ndarray) -> float:
    """The largest difference over the largest value."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


if __name__ == "__main__":
    sys.exit(launch.run_tool(define_flags, main, sys.argv))
