"""The one `main()` of both networks: flags, lock, resume or refuse, signals, exit codes, result.json.

Exit codes: 0 done, 1 a bug (traceback), 2 usage or resume refused, 65 bad data, 70 non-finite, 74 storage, 75 locked,
130 SIGINT, 143 SIGTERM.
"""

import contextlib
import ctypes
import dataclasses
import errno
import importlib.metadata
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import filelock
import jax
from absl import app, flags, logging

import common.flags
from common.checkpoint import last_good
from common.errors import LockedError, StorageError, UserError
from common.parallel import (
    FIXED_PARTS,
    agreed,
    from_first_process,
    in_all_processes,
    is_first_process,
    texts_of_all_processes,
)
from common.writer import write_atomic

OF_THE_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)  # no bug, whatever raises it
INTERRUPTED = "interrupted; the same command goes on from here."
OF_EACH_PROCESS = ("data_dir", "num_workers")  # settings that the processes of one run may have of their own


class Interrupted(Exception):
    """Raised by a training loop that was asked to stop, once its state is saved. `Interrupted(signal_number)`."""


class Processes(NamedTuple):
    """The flags that make several processes one run; none of them is a setting of the run."""

    multihost: bool
    coordinator_address: str
    num_processes: int
    process_id: int

    def start(self) -> None:
        """Joins the processes. Raises UserError where that fails."""
        if not self.multihost:
            return
        by_hand = {name: value for name, value in self._asdict().items() if value not in ("", -1) and name != "multihost"}
        # By another thread: until all have come it waits in C, for minutes, where the main one would hear no Ctrl-C.
        joining = ThreadPoolExecutor(1).submit(jax.distributed.initialize, **by_hand)
        try:
            joining.result()
        except KeyboardInterrupt:
            os._exit(_fail(INTERRUPTED, 130, ""))  # at once: nothing ends that thread, and there is nothing to lose
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"--multihost: {' '.join(str(error).split())[:200]}. Outside SLURM, Kubernetes and TPU slices add "
                "--coordinator_address=HOST:PORT --num_processes=N --process_id=K, the same address in all, K from 0 to N - 1."
            ) from error


def main(config_class, train_and_evaluate: Callable) -> None:
    """Parses the command line and runs one training; never returns.

    Args:
      config_class: a frozen dataclass of `common.flags.setting` fields, with `seed` and `dataset` among them.
      train_and_evaluate: called as (config, workdir, stop_requested); stop_requested() is None or the signal's number. Returns
        the metrics of result.json; raises Interrupted after saving.
    """

    def parse(argv: list[str]):
        if {"--help", "-help", "-h", "--helpfull", "--helpshort"} & set(argv):
            print(_help(config_class))
            sys.exit(0)
        try:
            return _parse(config_class, flags.FLAGS, argv)
        except UserError as error:
            sys.exit(_fail(str(error), error.exit_code))

    app.run(lambda parsed: _run(*parsed, train_and_evaluate), flags_parser=parse)


def run_tool(define_flags: Callable, body: Callable, argv: list[str], words: tuple[str, ...] = ()) -> int:
    """Runs a command-line tool of scripts/; returns its exit code.

    Args:
      define_flags: called with a FlagValues, to declare the tool's flags in it.
      body: called with the parsed FlagValues, and with the words. A UserError becomes one line and its exit code, Ctrl-C one
        line and 130.
      argv: the program's name and its arguments.
      words: what the arguments that are not flags stand for, such as ("ls|verify", "DIR"): all are
        required. A last word that ends in "...]" stands for any number of arguments.
    """
    keep_freed_memory()
    values = flags.FlagValues()
    define_flags(values)
    flags.DEFINE_string("flagfile", "", "Flags from a file, one a line.", flag_values=values)
    flags.DEFINE_boolean("help", False, "Prints this text.", short_name="h", flag_values=values)
    values.set_gnu_getopt()  # a flag may come after a word
    try:
        given = values(argv)[1:]
        if values.help:
            print(sys.modules[body.__module__].__doc__, *_tool_help(values), sep="\n")
            return 0
        required = sum(not word.endswith("...]") for word in words)
        if len(given) > len(words) == required:
            what = f"nothing comes after {' '.join(words)}" if words else "every setting is a flag, --name=value"
            raise UserError(f"unexpected argument {given[len(words)]!r}: {what}.")
        if len(given) < required:
            raise UserError(f"{words[len(given)]} is missing: the arguments are {' '.join(words)}.")
        body(values, *given)
    except (flags.Error, UnicodeDecodeError) as error:
        return _fail(_flag_error(error), UserError.exit_code)
    except UserError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, 130, "")
    return 0


