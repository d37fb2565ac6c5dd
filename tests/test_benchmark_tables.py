"""The tables of the benchmark's results."""

import json
from pathlib import Path

import pytest

from scripts.report import speed
from scripts.report.results import Results

ROOT = Path(__file__).parents[1]
ROW = {
    "suite": "ops",
    "name": "LRN",
    "unit": "ms",
    "ours": 65.4,
    "ours_range": [60.0, 70.0],
    "peer": 1234.5,
    "peer_range": [1234.5, 1234.5],
    "peer_form": "eager",
    "ratio": 18.876,
    "limit": 10.0,
    "share_of_limit": 0.153,
    "command": "python -m scripts.benchmark",
    "commit": "0123456789",
}
MACHINE = {
    "processor": "X",
    "cores": 2,
    "accelerator": "cpu",
    "matmul_gflop_per_s": 200.4,
    "copy_gb_per_s": 30.2,
}
JPEG = ("input", "jpeg records, 1 thread", 2000.0)


def row(suite: str, name: str, ours: float) -> dict:
    return ROW | {"suite": suite, "name": name, "ours": ours}


def results(**rows: list[dict]) -> Results:
    """Of the benchmarks of these names."""
    rest = {
        "load_average": [0.5, 1, 1],
        "load_average_after": [2, 1, 1],
        "versions": dict.fromkeys(("python", "jax", "flax", "torch"), "1"),
        "machine": MACHINE,
    }
    return Results([], {name: rest | {"rows": found} for name, found in rows.items()})


def test_targets():
    row = {"suite": "a", "name": "b", "ratio": 1.2, "share_of_limit": 0.69, "ours": 4.0}
    targets = {("a", "b"): (1.2, 0.7, 4)}
    assert speed.target_of(row, targets) == "1.2x: met, 70% of the limit: missed, at most 4 s: met"
    assert speed.target_of(row | {"name": "c"}, targets) == ""


def test_every_target_names_a_row_that_was_measured():
    result = json.loads((ROOT / "results" / "benchmark.json").read_text())
    assert set(speed.TARGETS) <= {(row["suite"], row["name"]) for row in result["rows"]}


def test_rows():
    alone = ROW | {"name": "devices", "peer": "none: no such thing"}
    alone |= dict.fromkeys(("ratio", "limit", "share_of_limit"))
    lines = speed.benchmark_table(results(benchmark=[ROW, alone])).splitlines()
    ours = "ms | 65.4 (60 to 70)"
    assert lines[2] == f"| `ops`: LRN | {ours} | 1,234, eager | **18.88** | 15% |  |"
    assert lines[3] == f"| `ops`: devices | {ours} | none: no such thing | – | not measured |  |"
    assert "commit `01234567`" in lines[-1] and "200 GFLOP/s" in lines[-1]
    assert "|" not in speed.benchmark_table(results())


def test_lines_below_the_table():
    rows = [row(*JPEG), row("input", "raw records, 1 thread", 5000.0)]
    *_, last = speed.benchmark_table(results(benchmark=rows)).splitlines()
    assert "2.5 times" in last and "target 3: missed" in last
    errors = ROW | {"suite": "time_to_accuracy", "name": "mnist: test error then", "unit": "%"}
    text = speed.benchmark_table(results(benchmark=[ROW, errors]))
    *_, last = text.splitlines()
    assert text.count("test error") == 1 and "65.4 (60 to 70)%" in last and "1,234%" in last


@pytest.mark.parametrize(
    ("trained", "waits"),
    [(18001.0, "training waits for its images"), (9001.0, "its images wait for training")],
)
def test_a_gpus_training_beside_its_reading(trained, waits):
    rows = [
        row("alexnet_train", "deck, batch 128", trained),
        row("alexnet_predict", "deck, batch 128", 1.0),
        row(*JPEG),
        row("input", "jpeg records, 14 workers", 12000.0),
    ]
    text = speed.gpu_table(results(benchmark_gpu=rows))
    assert f"| `alexnet_train`: deck, batch 128 | ms | {trained:,.0f}" in text
    assert "target" not in text and waits in text
    assert f"takes {trained:,.0f} images/s" in text and "14 workers" in text and "12,000/s" in text


def test_suites_that_were_not_measured_on_a_gpu():
    on_cpu = [row(suite, "a", 1.0) for suite in ("startup", "growth", "input")]
    text = speed.gpu_table(results(benchmark=on_cpu, benchmark_gpu=[row(*JPEG)]))
    missing = [line for line in text.splitlines() if line.endswith("| not measured | | | |")]
    assert [line.split("`")[1] for line in missing] == ["startup", "growth"]
    assert speed.gpu_table(results()) == "Not measured yet."
