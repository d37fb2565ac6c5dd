"""What a study is: trainings that differ in the settings of their arms, and in their seeds."""

import dataclasses
import itertools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from absl import flags

import common.flags
from common import stopping
from common.errors import UserError
from scripts.report.results import NAME, NETWORKS, read_json

FIRST_SEED = 10  # 0 to 2 are for choices
CHOICE_SEEDS = (0, 1, 2)
MAX_PAIRS = 1000
NONE: Mapping[str, str] = MappingProxyType({})
PRETRAINED = "{pretrained}"  # in an arm's flags: the folder of its seed's pretraining


class Study(NamedTuple):
    """A question to a network, and the runs that answer it.

    Attributes:
      name: lower-case letters, digits, _ and dots.
      question: what the arms are compared for.
      base: the flags of every run, before those of the arm.
      arms: name -> its flags. The others are compared with the first.
      model: lenet or alexnet.
      models: arm -> the same, where it is another one.
      added: more flags of every run, after those of the arm.
      metric: test_error_pct; or epochs, until a run with --stop_at_..._error_pct ends.
      margin: the least difference that matters: points of error, or a share of the epochs.
      pairs: seeds for each arm, from FIRST_SEED on.
      overfitting: whether test minus training errors are compared, too.
      choose: arm -> NAME=VALUE,VALUE: a setting of that arm whose value is chosen before.
      choice_seeds: runs of each value for that, of CHOICE_SEEDS.
      claim, source: the statement that is tested, and where it stands.
      others: what others measured, with sources.
      hours: how long it takes on two cores.
      pretraining: flags, after those of the base, of a run for each seed that is trained first; an
        arm with --init_from={pretrained} starts from it. () if none has.
    """

    name: str
    question: str
    base: tuple[str, ...]
    arms: dict[str, tuple[str, ...]]
    model: str = "lenet"
    models: Mapping[str, str] = NONE
    added: tuple[str, ...] = ()
    metric: str = "test_error_pct"
    margin: float = 0.1
    overfitting: bool = False
    pairs: int = 6
    choose: Mapping[str, str] = NONE
    choice_seeds: int = len(CHOICE_SEEDS)
    claim: str = ""
    source: str = ""
    others: str = ""
    hours: float = 0.0
    pretraining: tuple[str, ...] = ()

    @property
    def ratio(self) -> bool:
        """Whether arms are compared by the ratio of their numbers, not the difference."""
        return self.metric == "epochs"

    def network(self, arm: str) -> str:
        """lenet or alexnet."""
        return self.models.get(arm, self.model)


class Run(NamedTuple):
    """One training of a study: its arm ("pretrained" of what arms start from), seed, the flags that
    it has beside the study's base, and its folder.
    """

    arm: str
    seed: int
    flags: tuple[str, ...]
    workdir: Path

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"


def runs(study: Study, workdir: Path, chosen: dict[str, str]) -> list[Run]:
    """The runs of all arms, seed by seed, so that pairs are complete as early as possible.

    Args:
      chosen: arm -> the value of its setting in `study.choose`.
    """
    seeds = range(FIRST_SEED, FIRST_SEED + study.pairs)
    own = {arm: (f"--{_setting(study, arm)}={value}",) for arm, value in chosen.items()}
    return [
        Run(
            arm,
            seed,
            (*_flags(study, arm, seed, workdir), *own.get(arm, ())),
            workdir / arm / f"seed{seed}",
        )
        for seed in seeds
        for arm in study.arms
    ]


def choice_runs(study: Study, arm: str, values: Iterable[str], workdir: Path) -> list[Run]:
    """The runs by which a value is chosen for an arm."""
    return [
        Run(
            arm,
            seed,
            (*_flags(study, arm, seed, workdir), f"--{_setting(study, arm)}={value}"),
            workdir / "choice" / arm / value / f"seed{seed}",
        )
        for seed in CHOICE_SEEDS[: study.choice_seeds]
        for value in values
    ]


def pretraining_runs(study: Study, todo: Iterable[Run], workdir: Path) -> list[Run]:
    """Those that must be finished before the runs `todo`."""
    seeds = {run.seed for run in todo if _starts_from_pretraining(study, run.arm)}
    return [
        Run("pretrained", seed, study.pretraining, _pretrained(workdir, seed))
        for seed in sorted(seeds)
    ]


def _pretrained(workdir: Path, seed: int) -> Path:
    return workdir / "pretrained" / f"seed{seed}"


def _starts_from_pretraining(study: Study, arm: str) -> bool:
    return any(PRETRAINED in flag for flag in study.arms[arm])


def _flags(study: Study, arm: str, seed: int, workdir: Path) -> list[str]:
    """An arm's own flags, for one seed."""
    folder = str(_pretrained(workdir, seed))
    return [flag.replace(PRETRAINED, folder) for flag in study.arms[arm]]


