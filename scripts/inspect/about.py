"""What was run, and how it went: what needs a run's folder alone."""

import dataclasses
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import common.flags
from common.curves import LOOKS, mean_by_epoch
from scripts.inspect.opened import Run, number
from scripts.inspect.parts import Cell, Drawing, Grid, Table
from scripts.inspect.seen import confusion_matrix
from scripts.report.results import preset_of
from scripts.report.studies import MEASURES, NETWORKS
from scripts.report.style import COLORS, content, scale_error, style

MAX_CLASSES = 20  # of a matrix that is shown in full
LISTED = 10  # confusions and settings in a sentence
CURVE_COLORS = {"train": "#7f8c99", "validation": COLORS[1], "test": COLORS[0]}


class Published(NamedTuple):
    """What others report: of which data set, in percent of each measure, and who."""

    dataset: str
    errors: dict[str, str]
    source: str


LECUN, TEN = "LeCun et al. 1998", ("ten_crop_top1_error_pct", "ten_crop_top5_error_pct")
KRIZHEVSKY = Published(
    "imagenet_256", dict(zip(TEN, ("40.7%", "18.2%"), strict=True)), "Krizhevsky et al. 2012"
)
PUBLISHED = {  # accuracies of Caffe's and torchvision's weights as errors
    ("lenet", "paper"): Published("mnist", {"test_error_pct": "0.95 ± 0.1%"}, LECUN),
    ("lenet", "paper with distortions"): Published("mnist", {"test_error_pct": "0.8%"}, LECUN),
    ("lenet", "lush"): Published(
        "mnist", {"test_error_pct": "0.82 ± 0.2%"}, "Yadav, Bottou 2019 (two sigma)"
    ),
    ("alexnet", "paper"): KRIZHEVSKY,
    ("alexnet", "code2012"): KRIZHEVSKY,
    ("alexnet", "caffe"): Published(
        "imagenet_256", {"test_error_pct": "42.9%", "top5_error_pct": "19.8%"}, "bvlc_alexnet"
    ),
    ("alexnet", "torchvision"): Published(
        "imagenet_256", {"test_error_pct": "43.5%", "top5_error_pct": "20.9%"}, "torchvision"
    ),
    ("alexnet", "cifar18"): Published(
        "cifar10", {"test_error_pct": "18%"}, "cuda-convnet, whole images without augmentation"
    ),
    ("alexnet", "cifar13"): Published(
        "cifar10", {"ten_crop_top1_error_pct": "13%"}, "cuda-convnet, nine crops"
    ),
}


def summary(run: Run) -> str:
    """A line on the whole run."""
    error, preset = number(run.result, "test_error_pct"), preset_name(run)
    which = f", preset {preset}," if preset else ""
    how = "" if error is None else f": {error:.2f}% test error"
    step = f" after {run.trained.step:,} steps"
    if imported_from(run):
        which, step = f" with the weights of {run.result['imported'].get('weights')},", ""
    return f"{NETWORKS[run.network]}{which} on {run.trained.config.dataset}{how}{step}"


def preset_name(run: Run) -> str:
    """The preset that the command names, LeNet-5's default where it names none; "" where neither
    is known, as of a run that repeats another's flags.txt.
    """
    command = run.result.get("command")
    if not isinstance(command, str) or ("flagfile" in command and not preset_of(command)):
        return ""
    known = common.flags.presets(type(run.trained.config))
    preset = preset_of(command) or ("deck" if run.network == "lenet" else "")
    return preset if preset in known else ""


def imported_from(run: Run) -> str:
    """Whose weights `scripts.convert` imported, and from which file; "" of a run trained here."""
    found = run.result.get("imported")
    if not isinstance(found, dict):
        return ""
    return f"{found.get('weights')}, of {found.get('file')} (SHA-256 {found.get('sha256')})"


