"""What the benchmark measures: each suite is a generator of cases, ours and PyTorch's, that time
the same work.

Ours is the project's own code, called as `lenet.train` and `alexnet.train` call it. A case is built
when its turn comes, and dropped before the next one.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import alexnet.imagenet
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import simplejpeg
from absl import flags
from flax import nnx
from jax import lax

import alexnet.cifar
import alexnet.config
import alexnet.data
import alexnet.lrn
import alexnet.model
import alexnet.pooling
import alexnet.train
import common.flags
import lenet.config
import lenet.data
import lenet.model
import lenet.train
from common import builders, checkpoint, conv, data, parallel, runtime
from common.errors import DataError

ROOT = Path(__file__).parents[1]
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
PEERS = importlib.util.find_spec("torch") is not None
ANOTHER_FORM, A_PART = "another form of ours", "a part of ours"  # why such rows have no peer
READING_LIMITS = {"jpeg": "the bare decoder", "raw": "a copy of the pixels at the copy bandwidth"}
LEAST_S = 0.3  # that a measurement of repeated work goes on: what the other side left behind then counts for little
QUEUED = 40  # runs that an accelerator is given before their outputs are waited for
DECODE = functools.partial(
    simplejpeg.decode_jpeg, colorspace="RGB", fastdct=False, fastupsample=False
)
TARGET_PCT = 1.0  # validation error that `time_to_accuracy` runs to


class Setting(NamedTuple):
    """What all suites are told. smallest: the least work that gives each row. work: a folder that
    may be filled.
    """

    smallest: bool
    data_dir: str
    work: Path


class Case(NamedTuple):
    """Something measured side by side; one row for each of its numbers.

    Attributes:
      rows: (name, unit) of each number. More is better of what a unit has per second, less of the
        rest.
      ours: measures once, and returns the numbers.
      peers: the same in PyTorch, by form; the best form is the peer. Empty without PyTorch, and
        where `no_peer` says why.
      contains: what is inside of the numbers, in words.
      limits: what the machine allows of each number, or a function that says so after measuring;
        None where nothing does.
      no_peer: why there is none even with PyTorch.
    """

    rows: tuple[tuple[str, str], ...]
    ours: Callable[[], tuple[float, ...]]
    peers: dict[str, Callable[[], tuple[float, ...]]]
    contains: str
    limits: tuple[float | Callable[[], float] | None, ...] = (None,)
    no_peer: str = ""


# ---- the machine's limits


def best_seconds(run: Callable[[], Any], times: int = 5) -> float:
    """The least of several times that `run` takes, after one that does not count."""
    run()
    return min(seconds(run) for _ in range(times))


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def accelerated() -> bool:
    """Whether JAX computes elsewhere than on the processor."""
    return jax.default_backend() != "cpu"


@functools.cache
def matmul_peak(dtype: str = "float32") -> float:
    """Floating-point operations a second in a square matrix product, the best of ten; on a
    processor float32 alone.

    There it is one of 2048 x 2048, JAX's or NumPy's, else one of 8192 x 8192 (float32 of a GPU is
    TF32).
    """
    n = 8192 if accelerated() else 2048
    a, product = np.random.default_rng(0).standard_normal((n, n), np.float32), jax.jit(jnp.matmul)
    b = jnp.asarray(a, dtype if accelerated() else "float32")
    least = best_seconds(lambda: product(b, b).block_until_ready(), 10)
    if not accelerated():
        least = min(least, best_seconds(lambda: a @ a, 10))
    return 2 * n**3 / least


@functools.cache
def copy_bandwidth() -> float:
    """Bytes a second, read and written, of copying memory, the best of ten: 256 MB on all cores, or
    1 GB of a GPU.
    """
    if accelerated():
        x, copied = jnp.ones(2**28, jnp.float32), jax.jit(lambda x: x + 1)
        return 2 * x.nbytes / best_seconds(lambda: copied(x).block_until_ready(), 10)
    source, target = (np.ones(2**26, np.float32) for _ in range(2))
    parts = [slice(i * len(source) // CORES, (i + 1) * len(source) // CORES) for i in range(CORES)]
    with ThreadPoolExecutor(CORES) as threads:
        run = best_seconds(
            lambda: list(threads.map(lambda part: np.copyto(target[part], source[part]), parts)), 10
        )
    return 2 * source.nbytes / run


def operations(layers: list[dict], *, training: bool) -> int:
    """Floating-point operations of one image: two a weight's use; in training thrice, but for the
    gradient of the image.
    """
    uses = sum(layer["multiply_adds"] for layer in layers)
    first = next(layer["multiply_adds"] for layer in layers if layer["multiply_adds"])
    return 2 * (3 * uses - first if training else uses)


# ---- helpers


def torch_peers():
    """The module, or None without PyTorch. It computes where JAX does."""
    if not PEERS:
        return None
    if not accelerated():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from scripts import torch_peers

    return torch_peers


def timed(
    setting: Setting,
    run: Callable[[], Any],
    *,
    wait=jax.block_until_ready,
    one_by_one: bool = False,
) -> Callable[[], float]:
    """Measures the seconds that a run takes: of as many as LEAST_S has room for, after one that
    does not count.

    It waits for the outputs of each on a processor or if `one_by_one`, else for those of every
    QUEUED-th, as runs queue up.
    """
    queued = 1 if one_by_one or setting.smallest or not accelerated() else QUEUED

    def measure() -> float:
        wait(run())
        start, runs, took = time.perf_counter(), 0, 0.0
        while not runs or (took < LEAST_S and not setting.smallest):
            for _ in range(queued):
                outputs = run()
            wait(outputs)
            runs, took = runs + queued, time.perf_counter() - start
        return took / runs

    return measure


def timed_theirs(setting: Setting, run: Callable[[], Any], **options) -> Callable[[], float]:
    """The same of PyTorch's."""
    return timed(setting, run, wait=lambda _: torch_peers().wait(), **options)


def rate(measure: Callable[[], float], count: int) -> Callable[[], tuple[float]]:
    """`count` in the seconds that are measured."""
    return lambda: (count / measure(),)


def span(measure: Callable[[], float], unit: float, count: int = 1) -> Callable[[], tuple[float]]:
    """The seconds that are measured, for each of `count`, in units of `unit` seconds."""
    return lambda: (measure() / count / unit,)


def preset(package, name: str, *changes: str):
    """The config of PACKAGE/presets/NAME.flags, with changes."""
    common.flags.define(package.config.Config, values := flags.FlagValues())
    values(
        [
            "benchmark",
            f"--flagfile={ROOT / package.__name__ / 'presets' / f'{name}.flags'}",
            *changes,
        ]
    )
    return common.flags.read(package.config.Config, values)


def forms(setting: Setting, *, one_thread: bool = False) -> list[str]:
    """The forms of PyTorch that are tried; the smallest benchmark waits for no compiler."""
    names = ["eager", "channels-last", "compiled"]
    names += ["eager, 1 thread", "compiled, 1 thread"] * (one_thread and not accelerated())
    return (
        [name for name in names if not (setting.smallest and "compiled" in name)] if PEERS else []
    )


def in_process(
    module: str, call: str, processes: int = 1, **environment: str
) -> tuple[float, float]:
    """What a call of a function of `module` gives in a Python of its own, and the most memory (MB)
    that this ever had.

    Of several `processes`, which find one another as torchrun's do, the largest number and their
    memory together.
    """
    # On Linux ru_maxrss would begin with the memory of the process that started it.
    code = f"""
import json, re, resource, sys, {module} as module
number = module.{call}
peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
if sys.platform == "linux":
    peak_mb = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 2**10
print(json.dumps([number, peak_mb]))
"""
    if processes > 1:
        environment |= dict(
            MASTER_ADDR="localhost", MASTER_PORT=str(free_port()), WORLD_SIZE=str(processes)
        )

    def run(rank: int) -> tuple[float, float]:
        variables = os.environ | environment | {"RANK": str(rank)}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{call}: {done.stderr}")
        return json.loads(done.stdout.splitlines()[-1])

    with ThreadPoolExecutor(processes) as threads:
        numbers, peaks_mb = zip(*threads.map(run, range(processes)), strict=True)
    return max(numbers), sum(peaks_mb)


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with socket.socket() as opened:
        opened.bind(("localhost", 0))
        return opened.getsockname()[1]