def choices(study: Study, arm: str) -> list[str]:
    """The values among which to choose, as the study has them."""
    return study.choose[arm].partition("=")[2].split(",")


def _setting(study: Study, arm: str) -> str:
    return study.choose[arm].partition("=")[0]


def _settings(study: Study, run: Run) -> tuple[str, ...]:
    """The flags of a run, the strongest last. Added ones are for the arms, not the pretraining."""
    if run.arm == "pretrained":
        return (*study.base, *study.added, *run.flags)
    return (*study.base, *run.flags, *study.added)


def config(study: Study, run: Run):
    """The settings of a run. Raises UserError, which names the arm."""
    values, config_class = flags.FlagValues(), NETWORKS[study.network(run.arm)][0]
    common.flags.define(config_class, values)
    arguments = [*_settings(study, run), f"--seed={run.seed}"]
    try:
        if words := common.flags.parse(values, ["study", *arguments], config_class):
            raise UserError(f"unexpected argument {words[0]!r}: every setting is --name=value")
        return common.flags.read(config_class, values)
    except UserError as error:
        raise UserError(f"arm {run.arm}: {error}") from error


def command(study: Study, run: Run) -> list[str]:
    """The training of a run, which keeps its newest checkpoint alone."""
    settings = (*_settings(study, run), f"--seed={run.seed}", "--keep=1")
    module = f"{study.network(run.arm)}.train"
    return [sys.executable, "-m", module, *settings, f"--workdir={run.workdir}"]


def first_configs(study: Study) -> dict[str, Any]:
    """Arm -> the settings of its first seed."""
    found = runs(study._replace(pairs=1), Path(), {})
    return {run.arm: config(study, run) for run in found}


def require_sound(study: Study) -> None:
    """Raises UserError unless there are two arms or more that can be compared: settings that go
    together and that differ, the same data set, and the same criterion to wait for.
    """
    if len(study.arms) < 2:
        raise UserError(f"{study.name} has one arm, {next(iter(study.arms))}: nothing to compare.")
    configs = first_configs(study)
    starting = {arm for arm in study.arms if _starts_from_pretraining(study, arm)}
    if bool(starting) != bool(study.pretraining) or "pretrained" in study.arms:
        raise UserError(f"--init_from={PRETRAINED} goes with pretraining, which no arm is called")
    for run in pretraining_runs(study, runs(study._replace(pairs=1), Path(), {}), Path()):
        config(study, run)
    for (a, one), (b, other) in itertools.combinations(configs.items(), 2):
        alike = study.network(a) == study.network(b)
        if alike and not common.flags.changes(dataclasses.asdict(one), other):
            raise UserError(f"arms {a} and {b} do not differ in what changes a result.")
        ours, theirs = (" ".join((each.dataset, each.classes)).strip() for each in (one, other))
        if ours != theirs:
            raise UserError(f"arms {a} and {b} have other data: {ours}, {theirs}.")
    own = itertools.chain(*study.arms.values(), (f"--{text}" for text in study.choose.values()))
    if given := [setting for setting in own if re.match(r"--(seed|keep)=", setting)]:
        raise UserError(f"{given[0]}: the study sets the seed of its runs, and what they keep")
    waits = {(*stopping.criteria(each).items(), each.num_epochs) for each in configs.values()}
    if study.ratio and (len(waits) > 1 or any(len(each) == 1 for each in waits)):
        raise UserError(
            "epochs are compared where all arms have the same --stop_at_..._error_pct and "
            "--num_epochs"
        )
    for arm, text in study.choose.items():
        if not re.fullmatch(r"\w+=[^,]+(,[^,]+)+", text):
            raise UserError(f"--choose={text} must be a setting and its values: NAME=0.1,0.3")
        if any(flag.startswith(f"--{_setting(study, arm)}=") for flag in study.arms[arm]):
            raise UserError(f"--choose={text}: arm {arm} has a value of its own for it")
        if len(set(choices(study, arm))) < len(choices(study, arm)):
            raise UserError(f"--choose={text} names a value twice")
        if not study.ratio and not configs[arm].validation_size:
            raise UserError(f"--choose needs --validation_size: arm {arm} validates on nothing")
        one_seed = choice_runs(study._replace(choice_seeds=1), arm, choices(study, arm), Path())
        tried = [config(study, run) for run in one_seed]
        for one, other in itertools.combinations(tried, 2):
            if not common.flags.changes(dataclasses.asdict(one), other):
                raise UserError(f"--choose={text}: another flag wins, or no result changes")


def is_edge(values: Sequence[str], chosen: str) -> bool:
    """Whether a value is the least or the largest of a grid of positive numbers."""
    try:
        numbers = sorted(values, key=float)
    except ValueError:
        return False
    return float(numbers[0]) > 0 and chosen in (numbers[0], numbers[-1])


