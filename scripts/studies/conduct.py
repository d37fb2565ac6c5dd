"""Conducts a study: chooses, trains, compares. study.json is written after each step."""

import math
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common import provenance
from common.errors import NonFiniteError, UserError
from common.workdir import read_metrics, require_same_config, to_text, write_atomic
from scripts.report import results, verdicts
from scripts.report.studies import MEASURES
from scripts.studies import compare, figure, outcome, plan, runner
from scripts.studies.compare import Measured
from scripts.studies.plan import Run, Study

MAX_STEPS_BEYOND = 2  # of the grid of a choice


def conduct(
    study: Study, workdir: Path, results_dir: Path, *, jobs: int, threads: int, add: bool
) -> None:
    """Trains what is not finished, and writes the comparison into `workdir`.

    Args:
      results_dir: the folder of the records that count as finished runs.
      add: keep each run, the choice, and the study once it is whole, there.

    Raises:
      Interrupted: a signal came; all runs have saved their state.
      UserError: the folder holds another study, or runs are missing at the end.
    """
    file, kept = workdir / "study.json", results_dir / study.name
    before = results.read_json(file)
    if before:
        plan.require_same(study, plan.from_json(file), workdir)
    for other in (kept / "study.json", kept / "choice.json") if add else ():
        if other.exists() and not outcome.kept_of(study, other):
            raise UserError(f"{other} is of another study: give another --name.")
    started = before or outcome.kept_of(study, kept / "study.json")
    if (with_threads := started.get("threads", threads)) != threads:
        raise UserError(f"{study.name} was started with --threads={with_threads}: other bits.")
    contents = plan.to_json(study) | {
        "command": provenance.command(),
        "threads": threads,
        "planned_pairs": started.get("planned_pairs", study.pairs),
        "planned_margin": started.get("planned_margin", study.margin),
        "exploratory": started.get("exploratory", False),  # once so, always
        "choice": choice_made(study, workdir, results_dir),
    }
    planned = contents["planned_pairs"], contents["planned_margin"]
    needed = compare.pairs_for(len(study.arms) - 1)
    if study.pairs < needed:
        print(f"{study.pairs} seeds decide nothing: a verdict on this study needs {needed}.")

    def write() -> None:
        write_atomic(file, to_text(contents))

    def train(todo: list[Run], metric: str, keep: bool) -> dict[Run, runner.Failure]:
        known = outcome.read_all(study, todo, results_dir)

        def finished(run: Run) -> str:
            known[run] = results.read(run.workdir)
            value, censored = outcome.measured(known[run], metric)
            unit = "%" * metric.endswith("pct")
            words = f"{'more than ' * censored}{value:g}{unit} {MEASURES[metric]}"
            if run in outcome.with_other_data(known):
                words += "; on other data than the runs before it"
            try:
                if keep:
                    outcome.keep(study, run, results_dir)
            except UserError as error:  # the others go on; it is raised at the end
                words += f"; not kept: {error}"
            return words

        def test_error(run: Run) -> str:
            return f"{results.read(run.workdir)['test_error_pct']:g}% test error"

        if given := [run for run in known if not run.workdir.exists()]:
            print(
                f"{study.name}: {len(given)} of {len(todo)} runs are records of {results_dir}, not "
                "trained here; --results=FOLDER with another folder trains them."
            )
        todo = [run for run in todo if run not in known]
        first = outcome.unfinished_pretraining(study, todo, workdir)
        for run in [*first, *todo]:
            require_same_config(plan.config(study, run), run.workdir)
        options = dict(jobs=jobs, threads=threads)
        if first and (failed := runner.train(study, first, **options, finished=test_error)):
            words = "; ".join(f"{run} ({failure})" for run, failure in failed.items())
            raise UserError(f"missing: {words}")
        return runner.train(study, todo, **options, finished=finished)

    write()
    for arm in study.choose:
        if arm not in contents["choice"]:
            contents["choice"][arm] = choose(study, arm, workdir, results_dir, train)
            write()
        if add:  # after each arm: the next may take hours
            kept.mkdir(parents=True, exist_ok=True)
            choice = plan.to_json(study) | {"choice": contents["choice"]}
            write_atomic(kept / "choice.json", to_text(choice))
    study, todo = final_runs(study, workdir, contents["choice"])
    failed = train(todo, study.metric, keep=add)
    records, missing = complete_records(study, todo, failed, results_dir)
    exploratory = contents["exploratory"] or (study.pairs, study.margin) != planned
    contents |= outcome.analyze(study, records, missing=len(missing), exploratory=exploratory)
    contents["missing"] = missing
    write()
    print_study(study, contents)
    if records:
        figure.draw(study, records, workdir)
    problems = [f"missing: {'; '.join(missing)}"] * bool(missing)
    for run in todo if add else ():  # those too that were finished before --add was given
        try:
            outcome.keep(study, run, results_dir)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))
    if add:
        for name in ("study.json", "figure.svg", "figure.png"):
            write_atomic(kept / name, (workdir / name).read_bytes())


