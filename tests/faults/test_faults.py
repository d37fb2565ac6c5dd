"""The fault campaign: its short forms, fault by fault, and whether it would detect what it looks
for.
"""

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from common import checkpoint, checkpoint_files, launch
from common.checkpoint import Checkpointer
from common.digests import state_sha256
from common.errors import StorageError
from common.workdir import write_atomic
from scripts.faults import __main__ as campaign
from scripts.faults import damage, interruptions, nonfinite
from scripts.faults.runs import DECK, Case, Clean, Start, refusal, row, row_of
from scripts.report.faults import faults_table
from scripts.report.results import Results

ROOT = Path(__file__).parents[2]
WHOLE = {"epoch": 1.0, "split": "train", "loss": 1.0, "error_pct": 9.0}  # a line of metrics
CLEAN = Clean("state", [], start_up_s=1, training_s=1, num_steps=40, epoch_steps=10, save_steps=10)


SLOW = ("kill", "damage", "disk")  # the others nightly: tiny runs meet them in other files too


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else pytest.mark.nightly)
        for name in campaign.FAULTS
        if name != "devices"
    ],
)
def test_every_fault_is_survived(tmp_path, name):
    """All but `devices`, which tests/test_scale_out.py covers."""
    command = [sys.executable, "-m", "scripts.faults", f"--only={name}"]
    command.append(f"--json={tmp_path / 'faults.json'}")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    content = json.loads((tmp_path / "faults.json").read_text())
    rows = content["rows"]
    assert done.returncode == (not all(found["met"] for found in rows)), done.stdout + done.stderr
    assert content["kind"] == "faults" and rows and not any(found["full"] for found in rows)
    for found in rows:
        assert found["survived"] == found["tried"] > 0 and found["silent"] == 0, found
        assert found["met"] or "seconds" in found, found  # speed is asserted nowhere
    if name == "kill":
        assert [sum(found["phases"].values()) for found in rows] == [2, 1]
        assert [found["ends"]["same"] for found in rows] == [2, 1]
    if name == "damage":
        assert all(found["outcomes"]["older step, one line"] for found in rows)
    table = faults_table(Results([], {"faults": content}))
    assert all(f"| {found['name']} | {found['tried']} |" in table for found in rows)


# ---- interruptions


@pytest.mark.parametrize(
    ("lines", "folders", "phase"),
    [
        ([], [], "start-up"),
        ([(10, "train"), (10, "validation")], ["10"], "start-up"),  # kept from the run before
        ([(13, "train")], ["10"], "step"),
        ([(20, "train"), (20, "validation")], ["10", "20"], "step"),
        (
            [(20, "train"), (20, "validation"), (23, "train")],
            ["10", "20.orbax-checkpoint-tmp"],
            "save",
        ),
        ([(20, "train")], ["10"], "evaluation"),
        ([(20, "train")], ["10", "20"], "evaluation"),
        ([(40, "train"), (40, "validation")], ["30", "40"], "evaluation"),
        ([(20, "train"), (20, "validation")], ["10"], "epoch end"),
    ],
)
def test_the_workdir_shows_the_phase(tmp_path, monkeypatch, lines, folders, phase):
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(WHOLE | {"step": step}) + "\n" for step in (10, 13))
    )
    monkeypatch.setattr(Case, "command", lambda *_: ["true"])
    run = Start(DECK, tmp_path)
    assert interruptions.phase_of(run, CLEAN) == "start-up" and run.resumed == 10
    written = [WHOLE | {"step": step, "split": split} for step, split in lines]
    text = "".join(json.dumps(line) + "\n" for line in written)
    write_atomic(tmp_path / "metrics.jsonl", text + '{"step": 2')  # truncated
    for folder in folders:
        (tmp_path / "checkpoints" / folder).mkdir(exist_ok=True)
    assert interruptions.phase_of(run, CLEAN) == phase
    run.end()


def test_verdict(tmp_path):
    lines = [WHOLE | {"step": step, "loss": 1 / step} for step in (1, 2)]
    assert CLEAN.verdict(tmp_path) == "none"
    for state, written, verdict in (
        ("state", lines, "same"),
        ("another", lines, "other"),
        ("state", lines[:1], "other"),
        ("state", [*lines, lines[1]], "other"),
        ("state", [lines[0], lines[1] | {"loss": 0.26}], "other"),
    ):
        (tmp_path / "result.json").write_text(json.dumps({"state_sha256": state}))
        text = "".join(json.dumps(line) + "\n" for line in written)
        (tmp_path / "metrics.jsonl").write_text(text)
        assert CLEAN._replace(lines=lines).verdict(tmp_path) == verdict


