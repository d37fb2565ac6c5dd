"""Which runs a study has, how they are conducted, and what is refused."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.errors import LockedError, NonFiniteError, StorageError, UserError
from common.workdir import to_text
from scripts import ablate
from scripts.report import results
from scripts.studies import conduct, outcome, plan, runner
from scripts.studies.catalog import STUDIES
from scripts.studies.compare import Measured
from scripts.studies.plan import Study

TINY = (
    *("--preset=deck", "--dataset=mnist10k", "--train_size=256", "--validation_size=100"),
    *("--num_epochs=2", "--batch_size=64"),
)
OWN = Study("own", "Which?", TINY, {"tanh": (), "relu": ("--activation=relu",)}, pairs=2)


# ---- which runs


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_named_studies_are_sound(study):
    """Settings that go together, arms that differ, and pairs enough for a verdict."""
    from scripts.studies.compare import pairs_for

    plan.require_sound(study)
    plan.require_name(study.name)
    assert study.pairs >= pairs_for(len(study.arms) - 1)
    assert study.claim and study.source and study.hours > 0


def test_seeds_pair_the_arms_and_begin_at_10(tmp_path):
    runs = plan.runs(OWN, tmp_path, {})
    assert [(run.arm, run.seed) for run in runs] == [
        (arm, seed) for seed in (10, 11) for arm in ("tanh", "relu")
    ]
    assert len({run.workdir for run in runs}) == 4
    relu = plan.config(OWN, runs[1])
    assert (relu.activation, relu.seed, relu.train_size) == ("relu", 10, 256)


def test_a_chosen_value_reaches_its_arm_alone(tmp_path):
    study = OWN._replace(choose={"relu": "learning_rate=0.1,0.2"})
    rates = [
        plan.config(study, run).learning_rate for run in plan.runs(study, tmp_path, {"relu": "0.2"})
    ]
    assert rates == [0.1, 0.2, 0.1, 0.2]
    candidates = plan.choice_runs(study, "relu", ["0.1", "0.2"], tmp_path)
    assert {run.seed for run in candidates} == {0, 1, 2} and len(candidates) == 6


@pytest.mark.parametrize(
    ("texts", "arms"),
    [
        (["activation=tanh,relu"], {"tanh": ["activation=tanh"], "relu": ["activation=relu"]}),
        (
            ["lrn=none;lrn=across,lrn_alpha=2e-5"],
            {"none": ["lrn=none"], "across_2e_5": ["lrn=across", "lrn_alpha=2e-5"]},
        ),
        (
            ["c3=table,dense", "seed=1"],
            {"table_1": ["c3=table", "seed=1"], "dense_1": ["c3=dense", "seed=1"]},
        ),
    ],
)
def test_vary(texts, arms):
    assert plan.vary(texts) == {
        arm: tuple(f"--{assignment}" for assignment in own) for arm, own in arms.items()
    }


def test_several_vary_make_a_grid():
    arms = plan.vary(["c3=table,dense", "activation=tanh,relu,silu"])
    assert len(arms) == 6 and arms["dense_silu"] == ("--c3=dense", "--activation=silu")


def test_flags_of_the_trainings_are_told_from_those_of_the_program():
    own, training = ablate.split(
        [
            "ablate",
            "--seeds",
            "6",
            "--c3=dense",
            "--nostatus",
            "--noreshuffle",
            "--vary=a=1,2",
            "-h",
        ]
    )
    assert own == ["--seeds", "6", "--nostatus", "--vary=a=1,2", "-h"]
    assert training == ["--c3=dense", "--noreshuffle"]


# ---- what is refused before anything runs


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(arms={"tanh": ()}), "one arm"),
        (dict(arms={"tanh": (), "same": ("--activation=tanh",)}), "tanh and same"),
        (dict(arms={"tanh": (), "sdlm": ("--optimizer=sdlm",)}), "arm sdlm: --optimizer=sdlm"),
        (dict(arms={"tanh": (), "other": ("--no_such=1",)}), "no_such"),
        (dict(choose={"tanh": "learning_rate"}), "--choose=learning_rate"),
        (dict(choose={"tanh": "no_such=1,2"}), "no_such"),
        (dict(choose={"tanh": "learning_rate=0.1"}), "--choose"),
        (dict(choose={"relu": "activation=tanh,silu"}), "--choose=activation"),
        (dict(arms={"tanh": (), "kept": ("--keep=2",)}), "tanh and kept"),
        (dict(arms={"tanh": (), "other": ("--dataset=mnist",)}), "mnist"),
        (dict(metric="epochs"), "--stop_at_"),
        (dict(arms={"tanh": (), "relu": ("--activation=relu", "--seed=3")}), "--seed=3"),
        (
            dict(added=("--learning_rate=0.07",), choose={"tanh": "learning_rate=0.1,0.2"}),
            "--choose=learning_rate=0.1,0.2",
        ),
        (
            dict(
                added=("--validation_size=0", "--track=test"), choose={"tanh": "momentum=0.8,0.9"}
            ),
            "--validation_size",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(changes, named):
    with pytest.raises(UserError) as caught:
        plan.require_sound(OWN._replace(**changes))
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_added_flags_are_for_the_arms_and_not_for_the_pretraining():
    study = STUDIES["transfer_lenet"]._replace(added=("--train_per_class=20",))
    runs = plan.runs(study, Path(), {})[:2]
    (pretrained,) = plan.pretraining_runs(study, runs, Path())
    sizes = [plan.config(study, run).train_per_class for run in (*runs, pretrained)]
    assert sizes == [20, 20, 0]


@pytest.mark.parametrize("text", ["activation", "activation=tanh,tanh", "=a,b", "a=1;b", "a;b=2"])
def test_vary_that_means_nothing_is_refused(text):
    with pytest.raises(UserError, match="--vary="):
        plan.vary([text])


def program(*flags, cwd) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "scripts.ablate", *flags]
    root = str(Path(__file__).parents[1])
    return subprocess.run(
        command, cwd=cwd, env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True
    )


@pytest.mark.commands
@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--study=no_such", "--workdir=w"], "--study=no_such"),
        (["--study=c3_table"], "--workdir"),
        (["--study=c3_table", "--workdir= "], "--workdir is required"),
        (["--workdir=w", "--model=lenet"], "--vary"),
        (["--workdir=w", "--model=lenet", "--vary=no_such=1,2"], "no_such"),
        (["--workdir=w", "--status"], "w holds no study"),
        (["--workdir=w", "--study=c3_table", "--vary=c3=table"], "--vary"),
    ],
)
def test_wrong_use_is_one_line_and_makes_nothing(tmp_path, flags, named):
    done = program(*flags, cwd=tmp_path)
    assert done.returncode == 2 and named in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# ---- what is conducted


AD_HOC = ("--model=lenet", *TINY, "--vary=activation=tanh,relu", "--seeds=2")


@pytest.fixture(scope="module")
def conducted(tmp_path_factory):
    """A study of four runs, stopped in the middle and run again: its folder and both outcomes."""
    cwd = tmp_path_factory.mktemp("studies")
    command = [sys.executable, "-m", "scripts.ablate", *AD_HOC, "--workdir=act", "--jobs=2"]
    root = str(Path(__file__).parents[1])
    options = dict(cwd=cwd, env=os.environ | {"PYTHONPATH": root}, text=True)
    with subprocess.Popen(command, stdout=-1, stderr=-1, **options) as process:
        first = cwd / "act" / "tanh" / "seed10"
        while not (first / "metrics.jsonl").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
        stopped = process.returncode, errors
    done = subprocess.run(command, capture_output=True, **options)
    return cwd, stopped, done


@pytest.mark.slow
def test_ctrl_c_saves_every_run_and_a_rerun_goes_on(conducted):
    cwd, (code, errors), done = conducted
    assert code == 130 and "Traceback" not in errors
    assert done.returncode == 0, done.stderr
    study = json.loads((cwd / "act" / "study.json").read_text())
    assert study["missing"] == [] and study["planned_pairs"] == 2
    (comparison,) = study["comparisons"]
    assert comparison["arms"] == ["tanh", "relu"] and comparison["pairs"] == 2
    assert comparison["verdict"] == "undecided"  # two pairs decide nothing
    for arm in ("tanh", "relu"):
        for seed in (10, 11):
            result = json.loads((cwd / "act" / arm / f"seed{seed}" / "result.json").read_text())
            assert study["arms_measured"][arm]["values"][str(seed)] == result["test_error_pct"]
    for name in ("figure.svg", "figure.png"):
        assert (cwd / "act" / name).stat().st_size > 5000
    assert comparison["sentence"] in " ".join(done.stdout.split())


@pytest.mark.slow
def test_a_third_call_trains_nothing_and_other_arms_are_another_study(conducted):
    cwd, _, _ = conducted
    before = {path: path.stat().st_mtime_ns for path in cwd.glob("act/*/*/result.json")}
    again = program(*AD_HOC, "--workdir=act", "--jobs=2", cwd=cwd)
    assert again.returncode == 0 and len(before) == 4
    assert before == {path: path.stat().st_mtime_ns for path in before}
    status = program("--workdir=act", "--status", cwd=cwd)
    assert status.returncode == 0 and "tanh" in status.stdout
    other = program(*AD_HOC, "--workdir=act", "--learning_rate=0.2", cwd=cwd)
    assert other.returncode == 2 and "learning_rate" in other.stderr
    more = program(*AD_HOC[:-1], "--seeds=3", "--workdir=act", cwd=cwd)
    assert more.returncode == 0
    study = json.loads((cwd / "act" / "study.json").read_text())
    assert study["exploratory"] and study["planned_pairs"] == 2


@pytest.mark.slow
def test_jobs_change_no_bit(conducted, tmp_path):
    cwd, _, _ = conducted
    done = program(*AD_HOC, "--seeds=1", "--workdir=one", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for arm in ("tanh", "relu"):
        one, two = (
            json.loads((folder / arm / "seed10" / "result.json").read_text())["state_sha256"]
            for folder in (tmp_path / "one", cwd / "act")
        )
        assert one == two


@pytest.mark.slow
def test_runs_whose_records_are_in_results_are_not_trained_again(conducted, tmp_path):
    """Whatever study they were made for."""
    cwd, _, _ = conducted
    study = plan.from_json(cwd / "act" / "study.json")._replace(name="first", pairs=1)
    for run in plan.runs(study, cwd / "act", {}):
        record = results.read(run.workdir) | {"study": "first", "arm": run.arm}
        path = outcome.record_file(study, run, tmp_path / "kept")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(to_text(record))
    path.rename(tmp_path / "kept" / path.name)  # as scripts.report --add puts it
    options = ("--seeds=1", "--name=second", "--workdir=again", "--results=kept")
    done = program(*AD_HOC, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 runs" in done.stdout and not list(tmp_path.glob("again/*/seed*"))
    commands = program(*AD_HOC, *options, "--seeds=2", "--print_commands", cwd=tmp_path)
    lines = commands.stdout.splitlines()
    assert len(lines) == 2 and all("--seed=11" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "chosen", "more"),
    [
        ("learning_rate=0.01,0.03,0.1", "0.03", None),
        ("learning_rate=0.01,0.03,0.1", "0.1", "0.33"),
        ("learning_rate=0.01,0.03,0.1", "0.01", "0.0033"),
        ("learning_rate=1,3,10", "1", "0.33"),
        ("momentum=0.5,0.9", "0.9", None),  # 1.62 is no momentum
        ("batch_size=1,4", "1", None),  # 0 would be next
        ("batch_size=32,64", "64", "128"),
        ("activation=tanh,silu", "silu", None),
    ],
)
def test_a_grid_grows_beyond_its_edge(text, chosen, more):
    study = OWN._replace(choose={"tanh": text})
    values = plan.choices(study, "tanh")
    at_edge = plan.is_edge(values, chosen)
    assert (plan.beyond(study, "tanh", values, chosen) if at_edge else None) == more
    assert at_edge == (chosen not in ("0.03", "silu"))


def test_a_damaged_record_is_named_and_not_trained_again(tmp_path):
    run = plan.runs(OWN, tmp_path, {})[0]
    damaged = tmp_path / "results" / "other" / f"tanh_seed{run.seed}.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text('{"network": ')
    with pytest.raises(UserError, match=str(damaged)):
        outcome.read(OWN, run, tmp_path / "results")


def finished_run(run, config, network="lenet"):
    """A folder like that of a finished run."""
    run.workdir.mkdir(parents=True)
    (run.workdir / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    result = {"command": f"python -m {network}.train", "seed": run.seed, "num_steps": 1}
    (run.workdir / "result.json").write_text(json.dumps(result))


def test_a_run_with_other_settings_in_its_folder_is_not_taken(tmp_path):
    run = plan.runs(OWN, tmp_path, {})[0]
    assert outcome.read(OWN, run, tmp_path / "results") is None
    finished_run(run, plan.config(OWN, run))
    assert outcome.read(OWN, run, tmp_path / "results")["seed"] == run.seed
    other = OWN._replace(added=("--learning_rate=0.5",))
    with pytest.raises(UserError, match=str(run.workdir)):
        outcome.read(other, run, tmp_path / "results")


def test_a_study_is_that_of_its_folder(tmp_path):
    (tmp_path / "study.json").write_text(to_text(plan.to_json(OWN)))
    old = plan.from_json(tmp_path / "study.json")
    plan.require_same(OWN, old, tmp_path)
    plan.require_same(OWN._replace(pairs=9), old, tmp_path)
    swapped = OWN._replace(arms=dict(reversed(OWN.arms.items())))
    for other in (swapped, OWN._replace(added=("--seed=1",)), OWN._replace(base=())):
        with pytest.raises(UserError, match="another"):
            plan.require_same(other, old, tmp_path)
    (tmp_path / "study.json").write_text('{"name": ')
    with pytest.raises(UserError, match=r"study\.json"):
        plan.from_json(tmp_path / "study.json")


@pytest.mark.parametrize(
    "changed",
    [
        *(dict(pairs="6"), dict(pairs=10**9), dict(arms={}), dict(arms={"../up": []})),
        *(dict(model="torch"), dict(choose={"x": "y"}), dict(name="\x1b]0;title"), dict(base=[1])),
        *(dict(arms={"\x1b[31m": [], "b": []}), dict(pairs=2.5), dict(choice_seeds="a")),
    ],
)
def test_a_study_that_nobody_planned_is_refused(tmp_path, changed):
    (tmp_path / "study.json").write_text(json.dumps(plan.to_json(OWN) | changed))
    with pytest.raises(UserError, match="holds no"):
        plan.from_json(tmp_path / "study.json")


def test_an_arm_that_reached_the_error_nowhere_is_left_out(tmp_path):
    three = OWN._replace(arms={**OWN.arms, "silu": ("--activation=silu",)})
    choice = {"silu": {"reached": False, "chosen": "0.1"}}
    study, runs = conduct.final_runs(three, tmp_path, choice)
    assert list(study.arms) == ["tanh", "relu"] and {run.arm for run in runs} == {"tanh", "relu"}
    with pytest.raises(UserError, match="tanh"):
        conduct.final_runs(three, tmp_path, {"tanh": {"reached": False, "chosen": "0.1"}})


@pytest.mark.parametrize(("commit", "digest"), [("1-dirty", "b"), ("1", "a")])
def test_a_run_that_cannot_be_kept_or_compared_stops_no_other(
    tmp_path, monkeypatch, commit, digest
):
    def train(study, todo, *, jobs, threads, finished):
        for run in todo:
            finished_run(run, plan.config(study, run))
            result = json.loads((run.workdir / "result.json").read_text())
            result |= dict(test_error_pct=1.0, train_error_pct=0.5, wall_time_s=1.0, commit=commit)
            result |= dict(machine={"processor": "p", "accelerator": "a"})
            result |= dict(versions=dict.fromkeys(("python", "jax", "flax", "optax"), "1"))
            result |= dict(training_set={"sha256": digest if run.seed == 11 else "b"})
            (run.workdir / "result.json").write_text(json.dumps(result))
            said.append(finished(run))
        return {}

    said = []
    (tmp_path / "w").mkdir()
    monkeypatch.setattr(runner, "train", train)
    monkeypatch.setattr(conduct.figure, "draw", lambda *_: None)
    with pytest.raises(UserError) as caught:
        conduct.conduct(OWN, tmp_path / "w", tmp_path / "kept", jobs=1, threads=1, add=True)
    study = json.loads((tmp_path / "w" / "study.json").read_text())
    assert len(said) == 4 and len(study["comparisons"]) == 1
    if commit == "1":
        assert "other data" in said[-1] and "other data" in str(caught.value)
        assert len(study["missing"]) == 2 and len(list(tmp_path.glob("kept/own/*.json"))) == 4
    else:
        assert "not kept" in said[0] and "1-dirty" in str(caught.value)
        assert not (tmp_path / "kept").exists()


def test_a_study_of_the_same_name_in_results_is_not_its_past(tmp_path, monkeypatch):
    """Its seeds were not changed after the start; and what is there is not replaced."""
    file = tmp_path / "kept" / "own" / "study.json"
    file.parent.mkdir(parents=True)
    other = plan.to_json(OWN._replace(base=("--preset=paper",))) | {"planned_pairs": 9}
    file.write_text(to_text(other | {"threads": 2}))
    failure = runner.Failure(75, "no disk")
    monkeypatch.setattr(runner, "train", lambda _, todo, **options: dict.fromkeys(todo, failure))
    options = dict(jobs=1, threads=1)
    with pytest.raises(UserError, match="missing"):
        conduct.conduct(OWN, tmp_path, tmp_path / "kept", add=False, **options)
    study = json.loads((tmp_path / "study.json").read_text())
    assert study["planned_pairs"] == OWN.pairs and not study["exploratory"]
    with pytest.raises(UserError, match=f"{file}.*--name"):
        conduct.conduct(OWN, tmp_path, tmp_path / "kept", add=True, **options)


def test_runs_on_other_images_of_the_same_settings_are_told_from_those_of_other_settings():
    settings = [
        {"train_split": "train[:50%]"},
        {"train_split": "train"},
        {},
        {"train_split": "train"},
    ]
    records = {
        plan.Run("arm", seed, (), Path()): {"settings": each, "training_set": {"sha256": digest}}
        for seed, (each, digest) in enumerate(zip(settings, "abbc", strict=True))
    }
    assert [run.seed for run in outcome.with_other_data(records)] == [3]


# ---- the choice of a setting


def trainer(errors: dict[str, float | None], exit_code: int = NonFiniteError.exit_code):
    """What `conduct.choose` calls to train: each run ends with the validation error of its rate;
    None: it fails.
    """
    trained = set()

    def train(todo, metric, keep):
        assert metric == "validation_error_pct" and not keep
        assert trained.isdisjoint(todo)  # what diverged would train again
        trained.update(todo)
        failed = {}
        for run in todo:
            error = errors[run.flags[-1].removeprefix("--learning_rate=")]
            if error is None:
                failed[run] = runner.Failure(exit_code, "the loss is nan")
            elif not run.workdir.exists():
                finished_run(run, plan.config(CHOOSING, run))
                result = json.loads((run.workdir / "result.json").read_text())
                result["validation_error_pct"] = error + run.seed  # 0 to 2
                (run.workdir / "result.json").write_text(json.dumps(result))
        return failed

    return train


CHOOSING = OWN._replace(choose={"tanh": "learning_rate=0.1,0.2,0.4"})


@pytest.mark.parametrize(
    ("errors", "chosen", "tried", "at_edge"),
    [
        ({"0.1": 5.0, "0.2": 4.0, "0.4": 6.0}, "0.2", 3, False),
        ({"0.1": 5.0, "0.2": 4.0, "0.4": 3.0, "0.8": 7.0}, "0.4", 4, False),
        ({"0.1": 5.0, "0.2": 4.0, "0.4": 3.0, "0.8": 2.0, "1.6": 1.0}, "1.6", 5, True),
        ({"0.05": None, "0.1": 5.0, "0.2": None, "0.4": None}, "0.1", 4, False),
    ],
)
def test_the_value_with_the_least_mean_error_is_chosen(tmp_path, errors, chosen, tried, at_edge):
    choice = conduct.choose(CHOOSING, "tanh", tmp_path, tmp_path / "kept", trainer(errors))
    assert choice["chosen"] == chosen and choice["at_edge"] == at_edge
    assert len(choice["values"]) == tried and choice["reached"]
    for value, numbers in choice["values"].items():
        error = errors[value]
        assert numbers == [None if error is None else error + seed for seed in (0, 1, 2)]


def test_an_arm_that_reaches_the_error_nowhere_is_tried_with_its_own_values_alone(
    tmp_path, monkeypatch
):
    def train(todo, metric, keep):
        for run in todo:
            finished_run(run, plan.config(CHOOSING, run))
        return {}

    monkeypatch.setattr(outcome, "measured", lambda record, metric: Measured(120, censored=True))
    choice = conduct.choose(CHOOSING, "tanh", tmp_path, tmp_path / "kept", train)
    assert list(choice["values"]) == ["0.1", "0.2", "0.4"]
    assert not choice["reached"] and not choice["at_edge"]


def test_a_choice_needs_every_run(tmp_path):
    with pytest.raises(UserError, match=r"learning_rate=0\.2.*75"):
        errors = {"0.1": 5.0, "0.2": None, "0.4": 6.0}
        conduct.choose(CHOOSING, "tanh", tmp_path, tmp_path, trainer(errors, exit_code=75))


# ---- what a person reads, and a cluster


def test_the_state_of_a_run(tmp_path):
    run = plan.runs(OWN, tmp_path, {})[0]
    assert conduct.state(OWN, run, tmp_path / "kept") == "waiting"
    run.workdir.mkdir(parents=True)
    record = {"step": 4, "epoch": 1.0, "split": "train", "loss": 0.5, "error_pct": 20.0}
    (run.workdir / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    assert conduct.state(OWN, run, tmp_path / "kept") == "epoch 1.0 of 2"


@pytest.mark.slow
def test_an_array_job_has_every_run(tmp_path):
    flags = (*AD_HOC, "--workdir=act", "--sbatch=job.sh")
    done = program(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    script = (tmp_path / "job.sh").read_text()
    assert "--array=0-3" in script and list(tmp_path.iterdir()) == [tmp_path / "job.sh"]
    shown = script.replace("eval ", "echo ")
    for number, (arm, seed) in enumerate([("tanh", 10), ("relu", 10), ("tanh", 11), ("relu", 11)]):
        one = os.environ | {"SLURM_ARRAY_TASK_ID": str(number)}
        out = subprocess.run(["bash", "-c", shown], env=one, capture_output=True, text=True).stdout
        assert f"--seed={seed}" in out and f"act/{arm}/seed{seed}" in out
    done = program(*AD_HOC, "--workdir=act", "--sbatch=absent/job.sh", cwd=tmp_path)
    assert done.returncode == StorageError.exit_code and "absent/job.sh" in done.stderr


def test_a_study_has_its_folder_to_itself(tmp_path):
    folder = tmp_path / "study"
    with ablate.locked(folder), pytest.raises(LockedError, match="study"), ablate.locked(folder):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"), ablate.locked(tmp_path / "file"):
        pass


@pytest.mark.slow
def test_a_run_that_fails_stops_no_other_and_is_named(tmp_path):
    options = ("--vary=learning_rate=0.1,1e30", "--seeds=1", "--name=rates", "--workdir=rates")
    done = program("--model=lenet", *TINY, "--activation=relu", *options, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"exit code {NonFiniteError.exit_code}" in done.stderr.splitlines()[-1]
    study = json.loads((tmp_path / "rates" / "study.json").read_text())
    (missing,) = study["missing"]
    assert "1e30" in missing or "1e+30" in missing
    assert [numbers["n"] for numbers in study["arms_measured"].values()] == [1]