# ---- LeNet-5


@functools.cache
def embedded_digits() -> data.Examples:
    return lenet.data.load_splits("mnist10k", "", train_size=0, validation_size=500)[0]


class LeNetTraining:
    """Training as the loop of `lenet.train` does it: whole chunks of steps from examples in memory."""

    def __init__(self, config: lenet.config.Config, examples: data.Examples, chunk_steps: int):
        self.config, self.examples, self.chunk_steps, self.step = config, examples, chunk_steps, 0
        graphdef = nnx.graphdef(nnx.eval_shape(lambda: lenet.train.build_model(config)))
        loss, prepare = lenet.train.build_loss(config), lenet.train.build_prepare(config)
        tx = lenet.train.build_optimizer(
            config, lenet.data.steps_per_epoch(len(examples), config.batch_size)
        )
        train_steps = lenet.train.make_train_steps(
            graphdef, tx, loss, prepare, config.average_decay
        )
        self.placement = parallel.place(
            train_steps, mode="jit", batch_size=config.batch_size, batch_axis=1
        )
        self.eval_step = lenet.train.make_eval_step(graphdef, loss, prepare)
        self.tx = tx
        self.restart(config.seed)

    def restart(self, seed: int) -> None:
        """From the start, with another seed."""
        self.config, self.step = dataclasses.replace(self.config, seed=seed), 0
        new_state = jax.jit(
            lambda: lenet.train.initial_state(self.config, self.tx, 1, self.examples.num_classes),
            out_shardings=self.placement.replicated,
        )
        self.state = self.placement.place_state(new_state())

    def chunk(self, step: int) -> dict[str, np.ndarray]:
        config, steps = self.config, self.chunk_steps
        sizes = dict(num_steps=steps, padded_to=steps, batch_size=config.batch_size)
        return lenet.data.training_chunk(
            self.examples, first_step=step, **sizes, seed=config.seed, reshuffle=True, copies=0
        )

    def run(self) -> None:
        """The next chunk."""
        chunk = self.placement.place_training(self.chunk(self.step))
        self.state, sums = self.placement.run(self.state, chunk, self.chunk_steps)
        jax.block_until_ready((self.state, sums))
        self.step += self.chunk_steps

    def score(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return self.eval_step(self.state.params, self.placement.place_batch(batch))


def lenet_trainers(
    setting: Setting, one_thread: bool, config: lenet.config.Config
) -> dict[str, Any]:
    """Form -> PyTorch's trainer of the same network and rule."""
    if not PEERS:
        return {}
    peers, mask = torch_peers(), lenet.model.c3_mask(lenet.model.C3_TABLE)
    layers = (
        dict(activation=peers.nn.ReLU, pool=peers.nn.MaxPool2d) if config.pooling == "max" else {}
    )
    rate = config.learning_rate
    optimizer = (
        peers.adam(rate) if config.optimizer == "adamw" else peers.sgd(rate, config.momentum)
    )
    return {
        form: peers.Trainer(
            peers.lenet(mask, **layers), optimizer, peers.FORMS[form], prepare=peers.digits
        )
        for form in forms(setting, one_thread=one_thread)
    }


def lenet_train(setting: Setting) -> Iterator[Case]:
    """Updates of the preset deck."""
    for batch_size in (1, 32, 128, 1024):
        config = lenet.config.Config(batch_size=batch_size)
        steps = 2 if setting.smallest else lenet.train.steps_per_chunk(batch_size)
        training = LeNetTraining(config, embedded_digits(), steps)
        trainers, their_steps = (
            lenet_trainers(setting, batch_size <= 32, config),
            min(steps, 256),
        )  # enough of batch 1
        digits = embedded_digits()
        yield Case(
            ((f"deck, batch {batch_size}", "images/s"),),
            rate(timed(setting, training.run, one_by_one=True), steps * batch_size),
            {
                form: rate(
                    timed_theirs(
                        setting,
                        functools.partial(
                            torch_peers().train_in_memory,
                            digits.images,
                            digits.labels,
                            batch_size,
                            their_steps,
                            trainer,
                        ),
                        one_by_one=True,
                    ),
                    their_steps * batch_size,
                )
                for form, trainer in trainers.items()
            },
            "Choosing the digits of a batch in memory, padding and scaling, forward, backward, SGD with momentum; ours counts "
            "loss and errors too. Limit: the operations of forward and backward at the matmul peak.",
            (
                matmul_peak()
                / operations(
                    lenet.model.layer_table(lenet.train.build_model(config)), training=True
                ),
            ),
        )


def lenet_predict(setting: Setting) -> Iterator[Case]:
    """Scores of the preset deck."""
    for batch_size, row in ((1, ("deck, batch 1", "us")), (1024, ("deck, batch 1024", "images/s"))):
        training = LeNetTraining(lenet.config.Config(), embedded_digits(), 1)
        batch, peers = next(data.eval_batches(embedded_digits(), batch_size)), {}
        if PEERS:
            mask, theirs = lenet.model.c3_mask(lenet.model.C3_TABLE), torch_peers().tensors(batch)
            for form in forms(setting, one_thread=batch_size == 1):
                score = torch_peers().scorer(
                    torch_peers().lenet(mask), torch_peers().FORMS[form], torch_peers().digits
                )
                peers[form] = functools.partial(score, *theirs)
        per_image = operations(
            lenet.model.layer_table(lenet.train.build_model(training.config)), training=False
        )
        ours = functools.partial(training.score, batch)
        yield predict_case(setting, row, batch_size, ours, peers, per_image)


def predict_case(
    setting: Setting,
    row,
    batch_size: int,
    ours,
    peers: dict[str, Callable],
    per_image: int,
    dtype="float32",
) -> Case:
    """Of one batch a call: the time of a call, or images a second."""

    def measured(measure):
        return span(measure, 1e-6) if latency else rate(measure, batch_size)

    latency, limit = row[1] == "us", matmul_peak(dtype) / per_image  # images/s
    return Case(
        (row,),
        measured(timed(setting, ours, one_by_one=latency)),
        {
            form: measured(timed_theirs(setting, run, one_by_one=latency))
            for form, run in peers.items()
        },
        "A batch of uint8 images from the host, its preparation, forward, loss and errors; ours counts the confusion matrix or "
        "the top 5 too. PyTorch's compiled form has its weights frozen. Limit: the operations at the matmul peak.",
        (1e6 * batch_size / limit if row[1] == "us" else limit,),
    )


# ---- AlexNet and the CIFAR-10 networks


class AlexNetTraining:
    """Training as the loop of `alexnet.train` does it, one step a call, on the same batch of noise."""

    def __init__(self, config: alexnet.config.Config, num_classes: int):
        self.config, self.num_classes = config, num_classes
        size = 32 if config.crop_size <= 32 else 256
        noise = alexnet.data.Noise(
            range(config.batch_size), (size, size, 3), config.seed, num_classes
        )
        self.statistics = jax.tree.map(np.float32, alexnet.data.statistics(noise))
        self.batch = alexnet.data.training_batch(
            noise, 0, batch_size=config.batch_size, seed=config.seed
        )
        graphdef = nnx.graphdef(
            nnx.eval_shape(lambda: alexnet.train.build_model(config, num_classes))
        )
        tx, loss = alexnet.train.build_optimizer(config, 1000), alexnet.train.build_loss(config)
        self.prepare = alexnet.train.build_prepare(config, self.statistics)
        train_step = alexnet.train.make_train_step(
            graphdef, tx, loss, self.prepare, config.average_decay, config.seed
        )
        self.placement = parallel.place(train_step, mode="jit", batch_size=config.batch_size)
        self.eval_step = alexnet.train.make_eval_step(graphdef, loss, self.prepare)
        self.new_state = jax.jit(
            lambda: alexnet.train.initial_state(config, tx, num_classes, self.statistics),
            out_shardings=self.placement.replicated,
        )
        self.state = self.placement.place_state(self.new_state())

    def run(self) -> tuple:
        self.state, sums = self.placement.run(self.state, self.placement.place_training(self.batch))
        return self.state, sums

    def score(self) -> dict[str, jax.Array]:
        batch = {
            "image": self.batch["image"],
            "label": self.batch["label"],
            "mask": np.ones(self.config.batch_size, bool),
        }
        return self.eval_step(self.state.params, self.placement.place_batch(batch))

    @property
    def bfloat16(self) -> bool:
        return self.config.compute_dtype == "bfloat16"

    def described(self, name: str) -> str:
        return f"{name}, batch {self.config.batch_size}" + (", bfloat16" if self.bfloat16 else "")

    def operations(self, *, training: bool) -> int:
        model = nnx.eval_shape(lambda: alexnet.train.build_model(self.config, self.num_classes))
        return operations(
            alexnet.model.layer_table(model, self.config.crop_size), training=training
        )

    def theirs(self, name: str) -> tuple:
        """PyTorch's network, preparation of images and optimizer for the preset `name`, and the
        batch as its tensors.
        """
        peers, config = torch_peers(), self.config
        axes = alexnet.data.color_axes(self.statistics.covariance) if config.color_pca else None
        scale = (
            1 / np.sqrt(np.diag(self.statistics.covariance))
            if config.scaling == "standardized"
            else 1.0
        )
        crops = peers.Crops(self.statistics.mean_image, config.crop_size, axes, scale, config.pad)
        if config.net == "alexnet":
            model = functools.partial(peers.alexnet, name, config.crop_size, self.num_classes)
            optimizer = peers.sgd(config.learning_rate, config.momentum, config.weight_decay)
        else:
            model = functools.partial(peers.cifar, name)
            optimizer = peers.cifar_sgd(alexnet.cifar.WEIGHT_DECAY_FACTORS[name])
        return model, crops, optimizer, peers.tensors(self.batch)


def training_case(setting: Setting, name: str, training: AlexNetTraining) -> Case:
    peers, batch_size = {}, training.config.batch_size
    if PEERS:
        model, crops, optimizer, batch = training.theirs(name)
        for form in forms(setting):
            way = torch_peers().FORMS[form]._replace(bfloat16=training.bfloat16)
            trainer = torch_peers().Trainer(model(), optimizer, way, augment=crops.random)
            peers[form] = rate(
                timed_theirs(setting, functools.partial(trainer.step, *batch)), batch_size
            )
    return Case(
        ((training.described(name), "images/s"),),
        rate(timed(setting, training.run), batch_size),
        peers,
        "A batch of uint8 images from the host, random crops, mirror images and (AlexNet) colour noise, forward, dropout, "
        "backward, the update; ours counts loss and errors too. Limit: the operations of forward and backward at the matmul "
        "peak, on a processor that of float32 also for bfloat16.",
        (matmul_peak(training.config.compute_dtype) / training.operations(training=True),),
    )


def has_bfloat16() -> bool:
    """Whether the processor computes in bfloat16 by itself."""
    flags = Path("/proc/cpuinfo")
    return accelerated() or (flags.exists() and "bf16" in flags.read_text())


def _alexnets(setting: Setting) -> Iterator[tuple[str, AlexNetTraining]]:
    many = 128 if accelerated() else 32
    kinds = list(itertools.product(("deck", "paper"), (1, many), ("float32",)))
    if has_bfloat16():
        kinds.append(("deck", many, "bfloat16"))
    for name, batch_size, dtype in kinds:
        changes = ["--dataset=fake", f"--batch_size={batch_size}", f"--compute_dtype={dtype}"]
        yield (
            name,
            AlexNetTraining(
                preset(alexnet, name, *changes, *["--crop_size=67"] * setting.smallest), 1000
            ),
        )


def alexnet_train(setting: Setting) -> Iterator[Case]:
    """Updates of the presets deck and paper."""
    for name, training in _alexnets(setting):
        yield training_case(setting, name, training)


def alexnet_predict(setting: Setting) -> Iterator[Case]:
    """Scores of the presets deck and paper, by the centre crop."""
    for name, training in _alexnets(setting):
        batch_size, peers = training.config.batch_size, {}
        if PEERS:
            model, crops, _, batch = training.theirs(name)
            for form in forms(setting):
                way = torch_peers().FORMS[form]._replace(bfloat16=training.bfloat16)
                score = torch_peers().scorer(model(), way, crops.center)
                peers[form] = functools.partial(score, *batch)
        row = (training.described(name), "us" if batch_size == 1 else "images/s")
        per_image, dtype = training.operations(training=False), training.config.compute_dtype
        yield predict_case(setting, row, batch_size, training.score, peers, per_image, dtype)


def cifar_train(setting: Setting) -> Iterator[Case]:
    """Updates of the CIFAR-10 networks."""
    for name in ("cifar18", "cifar13", "small"):
        config = preset(
            alexnet, name, "--dataset=fake", f"--batch_size={8 if setting.smallest else 128}"
        )
        yield training_case(setting, name, AlexNetTraining(config, 10))


# ---- single operations


def ops(setting: Setting) -> Iterator[Case]:
    """Masked convolution, normalization and pooling by themselves, forward, and forward and
    backward.
    """
    random = np.random.default_rng(0)

    def array(images: int, *shape: int) -> np.ndarray:
        return random.standard_normal((2 if setting.smallest else images, *shape), np.float32)

    images, kernel = array(128, 14, 14, 6), random.standard_normal((5, 5, 6, 16), np.float32)
    table = lenet.model.c3_mask(lenet.model.C3_TABLE)
    for name, function, mask in (
        ("masked", conv.masked(conv.batch_last_convolution(), table), table),
        ("dense", conv.batch_last_convolution(), np.ones_like(table)),
    ):
        yield from op_cases(
            setting,
            f"{name} C3, {shape_text(images)}",
            function,
            lambda peers, mask=mask: {"": peers.convolution(mask)},
            (images.transpose(1, 3, 2, 0), kernel),
            (images, kernel.transpose(3, 0, 1, 2)),  # moved like images there: (out, in, kh, kw)
            [times * len(images) * 2 * 100 * int(mask.sum()) / matmul_peak() for times in (1, 3)],
            "A 5x5 convolution of arrays in memory, ours with the batch last. Limit: its operations at the matmul peak.",
        )

    x = array(32, 55, 55, 96)
    yield from op_cases(
        setting,
        f"LRN, {shape_text(x)}",
        alexnet.lrn.local_response_normalization,
        lambda peers: {
            "": peers.Across(),
            "LocalResponseNorm, ": peers.nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2.0),
        },
        (x,),
        (x,),
        [arrays * x.nbytes / copy_bandwidth() for arrays in (2, 5)],
        "Over five maps, of an array in memory. Limit: 2 such arrays (with backward 5) at the copy bandwidth.",
    )

    for shape in ((128, 33, 33, 32), (32, 55, 55, 96)):
        x = array(*shape)
        yield from op_cases(
            setting,
            f"max pooling 3/2, {shape_text(x)}",
            functools.partial(alexnet.pooling.max_pool, overlapping=True),
            # 33 and 55 pixels: windows of both kinds end with the last pixel
            lambda peers: {"": peers.nn.MaxPool2d(3, 2)},
            (x,),
            (x,),
            [arrays * x.nbytes / copy_bandwidth() for arrays in (1.25, 3.5)],
            "Of an array in memory. Limit: 1.25 such arrays (with backward 3.5) at the copy bandwidth.",
        )


