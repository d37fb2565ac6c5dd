"""The parts of an update and of single operations, each measured by itself: where the time goes."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

import alexnet.lrn
from common.flags import from_preset
from scripts.benchmark import sets
from scripts.benchmark.alexnet import described
from scripts.benchmark.attempts import attempt
from scripts.benchmark.machine import copy_bandwidth, matmul_peak
from scripts.benchmark.measure import A_PART, Case
from scripts.benchmark.ops import cotangent, max_pool, shape_text, with_gradients
from scripts.benchmark.reading import reading_parts
from scripts.benchmark.timing import Setting, span, timed
from scripts.benchmark.training import AlexNetTraining

STEP_CONTAINS = "An update as in cifar_train. Limit: its operations at the matmul peak."
CROPS_CONTAINS = "Limit: bytes in and out at the copy bandwidth."
LRN_CONTAINS = (
    "Limit: what each reads and writes at the copy bandwidth; in all, x twice, the outputs, and "
    "both gradients."
)
POOLING_CONTAINS = (
    "Limit: what each reads and writes at the copy bandwidth; in all, 3.5 arrays like x, as in ops."
)


def profile(setting: Setting) -> Iterator[Case]:
    """The parts of what misses its target or just meets it, each measured by itself."""
    yield from step_parts(setting, "cifar18")
    yield from normalization_parts(setting)
    yield from pooling_parts(setting)
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

    prepare = jax.jit(training.network.prepare)
    image, draw = (jnp.asarray(training.batch[name]) for name in ("image", "draw"))
    x = prepare(image, draw)
    limit_s = (image.nbytes + x.nbytes) / bandwidth
    run = functools.partial(prepare, image, draw)
    yield part(setting, f"{what}, crops", run, CROPS_CONTAINS, limit_s)

    model = training.network.bind(training.state.params)
    keys = jax.vmap(jax.random.key)(draw)
    table = {row["name"]: row for row in training.layer_table()}
    for name in model.order:
        if isinstance(getattr(model, name, None), nnx.Module):
            graphdef, params = nnx.split(getattr(model, name))

            def function(x, params, graphdef=graphdef):
                return nnx.merge(graphdef, params)(x)

            x, first = x.reshape(len(x), -1) if name.startswith("fc") else x, name == "conv1"
            limit_s = (2 if first else 3) * 2 * len(x) * table[name]["multiply_adds"] / peak
            arrays, argnums = (x, params), (1,) if first else (0, 1)
        else:
            function, arrays, argnums = functools.partial(model.layer, name, keys=keys), (x,), (0,)
        outputs = jax.eval_shape(function, *arrays)
        if len(arrays) == 1:
            # reads x and writes the outputs, then reads x and their gradient and writes its own
            limit_s = 4 * (3 * x.size + 2 * outputs.size) / bandwidth
        yield attempt(setting, f"{what}, {name}", function, arrays, limit_s, argnums, A_PART)
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
