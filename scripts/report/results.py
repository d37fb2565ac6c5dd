"""The files of results/: what they hold, and how a finished run becomes one."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import alexnet.config
import lenet.config
from common.curves import mean_by_epoch
from common.errors import StorageError, UserError
from common.flags import changes
from common.workdir import read_config, read_metrics, to_text, write_atomic

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
NAME = re.compile(r"[a-z0-9][a-z0-9_.]*")
NETWORKS = {
    "lenet": (lenet.config.Config, "a LeNet-5"),
    "alexnet": (alexnet.config.Config, "an AlexNet"),
}


class Results(NamedTuple):
    """All of results/."""

    runs: list[dict]  # trainings, in the order of (network, study, arm, seed)
    measured: dict[str, dict]  # file name without .json -> benchmarks, faults and comparisons
    studies: Sequence[dict] = ()  # what scripts.ablate found, in the order of their names
    studied: Sequence[dict] = ()  # the trainings of these studies


def load(folder: Path) -> Results:
    """Raises UserError, naming the file, where one is damaged."""
    contents = {path.stem: read_json(path) for path in folder.glob("*.json")}
    runs = [result for result in contents.values() if "study" in result]
    runs.sort(key=lambda run: (run["network"], run["study"], run["arm"], run["seed"]))
    measured = {name: made for name, made in contents.items() if "study" not in made}
    studies = [read_json(path) for path in sorted(folder.glob("*/study.json"))]
    studied = [read_json(path) for path in sorted(folder.glob("*/*_seed*.json"))]
    return Results(runs, measured, studies, studied)


def read_json(path: Path) -> dict:
    """The object that a JSON file holds; {} if there is no file. Raises UserError."""
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); restore or remove it.") from error


def kept_rows(path: Path, kind: str, key: str, new: Sequence[str], source: dict) -> list[dict]:
    """The rows of a file of measurements without those whose `key` is among `new`; [] if there is
    no file. Raises UserError if it is of another kind, or if rows would be kept that were made on
    another machine, with other versions or other work.
    """

    def facts(content: dict) -> dict:
        machine = {name: content["machine"][name] for name in ("processor", "cores", "accelerator")}
        return machine | content["versions"] | {"smallest": content.get("smallest")}

    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text())
        rows = [row for row in content["rows"] if row[key] not in new]
        there, intact = facts(content), content["kind"] == kind
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise UserError(f"--json={path} exists and has no {kind}: name another file")
    here = facts(source)
    changed = [
        f"{name} {there.get(name)} -> {here[name]}"
        for name in here
        if there.get(name) != here[name]
    ]
    if rows and changed:
        raise UserError(
            f"--json={path} has rows made elsewhere ({', '.join(changed)}): name another file"
        )
    return rows


def add(workdirs: Iterable[Path], study: str, arm: str, folder: Path) -> list[Path]:
    """Writes each finished run into `folder`; returns the new files.

    A run that is already there, with the same content, is left alone.

    Raises:
      UserError: a run is not finished, is of an unknown or changed commit, differs from the runs
        of its arm in more than its seed, or its file exists with different content. Nothing is
        written then.
    """
    texts: dict[Path, str] = {}
    arms = [result for path in folder.glob("*_seed*.json") if "arm" in (result := read_json(path))]
    for workdir in workdirs:
        result = record(workdir, study, arm)
        words = (result["network"], result["study"], result["arm"], f"seed{result['seed']}")
        path, text = folder / f"{'_'.join(words)}.json", to_text(result)
        for other in arms:
            if all(other[key] == result[key] for key in ("network", "study", "arm")):
                _require_alike(result, other, workdir)
        arms.append(result)
        if texts.setdefault(path, text) != text or (path.exists() and path.read_text() != text):
            raise UserError(
                f"{workdir}: {path.name} exists and is of another run; use another --arm."
            )
    new = {path: text for path, text in texts.items() if not path.exists()}
    for path, text in new.items():
        write_atomic(path, text)
    return list(new)


def _require_alike(result: dict, other: dict, workdir: Path) -> None:
    """Raises UserError where two runs of one arm differ in more than their seeds. Of older ones the
    settings are not known.
    """
    differing = [
        (name, other[name], result[name])
        for name in ("dataset", "num_train_examples")
        if other[name] != result[name]
    ]
    if "settings" in other:
        config_class, name = NETWORKS[result["network"]]
        changed = changes(other["settings"], read_config(config_class, workdir, name))
        differing += [change for change in changed if change[0] != "seed"]
    for name, before, now in differing[:1]:
        raise UserError(
            f"{workdir} has {name} {now!r}, the run of seed {other['seed']} in arm {other['arm']} "
            f"{before!r}; use another --arm."
        )


def record(workdir: Path, study: str, arm: str) -> dict:
    """What results/ keeps of a finished run. Raises UserError where it cannot be kept."""
    result = read(workdir)
    commit = str(result.get("commit") or "unknown")
    if commit == "unknown" or commit.endswith("-dirty"):
        raise UserError(f"{workdir}: its commit is {commit}; results come from a commit.")
    arm = arm or result["preset"] or ""
    for flag, name in (("study", study), ("arm", arm)):
        if not NAME.fullmatch(name):
            raise UserError(f"--{flag}={name} must be lower-case letters, digits, _ and dots.")
    places = {"network": result["network"], "preset": result["preset"], "study": study, "arm": arm}
    return places | result


def read(workdir: Path) -> dict:
    """A finished run: what its result.json holds, its network, preset, settings and curves. Raises
    UserError.
    """
    path = workdir / "result.json"
    try:
        result = json.loads(path.read_text())
        command, seed = str(result["command"]), int(result["seed"])
        settings = dict(json.loads((workdir / "config.json").read_text()))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{workdir} holds no finished run: {path.name} is missing or damaged."
        ) from error
    network = re.search(r"\b(lenet|alexnet)[./]train\b", command)
    if not network:
        raise UserError(f"{workdir}: {command!r} is not a training of lenet or alexnet.")
    curves = {  # split -> error after each epoch; of training, its mean over the epoch
        split: {
            "epoch": [point[0] for point in points],
            "error_pct": [round(point[1], 4) for point in points],
        }
        for split, points in mean_by_epoch(read_metrics(workdir), "error_pct").items()
    }
    places = {"network": network[1], "preset": preset_of(command)}
    return places | result | {"seed": seed, "settings": settings, "curves": curves}


def preset_of(command: str) -> str | None:
    """The preset of a command line, None if it names none: the last flagfile of one, as that
    overrides --preset wherever it stands.
    """
    files = re.findall(r"--?flagfile[= ]\S*?\bpresets/(\w+)\.flags", command)
    names = files or re.findall(r"--?preset[= ](\w+)", command)
    return names[-1] if names else None