class Layer(NamedTuple):
    """A convolution of a network: `inputs` (B, H, W, in), a kernel of size x size, padding around
    all sides.
    """

    name: str
    inputs: tuple[int, int, int, int]
    size: int
    features: int
    stride: int = 1
    padding: int = 0
    groups: int = 1


LAYERS = (
    Layer("deck conv1", (32, 227, 227, 3), 11, 96, stride=4),
    Layer("deck conv2", (32, 27, 27, 96), 5, 256, padding=2),
    Layer("paper conv2 in two groups", (32, 27, 27, 96), 5, 256, padding=2, groups=2),
    Layer("deck conv3", (32, 13, 13, 256), 3, 384, padding=1),
    Layer("deck conv4", (32, 13, 13, 384), 3, 384, padding=1),
    Layer("deck conv5", (32, 13, 13, 384), 3, 256, padding=1),
    Layer("cifar18 conv1", (128, 24, 24, 3), 5, 32, padding=2),
    Layer("cifar18 conv2", (128, 12, 12, 32), 5, 32, padding=2),
    Layer("cifar18 conv3", (128, 6, 6, 32), 5, 64, padding=2),
)


def attempts(setting: Setting) -> Iterator[Case]:
    """Where training spends its time, forward and backward: the forms in use, and others tried in
    their place.
    """
    random = np.random.default_rng(0)
    for name, side, channels, features in (("C1", 32, 1, 6), ("C3", 14, 6, 16)):
        steps, batch_size = (
            (2, 2) if setting.smallest else (4, 128)
        )  # in a loop over steps, as in LeNet-5's training
        x = jnp.asarray(
            random.standard_normal((steps, side, channels, side, batch_size), np.float32)
        )
        kernel = jnp.asarray(random.standard_normal((5, 5, channels, features), np.float32))
        limit = (
            (2 if name == "C1" else 3)
            * 2
            * steps
            * batch_size
            * (side - 4) ** 2
            * kernel.size
            / matmul_peak()
        )
        for form, convolve in (
            ("in use", conv.batch_last_convolution()),
            ("lax", conv.lax_convolution),
        ):

            def function(x, kernel, convolve=convolve):
                return lax.map(lambda x: convolve(x, kernel), x)

            name_of_form = (
                f"LeNet-5 {name} for {steps} batches, {batch_size}x{side}x{side}x{channels}, {form}"
            )
            yield attempt(
                setting,
                name_of_form,
                function,
                (x, kernel),
                limit,
                (1,) if name == "C1" else (0, 1),
            )

    for layer in LAYERS:
        batch_size, *shape = layer.inputs
        x = jnp.asarray(
            random.standard_normal((2 if setting.smallest else batch_size, *shape), np.float32)
        )
        kernel_shape = (layer.size, layer.size, x.shape[-1] // layer.groups, layer.features)
        kernel = jnp.asarray(random.standard_normal(kernel_shape, np.float32))
        outputs = (x.shape[1] + 2 * layer.padding - layer.size) // layer.stride + 1
        first = layer.name.endswith("conv1")  # nobody asks for the gradient of the images
        limit = (2 if first else 3) * 2 * len(x) * outputs**2 * kernel.size / matmul_peak()
        for form, function in convolution_forms(layer.stride, layer.padding, layer.groups).items():
            name = f"{layer.name}, {shape_text(x)}, {form}"
            yield attempt(setting, name, function, (x, kernel), limit, (1,) if first else (0, 1))

    x = jnp.asarray(random.standard_normal((2 if setting.smallest else 32, 55, 55, 96), np.float32))
    limit = 5 * x.nbytes / copy_bandwidth()
    for form, function in lrn_forms(x.shape[-1]).items():
        yield attempt(setting, f"LRN, {shape_text(x)}, {form}", function, (x,), limit)
    for shape in ((128, 33, 33, 32), (32, 55, 55, 96)):
        x = jnp.asarray(
            random.standard_normal((2 if setting.smallest else shape[0], *shape[1:]), np.float32)
        )
        for form, function in pooling_forms().items():
            limit = 3.5 * x.nbytes / copy_bandwidth()
            yield attempt(
                setting, f"max pooling 3/2, {shape_text(x)}, {form}", function, (x,), limit
            )

    for record_format, records in prepare_images(setting).items():
        words = (
            f"Reading {described(records)} in random order and decoding them, in batches of 32. "
        )
        words, limit = (
            words + f"Limit: {READING_LIMITS[record_format]}.",
            1e6 / reading_limit(records),
        )
        for form, read in reading_forms(records).items():
            ours = span(timed(setting, read), 1e-6, len(records))
            yield Case(
                ((f"{record_format} records, 256x256x3, {form}", "us"),),
                ours,
                {},
                words,
                (limit,),
                ANOTHER_FORM,
            )


def attempt(
    setting: Setting,
    name: str,
    function: Callable,
    arrays: tuple,
    limit_s: float,
    argnums=(0,),
    no_peer=ANOTHER_FORM,
) -> Case:
    @jax.jit
    def run(cotangent, *arrays):
        def of_some(*some):
            given = dict(zip(argnums, some, strict=True))
            return function(*(given.get(i, array) for i, array in enumerate(arrays)))

        return with_gradients(of_some)(cotangent, *(arrays[i] for i in argnums))

    words = "Forward and all gradients, of arrays in memory; the convolutions on images without those of the images."
    ours = span(timed(setting, functools.partial(run, cotangent(function, *arrays), *arrays)), 1e-3)
    return Case(((name, "ms"),), ours, {}, words, (1e3 * limit_s,), no_peer)


def convolution_forms(stride: int, padding: int, groups: int) -> dict[str, Callable]:
    """Functions of (x, kernel)."""
    settings = dict(
        window_strides=(stride, stride),
        padding=((padding, padding),) * 2,
        feature_group_count=groups,
    )
    settings["dimension_numbers"] = ("NHWC", "HWIO", "NHWC")

    def patches(x, kernel):
        x = jnp.pad(x, ((0, 0), *settings["padding"], (0, 0)))
        height, width = (
            side - size + 1 for side, size in zip(x.shape[1:3], kernel.shape[:2], strict=True)
        )
        seen = [
            x[:, i : i + height : stride, j : j + width : stride]
            for i, j in np.ndindex(*kernel.shape[:2])
        ]
        return jnp.concatenate(seen, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])

    forms = {
        "in use": functools.partial(conv.convolution(), **settings),
        "lax": functools.partial(lax.conv_general_dilated, **settings),
    }
    if groups > 1:
        return forms
    forms["all patches in one product"] = patches
    if stride == 1:

        def pixel_by_pixel(x, kernel):
            x, (height, width) = jnp.pad(x, ((0, 0), *settings["padding"], (0, 0))), x.shape[1:3]
            seen = [x[:, i : i + height, j : j + width] for i, j in np.ndindex(*kernel.shape[:2])]
            return sum(
                pixels @ weights
                for pixels, weights in zip(seen, kernel.reshape(-1, *kernel.shape[2:]), strict=True)
            )

        forms["a product for each pixel of the kernel"] = pixel_by_pixel
    return forms