@pytest.mark.parametrize(
    ("code", "state", "line", "expected"),
    [
        (0, "state", "complete", "same"),
        (0, "another", "complete", "other"),
        (1, "another", "error", "other"),
        (0, "state", "Traceback", "exit code 0, result same: ['Traceback']"),
        (3, "state", "complete", "exit code 3, result same: ['complete']"),
        (1, None, "killed", "exit code 1, result none: ['killed']"),
    ],
)
def test_a_run_ends_well_with_its_exit_code_state_and_no_traceback(
    tmp_path, code, state, line, expected
):
    if state:
        (tmp_path / "result.json").write_text(json.dumps({"state_sha256": state}))
    run = SimpleNamespace(end=lambda: code, output=lambda: [line], workdir=tmp_path)
    assert CLEAN.end(run) == expected


@pytest.mark.parametrize(
    ("code", "stderr", "expected"),
    [
        (2, "start\nerror: no blue\n", "refused"),
        (0, "", "other"),
        (2, "error: no red\n", "exit code 2: ['error: no red']"),
        (1, "error: blue\n", "exit code 1: ['error: blue']"),
        (-6, "", "exit code -6: []"),
        (2, "Traceback\nerror: no blue\n", "exit code 2: ['error: no blue']"),
        (2, "error: no\nerror: no blue\n", "exit code 2: ['error: no blue']"),
    ],
)
def test_a_refusal_is_one_line_with_its_exit_code(code, stderr, expected):
    assert refusal(subprocess.CompletedProcess([], code, "", stderr), "blue") == expected


def test_the_row_of_single_tries(capsys):
    found = row_of("name", [("a", "same"), ("b", "other"), ("c", "refused")], "t")
    assert (found["tried"], found["survived"], found["silent"], found["met"]) == (3, 1, 1, False)
    assert found["outcomes"] == {"same": 1, "other": 1, "refused": 1}
    assert capsys.readouterr().err == "name: b: other\nname: c: refused\n"
    assert row_of("name", [("c", "refused")], "t", ("refused",))["met"]


@pytest.mark.parametrize(
    ("code", "saved", "end", "survived", "ends"),
    [
        (143, 10, "state", 1, {"same": 1}),
        (0, 10, "state", 0, {"SIGTERM ignored": 1}),
        (1, 10, "state", 0, {"exit code 1, 0 steps lost": 1}),
        (143, 7, "state", 0, {"exit code 143, 3 steps lost": 1}),
        (1, 7, "another", 0, {"other": 1}),
    ],
)
def test_a_stop_survives_only_with_its_exit_code_and_all_steps(
    tmp_path, monkeypatch, code, saved, end, survived, ends
):
    class Run:
        """Stopped at step 10 with `saved` its newest checkpoint; restarted, it runs to its end."""

        def __init__(self, case, workdir):
            self.workdir = workdir
            workdir.mkdir(exist_ok=True)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def end(self, number=None):
            if number is None or code == 0:
                (self.workdir / "result.json").write_text(json.dumps({"state_sha256": end}))
            return code if number else 0

        def last_line(self):
            return 10, "train"

        def newest(self):
            return saved

    monkeypatch.setattr(interruptions, "Start", Run)
    monkeypatch.setattr(interruptions, "wait_for_moment", lambda *_: True)
    monkeypatch.setattr(interruptions, "phase_of", lambda *_: "step")
    draw = random.Random(0)
    found = interruptions.interrupted(DECK, CLEAN, signal.SIGTERM, 1, tmp_path / "runs", draw)
    assert (found["tried"], found["survived"], found["met"]) == (1, survived, bool(survived))
    assert found["ends"] == ends and found["silent"] == (end == "another")


@pytest.mark.commands
@pytest.mark.parametrize(
    ("params", "newest", "message", "expected"),
    [
        ([1.0, 2.0], 46, "at step 92 (last finite: step 78); the checkpoint of step 46", True),
        ([1.0, float("nan")], 46, "at step 92; the checkpoint of step 46", False),
        ([1.0, 2.0], 92, "at step 92; the checkpoint of step 46", False),
        ([1.0, 2.0], 0, "at step 92", False),
    ],
)
def test_a_checkpoint_that_is_not_finite_is_detected(params, newest, message, expected):
    loaded = SimpleNamespace(step=46, params={"w": jnp.array(params)})
    case = SimpleNamespace(network=SimpleNamespace(load=lambda workdir: loaded))
    run = SimpleNamespace(case=case, workdir=Path(), newest=lambda: newest)
    assert nonfinite.stopped_in_time(run, message) == expected


# ---- damage


def outcomes_of_flips(folder: Path, count: int) -> set[str]:
    """The outcomes of flipped bits in the newer of two checkpoints of 4,000 weights."""
    states = [{"w": jnp.arange(4000, dtype=jnp.float32) + step} for step in (1, 2)]
    right = []
    with contextlib.closing(Checkpointer(folder / "saved")) as checkpointer:
        for step, state in enumerate(states, start=1):
            checkpointer.save(step, state, {"step": step})
            right.append((step, state_sha256(state), {"step": step}))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {"w": jax.ShapeDtypeStruct((4000,), jnp.float32, sharding=here)}
    found, draw = set(), random.Random(0)
    for number in range(count):
        shutil.copytree(folder / "saved", copy := folder / str(number))
        damage.damage_file(copy / "checkpoints" / "2", "flip", any_byte=True, draw=draw)
        found.add(damage.outcome(damage.restored(copy, target), right))
    return found


