"""The layer table of a network, computed from the module itself: `python -m scripts.summarize --model=lenet [--flagfile=F]`."""

import json
import sys

from absl import flags
from rich.console import Console
from rich.table import Table

import common.flags
from common import launch
from lenet import train
from lenet.config import Config
from lenet.model import layer_table

COUNTS = ("parameters", "connections", "multiply_adds")


def define_flags(flag_values: flags.FlagValues) -> None:
    flags.DEFINE_enum("model", "lenet", ["lenet"], "The network.", flag_values=flag_values)
    flags.DEFINE_boolean("json", False, 'Print {"layers": [...], "total": {...}}.', flag_values=flag_values)
    common.flags.define(Config, flag_values)


def summarize(config: Config) -> dict:
    """{"layers": [{"name", "output", "parameters", "connections", "multiply_adds"}, ...], "total": {...}}."""
    layers = layer_table(train.build_model(config))
    return {"layers": layers, "total": {count: sum(layer[count] for layer in layers) for count in COUNTS}}


def main(flag_values: flags.FlagValues) -> None:
    summary = summarize(common.flags.read(Config, flag_values))
    if flag_values.json:
        print(json.dumps(summary))
        return
    table = Table(title="LeNet-5, grey images of ten classes", show_footer=True)
    table.add_column("layer", footer="total")
    table.add_column("output", justify="right")
    for count in COUNTS:
        table.add_column(count.replace("_", "-"), justify="right", footer=f"{summary['total'][count]:,}")
    for layer in summary["layers"]:
        output = "x".join(map(str, layer["output"]))
        table.add_row(
            layer["name"].upper() if layer["name"] != "output" else "output", output, *(f"{layer[c]:,}" for c in COUNTS)
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(launch.run_tool(define_flags, main, sys.argv))