def lrn_forms(channels: int) -> dict[str, Callable]:
    """Across five maps, as the paper's."""
    band = jnp.asarray(
        np.abs(np.subtract.outer(np.arange(channels), np.arange(channels))) <= 2, jnp.float32
    )

    def shifted(x):
        squares = jnp.pad(x * x, ((0, 0), (0, 0), (0, 0), (2, 2)))
        return sum(squares[..., i : i + channels] for i in range(5))

    def windows(x):
        return lax.reduce_window(
            x * x, np.float32(0), lax.add, (1, 1, 1, 5), (1,) * 4, ((0, 0),) * 3 + ((2, 2),)
        )

    def normalized(sums):
        def function(x):
            root = lax.rsqrt(2 + 1e-4 * sums(x))
            return x * root * jnp.sqrt(root)

        return function

    return {
        "in use": alexnet.lrn.local_response_normalization,
        "lax.reduce_window": normalized(windows),
        "shifted additions": normalized(shifted),
        "a product with a banded matrix": normalized(lambda x: (x * x) @ band),
        "a power instead of roots": lambda x: x * (2 + 1e-4 * shifted(x)) ** -0.75,
        "an image at a time, in the cache": lambda x: lax.map(
            alexnet.lrn.local_response_normalization, x
        ),
    }