def beyond(study: Study, arm: str, values: Sequence[str], chosen: str) -> str | None:
    """The value one step beyond the edge of a grid; None where the grid has it, or where the
    network does not take it.
    """
    numbers = sorted(values, key=float)
    neighbor = numbers[1] if chosen == numbers[0] else numbers[-2]
    number = float(chosen) ** 2 / float(neighbor)
    first, *_ = choice_runs(study, arm, values, Path())
    whole = isinstance(dataclasses.asdict(config(study, first))[_setting(study, arm)], int)
    value = str(round(number)) if whole else f"{number:.2g}"
    if float(value) <= 0:
        return None
    try:
        for run in choice_runs(study, arm, [value], Path()):
            config(study, run)
    except UserError:
        return None
    return None if value in values else value


# ---- --vary


def vary(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The arms of --vary: several make a grid.

    'activation=tanh,relu' is an arm for each value; 'lrn=none;lrn=across,lrn_alpha=2e-5' is an arm
    for each part between semicolons, of one or more settings. Raises UserError.
    """
    factors = [_factor(text) for text in texts]
    arms = {}
    for parts in itertools.product(*(factor.items() for factor in factors)):
        name = "_".join(name for name, _ in parts)
        if name in arms:
            raise UserError(f"--vary makes two arms called {name}.")
        arms[name] = tuple(flag for _, its_flags in parts for flag in its_flags)
    return arms


def _factor(text: str) -> dict[str, tuple[str, ...]]:
    name, equals, values = text.partition("=")
    if ";" in text:
        parts = [part.split(",") for part in text.split(";")]
    else:
        parts = [[f"{name}={value}"] for value in values.split(",")]
    arms = {}
    for part in parts:
        if not equals or not all(re.fullmatch(r"\w+=.*", assignment) for assignment in part):
            raise UserError(
                f"--vary={text} must be NAME=VALUE,VALUE or NAME=VALUE,NAME=VALUE;NAME=VALUE"
            )
        values = [assignment.partition("=")[2] for assignment in part]
        arm = re.sub(r"[^a-z0-9_.]+", "_", "_".join(values).lower()).strip("_.") or "empty"
        if arm in arms:
            raise UserError(f"--vary={text} names {arm} twice")
        arms[arm] = tuple(f"--{assignment}" for assignment in part)
    return arms


# ---- study.json


def to_json(study: Study) -> dict:
    """The study's definition as JSON has it."""
    mappings = {"models": dict(study.models), "choose": dict(study.choose)}
    return study._asdict() | mappings


def from_json(path: Path) -> Study:
    """The study whose definition a study.json holds. Raises UserError."""
    given = read_json(path)
    try:
        fields = {name: given[name] for name in Study._fields if name in given}
        listed = ("base", "added", "pretraining")  # the last one is younger than some files
        fields |= {name: tuple(fields[name]) for name in listed if name in fields}
        arms = {arm: tuple(own) for arm, own in fields["arms"].items()}
        study = Study(**fields | {"arms": arms})
        if not _is_sane(study):
            raise ValueError("odd values")
        return study
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path.parent} holds no study.json of a study.") from error


def _is_sane(study: Study) -> bool:
    """Whether a study that anybody may have written has names that can be folders, networks that
    there are, and no more pairs than can be trained. May raise TypeError.
    """
    flags = (*study.base, *study.added, *study.pretraining, *itertools.chain(*study.arms.values()))
    return (
        all(NAME.fullmatch(name) for name in (study.name, study.metric))
        and all(Path(arm).name == arm and arm.isprintable() for arm in study.arms)
        and {study.model, *study.models.values()} <= NETWORKS.keys()
        and {*study.models, *study.choose} <= study.arms.keys() != set()
        and type(study.pairs) is type(study.choice_seeds) is int
        and 1 <= study.pairs <= MAX_PAIRS
        and all(isinstance(text, str) for text in (study.question, *flags, *study.choose.values()))
    )


def difference(study: Study, old: Study) -> str:
    """In which runs or arms `old` is another study; empty if it is the same."""
    for name in ("base", "arms", "added", "pretraining", "model", "models", "choose", "metric"):
        before, now = old._asdict()[name], study._asdict()[name]
        if before != now or list(before) != list(now):  # the order of arms says which is the first
            return f"another {name}: {before}, not {now}"
    return ""


def require_same(study: Study, old: Study, where: Path) -> None:
    """Raises UserError if `old`, which stands in the folder `where`, is another study."""
    if words := difference(study, old):
        raise UserError(f"{where} holds the study {old.name} with {words}. Use another --workdir.")


def require_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise UserError(f"--name={name} must be lower-case letters, digits, _ and dots.")
