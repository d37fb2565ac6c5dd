"""Writes the tables of the README.md files from results/: `python -m scripts.report` (`--check`:
only compare).

A table stands between `<!-- report: NAME -->` and `<!-- /report -->`. What a result is called says
where it belongs: results of the same name but for `_seedN` are one row.
"""

import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from absl import flags

import alexnet.config
from common import launch
from common.errors import UserError
from common.workdir import write_atomic
from scripts import summarize

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "lenet/README.md", "alexnet/README.md")

# Row of the main table: (results/lenet_NAME_seedN.json, what it is, the paper's test error, the
# target).
MAIN_ROWS = (
    ("paper", "`paper`: 60,000 parameters, SDLM, batch 1, 20 passes", "0.95 ± 0.1%", "≤ 0.95"),
    ("paper_distortions", "`paper` with distortions", "0.8%", "≤ 0.80"),
    ("deck", "`deck`: 60,806 parameters, mini-batches", "–", "≤ 1.0"),
    ("deck_bfloat16", "`deck` with `--compute_dtype=bfloat16`", "–", "0.9 to 1.1"),
    ("modern", "`modern`: 60,806 parameters, today's training", "–", "≤ 0.40"),
    (
        "quickstart",
        "quickstart: `deck` on 7,500 digits of `mnist10k`, tested on 2,000 others",
        "–",
        "≤ 2.0",
    ),
)

# Row of AlexNet's table: (results/alexnet_NAME_seedN.json, what it is, the target). Results of
# NAME_resumed are those of runs that were killed (SIGKILL) in the middle and started again.
ALEXNET_ROWS = (
    ("small", "`small`, 5 epochs of CIFAR-10 (re-encoded as JPEG)", "< 45%"),
    (
        "cifar18",
        "`cifar18`, 5 epochs of CIFAR-10 (re-encoded as JPEG), rate 0.003, a tenth in the last epoch",
        "< 45%",
    ),
    ("thirty_deck", "`deck`, full size, learns 30 ImageNet images by heart", "0% (training)"),
    ("thirty_paper", "`paper`, full size, learns 30 ImageNet images by heart", "0% (training)"),
    ("ten_deck", "`deck`, full size, 10 steps, dropout and augmentation on", "–"),
    ("ten_paper", "`paper`, full size, 10 steps, dropout and augmentation on", "–"),
)

# Row of the table of tries for the distorted runs: (results/lenet_try_NAME_seedN.json, what was
# different).
TRIES = (
    (
        "bilinear",
        "distorted digits read from the image itself, bilinearly (the code of that commit)",
    ),
    ("distortions_0.2", "`--distortion_strength=0.2`"),
    ("distortions_0.35", "`--distortion_strength=0.35`, the choice"),
)


def define_flags(flag_values: flags.FlagValues) -> None:
    flags.DEFINE_boolean(
        "check",
        False,
        "Change nothing; exit with 2 if a page differs from results/.",
        flag_values=flag_values,
    )


def main(flag_values: flags.FlagValues) -> None:
    for name in PAGES:
        page = ROOT / name
        old = page.read_text()
        new = fill(old, load_results(ROOT / "results"))
        if flag_values.check and new != old:
            raise UserError(f"{name} differs from results/; `python -m scripts.report` writes it")
        if new != old:
            write_atomic(page, new)
            print(f"{name} written")


def load_results(folder: Path) -> dict[str, list[dict]]:
    """Name without `_seedN` -> its results, in the order of the seeds."""
    groups = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        groups[re.sub(r"_seed\d+$", "", path.stem)].append(json.loads(path.read_text()))
    return {
        name: sorted(group, key=lambda result: result.get("seed", 0))
        for name, group in groups.items()
    }


def fill(page: str, results: dict[str, list[dict]]) -> str:
    """The page with each table drawn anew."""
    tables = {"lenet": lenet_table, "lenet_commands": commands_table, "lenet_errors": error_profile}
    tables |= {"lenet_tries": tries_table, "machine": machine_line}
    tables |= {
        "alexnet": alexnet_table,
        "alexnet_commands": alexnet_commands_table,
        "alexnet_agreement": agreement_line,
    }
    tables |= {"benchmark": benchmark_table, "benchmark_gpu": gpu_table, "attempts": attempts_table}
    tables |= {"profile": profile_table}
    tables |= {"scaling": scaling_table, "faults": faults_table}

    def replaced(match: re.Match) -> str:
        return f"{match[1]}\n{tables[match[2]](results)}\n{match[3]}"

    return re.sub(
        r"(<!-- report: (\w+) -->)\n.*?(<!-- /report -->)", replaced, page, flags=re.DOTALL
    )