def pooling_forms() -> dict[str, Callable]:
    """Overlapping maxima of images with an odd number of rows and columns."""

    def slices(x):  # nine, each (B, H', W', C)
        height, width = (side - 2 for side in x.shape[1:3])
        return [x[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]

    def along_axes(x):
        for axis in (1, 2):
            entries = x.shape[axis] - 2
            x = functools.reduce(
                jnp.maximum, (lax.slice_in_dim(x, i, i + entries, 2, axis) for i in range(3))
            )
        return x

    def one_winner(x):
        @jax.custom_vjp
        def pool(x):
            return functools.reduce(jnp.maximum, slices(x))

        def backward(saved, gradient):
            x, maxima = saved
            taken, parts = jnp.zeros(maxima.shape, bool), []
            for seen in slices(x):
                wins = (seen == maxima) & ~taken
                parts.append(jnp.where(wins, gradient, 0))
                taken |= wins
            return jax.linear_transpose(slices, x)(parts)

        pool.defvjp(lambda x: ((maxima := pool(x)), (x, maxima)), backward)
        return pool(x)

    return {
        "in use": functools.partial(alexnet.pooling.max_pool, overlapping=True),
        "lax.reduce_window": lambda x: lax.reduce_window(
            x, np.float32(-np.inf), lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID"
        ),
        "three slices along each axis": along_axes,
        "nine slices": lambda x: functools.reduce(jnp.maximum, slices(x)),
        "nine slices, the gradient to the first": one_winner,
    }


def shape_text(x: np.ndarray) -> str:
    return "x".join(map(str, x.shape))


def op_cases(
    setting, name, function, theirs, arrays, their_arrays, limits, words
) -> Iterator[Case]:
    """Two cases, forward, and forward and backward. `theirs(torch_peers)` is {prefix of the form:
    function}.
    """
    for backward, limit in zip((False, True), limits, strict=True):
        placed, peers = [jnp.asarray(array) for array in arrays], {}
        if PEERS:
            for prefix, their_function in theirs(torch_peers()).items():
                settings = dict(backward=backward, forms=forms(setting, one_thread=True))
                found = torch_peers().function_forms(their_function, *their_arrays, **settings)
                peers |= {
                    prefix + form: span(timed_theirs(setting, run), 1e-3)
                    for form, run in found.items()
                }
        run = functools.partial(jax.jit(function), *placed)
        if backward:
            run = functools.partial(
                jax.jit(with_gradients(function)), cotangent(function, *placed), *placed
            )
        yield Case(
            ((f"{name}, {'forward and backward' if backward else 'forward'}", "ms"),),
            span(timed(setting, run), 1e-3),
            peers,
            words,
            (1e3 * limit,),
        )


def with_gradients(function: Callable) -> Callable:
    """(cotangent, *arguments) -> what the function gives, and its gradients by all arguments."""

    def both(cotangent, *arrays):
        outputs, pull_back = jax.vjp(function, *arrays)
        return outputs, pull_back(cotangent)

    return both


def cotangent(function: Callable, *arrays) -> jax.Array:
    """Random numbers in the place of what the layers above send back."""
    return jax.random.normal(jax.random.key(1), jax.eval_shape(function, *arrays).shape)


# ---- where the time goes


def profile(setting: Setting) -> Iterator[Case]:
    """The parts of what misses its target or just meets it, each measured by itself."""
    yield from step_parts(setting, "cifar18")
    yield from normalization_parts(setting)
    yield from pooling_parts(setting)
    for record_format, records in prepare_images(setting).items():
        yield from reading_parts(setting, f"{record_format} records, 256x256x3", records)


def step_parts(setting: Setting, preset_name: str) -> Iterator[Case]:
    """An update in all, the crops, and each layer forward and backward on random numbers."""
    config = preset(alexnet, preset_name, "--dataset=fake", *["--batch_size=8"] * setting.smallest)
    training = AlexNetTraining(config, 10)
    what, peak, bandwidth = training.described(preset_name), matmul_peak(), copy_bandwidth()
    words = "An update as in cifar_train. Limit: its operations at the peak of a matrix product."
    limit = 1e3 * config.batch_size * training.operations(training=True) / peak
    yield Case(
        ((f"{what}, in all", "ms"),),
        span(timed(setting, training.run), 1e-3),
        {},
        words,
        (limit,),
        A_PART,
    )

    prepare = jax.jit(training.prepare)
    image, draw = (jnp.asarray(training.batch[name]) for name in ("image", "draw"))
    x = prepare(image, draw)
    words = "Limit: bytes in and out at the copy bandwidth."
    ours = span(timed(setting, lambda: prepare(image, draw)), 1e-3)
    yield Case(
        ((f"{what}, crops", "ms"),),
        ours,
        {},
        words,
        (1e3 * (image.nbytes + x.nbytes) / bandwidth,),
        A_PART,
    )

    model, keys = alexnet.train.build_model(config, 10), jax.vmap(jax.random.key)(draw)
    table = {row["name"]: row for row in alexnet.model.layer_table(model, config.crop_size)}
    for name in model.order:
        if isinstance(getattr(model, name, None), nnx.Module):
            graphdef, params = nnx.split(getattr(model, name))

            def function(x, params, graphdef=graphdef):
                return nnx.merge(graphdef, params)(x)

            x, first = x.reshape(len(x), -1) if name.startswith("fc") else x, name == "conv1"
            limit = (2 if first else 3) * 2 * len(x) * table[name]["multiply_adds"] / peak
            arrays, argnums = (x, params), (1,) if first else (0, 1)
        else:
            function, arrays, argnums = functools.partial(model.layer, name, keys=keys), (x,), (0,)
        outputs = jax.eval_shape(function, *arrays)
        if (
            len(arrays) == 1
        ):  # reads x and writes the outputs, then reads x and their gradient and writes its own
            limit = 4 * (3 * x.size + 2 * outputs.size) / bandwidth
        yield attempt(setting, f"{what}, {name}", function, arrays, limit, argnums, A_PART)
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
    padded = pad(x)

    def sums(padded):
        return sum(padded[..., i : i + x.shape[-1]] for i in range(5))

    power = alexnet.lrn.negative_power
    passes = {  # what is computed: (function, its arguments)
        "in all": (with_gradients(alexnet.lrn.local_response_normalization), (g, x)),
        "squares with zeros around": (lambda x: pad(x * x), (x,)),
        "fourth roots of sums": (
            lambda padded: jnp.sqrt(lax.rsqrt(2 + 1e-4 * sums(padded))),
            (padded,),
        ),
        "outputs": (lambda x, root: x * power(root, 0.75), (x, root)),
        "products with zeros around": (
            lambda g, x, root: pad(g * x * power(root, 1.75)),
            (g, x, root),
        ),
        "gradient": (
            lambda g, x, root, padded: g * power(root, 0.75) - 1e-4 * x * sums(padded),
            (g, x, root, padded),
        ),
    }
    words = "Limit: what each reads and writes at the copy bandwidth; in all, x twice, the outputs, and both gradients."
    for name, (function, arrays) in passes.items():
        moved = 5 * x.nbytes if name == "in all" else (len(arrays) + 1) * x.nbytes
        ours = span(timed(setting, functools.partial(jax.jit(function), *arrays)), 1e-3)
        row = (f"LRN, {shape_text(x)}, {name}", "ms")
        yield Case((row,), ours, {}, words, (1e3 * moved / copy_bandwidth(),), A_PART)


def pooling_parts(setting: Setting) -> Iterator[Case]:
    """An overlapping maximum and its gradient, compiled one by one."""
    pool = functools.partial(alexnet.pooling.max_pool, overlapping=True)
    for images, *shape in ((128, 33, 33, 32), (32, 55, 55, 96)):
        x = jnp.asarray(
            np.random.default_rng(0).random((2 if setting.smallest else images, *shape), np.float32)
        )
        g = cotangent(pool, x)
        _, pull_back = jax.jit(lambda x: jax.vjp(pool, x))(x)
        parts = {  # what is computed: (function, its arguments, how many arrays like x it reads and writes)
            "in all": (with_gradients(pool), (g, x), 3.5),
            "maxima": (pool, (x,), 1.25),
            "maxima and where they were": (lambda x: jax.vjp(pool, x), (x,), 1.25 + 1 / 16),
            "gradient": (lambda pull_back, g: pull_back(g), (pull_back, g), 1.25 + 1 / 16),
        }
        for name, (function, arrays, moved) in parts.items():
            ours = span(timed(setting, functools.partial(jax.jit(function), *arrays)), 1e-3)
            limit = 1e3 * moved * x.nbytes / copy_bandwidth()
            words = "Limit: what each reads and writes at the copy bandwidth; in all, 3.5 arrays like x, as in ops."
            yield Case(
                ((f"max pooling 3/2, {shape_text(x)}, {name}", "ms"),),
                ours,
                {},
                words,
                (limit,),
                A_PART,
            )


def reading_parts(setting: Setting, what: str, records: data.Records) -> Iterator[Case]:
    """A record on its way from the disk to the device. The last copy goes on while the next batch
    is read.
    """
    indices = [int(i) for i in np.random.default_rng(0).permutation(len(records))]
    stored = [records.source[i] for i in indices]
    contents = [data.parse(record)[0] for record in stored]
    batch = np.empty((32, *records.image_shape), np.uint8)

    def fill():
        for place, content in enumerate(contents):
            pixels(records, content, batch[place % 32])

    parts = {
        "read and checked": lambda: [records.source[i] for i in indices],
        "parsed": lambda: [data.parse(record) for record in stored],
        "copied into the batch" if records.stored_raw else "decoded into the batch": fill,
        "from the batch to the device": lambda: [
            place_on_device({"image": batch}) for _ in range(len(records) // 32)
        ],
    }
    limit = 1e6 / reading_limit(records)
    words = "Microseconds a record, in random order, in batches of 32. Limit: the bare decoder, or a copy of the pixels."
    settings = dict(first_step=0, batch_size=32, seed=0, num_workers=0)
    with contextlib.closing(alexnet.data.training_batches(records, **settings)) as batches:
        read = functools.partial(
            drained_rate, setting, batches, ahead=5, count=32, use=place_on_device
        )
        yield Case(
            ((f"{what}, in all", "us"),), lambda: (1e6 / read()[0],), {}, words, (limit,), A_PART
        )
    for name, run in parts.items():
        ours = span(timed(setting, run, wait=lambda done: done), 1e-6, len(records))
        yield Case(((f"{what}, {name}", "us"),), ours, {}, words, no_peer=A_PART)


# ---- data


def reading_forms(records: data.Records) -> dict[str, Callable]:
    """Each reads and decodes all records once."""
    order = np.random.default_rng(0).permutation(len(records))
    batches = [order[i : i + 32] for i in range(0, len(order), 32)]
    buffer = np.empty((32, *records.image_shape), np.uint8)

    def reader(stored: Callable, decode_all: Callable) -> Callable:
        """Reads by hand, without the checks of sizes and labels, and without what tells a damaged
        record.
        """
        return lambda: [
            decode_all([data.parse(record)[0] for record in stored(batch)]) for batch in batches
        ]

    def one_by_one(batch):
        return [records.source[int(i)] for i in batch]

    def at_once(batch):
        return records.source.__getitems__([int(i) for i in batch])

    def into_new_arrays(contents):
        return np.stack([pixels(records, content) for content in contents])

    def into_one_buffer(contents):
        return [
            pixels(records, content, image)
            for content, image in zip(contents, buffer, strict=False)
        ]

    return {
        "in use": lambda: [records.read(batch) for batch in batches],
        "without checks, into one buffer": reader(one_by_one, into_one_buffer),
        "the same, a batch of records at once": reader(at_once, into_one_buffer),
        "without checks, stacked": reader(one_by_one, into_new_arrays),
    }


def pixels(records: data.Records, content: bytes, buffer: np.ndarray | None = None) -> np.ndarray:
    """A record's image, in `buffer` if there is one, without any check."""
    if not records.stored_raw:
        return DECODE(content, buffer=buffer)
    image = np.frombuffer(content, np.uint8).reshape(records.image_shape)
    if buffer is None:
        return image
    buffer[...] = image
    return buffer


def input_batches(setting: Setting) -> Iterator[Case]:
    """From records or memory to batches on the device."""
    batch_size, sets = 8 if setting.smallest else 32, prepare_images(setting)
    limits = {record_format: reading_limit(records) for record_format, records in sets.items()}
    readers = [0, 2] + [CORES - 2] * (CORES > 4)
    for record_format, num_workers in itertools.product(alexnet.imagenet.RECORD_FORMATS, readers):
        records, workers = sets[record_format], max(num_workers, 1)
        decoders = (
            min(workers, CORES) if record_format == "jpeg" else 1
        )  # all cores together have the copy bandwidth
        limit, what = decoders * limits[record_format], READING_LIMITS[record_format]
        measured = dict(ahead=5 * workers, count=batch_size)  # 5: what a reader may have ready
        with contextlib.ExitStack() as stack:
            settings = dict(first_step=0, batch_size=batch_size, seed=0, num_workers=num_workers)
            ours = stack.enter_context(
                contextlib.closing(alexnet.data.training_batches(records, **settings))
            )
            peers = {}
            for form in loaders():
                theirs = torch_peers().loader_batches(form, records, batch_size, num_workers)
                stack.enter_context(contextlib.closing(theirs))
                peers[form] = functools.partial(drained_rate, setting, theirs, **measured)
            yield Case(
                (
                    (
                        f"{record_format} records, {f'{num_workers} workers' if num_workers else '1 thread'}",
                        "images/s",
                    ),
                ),
                functools.partial(drained_rate, setting, ours, **measured, use=place_on_device),
                peers,
                f"Reading {described(records)} in random order, decoding (both by simplejpeg), batches of {batch_size}, "
                "ours with the copy to the device. What lies ready when the clock starts is used up before. "
                f"Limit: {what}{', on as many cores as there are readers' if record_format == 'jpeg' else ''}.",
                (limit,),
            )

    training = LeNetTraining(
        lenet.config.Config(), embedded_digits(), 2 if setting.smallest else 32
    )
    steps, peers = itertools.count(0, training.chunk_steps), {}
    if PEERS:
        digits = training.examples
        index = functools.partial(
            torch_peers().shuffled, digits.images, digits.labels, 128, training.chunk_steps
        )
        peers = {"indexing": rate(timed_theirs(setting, index), training.chunk_steps)}
        for form in loaders():
            batches = torch_peers().loader_batches(form, digits, 128, 0)
            peers[form] = functools.partial(drained_rate, setting, batches, ahead=0, count=1)
    yield Case(
        (("digits in memory, batch 128", "batches/s"),),
        rate(
            timed(setting, lambda: training.placement.place_training(training.chunk(next(steps)))),
            training.chunk_steps,
        ),
        peers,
        "Choosing the digits of a shuffled pass and stacking them, ours with the copy to the device. Limit: a copy of the "
        "pixels at the copy bandwidth.",
        (copy_bandwidth() / (2 * 128 * int(np.prod(training.examples.image_shape))),),
    )


def loaders() -> list[str]:
    """The ways to read by PyTorch's DataLoader."""
    return list(torch_peers().LOADERS) if PEERS else []


def drained_rate(
    setting: Setting, batches: Iterator, *, ahead: int, count: int, use=lambda batch: None
) -> tuple[float]:
    """`count` times the batches a second, after `ahead` batches that may have been ready, and one
    more.
    """
    for _ in range(ahead):
        use(next(batches))
    return (count / timed(setting, lambda: use(next(batches)), one_by_one=True)(),)


def place_on_device(batch: dict[str, np.ndarray]) -> None:
    jax.block_until_ready(jax.device_put(batch))


def prepare_images(setting: Setting) -> dict[str, data.Records]:
    """Record format -> records of `imagenet_256`: the user's own in their format; in the other, and
    without any, a set made of the same images, or of noise, about 32 kB each as JPEG.
    """
    own, count = None, 64 if setting.smallest else 512
    for split in ("train", "validation"):
        with contextlib.suppress(DataError):
            own = own or data.open_records(
                alexnet.imagenet.NAME, split, data.data_dirs(setting.data_dir)
            )
    found = {"raw" if own.stored_raw else "jpeg": own} if own else {}
    place = setting.work / "images" / "train" / "noise"
    place.mkdir(parents=True)
    for i in range(min(count, len(own)) if own else count):
        image = own.read(np.array([i]))[0][0] if own else noise_image(i)
        (place / f"{i}.jpeg").write_bytes(alexnet.imagenet.encode_jpeg(image))
    source = alexnet.imagenet.find_images(setting.work / "images")
    for record_format in alexnet.imagenet.RECORD_FORMATS:
        if record_format not in found:
            folder = setting.work / record_format / alexnet.imagenet.NAME / alexnet.imagenet.VERSION
            alexnet.imagenet.prepare(source, folder, record_format, num_workers=1)
            found[record_format] = data.open_records(
                alexnet.imagenet.NAME, "train", [setting.work / record_format]
            )
            if not own:
                found[record_format] = dataclasses.replace(found[record_format], name="noise")
    return dict(sorted(found.items()))


def described(records: data.Records) -> str:
    """How many images of what."""
    return f"{len(records):,} images of 256x256 pixels ({records.name})"


def noise_image(seed: int) -> np.ndarray:
    """(256, 256, 3) uint8: smooth colours and a grain that makes as many bytes of JPEG as a
    photograph has.
    """
    random = np.random.default_rng(seed)
    smooth = PIL.Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).resize(
        (256, 256), PIL.Image.Resampling.BICUBIC
    )
    return np.clip(np.asarray(smooth) + random.normal(0, 6, (256, 256, 1)), 0, 255).astype(np.uint8)


def reading_limit(records: data.Records) -> float:
    """Images a second, with one reader: of raw pixels a copy, else simplejpeg alone, the best of
    five.
    """
    if records.stored_raw:
        return copy_bandwidth() / (2 * float(np.prod(records.image_shape)))
    contents = [data.parse(records.source[i])[0] for i in range(min(len(records), 128))]
    buffer = np.empty(records.image_shape, np.uint8)
    return len(contents) / best_seconds(
        lambda: [DECODE(content, buffer=buffer) for content in contents]
    )


# ---- start and checkpoints


def startup(setting: Setting) -> Iterator[Case]:
    """From the start of a process to its first step."""
    imports = best_seconds(
        lambda: subprocess.run([sys.executable, "-c", "import lenet.train"], cwd=ROOT, check=True),
        2,
    )
    fresh = (setting.work / f"cache{i}" for i in itertools.count())
    for name, caches in (
        ("empty compile cache", fresh),
        ("warm compile cache", itertools.repeat(setting.work / "cache")),
    ):
        yield Case(
            ((f"lenet.train to the first step, {name}", "s"),),
            functools.partial(first_step, setting.work / "start", caches),
            {"eager": first_step_theirs} if PEERS else {},
            "Python's start, imports, the embedded digits (decoded before), the first step of batch 128; ours is "
            "`python -m lenet.train` up to its first line of metrics. Limit: the imports of lenet.train alone.",
            (imports,),
        )


def first_step(workdir: Path, caches: Iterator[Path]) -> tuple[float]:
    shutil.rmtree(workdir, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "lenet.train",
        f"--workdir={workdir}",
        "--dataset=mnist10k",
        "--validation_size=500",
    ]
    command += ["--train_size=128", "--num_epochs=1"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(next(caches))}
    lines, start = workdir / "metrics.jsonl", time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while not (lines.exists() and lines.stat().st_size):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended without a step")
            time.sleep(0.005)
        took = time.perf_counter() - start
        process.kill()  # what was compiled so far is in its cache
    return (took,)


def first_step_theirs() -> tuple[float]:
    code = f"from scripts import torch_peers\ntorch_peers.first_step({str(lenet.data.DIGITS)!r})"
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        if not process.stdout.readline():
            raise RuntimeError("PyTorch's first step failed")
        return (time.perf_counter() - start,)


def checkpoints(setting: Setting) -> Iterator[Case]:
    """The state of a training, to the disk and back."""
    nets = {"LeNet-5 deck": LeNetTraining(lenet.config.Config(), embedded_digits(), 1)}
    if setting.smallest:
        nets["AlexNet small"] = AlexNetTraining(preset(alexnet, "small", "--dataset=fake"), 10)
    else:
        nets["AlexNet deck"] = AlexNetTraining(
            preset(alexnet, "deck", "--dataset=fake", "--batch_size=1"), 1000
        )
    for name, training in nets.items():
        folder, plain = setting.work / "checkpoint", setting.work / "plain"
        arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(training.state)]
        content = np.concatenate(
            [np.atleast_1d(array).reshape(-1).view(np.uint8) for array in arrays]
        )
        write = best_seconds(functools.partial(content.tofile, plain), 3)
        read = best_seconds(functools.partial(np.fromfile, plain, np.uint8), 3)
        plain.unlink()
        kinds = ("stall of the loop", "until saved", "restore")
        yield Case(
            tuple((f"{name}, {content.nbytes / 1e6:.1f} MB: {what}", "s") for what in kinds),
            functools.partial(save_and_restore, folder, training.state),
            {"torch.save": functools.partial(torch_peers().save_and_load, plain, arrays)}
            if PEERS
            else {},
            "Ours digests every array (SHA-256), saves in the background and verifies what it restores; torch.save does none "
            "of it. Limits: the same bytes copied in memory, written to a plain file, and read from it.",
            (2 * content.nbytes / copy_bandwidth(), write, read),
        )


