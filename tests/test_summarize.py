"""The layer table as a command."""

import json
import subprocess
import sys


def summarize(*flags):
    return subprocess.run([sys.executable, "-m", "scripts.summarize", *flags], capture_output=True, text=True)


def test_json_keeps_the_contract():
    done = summarize("--model=lenet", "--flagfile=lenet/presets/paper.flags", "--json")
    summary = json.loads(done.stdout)
    assert summary["total"] == {"parameters": 60_000, "connections": 340_908, "multiply_adds": 328_096}
    assert summary["layers"][2] == {
        "name": "c3", "output": [10, 10, 16], "parameters": 1_516, "connections": 151_600, "multiply_adds": 150_000,
    }  # fmt: skip
    assert [layer["name"] for layer in summary["layers"]] == ["c1", "s2", "c3", "s4", "c5", "f6", "output"]


def test_every_preset_has_a_table():
    for preset, total in (("deck", "60,806"), ("modern", "60,806"), ("paper", "60,000")):
        done = summarize(f"--flagfile=lenet/presets/{preset}.flags")
        assert done.returncode == 0 and total in done.stdout


def test_mistakes_get_one_line():
    for flags, message in (
        (["--model=vgg"], "lenet"),
        (["--c3=full"], "table|dense|random"),
        (["extra"], "unexpected argument"),
    ):
        done = summarize(*flags)
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1


def test_help_is_the_docstring_and_the_flags():
    done = summarize("--help")
    assert done.returncode == 0 and "layer table" in done.stdout and "--activation" in done.stdout
