"""One train step on one device or many, in one process or several: jit over a mesh, or pmap.

A train step says what the sums over a part of its batch are; `add_up` turns those into the sums
over the global batch. That is the only place where a step and the devices meet.

  `fast` reduction: each device sums its part of the batch, and `lax.psum` adds the parts, in
  whatever order the backend chooses. (Under jit this is `shard_map`, not automatic sharding: the
  compiler would gather the activations of batch-last convolutions, whose products run over columns
  and batch together.)

  `fixed` reduction: the batch is cut in FIXED_PARTS parts whatever the number of devices, each
  device computes its parts one after the other, and the sums of all parts are gathered and added in
  one order. The result is bit-identical on 1, 2, 4 and 8 devices, for FIXED_PARTS times the
  traffic.

A mesh with a `model` axis splits the named layers along their outputs, and the batch over both
axes, after Krizhevsky's "one weird trick" (arXiv 1404.5997); the compiler places the transfers
(GSPMD).
"""

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from common.errors import UserError

FIXED_PARTS = 8
ALL_DEVICES = ("data", "model")  # the axes that a batch is split over


class Placement(NamedTuple):
    """How a training function of (state, batches, *numbers) runs on the devices.

    Attributes:
      run: the compiled function of the same arguments; it donates the state.
      place_state: puts a state on the devices as `run` takes it.
      state_shardings: the shardings of its leaves then.
      replicate: a state as one copy on each device, for checkpoints and evaluation.
      place_training: puts batches for `run` on the devices, split along their batch axis; each
        process gives its `rows`.
      over_devices: compiles an evaluation step (params, batch) -> sums for all devices.
      place_batch: puts one batch {name: (B, ...)} for evaluation on the devices; each process gives
        its `rows`.
      rows: the rows of a global batch of B examples that this process reads.
      replicated: the sharding of one copy on each device.
      num_devices: how many devices the batch is split over.
    """

    run: Callable
    place_state: Callable[[Any], Any]
    state_shardings: Callable[[Any], Any]
    replicate: Callable[[Any], Any]
    place_training: Callable[[Any], Any]
    over_devices: Callable[[Callable], Callable]
    place_batch: Callable[[Any], Any]
    rows: Callable[[int], slice]
    replicated: NamedSharding
    num_devices: int

    def abstract(self, new_state: Callable) -> Any:
        """What `new_state()` returns, as shapes with the replicated sharding."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.replicated),
            jax.eval_shape(new_state),
        )


def mesh_shape(mesh: str) -> dict[str, int]:
    """'data:4,model:2' -> {"data": 4, "model": 2}; '' -> {}. Raises UserError for other texts."""
    found = re.fullmatch(r"data:([1-9]\d*)(?:,model:([1-9]\d*))?", mesh)
    if mesh and not found:
        raise UserError(f"--mesh={mesh} must name devices per axis: data:8 or data:4,model:2")
    return {"data": int(found[1]), "model": int(found[2] or 1)} if found else {}


def has_model_axis(mesh: str) -> bool:
    """Whether `mesh` splits layers."""
    return mesh_shape(mesh).get("model", 1) > 1


def device_mesh(shape: dict[str, int]) -> Mesh:
    """The mesh of `shape` {"data": ..., "model": ...} over the first devices. Raises UserError."""
    count = math.prod(shape.values())
    if count > jax.device_count():
        raise UserError(f"--mesh has {count} devices, and there are {jax.device_count()}")
    devices = np.array(jax.devices()[:count]).reshape(shape["data"], shape["model"])
    return Mesh(devices, ALL_DEVICES, axis_types=(AxisType.Auto,) * 2)


def gather_before_split_layers(mesh: str) -> Callable[[jax.Array], jax.Array]:
    """A function of (B, ...) to apply in a train step before the split layers.

    Devices that share a part of the batch for whole layers get all of its values for split layers.
    Without a `model` axis: the identity.
    """
    if not has_model_axis(mesh):
        return lambda x: x
    sharding = NamedSharding(device_mesh(mesh_shape(mesh)), P("data"))
    return lambda x: lax.with_sharding_constraint(x, sharding)


def require_possible(
    *, mode: str, batch_size: int, reduction: str = "fast", mesh: str = ""
) -> Mesh:
    """The mesh that `place` uses for these arguments; UserError where they do not go together."""
    one_device = {"data": jax.device_count() if batch_size > 1 else 1, "model": 1}
    shape = mesh_shape(mesh) or one_device
    count = math.prod(shape.values())
    if jax.process_count() > 1:
        if batch_size == 1:
            raise UserError("--batch_size=1 runs on one device: remove --multihost")
        if mode == "pmap":
            raise UserError("--parallel=pmap runs in one process; --multihost needs --parallel=jit")
        if count != jax.device_count():
            raise UserError(
                f"--mesh has {count} devices; with --multihost it needs all {jax.device_count()}"
            )
    if batch_size % count:
        raise UserError(
            f"--batch_size={batch_size} is global: it must be a multiple of the {count} devices"
        )
    if shape["model"] > 1 and mode == "pmap":
        raise UserError("--parallel=pmap has no model axis; --mesh needs --parallel=jit")
    if shape["model"] > 1 and reduction == "fixed":
        raise UserError("--reduction=fixed needs whole layers: no model axis in --mesh")
    parts = FIXED_PARTS
    if reduction == "fixed" and batch_size > 1 and (batch_size % parts or parts % count):
        raise UserError(
            f"--reduction=fixed cuts a batch in {parts} parts: --batch_size={batch_size} must be a "
            f"multiple of {parts}, and the number of devices, {count}, must divide it"
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
    """Compiles `train(state, batches, *numbers, add_up=...)` for all devices (batch 1: for one).

    Args:
      train: returns (state, sums). `numbers` are the same on all devices; `add_up(sums_of, batch)`
        gives `train` the sums of `sums_of(part of batch)` over the global batch.
      mode: 'jit' or 'pmap'.
      batch_size: global, the length of `batch_axis` of each array of `batches`.
      reduction: 'fast' or 'fixed'.
      mesh: devices per axis as in `mesh_shape`; '': all devices on `data`.
      split_layers: the layers of the state that a `model` axis splits.

    Raises UserError if the batch cannot be divided so, or the modes do not go together.
    """
    mesh = require_possible(mode=mode, batch_size=batch_size, reduction=reduction, mesh=mesh)
    parts = FIXED_PARTS if reduction == "fixed" and batch_size > 1 else 0
    if mode == "pmap":
        return _with_pmap(train, mesh, batch_size, batch_axis, parts)
    if mesh.shape["model"] > 1:
        return _with_split_layers(train, mesh, batch_axis, split_layers)
    return _with_shard_map(train, mesh, batch_axis, parts)


def _with_shard_map(train: Callable, mesh: Mesh, batch_axis: int, parts: int) -> Placement:
    """jit: the state on every device, the batch split over them."""
    split = P(*[None] * batch_axis, ALL_DEVICES)

    def run(state, batches, *numbers):
        return jax.shard_map(
            partial(train, add_up=adder(ALL_DEVICES, mesh.size, parts)),
            mesh=mesh,
            in_specs=(P(), split, *[P()] * len(numbers)),
            out_specs=P(),
            check_vma=False,  # or the gradient of replicated parameters would be a sum already
        )(state, batches, *numbers)

    return Placement(
        run=jax.jit(run, donate_argnums=0),
        place_training=_put(NamedSharding(mesh, split)),
        **_replicated_state(mesh),
        **_evaluation(mesh),
    )


def _with_pmap(
    train: Callable, mesh: Mesh, batch_size: int, batch_axis: int, parts: int
) -> Placement:
    """pmap: the state is broadcast, the batch has a leading axis of devices."""
    count = mesh.size

    def split(array):  # (..., B, ...) -> (devices, ..., B / devices, ...)
        before, after = array.shape[:batch_axis], array.shape[batch_axis + 1 :]
        parts = array.reshape(*before, count, batch_size // count, *after)
        return np.moveaxis(parts, batch_axis, 0)

    mapped = jax.pmap(
        lambda state, batches, numbers: train(
            state, batches, *numbers, add_up=adder("data", count, parts)
        ),
        axis_name="data",
        in_axes=(None, 0, None),
        out_axes=(None, None),
        devices=list(mesh.devices.flatten()),
        donate_argnums=0,
    )
    return Placement(
        run=lambda state, batches, *numbers: mapped(state, batches, numbers),
        place_training=lambda batches: jax.tree.map(split, batches),
        **_replicated_state(mesh),
        **_evaluation(mesh),
    )


def _with_split_layers(
    train: Callable, mesh: Mesh, batch_axis: int, split_layers: Sequence[str]
) -> Placement:
    """jit with a `model` axis: named layers are split along their outputs, by the compiler."""
    replicated, num_parts = NamedSharding(mesh, P()), mesh.shape["model"]

    def sharding(path, leaf):
        name = jax.tree_util.keystr(path)
        if not any(layer in name for layer in split_layers):
            return replicated
        if leaf.shape[-1] % num_parts:
            raise UserError(
                f"--mesh with model:{num_parts} cannot split {name} of {leaf.shape[-1]} outputs"
            )
        return NamedSharding(mesh, P(*[None] * (leaf.ndim - 1), "model"))

    def state_shardings(state):
        return jax.tree_util.tree_map_with_path(sharding, state)

    def with_shardings(state):
        return jax.tree.map(lax.with_sharding_constraint, state, state_shardings(state))

    def run(state, batches, *numbers):
        state, sums = train(state, batches, *numbers, add_up=lambda sums_of, batch: sums_of(batch))
        return with_shardings(state), sums

    return Placement(
        run=jax.jit(run, donate_argnums=0),
        place_state=jax.jit(with_shardings),
        state_shardings=state_shardings,
        replicate=jax.jit(lambda state: state, out_shardings=replicated),
        place_training=_put(NamedSharding(mesh, P(*[None] * batch_axis, ALL_DEVICES))),
        **_evaluation(mesh),
    )


def _replicated_state(mesh: Mesh) -> dict:
    """The fields of a Placement whose state lies on every device as a whole."""
    replicated = NamedSharding(mesh, P())
    return dict(
        place_state=lambda state: jax.device_put(state, replicated),
        state_shardings=lambda state: jax.tree.map(lambda _: replicated, state),
        replicate=lambda state: state,
    )


def _evaluation(mesh: Mesh) -> dict:
    """The fields of a Placement for evaluation, under jit in all modes."""
    replicated = NamedSharding(mesh, P())
    processes, process = jax.process_count(), jax.process_index()

    def over_devices(eval_step):
        if mesh.size == 1 or mesh.shape["model"] > 1:
            return jax.jit(eval_step, out_shardings=replicated)
        return jax.jit(
            jax.shard_map(
                lambda params, batch: lax.psum(eval_step(params, batch), ALL_DEVICES),
                mesh=mesh,
                in_specs=(P(), P(ALL_DEVICES)),
                out_specs=P(),
                check_vma=False,
            )
        )

    def rows(batch_size):
        mine = batch_size // processes
        return slice(process * mine, (process + 1) * mine)

    # On one CPU jit takes NumPy arrays as they are, faster than device_put if they are few; a GPU
    # gets large batches sooner by device_put.
    one_cpu = mesh.size == 1 and jax.default_backend() == "cpu"
    return dict(
        over_devices=over_devices,
        place_batch=(lambda batch: batch) if one_cpu else _put(NamedSharding(mesh, P(ALL_DEVICES))),
        rows=rows,
        replicated=replicated,
        num_devices=mesh.size,
    )


def _put(sharding: NamedSharding) -> Callable:
    """Puts a tree of arrays on the devices, each process its part."""
    if jax.process_count() == 1:
        return lambda tree: jax.device_put(tree, sharding)
    make = partial(jax.make_array_from_process_local_data, sharding)
    return lambda tree: jax.tree.map(make, tree)


def adder(axis, num_devices: int, parts: int) -> Callable:
    """`add_up(sums_of, batch)` for the devices of a mapped `axis`.

    With `parts` the global batch is cut in that many parts, which are added in a fixed order; with
    0 each device sums its own part, and the order of the all-reduce is unspecified.
    """

    def fast(sums_of, batch):
        sums = sums_of(batch)
        return lax.psum(sums, axis) if num_devices > 1 else sums  # XLA copies what psum of one adds

    def fixed(sums_of, batch):
        mine = jax.tree.map(
            lambda array: array.reshape(parts // num_devices, -1, *array.shape[1:]), batch
        )
        sums = lax.map(sums_of, mine)  # vmap would make another program for each number of parts
        sums = lax.all_gather(sums, axis, tiled=True)  # (parts, ...)
        # A loop, because nothing fuses with it: on one device, where nothing is gathered, the sum
        # and the optimizer's update would become one kernel, which rounds once (fused multiply-add)
        # where that of several devices rounds twice.
        zeros = jax.tree.map(lambda each: jnp.zeros_like(each[0]), sums)
        return lax.scan(lambda sum, part: (jax.tree.map(jnp.add, sum, part), None), zeros, sums)[0]

    return fixed if parts else fast
