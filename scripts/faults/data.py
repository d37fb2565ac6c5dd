"""Data that lies: labels in another order, records on both sides, folders that are no class."""

import json
import random
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

import lenet.data
from common.examples import load
from scripts.faults.runs import TINY, call, refusal, row_of, run_clean
from scripts.prepare.builders import write_prepared

DIGITS = tuple("0123456789")
SPLIT = (  # 8,000 training digits, of which the last 64 are for validation, and 2,000 for the test
    *("--flagfile=alexnet/presets/small.flags", "--dataset=mnist10k", "--validation_size=64"),
    "--num_epochs=1",
)
OVERLAPS = (
    *("--test_split=train[:5]", "--test_split=train[7999:]", "--test_split=train"),
    *("--train_split=train+test[:10]", "--train_split=test", "--train_split=train+train[:1]"),
)
HIDDEN = (
    *("train/.ipynb_checkpoints/1.png", "__MACOSX/train/3/._1.png", "train/@eaDir/1.png"),
    *("train/lost+found/1.png", "train/3/._1.png", "test/3/Thumbs.db", "test/desktop.ini"),
)
DISTURBING = (  # most would be left out, or would be what it is not
    *(("train/3/thumbnails/{}.png", 9), ("{}.png", 9), ("train/3/{}.bmp", 9)),
    *(("valid/images/{}.png", 1), ("val/3/{}.txt", 1), ("train/9/{}.txt", 1)),
)


def data(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """Other label orders and names, splits that overlap, sources with more in them."""
    run_clean(TINY, folder / "run")
    reordered = [tuple(draw.sample(DIGITS, size)) for size in ((10, 10, 7, 4, 1) if full else (7,))]
    wrong = [(*DIGITS[:9], "ten"), (*DIGITS, "letter")] if full else [(*DIGITS[:9], "ten")]
    found = [(", ".join(names), scored(folder, names)) for names in reordered + wrong]
    target = "the same errors, or refused by the names"
    yield row_of("labels in another order, other classes", found, target, ("same", "refused"))

    found = []
    for number, flag in enumerate(OVERLAPS if full else OVERLAPS[:1]):
        workdir = f"--workdir={folder / f'overlap{number}'}"
        done = call("alexnet.train", *SPLIT, workdir, flag)
        found.append((flag, refusal(done, "--allow_overlap")))
    yield row_of("splits share records", found, "refused, names the records", ("refused",))

    found, (prepared, _) = [], prepare(folder / "source", ())
    hidden = [(name,) for name in HIDDEN] if full else [HIDDEN]
    for number, names in enumerate(hidden):
        others, done = prepare(folder / f"hidden{number}", names)
        told = f"{len(names)} hidden" in done.stdout
        found.append((", ".join(names), "same" if told and others == prepared else "other"))
    for number, (name, count) in enumerate(DISTURBING if full else DISTURBING[:1]):
        names = [name.format(i) for i in range(count)]
        _, done = prepare(folder / f"disturbing{number}", names)
        found.append((f"{count} {name}", refusal(done)))
    target = "hidden ones ignored and counted, others refused"
    yield row_of("a source with more than classes", found, target, ("same", "refused"))


def scored(folder: Path, names: tuple[str, ...]) -> str:
    """What `evaluate` gives for the embedded test digits that have one of `names`, whose place is
    their label; against the confusion matrix of the run.
    """
    digits = load("mnist10k", "test", [lenet.data.DIGITS])
    pairs = [
        (image, names.index(str(label)))
        for image, label in zip(digits.images, digits.labels, strict=True)
        if str(label) in names
    ]
    dataset = f"digits{len(list(folder.glob('sets/*')))}"
    splits, shape = {"test": pairs}, digits.image_shape
    write_prepared(folder / "sets", dataset, "1.0.0", splits, shape, names, keep_order=True)
    flags = (f"--dataset={dataset}", f"--data_dir={folder / 'sets'}", "--json")
    done = call("scripts.evaluate", f"--workdir={folder / 'run'}", *flags)
    if unknown := [name for name in names if name not in DIGITS]:
        return refusal(done, unknown[0])
    if done.returncode:
        return f"exit code {done.returncode}: {done.stderr.splitlines()[-1:]}"
    confusion = json.loads((folder / "run" / "result.json").read_text())["confusion_matrix"]
    expected = np.where(np.isin(DIGITS, names)[:, None], confusion, 0).tolist()
    return "same" if json.loads(done.stdout)["confusion_matrix"] == expected else "other"


def prepare(source: Path, more: Iterable[str]) -> tuple[dict | None, subprocess.CompletedProcess]:
    """Writes two classes of noise, and files of the names `more`; prepares them as a set.

    Returns what each split has (None where nothing was prepared), and the finished command.
    """
    draw = np.random.default_rng(0)
    seen = [f"{split}/{name}/{i}.png" for split in ("train", "test") for name in "35" for i in "12"]
    for name in (*seen, *more):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(draw.integers(0, 256, (28, 28), np.uint8))
        image.save(source / name, "PNG")
    sets = source.with_name(f"{source.name}_prepared")
    flags = (f"--source={source}", f"--data_dir={sets}", "--size=28", "--grey", "--num_workers=1")
    done = call("scripts.prepare_data", "--dataset=own", *flags)
    if done.returncode:
        return None, done
    splits = [load("own", split, [sets]) for split in ("train", "test")]
    return {
        "images": [split.images.tolist() for split in splits],
        "labels": [split.labels.tolist() for split in splits],
        "names": [split.class_names for split in splits],
    }, done
