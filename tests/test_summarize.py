"""The layer table as a command."""

import json
import subprocess
import sys
from functools import partial

import pytest
from absl import flags

import common.flags
from alexnet.config import Config
from common import launch
from scripts import summarize as tool
from scripts.summarize import summarize as summary_of

pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture
def summarize(monkeypatch, capsys):
    """summarize(*arguments): the command in this process: its exit code, output and errors."""
    monkeypatch.setattr(launch.runtime, "keep_freed_memory", lambda: None)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments):
        argv = ["summarize", *arguments]
        model = tool.chosen_model(argv)
        code = launch.run_tool(partial(tool.define_flags, model=model), tool.main, argv)
        return code, *capsys.readouterr()

    return run


def test_json_keeps_the_contract(summarize):
    summary = json.loads(summarize("--flagfile=lenet/presets/paper.flags", "--json")[1])
    counts = {"parameters": 60_000, "connections": 340_908, "multiply_adds": 328_096}
    assert summary["total"] == counts
    c3 = {"parameters": 1_516, "connections": 151_600, "multiply_adds": 150_000}
    window = {"kernel": [5, 5], "stride": 1, "padding": [0, 0], "activation": "scaled_tanh"}
    deck = {"output": [10, 10, 16], "kernel": [5, 5], "stride": 1, "activation": "tanh"}
    deck |= {"parameters": 1_516, "connections": 151_600}
    expected = {"name": "c3", "output": [10, 10, 16]} | c3 | window | {"deck": deck}
    assert summary["layers"][2] == expected
    names = [layer["name"] for layer in summary["layers"]]
    assert names == ["c1", "s2", "c3", "s4", "c5", "f6", "output"]


@pytest.mark.parametrize(
    ("preset", "layer", "expected"),
    [
        ("lenet/deck", "s2", ([2, 2], 2, [0, 0], "tanh")),
        ("lenet/deck", "c5", ([5, 5], 1, [0, 0], "tanh")),
        ("lenet/deck", "output", (None, None, None, "softmax")),
        ("lenet/paper", "output", (None, None, None, "rbf")),
        ("lenet/lush", "output", (None, None, None, "scaled_tanh")),
        ("lenet/modern", "c1", ([5, 5], 1, [0, 0], None)),  # after the maximum
        ("alexnet/paper", "conv1", ([11, 11], 4, [0, 3], "relu")),
        ("alexnet/paper", "pool1", ([3, 3], 2, [0, 0], None)),
        ("alexnet/paper", "conv2", ([5, 5], 1, [2, 2], "relu")),
        ("alexnet/paper", "norm1", (None, None, None, None)),
        ("alexnet/code2012", "pool1", ([3, 3], 2, [0, 0], "relu")),
        ("alexnet/cifar18", "pool1", ([3, 3], 2, [0, 1], "relu")),
        ("alexnet/cifar13", "local3", ([3, 3], 1, [1, 1], "relu")),
    ],
)
def test_the_geometry_of_layers(summarize, preset, layer, expected):
    model, name = preset.split("/")
    flagfile = f"--flagfile={model}/presets/{name}.flags"
    layers = json.loads(summarize(f"--model={model}", flagfile, "--json")[1])["layers"]
    row = next(row for row in layers if row["name"] == layer)
    assert tuple(row[key] for key in ("kernel", "stride", "padding", "activation")) == expected


def test_the_decks_rows_stand_beside_ours(summarize):
    _, output, _ = summarize("--flagfile=lenet/presets/paper.flags")
    assert "\N{HORIZONTAL ELLIPSIS}" not in output
    assert "16@10x10 5x5/1 tanh" in output and "151,600 connections" in output


def test_every_preset_has_a_table(summarize):
    totals = dict(deck="60,806", modern="60,806", paper="60,000", lush="51,046")
    for preset, total in totals.items():
        code, output, _ = summarize(f"--flagfile=lenet/presets/{preset}.flags")
        assert code == 0 and total in output


def test_some_classes_have_as_many_outputs(summarize):
    for arguments in (
        ["--classes=3,5"],
        ["--model=alexnet", "--dataset=cifar10", "--classes=cat,dog"],
    ):
        code, output, _ = summarize(*arguments, "--json")
        assert code == 0 and json.loads(output)["layers"][-1]["output"][-1] == 2


def test_the_number_of_classes_is_training_s(summarize):
    arguments = ["--model=alexnet", "--dataset=cifar10", "--classes=cat,dog", "--num_classes=10"]
    assert json.loads(summarize(*arguments, "--json")[1])["layers"][-1]["output"] == [10]


