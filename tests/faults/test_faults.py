"""The fault campaign: its short forms, fault by fault, and whether it would see what it is there to
see.
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

from common import checkpoint
from common.checkpoint import Checkpointer
from common.errors import StorageError
from scripts import faults, report
from scripts.faults import DECK, Clean, Start

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in faults.FAULTS if name != "devices"]
)  # those: tests/test_scale_out.py
def test_every_fault_is_survived(tmp_path, name):
    command = [
        sys.executable,
        "-m",
        "scripts.faults",
        f"--only={name}",
        f"--json={tmp_path / 'faults.json'}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    content = json.loads((tmp_path / "faults.json").read_text())
    rows = content["rows"]
    assert done.returncode == (not all(row["met"] for row in rows)), done.stdout + done.stderr
    assert content["kind"] == "faults" and rows and not any(row["full"] for row in rows)
    for row in rows:
        assert row["survived"] == row["tried"] > 0 and row["silent"] == 0, faults.line(row)
        assert row["met"] or "seconds" in row, row  # how fast is asserted nowhere
    if name == "kill":
        assert (
            [sum(row["phases"].values()) for row in rows]
            == [row["ends"]["same"] for row in rows]
            == [2, 1]
        )
    if name == "damage":
        assert all(row["outcomes"]["older step, one line"] for row in rows)
    assert all(
        f"| {row['name']} | {row['tried']} |" in report.faults_table({"faults": [content]})
        for row in rows
    )


# ---- what a kill hit is read from the workdir


CLEAN = Clean("state", [], start_up_s=1, training_s=1, num_steps=40, epoch_steps=10, save_steps=10)


@pytest.mark.parametrize(
    ("lines", "folders", "phase"),
    [
        ([], [], "start-up"),
        (
            [(10, "train"), (10, "validation")],
            ["10"],
            "start-up",
        ),  # what stayed of the start before
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
def test_where_a_kill_hit(tmp_path, monkeypatch, lines, folders, phase):
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 10, "split": "train"}\n{"step": 13, "split": "train"}\n'
    )
    monkeypatch.setattr(faults.Case, "command", lambda *_: ["true"])
    run = Start(DECK, tmp_path)
    assert faults.phase_of(run, CLEAN) == "start-up" and run.resumed == 10
    text = "".join(json.dumps({"step": step, "split": split}) + "\n" for step, split in lines)
    faults.write_atomic(tmp_path / "metrics.jsonl", text + '{"step": 2')  # torn
    for folder in folders:
        (tmp_path / "checkpoints" / folder).mkdir(exist_ok=True)
    assert faults.phase_of(run, CLEAN) == phase
    run.end()


def test_a_run_that_ended_otherwise_is_not_the_same(tmp_path):
    lines = [
        {"step": 1, "split": "train", "loss": 0.5},
        {"step": 2, "split": "train", "loss": 0.25},
    ]
    assert CLEAN.verdict(tmp_path) == "none"
    for state, written, verdict in (
        ("state", lines, "same"),
        ("another", lines, "other"),
        ("state", lines[:1], "other"),
        ("state", [*lines, lines[1]], "other"),
        ("state", [lines[0], lines[1] | {"loss": 0.26}], "other"),
    ):
        (tmp_path / "result.json").write_text(json.dumps({"state_sha256": state}))
        (tmp_path / "metrics.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in written)
        )
        assert CLEAN._replace(lines=lines).verdict(tmp_path) == verdict


def test_a_checkpoint_that_is_not_finite_would_be_seen(tmp_path, monkeypatch):
    runs = {"finite": {"w": jnp.ones(3)}, "not finite": {"w": jnp.array([1.0, jnp.nan])}}

    def stopped_in_time(kind: str, message: str, step: int = 46) -> bool:
        module = SimpleNamespace(
            load_run=lambda workdir: SimpleNamespace(step=46, params=runs[kind])
        )
        monkeypatch.setattr(faults.importlib, "import_module", lambda name: module)
        return faults.stopped_in_time(
            SimpleNamespace(newest=lambda: step, case=DECK, workdir=tmp_path), message
        )

    message = "error: the train loss is inf at step 92 (last finite loss: 8 at step 78). The checkpoint of step 46 is safe."
    assert stopped_in_time("finite", message)
    assert not stopped_in_time("not finite", message)
    assert not stopped_in_time("finite", message, step=92)
    assert not stopped_in_time(
        "finite", "error: the train loss is inf at step 92. No checkpoint was saved before.", step=0
    )


@pytest.mark.parametrize(
    ("code", "saved", "end", "survived", "ends"),
    [
        (143, 10, "state", 1, {"same": 1}),
        (1, 10, "state", 0, {"exit code 1, 0 steps lost": 1}),
        (143, 7, "state", 0, {"exit code 143, 3 steps lost": 1}),
        (1, 7, "another", 0, {"other": 1}),
    ],
)
def test_a_stop_with_another_exit_code_or_lost_steps_is_not_survived(
    tmp_path, monkeypatch, code, saved, end, survived, ends
):
    class Run:
        """Stopped at step 10, its newest checkpoint of step `saved`; started again, it runs to its
        end.
        """

        def __init__(self, case, workdir):
            self.workdir = workdir
            workdir.mkdir(exist_ok=True)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def end(self, number=None):
            if number is None:
                (self.workdir / "result.json").write_text(json.dumps({"state_sha256": end}))
            return code if number else 0

        def last_line(self):
            return 10, "train"

        def newest(self):
            return saved

    monkeypatch.setattr(faults, "Start", Run)
    monkeypatch.setattr(faults, "wait_for_moment", lambda *_: True)
    monkeypatch.setattr(faults, "phase_of", lambda *_: "step")
    row = faults.interrupted(DECK, CLEAN, signal.SIGTERM, 1, tmp_path / "runs", random.Random(0))
    assert (row["tried"], row["survived"], row["met"], row["ends"]) == (
        1,
        survived,
        bool(survived),
        ends,
    )
    assert row["silent"] == (end == "another")


# ---- damage


def outcomes_of_flips(folder: Path, count: int) -> set[str]:
    """What came of flipped bits in the newer of two checkpoints of 4,000 weights."""
    states = [{"w": jnp.arange(4000, dtype=jnp.float32) + step} for step in (1, 2)]
    with contextlib.closing(Checkpointer(folder / "saved")) as checkpointer:
        for step, state in enumerate(states, start=1):
            checkpointer.save(step, state, {"step": step})
    right = [
        (step, checkpoint.state_sha256(state), {"step": step})
        for step, state in enumerate(states, start=1)
    ]
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {"w": jax.ShapeDtypeStruct((4000,), jnp.float32, sharding=here)}
    found, draw = set(), random.Random(0)
    for number in range(count):
        shutil.copytree(folder / "saved", copy := folder / str(number))
        faults.damage_file(copy / "checkpoints" / "2", "flip", any_byte=True, draw=draw)
        found.add(faults.outcome(faults.restored(copy, target), right))
    return found


def test_a_flipped_bit_ends_in_the_older_step(tmp_path):
    found = outcomes_of_flips(tmp_path, 8)
    assert "older step, one line" in found and found <= {"older step, one line", "harmless"}


def test_weights_that_nobody_verifies_would_be_seen(tmp_path, monkeypatch):
    """Without the digests, a flipped bit of the weights is a silent error, and counted as one."""
    monkeypatch.setattr(
        checkpoint, "_describe", lambda path, array: [array.dtype.name, list(array.shape), ""]
    )
    assert "silently wrong" in outcomes_of_flips(tmp_path, 8)


def test_outcomes():
    older, newer = right = [(1, "a", {}), (2, "b", {})]
    assert faults.outcome((newer, []), right) == "harmless"
    assert faults.outcome((older, ["warning"]), right) == "older step, one line"
    assert faults.outcome((older, []), right) == "older step, 0 lines"
    assert (
        faults.outcome(((2, "a", {}), []), right)
        == faults.outcome(((2, "b", {"x": 1}), []), right)
        == "silently wrong"
    )
    assert faults.outcome((StorageError("no"), []), right) == "refused"
    assert faults.outcome((ValueError("no"), []), right) == "ValueError: no"


# ---- the command


def test_a_row_that_did_not_survive_is_exit_code_1_and_kept(tmp_path, monkeypatch, capsys):
    def bad(full, folder, draw):
        yield faults.row("good", 2, 2, target="t", seconds=[1.0, 2.0])
        yield faults.row("bad", 2, 1, 1, target="t", phases={"step": 2}, lost_steps=7)

    def other(full, folder, draw):
        yield faults.row("other", 1, 1, target="t", share_pct=1.5)

    monkeypatch.setattr(faults, "FAULTS", {"bad": bad, "other": other})
    path = tmp_path / "faults.json"

    def call(*more):
        return faults.launch.run_tool(
            faults.define_flags, faults.main, ["faults", f"--json={path}", *more]
        )

    with pytest.raises(SystemExit, match="not everything survived"):
        call()
    assert "bad: tried 2, survived 1, silently wrong 1" in capsys.readouterr().out
    assert call("--only=other", "--full", "--seed=3") == 0  # the rows of the other faults stay
    rows = json.loads(path.read_text())["rows"]
    assert [(row["name"], row["met"], row["full"], row["seed"]) for row in rows] == [
        ("good", True, False, 0),
        ("bad", False, False, 0),
        ("other", True, True, 3),
    ]
    table = report.faults_table({"faults": [json.loads(path.read_text())]})
    assert "| bad | 2 | step 2 | 1 | 1 | 7 steps | t **missed** |" in table
    assert "| good | 2 | – | 2 | 0 | 1.5 s (at most 2.0) | t |" in table
    assert "| other | 1 | – | 1 | 0 | 1.50% | t |" in table


def test_a_missed_target_is_exit_code_1_and_one_line(tmp_path, monkeypatch, capsys):
    rows = [faults.row("slow", 1, 1, target="t", met=False), faults.row("quick", 1, 1, target="t")]
    monkeypatch.setattr(faults, "FAULTS", {"both": lambda full, folder, draw: rows})
    with pytest.raises(SystemExit) as caught:
        faults.launch.run_tool(faults.define_flags, faults.main, ["faults"])
    assert caught.value.code == "error: everything survived, but targets were missed: slow."


@pytest.mark.parametrize(("key", "name"), [("machine", "cores"), ("versions", "jax")])
def test_rows_made_elsewhere_are_not_passed_off_as_made_here(
    tmp_path, monkeypatch, capsys, key, name
):
    made = {
        fault: lambda full, folder, draw: [faults.row("row", 1, 1, target="t")]
        for fault in ("one", "two")
    }
    monkeypatch.setattr(faults, "FAULTS", made)
    path = tmp_path / "faults.json"

    def call(*more):
        return faults.launch.run_tool(
            faults.define_flags, faults.main, ["faults", f"--json={path}", *more]
        )

    assert call("--only=one") == call("--only=two") == 0
    content = json.loads(path.read_text())
    content[key][name] = "of old"
    path.write_text(written := json.dumps(content))
    capsys.readouterr()
    assert call("--only=two") == 2
    output, errors = capsys.readouterr()
    assert (
        f"has rows made elsewhere ({name} of old -> " in errors
        and errors.count("\n") == 1
        and not output
    )
    assert path.read_text() == written
    assert call() == 0  # nothing of old is kept
    assert "of old" not in path.read_text()


def test_without_results_the_table_says_so():
    assert report.faults_table({}) == "Not measured yet."


def test_unknown_faults_are_refused(capsys):
    assert faults.launch.run_tool(faults.define_flags, faults.main, ["faults", "--only=fire"]) == 2
    assert "--only=fire is none; allowed: kill, stop, " in capsys.readouterr().err
