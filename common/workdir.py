"""What a run's folder holds, and who may write in it.

config.json, flags.txt  the settings; flags.txt is a flagfile that replays the run
metrics.jsonl           losses and errors, a line per step and split (common/writer.py)
checkpoints/N           the state after N steps (common/checkpoint.py); the newest and the best
result.json             the final scores and where they come from: the run is finished;
                        result_after_N_epochs.json, where it was trained longer later on
.lock, .pid             held by the process that trains
"""

import contextlib
import dataclasses
import json
import os
import re
import secrets
from pathlib import Path

import filelock

import common.flags
from common.errors import LockedError, StorageError, UserError, one_line
from common.processes import broadcast, is_first_process
from common.storage import make_folder

METRICS = {"step", "epoch", "split", "loss", "error_pct"}  # in each line of metrics.jsonl
SMALLER_RATE = "A rerun would fail again: try a smaller learning rate in another --workdir."


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes the whole file or nothing, even if the machine stops in between, or another process
    writes it too.
    """
    temporary = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:  # x: no link that lies there is followed
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


# ---- metrics and checkpoints


def read_metrics(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl, without one that was cut off by a kill, or that no run wrote."""
    path = workdir / "metrics.jsonl"
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError, OverflowError, RecursionError):
            if _is_record(record := json.loads(line)):
                records.append(record)
    return records


def _is_record(record) -> bool:
    """Whether a run may have written this: a split, a step from 1 on, and numbers within reason."""
    if not isinstance(record, dict) or not record.keys() >= METRICS:
        return False
    numbers = [value for name, value in record.items() if name != "split"]
    return (
        isinstance(record["split"], str)
        and type(record["step"]) is int
        and record["step"] > 0
        and all(isinstance(value, int | float) and abs(value) < 1e15 for value in numbers)
    )


def last_finite(workdir: Path) -> str:
    """For an error message: the newest training loss in metrics.jsonl, which holds finite ones
    only; "" if there is none.
    """
    losses = [record for record in read_metrics(workdir) if record["split"] == "train"]
    if not losses:
        return ""
    return f" (last finite loss: {losses[-1]['loss']:.4g} at step {losses[-1]['step']})"


def saved_steps(workdir: Path) -> list[int]:
    """The steps that have a finished checkpoint, oldest first, without those set aside as
    corrupt.
    """
    directory = workdir / "checkpoints"
    entries = directory.iterdir() if directory.is_dir() else ()
    names = [entry.name for entry in entries if entry.name.isdecimal()]
    return sorted(int(name) for name in names if name == str(int(name)))  # not 007


def best_of(errors: dict[int, float], steps: list[int]) -> int | None:
    """The one of `steps` with the least of the `errors`, the earlier of two; None if none has
    one.
    """
    return min(
        (step for step in steps if step in errors), key=lambda s: (errors[s], s), default=None
    )


def last_good(workdir: Path) -> str:
    """For an error message: a sentence that says which checkpoint is safe."""
    steps = saved_steps(workdir)
    return f"The checkpoint of step {steps[-1]} is safe." if steps else "No checkpoint was saved."


# ---- config.json and flags.txt


def require_run(workdir: Path) -> None:
    """Raises UserError unless `workdir` holds a run, and its own files: in a folder that somebody
    else made, a link could have any other file read in their place.
    """
    if not (workdir / "config.json").exists():
        raise UserError(f"{workdir} holds no run (no config.json)")
    for name in ("config.json", "metrics.jsonl", "result.json", "checkpoints"):
        path = workdir / name
        is_right = path.is_dir() if name == "checkpoints" else path.is_file()
        if path.is_symlink() or (path.exists() and not is_right):
            raise UserError(
                f"{path} is a link, which is not followed, or not what a run has there. A run whose"
                " files lie elsewhere can be named by the folder that they lie in."
            )


