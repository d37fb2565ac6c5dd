"""One train step, placed on one device or many: jit over a mesh (the default) or pmap (the older interface).

A train step computes sums over its part of the batch and calls `reduce` on them: under jit the part is the whole batch and
`reduce` is the identity, because the compiler inserts the collectives that the shardings ask for; under pmap it is `lax.psum`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from common.errors import UserError


class Placement(NamedTuple):
    """How a training function of (state, chunk, num_steps) runs.

    run: the compiled function of the same arguments; it takes the state's memory over.
    place_state: puts a state on the devices, a copy on each. take_state: the reverse, to one copy, sharded like `replicated`.
    place_chunk: puts the batches {name: (S, B, ...)} of S steps on the devices, split along B.
    place_batch: the same for one batch {name: (B, ...)}, under jit in both modes. replicated: the sharding of one whole copy.
    """

    run: Callable
    place_state: Callable[[Any], Any]
    take_state: Callable[[Any], Any]
    place_chunk: Callable[[Any], Any]
    place_batch: Callable[[Any], Any]
    replicated: NamedSharding
    num_devices: int


def place(train_steps: Callable, *, mode: str, batch_size: int) -> Placement:
    """Compiles `train_steps(state, chunk, num_steps, reduce)` for all devices; batch 1 for one.

    Raises UserError if `batch_size`, which is global, is not divisible by the number of devices.
    """
    devices = jax.devices() if batch_size > 1 else jax.devices()[:1]
    count = len(devices)
    if batch_size % count:
        raise UserError(f"--batch_size={batch_size} is global and must be divisible by the number of devices, {count}")
    mesh = Mesh(devices, ("data",), axis_types=(AxisType.Auto,))
    replicated = NamedSharding(mesh, P())

    def place_batch(batch):
        return jax.device_put(batch, NamedSharding(mesh, P("data")))

    if mode == "pmap":

        def split(array):  # (S, B, ...) -> (devices, S, B / devices, ...)
            steps, batch = array.shape[:2]
            return array.reshape(steps, count, batch // count, *array.shape[2:]).swapaxes(0, 1)

        def reduce(sums):
            return lax.psum(sums, "data")

        mapped = jax.pmap(
            lambda state, chunk, num_steps: train_steps(state, chunk, num_steps, reduce),
            axis_name="data",
            in_axes=(0, 0, None),
            out_axes=(0, None),
            devices=devices,
            donate_argnums=0,
        )
        per_device = NamedSharding(mesh, P("data"))
        stack = jax.jit(lambda state: jax.tree.map(lambda a: a[None].repeat(count, 0), state), out_shardings=per_device)
        take = jax.jit(lambda state: jax.tree.map(lambda a: a[0], state), out_shardings=replicated)
        return Placement(mapped, stack, take, lambda chunk: jax.tree.map(split, chunk), place_batch, replicated, count)

    run = jax.jit(lambda state, chunk, num_steps: train_steps(state, chunk, num_steps, lambda sums: sums), donate_argnums=0)
    chunk_sharding = NamedSharding(mesh, P(None, "data"))
    return Placement(
        run,
        lambda state: jax.device_put(state, replicated),
        lambda state: state,
        lambda chunk: jax.device_put(chunk, chunk_sharding),
        place_batch,
        replicated,
        count,
    )
