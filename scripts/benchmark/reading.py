"""From records on disk, or examples in memory, to batches on the device."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator

import jax
import numpy as np

import alexnet.data
import lenet.config
from common.order import READ_AHEAD
from common.records import Records, parse
from scripts.benchmark import sets
from scripts.benchmark.machine import CORES, copy_bandwidth
from scripts.benchmark.measure import A_PART, ANOTHER_FORM, Case
from scripts.benchmark.timing import (
    PEERS,
    Setting,
    rate,
    span,
    timed,
    timed_theirs,
    torch_peers,
)
from scripts.benchmark.training import LeNetTraining, embedded_digits
from scripts.prepare.encode import RECORD_FORMATS

BATCH = 32


# Threads of ours, and worker processes of PyTorch's (1: none): what a row calls them.
READERS = {1: "1 thread", 2: "2 workers"}
if CORES > 4:
    READERS[CORES - 2] = f"{CORES - 2} workers"


def training_batches(records: Records, batch_size: int, num_threads: int = 1):
    """A context that gives shuffled batches without end, as `alexnet.train` reads them."""
    return contextlib.closing(
        alexnet.data.training_batches(
            records, first_step=0, batch_size=batch_size, seed=0, num_threads=num_threads
        )
    )


# ---- the suite `input`


def input_batches(setting: Setting) -> Iterator[Case]:
    """From records or memory to batches on the device."""
    record_sets = sets.prepare_images(setting)
    limits = {name: sets.reading_limit(records) for name, records in record_sets.items()}
    for record_format, readers in itertools.product(RECORD_FORMATS, READERS):
        yield from stream_cases(
            setting, record_format, record_sets[record_format], limits[record_format], readers
        )
    yield digits_case(setting)


def stream_cases(
    setting: Setting, record_format: str, records: Records, limit: float, readers: int
) -> Iterator[Case]:
    """The case of one format and number of readers, which stop once it is measured."""
    batch_size = 8 if setting.smallest else BATCH
    contains = (
        f"Reading {sets.described(records)} in random order, decoding (both by simplejpeg), "
        f"batches of {batch_size}, ours with the copy to the device. Workers are threads in ours "
        "and processes in PyTorch, which may also read without. Batches that are ready when the "
        f"clock starts are used up before. Limit: {sets.LIMITS[record_format]}"
    )
    if record_format == "jpeg":  # a copy already has the bandwidth of all cores
        limit, contains = limit * min(readers, CORES), contains + ", on one core per worker"
    # what may be ready: DataLoader reads two batches ahead per worker
    measured = dict(ahead=max(READ_AHEAD, 2 * readers), count=batch_size)
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(training_batches(records, batch_size, readers))
        peers = {}
        for form, num_workers in itertools.product(loaders(), sorted({0, readers} - {1})):
            theirs = torch_peers().loader_batches(form, records, batch_size, num_workers)
            stack.enter_context(contextlib.closing(theirs))
            name = f"{form}, {num_workers} workers" if num_workers else form
            peers[name] = functools.partial(drained_rate, setting, theirs, **measured)
        yield Case(
            ((f"{record_format} records, {READERS[readers]}", "images/s"),),
            functools.partial(drained_rate, setting, ours, **measured, use=place_on_device),
            peers,
            f"{contains}.",
            (limit,),
        )


def digits_case(setting: Setting) -> Case:
    """Batches of examples in memory."""
    chunk_steps = 2 if setting.smallest else 32
    training = LeNetTraining(lenet.config.Config(), embedded_digits(), chunk_steps)
    digits, steps, peers = training.examples, itertools.count(0, chunk_steps), {}
    if PEERS:
        index = functools.partial(
            torch_peers().shuffled, digits.images, digits.labels, 128, chunk_steps
        )
        peers["indexing"] = rate(timed_theirs(setting, index), chunk_steps)
    for form in loaders():
        batches = torch_peers().loader_batches(form, digits, 128, 0)
        peers[form] = functools.partial(drained_rate, setting, batches, ahead=0, count=1)

    def ours():
        return training.placement.place_training(training.chunk(next(steps)))

    return Case(
        (("digits in memory, batch 128", "batches/s"),),
        rate(timed(setting, ours), chunk_steps),
        peers,
        "Choosing the digits of a shuffled epoch and stacking them, ours with the copy to the "
        "device. Limit: a copy of the pixels at the copy bandwidth.",
        (copy_bandwidth(on_host=True) / (2 * 128 * int(np.prod(digits.image_shape))),),
    )


def loaders() -> list[str]:
    """The ways to read with PyTorch's DataLoader."""
    return list(torch_peers().LOADERS) if PEERS else []


