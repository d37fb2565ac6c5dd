"""Conducts a study: chooses, trains, compares. study.json is written after each step."""

import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common import provenance
from common.errors import UserError
from common.workdir import read_metrics, require_same_config, write_atomic
from scripts.report import results, verdicts
from scripts.studies import compare, figure, outcome, plan, runner
from scripts.studies.plan import Run, Study

MAX_STEPS_BEYOND = 2  # of the grid of a choice


def conduct(study: Study, workdir: Path, kept: Path, *, jobs: int, threads: int, add: bool) -> None:
    """Trains what is not finished, and writes the comparison into `workdir`.

    Args:
      kept: the folder of the records that count as finished runs.
      add: keep each run, and the study once it is whole, there.

    Raises:
      Interrupted: a signal came; all runs have saved their state.
      UserError: the folder holds another study, or runs are missing at the end.
    """
    file = workdir / "study.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    if before:
        require_same_study(study, file)
    planned = before.get("planned_pairs", study.pairs)
    needed = compare.pairs_for(len(study.arms) - 1)
    if study.pairs < needed:
        print(f"{study.pairs} seeds decide nothing: a verdict on this study needs {needed}.")
    contents = plan.to_json(study) | {
        "command": provenance.command(),
        "threads": threads,
        "planned_pairs": planned,
        "choice": before.get("choice") or kept_choice(study, kept),
    }

    def train(todo: list[Run], metric: str) -> dict[Run, str]:
        def finished(run: Run) -> str:
            if add and metric == study.metric:
                outcome.keep(study, run, kept)
            value, censored = outcome.measured(results.read(run.workdir), metric)
            return f"{'more than ' * censored}{value:g}{'%' * metric.endswith('pct')}"

        for run in todo:
            require_same_config(plan.config(study, run), run.workdir)
        return runner.train(study, todo, jobs=jobs, threads=threads, finished=finished)

    write_atomic(file, results.to_text(contents))
    for arm in study.choose:
        if "chosen" not in contents["choice"].get(arm, {}):
            contents["choice"][arm] = choose(study, arm, workdir, kept, train)
            write_atomic(file, results.to_text(contents))
    study = reached(study, contents["choice"])
    todo = plan.runs(study, workdir, choice_made(file))
    failed = train([run for run in todo if outcome.read(study, run, kept) is None], study.metric)
    records, missing = whole(study, todo, failed, kept)
    contents |= outcome.analyze(study, records, exploratory=study.pairs > planned)
    contents["missing"] = missing
    write_atomic(file, results.to_text(contents))
    print_study(study, contents)
    figure.draw(study, records, workdir)
    if add and not contents["missing"]:
        for name in ("study.json", "figure.svg", "figure.png"):
            write_atomic(kept / study.name / name, (workdir / name).read_bytes())
    if contents["missing"]:
        raise UserError(f"missing: {'; '.join(contents['missing'])}")


def require_same_study(study: Study, file: Path) -> None:
    """Raises UserError if the folder's study has other arms or settings."""
    old = plan.from_json(file)
    for name in ("base", "arms", "model", "models", "choose", "metric"):
        before, now = old._asdict()[name], study._asdict()[name]
        if before != now:
            raise UserError(
                f"{file.parent} holds the study {old.name} with another {name}: {before}, not "
                f"{now}. Use another --workdir."
            )


def whole(
    study: Study, todo: list[Run], failed: dict[Run, str], kept: Path
) -> tuple[dict[Run, dict], list[str]]:
    """(the records of the runs that are whole, what is missing and why)."""
    read = {run: outcome.read(study, run, kept) for run in todo}
    records = {run: record for run, record in read.items() if record is not None}
    missing = [f"{run} ({failed.get(run, 'not finished')})" for run in todo if run not in records]
    for run in outcome.with_other_data(records):
        del records[run]
        missing.append(f"{run} (trained on other data than the rest)")
    return records, missing


# ---- the choice of a setting


def choose(study: Study, arm: str, workdir: Path, kept: Path, train: Callable) -> dict:
    """Trains an arm with each value, and takes the one with the least mean. If that is the first or
    last of the grid, the grid grows beyond it, at most MAX_STEPS_BEYOND times.

    Returns {"setting", "metric", "values": {value: numbers}, "chosen", "at_edge", "reached"}, the
    last False where no run got to the error that the study waits for.
    """
    metric = "validation_error_pct" if study.metric == "test_error_pct" else study.metric
    values = plan.choices(study, arm)
    for _ in range(MAX_STEPS_BEYOND + 1):
        todo = plan.choice_runs(study, arm, values, workdir)
        failed = train([run for run in todo if outcome.read(study, run, kept) is None], metric)
        if failed:
            run, why = next(iter(failed.items()))
            raise UserError(f"no choice for {arm}: {run} with {run.flags[-1]}: {why}")
        found = {value: [] for value in values}
        for run in todo:
            value = run.flags[-1].partition("=")[2]
            found[value].append(outcome.measured(outcome.read(study, run, kept), metric))
        chosen = outcome.choose(values, found)
        if (more := outcome.beyond(values, chosen)) is None:
            break
        values = [*values, more]
    return {
        "setting": study.choose[arm].partition("=")[0],
        "metric": metric,
        "values": {value: [each.value for each in numbers] for value, numbers in found.items()},
        "chosen": chosen,
        "at_edge": more is not None,
        "reached": not all(each.censored for numbers in found.values() for each in numbers),
    }


def reached(study: Study, choice: dict) -> Study:
    """The study without the arms that got to the error in no run of their choice."""
    arms = {arm: own for arm, own in study.arms.items() if choice.get(arm, {}).get("reached", True)}
    if len(arms) < 2:
        raise UserError(f"{study.name}: at most one arm got there in its limit of epochs.")
    return study._replace(arms=arms)


def choice_made(file: Path) -> dict[str, str]:
    """Arm -> the chosen value, as study.json has it."""
    try:
        made = json.loads(file.read_text())["choice"]
        return {arm: choice["chosen"] for arm, choice in made.items()}
    except (OSError, ValueError, KeyError):
        return {}


def kept_choice(study: Study, kept: Path) -> dict:
    """The choice of the same study in results/; {} if there is none."""
    file = kept / study.name / "study.json"
    try:
        require_same_study(study, file)
        return json.loads(file.read_text())["choice"]
    except (UserError, KeyError):
        return {}


# ---- what a person reads


def state(study: Study, run: Run, kept: Path) -> str:
    """A run's result, or how far it is."""
    if record := outcome.read(study, run, kept):
        value, censored = outcome.measured(record, study.metric)
        return f"{'>' * censored}{value:g}"
    if lines := read_metrics(run.workdir):
        return f"epoch {lines[-1]['epoch']:.1f} of {plan.config(study, run).num_epochs}"
    return runner.last_line(runner.log_file(run)) if runner.log_file(run).exists() else "waiting"


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
    sentences = [comparison["sentence"] for comparison in contents["comparisons"]]
    for sentence in sentences + verdicts.not_reached(contents):
        console.print(sentence, highlight=False, markup=False)
    if len(contents["commits"]) > 1:
        console.print(f"Runs of {len(contents['commits'])} commits.", highlight=False)
