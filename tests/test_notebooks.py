"""The notebooks and the exercises: their commands are valid, their numbers are computed, and the
notebooks run.
"""

import json
import re
import shlex
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import alexnet.config
import lenet.config
from common import launch, runtime
from common.flags import from_preset
from scripts import ablate, predict, summarize
from scripts.claims import __main__ as claims
from scripts.claims import ledger
from scripts.inspect import __main__ as inspect
from scripts.studies import plan

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ["lenet/lenet.ipynb", "alexnet/alexnet.ipynb"]
EXERCISES = ["lenet/EXERCISES.md", "alexnet/EXERCISES.md"]
CONFIGS = {"lenet": lenet.config.Config, "alexnet": alexnet.config.Config}
TOOLS = {"predict": (predict, "[PICTURE ...]"), "inspect": (inspect, "[RUN_OR_STUDY ...]")}
MAX_BYTES = 300_000
ANY_FOLDER = re.compile(r"(?<![\w.~-])/(work|tmp|root|home|Users|var)/")
OF_THE_SLIDES = {
    "lenet/lenet.ipynb": ["1,516", "151,600", "28x28x6", "14x14x6", "10x10x16", "5x5x16"],
    "alexnet/alexnet.ipynb": ["34,944", "105,705,600", "62,369,152", "1,135,906,176"],
}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr(runtime, "keep_freed_memory", lambda: None)
    monkeypatch.setenv("COLUMNS", "100")


# ---- commands


def commands(text: str) -> list[str]:
    """The commands of a page, or of a notebook's cell, each on one line."""
    joined = re.sub(r" \\\n\s*", " ", text)
    return re.findall(r"^(?:\$ )?(python -m .+?)(?: 2>&1)?$", joined, re.MULTILINE)


def run(command: str, *, only_parse: bool) -> None:
    """Runs a command in this process, or only parses its flags. Raises where it is refused."""
    _, _, module, *arguments = shlex.split(command.partition(" | ")[0])
    package, name = module.split(".")
    argv, words, config_class = [name, *arguments], (), None
    if name == "train":
        preset, *settings = arguments  # flags before a preset are overridden by it
        assert sum(word.startswith("--workdir=") for word in settings) == 1
        settings = [word for word in settings if not word.startswith("--workdir=")]
        from_preset(CONFIGS[package], preset.removeprefix("--preset="), *settings)
        return
    if name == "summarize":
        model = summarize.chosen_model(argv)
        config_class, body = CONFIGS[model], summarize.main

        def define(values):
            summarize.define_flags(values, model)

    elif name == "ablate":
        own, training = ablate.split(argv)
        argv, words, define = [name, *own, "--", *training], ("[FLAG ...]",), ablate.define_flags

        def body(values, *training):
            assert values.workdir
            plan.require_sound(ablate.given_study(values, training))

    elif name == "claims":
        define, body = claims.define_flags, claims.main
    else:
        (tool, word) = TOOLS[name]
        define, body, words = tool.define_flags, tool.main, (word,)
    if only_parse and name != "ablate":
        body = print
    assert launch.run_tool(define, body, argv, words, config_class) == 0, command


@pytest.mark.parametrize("name", [*EXERCISES, *NOTEBOOKS])
def test_commands_are_valid(name):
    if name in NOTEBOOKS:
        notebook = read(name)
        found = [line for cell in code_cells(notebook) for line in commands(cell.source)]
        words = " ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        found += re.findall(r"`!(python -m [^`]+)`", words)
    else:
        found = commands((ROOT / name).read_text())
    assert len(found) >= 3
    for command in found:
        run(command, only_parse=True)


# ---- the exercises


@pytest.mark.parametrize("name", EXERCISES)
def test_each_exercise_has_minutes_and_an_answer_with_a_command(name):
    sections = (ROOT / name).read_text().split("\n## ")[1:]
    assert [section[0] for section in sections] == list("123456")
    for section in sections:
        title, question = section.split("\n", 1)
        assert re.search(r"\((a minute|\d+ minutes)\)$", title), title
        asked, answered = question.split("<details>")
        assert asked.strip() and commands(section), title
        assert answered.rstrip().endswith("\n```\n\n</details>"), title  # what a command prints


