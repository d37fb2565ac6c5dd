"""The state of a training, to disk and back."""

import contextlib
import functools
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

import lenet.config
from common import checkpoint
from scripts.benchmark.machine import best_seconds, copy_bandwidth
from scripts.benchmark.measure import Case, seconds
from scripts.benchmark.timing import PEERS, Setting, torch_peers
from scripts.benchmark.training import AlexNetTraining, LeNetTraining, embedded_digits

CONTAINS = (
    "Ours hashes every array (SHA-256), saves in the background and verifies what it restores; "
    "torch.save does none of that. Limits: the same bytes copied in memory, written to a plain "
    "file, and read from it."
)


def checkpoints(setting: Setting) -> Iterator[Case]:
    """The state of a training, to disk and back."""
    yield case(setting, "LeNet-5 deck", LeNetTraining(lenet.config.Config(), embedded_digits(), 1))
    if setting.smallest:
        yield case(setting, "AlexNet small", AlexNetTraining("small", 10))
    else:
        yield case(setting, "AlexNet deck", AlexNetTraining("deck", 1000, "--batch_size=1"))


def case(setting: Setting, name: str, training) -> Case:
    """The three numbers of one network's state."""
    folder, plain = setting.work / "checkpoint", setting.work / "plain"
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(training.state)]
    content = np.concatenate([np.atleast_1d(array).reshape(-1).view(np.uint8) for array in arrays])
    # A new file each time: to empty an old one takes longer.
    files = [setting.work / f"plain{i}" for i in range(3)]
    write = min(seconds(functools.partial(content.tofile, file)) for file in files)
    read = best_seconds(functools.partial(np.fromfile, files[-1], np.uint8), 3)
    for file in files:
        file.unlink()
    peers = {}
    if PEERS:
        peers["torch.save"] = functools.partial(torch_peers().save_and_load, plain, arrays)
    kinds = ("stall of the loop", "until saved", "restore")
    return Case(
        tuple((f"{name}, {content.nbytes / 1e6:.1f} MB: {what}", "s") for what in kinds),
        functools.partial(save_and_restore, folder, training.state),
        peers,
        CONTAINS,
        (2 * content.nbytes / copy_bandwidth(on_host=True), write, read),
    )


def save_and_restore(folder: Path, state) -> tuple[float, float, float]:
    """Seconds until `save` returns, until everything is on disk, and of a restore."""
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