def drained_rate(
    setting: Setting, batches: Iterator, *, ahead: int, count: int, use=lambda batch: None
) -> tuple[float]:
    """`count` times the batches per second, after `ahead` batches that may have been ready and one
    more.
    """
    for _ in range(ahead):
        use(next(batches))
    return (count / timed(setting, lambda: use(next(batches)), one_by_one=True)(),)


def place_on_device(batch: dict[str, np.ndarray]) -> None:
    jax.block_until_ready(jax.device_put(batch))


# ---- parts and other forms, for `profile` and `attempts`


def reading_parts(setting: Setting, record_format: str, records: Records) -> Iterator[Case]:
    """A record on its way from disk to the device. In training the last copy overlaps with reading
    the next batch.
    """
    indices = [int(i) for i in np.random.default_rng(0).permutation(len(records))]
    stored = [records.source[i] for i in indices]
    contents = [parse(record)[0] for record in stored]
    batch = np.empty((BATCH, *records.image_shape), np.uint8)

    def fill():
        for place, content in enumerate(contents):
            sets.pixels(records, content, batch[place % BATCH])

    def place():
        for _ in range(len(records) // BATCH):
            place_on_device({"image": batch})

    parts = {
        "read and checked": lambda: [records.source[i] for i in indices],
        "parsed": lambda: [parse(record)[0] for record in stored],
        "copied into the batch" if records.stored_raw else "decoded into the batch": fill,
        "from the batch to the device": place,
    }
    what, limit = f"{record_format} records, 256x256x3", 1e6 / sets.reading_limit(records)
    contains = (
        f"Microseconds per record, in random order, in batches of {BATCH}. Limit: the bare "
        "decoder, or a copy of the pixels."
    )
    with training_batches(records, BATCH) as batches:
        read = functools.partial(
            drained_rate, setting, batches, ahead=READ_AHEAD, count=BATCH, use=place_on_device
        )
        row = (f"{what}: in all", "us")
        yield Case((row,), lambda: (1e6 / read()[0],), {}, contains, (limit,), A_PART)
    for name, run in parts.items():
        ours = span(timed(setting, run, wait=lambda done: done), 1e-6, len(records))
        yield Case(((f"{what}: {name}", "us"),), ours, {}, contains, no_peer=A_PART)


def reading_attempts(setting: Setting, record_format: str, records: Records) -> Iterator[Case]:
    """Each form of reading."""
    contains = (
        f"Reading {sets.described(records)} in random order and decoding them, in batches of "
        f"{BATCH}. Limit: {sets.LIMITS[record_format]}."
    )
    limit = 1e6 / sets.reading_limit(records)
    for form, read in reading_forms(records).items():
        ours = span(timed(setting, read), 1e-6, len(records))
        row = (f"{record_format} records, 256x256x3: {form}", "us")
        yield Case((row,), ours, {}, contains, (limit,), ANOTHER_FORM)


def reading_forms(records: Records) -> dict[str, Callable]:
    """Functions that each read and decode all records once. Those without checks also do without
    the check of sizes and labels and what names a damaged record.
    """
    order = np.random.default_rng(0).permutation(len(records))
    batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    buffer = np.empty((BATCH, *records.image_shape), np.uint8)

    def reader(stored: Callable, decode_all: Callable) -> Callable:
        return lambda: [
            decode_all([parse(record)[0] for record in stored(batch.tolist())]) for batch in batches
        ]

    def one_by_one(indices):
        return [records.source[i] for i in indices]

    def stacked(contents):
        return np.stack([sets.pixels(records, content) for content in contents])

    def into_buffer(contents):
        for content, image in zip(contents, buffer, strict=False):
            sets.pixels(records, content, image)

    return {
        "in use": lambda: [records.read(batch) for batch in batches],
        "without checks, into one buffer": reader(one_by_one, into_buffer),
        "the same, a batch of records at once": reader(records.source.__getitems__, into_buffer),
        "without checks, stacked": reader(one_by_one, stacked),
    }
