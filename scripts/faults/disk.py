"""Files that cannot grow, and a disk that is full."""

import random
import re
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from common.errors import StorageError
from common.workdir import saved_steps
from scripts.faults.runs import DECK, ROOT, Clean, Start, is_one_error_line, row, row_of, run_clean

TARGET = f"exit code {StorageError.exit_code}, one line; resumes when there is space"
# $0: where to mount a disk of 20 MB, $1: the bytes to leave free, $2: the folder for the results;
# then the command. Runs it on the full disk, frees the space, runs it again.
ON_A_FULL_DISK = """
mount -t tmpfs -o size=20m none "$0" || exit 99
head -c $((20 * 1024 * 1024 - $1)) /dev/zero > "$0"/ballast || exit 99
out=$2; shift 2
"$@" > "$out/output" 2>&1; code=$?
rm "$0"/ballast
"$@" > /dev/null 2>&1
cp "$0"/run/*.json* "$out"
exit $code
"""


def disk(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """A file size limit (ulimit) set after the first checkpoint; a full disk, where mounting one is
    permitted.
    """
    clean, tries = run_clean(DECK, folder / "clean"), 3 if full else 1
    yield limited_files(clean, tries, folder)
    ends, survived = Counter(), 0
    for number in range(tries):
        free = int(draw.uniform(0.1, 1.5) * 1e6)  # bytes: less than one checkpoint to three
        tried = on_a_full_disk(clean, free, folder / f"disk{number}", folder / f"out{number}")
        if tried is None and not full:  # a published table says so
            return
        good, end = tried or (False, "no disk can be mounted here")
        ends[end] += 1
        survived += good
    yield row("disk full", tries, survived, ends["other"], target=TARGET, ends=dict(ends))


def limited_files(clean: Clean, tries: int, folder: Path) -> dict:
    ends, survived = Counter(), 0
    for number in range(tries):
        with Start(DECK, folder / f"limit{number}") as run:
            run.wait(lambda newest=run.newest: newest() > 0)
            resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (50_000, 50_000))
            code, output = run.end(), run.output()
            told = is_one_error_line(output) and f"step {run.newest()}" in output[-1]
        with Start(DECK, run.workdir) as again:
            again.end()
        ends[end := clean.verdict(run.workdir)] += 1
        survived += (good := code == StorageError.exit_code and told and end == "same")
        if not good:
            print(f"files of 50,000 bytes: exit code {code}, {output[-3:]}, {end}", file=sys.stderr)
    counts = dict(target=TARGET, ends=dict(ends))
    return row("files cannot grow", tries, survived, ends["other"], **counts)


def on_a_full_disk(clean: Clean, free: int, mounted: Path, out: Path) -> tuple[bool, str] | None:
    """(whether the run survived, its verdict) with `free` bytes; None if nothing can be mounted."""
    mounted.mkdir()
    out.mkdir()
    script = ["sh", "-c", ON_A_FULL_DISK, str(mounted), str(free), str(out)]
    command = ["unshare", "--map-root-user", "--mount", *script, *DECK.command(mounted / "run")]
    code = subprocess.run(command, cwd=ROOT).returncode
    if not (out / "output").exists():
        return None
    output, end = (out / "output").read_text().splitlines(), clean.verdict(out)
    good = code == StorageError.exit_code and is_one_error_line(output) and end == "same"
    if not good:
        print(f"{free} bytes free: exit code {code}, {output[-3:]}, {end}", file=sys.stderr)
    return good, end


def failed_save(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """A file size limit for the time of one save, which is written beside the training."""
    flags = (*DECK.flags, "--batch_size=8")  # epochs of seconds, longer than the limit stays
    case, found = DECK._replace(flags=flags, num_epochs=4), []
    clean = run_clean(case, folder / "clean")
    for number in range(3 if full else 1):
        epoch = draw.choice((1, 2))
        with Start(case, folder / str(number)) as run:
            run.wait(lambda run=run, epoch=epoch: run.newest() >= epoch * clean.epoch_steps)
            limit(run, 50_000)
            run.wait(run.is_saving)
            run.wait_s(0.5)
            limit(run, resource.RLIM_INFINITY)
            end, output = clean.end(run), "\n".join(run.output())
        lost = (epoch + 1) * clean.epoch_steps
        told = re.findall(r"warning: at step (\d+), a checkpoint could not be written", output)
        saved = saved_steps(run.workdir)
        if end == "same" and (told != [str(lost)] or lost in saved or run.newest() <= lost):
            end = f"step {lost} was to fail; told of {told}, saved {saved}"
        found.append((f"the save of step {lost}", end))
    target = "one line, goes on, saves the next; the same bits"
    yield row_of("a save failed, the next has room", found, target)


def limit(run: Start, size: int) -> None:
    """Limits the bytes of each file that the run writes."""
    _, hard = resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (size, hard))
