"""Trains the arms of a study with several seeds, and says how they compare:

python -m scripts.ablate --study=c3_table --workdir=runs/c3_table --jobs=2
python -m scripts.ablate --model=lenet --preset=deck --vary=activation=tanh,relu --workdir=runs/act
python -m scripts.ablate --workdir=runs/act --status

Flags of the training (python -m lenet.train --help) apply to all arms. Rerun, it goes on: finished
runs are skipped, interrupted ones resume. The folder gets study.json, figure.svg and figure.png.
"""

import contextlib
import itertools
import math
import re
import shlex
import sys
from pathlib import Path

import filelock
from absl import flags
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common import launch, provenance, stopping
from common.errors import LockedError, StorageError, UserError
from common.storage import make_folder
from common.workdir import write_atomic
from scripts.prepare.entries import printable
from scripts.report.results import NETWORKS, RESULTS
from scripts.studies import compare, conduct, outcome, plan
from scripts.studies.catalog import STUDIES
from scripts.studies.plan import Run, Study


def define_flags(flag_values: flags.FlagValues) -> None:
    own = dict(flag_values=flag_values)
    for name, default, what in (
        ("workdir", "", "Required: the folder of the study and its runs."),
        ("study", "", f"A study by name: {', '.join(STUDIES)}."),
        ("model", "", "lenet or alexnet, for a study of your own with --vary."),
        ("name", "", "The study's name; if empty its own, or what varies."),
        ("choose", "", "NAME=VALUE,VALUE: each arm gets the best value, on seeds 0 to 2."),
        ("sbatch", "", "Write a Slurm array job over the commands of all runs to this file."),
        ("results", "", "Folder of records of finished runs; the project's results if empty."),
    ):
        flags.DEFINE_string(name, default, what, **own)
    flags.DEFINE_multi_string(
        "vary",
        [],
        "NAME=VALUE,VALUE, or arms of several settings between semicolons: "
        "'lrn=none;lrn=across,lrn_alpha=2e-5'. Several make a grid.",
        **own,
    )
    for name, default, what in (
        ("seeds", 0, "Runs of each arm, from seed 10 on; 0: as many as the study plans."),
        ("jobs", 1, "Runs that train at a time."),
        ("threads", 1, "XLA's threads in each on a CPU; another number gives other bits."),
    ):
        limits = dict(lower_bound=default, upper_bound=plan.MAX_PAIRS)
        flags.DEFINE_integer(name, default, what, **limits, **own)
    flags.DEFINE_float(
        "margin", 0.0, "The least difference that matters; 0: the study's.", lower_bound=0.0, **own
    )
    flags.register_validator(
        "margin", math.isfinite, "--margin must be a finite number.", flag_values=flag_values
    )
    for name, what in (
        ("status", "Print how far each run is, and stop."),
        ("print_commands", "Print the commands of the runs that are not finished, and stop."),
        ("add", "Keep each finished run, and the study, in --results."),
    ):
        flags.DEFINE_boolean(name, False, what, **own)


def main(flag_values: flags.FlagValues, *training: str) -> None:
    if not flag_values.workdir.strip():
        raise UserError("--workdir is required: the study's folder, such as --workdir=runs/study")
    workdir = Path(flag_values.workdir).expanduser()
    kept = Path(flag_values.results).expanduser() if flag_values.results else RESULTS
    if flag_values.status:
        if not (workdir / "study.json").exists():
            raise UserError(f"{workdir} holds no study (no study.json)")
        return print_status(plan.from_json(workdir / "study.json"), workdir, kept)
    study = given_study(flag_values, training)
    plan.require_sound(study)
    if flag_values.print_commands or flag_values.sbatch:
        return print_commands(study, workdir, kept, flag_values)
    if flag_values.add and (commit := str(provenance.commit())).endswith(("None", "-dirty")):
        raise UserError(f"--add: the commit is {commit}; results come from a commit.")
    with locked(workdir):
        conduct.conduct(
            study,
            workdir,
            kept,
            jobs=flag_values.jobs,
            threads=flag_values.threads,
            add=flag_values.add,
        )


def given_study(flag_values: flags.FlagValues, training: tuple[str, ...]) -> Study:
    """The study that the command line describes. Raises UserError."""
    if any(re.fullmatch(r"--?(seed|keep)(=.*)?", argument) for argument in training):
        raise UserError("the study sets --seed and --keep of its runs; --seeds=N says how many.")
    if flag_values.study:
        if flag_values.study not in STUDIES:
            raise UserError(
                f"--study={flag_values.study} is unknown; there are {', '.join(STUDIES)}"
            )
        if flag_values.vary or flag_values.model or flag_values.choose:
            raise UserError("--study has its arms; --model, --vary and --choose are for your own.")
        study = STUDIES[flag_values.study]
        name = flag_values.name or (f"{study.name}_changed" if training else study.name)
        study = study._replace(name=name, added=training)
    else:
        if flag_values.model not in NETWORKS or not flag_values.vary:
            raise UserError(
                "needs --study=NAME, or --model=lenet|alexnet and --vary=NAME=VALUE,..."
            )
        arms = plan.vary(flag_values.vary)
        varied = list(dict.fromkeys(re.findall(r"(\w+)=", ",".join(flag_values.vary))))
        name = flag_values.name or "_".join(varied)
        study = Study(
            name=name,
            question=f"What do other values of {' and '.join(varied)} change?",
            base=training,
            arms=arms,
            model=flag_values.model,
            pairs=compare.pairs_for(max(len(arms) - 1, 1)),
            choose=dict.fromkeys(arms, flag_values.choose) if flag_values.choose else {},
        )
        if all(stopping.criteria(each) for each in plan.first_configs(study).values()):
            study = study._replace(metric="epochs")
    plan.require_name(study.name)
    return study._replace(
        pairs=flag_values.seeds or study.pairs, margin=flag_values.margin or study.margin
    )