def keep_freed_memory() -> None:
    """Makes glibc keep what is freed for what comes next, instead of giving it back to the system, and in huge pages.

    A step on a CPU takes hundreds of megabytes and frees them, and every page of 4 KiB that the system hands out anew is a page
    fault and filled with zeros. Kept for the main thread alone, a step of AlexNet's preset deck took 1.71 s, this way 1.50.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes, libc.madvise.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    trim_threshold, mmap_max, arena_max, huge_page = -1, -4, -8, 14  # from malloc.h and mman.h
    libc.mallopt(mmap_max, 0)  # large blocks come from the heap too, ...
    libc.mallopt(arena_max, 1)  # ... in every thread from the same one, ...
    libc.mallopt(trim_threshold, -1)  # ... of which the system gets nothing back.
    # The heap grows once, by addresses alone: memory is behind a page from its first use on.
    size, page = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2, 2**21
    if block := libc.malloc(size):
        start = -(-block // page) * page
        libc.madvise(start, (block + size - start) // page * page, huge_page)
        libc.free(block)


def provenance(config) -> dict:
    """Where a result comes from: command, commit, seed, dataset, versions and machine, without host names and paths."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
    try:
        device = jax.devices()[0]
    except (RuntimeError, AssertionError) as error:  # JAX_PLATFORMS names what is not here
        raise UserError(f"JAX finds no device: {str(error).splitlines()[0] if str(error) else 'see JAX_PLATFORMS'}") from error
    machine = {"processor": _processor(), "cores": _cores(), "accelerator": device.device_kind, "devices": jax.device_count()}
    return {
        "command": _command(),
        "commit": commit(),
        "seed": config.seed,
        "dataset": config.dataset,
        "versions": versions,
        "machine": machine,
    }


def _parse(config_class, flag_values: flags.FlagValues, argv: list[str]) -> tuple:
    """(config, workdir, processes) of a command line. Raises UserError for whatever it gets wrong."""
    common.flags.define(config_class, flag_values)
    own = dict(flag_values=flag_values)
    flags.DEFINE_string("workdir", "", "The run's folder: made if absent, resumed if it holds the same run.", **own)
    flags.DEFINE_boolean("multihost", False, "Several processes, this being one of them, are one run.", **own)
    flags.DEFINE_string("coordinator_address", "", "--multihost by hand: HOST:PORT of process 0.", **own)
    flags.DEFINE_integer("num_processes", -1, "--multihost by hand: how many processes.", lower_bound=-1, **own)
    flags.DEFINE_integer("process_id", -1, "--multihost by hand: which of them this is, from 0.", lower_bound=-1, **own)
    try:
        leftover = flag_values(argv)[1:]
    except (flags.Error, UnicodeDecodeError) as error:
        raise UserError(_flag_error(error)) from error
    if leftover:
        raise UserError(f"unexpected argument {leftover[0]!r}: every setting is a flag, --name=value.")
    if not flag_values.workdir:
        raise UserError("--workdir is required: the run's folder, for example --workdir=runs/first.")
    processes = Processes(*(flag_values[name].value for name in Processes._fields))
    by_hand = [bool(processes.coordinator_address), processes.num_processes != -1, processes.process_id != -1]
    if any(by_hand) and not (processes.multihost and all(by_hand) and processes.process_id < processes.num_processes):
        raise UserError(
            "--coordinator_address, --num_processes and --process_id (0 to --num_processes - 1) need each other and --multihost"
        )
    if any(by_hand) and not re.fullmatch(r".+:\d+", processes.coordinator_address):
        raise UserError(f"--coordinator_address={processes.coordinator_address} must be HOST:PORT, such as host0:8476")
    return common.flags.read(config_class, flag_values), Path(flag_values.workdir).expanduser(), processes


