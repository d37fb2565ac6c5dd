"""The layer table of a network, computed from the module itself:

python -m scripts.summarize --model=lenet|alexnet [--preset=paper]
[--name=value ...]

First the geometry of each layer, for LeNet-5 beside the lecture deck's own table, then the counts.
With --model=alexnet --mesh=data:4,model:2 also what devices send each other in a training step,
read from the compiled program, beside that of the same devices without a model axis; the devices
are virtual.
"""

import dataclasses
import itertools
import json
import math
import re
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from rich.console import Console
from rich.table import Table

import alexnet.config
import alexnet.image_statistics
import alexnet.model
import alexnet.network
import alexnet.train
import common.flags
import lenet.config
import lenet.model
import lenet.network
from alexnet.sequence import ACTIVATIONS, LayerSequence
from common import launch, parallel
from common.errors import UserError
from scripts.claims import printed

NUM_CLASSES = {
    "imagenet_256": 1000,
    "fake": 1000,
    "cifar10": 10,
}  # where --num_classes is 0: no data is needed here
CONFIGS = {"lenet": lenet.config.Config, "alexnet": alexnet.config.Config}


def define_flags(flag_values: flags.FlagValues, model: str = "lenet") -> None:
    flags.DEFINE_enum("model", "lenet", list(CONFIGS), "The network.", flag_values=flag_values)
    flags.DEFINE_boolean(
        "json", False, 'Print {"layers": [...], "total": {...}}.', flag_values=flag_values
    )
    common.flags.define(CONFIGS[model], flag_values)


def chosen_model(argv: list[str]) -> str:
    """What --model says: the other flags depend on it."""
    flags.DEFINE_enum(
        "model", "lenet", list(CONFIGS), "The network.", flag_values=(values := flags.FlagValues())
    )
    try:
        values(argv, known_only=True)
    except flags.Error:
        return "lenet"  # errors are reported when all flags are parsed
    return values.model


def summarize(config) -> dict:
    """{"layers": [{"name", "output", "parameters", ..., "kernel", "stride", "padding",
    "activation"}, ...], "total": {...}}; of LeNet-5's layers also "deck", what the lecture deck
    prints; with --net=alexnet "conv_pct" too: the convolutions' share of each count.

    `kernel` is [rows, columns], `padding` the zeros before and after; null where a layer has none.
    """
    if isinstance(config, lenet.config.Config):
        size, num_classes = 32, num_chosen(config) or 10
        network = lenet.network.assemble(config, num_classes)  # refuses what training refuses
        model = nnx.eval_shape(lambda: network.bind(network.init()))
        layers, geometry = lenet.model.layer_table(model), lenet_geometry
    else:
        size, num_classes = config.crop_size, number_of_classes(config)
        model = nnx.eval_shape(lambda: alexnet.network.build_model(config, num_classes))
        layers, geometry = alexnet.model.layer_table(model, size), alexnet_geometry
    counts = [name for name in layers[0] if name not in ("name", "output")]
    inputs = [[size, size], *(layer["output"] for layer in layers)]
    summary = {
        "layers": [
            layer | geometry(model, layer, x) for layer, x in zip(layers, inputs[:-1], strict=True)
        ],
        "total": {count: sum(layer[count] for layer in layers) for count in counts},
    }
    if isinstance(config, alexnet.config.Config) and config.net == "alexnet":
        convolutions = [layer for layer in layers if layer["name"].startswith("conv")]
        summary["conv_pct"] = {
            count: 100 * sum(layer[count] for layer in convolutions) / summary["total"][count]
            for count in counts
        }
    return summary


def lenet_geometry(model: lenet.model.LeNet5, row: dict, inputs: list[int]) -> dict:
    """What a row of `summarize` says beside its counts; `inputs` is what the layer sees."""
    name, layer = row["name"], getattr(model, row["name"])
    kernel = stride = padding = None
    if isinstance(layer, lenet.model.Subsampling):
        kernel, stride, padding = [2, 2], 2, [0, 0]
    elif isinstance(layer, lenet.model.Convolution):
        kernel, stride, padding = list(layer.kernel.shape[:2]), 1, [0, 0]
    function = model.before_pooling if name in ("c1", "c3") else model.activation
    names = {f: name for name, f in lenet.model.ACTIVATIONS.items()}
    activation = names.get(function)
    if name == "output" and model.f6 is not None:
        activation = "rbf" if isinstance(layer, lenet.model.EuclideanRBF) else "softmax"
    geometry = dict(kernel=kernel, stride=stride, padding=padding, activation=activation)
    return geometry | {"deck": printed.LENET.get(name, {})}