def save_and_restore(folder: Path, state) -> tuple[float, float, float]:
    """Seconds until `save` returns, until all is on disk, and of a restore."""
    shutil.rmtree(folder, ignore_errors=True)
    checkpointer = checkpoint.Checkpointer(folder)
    start = time.perf_counter()
    checkpointer.save(1, state, {})
    stall = time.perf_counter() - start
    checkpointer.close()
    saved = time.perf_counter() - start
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    with contextlib.closing(checkpoint.Checkpointer(folder)) as checkpointer:
        restored = seconds(lambda: checkpointer.restore_newest(target))
    return stall, saved, restored


# ---- growth


def growth(setting: Setting) -> Iterator[Case]:
    """Time per image and memory of a process, against batch size, devices and the number of images."""
    alone = "in a process of its own, and the most memory it ever had, libraries included."
    least_mb = (
        "of memory, that of a process that has these libraries and puts one number on the device."
    )
    words = f"Training of LeNet-5 deck {alone} Limits: the operations of forward and backward at the matmul peak; {least_mb}"
    model = lenet.train.build_model(lenet.config.Config())
    _, bare_mb = in_process("scripts.benchmark_suites", "jax.device_put(1.0).item()")
    limits = (
        1e6 * operations(lenet.model.layer_table(model), training=True) / matmul_peak(),
        bare_mb,
    )
    num_images, tried = (64, forms(setting)[:1]) if setting.smallest else (4096, forms(setting))
    for batch_size in (64,) if setting.smallest else (128, 1024, 4096):
        yield growth_case(
            f"batch {batch_size}",
            f"growth_of_training({{}}{batch_size}, {num_images})",
            tried,
            words,
            limits,
        )
    for devices in () if accelerated() else (2,) if setting.smallest else (1, 2, 4, 8):
        batch_size = 64 if setting.smallest else 1024
        yield growth_case(
            f"{devices} virtual devices, batch {batch_size}",
            f"growth_of_training({{}}{batch_size}, {num_images})",
            tried,
            f"{words} The virtual devices share the cores, as do PyTorch's processes, one for each device, with "
            "DistributedDataParallel over gloo; their memory counts together.",
            limits,
            processes=devices,
            XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}",
        )
    count = 200 if setting.smallest else 1000
    tiles = [
        (alexnet.imagenet.encode_jpeg(np.ascontiguousarray(noise_image(i)[:72, :72])), i % 10)
        for i in range(count)
    ]
    names = [str(label) for label in range(10)]
    builders.write_prepared(
        setting.work, "tiles", "1.0.0", {"train": tiles}, (72, 72, 3), names, keep_order=True
    )
    limits = 1e6 / reading_limit(data.open_records("tiles", "train", [setting.work])), bare_mb
    for repeats in (1, 10) if setting.smallest else (1, 10, 100):
        yield growth_case(
            f"{repeats * count:,} records",
            f"growth_of_stream({{}}{str(setting.work)!r}, {repeats}, {2 if setting.smallest else 20})",
            loaders(),
            f"Batches of 128 from JPEG records of 72x72 pixels, in random order, without workers, {alone} All shards, of "
            f"{count:,} records each, are the same file. Limits: the bare decoder; {least_mb}",
            limits,
        )


