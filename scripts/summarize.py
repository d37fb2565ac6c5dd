"""The layer table of a network, computed from the module itself:

python -m scripts.summarize --model=lenet|alexnet [--flagfile=lenet/presets/paper.flags] [--name=value ...]
"""

import json
import sys
from functools import partial

from absl import flags
from flax import nnx
from rich.console import Console
from rich.table import Table

import alexnet.config
import alexnet.model
import alexnet.train
import common.flags
import lenet.config
import lenet.model
import lenet.train
from common import launch
from common.errors import UserError

NUM_CLASSES = {"imagenet_256": 1000, "fake": 1000, "cifar10": 10}  # where --num_classes is 0: no data is needed here
CONFIGS = {"lenet": lenet.config.Config, "alexnet": alexnet.config.Config}


def define_flags(flag_values: flags.FlagValues, model: str = "lenet") -> None:
    flags.DEFINE_enum("model", "lenet", list(CONFIGS), "The network.", flag_values=flag_values)
    flags.DEFINE_boolean("json", False, 'Print {"layers": [...], "total": {...}}.', flag_values=flag_values)
    common.flags.define(CONFIGS[model], flag_values)


def chosen_model(argv: list[str]) -> str:
    """What --model says: the other flags depend on it."""
    flags.DEFINE_enum("model", "lenet", list(CONFIGS), "The network.", flag_values=(values := flags.FlagValues()))
    try:
        values(argv, known_only=True)
    except flags.Error:
        return "lenet"  # what is wrong is said when all flags are read
    return values.model


def summarize(config) -> dict:
    """{"layers": [{"name", "output", "parameters", ...}, ...], "total": {...}}; with --net=alexnet "conv_pct" too: the
    convolutions' share of each count.
    """
    if isinstance(config, lenet.config.Config):
        layers = lenet.model.layer_table(lenet.train.build_model(config))
    else:
        num_classes = config.num_classes or NUM_CLASSES.get(config.dataset)
        if num_classes is None:
            raise UserError(f"--dataset={config.dataset}: how many classes has it? Add --num_classes=N")
        model = nnx.eval_shape(lambda: alexnet.train.build_model(config, num_classes))
        layers = alexnet.model.layer_table(model, config.crop_size)
    counts = [name for name in layers[0] if name not in ("name", "output")]
    summary = {"layers": layers, "total": {count: sum(layer[count] for layer in layers) for count in counts}}
    if isinstance(config, alexnet.config.Config) and config.net == "alexnet":
        convolutions = [layer for layer in layers if layer["name"].startswith("conv")]
        summary["conv_pct"] = {
            count: 100 * sum(layer[count] for layer in convolutions) / summary["total"][count] for count in counts
        }
    return summary


def main(flag_values: flags.FlagValues) -> None:
    config = common.flags.read(CONFIGS[flag_values.model], flag_values)
    summary = summarize(config)
    if flag_values.json:
        print(json.dumps(summary))
        return
    is_lenet = flag_values.model == "lenet"
    title = "LeNet-5, grey images of ten classes" if is_lenet else f"--net={config.net} --crop_size={config.crop_size}"
    table = Table(title=title, show_footer=True, pad_edge=False)
    table.add_column("layer", footer="total")
    table.add_column("output", justify="right")
    for count, total in summary["total"].items():
        table.add_column(count.replace("_", "-" if is_lenet else "\n"), justify="right", footer=f"{total:,}")
    for layer in summary["layers"]:
        name = layer["name"].upper() if is_lenet and layer["name"] != "output" else layer["name"]
        table.add_row(name, "x".join(map(str, layer["output"])), *(f"{layer[count]:,}" for count in summary["total"]))
    if "conv_pct" in summary:
        conv = summary["conv_pct"]
        table.caption = (
            f"convolutions: {conv['deck_parameters']:.0f}% of the parameters and {conv['deck_computations']:.0f}% of the "
            "computations, counted as in the lecture deck"
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(launch.run_tool(partial(define_flags, model=chosen_model(sys.argv)), main, sys.argv))
