"""README tells the truth: its numbers come from results/, its commands and flags exist, its links
lead somewhere.
"""

import dataclasses
import json
import re
import statistics
from pathlib import Path

import pytest
from absl.flags import FlagValues

import alexnet.config
import lenet.config
from common.processes import Processes
from scripts import compare_with_torch, evaluate, faults, prepare_data, report, summarize
from scripts.benchmark import __main__ as benchmark

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "results").glob("*.json"))
CONTRACT = {
    "test_error_pct", "num_test_examples", "confusion_matrix", "num_steps", "state_sha256", "images_per_s", "wall_time_s",
    "command", "commit", "seed", "dataset", "versions", "machine",
}  # fmt: skip


@pytest.mark.parametrize("page", report.PAGES)
def test_tables_are_those_that_results_give(page):
    text = (ROOT / page).read_text()
    assert report.fill(text, report.load_results(ROOT / "results")) == text


def test_the_main_table_is_the_mean_of_the_committed_runs():
    """Computed a second time, from the confusion matrices alone."""
    table = (ROOT / "README.md").read_text()
    for name, what, *_ in report.MAIN_ROWS:
        matrices = [
            json.loads(path.read_text())["confusion_matrix"]
            for path in (ROOT / "results").glob(f"lenet_{name}_seed*.json")
        ]
        assert matrices, f"no results for {name}"
        shares = [
            1 - sum(matrix[digit][digit] for digit in range(10)) / sum(map(sum, matrix))
            for matrix in matrices
        ]
        row = next(line for line in table.splitlines() if line.startswith(f"| {what}"))
        assert f"**{100 * statistics.mean(shares):.3f}%**" in row


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_keep_the_contract(path):
    result = json.loads(path.read_text())
    if "kind" in result:
        return
    assert not result["commit"].endswith("-dirty")
    assert f"--seed={result['seed']}" in result["command"]
    if path.stem.startswith("alexnet_"):
        assert result.keys() >= CONTRACT - {"confusion_matrix"} | {
            "top1_error_pct",
            "top5_error_pct",
        }
        assert result["test_error_pct"] == result["top1_error_pct"] >= result["top5_error_pct"]
        if "confusion_matrix" not in result:  # too many classes
            return
    assert result.keys() >= CONTRACT
    matrix = result["confusion_matrix"]
    total = sum(map(sum, matrix))
    assert total == result["num_test_examples"]
    correct = sum(matrix[label][label] for label in range(len(matrix)))
    assert result["test_error_pct"] == pytest.approx(100 * (total - correct) / total)


def test_alexnets_table_has_every_row_and_its_killed_run():
    results = report.load_results(ROOT / "results")
    table = (ROOT / "README.md").read_text()
    for name, what, _ in report.ALEXNET_ROWS:
        row = next(line for line in table.splitlines() if line.startswith(f"| {what}"))
        if name.startswith("thirty"):
            assert [result["train_error_pct"] for result in results[f"alexnet_{name}"]] == [0.0]
        else:
            (killed,) = results[f"alexnet_{name}_resumed"]
            (straight,) = (
                result for result in results[f"alexnet_{name}"] if result["seed"] == killed["seed"]
            )
            assert killed["state_sha256"] == straight["state_sha256"] and "same SHA-256" in row


def test_the_benchmark_was_run_in_full_from_a_commit():
    results = report.load_results(ROOT / "results")
    suites = {}
    for name in ("benchmark", "benchmark_attempts", "benchmark_gpu"):
        (result,) = results[name]
        assert not result["smallest"] and min(row["rounds"] for row in result["rows"]) >= 5
        assert not any(row["commit"].endswith("-dirty") for row in result["rows"])
        suites[name] = {row["suite"] for row in result["rows"]}
    for name in (
        "benchmark",
        "benchmark_attempts",
    ):  # from one run, whose limits and load its table names
        assert len({(row["commit"], row["command"]) for row in results[name][0]["rows"]}) == 1
    assert suites["benchmark"] == set(benchmark.SUITES) - set(benchmark.ONLY_IF_NAMED)
    assert suites["benchmark_attempts"] == set(benchmark.ONLY_IF_NAMED)


def test_the_faults_were_tried_in_full_from_a_commit():
    for result in report.load_results(ROOT / "results").get("faults", []):
        rows = result["rows"]
        assert {row["fault"] for row in rows} == set(faults.FAULTS)
        assert all(row["full"] and not row["commit"].endswith("-dirty") for row in rows)
        assert sum(row["tried"] for row in rows if row["fault"] == "kill") == 50
        assert sum(row["tried"] for row in rows if row["fault"] == "damage") == 1300
        assert all(row["survived"] == row["tried"] and row["silent"] == 0 for row in rows)


def test_every_flag_named_exists():
    known = {"workdir", "flagfile", "help"} | set(Processes._fields) | {"all"}  # of test.sh
    for config in (alexnet.config.Config, lenet.config.Config):
        known |= {field.name for field in dataclasses.fields(config)}
    for tool in (benchmark, compare_with_torch, evaluate, faults, prepare_data, report, summarize):
        tool.define_flags(declared := FlagValues())
        known |= set(declared)
    for page in report.PAGES:
        text = re.sub(r"--xla\w+|#SBATCH.*|gcloud .*", "", (ROOT / page).read_text())
        for flag in re.findall(r"--([a-z]\w+)", text):
            assert flag in known or flag.removeprefix("no") in known, f"{page} names --{flag}"


def test_every_link_and_file_named_exists():
    for page in report.PAGES:
        text = (ROOT / page).read_text()
        for target in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"
        for script in re.findall(r"(?:bash |--flagfile=)((?:scripts|lenet|alexnet)/[\w/.]+)", text):
            assert (ROOT / script).exists(), f"{page} names {script}"
        for module in re.findall(r"python -m ((?:scripts|lenet|alexnet)\.\w+)", text):
            path = ROOT / module.replace(".", "/")
            command = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
            assert command.exists(), f"{page} names {module}"
