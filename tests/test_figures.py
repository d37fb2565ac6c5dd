"""The pictures: that they are drawn, hold what they should, and stay small."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

import alexnet.config
import lenet.config
from scripts.report import __main__ as report
from scripts.report import figures, runs, verdicts
from scripts.studies import conduct, figure, outcome, plan
from scripts.studies.plan import Study

STUDY = Study(
    "own", "Which <activation>?", (), {"tanh": (), "relu": ("--activation=relu",)}, pairs=6,
    claim="None", source="nobody", others="nothing",
)  # fmt: skip
EPOCHS = STUDY._replace(
    base=("--stop_at_train_error_pct=25", "--num_epochs=9"),
    metric="epochs",
    choose={"relu": "learning_rate=0.1,0.3"},
)


def record(study, run, number) -> dict:
    """That of a run whose result is `number`: a percentage, or epochs; None: did not get there."""
    config = plan.config(study, run)
    curve = {"epoch": [1.0, 2.0, 3.0], "error_pct": [50.0, 30.0, 5.0 + run.seed / 10]}
    return {
        "network": "lenet",
        "test_error_pct": number,
        "train_error_pct": 0.5,
        "stopped_after_epochs": number,
        "settings": config.__dict__,
        "curves": {"train": curve, "validation": curve},
        "commit": "0123456789",
        "wall_time_s": 60.0,
        "machine": {"processor": "p", "accelerator": "a"},
        "versions": dict.fromkeys(("python", "jax", "flax", "optax"), "1"),
    }


def records(study, folder, numbers) -> dict:
    """Of all runs; `numbers`: arm -> what its seeds gave."""
    return {
        run: record(study, run, numbers[run.arm][run.seed - plan.FIRST_SEED])
        for run in plan.runs(study, folder, {})
    }


def contents(study, found, **more) -> dict:
    """As study.json has them."""
    made = plan.to_json(study) | {"command": "COMMAND", "threads": 1, "choice": {}, "missing": []}
    return made | outcome.analyze(study, found) | more


@pytest.mark.commands
@pytest.mark.parametrize("study", [STUDY, EPOCHS], ids=["error", "epochs"])
def test_a_study_is_drawn_small_and_legible_without_a_background(study, tmp_path):
    numbers = {"tanh": [5, 6, 7, 8, 9, None if study.ratio else 9], "relu": [1, 2, 3, 2, 1, 2]}
    figure.draw(study, records(study, tmp_path, numbers), tmp_path)
    svg = (tmp_path / "figure.svg").read_text()
    for words in ("tanh", "relu", "Which &lt;activation&gt;?", "epoch"):
        assert words in svg
    assert len(svg) < 150_000 and (tmp_path / "figure.png").stat().st_size < 150_000
    first = svg.index('id="patch_1"')
    assert "fill: none" in svg[first : first + 300]  # the background
    figure.draw(study, records(study, tmp_path, numbers), tmp_path)
    assert (tmp_path / "figure.svg").read_text() == svg


def test_the_tables_of_studies(tmp_path, capsys):
    found = records(STUDY, tmp_path, {"tanh": [5, 6, 7, 8, 9, 9], "relu": [1, 2, 3, 2, 1, 2]})
    found[next(iter(found))] |= {"is_chance": True, "study": "another"}
    study = contents(STUDY, found)
    _, tanh, relu = verdicts.rows(study)
    assert "(1 at chance)" in tanh[2] and "chance" not in relu[2]
    assert tanh[:2] == ["tanh", "6"] and tanh[2].startswith("7.33%") and "–" in tanh
    assert relu[2].startswith("1.83%") and relu[3] == "-5.500"
    text = verdicts.verdict_table([study]) + verdicts.all_verdicts([study])
    for words in ("Which <activation>?", "own/figure.svg", "`COMMAND`", "nobody", "`01234567`"):
        assert words in text
    for words in ("tanh 0.5%, relu 0.5%", "`another`", "12 minutes"):
        assert words in text
    assert study["comparisons"][0]["verdict"] == "lower"
    assert study["comparisons"][0]["sentence"] in text
    for run, each in found.items():
        each["train_error_pct"] = each["test_error_pct"] - run.seed % 2 - 3 * (run.arm == "tanh")
    (compared,) = contents(STUDY._replace(overfitting=True), found)["comparisons"]
    assert compared["gap"]["mean"] == pytest.approx(-3) and compared["gap"]["verdict"] == "lower"
    assert (
        "relu's test minus training error is 3.00 points lower than tanh's" in compared["sentence"]
    )
    told = outcome.analyze(STUDY._replace(overfitting=True), found, exploratory=True)
    assert told["comparisons"][0]["sentence"].count("exploratory") == 1
    conduct.print_study(STUDY, study)
    assert "relu" in capsys.readouterr().out


def test_the_table_of_epochs_says_what_was_not_reached(tmp_path):
    found = records(EPOCHS, tmp_path, {"tanh": [8, 8, 9, 8, 8, None], "relu": [2, 2, 3, 2, 2, 2]})
    tried = {"0.1": [3.0, 4.0, 5.0], "0.3": [None, 9.0, 9.0]}
    choice = dict(setting="learning_rate", metric="epochs", values=tried, chosen="0.1")
    silu = choice | {"at_edge": False, "reached": False}
    study = contents(EPOCHS, found, choice={"relu": choice | {"at_edge": True, "reached": True}})
    assert study["comparisons"][0]["bound"] == "at most"
    assert verdicts.rows(study)[1][2].startswith("> ") and "1 " in verdicts.rows(study)[1][2]
    figure.draw(EPOCHS, found, tmp_path)
    drawn = (tmp_path / "figure.svg").read_text()
    assert "did not get there" in drawn and "&gt; " in drawn
    text = verdicts.all_verdicts([study])
    assert "0.1: 4" in text and "diverged" in text and "edge" in text
    assert "silu" in verdicts.verdict_table([study | {"choice": {"silu": silu}}])


@pytest.mark.commands
def test_runs_side_by_side(tmp_path, capsys):
    for name, rate in (("a", 0.1), ("b[bold]", 0.2)):
        (tmp_path / name).mkdir()
        settings = {"learning_rate": rate, "seed": 0}
        (tmp_path / name / "config.json").write_text(json.dumps(settings))
        lines = [
            {"step": 1, "epoch": 1.0, "split": "train", "loss": 1.0, "error_pct": 20.0},
            {"step": 1, "epoch": 1.0, "split": "validation", "loss": 1.0, "error_pct": 3.0},
            {"step": 2, "epoch": 2.0, "split": "validation", "loss": 1.0, "error_pct": 2.0},
        ]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (tmp_path / name / "metrics.jsonl").write_text(text)
    (tmp_path / "b[bold]" / "result.json").write_text('{"test_error_pct": 1.5}')
    runs.compare([tmp_path / "a", tmp_path / "b[bold]"], tmp_path / "both.svg")
    printed = capsys.readouterr().out
    assert "learning_rate" in printed and "seed" not in printed and "1.5" in printed
    head = [line.split("┃")[-2].strip() for line in printed.splitlines() if "┃" in line]
    assert "".join(head) == str(tmp_path / "b[bold]")  # however long, and no markup
    assert (tmp_path / "both.svg").stat().st_size > 3000
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "folder.png").mkdir()
    (tmp_path / "b[bold]" / "result.json").write_text('{"test_error_pct": ')
    for arguments in (
        *(["empty"], ["a", "--out=both.gif"], ["a", "--out=none/both.svg"]),
        *(
            ["a", "--out=empty/folder.png"],
            ["empty/../b[bold]"],
            ["a", "--check"],
            ["a", "--figures"],
            ["a", "--arm=c"],
        ),
    ):
        argv = ["report", *(word.replace("empty", str(tmp_path / "empty")) for word in arguments)]
        argv = [word if word != "a" else str(tmp_path / "a") for word in argv]
        assert report.run_tool(report.define_flags, report.main, argv, ("[RUN ...]",)) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["lenet_deck", "alexnet_cifar18"])
def test_a_setting_that_an_older_run_lacks_is_its_default(name):
    run = Path(__file__).parent / "golden" / name
    kept, read = json.loads((run / "config.json").read_text()), runs.read_settings(run)
    fields = dataclasses.fields((alexnet if "alexnet" in name else lenet).config.Config)
    assert kept.keys() < {field.name for field in fields} <= read.keys()
    assert read == {field.name: field.default for field in fields} | kept


@pytest.mark.commands
def test_the_picture_of_both_networks_is_the_committed_one(tmp_path):
    """Drawn from the layer tables: a change of a network changes it. (Coordinates depend on the
    version of matplotlib.)
    """
    figures.draw_all(tmp_path)
    for path in tmp_path.iterdir():
        drawn, committed = path.read_text(), (report.RESULTS / path.name).read_text()
        assert drawn.count("<path") == committed.count("<path") > 100
        glyphs = [re.findall(r'<use xlink:href="#([^"]+)"', each) for each in (drawn, committed)]
        assert glyphs[0] == glyphs[1] and len(glyphs[0]) > 100  # every number and name
    assert len(list(tmp_path.iterdir())) == 2
