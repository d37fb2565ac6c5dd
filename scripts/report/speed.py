"""Tables of speed, from results/benchmark*.json: ours beside PyTorch's and the machine's limits."""

import alexnet.config
from scripts import summarize
from scripts.report.results import Results
from scripts.report.studies import markdown, packages_line

# Targets on two CPU cores: (ratio to PyTorch, share of the limit, seconds at most).
TARGETS = {
    ("lenet_train", "deck, batch 1"): (5.0, None, None),
    ("lenet_train", "deck, batch 128"): (1.5, None, None),
    ("lenet_predict", "deck, batch 1"): (1.05, None, None),
    ("lenet_predict", "deck, batch 1024"): (1.05, None, None),
    ("alexnet_train", "deck, batch 1"): (1.05, None, None),
    ("alexnet_train", "deck, batch 32"): (1.2, 0.7, None),
    ("alexnet_train", "paper, batch 1"): (1.05, None, None),
    ("alexnet_predict", "deck, batch 1"): (1.05, None, None),
    ("alexnet_predict", "deck, batch 32"): (1.1, None, None),
    ("alexnet_predict", "paper, batch 1"): (1.05, None, None),
    ("alexnet_predict", "paper, batch 32"): (1.05, None, None),
    ("cifar_train", "cifar18, batch 128"): (1.0, None, None),
    ("cifar_train", "small, batch 128"): (1.2, None, None),
    ("ops", "LRN, 32x55x55x96, forward and backward"): (8.0, None, None),
    ("ops", "max pooling 3/2, 128x33x33x32, forward and backward"): (1.0, None, None),
    ("ops", "max pooling 3/2, 32x55x55x96, forward and backward"): (1.0, None, None),
    ("input", "jpeg records, 1 thread"): (1.0, 0.88, None),
    ("input", "jpeg records, 2 workers"): (1.4, 0.75, None),
    ("input", "raw records, 2 workers"): (2.0, None, None),
    ("input", "digits in memory, batch 128"): (1.0, None, None),
    ("startup", "lenet.train to the first step, warm compile cache"): (1.0, None, 2.2),
    ("checkpoint", "LeNet-5 deck, 0.5 MB: stall of the loop"): (None, None, 0.005),
    ("time_to_accuracy", "mnist, 5 epochs"): (None, None, 8),
}
RAW_GAIN = 3  # target: how much faster raw records are read than JPEG records

# Rows of the README's table.
SHORT = {
    ("lenet_train", "deck, batch 128"): "LeNet-5 `deck`, training, batch 128",
    ("alexnet_train", "deck, batch 32"): "AlexNet `deck`, training, batch 32",
    ("alexnet_predict", "deck, batch 32"): "AlexNet `deck`, prediction, batch 32",
    ("input", "jpeg records, 2 workers"): "256x256 JPEG records, read by two threads",
    ("time_to_accuracy", "mnist, 5 epochs"): "LeNet-5 with ReLU and Adam, five epochs of MNIST",
}

# What the prediction assumes of links: those of NVIDIA's DGX H200 (its data sheets).
NVLINK_BYTES_PER_S = 450e9  # in each direction, among the 8 GPUs of a system
NETWORK_BYTES_PER_S = 50e9  # of each GPU to other systems: 400 Gb/s
IMAGES_PER_GPU = 128


def rows_of(results: Results, name: str) -> list[dict]:
    """The rows of results/NAME.json; none if it is missing."""
    return results.measured[name]["rows"] if name in results.measured else []


def short_table(results: Results) -> str:
    """The rows of SHORT, without ranges."""
    rows = [["what", "unit", "ours", "PyTorch", "ratio (above 1: ours is faster)"]]
    measured = {(row["suite"], row["name"]): row for row in rows_of(results, "benchmark")}
    for key, title in SHORT.items():
        if row := measured.get(key):
            ours, theirs, ratio = number(row["ours"]), row["peer"], "–"
            if row["ratio"] is not None:
                theirs, ratio = number(theirs), f"**{row['ratio']:.2f}**"
            rows.append([title, row["unit"], ours, theirs, ratio])
    return markdown(rows)


def benchmark_table(results: Results) -> str:
    """Ours beside PyTorch's on two CPU cores, with the targets."""
    lines = [speed_table(results, "benchmark", TARGETS)]
    rates = {row["name"]: row["ours"] for row in rows_of(results, "benchmark")}
    raw, jpeg = rates.get("raw records, 1 thread"), rates.get("jpeg records, 1 thread")
    if raw and jpeg:
        reached = "met" if raw >= RAW_GAIN * jpeg else "missed"
        lines.append(
            f"Raw records are read {raw / jpeg:.1f} times as fast as JPEG ones in one thread "
            f"(target {RAW_GAIN}: {reached})."
        )
    return "\n\n".join(lines + errors_lines(results, "benchmark"))