@pytest.mark.commands
def test_after_a_flipped_bit_the_older_step_is_restored(tmp_path):
    found = outcomes_of_flips(tmp_path, 8)
    assert "older step, one line" in found and found <= {"older step, one line", "harmless"}


@pytest.mark.commands
def test_without_digests_a_flipped_bit_is_a_silent_error(tmp_path, monkeypatch):
    def without_digest(path, array):
        return [array.dtype.name, list(array.shape), ""]

    for module in (checkpoint, checkpoint_files):
        monkeypatch.setattr(module, "describe", without_digest)
    assert "silently wrong" in outcomes_of_flips(tmp_path, 8)


def test_outcomes():
    older, newer = right = [(1, "a", {}), (2, "b", {})]
    for found, lines, expected in (
        (newer, [], "harmless"),
        (older, ["warning"], "older step, one line"),
        (older, [], "older step, 0 lines"),
        ((2, "a", {}), [], "silently wrong"),
        ((2, "b", {"x": 1}), [], "silently wrong"),
        (StorageError("no"), [], "refused"),
        (ValueError("no"), [], "ValueError: no"),
    ):
        assert damage.outcome((found, lines), right) == expected


# ---- the command


def run(*arguments) -> int:
    return launch.run_tool(campaign.define_flags, campaign.main, ["faults", *arguments])


def test_what_did_not_survive_is_exit_code_1_and_kept(tmp_path, monkeypatch, capsys):
    def bad(full, folder, draw):
        yield row("good", 2, 2, target="t", seconds=[1.0, 2.0])
        yield row("bad", 2, 1, 1, target="t", phases={"step": 2}, lost_steps=7)

    def other(full, folder, draw):
        yield row("other", 1, 1, target="t", share_pct=1.5)

    monkeypatch.setattr(campaign, "FAULTS", {"bad": bad, "other": other})
    path = tmp_path / "faults.json"
    with pytest.raises(SystemExit) as caught:
        run(f"--json={path}")
    assert str(caught.value.code).startswith("error: ")  # printed by Python, which exits with 1
    assert "bad: tried 2, survived 1, silently wrong 1" in capsys.readouterr().out
    # The rows of the other faults stay.
    assert run(f"--json={path}", "--only=other", "--full", "--seed=3") == 0
    content = json.loads(path.read_text())
    keys = ("name", "met", "full", "seed")
    assert [tuple(found[key] for key in keys) for found in content["rows"]] == [
        ("good", True, False, 0),
        ("bad", False, False, 0),
        ("other", True, True, 3),
    ]
    table = faults_table(Results([], {"faults": content}))
    assert "| bad | 2 | step 2 | 1 | 1 | 7 steps | t **missed** |" in table
    assert "| good | 2 | – | 2 | 0 | 1.5 s (at most 2.0) | t |" in table
    assert "| other | 1 | – | 1 | 0 | 1.50% | t |" in table


def test_a_missed_target_is_exit_code_1(monkeypatch):
    rows = [row("slow", 1, 1, target="t", met=False), row("quick", 1, 1, target="t")]
    monkeypatch.setattr(campaign, "FAULTS", {"both": lambda full, folder, draw: rows})
    with pytest.raises(SystemExit, match="slow"):
        run()


@pytest.mark.parametrize(("key", "name"), [("machine", "cores"), ("versions", "jax")])
def test_rows_of_another_machine_are_not_mixed_with_new_ones(
    tmp_path, monkeypatch, capsys, key, name
):
    made = {
        fault: lambda full, folder, draw: [row("row", 1, 1, target="t")] for fault in ("one", "two")
    }
    monkeypatch.setattr(campaign, "FAULTS", made)
    path = tmp_path / "faults.json"
    assert run(f"--json={path}", "--only=one") == run(f"--json={path}", "--only=two") == 0
    content = json.loads(path.read_text())
    content[key][name] = "of old"
    path.write_text(written := json.dumps(content))
    capsys.readouterr()
    assert run(f"--json={path}", "--only=two") == 2
    output, errors = capsys.readouterr()
    assert f"{name} of old -> " in errors and errors.count("\n") == 1 and not output
    assert path.read_text() == written
    assert run(f"--json={path}") == 0  # all rows are new
    assert "of old" not in path.read_text()


def test_unknown_faults_are_refused(capsys):
    assert run("--only=fire") == 2
    assert "--only=fire" in capsys.readouterr().err
