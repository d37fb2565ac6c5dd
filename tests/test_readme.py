"""The READMEs are true: their numbers come from results/, their commands, flags and links exist.

And what results/ holds, and how a run gets there.
"""

import dataclasses
import json
import re
import shutil
import statistics
from pathlib import Path

import pytest
from absl.flags import FlagValues

import alexnet.config
import lenet.config
from common import launch
from common.errors import UserError
from common.processes import Processes
from scripts import (
    ablate,
    compare_with_torch,
    evaluate,
    predict,
    prepare_data,
    strings,
    summarize,
)
from scripts.benchmark import __main__ as benchmark
from scripts.benchmark import suites
from scripts.claims import __main__ as claims
from scripts.convert import __main__ as convert
from scripts.faults import __main__ as faults
from scripts.inspect import __main__ as inspect
from scripts.report import __main__ as report
from scripts.report import results, studies, verdicts

ROOT = Path(__file__).parents[1]
FOUND = results.load(report.RESULTS)
LINKED_PAGES = (
    *report.PAGES,
    *("lenet/digits/README.md", "lenet/EXERCISES.md", "alexnet/EXERCISES.md", "CHANGELOG.md"),
)
CONTRACT = {
    "network", "preset", "study", "arm", "test_error_pct", "num_test_examples", "num_steps",
    "state_sha256", "images_per_s", "wall_time_s", "command", "commit", "seed", "dataset",
    "versions", "machine",
}  # fmt: skip
OF_TEST_SH = {"quick", "ci", "all"}


# ---- the pages


@pytest.mark.parametrize(
    "page",
    [  # the ledger is computed from the networks
        pytest.param(page, marks=pytest.mark.commands if page == "results/README.md" else ())
        for page in report.PAGES
    ],
)
def test_tables_are_those_of_results(page):
    text = (ROOT / page).read_text()
    assert report.fill(text, FOUND) == text


def test_every_table_stands_on_a_page():
    text = "".join((ROOT / page).read_text() for page in report.PAGES)
    assert set(re.findall(r"<!-- report: (\w+) -->", text)) == set(report.TABLES)


def test_the_front_page_stays_short():
    text = (ROOT / "README.md").read_bytes()
    assert len(text) <= 12_000 and len(text.splitlines()) <= 180


def test_pictures_stay_small():
    pictures = [path for path in report.RESULTS.iterdir() if path.suffix in (".svg", ".png")]
    assert len(pictures) >= 3 and all(path.stat().st_size < 150_000 for path in pictures)


def test_every_flag_named_exists():
    known = {"workdir", "flagfile", "preset", "help", *Processes._fields, *OF_TEST_SH}
    for config in (alexnet.config.Config, lenet.config.Config):
        known |= {field.name for field in dataclasses.fields(config)}
    tools = (ablate, benchmark, claims, compare_with_torch, convert, evaluate, faults, predict)
    for tool in (*tools, prepare_data, inspect, report, strings, summarize):
        tool.define_flags(declared := FlagValues())
        known |= set(declared)
    for page in LINKED_PAGES:
        text = re.sub(r"--xla\w+|#SBATCH.*|gcloud .*", "", (ROOT / page).read_text())
        for flag in re.findall(r"--([a-z]\w+)", text):
            assert flag in known or flag.removeprefix("no") in known, f"{page} names --{flag}"


def test_every_link_and_file_named_exists():
    for page in LINKED_PAGES:
        text = (ROOT / page).read_text()
        links = re.findall(r"\]\((?!http)([^)]+)\)", text)
        links += re.findall(r'(?:src|srcset)="([^"]+)"', text)
        for link in links:
            target, _, heading = link.partition("#")
            path = (ROOT / page).parent.joinpath(target).resolve() if target else ROOT / page
            assert path.exists(), f"{page} links to {target}"
            assert not heading or heading in anchors(path.read_text()), f"{page} links to {link}"
        for script in re.findall(r"(?:bash |--flagfile=)((?:scripts|lenet|alexnet)/[\w/.]+)", text):
            assert (ROOT / script).exists(), f"{page} names {script}"
        trainings = r"python -m (lenet|alexnet)\.train[^`\n]*? --preset=(\w+)"
        for network, preset in re.findall(trainings, text):
            path = ROOT / network / "presets" / f"{preset}.flags"
            assert path.exists(), f"{page} names {preset}"
        for module in re.findall(r"python -m\s+((?:scripts|lenet|alexnet)\.\w+)", text):
            path = ROOT / module.replace(".", "/")
            is_module = path.with_suffix(".py").exists() or (path / "__main__.py").exists()
            assert is_module, f"{page} names {module}"


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# ---- what the tables say


