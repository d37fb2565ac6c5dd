"""Time per image and memory of a process, against batch size, devices and the number of images."""

import dataclasses
import functools
import statistics
from collections.abc import Iterator

import jax

import alexnet.config
import lenet.config
from common import runtime
from common.order import READ_AHEAD
from common.records import open_records
from scripts.benchmark import sets
from scripts.benchmark.machine import accelerated, matmul_peak
from scripts.benchmark.measure import Case, run_for, seconds
from scripts.benchmark.reading import loaders, place_on_device, training_batches
from scripts.benchmark.timing import Setting, forms, in_process
from scripts.benchmark.training import (
    AlexNetTraining,
    LeNetTraining,
    alexnet_layers,
    embedded_digits,
    lenet_operations,
    operations,
)

OURS, THEIRS = "scripts.benchmark.growth", "scripts.benchmark.torch_peers"
PEAK = "in a process of its own, and the peak memory of that process, libraries included."
MEMORY_LIMIT = (
    "for memory, that of a process that imports these libraries and puts one number on the device."
)
TRAINING_CONTAINS = (
    f"Training of LeNet-5 deck {PEAK} Limits: the operations of forward and backward at the "
    f"matmul peak; {MEMORY_LIMIT}"
)
ALEXNET_CONTAINS = TRAINING_CONTAINS.replace("LeNet-5 deck", "AlexNet deck at full size")
ALEXNET_CONTAINS += " Ours keeps freed memory, as its commands do; PyTorch allocates as it comes."
DEVICES_CONTAINS = (
    f"{TRAINING_CONTAINS} The virtual devices share the cores, as do PyTorch's processes, one per "
    "device, with DistributedDataParallel over gloo; their memory counts together."
)


def growth(setting: Setting) -> Iterator[Case]:
    """Time per image and peak memory, against batch size, devices and the number of images."""
    _, bare_mb = in_process(OURS, "bare()")
    yield from training_cases(setting, bare_mb)
    yield from alexnet_cases(setting, bare_mb)
    yield from stream_cases(setting, bare_mb)


def training_cases(setting: Setting, bare_mb: float) -> Iterator[Case]:
    """Training, by batch size, then by devices."""
    per_image = lenet_operations(lenet.config.Config(), training=True)
    limits = 1e6 * per_image / matmul_peak(), bare_mb
    num_images, tried = (64, forms(setting)[:1]) if setting.smallest else (4096, forms(setting))

    def call(batch_size: int) -> str:
        return f"growth_of_training({{}}{batch_size}, {num_images})"

    for batch_size in (64,) if setting.smallest else (128, 1024, 4096):
        name = f"batch {batch_size}"
        yield growth_case(name, call(batch_size), tried, TRAINING_CONTAINS, limits)
    if accelerated():
        return
    batch_size = 64 if setting.smallest else 1024
    for devices in (2,) if setting.smallest else (1, 2, 4, 8):
        yield growth_case(
            f"{devices} virtual devices, batch {batch_size}",
            call(batch_size),
            tried,
            DEVICES_CONTAINS,
            limits,
            processes=devices,
            XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}",
        )


def alexnet_cases(setting: Setting, bare_mb: float) -> Iterator[Case]:
    """Training of a network of 250 MB, by batch size."""
    tried = forms(setting)[:1] if setting.smallest else forms(setting, norms=True)
    per_image = operations(alexnet_layers(alexnet.config.Config(), 1000), training=True)
    limits = 1e6 * per_image / matmul_peak(), bare_mb
    for batch_size in (1,) if setting.smallest else (32, 128):
        call = f"growth_of_alexnet({{}}{batch_size})"
        yield growth_case(
            f"AlexNet deck, batch {batch_size}", call, tried, ALEXNET_CONTAINS, limits
        )


def stream_cases(setting: Setting, bare_mb: float) -> Iterator[Case]:
    """Reading, by the number of records."""
    count = 200 if setting.smallest else 1000
    limits = 1e6 / sets.reading_limit(sets.prepare_tiles(setting, count)), bare_mb
    num_batches = 2 if setting.smallest else 20
    contains = (
        "Batches of 128 from JPEG records of 72x72 pixels, in random order, read by one thread, "
        f"{PEAK} All shards, of {count:,} records each, are the same file. Limits: the bare "
        f"decoder; {MEMORY_LIMIT}"
    )
    for repeats in (1, 10) if setting.smallest else (1, 10, 100):
        call = f"growth_of_stream({{}}{str(setting.work)!r}, {repeats}, {num_batches})"
        yield growth_case(f"{repeats * count:,} records", call, loaders(), contains, limits)


def growth_case(
    what: str,
    call: str,
    peers: list[str],
    contains: str,
    limits: tuple[float, float],
    *,
    processes: int = 1,
    **environment: str,
) -> Case:
    """Time and memory of a call of a function that this module and PyTorch's have; PyTorch's with
    the form as its first argument, and in several `processes`.
    """
    theirs = {
        form: functools.partial(in_process, THEIRS, call.format(f"{form!r}, "), processes)
        for form in peers
    }
    ours = functools.partial(in_process, OURS, call.format(""), **environment)
    rows = ((f"{what}: time per image", "us"), (f"{what}: memory", "MB"))
    return Case(rows, ours, theirs, contains, limits)


# ---- in a process of their own


def _as_commands_do() -> None:
    runtime.ignore_jax_environment()
    runtime.keep_freed_memory()


def bare() -> float:
    """Puts one number on the device."""
    place_on_device({"number": 1.0})
    return 0.0


def growth_of_training(batch_size: int, num_images: int) -> float:
    """Microseconds per image of LeNet-5's training on so many images, the median of three, after
    a second that is not counted.
    """
    _as_commands_do()
    steps = num_images // batch_size
    training = LeNetTraining(lenet.config.Config(batch_size=batch_size), embedded_digits(), steps)
    run_for(1.0, training.run)
    return 1e6 * statistics.median(seconds(training.run) for _ in range(3)) / (steps * batch_size)


def growth_of_alexnet(batch_size: int) -> float:
    """Microseconds per image of training AlexNet deck, the median of seven steps."""
    _as_commands_do()
    training = AlexNetTraining("deck", 1000, f"--batch_size={batch_size}")
    took = [seconds(lambda: jax.block_until_ready(training.run())) for _ in range(8)]
    return 1e6 * statistics.median(took[1:]) / batch_size


def growth_of_stream(data_dir: str, repeats: int, num_batches: int) -> float:
    """Microseconds per image of reading batches of 128 in one thread."""
    _as_commands_do()
    records = open_records("tiles", "train", [data_dir])
    records = dataclasses.replace(records, slices=records.slices * repeats)
    with training_batches(records, 128) as batches:

        def read(num_batches: int) -> None:
            for _ in range(num_batches):
                place_on_device(next(batches))

        read(READ_AHEAD + 1)
        return 1e6 * seconds(lambda: read(num_batches)) / (128 * num_batches)
