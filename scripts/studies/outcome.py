"""What a study found: the results of its runs, compared in pairs of one seed."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import common.flags
from common.errors import UserError
from common.workdir import to_text, write_atomic
from scripts.report import results
from scripts.report.studies import MEASURES, packages_line
from scripts.studies import compare, plan
from scripts.studies.compare import Measured
from scripts.studies.plan import Run, Study

GAP = "test minus training error"

# ---- the record of a run


def record_file(study: Study, run: Run, folder: Path) -> Path:
    """Where results/ keeps a run."""
    return folder / study.name / f"{run.arm}_seed{run.seed}.json"


def read(study: Study, run: Run, folder: Path) -> dict | None:
    """The record of a finished run: from its folder, or from results/, where a run of any study has
    the same settings, or one of this study if it starts from another run, whose settings they do
    not tell; else None. Raises UserError if its folder holds a run with other settings, or if a
    record is damaged.
    """
    own = _own_of(study, run)
    if own is not None:
        return own
    start = plan.config(study, run).init_from
    own_record = record_file(study, run, folder)
    for path in [own_record] if start else sorted(folder.rglob(f"*_seed{run.seed}.json")):
        found = results.read_json(path)
        if start and "settings" in found and kept_of(study, path.parent / "study.json"):
            found["settings"]["init_from"] = start  # the study may have been in another folder
        if is_of(found, study, run):
            return found
    return None


def kept_of(study: Study, file: Path) -> dict:
    """What a file holds of this very study; nothing where it is of another one with that name."""
    found = results.read_json(file)
    return found if found and not plan.difference(study, plan.from_json(file)) else {}


def read_all(study: Study, runs: Iterable[Run], folder: Path) -> dict[Run, dict]:
    """The records of those runs that are finished. Raises UserError as `read` does."""
    records = {run: read(study, run, folder) for run in runs}
    return {run: record for run, record in records.items() if record is not None}


def unfinished_pretraining(study: Study, todo: Iterable[Run], workdir: Path) -> list[Run]:
    """The runs from which those in `todo` start, without those whose folder has a result. Raises
    UserError as `read` does.
    """
    first = plan.pretraining_runs(study, todo, workdir)
    return [run for run in first if _own_of(study, run) is None]


def _own_of(study: Study, run: Run) -> dict | None:
    own = _own(run)
    if own is not None and not is_of(own, study, run):
        raise UserError(f"{run.workdir} holds a run with other settings; use another --workdir")
    return own


def _own(run: Run) -> dict | None:
    try:
        return results.read(run.workdir)
    except UserError:  # not finished
        return None


def is_of(record: dict, study: Study, run: Run) -> bool:
    """Whether a record is of this run's network, settings and seed, whichever study made it."""
    if record.get("network") != study.network(run.arm) or "settings" not in record:
        return False
    return not common.flags.changes(record["settings"], plan.config(study, run))


