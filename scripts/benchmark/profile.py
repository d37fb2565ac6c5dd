"""Where the time goes: the parts of updates, scores, single operations and saves, each measured by
itself.
"""

import functools
import shutil
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax import lax

import alexnet.lrn
import lenet.config
from common.checkpoint import is_finite
from common.digests import host_leaves
from scripts.benchmark import sets
from scripts.benchmark.alexnet import described
from scripts.benchmark.attempts import attempt
from scripts.benchmark.checkpoints import save_and_restore
from scripts.benchmark.machine import copy_bandwidth, matmul_peak
from scripts.benchmark.measure import A_PART, Case
from scripts.benchmark.ops import cotangent, max_pool, shape_text, with_gradients
from scripts.benchmark.reading import reading_parts
from scripts.benchmark.timing import Setting, span, timed
from scripts.benchmark.training import AlexNetTraining, LeNetTraining, embedded_digits

IN_ALL_CONTAINS = "As in cifar_train or alexnet_predict. Limit: the operations at the matmul peak."
CROPS_CONTAINS = "Limit: bytes in and out at the copy bandwidth."
LAYER_CONTAINS = (
    "A layer forward. Limit: its operations at the matmul peak; without weights, bytes in and out "
    "at the copy bandwidth."
)
LRN_CONTAINS = (
    "Limit: what each reads and writes at the copy bandwidth; in all, x twice, the outputs, and "
    "both gradients."
)
STALL_CONTAINS = (
    "In all: until Checkpointer.save returns. Orbax alone: until its CheckpointManager.save "
    "returns. Not finite: a look for NaN and infinity in all arrays."
)
POOLING_CONTAINS = (
    "Limit: what each reads and writes at the copy bandwidth; in all, 3.5 arrays like x, as in ops."
)


def profile(setting: Setting) -> Iterator[Case]:
    """The parts of what misses its target or just meets it."""
    yield from step_parts(setting, "cifar18")
    yield from step_parts(setting, "small")
    yield from prediction_parts(setting, "paper")
    yield from normalization_parts(setting)
    yield from pooling_parts(setting)
    yield from stall_parts(setting)
    for record_format, records in sets.prepare_images(setting).items():
        yield from reading_parts(setting, record_format, records)


def part(setting: Setting, name: str, run: Callable, contains: str, limit_s: float) -> Case:
    """A case of one number, in milliseconds."""
    ours = span(timed(setting, run), 1e-3)
    return Case(((name, "ms"),), ours, {}, contains, (1e3 * limit_s,), A_PART)


def step_parts(setting: Setting, preset_name: str) -> Iterator[Case]:
    """An update in all, the crops, and each layer forward and backward."""
    training = AlexNetTraining(preset_name, 10, *["--batch_size=8"] * setting.smallest)
    what, draw = described(preset_name, training), jnp.asarray(training.batch["draw"])
    limit_s = training.config.batch_size * training.operations(training=True) / matmul_peak()
    yield part(setting, f"{what}: in all", training.run, IN_ALL_CONTAINS, limit_s)
    x, case = crops(setting, what, training, draw)
    yield case
    peak, bandwidth = matmul_peak(), copy_bandwidth()
    for layer in layers(training, x, keys=jax.vmap(jax.random.key)(draw)):
        first = layer.name == "conv1"  # needs no gradient of its inputs
        argnums = tuple(range(1 if first else 0, len(layer.arrays)))
        if layer.operations:
            limit_s = (2 if first else 3) * layer.operations / peak
        else:  # reads x and writes the outputs, then reads x and their gradient and writes its own
            limit_s = 4 * (3 * layer.arrays[0].size + 2 * layer.outputs.size) / bandwidth
        name = f"{what}: {layer.name}"
        yield attempt(setting, name, layer.function, layer.arrays, limit_s, argnums, A_PART)


def prediction_parts(setting: Setting, preset_name: str) -> Iterator[Case]:
    """Scores of a batch in all, the crops, and each layer forward, for as many images at a time as
    in `LayerSequence.in_parts`.
    """
    changes = ["--batch_size=2", "--crop_size=67"] if setting.smallest else ["--batch_size=32"]
    training = AlexNetTraining(preset_name, 1000, *changes)
    what = f"scores of {described(preset_name, training)}"
    limit_s = training.config.batch_size * training.operations(training=False) / matmul_peak()
    yield part(setting, f"{what}: in all", training.score, IN_ALL_CONTAINS, limit_s)
    x, case = crops(setting, what, training)
    yield case
    model = training.network.bind(training.state.params)
    peak, bandwidth = matmul_peak(), copy_bandwidth()
    for layer in layers(training, x):
        batch = layer.arrays[0]
        if layer.name.startswith("conv"):
            part_size = model.part_size(layer.name, batch)
        elif layer.name.startswith("fc"):
            part_size = len(batch)
        size = 1 if "norm" in layer.name else part_size

        def run(x, *params, layer=layer, size=size):
            parts = x.reshape(-1, size, *x.shape[1:])
            return lax.map(lambda images: layer.function(images, *params), parts)

        run = functools.partial(jax.jit(run), *layer.arrays)
        moved = 4 * (batch.size + layer.outputs.size)
        limit_s = layer.operations / peak if layer.operations else moved / bandwidth
        yield part(setting, f"{what}: {layer.name}", run, LAYER_CONTAINS, limit_s)


def crops(
    setting: Setting, what: str, training: AlexNetTraining, *draw: jax.Array
) -> tuple[jax.Array, Case]:
    """The crops of the batch, random with `draw`, and what they take."""
    image = jnp.asarray(training.batch["image"])
    run = functools.partial(jax.jit(training.network.prepare), image, *draw)
    x = run()
    limit_s = (image.nbytes + x.nbytes) / copy_bandwidth()
    return x, part(setting, f"{what}: crops", run, CROPS_CONTAINS, limit_s)