def test_mistakes_get_one_line(summarize):
    for arguments, named in (
        (["--model=vgg"], "lenet"),
        (["--c3=full"], "c3"),
        (["--output=rbf", "--classes=1,2"], "--output=rbf"),
        (["extra"], "extra"),
        (["--model=alexnet", "--c3=table"], "c3"),  # LeNet's
        (["--model=alexnet", "--crop_size=20"], "39"),
        (["--model=alexnet", "--optimizer=adamw"], "--momentum=0"),
        (["--model=alexnet", "--flagfile=alexnet/presets/vgg.flags"], "vgg.flags"),
    ):
        code, output, errors = summarize(*arguments)
        assert (code, output, errors.count("\n")) == (2, "", 1) and named in errors


@pytest.mark.commands
def test_the_real_command():
    command = [sys.executable, "-m", "scripts.summarize"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--activation" in done.stdout
    done = subprocess.run([*command, "--model=alexnet"], capture_output=True, text=True)
    assert done.returncode == 0 and "62,378,344" in done.stdout


@pytest.mark.commands
@pytest.mark.parametrize("flag", ["", " --json", " --help"])
@pytest.mark.parametrize(
    ("output", "code", "num_lines"),
    [("| true", 141, 0), (">&-", 74, 1), ("> /dev/full", 74, 1)],
)
def test_output_that_nobody_gets_is_no_success(flag, output, code, num_lines):
    """A reader that ends early (`| head -1`), a closed stdout, a full disk: as every tool."""
    command = f"{sys.executable} -m scripts.summarize{flag} {output}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], stderr=-1, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (code, num_lines), done
    assert done.stderr.startswith("error: " * num_lines)


def test_alexnets_json(summarize):
    """The deck counts the biases of convolutions, and not those of fully connected layers."""
    summary = json.loads(summarize("--model=alexnet", "--json")[1])
    assert summary["total"] == {
        "parameters": 62_378_344,
        "multiply_adds": 1_135_256_096,  # the deck adds a bias for each of 650,080 outputs
        "deck_parameters": 62_369_152,
        "deck_computations": 1_135_906_176,
    }
    assert summary["layers"][0] == {
        "name": "conv1",
        "output": [55, 55, 96],
        "parameters": 34_944,
        "multiply_adds": 105_415_200,
        "deck_parameters": 34_944,
        "deck_computations": 105_705_600,
        "kernel": [11, 11],
        "stride": 4,
        "padding": [0, 0],
        "activation": "relu",
    }
    shares = summary["conv_pct"]
    assert round(shares["deck_parameters"]) == 6 and round(shares["deck_computations"]) == 95


def test_alexnets_table_shows_every_number_in_full(summarize):
    """80 columns wide: what is no terminal has no more."""
    code, output, _ = summarize("--model=alexnet")
    assert code == 0 and "\N{HORIZONTAL ELLIPSIS}" not in output
    rows = {line.split()[0]: line for line in output.replace("│", " ").splitlines() if line.split()}
    for layer, numbers in (
        ("conv1", ["34,944", "105,705,600"]),
        ("conv2", ["614,656", "448,084,224"]),
        ("fc6", ["37,752,832", "37,748,736"]),
        ("total", ["62,378,344", "62,369,152", "1,135,906,176"]),
    ):
        assert set(numbers) <= set(rows[layer].split())
    assert "6% of the parameters" in output and "95% of the" in output


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("deck", 62_378_344),
        ("modern", 62_378_344),
        ("paper", 60_965_224),
        ("caffe", 60_965_224),
        ("code2012", 60_965_224),
        ("torchvision", 61_100_840),
        ("small", 378_026),
        ("cifar18", 32 * (75 + 1) + 32 * (800 + 1) + 64 * (800 + 1) + 10 * (9 * 64 + 1)),
        # Locally connected layers have weights and biases of their own at each of 36 pixels.
        (
            "cifar13",
            64 * (75 + 1)
            + 64 * (1600 + 1)
            + 36 * 32 * (9 * 64 + 1)
            + 36 * 32 * (9 * 32 + 1)
            + 10 * (36 * 32 + 1),
        ),
    ],
)
def test_totals_of_alexnets_presets(preset, parameters):
    values = flags.FlagValues()
    common.flags.define(Config, values)
    values(["program", f"--flagfile=alexnet/presets/{preset}.flags"])
    summary = summary_of(common.flags.read(Config, values))
    assert (
        summary["total"]["parameters"]
        == parameters
        == sum(layer["parameters"] for layer in summary["layers"])
    )
    assert summary["layers"][-1]["output"] == [
        10 if preset in ("small", "cifar18", "cifar13") else 1000
    ]