def gpu_table(results: Results) -> str:
    """The same on a GPU, without targets, and whether its machine reads images fast enough."""
    rows = rows_of(results, "benchmark_gpu")
    suites = dict.fromkeys(row["suite"] for row in rows_of(results, "benchmark"))
    missing = [suite for suite in suites if suite not in {row["suite"] for row in rows}]
    lines = [speed_table(results, "benchmark_gpu", missing=missing)]
    lines += errors_lines(results, "benchmark_gpu")
    rates = {(row["suite"], row["name"]): row["ours"] for row in rows}
    start = "jpeg records, "
    readers = {name: rate for (suite, name), rate in rates.items() if suite == "input"}
    readers = {name: rate for name, rate in readers.items() if name.startswith(start)}
    if readers and (trained := rates.get(("alexnet_train", "deck, batch 128"))):
        fastest = max(readers, key=readers.get)
        is_slow = readers[fastest] < trained
        waits = "training waits for its images" if is_slow else "its images wait for training"
        lines.append(
            f"Input: AlexNet takes {trained:,.0f} images/s here, and {fastest.removeprefix(start)} "
            f"of this machine read {readers[fastest]:,.0f}/s from JPEG records: {waits}."
        )
    return "\n\n".join(lines)


def errors_lines(results: Results, name: str) -> list[str]:
    """The errors that the training of `time_to_accuracy` ends with; not a speed."""
    lines = []
    for row in rows_of(results, name):
        if row["unit"] == "%":
            theirs = "" if row["ratio"] is None else f", PyTorch's {with_range(row, 'peer')}%"
            lines.append(f"{row['name']}: {with_range(row, 'ours')}%{theirs}.")
    return lines


def speed_table(
    results: Results, name: str, targets: dict | None = None, missing: list[str] = ()
) -> str:
    """The rows of results/NAME.json, with targets if there are any, and missing suites."""
    if name not in results.measured:
        return "Not measured yet."
    result = results.measured[name]
    columns = ["what", "unit", "ours", "PyTorch, its fastest form", "ratio", "share of the limit"]
    rows = [columns + ["target"] * bool(targets)]
    for row in (row for row in result["rows"] if row["unit"] != "%"):
        ours, theirs, ratio = with_range(row, "ours"), row["peer"], "–"
        if row["ratio"] is not None:
            theirs, ratio = (
                f"{with_range(row, 'peer')}, {row['peer_form']}",
                f"**{row['ratio']:.2f}**",
            )
        limit = row["share_of_limit"]
        share = "not measured" if limit is None else f"{100 * limit:.0f}%"
        cells = [f"`{row['suite']}`: {row['name']}", row["unit"], ours, theirs, ratio, share]
        rows.append(cells + ([target_of(row, targets)] if targets else []))
    lines = [markdown(rows), *(f"| `{suite}` | | not measured | | | |" for suite in missing)]
    return "\n".join([*lines, "", where_measured(result)])


def where_measured(result: dict) -> str:
    """Commands, commits, machine, versions, load and limits of a benchmark."""
    machine, versions = result["machine"], result["versions"]
    packages = packages_line(versions, "python", "jax", "flax", "torch")
    commands = ", ".join(dict.fromkeys(f"`{row['command']}`" for row in result["rows"]))
    commits = ", ".join(sorted({f"`{(row['commit'] or 'none')[:8]}`" for row in result["rows"]}))
    return (
        f"{commands}, commit {commits}: {machine['processor']}, {machine['cores']} cores, "
        f"{machine['accelerator']}, {packages}, load average {result['load_average'][0]:.2f} "
        f"before and {result['load_average_after'][0]:.2f} after. Limits, in the last of these "
        f"runs: {machine['matmul_gflop_per_s']:,.0f} GFLOP/s in a float32 matrix product, "
        f"{machine['copy_gb_per_s']:,.0f} GB/s read and written by a copy."
    )


def target_of(row: dict, targets: dict) -> str:
    """What a row of the benchmark should reach, and whether it does."""
    ratio, share, most = targets.get((row["suite"], row["name"]), (None, None, None))
    reached = {}
    if ratio:
        reached[f"{ratio}x"] = (row["ratio"] or 0) >= ratio  # None without PyTorch
    if share:
        reached[f"{share:.0%} of the limit"] = row["share_of_limit"] >= share
    if most:
        reached[f"at most {most} s"] = row["ours"] <= most
    return ", ".join(f"{wanted}: {'met' if met else 'missed'}" for wanted, met in reached.items())