def _run(config, workdir: Path, processes: Processes, train_and_evaluate: Callable) -> int:
    # Orbax logs what fails in its threads with a traceback; the same error reaches us as an exception, and becomes one line.
    logging.set_verbosity(logging.FATAL)
    _leave_abandoned_writes_unheard()
    keep_freed_memory()
    if config.reduction == "fixed":
        _repeat_the_same_bits()
    try:
        processes.start()
        _require_same_flags(config)
        with _claimed(config, workdir) as finished:
            if processes.multihost:
                _require_same_workdir(workdir)
            if not finished:
                _use_compilation_cache()
                source = provenance(config)
                if is_first_process():
                    print(_summary(source), file=sys.stderr, flush=True)
                with _stop_signals() as stop_requested:
                    metrics = train_and_evaluate(config, workdir, agreed(stop_requested))
                    if is_first_process():
                        write_atomic(workdir / "result.json", _result_text(metrics | source))
            if is_first_process():
                print(_headline(workdir))
            return 0
    except Interrupted as interrupted:
        number = interrupted.args[0]
        name = signal.Signals(number).name
        return _fail(f"stopped by {name}; everything is saved in {workdir}. The same command resumes.", 128 + number, "")
    except UserError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:  # before the training hears signals itself, or after
        return _fail(INTERRUPTED, 130, "")
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        return _fail(
            f"the device has not enough memory ({' '.join(str(error).split())[:120]}). {last_good(workdir)} "
            "Use more devices, or a smaller --batch_size in another --workdir.",
            UserError.exit_code,
        )
    except OSError as error:
        if error.errno not in OF_THE_STORAGE:
            raise
        try:
            safe = last_good(workdir)
        except OSError:  # the disk is gone
            safe = "Checkpoints cannot be read now either."
        return _fail(f"{error}. {safe} Mend that, then repeat the same command: it resumes.", StorageError.exit_code)


def _leave_abandoned_writes_unheard() -> None:
    """Where one write of a checkpoint fails, Orbax closes the loop that awaits those beside it, and each of them would print a
    traceback of its own when it ends, from a thread of TensorStore.
    """

    def unless_abandoned(report):
        def hook(*arguments):  # (type, error, traceback), or one object that has them
            error = arguments[1] if len(arguments) > 1 else arguments[0].exc_value
            if not (type(error) is RuntimeError and str(error) == "Event loop is closed"):
                report(*arguments)

        return hook

    sys.excepthook = unless_abandoned(sys.excepthook)
    sys.unraisablehook = unless_abandoned(sys.unraisablehook)
    threading.excepthook = unless_abandoned(threading.excepthook)


def _flag_error(error: Exception) -> str:
    """absl's message on one line."""
    return f"{' '.join(str(error).split()).removeprefix('ERROR:: ')} (--help lists the flags)"


def _fail(message: str, exit_code: int, kind: str = "error: ") -> int:
    print(kind + message, file=sys.stderr, flush=True)
    return exit_code


def _require_same_flags(config) -> None:
    """Raises UserError, in all processes the same, unless they have the same settings: each would train another network."""
    first, *others = map(json.loads, texts_of_all_processes(json.dumps(dataclasses.asdict(config))))
    for number, other in enumerate(others, start=1):
        for name, value in first.items():
            if name not in OF_EACH_PROCESS and other.get(name) != value:
                raise UserError(
                    f"--{name} is {value} in process 0 and {other.get(name)} in process {number}: all processes of a run need "
                    f"the same flags, but for {' and '.join(f'--{own}' for own in OF_EACH_PROCESS)}."
                )


def _require_same_workdir(workdir: Path) -> None:
    """Raises UserError, in all processes the same, unless they share `workdir`: each writes its part of a checkpoint there."""
    # A name that is new: no earlier run left it behind, and no network's file system remembers that it was not there.
    mark = workdir / f".{texts_of_all_processes(uuid.uuid4().hex)[0]}"
    if is_first_process():
        mark.touch()
    from_first_process(0)  # the others wait for it here
    shared = in_all_processes(mark.exists())
    if is_first_process():
        mark.unlink()
    if not shared:
        raise UserError(f"--workdir={workdir} is not the same folder in all processes: it must be on a disk that they share.")


