"""The order in which examples are used, and reading them in batches, ahead of their use.

Examples here are `common.examples.Examples`, `common.records.Records`, or anything else with a
length, slices, `image_shape`, `name`, `damaged` and `read_into`.
"""

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from common.errors import UserError
from common.images import empty_images
from common.records import REPLACED, SKIPPED
from common.subset import first_of_each_class

NUM_THREADS = 2  # that read, where the caller does not say
READ_AHEAD = 2  # batches that are read while one is used
MIN_PART_BYTES = 2**20  # of a batch, to be worth handing to a thread: 5 images of 256x256 pixels


@functools.lru_cache(maxsize=2)  # every chunk of an epoch asks for it
def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the examples in one epoch: a permutation that is a pure function of
    (num_examples, seed, epoch).

    It sorts raw Philox numbers seeded by a SeedSequence. NumPy guarantees these two streams for all
    versions, but not that of `Generator.permutation`; and equal numbers keep their order, so it is
    the same wherever a run resumes.

    Args:
      num_examples: N >= 0.
      seed, epoch: non-negative; different pairs give independent orders.

    Returns:
      (N,) int64, each of 0 to N - 1 once, read-only.
    """
    random = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    keys = random.random_raw(num_examples)
    order = np.argsort(keys)  # several times as fast as a stable sort; free where keys are equal
    if (np.diff(keys[order]) == 0).any():
        order = np.argsort(keys, kind="stable")
    order.flags.writeable = False
    return order


def order_of_uses(
    population: int, uses: np.ndarray, seed: int, *, reshuffle: bool = True
) -> np.ndarray:
    """Which examples are at the positions `uses` of the endless stream of epochs.

    Args:
      population: the number of examples in an epoch.
      uses: integers >= 0 of any shape: how many examples came before this one.
      seed: non-negative.
      reshuffle: a new order in each epoch, or that of the first in all.

    Returns:
      int64 like `uses`, each 0 to population - 1.
    """
    epochs, places = np.divmod(uses, population)
    chosen = np.empty_like(places)
    for epoch in np.unique(epochs):
        order = epoch_order(population, seed, int(epoch) if reshuffle else 0)
        here = epochs == epoch
        chosen[here] = order[places[here]]
    return chosen


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Updates in one epoch: full batches only; what is left over begins the next epoch.

    Raises UserError if there are fewer examples than one batch has.
    """
    if batch_size > num_examples:
        raise UserError(
            f"--batch_size={batch_size} is larger than the training set of {num_examples} examples"
        )
    return num_examples // batch_size


def hold_out(examples, *, train_size: int, validation_size: int, train_per_class: int = 0) -> tuple:
    """(training, validation): the last `validation_size` examples validate; of the others the first
    `train_size`, or all of them (0), train; of these the first `train_per_class` of each class, or
    all of them (0). Raises UserError if there are too few.
    """
    available = len(examples) - validation_size
    if available < max(train_size, 1):
        raise UserError(
            f"{examples.name} has {len(examples)} training examples; "
            f"--validation_size={validation_size} leaves {max(available, 0)} to train on"
            + (
                f", fewer than --train_size={train_size}; together at most {len(examples)}"
                if train_size
                else f"; add a smaller one, such as --validation_size={len(examples) // 10}"
            )
        )
    training = first_of_each_class(examples[: train_size or available], train_per_class)
    return training, examples[available:]


def eval_batches(
    examples, batch_size: int, rows: slice = slice(None), *, num_threads: int = NUM_THREADS
) -> Iterator[dict[str, np.ndarray]]:
    """All examples in order, in batches of one shape, so that one compiled function scores them.

    Args:
      examples: N of them. Those whose records are damaged, as far as `examples.damaged` allows, are
        masked out.
      batch_size: B >= 1, the global batch size.
      rows: the rows of the batch to read: those of this process, where several share the work.
      num_threads: as for `read_batches`.

    Yields:
      ceil(N / B) times {"image": (B, H, W, C) uint8, "label": (B,) int32, "mask": (B,) bool}. The
      last batch is padded with zeros where `mask` is False: sums weighted by the mask count each
      example exactly once.

    Raises:
      DataError: a record is damaged, or more than are allowed.
    """
    places = (
        np.arange(start, start + batch_size)[rows] for start in range(0, len(examples), batch_size)
    )
    indices = (each[each < len(examples)] for each in places)
    size = len(range(batch_size)[rows])
    return read_batches(examples, indices, size=size, num_threads=num_threads, masked=True)


def read_batches(
    examples,
    indices: Iterable[np.ndarray],
    *,
    size: int,
    num_threads: int,
    masked: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
    """The examples at each of `indices`, two batches read ahead. Close it to end its threads.

    Args:
      indices: (n,) of each batch, n <= size.
      size: B, of every batch; the last B - n examples are zeros.
      num_threads: how many threads read parts of the batches; 0: read when asked, in the calling
        thread. The batches do not depend on it.
      masked: yield a mask, False for the last B - n examples and where a record is damaged;
        otherwise the next intact record replaces a damaged one.

    Yields:
      {"image": (B, H, W, C) uint8, "label": (B,) int32}, with `masked` also "mask": (B,) bool.
    """
    pool = ThreadPoolExecutor(max(num_threads, 1), "reader")  # starts its threads when needed
    submit, ahead = (pool.submit, READ_AHEAD) if num_threads else (_call, 0)

    def start(chosen: np.ndarray) -> tuple[dict[str, np.ndarray], list[Future]]:
        """A batch, and its parts that are being read."""
        images = empty_images((size, *examples.image_shape))
        labels, mask = np.empty(size, np.int32), np.arange(size) < len(chosen)
        images[len(chosen) :], labels[len(chosen) :] = 0, 0
        batch = {"image": images, "label": labels} | ({"mask": mask} if masked else {})
        num_parts = max(min(images.nbytes // MIN_PART_BYTES, 2 * num_threads), 1)
        cuts = np.linspace(0, len(chosen), num_parts + 1, dtype=int)
        parts = [slice(first, end) for first, end in itertools.pairwise(cuts)]
        return batch, [
            submit(examples.read_into, chosen[part], *(array[part] for array in batch.values()))
            for part in parts
        ]

    def finish(batch: dict[str, np.ndarray], parts: list[Future]) -> dict[str, np.ndarray]:
        found = [damage for part in parts for damage in part.result()]
        if found:  # counted in the order of the batches, when they are used
            examples.damaged.add(found, SKIPPED if masked else REPLACED)
        return batch

    started: deque = deque()
    try:
        for chosen in indices:
            started.append(start(chosen))
            if len(started) > ahead:
                yield finish(*started.popleft())
        while started:
            yield finish(*started.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _call(function: Callable, *arguments) -> Future:
    """As an executor's `submit`, but in the calling thread."""
    done = Future()
    done.set_result(function(*arguments))
    return done