def test_the_headline_is_the_mean_of_the_runs():
    """Computed a second time, from the confusion matrices alone."""
    table = (ROOT / "README.md").read_text()
    for arm in ("paper", "paper_distortions", "deck", "modern"):
        paths = list(report.RESULTS.glob(f"lenet_presets_{arm}_seed*.json"))
        matrices = [json.loads(path.read_text())["confusion_matrix"] for path in paths]
        shares = [
            1 - sum(matrix[k][k] for k in range(10)) / sum(map(sum, matrix)) for matrix in matrices
        ]
        title = studies.STUDIES["lenet", "presets"].arms[arm].title
        row = next(line for line in table.splitlines() if line.startswith(f"| LeNet-5 {title}"))
        assert f"| {len(paths)} |" in row and f"**{100 * statistics.mean(shares):.3f}%**" in row


def test_the_recipes_show_what_came_out():
    text = (ROOT / "README.md").read_text()
    runs = {run["arm"]: run for run in FOUND.runs if run["study"] == "recipes"}
    lines = re.findall(r"complete: test error (\S+)%.* (\S+) steps; runs/(\w+)/", text)
    assert {name for *_, name in lines} == {"first", "stopped"}
    for error, steps, name in lines:
        result = runs[name]
        assert (error, steps) == (f"{result['test_error_pct']:.2f}", f"{result['num_steps']:,}")
    hashes = re.findall(r"runs/(\w+)/result.json:  .state_sha256.: .([0-9a-f]{64})", text)
    assert [name for name, _ in hashes] == ["first", "stopped", "one", "eight"]
    assert all(runs[name]["state_sha256"] == state for name, state in hashes)
    assert hashes[0][1] == hashes[1][1] and hashes[2][1] == hashes[3][1]


def test_the_recipe_of_a_comparison_shows_what_came_out():
    text = (ROOT / "README.md").read_text()
    (study,) = (study for study in FOUND.studies if study["name"] == "c3_table_changed")
    assert study["command"].removesuffix(" --add") in text.replace(" \\\n   ", "")
    cells = {tuple(cell.strip() for cell in row.split("│")[1:4]) for row in text.splitlines()}
    assert {tuple(row[:3]) for row in verdicts.rows(study)[1:]} <= cells
    for comparison in study["comparisons"]:
        assert comparison["sentence"] in " ".join(text.split())


def test_a_missed_target_is_marked():
    arm = studies.Arm("", target=(0, 0.8))
    assert "missed" in studies.target_cell([{"x": 0.7}, {"x": 0.92}], "x", arm)
    assert "missed" not in studies.target_cell([{"x": 0.7}, {"x": 0.9}], "x", arm)


def test_killed_runs_ended_in_the_same_state():
    place = ("arm", "network", "study", "seed")
    states = {tuple(run[key] for key in place): run["state_sha256"] for run in FOUND.runs}
    killed = [(arm, *rest) for arm, *rest in states if arm.endswith("_killed")]
    assert len(killed) == 4
    for arm, *rest in killed:
        assert states[arm, *rest] == states[arm.removesuffix("_killed"), *rest]


def test_full_size_networks_overfit():
    errors = [run["train_error_pct"] for run in FOUND.runs if run["study"] == "overfit"]
    assert errors == [0.0, 0.0]


def test_a_study_without_titles_has_a_table(tmp_path):
    run = next(run for run in FOUND.runs if run["study"] == "presets" and run["arm"] == "paper")
    found = results.Results(
        [run | {"study": "new", "arm": "new_arm", "seed": seed} for seed in (3, 4)], {}
    )
    table = studies.all_studies(found)
    assert "LeNet-5: new" in table and "| `new_arm` | 60,000 | 2 (3 to 4) |" in table


# ---- what results/ holds