def growth_case(
    what: str,
    call: str,
    peers: list[str],
    contains: str,
    limits: tuple,
    *,
    processes: int = 1,
    **environment: str,
) -> Case:
    """Time and memory of a call that both modules have, theirs with the form as its first argument,
    and in `processes`.
    """
    theirs = {
        form: functools.partial(
            in_process, "scripts.torch_peers", call.format(f"{form!r}, "), processes
        )
        for form in peers
    }
    ours = functools.partial(in_process, "scripts.benchmark_suites", call.format(""), **environment)
    return Case(
        ((f"{what}: time per image", "us"), (f"{what}: memory", "MB")),
        ours,
        theirs,
        contains,
        limits,
    )


def growth_of_training(batch_size: int, num_images: int) -> float:
    """Microseconds per image of LeNet-5's training on so many images, the median of three times."""
    runtime.keep_freed_memory()  # as every command does
    steps = num_images // batch_size
    training = LeNetTraining(lenet.config.Config(batch_size=batch_size), embedded_digits(), steps)
    training.run()
    return 1e6 * statistics.median(seconds(training.run) for _ in range(3)) / (steps * batch_size)


def growth_of_stream(data_dir: str, repeats: int, num_batches: int) -> float:
    """Microseconds per image of reading batches of 128 without workers."""
    runtime.keep_freed_memory()
    records = data.open_records("tiles", "train", [data_dir])
    records = dataclasses.replace(records, stretches=records.stretches * repeats)
    settings = dict(first_step=0, batch_size=128, seed=0, num_workers=0)
    with contextlib.closing(alexnet.data.training_batches(records, **settings)) as batches:
        for _ in range(6):  # five may be ready
            place_on_device(next(batches))
        return (
            1e6
            * seconds(lambda: [place_on_device(next(batches)) for _ in range(num_batches)])
            / (128 * num_batches)
        )


