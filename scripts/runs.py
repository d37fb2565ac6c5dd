"""Finds out which network the run in a folder is of."""

import json
from pathlib import Path

import alexnet
import lenet
from common.network import Trained
from common.workdir import require_run


def is_alexnet(workdir: Path) -> bool:
    """Whether the run is one of alexnet.train; what is no run is left to the networks' messages."""
    try:
        return "net" in json.loads((workdir / "config.json").read_text())
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def network_name(workdir: Path) -> str:
    """lenet or alexnet."""
    return "alexnet" if is_alexnet(workdir) else "lenet"


def load_run(workdir: Path, step: int | str | None = None) -> Trained:
    """The network of a run of either kind, with its weights; see `lenet.load`."""
    require_run(workdir)
    return (alexnet if is_alexnet(workdir) else lenet).load(workdir, step)
