"""One train step, placed on one device or many: jit over a mesh (the default) or pmap (the older interface).

A train step computes sums over its device's part of the batch and calls `reduce`, `lax.psum`, on them. That is what pmap does;
under jit `shard_map` does it. (Left to itself, the compiler gathers the activations of batch-last convolutions from all
devices, because their products run over columns and batch together.)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from common.errors import UserError


class Placement(NamedTuple):
    """How a training function of (state, batches, *numbers) runs.

    run: the compiled function of the same arguments; it takes the state's memory over.
    place_state: puts a state on the devices, a copy on each. take_state: the reverse, to one copy, sharded like `replicated`.
    place_training: puts batches for `run` on the devices, split along their batch axis.
    place_batch: puts one batch {name: (B, ...)} for evaluation, under jit in both modes. replicated: the sharding of one copy.
    """

    run: Callable
    place_state: Callable[[Any], Any]
    take_state: Callable[[Any], Any]
    place_training: Callable[[Any], Any]
    place_batch: Callable[[Any], Any]
    replicated: NamedSharding
    num_devices: int


def place(train: Callable, *, mode: str, batch_size: int, batch_axis: int = 0) -> Placement:
    """Compiles `train(state, batches, *numbers, reduce)` for all devices; batch 1 for one.

    Args:
      train: returns (state, sums); `numbers` are the same on all devices.
      mode: 'jit' or 'pmap'.
      batch_size: global; along `batch_axis` of each array of `batches`.

    Raises UserError if `batch_size` is not divisible by the number of devices.
    """
    devices = jax.devices() if batch_size > 1 else jax.devices()[:1]
    count = len(devices)
    if batch_size % count:
        raise UserError(f"--batch_size={batch_size} is global and must be divisible by the number of devices, {count}")
    mesh = Mesh(devices, ("data",), axis_types=(AxisType.Auto,))
    replicated, split_first = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))

    def place_batch(batch):
        return jax.device_put(batch, split_first)

    if mode == "pmap":

        def split(array):  # (..., B, ...) -> (devices, ..., B / devices, ...)
            shape = (*array.shape[:batch_axis], count, batch_size // count, *array.shape[batch_axis + 1 :])
            return np.moveaxis(array.reshape(shape), batch_axis, 0)

        mapped = jax.pmap(
            lambda state, batches, numbers: train(state, batches, *numbers, reduce=lambda sums: lax.psum(sums, "data")),
            axis_name="data",
            in_axes=(0, 0, None),
            out_axes=(0, None),
            devices=devices,
            donate_argnums=0,
        )
        stack = jax.jit(lambda state: jax.tree.map(lambda a: a[None].repeat(count, 0), state), out_shardings=split_first)
        take = jax.jit(lambda state: jax.tree.map(lambda a: a[0], state), out_shardings=replicated)
        return Placement(
            lambda state, batches, *numbers: mapped(state, batches, numbers),
            stack,
            take,
            lambda batches: jax.tree.map(split, batches),
            place_batch,
            replicated,
            count,
        )

    split_batches = P(*[None] * batch_axis, "data")

    def reduce(sums):
        return lax.psum(sums, "data") if count > 1 else sums  # even of one device XLA copies what it adds up

    def run(state, batches, *numbers):
        return jax.shard_map(
            lambda state, batches, *numbers: train(state, batches, *numbers, reduce=reduce),
            mesh=mesh,
            in_specs=(P(), split_batches, *[P()] * len(numbers)),
            out_specs=P(),
            check_vma=False,  # or the gradient of replicated parameters would be a sum already
        )(state, batches, *numbers)

    training_sharding = NamedSharding(mesh, split_batches)
    return Placement(
        jax.jit(run, donate_argnums=0),
        lambda state: jax.device_put(state, replicated),
        lambda state: state,
        lambda batches: jax.device_put(batches, training_sharding),
        place_batch,
        replicated,
        count,
    )
