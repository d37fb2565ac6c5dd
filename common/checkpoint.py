"""Checkpoints that come back bit for bit or not at all.

Orbax writes them atomically and in the background, but does not detect flipped bits in array
data. So each checkpoint carries a SHA-256 per leaf, taken of the array in memory, and a restore
verifies all of them. A damaged step is set aside as `N.corrupt`, and the next older one is used.

Each is read back before it gets its final name, and only then is an older one removed.
"""

import contextlib
import dataclasses
import errno
import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.future import CommitFutureAwaitingContractedSignals

from common.checkpoint_files import put, read_arrays, read_description
from common.digests import (
    describe,
    host_leaves,
    json_sha256,
    plain_path,
    require_same_shapes,
    shapes,
)
from common.errors import NonFiniteError, StorageError, UserError, one_line
from common.flags import require_settings
from common.processes import all_gather_text, all_true, broadcast, is_first_process
from common.storage import literal_path, storage_error, unreadable
from common.workdir import SMALLER_RATE, best_of, last_finite, last_good, saved_steps

_UNFINISHED = ".orbax-checkpoint-tmp"  # ends the name of a folder that Orbax is still writing


class Checkpointer:
    """The checkpoints of one run, in `workdir/checkpoints`: the newest `keep` are kept, and the one
    of the least validation error.

    Close it when done (`contextlib.closing`): only then is the last save on disk. With `read_only`,
    nothing is ever written, renamed or removed, so another user's run can be inspected.
    """

    def __init__(self, workdir: Path, keep: int = 3, read_only: bool = False):
        self._workdir = Path(workdir).absolute()
        self._directory = self._workdir / "checkpoints"
        self._read_only = read_only
        self._manager = None
        self._closing = contextlib.ExitStack()
        self._orbax_directory = self._directory  # as Orbax must call it
        self._written = self._directory  # the temporary folder of the save under way
        self._saving, self._failed = None, False  # its step; whether the save before it failed
        self._kept = _NewestAndBest(keep)
        if self._directory.is_dir() or not read_only:
            literal = literal_path(self._workdir, not read_only, self._closing)
            self._orbax_directory = literal / "checkpoints"
        if not read_only:
            self._remove_unfinished()
            options = ocp.CheckpointManagerOptions(
                preservation_policy=self._kept,
                create=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._read_back),
            )
            self._manager = ocp.CheckpointManager(self._orbax_directory, options=options)

    def save(
        self, step: int, state, meta: dict, validation_errors: dict[int, float] | None = None
    ) -> None:
        """Starts to save `state` (a pytree of arrays) and `meta` (JSON values) as the checkpoint of
        `step`; returns early. Of the steps of `validation_errors` that are saved, the best is kept.

        The caller waits for the copy to the host and a look for NaN; digests and files are made
        beside what it does next. A step that is saved already is left alone: the same step of the
        same run is the same state. A save that fails is known, and printed, when the next one is
        asked for; two in a row end the run.

        Raises:
          NonFiniteError: a leaf holds NaN or infinity; nothing is written.
          StorageError: this save, or the two before it, could not be written.
        """
        self._wait_for_last(step)
        if step in self._manager.all_steps():
            return
        best = best_of(validation_errors or {}, saved_steps(self._workdir))
        (self._kept.best,) = broadcast(-1 if best is None else best)
        leaves = host_leaves(state)
        for path, array in leaves.items():
            if jnp.issubdtype(array.dtype, jnp.inexact) and not is_finite(array):
                raise NonFiniteError(
                    f"{path} is not finite at step {step}{last_finite(self._workdir)}; not saved. "
                    f"{last_good(self._workdir)} {SMALLER_RATE}"
                )

        def description() -> dict:
            self._written = self._orbax_directory / f"{step}{_UNFINISHED}"
            content = {
                "step": step,
                "meta": meta,
                "best": best,
                "leaves": {path: describe(path, array) for path, array in leaves.items()},
            }
            return content | {"sha256": json_sha256(content)}

        items = dict(state=ocp.args.StandardSave(state), meta=_Description(description))
        try:
            started = self._manager.save(step, args=ocp.args.Composite(**items))
        except Exception as error:
            raise (self._unwritten(error) or error) from error
        self._saving = step
        if not started:  # Orbax does so, in silence, for a step older than its newest
            raise RuntimeError(
                f"Orbax refused to save step {step}; it has {self._manager.all_steps()}."
            )

    def restore_newest(self, target):
        """The newest intact checkpoint, or None where there is none.

        Args:
          target: the state's pytree with a jax.ShapeDtypeStruct for each leaf, its `sharding` set:
            where the leaf shall live.

        Returns:
          (step, state, meta), or None if no checkpoint was ever finished.

        Raises:
          UserError: a checkpoint of other leaves, shapes or dtypes; nothing is set aside.
          StorageError: there are checkpoints, but none is intact, or the system cannot read one;
            or, unless `read_only`, the disk has no room for the saves that follow.
        """
        if not self._read_only:
            self._require_space(target)
        advice = "Use its flags, or another --workdir."
        return self._newest_intact(lambda step: self._restore(step, lambda _: target, advice, True))

    def restore_part(self, target_of: Callable[[dict], dict], step: int | None = None):
        """Some entries of the newest intact checkpoint, or of that of `step`; the rest is not read.

        Args:
          target_of: the `meta` of a checkpoint -> {"params": ...}: some fields of the state, with
            a jax.ShapeDtypeStruct for each leaf, which are read to one device.

        Returns, raises: as `restore_newest`, {"params": ...} in place of the state.
        """
        advice = "Its config was changed."
        if step is None:
            return self._newest_intact(lambda step: self._restore(step, target_of, advice, False))
        try:
            return step, *self._restore(step, target_of, advice, False)
        except (UserError, MemoryError, jax.errors.JaxRuntimeError):  # not about the files
            raise
        except Exception as error:
            reason = unreadable(error) or f"it is damaged ({one_line(error)})"
            raise self._cannot_read(step, reason) from error

    def _newest_intact(self, restore: Callable[[int], tuple]):
        """(step, *restore(step)) of the newest step where that succeeds in all processes."""
        # On a shared disk processes may see different steps for a moment: those of the first count.
        steps, why = json.loads(all_gather_text(json.dumps(saved_steps(self._workdir)))[0]), ""
        for step in reversed(steps):
            failure = None
            try:
                restored = restore(step)
            except Exception as error:
                failure = error
            if all_true(failure is None):
                return step, *restored
            of_the_files = not isinstance(
                failure, UserError | MemoryError | jax.errors.JaxRuntimeError
            )
            if not all_true(of_the_files):
                raise self._cannot_read(step, "see the other process") if of_the_files else failure
            reason = unreadable(failure)
            if not all_true(reason is None):
                raise self._cannot_read(step, reason or "see the other process") from failure
            why = one_line(failure) if failure else "another process cannot read it"
            if not self._read_only:
                self._set_aside(step, why)
            elif step != steps[0]:
                _warn(f"checkpoint {step} is damaged ({why}); trying the one before.")
        if self._read_only and saved_steps(self._workdir) != steps:
            return self._newest_intact(restore)  # its run replaced them meanwhile
        # What an earlier start set aside: training must not begin anew unasked.
        if steps or any(self._directory.glob("*.corrupt*")):
            raise StorageError(
                f"no checkpoint in {self._directory} is intact{f' ({why})' * bool(why)}. To train "
                "from the start, use another --workdir; to retry a damaged one, rename N.corrupt "
                "back to N."
            )
        return None

    def verify(self, step: int) -> str | None:
        """Reads every byte of the checkpoint of `step`; returns None if its arrays are intact, else
        the damage on one line.

        Needs no target: the arrays are read into the host's memory as Orbax describes them. Bytes
        that belong to no array, such as Orbax's own notes, have no digest: all that is checked is
        that they can be read.

        Raises:
          StorageError: the system cannot read it, which is no damage.
        """
        try:
            leaves = self.description(step)["leaves"]
            _read_every_byte(self._directory / str(step))
            read_arrays(self._orbax_directory / str(step), leaves, leaves)
        except MemoryError:  # says nothing about the files
            raise
        except Exception as error:
            if reason := unreadable(error):
                raise self._cannot_read(step, reason) from error
            return one_line(error)
        return None

    def close(self) -> None:
        """Waits until the last save is on disk. Raises StorageError if it could not be written;
        older steps are then intact.
        """
        with self._closing:
            if self._manager is None:
                return
            try:
                self._manager.wait_until_finished()
                self._manager.close()
            except Exception as error:
                raise (self._unwritten(error) or error) from error

    def description(self, step: int) -> dict:
        """{"step": step, "meta": as saved, "leaves": {path: [dtype, shape, SHA-256]}} of one step;
        the arrays are not read.

        Raises an exception, of whatever type, if it cannot be read or does not match its own
        digest.
        """
        content = read_description(self._directory / str(step))
        if content["step"] != step:
            raise ValueError("its description is of another step")
        return content

    def _restore(self, step: int, target_of: Callable[[dict], Any], advice: str, whole: bool):
        """(what `target_of(meta)` describes, meta) of one step. Raises UserError where it does not
        fit, or, with `whole`, holds more; anything else where it is damaged.
        """
        content = self.description(step)
        leaves, target = content["leaves"], target_of(content["meta"])
        wanted = {plain_path(path): shape for path, shape in shapes(target).items()}
        paths = {plain_path(path): path for path in leaves}
        there = {
            name: f"{leaves[path][0]} {tuple(leaves[path][1])}"
            for name, path in paths.items()
            if whole or name in wanted
        }
        require_same_shapes(there, wanted, self._directory / str(step), advice)
        chosen = [paths[name] for name in wanted]
        arrays = read_arrays(self._orbax_directory / str(step), leaves, chosen)

        def find(path, leaf):
            return put(arrays[paths[plain_path(jax.tree_util.keystr(path))]], leaf)

        return jax.tree_util.tree_map_with_path(find, target), content["meta"]

    def _read_back(self) -> None:
        """Raises OSError unless the save under way, all of it written, is intact; then it is not
        finished, and what was saved before stays.
        """
        try:
            leaves = read_description(self._written)["leaves"]
            read_arrays(self._written, leaves, leaves)
        except Exception as error:
            raise OSError(errno.EIO, f"it cannot be read back: {one_line(error)}") from error

    def _remove_unfinished(self) -> None:
        """Removes what a kill in the middle of a save leaves, or a save that failed.

        Orbax's own option does it in a thread that outlives `close`, so the manager opened next
        could fail in removing the same folder.
        """
        if is_first_process():
            for unfinished in self._directory.glob(f"*{_UNFINISHED}"):
                shutil.rmtree(unfinished, ignore_errors=True)  # the next save says why

    def _require_space(self, target) -> None:
        """Raises StorageError if twice the state's bytes are not free: each checkpoint is written
        before an old one goes.
        """
        size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(target))
        free = shutil.disk_usage(self._directory).free
        if not all_true(free >= 2 * size):
            raise StorageError(
                f"{self._directory} has {free / 1e6:,.1f} MB free; a checkpoint of this run takes "
                f"{size / 1e6:,.1f} MB, and twice that is needed. Free some space and rerun the "
                "same command, or use another --workdir."
            )

    def _cannot_read(self, step: int, reason: str) -> StorageError:
        return StorageError(
            f"checkpoint {step} in {self._directory} cannot be read: {reason}. It is left as it "
            "is. Fix that, then rerun the same command."
        )

    def _set_aside(self, step: int, reason: str) -> None:
        aside = self._directory / f"{step}.corrupt"
        while aside.exists():
            aside = aside.with_name(aside.name + "_")
        if is_first_process():
            (self._directory / str(step)).rename(aside)
            _warn(f"checkpoint {step} is damaged ({reason}); set aside as {aside.name}.")
        broadcast(step)  # the others wait for it here
        self._manager.reload()  # or Orbax would silently refuse to save this step again

    def _wait_for_last(self, step: int) -> None:
        """Waits until the last save is on disk. If it failed, prints that and removes what there is
        of it; raises StorageError if the one before it had failed too, if it was of `step`, as the
        writes that Orbax abandoned may go on in that folder, or if there are several processes: the
        others wait in Orbax for the save.
        """
        try:
            self._manager.wait_until_finished()
            self._failed = False
            return
        except Exception as error:
            failure = self._unwritten(error)
            if failure is None or self._failed or step == self._saving or jax.process_count() > 1:
                raise (failure or error) from error
        self._failed = True
        _warn(f"at step {self._saving}, {failure} Training goes on until the next save.")
        self._remove_unfinished()
        self._manager.reload()  # what the failed save was to remove is still there

    def _unwritten(self, error: Exception) -> StorageError | None:
        """What to say where the storage caused `error`; None if it is a bug."""
        found = storage_error(error)
        return found and StorageError(
            f"a checkpoint could not be written to {self._directory}: {found.strerror or found}. "
            f"{last_good(self._workdir)} Fix that, then rerun the same command: it resumes."
        )