def read_config(config_class, workdir: Path, network_name: str):
    """The config of the run in `workdir`.

    Args:
      config_class: the config of the network that the run must be of.
      network_name: the network's name with its article, for the message: "a LeNet-5".

    Raises:
      UserError: `workdir` holds no run, or one of another network.
    """
    require_run(workdir)
    path = workdir / "config.json"
    try:
        return common.flags.from_json(config_class, path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not that of {network_name} run: {one_line(error)}") from error


def write_config(config, workdir: Path) -> None:
    """Writes config.json and flags.txt."""
    text = json.dumps(dataclasses.asdict(config), indent=2) + "\n"
    write_atomic(workdir / "config.json", text)
    write_atomic(workdir / "flags.txt", common.flags.to_flagfile(config))


def require_same_config(config, workdir: Path) -> int | None:
    """Raises UserError unless `workdir` is new, or holds a run whose settings differ from `config`
    only where the result does not, or by having fewer epochs with the same learning rates.

    Returns its number of epochs if these are fewer, else None.
    """
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        saved = dict(json.loads(path.read_text()))
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise StorageError(f"cannot read {path}: {error}. Use another --workdir.") from error
    unknown = saved.keys() - {field.name for field in dataclasses.fields(config)}
    if unknown:
        raise UserError(
            f"{workdir} holds a run of another program (it sets {min(unknown)}). "
            "Use another --workdir."
        )
    changed = common.flags.changes(saved, config)
    # A start that was refused, perhaps because its data was missing, leaves a config and nothing
    # else: any settings may follow it.
    trained = any(
        any(workdir.glob(name)) for name in ("metrics.jsonl", "checkpoints/*", "result.json")
    )
    match changed:
        case [("num_epochs", int(old), new)] if new > old and not config.rate_needs_length:
            if not saved_steps(workdir) and (workdir / "result.json").exists():
                raise StorageError(f"{workdir} has no checkpoint to train longer from.")
            return old
    if changed and trained:
        width = max(len(name) for name, _, _ in changed)
        table = "\n".join(f"  {name:<{width}}  {old} -> {new}" for name, old, new in changed)
        reason = ""
        match changed:
            case [("num_epochs", int(old), new)]:
                reason = "A run cannot be shortened. "
                if new > old:
                    reason = (
                        f"With --schedule={config.schedule} all learning rates depend on "
                        "--num_epochs: train longer from the start. "
                    )
        raise UserError(
            f"{workdir} holds a run with other settings:\n{table}\n{reason}"
            "Resume with the old settings, or choose another --workdir (add "
            f"--init_from={workdir} to start from this run's weights)."
        )
    return None


# ---- who may write


@contextlib.contextmanager
def claimed(config, workdir: Path):
    """Locks `workdir` for the run of `config` and writes its config; yields whether the run is
    finished.

    The first process does so for all; the others raise UserError where it does.
    """
    with contextlib.ExitStack() as stack:
        refusal, finished = None, False
        if is_first_process():
            try:
                stack.enter_context(_locked(workdir))
                if shorter := require_same_config(config, workdir):
                    stack.enter_context(_made_longer(workdir, shorter))
                finished = (workdir / "result.json").exists()
                if not finished:
                    _require_checkpoints(workdir)
                    write_config(config, workdir)
            except Exception as error:  # raised below: the other processes wait for the broadcast
                refusal = error
        refused, finished = broadcast(refusal is not None, finished)
        if refused:
            raise refusal or UserError("process 0 refuses this run; its message says why.")
        yield finished


@contextlib.contextmanager
def _made_longer(workdir: Path, num_epochs: int):
    """Renames the result after `num_epochs`. An error puts back what was there, unless training has
    gone on and saved: a longer run that is refused changes nothing.
    """
    files = [workdir / name for name in ("config.json", "flags.txt")]
    before = {file: file.read_bytes() for file in files if file.exists()}  # a kill leaves the first
    steps = saved_steps(workdir)
    result, kept = workdir / "result.json", workdir / f"result_after_{num_epochs}_epochs.json"
    with contextlib.suppress(FileNotFoundError):
        result.rename(kept)
    try:
        yield
    except BaseException:
        if saved_steps(workdir) == steps:
            for file in files:
                if file in before:
                    write_atomic(file, before[file])
                else:
                    file.unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                kept.rename(result)
        raise


def _require_checkpoints(workdir: Path) -> None:
    """Raises StorageError where the folder of checkpoints, which is made before metrics.jsonl, is
    gone: training must not begin anew unasked.
    """
    checkpoints = workdir / "checkpoints"
    begun = (workdir / "metrics.jsonl").exists()
    if (begun or checkpoints.exists()) and not checkpoints.is_dir():
        raise StorageError(
            f"{workdir} holds a run that was begun, and {checkpoints} is no folder: put it back, "
            "or use another --workdir to train from the start."
        )


@contextlib.contextmanager
def _locked(workdir: Path):
    """Makes `workdir` if needed and holds its lock, which the system releases however this process
    ends.
    """
    try:
        make_folder(workdir)
        entries = [entry.name for entry in workdir.iterdir() if not entry.name.startswith(".")]
        if entries and "config.json" not in entries:
            raise UserError(
                f"{workdir} holds other files and no run (no config.json). Use another --workdir."
            )
        held = filelock.FileLock(workdir / ".lock", timeout=0).acquire()
    except filelock.Timeout:
        owner = workdir / ".pid"
        process = owner.read_text() if owner.exists() else "unknown"
        # Where a disk has no locks, a file with this content stands for one, and outlives a kill.
        lock = workdir / ".lock"
        stale = f" If that was killed, remove {lock}." * bool(lock.exists() and lock.read_bytes())
        raise LockedError(
            f"{workdir} is in use by process {process}. Wait for it, or use another "
            f"--workdir.{stale}"
        ) from None
    except OSError as error:
        is_file = os.path.isfile(workdir)  # of a name too long too, where Path.is_file raises
        reason = "it is a file, not a folder" if is_file else error.strerror or error
        raise StorageError(
            f"cannot write in {workdir}: {reason}. Use another --workdir."
        ) from error
    with held:
        write_atomic(workdir / ".pid", str(os.getpid()))
        yield


# ---- result.json


def write_result(workdir: Path, result: dict) -> None:
    """Writes result.json."""
    write_atomic(workdir / "result.json", to_text(result))


def to_text(content: dict) -> str:
    """JSON; arrays become lists, a list of numbers stands on one line."""
    text = json.dumps(content, indent=2, allow_nan=False, default=lambda array: array.tolist())
    return re.sub(r"\[([^\[\]{}\"]+)\]", lambda row: f"[{' '.join(row[1].split())}]", text) + "\n"


def headline(config, workdir: Path) -> str:
    """result.json on one line. Raises StorageError if it is corrupt, UserError if it is not of
    `config`.
    """
    path = workdir / "result.json"
    names = {
        "test_error_pct": "test error",
        "top5_error_pct": "top-5 test error",
        "ten_crop_top1_error_pct": "ten-crop test error",
        "ten_crop_top5_error_pct": "ten-crop top-5 test error",
        "validation_error_pct": "validation error",
        "train_error_pct": "train error",
    }
    try:
        result = json.loads(path.read_text())
        common.flags.require_settings(config, result, path)
        errors = "".join(
            f"{what} {result[name]:.2f}%, " for name, what in names.items() if name in result
        )
        chance = " (NO BETTER THAN GUESSING)" * ("is_chance" in result)
        return f"complete: {errors}{result['num_steps']:,} steps{chance}; {path}"
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}.") from error
    except (
        ValueError,
        OverflowError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise StorageError(
            f"{path} is corrupt; remove it and rerun the same command to write it again."
        ) from error