def keep(study: Study, run: Run, folder: Path) -> None:
    """Writes the record of a run that was finished here into results/, unless it is there. Raises
    UserError if another one is, or if it may not be kept.
    """
    if _own(run) is None:
        return
    path = record_file(study, run, folder)
    text = to_text(results.record(run.workdir, study.name, run.arm))
    if path.exists() and path.read_text() != text:
        raise UserError(f"{path} is the record of another run; remove it, or give another --name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)


def measured(record: dict, metric: str) -> Measured:
    """What a study measures of a run. Epochs that did not lead to the error are censored."""
    if metric != "epochs":
        return Measured(record[metric])
    epochs = record["stopped_after_epochs"]
    limit = record["settings"]["num_epochs"]
    return Measured(limit, censored=True) if epochs is None else Measured(epochs)


# ---- the study


def analyze(
    study: Study, records: Mapping[Run, dict], *, missing: int = 0, exploratory: bool = False
) -> dict:
    """The arms' numbers and the comparisons of each with the first, as study.json has them.

    Args:
      missing: runs that are planned and not there; the sentences say how many.
      exploratory: the study was changed after its start, as by more seeds.
    """
    values: dict[str, dict[int, Measured]] = {arm: {} for arm in study.arms}
    for run, record in records.items():
        values[run.arm][run.seed] = measured(record, study.metric)
    arms = {
        arm: compare.summarize(list(found.values()), ratio=study.ratio)
        | {"values": {str(seed): each.value for seed, each in found.items()}}
        | _beside([record for run, record in records.items() if run.arm == arm])
        for arm, found in values.items()
        if found
    }
    options = dict(metric=MEASURES[study.metric], ratio=study.ratio, exploratory=exploratory)
    comparisons = judged(values, study, **options)
    if study.overfitting:
        gaps = {arm: _gaps(records, arm) for arm in study.arms}
        gaps = judged(gaps, study, metric=GAP, ratio=False, exploratory=False)
        for comparison, gap in zip(comparisons, gaps, strict=True):
            sentence = f"{gap['sentence']}; {comparison['sentence']}"
            comparison |= {"gap": gap, "sentence": sentence}
    for comparison in comparisons:
        if missing:
            comparison["sentence"] += f"; {missing} runs are missing"
    return {
        "arms_measured": arms,
        "comparisons": comparisons,
        "exploratory": exploratory,
        "commits": sorted({str(record["commit"]) for record in records.values()}),
        "machines": sorted({_machine(record) for record in records.values()}),
        "hours_trained": round(sum(r["wall_time_s"] for r in records.values()) / 3600, 2),
        "studies": sorted({record.get("study", study.name) for record in records.values()}),
    }


def judged(
    values: Mapping[str, Mapping[int, Measured]],
    study: Study,
    *,
    metric: str,
    ratio: bool,
    exploratory: bool,
) -> list[dict]:
    """The comparison of each arm of a study with its first.

    Args:
      values: arm -> seed -> what is compared, of which `metric` is the name.
    """
    first, *others = study.arms
    comparisons = [
        {"arms": [first, arm]} | compare.compare(values[first], values[arm], ratio=ratio)
        for arm in others
    ]
    adjusted = compare.holm([comparison["p"] for comparison in comparisons])
    return [
        compare.judge(
            comparison | {"p_adjusted": p},
            names=tuple(comparison["arms"]),
            metric=metric,
            unit="epochs" if ratio else "points",
            margin=study.margin,
            num_comparisons=len(others),
            exploratory=exploratory,
        )
        for comparison, p in zip(comparisons, adjusted, strict=True)
    ]


def _gaps(records: Mapping[Run, dict], arm: str) -> dict[int, Measured]:
    """Seed -> how much worse a run is on test images than on those learned from."""
    return {
        run.seed: Measured(record["test_error_pct"] - record["train_error_pct"])
        for run, record in records.items()
        if run.arm == arm
    }


def _beside(records: Sequence[dict]) -> dict:
    """What a reader needs beside an arm's measure: the mean training error at the end, and how many
    runs are no better than chance.
    """
    return {
        "train_error_pct": statistics.mean(record["train_error_pct"] for record in records),
        "at_chance": sum(record.get("is_chance", False) for record in records),
    }


def _machine(record: dict) -> str:
    machine, versions = record["machine"], record["versions"]
    packages = packages_line(versions, "python", "jax", "flax", "optax")
    return f"{machine['processor']}, {machine['accelerator']}; {packages}"


def with_other_data(records: Mapping[Run, dict]) -> list[Run]:
    """Runs whose training set is not that of the first run with the same settings of data."""
    first, others = {}, []
    for run, record in records.items():
        settings = record["settings"]
        names = ("dataset", "train_size", "validation_size", "classes", "train_per_class")
        place = tuple(settings.get(name) for name in names)  # older ones lack the last two
        place += (settings.get("train_split", "train"),)  # LeNet-5's
        before, now = first.setdefault(place, record["training_set"]), record["training_set"]
        if any(before[name] != now[name] for name in before.keys() & now.keys()):
            others.append(run)
    return others