def alexnet_geometry(model: LayerSequence, row: dict, inputs: list[int]) -> dict:
    """The same of AlexNet and the CIFAR-10 networks. `padding` of a pool is what its last window
    has beyond the edge.
    """
    name, kernel, stride, padding = row["name"], None, None, None
    if name.startswith("conv"):
        layer = getattr(model, name)
        kernel, padding = list(layer.kernel_size), list(layer.padding[0])
        (stride, _) = np.broadcast_to(layer.strides, 2).tolist()
    elif name.startswith("local"):
        side = math.isqrt(getattr(model, name).kernel.shape[2] // inputs[2])
        kernel, stride, padding = [side, side], 1, [side // 2, side // 2]
    elif name.startswith("pool"):
        pool = model.pool if isinstance(model, alexnet.model.AlexNet) else model.max_pool
        side, stride = (3 if pool.keywords["overlapping"] else 2), 2
        beyond = (row["output"][0] - 1) * stride + side - inputs[0]
        kernel, padding = [side, side], [0, max(beyond, 0)]
    names = {f: name for name, f in ACTIVATIONS.items()}
    following = dict(itertools.pairwise(model.order)).get(name, "")
    activation = names[model.activation] if following.startswith("activation") else None
    if name == model.order[-1]:
        activation = "softmax"
    return dict(kernel=kernel, stride=stride, padding=padding, activation=activation)


def num_chosen(config) -> int:
    """How many classes --classes names."""
    return len(config.classes.split(",")) if config.classes else 0


def number_of_classes(config) -> int:
    """What --num_classes, --classes or a known set says. Raises UserError for others: their data is
    not looked at.
    """
    num_classes = config.num_classes or num_chosen(config) or NUM_CLASSES.get(config.dataset)
    if num_classes is None:
        raise UserError(
            f"--dataset={config.dataset}: the number of classes is unknown; add --num_classes=N"
        )
    return num_classes


def collectives(config: alexnet.config.Config) -> dict[str, dict[str, int]]:
    """What a training step of AlexNet sends: mesh -> {kind of collective: bytes of its results on
    one device}, for the config's mesh and for one of as many devices without a model axis.
    """
    num_devices = math.prod(parallel.mesh_shape(config.mesh).values())
    meshes = dict.fromkeys((f"data:{num_devices}", config.mesh))
    return {
        mesh: collective_bytes(compiled_step(dataclasses.replace(config, mesh=mesh)))
        for mesh in meshes
    }


def compiled_step(config: alexnet.config.Config) -> str:
    """The compiled program (HLO) of a training step, for the devices of --mesh."""
    size = config.crop_size
    blank = alexnet.image_statistics.Statistics(
        np.full((size, size, 3), 127.5, np.float32), np.eye(3, dtype=np.float32)
    )
    before_fc = parallel.gather_before_split_layers(config.mesh)
    network = alexnet.network.assemble(config, number_of_classes(config), blank, before_fc)
    tx = alexnet.train.build_optimizer(config, 1)
    train_step = alexnet.train.make_train_step(network, tx)
    modes = dict(
        mode="jit",
        reduction=config.reduction,
        mesh=config.mesh,
        split_layers=alexnet.train.FULLY_CONNECTED,
    )
    placement = parallel.place(train_step, **modes, batch_size=config.batch_size)
    state = jax.eval_shape(lambda: alexnet.train.initial_state(network, tx, blank, network.init()))
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        placement.state_shardings(state),
    )
    images = (config.batch_size, size, size, 3)
    kinds = {
        "image": (images, jnp.uint8),
        "label": (images[:1], jnp.int32),
        "draw": (images[:1], jnp.uint32),
    }
    split = placement.place_training(np.zeros(config.batch_size)).sharding
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=split)
        for name, (shape, dtype) in kinds.items()
    }
    return placement.run.lower(state, batch).compile().as_text()


