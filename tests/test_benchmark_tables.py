"""The README's tables of the benchmark's results."""

import json
from pathlib import Path

from scripts.report.results import Results

from scripts.report import speed

ROOT = Path(__file__).parents[1]


def test_targets():
    row = {"suite": "a", "name": "b", "ratio": 1.2, "share_of_limit": 0.69, "ours": 4.0}
    targets = {("a", "b"): (1.2, 0.7, 4)}
    assert speed.target_of(row, targets) == "1.2x: met, 70% of the limit: missed, at most 4 s: met"
    assert speed.target_of(row | {"name": "c"}, targets) == ""


def test_every_target_names_a_row_that_was_measured():
    result = json.loads((ROOT / "results" / "benchmark.json").read_text())
    assert set(speed.TARGETS) <= {(row["suite"], row["name"]) for row in result["rows"]}


def test_table():
    row = {
        "suite": "ops", "name": "LRN", "unit": "ms", "ours": 65.4, "ours_range": [60.0, 70.0], "peer": 1234.5,
        "peer_range": [1234.5, 1234.5], "peer_form": "eager", "ratio": 18.876, "limit": 10.0, "share_of_limit": 0.153,
        "command": "python -m scripts.benchmark", "commit": "0123456789",
    }  # fmt: skip
    alone = row | {
        "name": "devices",
        "peer": "none: no such thing",
        "ratio": None,
        "limit": None,
        "share_of_limit": None,
    }
    result = {
        "rows": [row, alone], "load_average": [0.5, 1, 1], "load_average_after": [2, 1, 1],
        "versions": dict.fromkeys(("python", "jax", "flax", "torch"), "1"),
        "machine": {
            "processor": "X", "cores": 2, "accelerator": "cpu", "matmul_gflop_per_s": 200.4, "copy_gb_per_s": 30.2,
        },
    }  # fmt: skip
    lines = speed.benchmark_table(Results([], {"benchmark": result})).splitlines()
    assert lines[2] == "| `ops`: LRN | ms | 65.4 (60 to 70) | 1,234, eager | **18.88** | 15% |  |"
    assert (
        lines[3]
        == "| `ops`: devices | ms | 65.4 (60 to 70) | none: no such thing | – | not measured |  |"
    )
    assert "commit `01234567`" in lines[-1] and "200 GFLOP/s" in lines[-1]
    assert "|" not in speed.benchmark_table(Results([], {}))

    def deck(suite, name, ours):
        return row | {"suite": suite, "name": name, "ours": ours}

    rows = [
        deck("input", "jpeg records, 1 thread", 2000.0),
        deck("input", "raw records, 1 thread", 5000.0),
    ]
    last = speed.benchmark_table(Results([], {"benchmark": result | {"rows": rows}})).splitlines()[
        -1
    ]
    assert (
        last
        == "Raw records are read 2.5 times as fast as JPEG ones in one thread (target 3: missed)."
    )

    readers = [
        deck("input", "jpeg records, 1 thread", 2000.0),
        deck("input", "jpeg records, 14 workers", 12000.0),
    ]
    for trained, waits in (
        (18001.0, "training waits for its images"),
        (9001.0, "its images wait for training"),
    ):
        rows = [
            deck("alexnet_train", "deck, batch 128", trained),
            deck("alexnet_predict", "deck, batch 128", 1.0),
            *readers,
        ]
        text = speed.gpu_table(Results([], {"benchmark_gpu": result | {"rows": rows}}))
        assert (
            "target" not in text
            and f"| `alexnet_train`: deck, batch 128 | ms | {trained:,.0f}" in text
        )
        assert (
            f"takes {trained:,.0f} images/s here, and 14 workers of this machine read 12,000/s from JPEG records: {waits}."
            in text
        )
    on_cpu = result | {"rows": [deck(suite, "a", 1.0) for suite in ("startup", "growth", "input")]}
    text = speed.gpu_table(
        Results([], {"benchmark": on_cpu, "benchmark_gpu": result | {"rows": readers}})
    )
    assert [line for line in text.splitlines() if line.endswith("| not measured | | | |")] == [
        "| `startup` | | not measured | | | |",
        "| `growth` | | not measured | | | |",
    ]
    errors = row | {"suite": "time_to_accuracy", "name": "mnist: test error then", "unit": "%"}
    text = speed.benchmark_table(Results([], {"benchmark": result | {"rows": [row, errors]}}))
    last = "mnist, the test error then: of our network 65.4 (60 to 70)%, of PyTorch's 1,234%."
    assert text.count("test error") == 1 and text.splitlines()[-1] == last
    assert speed.gpu_table(Results([], {})) == "Not measured yet."