@contextlib.contextmanager
def _claimed(config, workdir: Path):
    """Makes `workdir` this run's alone, its config written; gives whether the run is finished already.

    The first process does so for all, and the others raise UserError where it does.
    """
    with contextlib.ExitStack() as stack:
        refusal, finished = None, False
        if is_first_process():
            try:
                stack.enter_context(_locked(workdir))
                _require_same_config(config, workdir)
                finished = (workdir / "result.json").exists()
                if not finished:
                    write_atomic(workdir / "config.json", json.dumps(dataclasses.asdict(config), indent=2) + "\n")
                    write_atomic(workdir / "flags.txt", common.flags.to_flagfile(config))
            except UserError as error:
                refusal = error
        refused, finished = from_first_process(refusal is not None, finished)
        if refused:
            raise refusal or UserError("the first process refuses this run; it says why.")
        yield finished


@contextlib.contextmanager
def _locked(workdir: Path):
    """Makes `workdir` if needed and holds its lock, which the system frees however this process ends."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        entries = [entry.name for entry in workdir.iterdir() if not entry.name.startswith(".")]
        if entries and "config.json" not in entries:
            raise UserError(f"{workdir} holds other files and no run (no config.json). Use another --workdir.")
        lock = filelock.FileLock(workdir / ".lock", timeout=0)
        lock.acquire()
    except filelock.Timeout:
        owner = workdir / ".pid"
        process = owner.read_text() if owner.exists() else "unknown"
        raise LockedError(f"{workdir} is in use by process {process}. Wait for it, or use another --workdir.") from None
    except OSError as error:
        reason = "it is a file, not a folder" if workdir.is_file() else error.strerror or error
        raise StorageError(f"cannot write in {workdir}: {reason}. Use another --workdir.") from error
    with lock:
        write_atomic(workdir / ".pid", str(os.getpid()))
        yield


def _require_same_config(config, workdir: Path) -> None:
    """Raises UserError unless `workdir` is new, or holds a run of this config up to settings that leave the result alone."""
    path = workdir / "config.json"
    if not path.exists():
        return
    try:
        saved = dict(json.loads(path.read_text()))
    except (ValueError, TypeError, OSError) as error:
        raise StorageError(f"cannot read {path}: {error}. Use another --workdir.") from error
    unknown = saved.keys() - {field.name for field in dataclasses.fields(config)}
    if unknown:
        raise UserError(f"{workdir} holds a run of another program (it sets {sorted(unknown)[0]}). Use another --workdir.")
    changed = common.flags.changes(saved, config)
    # A start that was refused, for want of the data perhaps, leaves a config and nothing that it would not fit.
    if changed and any(any(workdir.glob(name)) for name in ("metrics.jsonl", "checkpoints/*", "result.json")):
        width = max(len(name) for name, _, _ in changed)
        table = "\n".join(f"  {name:<{width}}  {old} -> {new}" for name, old, new in changed)
        raise UserError(
            f"{workdir} holds a run with other settings:\n{table}\nUse the old settings to resume, or another --workdir; "
            f"--init_from={workdir} there starts from the weights of this run."
        )


@contextlib.contextmanager
def _stop_signals():
    """Gives stop_requested() -> None or the number of the first SIGTERM or SIGINT. A second one ends the process at once.

    Python runs signal handlers only between bytecodes of the main thread, and a compilation can hold that for a minute: so the
    numbers are read by a thread of their own, from the pipe that the interpreter's C handler writes to.
    """
    received, stop_signals = [], (signal.SIGTERM, signal.SIGINT)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)

    def watch():
        while number := os.read(read_end, 1)[0]:
            if number not in stop_signals:
                continue
            if received:
                os._exit(128 + number)
            received.append(number)
            name = signal.Signals(number).name
            print(f"{name}: finishing these steps and saving; once more stops at once.", file=sys.stderr, flush=True)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    old_wakeup = signal.set_wakeup_fd(write_end)
    old_handlers = {number: signal.signal(number, lambda *_: None) for number in stop_signals}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: installed by C code
        signal.set_wakeup_fd(old_wakeup)
        os.write(write_end, b"\0")  # ends the watcher
        watcher.join()
        os.close(write_end)
        os.close(read_end)


def _repeat_the_same_bits() -> None:
    """Keeps XLA to what gives the same bits in every run, on any number of devices. Counts only before JAX starts its backend.

    On a GPU it takes what is fastest otherwise; a setting of the user's wins. On a CPU it cuts the sums of a large product
    among its threads, of which it has one for each core or, if that is more, each device: here always as many.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if "xla_gpu_deterministic_ops" not in given:
        os.environ["XLA_FLAGS"] = f"{given} --xla_gpu_deterministic_ops=true".strip()
    os.environ["NPROC"] = str(FIXED_PARTS)  # what XLA takes for the number of cores