def what_was_run(run: Run) -> Table:
    """Command, commit, data, machine."""
    config, result = run.trained.config, run.result
    step = run.trained.step
    is_last = result.get("num_steps", step) == step  # else the result is of another checkpoint
    unknown = "not known before the run ends; flags.txt in its folder replays it"
    command = f"{result.get('command', unknown)}"
    network = run.trained.network
    about = f"{network.num_parameters:,} parameters, {network.num_classes:,} classes"
    rows = [("command", command)]
    if imported := imported_from(run):
        rows.append(("weights", imported))
    else:
        about += f"; weights after {run.trained.step:,} steps"
    rows.append(("network", f"{NETWORKS[run.network]}, {about}"))
    trained_on, tested_on = (number(result, f"num_{split}_examples") for split in ("train", "test"))
    data = config.dataset
    if trained_on and tested_on:
        data += f": trained on {trained_on:,} examples" + f", scored on {tested_on:,}" * is_last
    rows.append(("data", data))
    if not imported:
        rows.append(("seed", f"{config.seed}"))
    for name in ("commit", "version"):
        rows.append((name, f"{result.get(name, 'not known')}"))
    for name in ("machine", "versions"):
        found = result.get(name)
        if isinstance(found, dict):
            words = ", ".join(f"{key} {value}" for key, value in found.items())
            rows.append(("packages" if name == "versions" else name, words))
    seconds, speed = (number(result, name) for name in ("wall_time_s", "images_per_s"))
    if seconds and speed and is_last:
        rows.append(("training", f"{seconds:,.1f} s, {speed:,.0f} images/s"))
    if "state_sha256" in result and is_last:
        rows.append(("state, SHA-256", f"{result['state_sha256']}"))
    return Table("what_was_run", "What was run", "", (), rows)


def settings(run: Run) -> Table:
    """Every setting."""
    values = dataclasses.asdict(run.trained.config)
    rows = [(name, common.flags.text_of(value) or "–") for name, value in values.items()]
    return Table("settings", "All settings", "", ("setting", "value"), rows, folded=True)


def errors(run: Run) -> Table | None:
    """The errors, beside what is published for the preset; None where none is known."""
    found = {name: number(run.result, name) for name in MEASURES}
    found = {name: value for name, value in found.items() if value is not None}
    if not found:
        return None
    published, note = published_of(run)
    if overlap := run.result.get("overlap"):
        note = f"Images in two splits: {'; '.join(map(str, overlap))}. {note}".strip()
    rows, head = [], ("measure", "this run")
    if published:
        head += (published.source,)
    others = published.errors if published else {}
    for name in (name for name in MEASURES if name in found or name in others):
        ours = f"{found[name]:.2f}%" if name in found else "–"
        theirs = (others.get(name, "–"),) if published else ()
        rows.append((MEASURES[name], ours, *theirs))
    return Table("errors", "Errors", note, head, rows)


def published_of(run: Run) -> tuple[Published | None, str]:
    """What is published for the run's preset, and in what the run differs from it."""
    preset, config = preset_name(run), run.trained.config
    if not preset:
        return None, ""
    own = common.flags.from_preset(type(config), preset)
    ignored = {"seed", "dataset"}
    if run.network == "lenet" and preset == "paper" and config.distorted_copies:
        preset = "paper with distortions"
        ignored |= {"distortions", "distorted_copies", "distortion_strength"}
    published = PUBLISHED.get((run.network, preset))
    if not published:
        return None, ""
    notes = []
    if config.dataset != published.dataset:
        notes.append(
            f"{published.source} is about {published.dataset}, this run about {config.dataset}: "
            "the numbers cannot be compared."
        )
    changed = [
        f"--{name}={common.flags.text_of(now)}"
        for name, _, now in common.flags.changes(dataclasses.asdict(own), config)
        if name not in ignored
    ]
    if changed:
        more = " and others" if len(changed) > LISTED else ""
        notes.append(f"Other settings than the preset's: {', '.join(changed[:LISTED])}{more}.")
    return published, " ".join(notes)


