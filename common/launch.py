"""The command line of both networks and of the tools: flags, exit codes, and one line for what is
no bug.

Exit codes: 0 done, 1 a bug (traceback), 2 usage or resume refused, 65 bad data, 70 non-finite, 74
storage, 75 locked, 130 SIGINT, 143 SIGTERM.
"""

import dataclasses
import errno
import signal
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import jax
from absl import app, flags, logging

import common.flags
from common import provenance, runtime
from common.errors import INTERRUPTED, Interrupted, StorageError, UserError
from common.processes import (
    Processes,
    agreed,
    is_first_process,
    require_same_flags,
    require_same_workdir,
)
from common.workdir import claimed, headline, last_good, write_result

# Errors of the disk, whatever raises them; any other OSError is a bug.
STORAGE_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EIO,
    errno.ESTALE,
)


def main(config_class, train_and_evaluate: Callable) -> None:
    """Parses the command line and runs one training; never returns.

    Args:
      config_class: a frozen dataclass of `common.flags.setting` fields, with `seed` and `dataset`
        among them.
      train_and_evaluate: called as (config, workdir, stop_requested); stop_requested() is None or
        the signal's number. Returns the metrics of result.json; raises Interrupted after saving.
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


def run_tool(
    define_flags: Callable, body: Callable, argv: list[str], words: tuple[str, ...] = ()
) -> int:
    """Runs a command-line tool of scripts/; returns its exit code.

    Args:
      define_flags: called with a FlagValues, to declare the tool's flags in it.
      body: called with the parsed FlagValues, and with the words. A UserError becomes one line and
        its exit code, Ctrl-C one line and 130.
      argv: the program's name and its arguments.
      words: what the arguments that are no flags stand for, such as ("ls|verify", "DIR"): all of
        them are needed.
    """
    runtime.keep_freed_memory()
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
        if len(given) > len(words):
            what = (
                f"nothing comes after {' '.join(words)}"
                if words
                else "every setting is a flag, --name=value"
            )
            raise UserError(f"unexpected argument {given[len(words)]!r}: {what}.")
        if len(given) < len(words):
            raise UserError(f"{words[len(given)]} is missing: the arguments are {' '.join(words)}.")
        body(values, *given)
    except (flags.Error, UnicodeDecodeError) as error:
        return _fail(_flag_error(error), UserError.exit_code)
    except UserError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, 130, "")
    return 0


def _parse(config_class, flag_values: flags.FlagValues, argv: list[str]) -> tuple:
    """(config, workdir, processes) of a command line. Raises UserError for what it gets wrong."""
    common.flags.define(config_class, flag_values)
    flags.DEFINE_string(
        "workdir",
        "",
        "The run's folder: made if absent, resumed if it holds the same run.",
        flag_values=flag_values,
    )
    Processes.define(flag_values)
    try:
        leftover = flag_values(argv)[1:]
    except (flags.Error, UnicodeDecodeError) as error:
        raise UserError(_flag_error(error)) from error
    if leftover:
        raise UserError(
            f"unexpected argument {leftover[0]!r}: every setting is a flag, --name=value."
        )
    if not flag_values.workdir:
        raise UserError("--workdir is required: the run's folder, such as --workdir=runs/first.")
    processes = Processes.read(flag_values)
    config = common.flags.read(config_class, flag_values)
    return config, Path(flag_values.workdir).expanduser(), processes


def _run(config, workdir: Path, processes: Processes, train_and_evaluate: Callable) -> int:
    """Trains, unless the run is finished; returns the exit code. A bug raises."""
    # Orbax logs what fails in its threads with a traceback; the same error reaches us as an
    # exception, and becomes one line.
    logging.set_verbosity(logging.FATAL)
    runtime.mute_orbax_tracebacks()
    runtime.keep_freed_memory()
    if config.reduction == "fixed":
        runtime.use_deterministic_reductions()
    try:
        processes.start()
        require_same_flags(config)
        with claimed(config, workdir) as finished:
            if processes.multihost:
                require_same_workdir(workdir)
            if not finished:
                _train(config, workdir, train_and_evaluate)
            if is_first_process():
                print(headline(workdir))
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


def _train(config, workdir: Path, train_and_evaluate: Callable) -> None:
    """Trains and writes result.json."""
    runtime.use_compilation_cache()
    source = provenance.collect(seed=config.seed, dataset=config.dataset)
    if is_first_process():
        print(provenance.summary(source), file=sys.stderr, flush=True)
    with runtime.stop_signals() as stop_requested:
        result = train_and_evaluate(config, workdir, agreed(stop_requested))
        if is_first_process():
            write_result(workdir, result | source)


def _flag_error(error: Exception) -> str:
    """absl's message on one line."""
    return f"{' '.join(str(error).split()).removeprefix('ERROR:: ')} (--help lists the flags)"


def _fail(message: str, exit_code: int, kind: str = "error: ") -> int:
    print(kind + message, file=sys.stderr, flush=True)
    return exit_code


def _help(config_class) -> str:
    """One paragraph per flag, in the order of the config's fields."""
    paragraphs = [
        f"usage: {provenance.program()} --workdir=DIR [--flagfile=PRESET] [--name=value ...]",
        "  --workdir=DIR\n      The run's folder: made if absent, resumed if it holds the same run.",
        "  --flagfile=FILE\n      Flags from a file, one a line; flags after it on the command line override it.",
        "  --multihost [--coordinator_address=HOST:PORT --num_processes=N --process_id=K]\n"
        "      Several processes are one run; under SLURM and Kubernetes and on TPU slices --multihost is enough.",
    ]
    for field in dataclasses.fields(config_class):
        if isinstance(field.default, bool):
            head = f"  --[no]{field.name}  (default: {str(field.default).lower()})"
        else:
            choices = (
                f"; one of {', '.join(field.metadata['choices'])}"
                if field.metadata["choices"]
                else ""
            )
            head = f"  --{field.name}={field.default}  (default{choices})"
        indent = " " * 6
        paragraphs.append(
            head
            + "\n"
            + textwrap.fill(
                field.metadata["help"], 100, initial_indent=indent, subsequent_indent=indent
            )
        )
    return "\n\n".join(paragraphs)


def _tool_help(values: flags.FlagValues) -> list[str]:
    """A paragraph per flag, in alphabetical order."""
    return [
        f"  --{name}={values[name].default}\n      {values[name].help}"
        for name in sorted(values)
        if len(name) > 1
    ]