# ---- the whole way

RACE_CHUNKS = 3  # of 32 updates, between two validations


def time_to_accuracy(setting: Setting) -> Iterator[Case]:
    """Seconds of training until the validation error falls to TARGET_PCT, and the test error then."""
    dataset, target_pct, splits = "mnist", TARGET_PCT, None
    if not setting.smallest:
        with contextlib.suppress(DataError):
            splits = lenet.data.load_splits(
                "mnist", setting.data_dir, train_size=0, validation_size=5000
            )
    if splits is None:  # the embedded digits, and an aim that they allow
        dataset, target_pct = "mnist10k", 20.0 if setting.smallest else 3.0
        splits = lenet.data.load_splits("mnist10k", "", train_size=0, validation_size=500)
    race = Race(setting, splits, target_pct)
    yield Case(
        (
            (f"{dataset} to {100 - target_pct:.0f}% of validation digits", "s"),
            (f"{dataset}: test error then", "%"),
        ),
        functools.partial(race.ours, itertools.count()),
        {race.form: functools.partial(race.theirs, itertools.count())} if PEERS else {},
        f"LeNet-5 (Table I, ReLU, max pooling), batch 128, Adam, its rate falling from {race.config.learning_rate} along "
        f"half a cosine of {race.config.num_epochs} epochs, the same weights at the start and the same batches on both sides, "
        "another seed in each round; if it does not get there, on with the next one on the same clock. Seconds of training "
        f"alone: compiled before, and validated every {RACE_CHUNKS * 32} updates with the clock stopped. Limit: the operations "
        f"of forward and backward in these updates at the matmul peak.{race.choice}",
        (race.least_seconds, None),
    )


class Race:
    """One recipe on both sides, from the same weights by the same batches to the same validation
    error.
    """

    def __init__(self, setting: Setting, splits: tuple, target_pct: float):
        self.train, self.validation, self.test = splits
        self.target_pct = target_pct
        # Of 6 to 10 epochs and rates of 0.003 to 0.006, those with which six seeds of six got there
        # on these validation digits. Few digits make few updates an epoch, and need more epochs.
        recipe = dict(
            activation="relu", pooling="max", optimizer="adamw", momentum=0.0, schedule="cosine"
        )
        num_epochs = 10 if len(self.train) > 20_000 else 30
        self.config = lenet.config.Config(
            **recipe, learning_rate=0.004, batch_size=128, num_epochs=num_epochs
        )
        epoch_steps = lenet.data.steps_per_epoch(len(self.train), 128)
        schedule = lenet.train.build_schedule(self.config, epoch_steps)
        self.num_steps, self.rates = (
            num_epochs * epoch_steps,
            np.asarray(schedule(np.arange(num_epochs * epoch_steps))),
        )
        self.training = LeNetTraining(self.config, self.train, 32)
        self.training.run()  # compiles
        self.updates = []  # until the target was reached, in each of our runs
        times, trainers = {}, lenet_trainers(setting, False, self.config)
        for form, trainer in trainers.items():
            steps = functools.partial(
                torch_peers().train_in_memory,
                self.train.images,
                self.train.labels,
                128,
                32,
                trainer,
            )
            times[form] = best_seconds(steps, 1 if setting.smallest else 5) / 32
        self.choice = ""
        if times:
            self.form = min(times, key=times.get)
            self.trainer = trainers[self.form]
            self.choice = f" PyTorch: {', '.join(f'{form} {1e3 * took:.2f}' for form, took in times.items())} ms an update."

    def ours(self, seeds: Iterator[int]) -> tuple[float, float]:
        def error_pct(examples):
            sums = lenet.train.evaluate(
                self.training.eval_step, self.training.state.params, examples
            )
            return 100 * float(sums["errors"]) / float(sums["count"])

        numbers, num_updates = self.run(seeds, lambda: None, self.training.run, error_pct)
        self.updates.append(num_updates)
        return numbers

    def least_seconds(self) -> float:
        """That the median of our runs would have taken at the matmul peak."""
        layers = lenet.model.layer_table(lenet.train.build_model(self.config))
        return (
            statistics.median(self.updates)
            * 128
            * operations(layers, training=True)
            / matmul_peak()
        )

    def theirs(self, seeds: Iterator[int]) -> tuple[float, float]:
        def restart():
            self.trainer.restart(self.training.state.params)

        def train():
            first, self.training.step = self.training.step, self.training.step + 32
            for k, batch in enumerate(
                zip(*torch_peers().tensors(self.training.chunk(first)), strict=True)
            ):
                self.trainer.set_rate(float(self.rates[min(first + k, self.num_steps - 1)]))
                self.trainer.step(*batch)
            torch_peers().wait()

        def error_pct(examples):
            return self.trainer.error_pct(examples.images, examples.labels)

        return self.run(seeds, restart, train, error_pct)[0]

    def run(
        self, seeds: Iterator[int], restart: Callable, train: Callable, error_pct: Callable
    ) -> tuple[tuple[float, float], int]:
        """((seconds in `train` until the validation error is at most the target, the test error
        then), updates until then).
        """
        clock, num_updates = 0.0, 0
        for _ in range(3):
            self.training.restart(next(seeds))  # also for PyTorch's weights and batches
            restart()
            while self.training.step < self.num_steps:
                clock += sum(seconds(train) for _ in range(RACE_CHUNKS))
                num_updates += RACE_CHUNKS * 32
                if error_pct(self.validation) <= self.target_pct:
                    return (clock, error_pct(self.test)), num_updates
        raise RuntimeError(f"time_to_accuracy: {num_updates:,} updates did not suffice")


SUITES = {
    "lenet_train": lenet_train,
    "lenet_predict": lenet_predict,
    "alexnet_train": alexnet_train,
    "alexnet_predict": alexnet_predict,
    "cifar_train": cifar_train,
    "ops": ops,
    "attempts": attempts,
    "profile": profile,
    "input": input_batches,
    "startup": startup,
    "checkpoint": checkpoints,
    "growth": growth,
    "time_to_accuracy": time_to_accuracy,
}

ONLY_IF_NAMED = ("attempts", "profile")  # they explain the others, and have a table of their own
