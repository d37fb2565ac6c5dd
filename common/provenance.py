"""Where a result comes from: command, commit, versions and machine, without host names and
absolute paths.
"""

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax

from common import __version__
from common.errors import UserError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def collect(*, seed: int, dataset: str) -> dict:
    """{"command", "version", "commit", "seed", "dataset", "versions", "machine"} of this process.

    Raises UserError if JAX finds no device.
    """
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "command": command(),
        "version": __version__,
        "commit": commit(),
        "seed": seed,
        "dataset": dataset,
        "versions": versions,
        "machine": machine(),
    }


def summary(source: dict) -> str:
    """What `collect` returned, on one line."""
    versions = " ".join(f"{name} {source['versions'][name]}" for name in ("python", "jax", "flax"))
    machine = source["machine"]
    return (
        f"{versions}; {machine['devices']} x {machine['accelerator']}, {machine['cores']} cores; "
        f"commit {source['commit']}"
    )


def program() -> str:
    """How this program was started: `python -m lenet.train`."""
    spec = sys.modules["__main__"].__spec__
    if spec:
        return f"python -m {spec.name.removesuffix('.__main__')}"
    return f"python {_relative(sys.argv[0])}"


def command() -> str:
    """The command line as typed, absolute paths made relative to the working or home folder."""
    words = [program()]
    for argument in sys.argv[1:]:
        name, equals, value = argument.rpartition("=")
        words.append(shlex.quote(name + equals + _relative(value)))
    return " ".join(words)


def commit() -> str | None:
    """The commit of this code, with -dirty if tracked files differ from it, apart from results/,
    where what runs writes; None outside a git checkout of it.
    """
    this = Path(__file__)
    tracked = ["git", "ls-files", "--error-unmatch", this.name]  # not installed in another checkout
    head = ["git", "rev-parse", "HEAD"]
    changed = ["git", "diff", "--name-only", "HEAD", "--", ":/", ":(top,exclude)results"]
    options = dict(cwd=this.parent, capture_output=True, text=True, check=True)
    try:
        subprocess.run(tracked, **options)
        found, differing = (subprocess.run(each, **options).stdout for each in (head, changed))
        return found.strip() + "-dirty" * bool(differing)
    except (OSError, subprocess.CalledProcessError):
        return None


def machine() -> dict:
    """{"processor", "cores", "accelerator", "devices"}. Raises UserError if JAX finds no device."""
    try:
        device = jax.devices()[0]
    except (RuntimeError, AssertionError) as error:  # JAX_PLATFORMS names what is not here
        reason = str(error).splitlines()[0] if str(error) else "see JAX_PLATFORMS"
        raise UserError(f"JAX finds no device: {reason}") from error
    return {
        "processor": _processor(),
        "cores": cores(),
        "accelerator": device.device_kind,
        "devices": jax.device_count(),
    }


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _relative(text: str) -> str:
    path = Path(text)
    if not path.is_absolute():
        return text
    home = os.path.expanduser("~")  # as it stands where a container's user has no home
    try:
        if path.is_relative_to(home) and not path.is_relative_to(Path.cwd()):
            return f"~/{path.relative_to(home)}"
        return os.path.relpath(path)
    except FileNotFoundError:  # the working directory was removed
        return text