@pytest.mark.parametrize(
    "run", FOUND.runs, ids=lambda run: f"{run['network']}_{run['study']}_{run['arm']}_{run['seed']}"
)
def test_runs_keep_the_contract(run):
    place = f"{run['network']}_{run['study']}_{run['arm']}_seed{run['seed']}"
    assert json.loads((report.RESULTS / f"{place}.json").read_text()) == run
    assert run.keys() >= CONTRACT
    assert re.fullmatch(r"[0-9a-f]{40}", run["commit"])
    assert f"python -m {run['network']}.train" in run["command"]
    assert f"--seed={run['seed']}" in run["command"] or run["seed"] == 0
    presets = ROOT / run["network"] / "presets"
    assert run["preset"] is None or (presets / f"{run['preset']}.flags").exists()
    if run["network"] == "alexnet":
        assert run["test_error_pct"] == run["top1_error_pct"] >= run["top5_error_pct"]
    if run["network"] == "lenet" or run["dataset"] == "cifar10":
        matrix = run["confusion_matrix"]
        total = sum(map(sum, matrix))
        correct = sum(matrix[label][label] for label in range(len(matrix)))
        assert total == run["num_test_examples"]
        assert run["test_error_pct"] == pytest.approx(100 * (total - correct) / total)


def test_the_benchmark_was_run_in_full_from_a_commit():
    measured = {}
    for name in ("benchmark", "benchmark_attempts", "benchmark_gpu"):
        result = FOUND.measured[name]
        assert not result["smallest"] and min(row["rounds"] for row in result["rows"]) >= 5
        assert not any(row["commit"].endswith("-dirty") for row in result["rows"])
        measured[name] = {row["suite"] for row in result["rows"]}
    for name in ("benchmark", "benchmark_attempts"):  # one run: the table names its load
        assert len({(row["commit"], row["command"]) for row in FOUND.measured[name]["rows"]}) == 1
    only_if_named = set(suites.ONLY_IF_NAMED)
    assert measured["benchmark"] == set(suites.SUITES) - only_if_named
    assert measured["benchmark_attempts"] == only_if_named


def test_the_faults_were_tried_in_full_from_a_commit():
    rows = FOUND.measured["faults"]["rows"]
    assert {row["fault"] for row in rows} == set(faults.FAULTS)
    assert len({row["commit"] for row in rows}) == 1
    assert all(row["full"] and not row["commit"].endswith("-dirty") for row in rows)
    assert sum(row["tried"] for row in rows if row["fault"] == "kill") == 50
    assert sum(row["tried"] for row in rows if row["fault"] == "damage") == 1300
    assert all(row["survived"] == row["tried"] and row["silent"] == 0 for row in rows)


def test_the_strings_were_read_in_full_from_a_commit():
    result = FOUND.measured["strings"]
    assert result["strings"] == strings.STRINGS == 1000 and len(result["rows"]) >= 2
    assert not result["commit"].endswith("-dirty")
    for row in result["rows"]:
        assert row["one_pass"]["read_pct"] <= row["one_pass"]["complete_pct"]


# ---- how a run gets there


@pytest.fixture
def make_run(tmp_path):
    def make(name="a", **changed):
        """The folder of a run that is like one of results/."""
        where = ("network", "preset", "study", "arm")
        run = {key: value for key, value in FOUND.runs[-1].items() if key not in where}
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(run | changed))
        (tmp_path / name / "config.json").write_text(json.dumps({"batch_size": 64}))
        lines = [
            {"step": 100, "epoch": 0.5, "split": "train", "loss": 1.0, "error_pct": 20.0},
            {"step": 200, "epoch": 1.0, "split": "train", "loss": 0.5, "error_pct": 10.0},
            {"step": 200, "epoch": 1.0, "split": "test", "loss": 0.4, "error_pct": 3.21},
        ]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (tmp_path / name / "metrics.jsonl").write_text(text)
        return tmp_path / name

    return make