def _use_compilation_cache() -> None:
    """Keeps compiled programs across runs: a resume starts in seconds. A JAX_COMPILATION_CACHE_DIR of the user's wins."""
    if not jax.config.jax_compilation_cache_dir:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "lenet-alexnet" / "jax"))
    # The defaults would keep nothing of a small net.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _help(config_class) -> str:
    """One paragraph per flag, in the order of the config's fields."""
    paragraphs = [
        f"usage: {_program()} --workdir=DIR [--flagfile=PRESET] [--name=value ...]",
        "  --workdir=DIR\n      The run's folder: made if absent, resumed if it holds the same run.",
        "  --flagfile=FILE\n      Flags from a file, one a line; flags after it on the command line override it.",
        "  --multihost [--coordinator_address=HOST:PORT --num_processes=N --process_id=K]\n"
        "      Several processes are one run; under SLURM and Kubernetes and on TPU slices --multihost is enough.",
    ]
    for field in dataclasses.fields(config_class):
        if isinstance(field.default, bool):
            head = f"  --[no]{field.name}  (default: {str(field.default).lower()})"
        else:
            choices = f"; one of {', '.join(field.metadata['choices'])}" if field.metadata["choices"] else ""
            head = f"  --{field.name}={field.default}  (default{choices})"
        indent = " " * 6
        paragraphs.append(
            head + "\n" + textwrap.fill(field.metadata["help"], 100, initial_indent=indent, subsequent_indent=indent)
        )
    return "\n\n".join(paragraphs)


def _tool_help(values: flags.FlagValues) -> list[str]:
    """A paragraph per flag, in alphabetical order."""
    return [f"  --{name}={values[name].default}\n      {values[name].help}" for name in sorted(values) if len(name) > 1]


def _program() -> str:
    spec = sys.modules["__main__"].__spec__
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else f"python {_relative(sys.argv[0])}"


def _command() -> str:
    """The command line as typed, its absolute paths made relative to here or to home."""
    words = [_program()]
    for argument in sys.argv[1:]:
        name, equals, value = argument.rpartition("=")
        words.append(shlex.quote(name + equals + _relative(value)))
    return " ".join(words)


def _relative(text: str) -> str:
    path = Path(text)
    if not path.is_absolute():
        return text
    if path.is_relative_to(Path.home()) and not path.is_relative_to(Path.cwd()):
        return f"~/{path.relative_to(Path.home())}"
    return os.path.relpath(path)


def commit() -> str | None:
    """The commit of this code, with -dirty if tracked files differ from it; None outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _summary(source: dict) -> str:
    versions = " ".join(f"{name} {source['versions'][name]}" for name in ("python", "jax", "flax"))
    machine = source["machine"]
    return f"{versions}; {machine['devices']} x {machine['accelerator']}, {machine['cores']} cores; commit {source['commit']}"


def _result_text(result: dict) -> str:
    text = json.dumps(result, indent=2, allow_nan=False, default=lambda array: array.tolist())
    # A list of numbers on one line.
    return re.sub(r"\[([^\[\]{}\"]+)\]", lambda row: f"[{' '.join(row[1].split())}]", text) + "\n"


def _headline(workdir: Path) -> str:
    path = workdir / "result.json"
    try:
        result = json.loads(path.read_text())
        num_steps = result["num_steps"]
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path} is damaged; remove it, and the same command writes it again.") from error
    errors = "".join(
        f"{name.removesuffix('_error_pct')} error {value:.2f}%, "
        for name, value in result.items()
        if name.endswith("error_pct") and name != "top1_error_pct"  # test_error_pct is the same number
    )
    return f"complete: {errors}{num_steps:,} steps; {path}"
