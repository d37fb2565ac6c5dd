"""Run folders that older versions of this project wrote, in tests/golden.

Each was interrupted in the middle; its expected.json says what the same run ended in,
uninterrupted, and what an evaluation of the folder gave.
"""

import json
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common import provenance
from common.workdir import read_metrics
from scripts.faults.runs import ROOT, call, row_of
from scripts.prepare.builders import write_prepared

GOLDEN = ROOT / "tests" / "golden"


def releases(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """Evaluates and resumes them."""
    write_noise10(folder / "sets")
    names = ("lenet_deck", "lenet_paper", "alexnet_cifar18") if full else ("lenet_deck",)
    found = []
    for name in names:
        shutil.copytree(GOLDEN / name, folder / name)
        expected = json.loads((folder / name / "expected.json").read_text())
        found.append((f"{name}, evaluate", evaluated(folder / name, expected)))
        found.append((f"{name}, resume", resumed(folder / name, name, expected)))
    target = "the error that it had, the bits that it would have had"
    yield row_of("run folder of an older version", found, target)


def write_noise10(data_dir: Path) -> None:
    """The noise that the AlexNet folder was trained on, bit for bit, as a prepared set."""
    draw = np.random.Philox(np.random.SeedSequence(10))
    pixels = draw.random_raw(160 * 32 * 32 * 3 // 8).view(np.uint8).reshape(160, 32, 32, 3)
    examples = [(image, i % 10) for i, image in enumerate(pixels)]
    splits = {"train": examples, "test": examples}
    names = [str(label) for label in range(10)]
    write_prepared(data_dir, "noise10", "1.0.0", splits, (32, 32, 3), names, keep_order=True)


def evaluated(workdir: Path, expected: dict) -> str:
    sets = f"--data_dir={workdir.parent / 'sets'}"
    done = call("scripts.evaluate", f"--workdir={workdir}", "--json", sets)
    if done.returncode:
        return f"exit code {done.returncode}: {done.stderr.splitlines()[-1:]}"
    now, then = json.loads(done.stdout), expected["evaluation_then"]
    is_same = (
        now["step"] == then["step"] == expected["interrupted_at_step"]
        and abs(now["error_pct"] - then["error_pct"]) <= 0.2
    )
    return "same" if is_same and math.isclose(now["loss"], then["loss"], rel_tol=1e-4) else "other"


def resumed(workdir: Path, name: str, expected: dict) -> str:
    flags = [f"--flagfile={workdir}/flags.txt", f"--workdir={workdir}"]
    sets = f"--data_dir={workdir.parent / 'sets'}"
    done = call(f"{name.partition('_')[0]}.train", *flags, sets)
    if done.returncode:
        return f"exit code {done.returncode}: {done.stderr.splitlines()[-1:]}"
    result, complete = json.loads((workdir / "result.json").read_text()), expected["complete"]
    places = [(line["step"], line["split"]) for line in read_metrics(workdir)]
    if len(places) != len(set(places)) or places[-1][0] != complete["num_steps"]:
        return "other"
    now = provenance.collect(seed=0, dataset="")
    is_here = all(
        now[what][key] == complete[what][key]
        for what, key in (("machine", "processor"), ("versions", "jax"))
    )
    compared = [key for key in complete if key.endswith("_error_pct") or key == "state_sha256"]
    is_same = all(result[key] == complete[key] for key in compared)
    return "same" if is_same or not is_here else "other"