@pytest.mark.commands
@pytest.mark.parametrize("name", EXERCISES)
def test_the_answers_are_what_the_commands_print(name, capsys):
    """Of those that compute; studies and trainings take minutes."""
    checked = 0
    for block in re.findall(r"```console\n(.+?)```", (ROOT / name).read_text(), re.DOTALL):
        (command,) = commands(block)
        shown = block.partition(command)[2].splitlines()[1:]
        if command.startswith("python -m scripts.summarize"):
            run(command, only_parse=False)
            output = capsys.readouterr().out
        elif command.startswith("python -m scripts.claims --json | grep"):
            output = ledger_line(command.split()[-1])
        else:
            continue
        lines = {" ".join(line.split()) for line in output.splitlines()}
        missing = {" ".join(line.split()) for line in shown} - lines - {"..."}
        assert shown and not missing, command
        checked += 1
    assert checked >= 3


def test_numbers_in_the_words_of_answers():
    deck, paper = (summary("lenet", preset) for preset in ("deck", "paper"))
    assert deck["total"] - paper["total"] == 806
    assert (deck["output"], paper["s2"] + paper["s4"]) == (850, 44)
    assert (deck["f6"] + deck["output"], deck["total"]) == (11_014, 60_806)
    alex, towers = summary("alexnet", "deck"), summary("alexnet", "deck", "--towers=2")
    assert (alex["total"] - 9_192, alex["total"] - 9_192 - 1_376) == (62_369_152, 62_367_776)
    assert alex["total"] - towers["total"] == 1_413_120
    assert alex["total"] - summary("alexnet", "deck", "--noconv4")["total"] == 1_327_488
    texts = {name: (ROOT / name).read_text() for name in EXERCISES}
    assert all(n in texts["lenet/EXERCISES.md"] for n in ("806", "11,014 of the 60,806 parameters"))
    for number in ("9,192 = 62,378,344", "1,376", "62,367,776", "1,413,120", "1,327,488"):
        assert number in texts["alexnet/EXERCISES.md"]


def summary(network: str, preset: str, *flags: str) -> dict[str, int]:
    """The parameters of each layer, and in all."""
    found = summarize.summarize(from_preset(CONFIGS[network], preset, *flags))
    rows = {row["name"]: row["parameters"] for row in found["layers"]}
    return rows | {"total": found["total"]["parameters"]}


def ledger_line(id: str) -> str:
    """What `scripts.claims --json` prints of a claim."""
    (line,) = (line for line in ledger.check([], {}) if line.id == id)
    return json.dumps(line._asdict(), indent=1, ensure_ascii=False)


# ---- the notebooks


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / name, as_version=nbformat.NO_CONVERT)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_stored_as_it_ran(name):
    notebook = read(name)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output.output_type for cell in cells for output in cell.outputs]
    assert "error" not in kinds and kinds.count("display_data") >= 3
    assert not [cell.id for cell in cells if "print(" in cell.source and not printed(cell)]
    assert not [cell.id for cell in cells if "plt.show(" in cell.source and not cell.outputs]
    text = (ROOT / name).read_text()
    assert len(text.encode()) <= MAX_BYTES
    assert not ANY_FOLDER.search(text) and "-dirty" not in text
    shown = "".join(map(printed, cells))
    assert not [number for number in OF_THE_SLIDES[name] if number not in shown]


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    """In a folder of its own, like that of an installed copy, and without other data sets. What is
    computed before the training is what is stored.
    """
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    notebook = read(name)
    stored = {cell.id: printed(cell) for cell in code_cells(notebook)}
    place = {"metadata": {"path": str(tmp_path)}}
    client = NotebookClient(notebook, timeout=900, resources=place, coalesce_streams=True)
    client.execute()  # raises where a cell does, or a command fails
    cells = code_cells(notebook)
    training = [cell.id for cell in cells].index("training")
    assert training > 5
    for cell in cells[:training]:
        assert printed(cell) == stored[cell.id], cell.id
    assert "complete: test error" in printed(cells[training])
    assert "undecided" in "".join(map(printed, cells[training + 1 :]))