def lenet_table(results: dict[str, list[dict]]) -> str:
    """Mean test error over the seeds, beside the paper's."""
    rows = [
        "| run | seeds | mean test error | least to most | training error | our target | paper |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, what, paper, target in MAIN_ROWS:
        group = results.get(f"lenet_{name}", [])
        if group:
            errors = [result["test_error_pct"] for result in group]
            training = statistics.mean(result["train_error_pct"] for result in group)
            mean = statistics.mean(errors)
            deviation = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
            spread = f"{min(errors):.2f} to {max(errors):.2f}%"
            ours = f"**{mean:.3f}%**{deviation} | {spread} | {training:.2f}%"
            rows.append(f"| {what} | {len(group)} | {ours} | {target}% | {paper} |")
    return "\n".join(rows)


def commands_table(results: dict[str, list[dict]]) -> str:
    """What was typed for the first seed of each row, and how long a run took."""
    return commands(results, [f"lenet_{name}" for name, *_ in MAIN_ROWS])


def commands(results: dict[str, list[dict]], names: list[str]) -> str:
    """One row for each of `names` that has results."""
    rows = [
        "| command (first seed) | seeds | median seconds | median images/s | commit |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        group = results.get(name, [])
        if group:
            seeds = ", ".join(str(result["seed"]) for result in group)
            seconds = statistics.median(result["wall_time_s"] for result in group)
            speed = statistics.median(result["images_per_s"] for result in group)
            commits = ", ".join(
                sorted({f"`{(result['commit'] or 'none')[:8]}`" for result in group})
            )
            rows.append(
                f"| `{group[0]['command']}` | {seeds} | {seconds:,.0f} | {speed:,.0f} | {commits} |"
            )
    return "\n".join(rows)


def error_profile(results: dict[str, list[dict]]) -> str:
    """Which digits go wrong: errors per true digit, and the most frequent confusions, as means over
    the seeds.
    """
    rows = [
        "| preset | " + " | ".join(map(str, range(10))) + " | most frequent, true → taken for |",
        "|---" * 12 + "|",
    ]
    for name in ("paper", "paper_distortions", "deck", "modern"):
        group = results.get(f"lenet_{name}", [])
        if group:
            matrices = [result["confusion_matrix"] for result in group]
            wrong = {
                (true, taken): sum(matrix[true][taken] for matrix in matrices) / len(matrices)
                for true in range(10)
                for taken in range(10)
                if true != taken
            }
            per_digit = [
                sum(count for (true, _), count in wrong.items() if true == digit)
                for digit in range(10)
            ]
            worst = sorted(wrong, key=wrong.get, reverse=True)[:4]
            confusions = ", ".join(
                f"{true} → {taken} ({wrong[true, taken]:.1f})" for true, taken in worst
            )
            rows.append(
                f"| `{name}` | "
                + " | ".join(f"{count:.1f}" for count in per_digit)
                + f" | {confusions} |"
            )
    return "\n".join(rows)


def tries_table(results: dict[str, list[dict]]) -> str:
    """What was tried for the distorted runs."""
    rows = [
        "| tried | training digits | seeds | validation error | test error | training error | commit |",
        "|---" * 7 + "|",
    ]
    for name, what in TRIES:
        group = results.get(f"lenet_try_{name}", [])
        if group:
            seeds = ", ".join(str(result["seed"]) for result in group)
            errors = [
                ", ".join(f"{result[split]:.2f}%" if split in result else "–" for result in group)
                for split in ("validation_error_pct", "test_error_pct", "train_error_pct")
            ]
            digits, commit = f"{group[0]['num_train_examples']:,}", group[0]["commit"][:8]
            rows.append(f"| {what} | {digits} | {seeds} | {' | '.join(errors)} | `{commit}` |")
    return "\n".join(rows)


def alexnet_table(results: dict[str, list[dict]]) -> str:
    """Errors, and whether runs that were killed ended in the same state."""
    rows = [
        "| run | seeds | test error, centre crop | ten crops | training error | our target | killed and resumed |"
    ]
    rows += ["|---" * 7 + "|"]
    for name, what, target in ALEXNET_ROWS:
        group = results.get(f"alexnet_{name}", [])
        if not group:
            continue
        cells = []
        for kind in ("top1_error_pct", "ten_crop_top1_error_pct", "train_error_pct"):
            errors = [result[kind] for result in group if kind in result]
            spread = f" ({min(errors):.2f} to {max(errors):.2f})" if len(errors) > 1 else ""
            cells.append(f"{statistics.mean(errors):.2f}%{spread}" if errors else "–")
        if name.startswith("thirty"):
            cells[:2] = ["–", "–"]  # the images are those that were trained on
        if name.startswith("ten"):
            cells = ["–", "–", "–"]  # there was no time to learn anything
        states = {result["seed"]: result["state_sha256"] for result in group}
        killed = results.get(f"alexnet_{name}_resumed", [])
        same = [result["state_sha256"] == states[result["seed"]] for result in killed]
        resumed = (
            "–" if not same else "same SHA-256 of the state" if all(same) else "**another state**"
        )
        rows.append(f"| {what} | {len(group)} | {' | '.join(cells)} | {target} | {resumed} |")
    return "\n".join(rows)


def alexnet_commands_table(results: dict[str, list[dict]]) -> str:
    """What was typed for the first seed of each row, and how long a run took."""
    return commands(results, [f"alexnet_{name}" for name, *_ in ALEXNET_ROWS])


def agreement_line(results: dict[str, list[dict]]) -> str:
    """How far the preset `torchvision` is from PyTorch."""
    (result,) = results.get("alexnet_torchvision_agreement", [None])
    if result is None:
        return "Not measured."
    switched = [count for count in result["units_switched"] if count]
    same = result["batch_size"] - len(switched)
    line = (
        f"`{result['command']}`: with the same weights, the logits of {result['batch_size']} images differ from PyTorch "
        f"{result['versions']['torch']}'s by {result['logits_relative_difference']:.1e} of the largest (target 1e-4), "
        f"gradients by at most {result['gradients_relative_difference']:.1e} (target 1e-3)"
    )
    if not switched:
        return line + "."
    return line + (
        f" for {same} of them; in the other {len(switched)}, {sum(switched)} of millions of units lie so close to a threshold, "
        f"zero or another unit, that rounding decides: {result['switched_gradients_relative_difference']:.1e}."
    )


RAW_GAIN = 3  # how much faster raw records are to be read than JPEG ones

# What rows of the benchmark are to reach on two cores without a GPU: (ratio to PyTorch, share of
# the limit, seconds at most).
TARGETS = {
    ("lenet_train", "deck, batch 1"): (5.0, None, None),
    ("lenet_train", "deck, batch 128"): (1.5, None, None),
    ("alexnet_train", "deck, batch 32"): (1.2, 0.7, None),
    ("alexnet_predict", "deck, batch 32"): (1.1, None, None),
    ("cifar_train", "cifar18, batch 128"): (1.0, None, None),
    ("ops", "LRN, 32x55x55x96, forward and backward"): (8.0, None, None),
    ("ops", "max pooling 3/2, 128x33x33x32, forward and backward"): (1.0, None, None),
    ("ops", "max pooling 3/2, 32x55x55x96, forward and backward"): (1.0, None, None),
    ("input", "jpeg records, 1 thread"): (None, 0.85, None),
    ("startup", "lenet.train to the first step, warm compile cache"): (None, None, 4),
    ("time_to_accuracy", "mnist to 99% of validation digits"): (1.5, None, 20),
}


def target_of(row: dict, targets: dict) -> str:
    """What a row of the benchmark is to reach, and whether it does."""
    ratio, share, most = targets.get((row["suite"], row["name"]), (None, None, None))
    reached = {}
    if ratio:
        reached[f"{ratio}x"] = row["ratio"] >= ratio
    if share:
        reached[f"{share:.0%} of the limit"] = row["share_of_limit"] >= share
    if most:
        reached[f"at most {most} s"] = row["ours"] <= most
    return ", ".join(f"{wanted}: {'met' if met else 'missed'}" for wanted, met in reached.items())


def benchmark_table(results: dict[str, list[dict]]) -> str:
    """Ours beside PyTorch's, and the share of what the machine allows."""
    lines = [speed_table(results, "benchmark", TARGETS)]
    rates = {
        row["name"]: row["ours"]
        for result in results.get("benchmark", [])
        for row in result["rows"]
    }
    raw, jpeg = (
        rates.get(f"{record_format} records, 1 thread") for record_format in ("raw", "jpeg")
    )
    if raw and jpeg:
        reached = "met" if raw >= RAW_GAIN * jpeg else "missed"
        lines.append(
            f"Raw records are read {raw / jpeg:.1f} times as fast as JPEG ones in one thread (target {RAW_GAIN}: {reached})."
        )
    lines += [
        errors_line(row)
        for result in results.get("benchmark", [])
        for row in result["rows"]
        if row["unit"] == "%"
    ]
    return "\n\n".join(lines)


def errors_line(row: dict) -> str:
    """What both sides have learned when the clock of `time_to_accuracy` stops: no speed, so not in
    the table.
    """
    theirs = "" if row["ratio"] is None else f", of PyTorch's {with_range(row, 'peer')}%"
    return (
        f"{row['name'].replace(': ', ', the ')}: of our network {with_range(row, 'ours')}%{theirs}."
    )


def gpu_table(results: dict[str, list[dict]]) -> str:
    """The same on a GPU, for which nothing was aimed at, and whether that machine's processor can
    feed it.
    """
    names = ("benchmark", "benchmark_gpu")
    here, there = (
        [row["suite"] for result in results.get(name, []) for row in result["rows"]]
        for name in names
    )
    lines = [
        speed_table(
            results,
            "benchmark_gpu",
            missing=[suite for suite in dict.fromkeys(here) if suite not in there],
        )
    ]
    lines += [
        errors_line(row)
        for result in results.get("benchmark_gpu", [])
        for row in result["rows"]
        if row["unit"] == "%"
    ]
    rates = {
        (row["suite"], row["name"]): row["ours"]
        for result in results.get("benchmark_gpu", [])
        for row in result["rows"]
    }
    readers = {
        name: rates["input", name]
        for suite, name in rates
        if suite == "input" and name.startswith("jpeg records, ")
    }
    if readers and (trained := rates.get(("alexnet_train", "deck, batch 128"))):
        fastest = max(readers, key=readers.get)
        waits = (
            "training waits for its images"
            if readers[fastest] < trained
            else "its images wait for training"
        )
        lines.append(
            f"Input: AlexNet takes {trained:,.0f} images/s here, and {fastest.removeprefix('jpeg records, ')} of this machine "
            f"read {readers[fastest]:,.0f}/s from JPEG records: {waits}."
        )
    return "\n\n".join(lines)


def speed_table(
    results: dict[str, list[dict]], name: str, targets: dict | None = None, missing: list[str] = ()
) -> str:
    """The rows of results/NAME.json, if there are `targets` with what each is to reach, and the
    suites that are missing.
    """
    if name not in results:
        return "Not measured yet."
    (result,) = results[name]
    columns = [
        "what",
        "unit",
        "ours",
        "PyTorch, its fastest form",
        "ratio",
        "share of the limit",
    ] + ["target"] * bool(targets)
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in (row for row in result["rows"] if row["unit"] != "%"):
        ours, theirs, ratio = with_range(row, "ours"), row["peer"], "–"
        if row["ratio"] is not None:
            theirs, ratio = (
                f"{with_range(row, 'peer')}, {row['peer_form']}",
                f"**{row['ratio']:.2f}**",
            )
        share = (
            "not measured"
            if row["share_of_limit"] is None
            else f"{100 * row['share_of_limit']:.0f}%"
        )
        cells = [f"`{row['suite']}`: {row['name']}", row["unit"], ours, theirs, ratio, share]
        cells += [target_of(row, targets)] if targets else []
        rows.append(f"| {' | '.join(cells)} |")
    rows += [f"| `{suite}` | | not measured | | | |" for suite in missing]
    machine, versions = result["machine"], result["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("python", "jax", "flax", "torch"))
    commands = ", ".join(
        f"`{command}`" for command in dict.fromkeys(row["command"] for row in result["rows"])
    )
    commits = ", ".join(sorted({f"`{(row['commit'] or 'none')[:8]}`" for row in result["rows"]}))
    where = (
        f"{commands}, commit {commits}: {machine['processor']}, {machine['cores']} "
        f"cores, {machine['accelerator']}, {packages}, load average {result['load_average'][0]:.2f} before and "
        f"{result['load_average_after'][0]:.2f} after. Limits, in the last of these runs: "
        f"{machine['matmul_gflop_per_s']:,.0f} GFLOP/s in a float32 matrix product, {machine['copy_gb_per_s']:,.0f} GB/s read "
        "and written by a copy."
    )
    return "\n".join([*rows, "", where])


def attempts_table(results: dict[str, list[dict]]) -> str:
    """Each operation in the form in use and in those tried instead, in time and as a share of the
    limit.
    """
    return forms_table(
        results,
        "attempts",
        "what, with gradients (share of the limit)",
        "in use",
        "tried in its place",
    )


def profile_table(results: dict[str, list[dict]]) -> str:
    """Where the time of a row goes that misses its target."""
    return forms_table(
        results, "profile", "what (share of the limit)", "in all", "its parts, each by itself"
    )


def forms_table(results: dict[str, list[dict]], suite: str, *columns: str) -> str:
    """The rows of `suite`: one line for each thing measured, its first number in a column of its
    own, named as that column.
    """
    rows = [
        row
        for result in results.get("benchmark_attempts", [])
        for row in result["rows"]
        if row["suite"] == suite
    ]
    if not rows:
        return "Not measured yet."
    cells = {}
    for row in rows:
        what, form = re.fullmatch(r"(.*?, (?:batch )?[\dx]+), (.*)", row["name"]).groups()
        share = "" if row["share_of_limit"] is None else f" ({100 * row['share_of_limit']:.0f}%)"
        cells.setdefault(what, []).append(f"{form} {number(row['ours'])} {row['unit']}{share}")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [
        f"| {what} | {first.removeprefix(columns[1] + ' ')} | {'; '.join(others)} |"
        for what, (first, *others) in cells.items()
    ]
    machine = results["benchmark_attempts"][0]["machine"]
    limit = f"{machine['matmul_gflop_per_s']:.0f} GFLOP/s, {machine['copy_gb_per_s']:.0f} GB/s"
    return "\n".join(
        [
            *lines,
            "",
            f"`{rows[0]['command']}`, commit `{(rows[0]['commit'] or 'none')[:8]}`; limits {limit}.",
        ]
    )


# What the prediction assumes of each GPU and its links: NVIDIA A100 in DGX A100 systems (NVIDIA's
# data sheets).
NVLINK_BYTES_PER_S = 450e9  # in each direction, among the 8 GPUs of a system
NETWORK_BYTES_PER_S = 50e9  # of each GPU to other systems: 400 Gb/s
IMAGES_PER_GPU = 128


def scaling_table(results: dict[str, list[dict]]) -> str:
    """AlexNet's predicted speed on 1 to 64 GPUs, from the measured one of a single GPU."""
    rates = {
        (row["suite"], row["name"]): row["ours"]
        for result in results.get("benchmark_gpu", [])
        for row in result["rows"]
    }
    if ("alexnet_train", f"deck, batch {IMAGES_PER_GPU}") not in rates:
        return "No GPU was measured."
    step_s = IMAGES_PER_GPU / rates["alexnet_train", f"deck, batch {IMAGES_PER_GPU}"]
    layers = summarize.summarize(alexnet.config.Config(dataset="fake"))["layers"]
    gradients = {  # bytes: all, and those of the convolutions
        kind: 4 * sum(layer["parameters"] for layer in layers if layer["name"].startswith(kind))
        for kind in ("conv", "fc")
    }
    rows = [
        "| GPUs | images/s, data parallel | of the ideal | images/s, `model:8` in each system | of the ideal |"
    ]
    rows += ["|---" * 5 + "|"]
    for n in (1, 2, 4, 8, 16, 32, 64):
        link = NVLINK_BYTES_PER_S if n <= 8 else NETWORK_BYTES_PER_S
        cells = []
        for model in (1, 8):
            sharers = n // model  # GPUs that hold the same part of the fully connected layers
            if not sharers:
                cells += ["–", "–"]
                continue
            times = [
                2 * (copies - 1) / copies * size / link
                for copies, size in ((n, gradients["conv"]), (sharers, gradients["fc"] / model))
            ]
            predicted = step_s + sum(times)
            cells += [f"{n * IMAGES_PER_GPU / predicted:,.0f}", f"{100 * step_s / predicted:.0f}%"]
        rows.append(f"| {n} | {' | '.join(cells)} |")
    words = (
        "Predicted, but for one GPU: T(n) = T(1) + Σ 2 (n − 1) / n · bytes / link, a ring all-reduce that nothing hides. "
        f"T(1) = {1e3 * step_s:.1f} ms for {IMAGES_PER_GPU} images, as measured on one "
        f"{results['benchmark_gpu'][0]['machine']['accelerator']} (results/benchmark_gpu.json). Gradients: "
        f"{gradients['conv'] / 1e6:.0f} MB of the convolutions, {gradients['fc'] / 1e6:.0f} MB of fc6 to fc8. Links: "
        f"{NVLINK_BYTES_PER_S / 1e9:.0f} GB/s up to 8 GPUs, {NETWORK_BYTES_PER_S / 1e9:.0f} GB/s beyond (NVIDIA's data "
        "sheets of H200 and DGX H200). The activations that a model axis gathers inside a system are left out."
    )
    return "\n".join([*rows, "", words])


def faults_table(results: dict[str, list[dict]]) -> str:
    """What runs and checkpoints survived."""
    if "faults" not in results:
        return "Not measured yet."
    (result,) = results["faults"]
    rows = [
        "| fault | tried | where it hit, or what came of it | survived | silently wrong | lost at most, took | target |"
    ]
    rows += ["|---" * 7 + "|"]
    for row in result["rows"]:
        counts = row.get("phases") or row.get("outcomes") or {}
        where = ", ".join(
            f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda item: -item[1])
        )
        cost = [f"{row['lost_steps']} steps"] if "lost_steps" in row else []
        if row.get("seconds"):
            cost.append(
                f"{statistics.median(row['seconds']):.1f} s (at most {max(row['seconds']):.1f})"
            )
        cost += [f"{row['share_pct']:.2f}%"] if "share_pct" in row else []
        missed = "" if row["met"] else " **missed**"
        cells = [
            row["name"],
            f"{row['tried']:,}",
            where or "–",
            f"{row['survived']:,}",
            str(row["silent"]),
        ]
        rows.append(f"| {' | '.join(cells)} | {', '.join(cost) or '–'} | {row['target']}{missed} |")
    machine, versions = result["machine"], result["versions"]
    packages = ", ".join(
        f"{name} {versions[name]}" for name in ("python", "jax", "flax", "orbax-checkpoint")
    )
    commits = ", ".join(sorted({f"`{(row['commit'] or 'none')[:8]}`" for row in result["rows"]}))
    return "\n".join(
        [
            *rows,
            "",
            f"Commit {commits}: {machine['processor']}, {machine['cores']} cores, {packages}.",
        ]
    )


def with_range(row: dict, side: str) -> str:
    """The median, and the least and most where there is more than one round."""
    low, high = row[f"{side}_range"]
    return number(row[side]) + (f" ({number(low)} to {number(high)})" if low < high else "")


def number(value: float) -> str:
    """Three digits or more."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def machine_line(results: dict[str, list[dict]]) -> str:
    """Where the numbers were made."""
    places = set()
    for name in [
        *(f"lenet_{name}" for name, *_ in MAIN_ROWS),
        *(f"alexnet_{name}" for name, *_ in ALEXNET_ROWS),
    ]:
        for result in results.get(name, []):
            machine, versions = result["machine"], result["versions"]
            packages = ", ".join(
                f"{name} {versions[name]}"
                for name in ("python", "jax", "flax", "optax", "orbax-checkpoint")
            )
            cores = f"{machine['cores']} core{'s' * (machine['cores'] > 1)}"
            places.add(f"{machine['processor']}, {cores}, {packages}")
    return "Made on: " + "; ".join(sorted(places)) + "."


if __name__ == "__main__":
    sys.exit(launch.run_tool(define_flags, main, sys.argv))