@contextlib.contextmanager
def locked(workdir: Path):
    """Makes the study's folder, and holds it. Raises UserError."""
    if (workdir / "config.json").exists():
        raise UserError(f"{workdir} holds a run; name another folder for the study.")
    try:
        make_folder(workdir)
        held = filelock.FileLock(workdir / ".lock", timeout=0).acquire()
    except filelock.Timeout:
        raise LockedError(f"{workdir} is in use by another scripts.ablate.") from None
    except OSError as error:
        raise StorageError(f"cannot write in {workdir}: {error.strerror or error}") from error
    with held:
        yield


def runs_of(study: Study, workdir: Path, kept: Path) -> list[Run]:
    """Those by which values are chosen, as long as one is not; then those of the arms. Before
    either, the runs from which they start, as long as one is not finished.
    """
    choice = conduct.choice_made(study, workdir, kept)
    open_choices = [arm for arm in study.choose if arm not in choice]
    if open_choices:
        found = [
            run
            for arm in open_choices
            for run in plan.choice_runs(study, arm, plan.choices(study, arm), workdir)
        ]
    else:
        found = conduct.final_runs(study, workdir, choice)[1]
    todo = [run for run in found if outcome.read(study, run, kept) is None]
    return outcome.unfinished_pretraining(study, todo, workdir) or found


def print_status(study: Study, workdir: Path, kept: Path) -> None:
    """A row for each seed, a column for each arm: the result, or how far a run is."""
    cells: dict[int, dict[str, str]] = {}
    for run in runs_of(study, workdir, kept):
        common = (*study.arms.get(run.arm, ()), *study.pretraining)
        own = [flag for flag in run.flags if flag not in common and "--init_from" not in flag]
        column = " ".join([run.arm, *own])
        cells.setdefault(run.seed, {})[column] = conduct.state(study, run, kept)
    columns = list(next(iter(cells.values())))
    title = f"{study.name}: {printable(study.question)}"
    table = Table("seed", *map(escape, columns), title=escape(title))
    for seed, states in cells.items():
        table.add_row(str(seed), *map(escape, states.values()))
    Console().print(table)


def print_commands(study: Study, workdir: Path, kept: Path, flag_values: flags.FlagValues) -> None:
    """The commands of the runs that are not finished, or a Slurm array over them."""
    commands = [
        f"NPROC={flag_values.threads} {shlex.join(['python', *plan.command(study, run)[1:]])}"
        for run in runs_of(study, workdir, kept)
        if outcome.read(study, run, kept) is None
    ]
    if not flag_values.sbatch:
        print("\n".join(commands))
        return
    if not commands:
        raise UserError("all runs are finished: rerun this command without --sbatch.")
    lines = "\n".join(f"  {shlex.quote(command)}" for command in commands)
    try:
        write_atomic(
            Path(flag_values.sbatch).expanduser(),
            f"#!/bin/bash\n#SBATCH --job-name={study.name}\n#SBATCH --array=0-{len(commands) - 1}"
            f"\n#SBATCH --cpus-per-task={flag_values.threads}\ncommands=(\n{lines}\n)\n"
            'eval "${commands[$SLURM_ARRAY_TASK_ID]}"\n',
        )
    except OSError as error:
        raise StorageError(f"cannot write {flag_values.sbatch}: {error.strerror}") from error
    print(
        f"{flag_values.sbatch} written: {len(commands)} jobs. Then rerun this command without it."
    )


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """The arguments that are flags of this program, and those of the trainings."""
    define_flags(known := flags.FlagValues())
    booleans = {"help", "h"} | {name for name in known if known[name].boolean}
    own, training, rest = [], [], iter(argv[1:])
    for argument in rest:
        name, equals, _ = argument.lstrip("-").partition("=")
        is_switch = name in booleans or name.removeprefix("no") in booleans
        is_own = name in known or is_switch
        target = own if is_own else training
        target.append(argument)
        if is_own and not equals and not is_switch:
            target.extend(itertools.islice(rest, 1))
    return own, training


if __name__ == "__main__":
    own, training = split(sys.argv)
    command_line = [sys.argv[0], *own, "--", *training]
    sys.exit(launch.run_tool(define_flags, main, command_line, ("[TRAINING FLAG ...]",)))