def final_runs(study: Study, workdir: Path, choice: dict) -> tuple[Study, list[Run]]:
    """The study without the arms that reached the error in no run of their choice, and its runs.
    Raises UserError if there is nothing left to compare with.
    """
    reached = {
        arm: own for arm, own in study.arms.items() if choice.get(arm, {}).get("reached", True)
    }
    first = next(iter(study.arms))
    if len(reached) < 2 or first not in reached:
        did_not = "did not reach the error at all" if study.ratio else "diverged with every value"
        raise UserError(f"{study.name}: {first} or all others {did_not}.")
    chosen = {arm: each["chosen"] for arm, each in choice.items() if arm in reached}
    study = study._replace(arms=reached)
    return study, plan.runs(study, workdir, chosen)


def complete_records(
    study: Study, todo: list[Run], failed: dict[Run, runner.Failure], results_dir: Path
) -> tuple[dict[Run, dict], list[str]]:
    """(the records of the runs that are whole, what is missing and why)."""
    records = outcome.read_all(study, todo, results_dir)
    missing = [f"{run} ({failed.get(run, 'not finished')})" for run in todo if run not in records]
    for run in outcome.with_other_data(records):
        del records[run]
        missing.append(f"{run} (trained on other data than the rest)")
    return records, missing


# ---- the choice of a setting


def choose(study: Study, arm: str, workdir: Path, results_dir: Path, train: Callable) -> dict:
    """Trains an arm with each value, and takes the one with the least mean. If that is the first or
    last of the grid, the grid grows beyond it, at most MAX_STEPS_BEYOND times.

    Returns {"setting", "metric", "values": {value: numbers}, "chosen", "at_edge", "reached"}; a
    number is null where training diverged, and "reached" is False where no run got to the error
    that the study waits for.
    """
    metric = study.metric if study.ratio else "validation_error_pct"
    values = new = plan.choices(study, arm)
    found: dict[str, list[Measured | None]] = {}
    for _ in range(MAX_STEPS_BEYOND + 1):
        todo = plan.choice_runs(study, arm, new, workdir)
        failed = train(todo, metric, keep=False)
        for run, failure in failed.items():
            if failure.exit_code != NonFiniteError.exit_code:
                raise UserError(f"no choice for {arm}: {run} with {run.flags[-1]}: {failure}")
        found |= {value: [] for value in new}
        for run in todo:
            record = None if run in failed else outcome.read(study, run, results_dir)
            measured = record and outcome.measured(record, metric)
            found[run.flags[-1].partition("=")[2]].append(measured)
        chosen = min(values, key=lambda value: _mean(found[value]))
        # Where no run got to the error within its epochs, no end of the grid is the better one.
        ends = [end for of_one in found.values() for end in of_one]
        nowhere = all(end and end.censored for end in ends)
        at_edge = not nowhere and plan.is_edge(values, chosen)
        more = plan.beyond(study, arm, values, chosen) if at_edge else None
        if more is None:
            break
        values, new = [*values, more], [more]
    numbers = {
        value: [each and each.value for each in measured] for value, measured in found.items()
    }
    return {
        "setting": study.choose[arm].partition("=")[0],
        "metric": metric,
        "values": numbers,
        "chosen": chosen,
        "at_edge": at_edge,
        "reached": any(end and not end.censored for end in ends),
    }


def _mean(measured: list[Measured | None]) -> float:
    """Infinite where one diverged."""
    return sum(each.value if each else math.inf for each in measured) / len(measured)


def choice_made(study: Study, workdir: Path, results_dir: Path) -> dict[str, dict]:
    """Arm -> its choice, as the study's folder or results/ has it for the same study."""
    for file in (workdir / "study.json", results_dir / study.name / "choice.json"):
        if choice := outcome.kept_of(study, file).get("choice"):
            return choice
    return {}


# ---- what a person reads


def state(study: Study, run: Run, results_dir: Path) -> str:
    """A run's result, or how far it is."""
    metric = study.metric if study.ratio or run.seed >= plan.FIRST_SEED else "validation_error_pct"
    if record := outcome.read(study, run, results_dir):
        value, censored = outcome.measured(record, metric)
        return f"{'>' * censored}{value:g}"
    if lines := read_metrics(run.workdir):
        return f"epoch {lines[-1]['epoch']:.1f} of {plan.config(study, run).num_epochs}"
    return "waiting"


def print_study(study: Study, contents: dict) -> None:
    """The table of the arms and a sentence for each comparison."""
    head, *rows = verdicts.rows(contents)
    table = Table(title=f"{study.name}: {study.question}", title_justify="left")
    for column in head:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    for sentence in verdicts.sentences(contents):
        console.print(sentence, highlight=False, markup=False)
    if len(contents["commits"]) > 1:
        console.print(f"Runs of {len(contents['commits'])} commits.", highlight=False)
