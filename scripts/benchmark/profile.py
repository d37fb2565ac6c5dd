"""The parts of an update and of single operations, each measured by itself: where the time goes."""

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

import alexnet.config
import alexnet.lrn
import lenet.config
from common.digests import host_leaves
from common.flags import from_preset
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

STEP_CONTAINS = "An update as in cifar_train. Limit: its operations at the matmul peak."
SCORES_CONTAINS = "Scores as in alexnet_predict. Limit: its operations at the matmul peak."
CROPS_CONTAINS = "Limit: bytes in and out at the copy bandwidth."
LRN_CONTAINS = (
    "Limit: what each reads and writes at the copy bandwidth; in all, x twice, the outputs, and "
    "both gradients."
)
STALL = "Until a save returns."
POOLING_CONTAINS = (
    "Limit: what each reads and writes at the copy bandwidth; in all, 3.5 arrays like x, as in ops."
)


def profile(setting: Setting) -> Iterator[Case]:
    """The parts of what misses its target or just meets it, each measured by itself."""
    yield from step_parts(setting, "cifar18")
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
    """An update in all, the crops, and each layer forward and backward on random numbers."""
    changes = ["--dataset=fake", *["--batch_size=8"] * setting.smallest]
    training = AlexNetTraining(from_preset(alexnet.config.Config, preset_name, *changes), 10)
    what, peak, bandwidth = described(preset_name, training), matmul_peak(), copy_bandwidth()
    limit_s = training.config.batch_size * training.operations(training=True) / peak
    yield part(setting, f"{what}, in all", training.run, STEP_CONTAINS, limit_s)

    image, draw = (jnp.asarray(training.batch[name]) for name in ("image", "draw"))
    crops = functools.partial(jax.jit(training.network.prepare), image, draw)
    x = crops()
    limit_s = (image.nbytes + x.nbytes) / bandwidth
    yield part(setting, f"{what}, crops", crops, CROPS_CONTAINS, limit_s)

    for layer in layers(training, x, keys=jax.vmap(jax.random.key)(draw)):
        argnums = tuple(range(layer.name == "conv1", len(layer.arrays)))
        # Without weights, it reads x and writes the outputs, then reads x and their gradient and
        # writes its own.
        products = (2 if layer.name == "conv1" else 3) * layer.operations / peak
        limit_s = products or 4 * (3 * layer.arrays[0].size + 2 * layer.outputs.size) / bandwidth
        name = f"{what}, {layer.name}"
        yield attempt(setting, name, layer.function, layer.arrays, limit_s, argnums, A_PART)


def prediction_parts(setting: Setting, preset_name: str) -> Iterator[Case]:
    """Scores of a batch in all, the crops, and each layer forward on random numbers."""
    changes = ["--dataset=fake", f"--batch_size={2 if setting.smallest else 32}"]
    changes += ["--crop_size=67"] * setting.smallest
    training = AlexNetTraining(from_preset(alexnet.config.Config, preset_name, *changes), 1000)
    what, peak = f"scores of {described(preset_name, training)}", matmul_peak()
    bandwidth = copy_bandwidth()
    limit_s = training.config.batch_size * training.operations(training=False) / peak
    yield part(setting, f"{what}, in all", training.score, SCORES_CONTAINS, limit_s)

    image = jnp.asarray(training.batch["image"])
    crops = functools.partial(jax.jit(training.network.prepare), image)
    x = crops()
    limit_s = (image.nbytes + x.nbytes) / bandwidth
    yield part(setting, f"{what}, crops", crops, CROPS_CONTAINS, limit_s)

    for layer in layers(training, x):
        run = functools.partial(jax.jit(layer.function), *layer.arrays)
        moved = 4 * (layer.arrays[0].size + layer.outputs.size) / bandwidth
        limit_s = layer.operations / peak or moved
        yield part(setting, f"{what}, {layer.name}", run, SCORES_CONTAINS, limit_s)


class Layer(NamedTuple):
    """A layer as a function of its inputs x and, if it learns, its parameters: `arrays`."""

    name: str
    function: Callable
    arrays: tuple
    outputs: jax.ShapeDtypeStruct
    operations: int  # with weights, forward


def layers(
    training: AlexNetTraining, x: jax.Array, keys: jax.Array | None = None
) -> Iterator[Layer]:
    """The layers of a network in their order, the first with the inputs `x`."""
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
        yield Layer(name, function, arrays, outputs, operations)
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
        name = f"LRN, {shape_text(x)}, {name}"
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
            name, limit_s = f"max pooling 3/2, {shape_text(x)}, {name}", moved * x.nbytes
            yield part(setting, name, run, POOLING_CONTAINS, limit_s / copy_bandwidth())


def stall_parts(setting: Setting) -> Iterator[Case]:
    """What a training waits for when LeNet-5's state is saved: the copy to the host, and Orbax."""
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
        "copies to the host": timed(setting, lambda: host_leaves(state)),
        f"Orbax alone with {len(arrays)} arrays": lambda: by_orbax(state),
        "Orbax alone with one array of as many bytes": lambda: by_orbax(together),
    }
    for what, measure in parts.items():
        yield Case(((f"{name}, {what}", "ms"),), span(measure, 1e-3), {}, STALL, no_peer=A_PART)
