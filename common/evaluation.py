"""Scores of a network: sums over all examples, each counted once, divided at the end."""

import contextlib
from collections.abc import Callable

import jax
import numpy as np

from common.errors import DataError, Interrupted
from common.order import NUM_THREADS, eval_batches
from common.parallel import Placement
from common.records import SKIPPED


def evaluate(
    eval_step: Callable,
    params,
    examples,
    *,
    batch_size: int,
    placement: Placement | None = None,
    num_threads: int = NUM_THREADS,
    stop_requested: Callable[[], int | None] = lambda: None,
) -> dict[str, np.ndarray | np.generic]:
    """The sums of `eval_step(params, batch)` over all examples: {"loss", "errors", "count", ...}.

    The next batch is on its way to the device before the sums of the last one are fetched.

    Args:
      eval_step: masks the places that hold no example, or a damaged one.
      batch_size: examples on each device at a time.
      placement: how the step was compiled; None: for one device.
      num_threads: threads that read the examples.
      stop_requested: asked before each batch.

    Raises:
      Interrupted: `stop_requested()` gave the number of a signal.
      DataError: no record is intact, or more are damaged than is allowed.
    """
    num_devices = placement.num_devices if placement else 1
    batch_size = min(batch_size, -(-len(examples) // num_devices)) * num_devices
    rows, put = slice(None), jax.device_put
    if placement:
        rows, put = placement.rows(batch_size), placement.place_batch
    fetched, waiting = [], None
    reading = eval_batches(examples, batch_size, rows, num_threads=num_threads)
    with contextlib.closing(reading) as batches:
        for batch in batches:
            if stop_signal := stop_requested():
                raise Interrupted(stop_signal)
            before, waiting = waiting, eval_step(params, put(batch))
            if before is not None:
                fetched.append(jax.device_get(before))
    fetched.append(jax.device_get(waiting))
    if examples.damaged is not None:
        examples.damaged.agree(SKIPPED)
    total = jax.tree.map(lambda *parts: np.sum(parts, axis=0), *fetched)
    if not total["count"]:
        raise DataError(f"{examples.name}: none of its {len(examples)} records is intact")
    return total