class NetworkLayer(NamedTuple):
    """A layer as a function of its inputs x and, if it learns, its parameters: `arrays`."""

    name: str
    function: Callable
    arrays: tuple
    outputs: jax.ShapeDtypeStruct
    operations: int  # of the forward pass; 0 without weights


def layers(
    training: AlexNetTraining, x: jax.Array, keys: jax.Array | None = None
) -> Iterator[NetworkLayer]:
    """The layers of a network in their order, the first with the inputs `x`, the others with random
    numbers.
    """
    model = training.network.bind(training.state.params)
    table = {row["name"]: row for row in training.layer_table()}
    for name in model.order:
        if isinstance(getattr(model, name, None), nnx.Module):
            graphdef, params = nnx.split(getattr(model, name))

            def function(x, params, graphdef=graphdef):
                return nnx.merge(graphdef, params)(x)

            x = x.reshape(len(x), -1) if name.startswith("fc") else x
            arrays, operations = (x, params), 2 * len(x) * table[name]["multiply_adds"]
        else:
            function = functools.partial(model.layer, name, keys=keys)
            arrays, operations = (x,), 0
        outputs = jax.eval_shape(function, *arrays)
        yield NetworkLayer(name, function, arrays, outputs, operations)
        x = jax.random.normal(jax.random.key(0), outputs.shape)


def normalization_parts(setting: Setting) -> Iterator[Case]:
    """The passes over memory that XLA makes of a normalization and its gradient, compiled one by
    one.
    """
    shape = (2 if setting.smallest else 32, 55, 55, 96)
    x, g, root = (
        jnp.asarray(np.random.default_rng(seed).random(shape, np.float32)) for seed in range(3)
    )
    pad = functools.partial(jnp.pad, pad_width=[(0, 0)] * 3 + [(2, 2)])
    power = alexnet.lrn.negative_power

    def sums(padded):
        return sum(padded[..., i : i + x.shape[-1]] for i in range(5))

    def roots(padded):
        return jnp.sqrt(lax.rsqrt(2 + 1e-4 * sums(padded)))

    def products(g, x, root):
        return pad(g * x * power(root, 1.75))

    def gradient(g, x, root, padded):
        return g * power(root, 0.75) - 1e-4 * x * sums(padded)

    passes = {  # what is computed: (function, its arguments)
        "in all": (with_gradients(alexnet.lrn.local_response_normalization), (g, x)),
        "squares with zeros around": (lambda x: pad(x * x), (x,)),
        "fourth roots of sums": (roots, (pad(x),)),
        "outputs": (lambda x, root: x * power(root, 0.75), (x, root)),
        "products with zeros around": (products, (g, x, root)),
        "gradient": (gradient, (g, x, root, pad(x))),
    }
    for name, (function, arrays) in passes.items():
        moved = 5 * x.nbytes if name == "in all" else (len(arrays) + 1) * x.nbytes
        run = functools.partial(jax.jit(function), *arrays)
        name = f"LRN, {shape_text(x)}: {name}"
        yield part(setting, name, run, LRN_CONTAINS, moved / copy_bandwidth())


def pooling_parts(setting: Setting) -> Iterator[Case]:
    """An overlapping maximum and its gradient, compiled one by one."""
    for images, *shape in ((128, 33, 33, 32), (32, 55, 55, 96)):
        shape = (2 if setting.smallest else images, *shape)
        x = jnp.asarray(np.random.default_rng(0).random(shape, np.float32))
        g = cotangent(max_pool, x)
        _, pull_back = jax.jit(lambda x: jax.vjp(max_pool, x))(x)
        parts = {  # what is computed: (function, arguments, arrays like x that it reads and writes)
            "in all": (with_gradients(max_pool), (g, x), 3.5),
            "maxima": (max_pool, (x,), 1.25),
            "maxima and where they were": (lambda x: jax.vjp(max_pool, x), (x,), 1.25 + 1 / 16),
            "gradient": (lambda pull_back, g: pull_back(g), (pull_back, g), 1.25 + 1 / 16),
        }
        for name, (function, arrays, moved) in parts.items():
            run = functools.partial(jax.jit(function), *arrays)
            name, limit_s = f"max pooling 3/2, {shape_text(x)}: {name}", moved * x.nbytes
            yield part(setting, name, run, POOLING_CONTAINS, limit_s / copy_bandwidth())


def stall_parts(setting: Setting) -> Iterator[Case]:
    """What a training waits for when LeNet-5's state is saved."""
    state = LeNetTraining(lenet.config.Config(), embedded_digits(), 1).state
    folder, name = setting.work / "stall", "stall of a checkpoint, LeNet-5 deck"
    arrays = host_leaves(state)
    together = {"all": jnp.concatenate([jnp.ravel(x).view(jnp.uint8) for x in arrays.values()])}

    def by_orbax(tree) -> float:
        """Seconds until Orbax's save returns."""
        shutil.rmtree(folder, ignore_errors=True)
        with ocp.CheckpointManager(folder) as manager:
            start = time.perf_counter()
            manager.save(1, args=ocp.args.StandardSave(tree))
            return time.perf_counter() - start

    parts = {
        "in all": lambda: save_and_restore(folder, state)[0],
        "not finite": timed(setting, lambda: [is_finite(x) for x in arrays.values()]),
        f"Orbax alone with {len(arrays)} arrays": lambda: by_orbax(state),
        "Orbax alone with one array of as many bytes": lambda: by_orbax(together),
    }
    for what, measure in parts.items():
        ours = span(measure, 1e-3)
        yield Case(((f"{name}: {what}", "ms"),), ours, {}, STALL_CONTAINS, no_peer=A_PART)