def collective_bytes(program: str) -> dict[str, int]:
    """Kind of collective -> bytes of the results on one device, over all such instructions of an
    HLO text.
    """
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    total = {}
    for results, kind in re.findall(rf"= (\(.*?\)|\S+) ({kinds})(?:-start)?\(", program):
        for bits, shape in re.findall(r"[a-z]+(\d*)\[([\d,]*)\]", results):
            size = math.prod(int(n) for n in shape.split(",") if n) * max(int(bits or 8) // 8, 1)
            total[kind] = total.get(kind, 0) + size
    return total


def main(flag_values: flags.FlagValues) -> None:
    config = common.flags.read(CONFIGS[flag_values.model], flag_values)
    mesh = parallel.mesh_shape(config.mesh if flag_values.model == "alexnet" else "")
    if mesh:  # as many virtual devices, before anything asks for one
        jax.config.update("jax_num_cpu_devices", math.prod(mesh.values()))
        jax.config.update("jax_platforms", "cpu")
    summary = summarize(config) | ({"collectives": collectives(config)} if mesh else {})
    if flag_values.json:
        print(json.dumps(summary))
        return
    is_lenet = flag_values.model == "lenet"
    title = (
        f"LeNet-5, gray images of {num_chosen(config) or 'ten'} classes"
        if is_lenet
        else f"--net={config.net} --crop_size={config.crop_size}"
    )
    Console().print(geometry_table(title, summary["layers"], is_lenet))
    table = Table(show_footer=True, pad_edge=False)
    table.add_column("layer", footer="total")
    table.add_column("output", justify="right")
    for count, total in summary["total"].items():
        table.add_column(
            count.replace("_", "-" if is_lenet else "\n"), justify="right", footer=f"{total:,}"
        )
    for layer in summary["layers"]:
        table.add_row(
            printed_name(layer, is_lenet),
            "x".join(map(str, layer["output"])),
            *(f"{layer[count]:,}" for count in summary["total"]),
        )
    if "conv_pct" in summary:
        conv = summary["conv_pct"]
        table.caption = (
            f"convolutions: {conv['deck_parameters']:.0f}% of the parameters and "
            f"{conv['deck_computations']:.0f}% of the computations, as the lecture deck counts them"
        )
    Console().print(table)
    for name, sent in summary.get("collectives", {}).items():
        parts = (
            ", ".join(f"{kind} {size / 1e6:.1f}" for kind, size in sorted(sent.items()))
            or "nothing"
        )
        print(
            f"--mesh={name}: {sum(sent.values()) / 1e6:.1f} MB per step and device ({parts}), "
            f"batch {config.batch_size}"
        )


def geometry_table(title: str, layers: list[dict], is_lenet: bool) -> Table:
    """Kernel, stride, padding and activation of each layer, and the deck's row if it has one."""
    table = Table(title=title, pad_edge=False)
    columns = ["layer", "output", "kernel", "stride", "pad-\nding", "activation"]
    for column in columns + ["the lecture deck"] * is_lenet:
        table.add_column(column, justify="right" if column in columns[1:5] else "left")
    for layer in layers:
        cells = [printed_name(layer, is_lenet), "x".join(map(str, layer["output"]))]
        cells.append("x".join(map(str, layer["kernel"] or ())))
        cells.append(str(layer["stride"] or ""))
        cells.append(", ".join(dict.fromkeys(map(str, layer["padding"] or ()))))
        cells.append(layer["activation"] or "")
        if is_lenet:
            cells.append(deck_words(layer["deck"]) if layer["deck"] else "")
        table.add_row(*cells)
    return table


def deck_words(deck: dict) -> str:
    """A row of the deck's table of LeNet-5: maps@size kernel/stride activation, and its counts."""
    *sides, maps = deck["output"]
    words = [f"{maps}@{'x'.join(map(str, sides))}" if sides else str(maps)]
    if "kernel" in deck:
        words.append(f"{'x'.join(map(str, deck['kernel']))}/{deck['stride']}")
    words.append(deck["activation"])
    words += [
        f"{deck[count]:,} {count}" for count in ("parameters", "connections") if count in deck
    ]
    return " ".join(words)


def printed_name(layer: dict, is_lenet: bool) -> str:
    return layer["name"].upper() if is_lenet and layer["name"] != "output" else layer["name"]


if __name__ == "__main__":
    model = chosen_model(sys.argv)
    define = partial(define_flags, model=model)
    sys.exit(launch.run_tool(define, main, sys.argv, config_class=CONFIGS[model]))
