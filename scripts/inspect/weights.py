"""What was learned, read from the weights: the kernels of the first layer, C3's connections."""

import numpy as np

from lenet.connections import c3_connections
from scripts.inspect.opened import Run
from scripts.inspect.parts import Cell, Gallery, Grid, Item
from scripts.inspect.pixels import mosaic, of_weights

COLUMNS, FEW = 16, 32  # AlexNet's 96 kernels lie as in the paper's figure 3; few are shown larger


def first_kernels(run: Run) -> Gallery:
    """C1's or conv1's kernels."""
    kernels = np.asarray(run.trained.params[run.first_layer]["kernel"])
    is_gray = run.trained.network.image_shapes[0][-1] == 1
    if is_gray:  # AlexNet sees gray as three equal colors: the sum of their weights counts
        kernels = kernels.sum(axis=2, keepdims=True)
    height, width, _, count = kernels.shape
    what = f"{count} kernels of {height}x{width}{'' if is_gray else ' in RGB'}"
    note = "Mid-gray is 0; each kernel is scaled to its largest weight."
    if run.network == "alexnet" and run.trained.config.towers == 2:
        note += f" The first {count // 2} are those of the first tower."
    title = f"The kernels of {run.layer_title(run.first_layer)}"
    picture = mosaic(of_weights(kernels), min(count, COLUMNS if count > FEW else COLUMNS // 2))
    item = Item(picture, (what,), f"{title}: {what}, as pictures")
    return Gallery("kernels", title, note, [item], wide=True)


def c3_table(run: Run) -> Grid:
    """Which S2 maps each C3 map sees, the paper's Table I."""
    config = run.trained.config
    connections = c3_connections(config.c3, config.seed)
    rows = [
        (f"{s2}", [Cell("X", 1.0) if s2 in seen else Cell("", 0.0) for seen in connections])
        for s2 in range(6)
    ]
    which = {
        "table": "The paper's Table I",
        "dense": "All connections, not the paper's Table I",
        "random": "Random connections, as many as in the paper's Table I",
    }[config.c3]
    note = f"{which} (--c3={config.c3}): an X where a C3 map (column) sees an S2 map (row)."
    columns = tuple(f"{c3}" for c3 in range(len(connections)))
    return Grid("c3_table", "C3's connections", note, "S2 \\ C3", columns, rows)
