"""The command line of both networks and of the tools: flags, exit codes, and one-line messages for
expected errors.

Exit codes: 0 done, 1 a bug (traceback), 2 usage or resume refused, 65 bad data, 70 non-finite, 74
storage, 75 locked, 128 + a signal's number: 130 SIGINT, 143 SIGTERM.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import flags

import common.flags
from common import provenance, runtime
from common.errors import INTERRUPTED, Interrupted, StorageError, UserError, one_line
from common.flags import settings_of
from common.processes import (
    Processes,
    agreed,
    broadcast,
    is_first_process,
    require_same_flags,
    require_same_workdir,
)
from common.workdir import claimed, headline, last_good, saved_steps, write_result

# Errors of the disk and its permissions, whatever raises them; any other OSError is a bug.
STORAGE_ERRORS = (
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EIO,
    errno.ESTALE,
    errno.ENAMETOOLONG,
    *(errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN),  # of a network's disk
    *(errno.EMFILE, errno.ENFILE, errno.ENOLCK),
)


def main(
    config_class,
    make_task: Callable,
    fit: Callable,
    before_new: Callable[[Any], None] = lambda config: None,
) -> None:
    """Runs one training from the command line, and exits with its code.

    Args:
      config_class: a frozen dataclass of `common.flags.setting` fields, with `seed`, `dataset` and
        `reduction` among them.
      make_task: called as (config, resumed), the folder of a run that goes on or None: the training
        that it describes. The docstring of its module is the description in --help.
      fit: called as (task, workdir, stop_requested), `common.loop.fit`; stop_requested() is None or
        the signal's number. Returns the metrics of result.json; raises Interrupted after saving.
      before_new: called with the config of a run that has no checkpoint yet; may refuse it.
    """
    sys.stdout = runtime.lossy(sys.stdout, sys.__stdout__)
    sys.stderr = runtime.lossy(sys.stderr, sys.__stderr__)
    runtime.mute_library_logs()
    runtime.ignore_jax_environment()
    try:
        parsed = _parse(config_class, sys.argv, sys.modules[make_task.__module__].__doc__)
    except UserError as error:
        sys.exit(_fail(str(error), error.exit_code))

    def train(config, workdir: Path, stop_requested: Callable) -> dict:
        (is_new,) = broadcast(not saved_steps(workdir))  # as the first process sees it
        if is_new:
            before_new(config)
        return fit(make_task(config, None if is_new else workdir), workdir, stop_requested)

    sys.exit(_run(*parsed, train) if parsed else 0)


def run_tool(
    define_flags: Callable,
    body: Callable,
    argv: list[str],
    words: tuple[str, ...] = (),
    config_class=None,
) -> int:
    """Runs a command-line tool of scripts/; returns its exit code.

    Args:
      define_flags: called with a FlagValues, to declare the tool's flags in it.
      body: called with the parsed FlagValues, and with the words. A UserError becomes one line and
        its exit code, Ctrl-C one line and 130. The docstring of its module is the description in
        --help.
      argv: the program's name and its arguments.
      words: the names of the positional arguments, such as ("ls|verify", "DIR"); all are
        required. A last one that ends in "...]" stands for any number of arguments.
      config_class: the config whose settings are among the flags: --preset=NAME works.
    """
    sys.stderr = runtime.lossy(sys.stderr, sys.__stderr__)  # not stdout: it is the tool's result
    if sys.stdout is None:
        return _fail("stdout is closed: nothing could be printed", StorageError.exit_code)
    if sys.stdout is sys.__stdout__:
        sys.stdout.reconfigure(errors="backslashreplace")  # of an ASCII locale
    runtime.ignore_jax_environment()
    runtime.keep_freed_memory()
    values = flags.FlagValues()
    define_flags(values)
    _define_common(values, config_class)
    values.set_gnu_getopt()  # a flag may come after a word
    try:
        given = _parsed(values, argv, sys.modules[body.__module__].__doc__, config_class, words)
        if given is not None:
            body(values, *given)
        sys.stdout.flush()
    except UserError as error:
        return _fail(str(error), error.exit_code)
    except SystemExit as ended:
        if not isinstance(ended.__context__, BrokenPipeError):  # rich's console exits with 1
            raise
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in (errno.EPIPE, *STORAGE_ERRORS):
            raise
        try:
            sys.stdout.flush()
        except OSError:  # it cannot be written, and the interpreter would flush it again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:  # `| head -1`: its reader has what it wanted
            return 128 + signal.SIGPIPE
        return _fail(one_line(error), StorageError.exit_code)
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, 130, "")
    except Interrupted as interrupted:
        return _fail(INTERRUPTED, 128 + interrupted.args[0], "")
    return 0


def _parse(config_class, argv: list[str], description: str | None) -> tuple | None:
    """(config, workdir, processes) of a command line; None if it asked for help, which is printed.

    Raises UserError for what is wrong.
    """
    values = flags.FlagValues()  # new ones: a notebook may run several trainings
    flags.DEFINE_string(
        "workdir",
        "",
        "Required: the run's folder; made if absent, resumed if it holds the same run.",
        flag_values=values,
    )
    _define_common(values, config_class)
    Processes.define(values)
    common.flags.define(config_class, values)
    if _parsed(values, argv, description, config_class) is None:
        return None
    if not values.workdir.strip() or values.workdir.startswith("-"):  # --workdir --preset=paper
        raise UserError("--workdir is required: the run's folder, such as --workdir=runs/first.")
    config, processes = common.flags.read(config_class, values), Processes.read(values)
    return config, Path(values.workdir).expanduser(), processes


def _define_common(values: flags.FlagValues, config_class=None) -> None:
    """Declares the flags of every command; --preset if it has the settings of `config_class`."""
    own = dict(flag_values=values)
    if config_class:
        flags.DEFINE_string(
            "preset", "", "One of the presets above; all other flags override it.", **own
        )
    flags.DEFINE_string("flagfile", "", "A file of flags, one a line; later flags override.", **own)
    flags.DEFINE_boolean("help", False, "Print this text.", short_name="h", **own)


def _parsed(
    values: flags.FlagValues,
    argv: list[str],
    description: str | None,
    config_class=None,
    words: tuple[str, ...] = (),
) -> list[str] | None:
    """The words of a command line that `words` names, its flags parsed into `values`; None if it
    asked for help, which is printed. Raises UserError for what is wrong.
    """
    given = common.flags.parse(values, argv, config_class)
    if values.help:
        print(
            description or "",
            common.flags.help_text(values, "Command line", config_class),
            sep="\n",
        )
        return None
    required = sum(not word.endswith("...]") for word in words)
    if len(given) > len(words) == required:
        word = given[len(words)]
        allowed = f"only {' '.join(words)}" if words else "every setting is a flag, --name=value"
        if "workdir" in values and not values["workdir"].present:
            allowed += f"; for the run's folder: --workdir={word}"
        raise UserError(f"unexpected argument {word!r}: {allowed}.")
    if len(given) < required:
        raise UserError(f"{words[len(given)]} is missing: the arguments are {' '.join(words)}.")
    return given


def _run(config, workdir: Path, processes: Processes, train: Callable) -> int:
    """Trains, unless the run is finished; returns the exit code. A bug raises."""
    runtime.mute_orbax_tracebacks()
    runtime.keep_freed_memory()
    try:
        if config.reduction == "fixed":
            runtime.use_deterministic_reductions()
        processes.start()
        require_same_flags(config)
        with claimed(config, workdir) as finished:
            if processes.multihost:
                require_same_workdir(workdir)
            if not finished:
                _train(config, workdir, train)
            if is_first_process():
                print(headline(config, workdir))
            return 0
    except Interrupted as interrupted:
        number = interrupted.args[0]
        name = signal.Signals(number).name
        message = f"stopped by {name}; saved in {workdir}. Rerun the same command to resume."
        return _fail(message, 128 + number, "")
    except UserError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:  # before the signal handlers of the training, or after
        return _fail(INTERRUPTED, 130, "")
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        return _fail(
            f"out of device memory ({' '.join(str(error).split())[:120]}). {last_good(workdir)} "
            "Use more devices, or a smaller --batch_size in another --workdir.",
            UserError.exit_code,
        )
    except MemoryError as error:
        advice = "Use a smaller --batch_size in another --workdir."
        message = f"out of memory ({one_line(error)}). {last_good(workdir)} {advice}"
        return _fail(message, UserError.exit_code)
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        try:
            safe = last_good(workdir)
        except OSError:  # the disk is gone
            safe = "Checkpoints cannot be read now either."
        return _fail(
            f"{error}. {safe} Fix that, then rerun the same command: it resumes.",
            StorageError.exit_code,
        )


def _train(config, workdir: Path, train: Callable) -> None:
    """Trains and writes result.json."""
    # Signals first: JAX swallows a KeyboardInterrupt that comes while it starts.
    with runtime.stop_signals() as stop_requested:
        runtime.use_compilation_cache()
        source = provenance.collect(seed=config.seed, dataset=config.dataset)
        if is_first_process():
            print(provenance.summary(source), file=sys.stderr, flush=True)
        result = train(config, workdir, agreed(stop_requested))
        if is_first_process():
            write_result(workdir, result | source | settings_of(config))


def _fail(message: str, exit_code: int, kind: str = "error: ") -> int:
    print(kind + message, file=sys.stderr, flush=True)
    return exit_code