def curves(run: Run) -> Drawing | None:
    """Error and loss over the epochs; None where no metrics were written yet."""
    if not run.records:
        return None
    metrics = {"error (%)": "error_pct", "loss": "loss"}
    found = {name: mean_by_epoch(run.records, metric) for name, metric in metrics.items()}
    with style():
        figure = Figure(figsize=(4.8, 5.2), layout="constrained")
        panels = figure.subplots(2, sharex=True, height_ratios=(3, 2))
        ends = []
        for axes, (name, curves_of) in zip(panels, found.items(), strict=True):
            for split in LOOKS:
                if points := curves_of.get(split):
                    draw_curve(axes, points, split)
                    ends.append(f"{name} of {LOOKS[split][0]}: {points[-1][1]:.3g}")
            axes.set_ylabel(name)
            scale_error(axes)
        panels[0].legend(frameon=False)
        panels[1].set_xlabel("epoch")
        panels[1].set_xlim(left=0)
        panels[1].xaxis.set_major_locator(MaxNLocator(integer=True))
        svg, png = (content(figure, form) for form in ("svg", "png"))
    alt = f"Error and loss over the epochs. At the end: {'; '.join(ends)}."
    return Drawing("curves", "Curves", "", alt, svg, png)


def draw_curve(axes, points: list[tuple[float, float]], split: str) -> None:
    marker = "o" if len(points) <= 30 else None
    look = dict(color=CURVE_COLORS[split], linewidth=1.6, marker=marker, markersize=3)
    axes.plot(*zip(*points, strict=True), label=LOOKS[split][0], **look)


def confusions(run: Run, predicted: np.ndarray | None) -> Grid | Table | None:
    """The confusion matrix of the test examples: that of result.json, or that of the `predicted`
    classes of run.test; None where neither is at hand.
    """
    size = run.trained.network.num_classes
    matrix, note = stored_matrix(run), ""
    if matrix is None and predicted is not None:
        matrix = confusion_matrix(predicted, run.test.labels, size)
        note = f"Of {run.test.count} test examples. "
    if matrix is None:
        return None
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:LISTED]
    pairs = [divmod(int(place), size) for place in order if wrong.flat[place]]
    listed = [
        (run.name_of(true), run.name_of(said), f"{matrix[true, said]:,}") for true, said in pairs
    ]
    title = "Confusion matrix"
    if size > MAX_CLASSES:
        head = ("true class", "taken for", "times")
        return Table("confusions", "Most frequent confusions", note, head, listed)
    if listed:
        words = ", ".join(f"{true} taken for {said} ({n})" for true, said, n in listed[:4])
        note += f"Most often: {words}."
    names = tuple(run.name_of(label) for label in range(size))
    rows = [
        (name, [cell(matrix, wrong, true, said) for said in range(size)])
        for true, name in enumerate(names)
    ]
    return Grid("confusion_matrix", title, note, "true \\ says", names, rows)


def cell(matrix: np.ndarray, wrong: np.ndarray, true: int, said: int) -> Cell:
    """Right ones shaded by their share of the class, wrong ones by their share of the worst."""
    count = int(matrix[true, said])
    if true == said:
        return Cell(f"{count}", count / max(int(matrix[true].sum()), 1))
    return Cell(f"{count}", (count / max(int(wrong.max()), 1)) ** 0.5, is_wrong=True)


def stored_matrix(run: Run) -> np.ndarray | None:
    """The confusion matrix of result.json; None where there is none, or no right one."""
    try:
        matrix = np.array(run.result.get("confusion_matrix"))
    except ValueError:  # rows of different lengths
        return None
    size = run.trained.network.num_classes
    is_right = matrix.shape == (size, size) and matrix.dtype.kind == "i" and matrix.min() >= 0
    return matrix if is_right else None
