"""What a study found: the results of its runs, compared in pairs of one seed."""

import json
from collections.abc import Mapping
from pathlib import Path

import common.flags
from common.errors import UserError
from common.workdir import write_atomic
from scripts.report import results
from scripts.report.verdicts import MEASURES
from scripts.studies import compare, plan
from scripts.studies.compare import Measured
from scripts.studies.plan import Run, Study

UNITS = {"test_error_pct": "points", "validation_error_pct": "points", "epochs": "epochs"}


# ---- the record of a run


def record_file(study: Study, run: Run, folder: Path) -> Path:
    """Where results/ keeps a run."""
    return folder / study.name / f"{run.arm}_seed{run.seed}.json"


def read(study: Study, run: Run, folder: Path) -> dict | None:
    """The record of a finished run: from its folder, or from that of a run of any study in results/
    with the same settings; else None.
    """
    try:
        return results.read(run.workdir)
    except UserError:
        wanted, network = plan.config(study, run), study.network(run.arm)
    others = sorted(folder.glob(f"*/*_seed{run.seed}.json"))
    for path in (record_file(study, run, folder), *others):
        try:
            found = json.loads(path.read_text())
            settings = dict(found["settings"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if found["network"] == network and not common.flags.changes(settings, wanted):
            return found
    return None


def keep(study: Study, run: Run, folder: Path) -> None:
    """Writes the record of a finished run into results/. Raises UserError."""
    path = record_file(study, run, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, results.to_text(results.record(run.workdir, study.name, run.arm)))


def measured(record: dict, metric: str) -> Measured:
    """What a study measures of a run. Epochs that did not lead to the error are censored."""
    if metric != "epochs":
        return Measured(record[metric])
    epochs = record["stopped_after_epochs"]
    limit = record["settings"]["num_epochs"]
    return Measured(limit, censored=True) if epochs is None else Measured(epochs)


# ---- the choice of a setting


def choose(study: Study, values: list[str], found: Mapping[str, list[Measured]]) -> str:
    """The value with the least mean: of the validation error, or of the epochs."""

    def mean(value):
        return sum(each.value for each in found[value]) / len(found[value])

    return min(values, key=mean)


def beyond(values: list[str], chosen: str) -> str | None:
    """A value one step beyond the edge of the grid if the chosen one lies there; else None."""
    numbers = sorted(values, key=float)
    if len(numbers) < 2 or chosen not in (numbers[0], numbers[-1]):
        return None
    neighbor = numbers[1] if chosen == numbers[0] else numbers[-2]
    return f"{float(chosen) ** 2 / float(neighbor):.2g}"


# ---- the study


def analyze(study: Study, records: Mapping[Run, dict], *, exploratory: bool) -> dict:
    """The arms' numbers and the comparisons of each with the first, as study.json has them."""
    values: dict[str, dict[int, Measured]] = {arm: {} for arm in study.arms}
    for run, record in records.items():
        values[run.arm][run.seed] = measured(record, study.metric)
    arms = {
        arm: compare.summarize(list(found.values()), ratio=study.ratio)
        | {"values": {str(seed): each.value for seed, each in found.items()}}
        for arm, found in values.items()
        if found
    }
    first, *others = study.arms
    comparisons = [
        {"arms": [first, arm]} | compare.compare(values[first], values[arm], ratio=study.ratio)
        for arm in others
    ]
    adjusted = compare.holm([comparison["p"] for comparison in comparisons])
    for comparison, p in zip(comparisons, adjusted, strict=True):
        comparison["p_adjusted"] = p
        comparison |= compare.judge(
            comparison,
            names=tuple(comparison["arms"]),
            unit=UNITS[study.metric],
            metric=MEASURES[study.metric],
            margin=study.margin,
            num_comparisons=len(others),
            exploratory=exploratory,
        )
    return {
        "arms_measured": arms,
        "comparisons": comparisons,
        "exploratory": exploratory,
        "commits": sorted({str(record["commit"]) for record in records.values()}),
        "machines": sorted({_machine(record) for record in records.values()}),
        "hours_trained": round(sum(r["wall_time_s"] for r in records.values()) / 3600, 2),
    }


def _machine(record: dict) -> str:
    machine, versions = record["machine"], record["versions"]
    names = ("python", "jax", "flax", "optax")
    packages = ", ".join(f"{name} {versions[name]}" for name in names)
    return f"{machine['processor']}, {machine['accelerator']}; {packages}"


def with_other_data(records: Mapping[Run, dict]) -> list[Run]:
    """Runs whose training set is not that of the first run with as many examples of that name."""
    first, others = {}, []
    for run, record in records.items():
        place = record["dataset"], record["num_train_examples"]
        if first.setdefault(place, record["training_set"]) != record["training_set"]:
            others.append(run)
    return others