def attempts_table(results: Results) -> str:
    """Each operation in the form in use and in those tried instead, with its share of the limit."""
    columns = ("what, with gradients (share of the limit)", "in use", "tried instead")
    return forms_table(results, "attempts", "in use", columns)


def profile_table(results: Results) -> str:
    """Where the time of the rows goes that miss their targets."""
    columns = ("what (share of the limit)", "total", "its parts, each alone")
    return forms_table(results, "profile", "in all", columns)


def forms_table(results: Results, suite: str, first_form: str, columns: tuple[str, ...]) -> str:
    """One line for each thing measured; the number of `first_form` has its own column."""
    rows = [row for row in rows_of(results, "benchmark_attempts") if row["suite"] == suite]
    if not rows:
        return "Not measured yet."
    cells: dict[str, list[str]] = {}
    for row in rows:
        what, form = row["name"].split(": ", 1)
        share = row["share_of_limit"]
        in_percent = "" if share is None else f" ({100 * share:.0f}%)"
        cells.setdefault(what, []).append(f"{form} {number(row['ours'])} {row['unit']}{in_percent}")
    table = [list(columns)] + [
        [what, first.removeprefix(f"{first_form} "), "; ".join(others)]
        for what, (first, *others) in cells.items()
    ]
    machine = results.measured["benchmark_attempts"]["machine"]
    limits = f"{machine['matmul_gflop_per_s']:.0f} GFLOP/s, {machine['copy_gb_per_s']:.0f} GB/s"
    where = (
        f"`{rows[0]['command']}`, commit `{(rows[0]['commit'] or 'none')[:8]}`; limits {limits}."
    )
    return f"{markdown(table)}\n\n{where}"


def scaling_table(results: Results) -> str:
    """AlexNet's predicted throughput on 1 to 64 GPUs, from the measured one of a single GPU."""
    rates = {(row["suite"], row["name"]): row["ours"] for row in rows_of(results, "benchmark_gpu")}
    measured = rates.get(("alexnet_train", f"deck, batch {IMAGES_PER_GPU}"))
    if measured is None:
        return "No GPU was measured."
    step_s = IMAGES_PER_GPU / measured
    layers = summarize.summarize(alexnet.config.Config(dataset="fake"))["layers"]
    conv_bytes, fc_bytes = (
        4 * sum(layer["parameters"] for layer in layers if layer["name"].startswith(kind))
        for kind in ("conv", "fc")
    )
    model_head = "images/s, `model:8` in each system"
    rows = [["GPUs", "images/s, data parallel", "of the ideal", model_head, "of the ideal"]]
    for n in (1, 2, 4, 8, 16, 32, 64):
        cells = [f"{n}"]
        for model in (1, 8):
            replicas = n // model  # GPUs that hold the same part of the fully connected layers
            if replicas == 0:
                cells += ["–", "–"]
                continue
            predicted = step_s + all_reduce_s(n, conv_bytes, n)
            predicted += all_reduce_s(replicas, fc_bytes / model, n)
            cells += [f"{n * IMAGES_PER_GPU / predicted:,.0f}", f"{100 * step_s / predicted:.0f}%"]
        rows.append(cells)
    gpu = results.measured["benchmark_gpu"]["machine"]["accelerator"]
    words = (
        "Predicted, except for one GPU: T(n) = T(1) + Σ 2 (n − 1) / n · bytes / link, ring "
        f"all-reduces that do not overlap with computation. T(1) = {1e3 * step_s:.1f} ms for "
        f"{IMAGES_PER_GPU} images, measured on one {gpu} (results/benchmark_gpu.json). Gradients: "
        f"{conv_bytes / 1e6:.0f} MB of the convolutions, {fc_bytes / 1e6:.0f} MB of fc6 to fc8. "
        f"Links: {NVLINK_BYTES_PER_S / 1e9:.0f} GB/s up to 8 GPUs, {NETWORK_BYTES_PER_S / 1e9:.0f} "
        "GB/s beyond (NVIDIA's data sheets of H200 and DGX H200). The activations that a model "
        "axis gathers within a system are left out."
    )
    return f"{markdown(rows)}\n\n{words}"


def all_reduce_s(replicas: int, num_bytes: float, num_gpus: int) -> float:
    """Seconds of a ring all-reduce of `num_bytes` among `replicas` of `num_gpus` GPUs."""
    link = NVLINK_BYTES_PER_S if num_gpus <= 8 else NETWORK_BYTES_PER_S
    return 2 * (replicas - 1) / replicas * num_bytes / link


def with_range(row: dict, side: str) -> str:
    """The median, with the least and the most where they differ."""
    low, high = row[f"{side}_range"]
    return number(row[side]) + (f" ({number(low)} to {number(high)})" if low < high else "")


def number(value: float) -> str:
    """Three digits or more."""
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"
