"""One train step, placed on one device or many, in one process or several: jit over a mesh (the
default) or pmap (the older interface).

A train step says what the sums over a part of its batch are, and `add_up` gives those over the
whole batch:

  `fast` reduction: each device computes its part, and `lax.psum` adds up: what pmap does, and under
  jit `shard_map`. (Left to itself, the compiler gathers the activations of batch-last convolutions
  from all devices, because their products run over columns and batch together.)

  `fixed` reduction: the batch is cut in FIXED_PARTS parts whatever the number of devices; each
  device computes its parts one after the other, all parts' sums are gathered, and added in one
  order. The result is the same to the last bit on 1, 2, 4 and 8 devices, for FIXED_PARTS times the
  traffic.

A mesh with a `model` axis splits the layers that are named for it along their outputs, and the
batch over both axes, in the manner of Krizhevsky's 'one weird trick' (arXiv 1404.5997): there the
compiler places what moves between devices (GSPMD).
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from common.errors import UserError

FIXED_PARTS = 8


class Placement(NamedTuple):
    """How a training function of (state, batches, *numbers) runs.

    run: the compiled function of the same arguments; it takes the state's memory over.
    place_state: puts a state on the devices, a copy on each (or its part of split layers).
      take_state: the reverse, to one copy, sharded like `replicated`. state_shardings: how the
      leaves of a state lie for `run`.
    place_training: puts batches for `run` on the devices, split along their batch axis; from each
    process its `rows`.
    over_devices: compiles an evaluation step (params, batch) -> sums for all devices, under jit in
    all modes.
    place_batch: puts one batch {name: (B, ...)} for evaluation on the devices; from each process
      its `rows`. For one CPU that is left to the evaluation step.
    rows: which rows of a global batch of B examples this process reads.
    replicated: the sharding of one copy.
    """

    run: Callable
    place_state: Callable[[Any], Any]
    take_state: Callable[[Any], Any]
    state_shardings: Callable[[Any], Any]
    place_training: Callable[[Any], Any]
    over_devices: Callable[[Callable], Callable]
    place_batch: Callable[[Any], Any]
    rows: Callable[[int], slice]
    replicated: NamedSharding
    num_devices: int


def mesh_shape(mesh: str) -> dict[str, int]:
    """'data:4,model:2' -> {"data": 4, "model": 2}; '' -> {}. Raises UserError for anything else."""
    found = re.fullmatch(r"data:([1-9]\d*)(?:,model:([1-9]\d*))?", mesh)
    if mesh and not found:
        raise UserError(f"--mesh={mesh} must name devices per axis: data:8 or data:4,model:2")
    return {"data": int(found[1]), "model": int(found[2] or 1)} if found else {}


def has_model_axis(mesh: str) -> bool:
    """Whether `mesh` splits layers."""
    return mesh_shape(mesh).get("model", 1) > 1


def device_mesh(shape: dict[str, int]) -> Mesh:
    """The mesh of `shape` {"data": ..., "model": ...} over the first devices. Raises UserError if
    there are too few.
    """
    if math.prod(shape.values()) > jax.device_count():
        raise UserError(
            f"--mesh has {math.prod(shape.values())} devices, and there are {jax.device_count()}"
        )
    devices = np.array(jax.devices()[: math.prod(shape.values())]).reshape(
        shape["data"], shape["model"]
    )
    return Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def gather_before_split_layers(mesh: str) -> Callable[[jax.Array], jax.Array]:
    """A function of (B, ...) to apply, in a train step, before each split layer: devices that share
    a part of the batch for whole layers get all of it, and of its values, for split ones. Without a
    `model` axis: the identity.
    """
    if not has_model_axis(mesh):
        return lambda x: x
    sharding = NamedSharding(device_mesh(mesh_shape(mesh)), P("data"))
    return lambda x: lax.with_sharding_constraint(x, sharding)


def require_possible(
    *, mode: str, batch_size: int, reduction: str = "fast", mesh: str = ""
) -> Mesh:
    """The mesh that `place` would use for these arguments. Raises UserError, in words, if they do
    not go together.
    """
    shape = mesh_shape(mesh) or {"data": jax.device_count() if batch_size > 1 else 1, "model": 1}
    count = math.prod(shape.values())
    several_processes = jax.process_count() > 1
    if several_processes and batch_size == 1:
        raise UserError("--batch_size=1 runs on one device: it needs no --multihost")
    if several_processes and mode == "pmap":
        raise UserError("--parallel=pmap is for one process; --multihost needs --parallel=jit")
    if several_processes and count != jax.device_count():
        raise UserError(
            f"--mesh has {count} devices, with --multihost it must have all {jax.device_count()}"
        )
    if batch_size % count:
        raise UserError(
            f"--batch_size={batch_size} is global and must be divisible by the number of devices, {count}"
        )
    if shape["model"] > 1 and mode == "pmap":
        raise UserError("--parallel=pmap has no model axis; --mesh needs --parallel=jit")
    if shape["model"] > 1 and reduction == "fixed":
        raise UserError(
            "--reduction=fixed needs whole layers on each device: no model axis in --mesh"
        )
    if (
        reduction == "fixed"
        and batch_size > 1
        and (batch_size % FIXED_PARTS or FIXED_PARTS % count)
    ):
        raise UserError(
            f"--reduction=fixed cuts a batch in {FIXED_PARTS} parts: --batch_size={batch_size} must be a multiple of that, and "
            f"the number of devices, {count}, a divisor"
        )
    return device_mesh(shape)


def place(
    train: Callable,
    *,
    mode: str,
    batch_size: int,
    batch_axis: int = 0,
    reduction: str = "fast",
    mesh: str = "",
    split_layers: Sequence[str] = (),
) -> Placement:
    """Compiles `train(state, batches, *numbers, add_up)` for all devices; batch 1 for one.

    Args:
      train: returns (state, sums); `numbers` are the same on all devices. `add_up(sums_of, batch)`
        gives it the sums of `sums_of(part of batch)` over the global batch.
      mode: 'jit' or 'pmap'.
      batch_size: global; along `batch_axis` of each array of `batches`.
      reduction: 'fast' or 'fixed'.
      mesh: devices per axis as in `mesh_shape`; '': all devices on `data`.
      split_layers: the layers of the state that a `model` axis splits.

    Raises UserError if the batch or a layer cannot be divided so, or the modes do not go together.
    """
    mesh = require_possible(mode=mode, batch_size=batch_size, reduction=reduction, mesh=mesh)
    shape, count, processes = mesh.shape, mesh.size, jax.process_count()
    everyone = ("data", "model")  # the batch is split over all devices
    replicated, split_first = NamedSharding(mesh, P()), NamedSharding(mesh, P(everyone))
    split_batches = P(*[None] * batch_axis, everyone)

    def put(sharding):
        if processes == 1:
            return lambda tree: jax.device_put(tree, sharding)
        return lambda tree: jax.tree.map(
            lambda array: jax.make_array_from_process_local_data(sharding, array), tree
        )

    def over_devices(eval_step):
        def sum_of_parts(params, batch):
            return lax.psum(eval_step(params, batch), everyone)

        if count == 1 or shape["model"] > 1:
            return jax.jit(eval_step, out_shardings=replicated)
        return jax.jit(
            jax.shard_map(
                sum_of_parts, mesh=mesh, in_specs=(P(), P(everyone)), out_specs=P(), check_vma=False
            )
        )

    def rows(batch_size):
        mine = batch_size // processes
        return slice(jax.process_index() * mine, (jax.process_index() + 1) * mine)

    # jit takes NumPy's arrays to a CPU as they are, faster than `put` if they are few; many reach a
    # GPU sooner by `put`.
    place_batch = (
        (lambda batch: batch) if count == 1 and jax.default_backend() == "cpu" else put(split_first)
    )
    evaluation = dict(
        over_devices=over_devices, place_batch=place_batch, rows=rows, replicated=replicated
    )
    parts = FIXED_PARTS if reduction == "fixed" and batch_size > 1 else 0

    if mode == "pmap":

        def split(array):  # (..., B, ...) -> (devices, ..., B / devices, ...)
            shape = (
                *array.shape[:batch_axis],
                count,
                batch_size // count,
                *array.shape[batch_axis + 1 :],
            )
            return np.moveaxis(array.reshape(shape), batch_axis, 0)

        mapped = jax.pmap(
            lambda state, batches, numbers: train(
                state, batches, *numbers, add_up=adder("data", count, parts)
            ),
            axis_name="data",
            in_axes=(0, 0, None),
            out_axes=(0, None),
            devices=list(mesh.devices.flatten()),
            donate_argnums=0,
        )
        stack = jax.jit(
            lambda state: jax.tree.map(lambda a: a[None].repeat(count, 0), state),
            out_shardings=split_first,
        )
        take = jax.jit(lambda state: jax.tree.map(lambda a: a[0], state), out_shardings=replicated)
        return Placement(
            run=lambda state, batches, *numbers: mapped(state, batches, numbers),
            place_state=stack,
            take_state=take,
            state_shardings=lambda state: jax.tree.map(lambda _: split_first, state),
            place_training=lambda batches: jax.tree.map(split, batches),
            num_devices=count,
            **evaluation,
        )

    training = dict(place_training=put(NamedSharding(mesh, split_batches)), num_devices=count)
    if shape["model"] > 1:

        def sharding(path, leaf):
            split = any(name in jax.tree_util.keystr(path) for name in split_layers)
            if split and leaf.shape[-1] % shape["model"]:
                raise UserError(
                    f"--mesh with model:{shape['model']} cannot split {jax.tree_util.keystr(path)} of {leaf.shape[-1]} outputs"
                )
            return NamedSharding(mesh, P(*[None] * (leaf.ndim - 1), "model") if split else P())

        def state_shardings(state):
            return jax.tree_util.tree_map_with_path(sharding, state)

        def with_shardings(state):
            return jax.tree.map(lax.with_sharding_constraint, state, state_shardings(state))

        def run_split(state, batches, *numbers):
            state, sums = train(
                state, batches, *numbers, add_up=lambda sums_of, batch: sums_of(batch)
            )
            return with_shardings(state), sums

        return Placement(
            run=jax.jit(run_split, donate_argnums=0),
            place_state=jax.jit(with_shardings),
            take_state=jax.jit(lambda state: state, out_shardings=replicated),
            state_shardings=state_shardings,
            **training,
            **evaluation,
        )

    def run(state, batches, *numbers):
        return jax.shard_map(
            lambda state, batches, *numbers: train(
                state, batches, *numbers, add_up=adder(everyone, count, parts)
            ),
            mesh=mesh,
            in_specs=(P(), split_batches, *[P()] * len(numbers)),
            out_specs=P(),
            check_vma=False,  # or the gradient of replicated parameters would be a sum already
        )(state, batches, *numbers)

    return Placement(
        run=jax.jit(run, donate_argnums=0),
        place_state=lambda state: jax.device_put(state, replicated),
        take_state=lambda state: state,
        state_shardings=lambda state: jax.tree.map(lambda _: replicated, state),
        **training,
        **evaluation,
    )


def adder(axis, num_devices: int, parts: int) -> Callable:
    """`add_up(sums_of, batch)` for the devices of a mapped `axis`: over `parts` parts of the global
    batch in fixed order, or as the devices like it (0).
    """

    def fast(sums_of, batch):
        sums = sums_of(batch)
        return (
            lax.psum(sums, axis) if num_devices > 1 else sums
        )  # even of one device XLA copies what it adds up

    def fixed(sums_of, batch):
        mine = jax.tree.map(
            lambda array: array.reshape(parts // num_devices, -1, *array.shape[1:]), batch
        )
        sums = lax.map(
            sums_of, mine
        )  # one after the other, by one program: vmap would make another for each number
        sums = lax.all_gather(sums, axis, tiled=True)  # (parts, ...)
        # A loop, because nothing fuses with it: of one device, where there is nothing to gather,
        # the sum and the optimizer's update would become one kernel, which rounds once (fused
        # multiply-add) where that of more devices rounds twice.
        zeros = jax.tree.map(lambda each: jnp.zeros_like(each[0]), sums)
        return lax.scan(
            lambda total, part: (jax.tree.map(jnp.add, total, part), None), zeros, sums
        )[0]

    return fixed if parts else fast
