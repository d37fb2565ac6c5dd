"""Each step is in metrics.jsonl once, numbers are exact, and a non-finite loss stops the run."""

import errno
import itertools
import json
import math
import os
import pty
import re
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax.numpy as jnp
import matplotlib.figure
import pytest
from tensorboardX import record_writer
from tensorboardX.proto.event_pb2 import Event

from common import workdir, writer
from common.curves import draw_curves, mean_by_epoch
from common.errors import NonFiniteError, UserError
from common.workdir import read_metrics, write_atomic
from common.writer import Writer

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("without_curves")


def sums(loss: float = 64.0, errors: int = 32, count: int = 128) -> dict:
    return {"loss": jnp.float32(loss), "errors": jnp.int32(errors), "count": jnp.int32(count)}


def open_writer(folder, first_step: int = 0, **more) -> Writer:
    return Writer(folder, first_step=first_step, num_steps=40, steps_per_epoch=10, **more)


def steps_and_splits(folder) -> list[tuple[int, str]]:
    return [(record["step"], record["split"]) for record in read_metrics(folder)]


def test_lines_are_the_contract(tmp_path):
    with open_writer(tmp_path) as log:
        log.write(5, "train", sums())
        log.write(10, "train", sums(errors=1))
        log.write(10, "validation", sums(loss=300.0, errors=3, count=600))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 5, "epoch": 0.5, "split": "train", "loss": 0.5, "error_pct": 25.0},
        {"step": 10, "epoch": 1.0, "split": "train", "loss": 0.5, "error_pct": 0.78125},
        {"step": 10, "epoch": 1.0, "split": "validation", "loss": 0.5, "error_pct": 0.5},
    ]


def test_a_folder_named_like_a_clouds_is_a_folder(tmp_path, monkeypatch):
    """tensorboardX would open gs:/run elsewhere."""
    monkeypatch.chdir(tmp_path)
    folder = Path("gs://run")
    folder.mkdir(parents=True)
    with open_writer(folder) as log:
        log.write(5, "train", sums())
    assert steps_and_splits(folder) and any(folder.glob("events*"))


@pytest.mark.commands
def test_a_writer_does_not_import_pytorch(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    code = (
        "from pathlib import Path\n"
        "from common.writer import Writer\n"
        f"with Writer(Path({str(tmp_path)!r}), first_step=0, num_steps=1, steps_per_epoch=1): pass"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("events.*"))


def test_training_is_written_one_call_behind_and_flush_catches_up(tmp_path):
    with open_writer(tmp_path) as log:
        log.write(1, "train", sums())
        assert steps_and_splits(tmp_path) == [(1, "train")]  # the first starts the clock
        log.write(2, "train", sums())
        assert steps_and_splits(tmp_path) == [(1, "train")]
        log.write(3, "train", sums())
        assert steps_and_splits(tmp_path) == [(1, "train"), (2, "train")]
        log.flush()
        assert steps_and_splits(tmp_path)[-1] == (3, "train")
        log.write(4, "train", sums())
    assert steps_and_splits(tmp_path)[-1] == (4, "train")  # the end of the block flushes


def crashed_run(folder) -> None:
    """As kill -9 leaves it: a checkpoint at step 20, lines up to step 30, the last one torn."""
    with open_writer(folder) as log:
        for step in (10, 20, 30):
            log.write(step, "train", sums())
            log.write(step, "validation", sums())
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 31, "epoch": 3.1, "spl')


def test_a_resume_leaves_each_step_once(tmp_path):
    crashed_run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()[:4]
    with open_writer(tmp_path, first_step=20) as log:
        assert (tmp_path / "metrics.jsonl").read_text().splitlines() == before  # bit for bit
        log.write(20, "validation", sums())  # evaluated again: it stands there already
        log.write(30, "train", sums())
        log.write(30, "validation", sums())
    both = ("train", "validation")
    assert steps_and_splits(tmp_path) == [(step, split) for step in (10, 20, 30) for split in both]


def test_a_start_from_nothing_keeps_no_line(tmp_path):
    """Killed before its first checkpoint."""
    crashed_run(tmp_path)
    with open_writer(tmp_path) as log:
        log.write(10, "train", sums())
    assert steps_and_splits(tmp_path) == [(10, "train")]


def test_tensorboard_hides_what_a_resume_repeats(tmp_path):
    crashed_run(tmp_path)
    # The names have a resolution of one second.
    first = next(tmp_path.glob("events*")).rename(tmp_path / "first")
    with open_writer(tmp_path, first_step=20) as log:
        log.write(30, "validation", sums(errors=64))
    second = next(tmp_path.glob("events*"))
    assert {"loss/train", "error_pct/validation"} <= {
        value.tag for event in events(first) for value in event.summary.value
    }
    starts = [event.step for event in events(second) if event.HasField("session_log")]
    assert starts == [21]  # TensorBoard drops what older files hold from this step on
    found = [
        (event.step, value.simple_value)
        for event in events(second)
        for value in event.summary.value
    ]
    assert (30, 50.0) in found


def events(path: Path) -> list[Event]:
    """The records of a TFRecord file: length (8 bytes), checksum (4), data, checksum (4)."""
    content, found = path.read_bytes(), []
    while content:
        length = int.from_bytes(content[:8], "little")
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def test_a_disk_that_is_full_for_the_events_alone_ends_the_run(tmp_path, monkeypatch):
    """And does not leave it waiting for a thread that has ended."""
    monkeypatch.setattr(
        record_writer,
        "open_file",
        lambda _, open_file=record_writer.open_file: open_file("/dev/full"),
    )
    failures = []

    def train():
        try:
            with open_writer(tmp_path) as log:
                for step in range(1, 401):
                    log.write(step, "train", sums())
        except OSError as error:
            failures.append(error.errno)

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    thread.join(60)
    assert failures == [errno.ENOSPC]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path, loss, split):
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    with (
        pytest.raises(NonFiniteError) as caught,
        open_writer(tmp_path, learning_rate=lambda done: 0.01 * done) as log,
    ):
        log.write(20, "train", sums(loss=32.0))
        log.write(30, split, sums(loss=loss))
        log.write(31, "train", sums())
    message = str(caught.value)
    for fact in (split, f"{loss} at step 30", "rate 0.29", "0.25 at step 20", "step 20 is safe"):
        assert fact in message
    assert "\n" not in message
    assert steps_and_splits(tmp_path) == [(20, "train")]