@dataclasses.dataclass
class _NewestAndBest(ocp.checkpoint_managers.PreservationPolicy):
    """Which checkpoints Orbax keeps: the newest `keep`, and that of step `best`."""

    keep: int
    best: int = -1

    def should_preserve(self, checkpoints, *, context):
        newest = {info.step for info in checkpoints[-self.keep :]}
        return [info.step in newest | {self.best} for info in checkpoints]


class _DescriptionHandler(ocp.JsonCheckpointHandler):
    """Writes JSON that is made at that time, in the thread that writes it."""

    async def async_save(self, directory, item=None, args=None):
        async def write():
            if is_first_process():
                (directory / "metadata").write_text(json.dumps(args.make()))

        return [
            CommitFutureAwaitingContractedSignals(write(), name="description")
        ]  # waits until Orbax has made the folder


@ocp.args.register_with_handler(_DescriptionHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class _Description(ocp.args.CheckpointArgs):
    """What `_DescriptionHandler` saves: the JSON values that `make()` returns. To restore, it is
    not needed.
    """

    make: Callable[[], dict] | None = None


def restore_part(workdir: Path, config, target_of: Callable, step: int | str | None):
    """(step, {"params": ...}, meta) as `Checkpointer.restore_part` gives them, of a finished or
    running run; all its numbers are finite.

    `step` may be "newest" too, or "best": of the least validation error; a number may be text, as a
    flag has it. Raises UserError if there is no such checkpoint, it is not of `config`, or JAX is
    set to 64 bits.
    """
    if jax.config.jax_enable_x64:
        raise UserError("networks are float32, and jax_enable_x64 is on: unset JAX_ENABLE_X64")
    if step == "best":
        step = best_step(workdir)
        if step is None:
            raise UserError(
                f"{workdir} names no best checkpoint: none was scored on the validation split yet "
                "(--track=validation does so after each epoch), or it is of an older version"
            )
    if isinstance(step, str) and step.isascii() and step.isdecimal():
        step = int(step)
    steps = saved_steps(workdir)
    if step not in (None, "newest") and not (isinstance(step, int) and step in steps):
        raise UserError(f"{workdir} has no checkpoint of step {step!r}; it has {steps or 'none'}")
    step = None if step == "newest" else step
    with contextlib.closing(Checkpointer(workdir, read_only=True)) as checkpointer:
        restored = checkpointer.restore_part(target_of, step)
    if restored is None:
        raise UserError(f"{workdir} has no checkpoint yet")
    require_settings(config, restored[2], workdir / "checkpoints")
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(restored[1]))):
        raise NonFiniteError(f"{workdir}: the weights of step {restored[0]} are not all finite")
    return restored


def best_step(workdir: Path) -> int | None:
    """The step with the least validation error of those scored and saved: as result.json says, or,
    in a run that is not finished, as its newest checkpoint does.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):
        return json.loads((workdir / "result.json").read_text()).get("best_step")
    for step in reversed(saved_steps(workdir)):
        with contextlib.suppress(Exception):  # whatever a damaged one raises
            return read_description(workdir / "checkpoints" / str(step)).get("best")
    return None


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def is_finite(array: np.ndarray) -> bool:
    """Whether an array has neither NaN nor infinity."""
    with np.errstate(all="ignore"):
        return bool(
            np.isfinite(array.sum()) or np.isfinite(array).all()
        )  # a sum is four times as fast, but can overflow


def _read_every_byte(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(2**24):
                    pass