COMMANDS = {
    "python -m lenet.train --flagfile=lenet/presets/deck.flags --seed=3": ("lenet", "deck"),
    "python -m alexnet.train --preset=small --workdir=runs/a --seed=3": ("alexnet", "small"),
    "python lenet/train.py --flagfile ../lenet/presets/paper.flags --workdir=a": ("lenet", "paper"),
    "python -m lenet.train --flagfile=lenet/presets/lush.flags --preset=deck": ("lenet", "lush"),
    "python -m lenet.train --workdir=runs/a": ("lenet", None),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_result_says_where_it_belongs(make_run, command):
    added = results.record(make_run(command=command, seed=3), "ablation", "x")
    assert (added["network"], added["preset"]) == COMMANDS[command]
    given = {"study": "ablation", "arm": "x", "seed": 3, "command": command}
    assert given.items() <= added.items() and added["settings"] == {"batch_size": 64}
    assert added["curves"]["train"] == {"epoch": [1.0], "error_pct": [15.0]}
    assert added["curves"]["test"] == {"epoch": [1.0], "error_pct": [3.21]}


def test_a_run_is_added_once(make_run, tmp_path):
    (folder := tmp_path / "results").mkdir()
    facts = dict(command="python -m lenet.train --preset=deck", seed=3)
    run, other = make_run(**facts), make_run("other", **facts, test_error_pct=1.0)
    (path,) = results.add([run], "presets", "", folder)
    assert path.name == "lenet_presets_deck_seed3.json"
    assert results.load(folder).runs == [results.record(run, "presets", "")]
    assert results.add([run], "presets", "", folder) == []
    for runs in ([other], [run, other]):
        with pytest.raises(UserError, match=path.name):
            results.add(runs, "presets", "", folder)
    smaller = make_run("smaller", **facts | {"seed": 4})
    (smaller / "config.json").write_text('{"batch_size": 32}')
    with pytest.raises(UserError, match="batch_size 32"):
        results.add([smaller], "presets", "", folder)
    assert len(results.add([smaller], "presets", "small_batches", folder)) == 1


@pytest.mark.parametrize(
    ("changed", "study", "arm", "named"),
    [
        (dict(commit="0123-dirty"), "s", "", "-dirty"),
        (dict(commit=None), "s", "", "commit"),
        (dict(command="python -m scripts.benchmark"), "s", "", "scripts.benchmark"),
        (dict(command="python -m lenet.train --workdir=a"), "s", "", "--arm"),
        (dict(seed=4, num_train_examples=10), "s", "", "num_train_examples 10"),
        (dict(), "", "", "--study"),
        (dict(), "../s", "", "--study"),
    ],
)
def test_what_is_refused(make_run, tmp_path, changed, study, arm, named):
    (folder := tmp_path / "results").mkdir()
    with pytest.raises(UserError, match=re.escape(named)):
        results.add([make_run("good"), make_run("bad", **changed)], study, arm, folder)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("content", ['{"rows": ', "[1]", "null", "\xff"])
@pytest.mark.parametrize("name", ["benchmark.json", "c3/study.json", "c3/lenet_table_seed10.json"])
def test_a_damaged_file_is_named(tmp_path, name, content):
    (path := tmp_path / name).parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=re.escape(str(path))):
        results.load(tmp_path)


def test_an_unfinished_run_is_refused(make_run, tmp_path):
    (run := make_run()).joinpath("result.json").unlink()
    with pytest.raises(UserError, match=re.escape(str(run))):
        results.add([run], "s", "", tmp_path)


@pytest.mark.parametrize(
    "arguments", [["--add", "--study=s", "NO_RUN"], ["--add", "--study=s"], ["NO_RUN"]]
)
def test_the_command_refuses_in_one_line(capsys, tmp_path, arguments):
    argv = ["report", *(word.replace("NO_RUN", str(tmp_path)) for word in arguments)]
    assert launch.run_tool(report.define_flags, report.main, argv, ("[RUN ...]",)) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.commands
def test_the_command_checks_the_pages_and_writes_them(monkeypatch, tmp_path, capsys):
    def run(*arguments) -> tuple[int, str]:
        argv = ["report", *arguments]
        code = launch.run_tool(report.define_flags, report.main, argv, ("[RUN ...]",))
        return code, "".join(capsys.readouterr())

    shutil.copy(ROOT / "README.md", tmp_path / "README.md")
    monkeypatch.setattr(report, "PAGES", ("README.md",))  # the ledger of another one takes seconds
    monkeypatch.setattr(report, "ROOT", tmp_path)
    assert run("--check") == (0, "")
    old = (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text(old.replace("| LeNet-5 `deck`", "| LeNet-6 `deck`"))
    code, said = run("--check")
    assert code == 2 and said.startswith("error: README.md ")
    assert run() == (0, "README.md written\n")
    assert (tmp_path / "README.md").read_text() == old