@pytest.mark.parametrize("what", ["draw_curves", "RecordWriter.close"])
def test_the_first_error_is_the_one_that_is_told(tmp_path, monkeypatch, what):
    """Whether it comes in the block or from the flush at its end, before a full disk in closing."""
    owner, name = (writer, what) if what == "draw_curves" else (record_writer.RecordWriter, "close")
    original = getattr(owner, name)

    def fail(*arguments):
        original(*arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(UserError, match="first"), open_writer(tmp_path):
        raise UserError("first")
    with pytest.raises(NonFiniteError), open_writer(tmp_path) as log:
        log.write(1, "train", sums(loss=math.nan))
    with pytest.raises(OSError, match="No space left"), open_writer(tmp_path) as log:
        log.write(1, "train", sums())


def test_speed_leaves_out_compilation_and_evaluation_and_sums_over_resumes(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(writer.time, "monotonic", lambda: now[0])

    def pass_seconds(seconds):
        now[0] += seconds

    with open_writer(tmp_path) as log:
        pass_seconds(50)  # compilation
        log.write(1, "train", sums(count=1000))
        log.flush()
        # Nothing is timed yet: with the compilation.
        assert (log.images, log.seconds, log.images_per_s) == (1000, 50.0, 20.0)
        pass_seconds(2)
        log.write(2, "train", sums(count=1000))
        log.flush()
        pass_seconds(30)  # evaluation
        log.write(2, "validation", sums())
        pass_seconds(3)
        log.write(3, "train", sums(count=1500))
        log.flush()
        totals = json.loads(json.dumps(log.totals))  # as a checkpoint keeps it
    assert (log.images, log.seconds, log.images_per_s) == (3500, 85.0, 500.0)
    pass_seconds(1000)
    with open_writer(tmp_path, first_step=3, before=totals) as log:
        pass_seconds(10)
        log.write(4, "train", sums(count=1000))
        log.flush()
        pass_seconds(5)
        log.write(5, "train", sums(count=500))
        log.flush()
    assert (log.images, log.seconds, log.images_per_s) == (5000, 100.0, 300.0)


def test_the_clock_starts_with_the_end_of_the_first_steps(tmp_path, monkeypatch):
    """Not when their sums are fetched, a call later."""
    now = [100.0]
    monkeypatch.setattr(writer.time, "monotonic", lambda: now[0])
    with open_writer(tmp_path) as log:
        for step, seconds in ((1, 50), (2, 2), (3, 2)):
            now[0] += seconds
            log.write(step, "train", sums(count=1000))
        log.flush()
        assert log.images_per_s == 500


def test_plain_lines_without_a_terminal(tmp_path, monkeypatch, capsys):
    ticks = itertools.count()
    monkeypatch.setattr(writer.time, "monotonic", lambda: next(ticks) / 100)
    with open_writer(tmp_path) as log:
        for step in range(1, 21):
            log.write(step, "train", sums())
        log.write(20, "validation", sums())
    lines = capsys.readouterr().err.splitlines()  # the others came within seconds
    expected = "1/40 0.10 train", "2/40 0.20 train left", "20/40 2.00 validation"
    for line, facts in zip(lines, expected, strict=True):
        assert set(facts.split()) | {"0.5000", "25.00%"} <= set(line.split())


@pytest.mark.parametrize("resumed", [False, True])
def test_speed_and_time_left_are_first_shown_where_nothing_is_compiled(
    tmp_path, monkeypatch, capsys, resumed
):
    first = 20 if resumed else 0
    if resumed:
        crashed_run(tmp_path)
        capsys.readouterr()
    now = [100.0]
    monkeypatch.setattr(writer.time, "monotonic", lambda: now[0])
    with open_writer(tmp_path, first_step=first) as log:
        if resumed:
            now[0] += 30
            log.write(first, "validation", sums())  # written before: a resume scores it again
        for step, seconds in ((first + 1, 50), (first + 2, 2), (first + 3, 2)):
            now[0] += seconds
            log.write(step, "train", sums(count=1000))
            log.flush()
    compiled, *more = capsys.readouterr().err.splitlines()
    assert f"step {first + 1}/40" in compiled
    assert "images/s" not in compiled and "left" not in compiled
    (timed,) = more
    assert f"step {first + 2}/40" in timed
    assert f"500 images/s  {'0:00:36' if resumed else '0:01:16'} left" in timed
    assert log.images_per_s == 500


def on_a_terminal(program: str) -> str:
    """What a program that has `Writer` prints on a terminal."""
    start = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom common.writer import Writer\n"
    main_end, terminal = pty.openpty()
    command = [sys.executable, "-c", start + textwrap.dedent(program)]
    subprocess.run(
        command, stderr=terminal, check=True, env=os.environ | {"TERM": "xterm", "COLUMNS": "180"}
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(main_end, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
    os.close(main_end)
    return shown.decode()


@pytest.mark.commands
def test_a_bar_on_a_terminal(tmp_path):
    shown = on_a_terminal(f"""
        with Writer({str(tmp_path)!r}, first_step=0, num_steps=4, steps_per_epoch=2) as log:
            for step in (1, 2, 3, 4):
                log.write(step, "train", {{"loss": 64.0, "errors": 32, "count": 128}})
                if step % 2 == 0:
                    errors = {{2: 8, 4: 16}}[step]
                    log.write(step, "validation", {{"loss": 64.0, "errors": errors, "count": 128}})
    """)
    for text in (
        "best validation error 6.25% (epoch 1)",
        "epoch 2.0",
        "100%",
        "images/s",
        "loss 0.5000  error 25.00%",
        "validation loss 0.5000  error 12.50%",
    ):
        assert text in shown, shown
    # The first of four equal steps has no speed: it is compiled as well.
    assert "images/s" not in shown.partition("25%")[2].partition("50%")[0], shown


def test_curves_show_the_mean_error_of_each_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "draw_curves", draw_curves)  # as outside of the tests
    with open_writer(tmp_path) as log:
        log.write(6, "train", sums(errors=128))  # 100% over 6 steps
        log.write(10, "train", sums(errors=0))  # 0% over 4
        log.write(10, "validation", sums(errors=64))
        log.write(20, "train", sums(errors=32))
        log.write(20, "test", sums(errors=16))
    assert mean_by_epoch(read_metrics(tmp_path), "error_pct") == {
        "train": [(1.0, 60.0), (2.0, 25.0)],
        "validation": [(1.0, 50.0)],
        "test": [(2.0, 12.5)],
    }
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_lines_of_one_step_that_no_run_wrote_have_a_mean():
    line = {"step": 4, "epoch": 1.0, "split": "train", "error_pct": 20.0}
    assert mean_by_epoch([line, line], "error_pct") == {"train": [(1.0, 20.0)]}


@pytest.mark.parametrize("errors", [[], [0], [0, 0], [128, 0, 1], [10, 9]])
@pytest.mark.parametrize("schedule", [None, lambda step: 0.1 * jnp.cos(step)])
def test_the_panels_of_curves_of_any_shape(tmp_path, monkeypatch, errors, schedule):
    panels, savefig = [], matplotlib.figure.Figure.savefig
    tmp_path = tmp_path / "$1_{$2"  # no formula
    tmp_path.mkdir()

    def record(figure, *arguments, **options):
        panels.append([axes.get_ylabel() for axes in figure.axes])
        return savefig(figure, *arguments, **options)

    with open_writer(tmp_path) as log:
        for step, count in enumerate(errors, 1):
            log.write(step, "train", sums(errors=count))
            log.write(step, "validation", sums(errors=count))
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", record)
    draw_curves(tmp_path, schedule)
    assert (tmp_path / "curves.png").exists() == bool(errors)
    names = ["error", "loss"] + (["learning rate"] if schedule else [])
    assert panels == ([names] if errors else [])


def test_write_atomic_replaces_the_whole_file_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_atomic(path, "one")

    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr(workdir.os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, "two, and longer")
    assert path.read_text() == "one" and len(list(tmp_path.iterdir())) == 1
    monkeypatch.undo()
    write_atomic(path, b"three")
    assert path.read_text() == "three"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]
    write_atomic(tmp_path / ("long" * 60 + ".json"), "x")  # 245 bytes


def test_of_two_that_write_a_file_at_once_one_is_whole(tmp_path):
    path, contents = tmp_path / "result.json", ["a" * 100_000, "b" * 50_000]
    with ThreadPoolExecutor() as pool:
        writing = [pool.submit(write_atomic, path, contents[n % 2]) for n in range(40)]
        while not all(each.done() for each in writing):
            assert not path.exists() or path.read_text() in contents
        for each in writing:
            each.result()
    assert len(list(tmp_path.iterdir())) == 1


def said_to_be_at_chance(folder, capsys, losses, first_step=0, **more) -> list[str]:
    """The numbers of steps that are reported to be at chance; a line of metrics every 50 steps."""
    with open_writer(
        folder, first_step, **({"chance_loss": math.log(10), "hint": "Try another seed."} | more)
    ) as log:
        for step, loss in enumerate(losses, 1):
            log.write(first_step + 50 * step, "train", sums(loss=128 * loss))
    return re.findall(
        r"^not learning.* ([\d,]+) steps.*seed", capsys.readouterr().err, re.MULTILINE
    )


CHANCE, BELOW = math.log(10), 0.98 * math.log(10)


@pytest.mark.parametrize(
    ("losses", "steps"),
    [
        ([CHANCE] * 3, []),
        ([CHANCE] * 4, ["200"]),
        ([CHANCE] * 31, ["200", "400", "800"]),  # 1,550 steps: twice as long each time
        ([CHANCE] * 32, ["200", "400", "800", "1,600"]),
        ([BELOW] * 20, []),
        ([1.02 * CHANCE] * 20, []),  # not there yet
        ([CHANCE, CHANCE, CHANCE, BELOW] * 4, []),
        ([CHANCE] * 9 + [BELOW] * 9, ["200", "400"]),  # silent once it has left
        ([CHANCE] * 9 + [BELOW] + [CHANCE] * 4, ["200", "400", "200"]),  # back: from the start
    ],
)
def test_training_that_stays_at_chance_is_reported(tmp_path, capsys, losses, steps):
    assert said_to_be_at_chance(tmp_path, capsys, losses) == steps


def test_chance_is_a_loss_within_one_percent(tmp_path, capsys):
    counts = [
        len(said_to_be_at_chance(tmp_path, capsys, [factor * CHANCE] * 4))
        for factor in (0.989, 0.991, 1.009, 1.011)
    ]
    assert counts == [0, 1, 1, 0]


def test_steps_at_chance_are_counted_from_the_resume(tmp_path, capsys):
    assert said_to_be_at_chance(tmp_path, capsys, [CHANCE] * 3, first_step=1000) == []
    assert said_to_be_at_chance(tmp_path, capsys, [CHANCE] * 4, first_step=1000) == ["200"]


def test_without_a_chance_loss_nothing_is_said(tmp_path, capsys):
    assert said_to_be_at_chance(tmp_path, capsys, [CHANCE] * 8, chance_loss=None) == []


def test_an_evaluation_at_chance_is_no_training_at_chance(tmp_path, capsys):
    with open_writer(tmp_path, chance_loss=CHANCE) as log:
        for step in range(50, 1000, 50):
            log.write(step, "train", sums(loss=128 * BELOW))
            log.write(step, "validation", sums(loss=128 * CHANCE))
    assert "not learning" not in capsys.readouterr().err


@pytest.mark.commands
def test_chance_is_reported_above_the_bar_too(tmp_path):
    shown = on_a_terminal(f"""
        numbers = dict(first_step=0, num_steps=400, steps_per_epoch=400)
        with Writer({str(tmp_path)!r}, **numbers, chance_loss=0.5, hint="[a] hint") as log:
            for step in range(20, 401, 20):
                log.write(step, "train", {{"loss": 64.0, "errors": 32, "count": 128}})
    """)
    found = re.findall(r"not learning.* 0\.500 for (\d+) steps.* 0\.500\. \[a\] hint", shown)
    assert found == ["200", "400"], shown
