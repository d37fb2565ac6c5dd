"""The files of results/: what they hold, and how a finished run becomes one."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from common.curves import mean_by_epoch
from common.errors import UserError
from common.workdir import read_metrics, write_atomic

NAME = re.compile(r"[a-z0-9][a-z0-9_.]*")


class Results(NamedTuple):
    """All of results/."""

    runs: list[dict]  # trainings, in the order of (network, study, arm, seed)
    measured: dict[str, dict]  # file name without .json -> benchmarks, faults, comparisons, studies


def load(folder: Path) -> Results:
    contents = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    runs = [result for result in contents.values() if "network" in result]
    runs.sort(key=lambda run: (run["network"], run["study"], run["arm"], run["seed"]))
    return Results(runs, {name: made for name, made in contents.items() if "network" not in made})


def add(workdirs: Iterable[Path], study: str, arm: str, folder: Path) -> list[Path]:
    """Writes each finished run into `folder`; returns the new files.

    A run that is already there, with the same content, is left alone.

    Raises:
      UserError: a run is not finished, is of an unknown or changed commit, or its file exists with
        different content. Nothing is written then.
    """
    texts: dict[Path, str] = {}
    for workdir in workdirs:
        result = read(workdir, study, arm)
        words = (result["network"], result["study"], result["arm"], f"seed{result['seed']}")
        path, text = folder / f"{'_'.join(words)}.json", _to_text(result)
        if texts.setdefault(path, text) != text or (path.exists() and path.read_text() != text):
            raise UserError(
                f"{workdir}: {path.name} exists and is of another run; use another --arm."
            )
    new = {path: text for path, text in texts.items() if not path.exists()}
    for path, text in new.items():
        write_atomic(path, text)
    return list(new)


def read(workdir: Path, study: str, arm: str) -> dict:
    """What results/ keeps of a finished run. Raises UserError where it cannot be kept."""
    path = workdir / "result.json"
    try:
        result = json.loads(path.read_text())
        command, commit, seed = result["command"], result["commit"], int(result["seed"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{workdir} holds no finished run: {path.name} is missing or damaged."
        ) from error
    if commit is None or commit.endswith("-dirty"):
        raise UserError(
            f"{workdir}: its commit is {commit or 'unknown'}; results come from a commit."
        )
    network = re.search(r"\b(lenet|alexnet)[./]train\b", command)
    if not network:
        raise UserError(f"{workdir}: {command!r} is not a training of lenet or alexnet.")
    preset = _preset(command)
    arm = arm or preset or ""
    for flag, name in (("study", study), ("arm", arm)):
        if not NAME.fullmatch(name):
            raise UserError(f"--{flag}={name} must be lower-case letters, digits, _ and dots.")
    place = {"network": network[1], "preset": preset, "study": study, "arm": arm}
    curves = {  # split -> error after each epoch; of training, its mean over the epoch
        split: {
            "epoch": [point[0] for point in points],
            "error_pct": [round(point[1], 4) for point in points],
        }
        for split, points in mean_by_epoch(read_metrics(workdir), "error_pct").items()
    }
    return place | result | {"seed": seed, "curves": curves}


def _preset(command: str) -> str | None:
    """The preset that a command line names last; None if it names none."""
    flagfile, preset = r"--?flagfile[= ]\S*?\bpresets/(\w+)\.flags", r"--?preset[= ](\w+)"
    names = [by_file or by_name for by_file, by_name in re.findall(f"{flagfile}|{preset}", command)]
    return names[-1] if names else None


def _to_text(result: dict) -> str:
    text = json.dumps(result, indent=2, allow_nan=False)
    # A list of numbers on one line.
    return re.sub(r"\[([^\[\]{}\"]+)\]", lambda row: f"[{' '.join(row[1].split())}]", text) + "\n"
