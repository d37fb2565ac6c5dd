"""What short runs of every preset end in: a table of state hashes, test errors and metrics.

    python tests/golden/states.py --tree=. --data_dir=DIR --out=states.json [--against=OTHER.json]
    [--only=NAME,NAME]

Made before and after a change, on one machine with one set of versions, the two tables must be
equal: `--against` compares and exits with 1 where they are not. DIR holds cifar10 and imagenet_256
(300 images are enough), prepared by `scripts.prepare_data`. Each run is the real command in a
process of its own, in the tree that `--tree` names; runs marked `killed` get a SIGKILL after their
first checkpoint and are started again.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DIGITS = ["--dataset=mnist10k", "--train_size=256", "--validation_size=64", "--num_epochs=2"]
CIFAR = ["--train_size=512", "--validation_size=128", "--num_epochs=2", "--test_split=test[:500]"]
CIFAR += ["--noten_crop"]
STREAM = ["--dataset=imagenet_256", "--train_split=validation", "--test_split=validation[200:216]"]
STREAM += ["--train_size=16", "--batch_size=8", "--num_epochs=2", "--save_every_steps=1"]
STREAM += ["--noten_crop"]
VALIDATED = [*STREAM, "--validation_size=8"]


def lenet(preset, *flags, devices=1, killed=False):
    flags = [f"--flagfile=lenet/presets/{preset}.flags", *DIGITS, *flags]
    if preset == "paper":
        flags.append("--validation_size=0")
    return "lenet.train", flags, devices, killed


def alexnet(preset, *flags, devices=1, killed=False):
    return "alexnet.train", [f"--flagfile=alexnet/presets/{preset}.flags", *flags], devices, killed


LONG = ["--train_size=6000", "--num_epochs=4"]
RUNS = {
    "lenet_deck": lenet("deck"),
    "lenet_deck_killed": lenet("deck", *LONG, killed=True),
    "lenet_deck_straight": lenet("deck", *LONG),
    "lenet_deck_2": lenet("deck", devices=2),
    "lenet_deck_8": lenet("deck", devices=8),
    "lenet_deck_pmap_2": lenet("deck", "--parallel=pmap", devices=2),
    "lenet_deck_fixed_1": lenet("deck", "--reduction=fixed"),
    "lenet_deck_fixed_2": lenet("deck", "--reduction=fixed", devices=2),
    "lenet_deck_fixed_8": lenet("deck", "--reduction=fixed", devices=8),
    "lenet_deck_fixed_pmap_8": lenet("deck", "--reduction=fixed", "--parallel=pmap", devices=8),
    "lenet_deck_bfloat16": lenet("deck", "--compute_dtype=bfloat16"),
    "lenet_deck_ablated": lenet(
        "deck",
        "--c3=random",
        "--activation=relu",
        "--pooling=max",
        "--loss=mse",
        "--weight_decay=0.001",
    ),
    "lenet_deck_adamw": lenet(
        "deck",
        "--optimizer=adamw",
        "--momentum=0",
        "--label_smoothing=0.1",
        "--schedule=constant",
        "--noreshuffle",
    ),
    "lenet_paper": lenet("paper"),
    "lenet_paper_killed": lenet("paper", "--train_size=4000", "--num_epochs=3", killed=True),
    "lenet_paper_straight": lenet("paper", "--train_size=4000", "--num_epochs=3"),
    "lenet_paper_distortions": lenet("paper", "--distortions=affine", "--distorted_copies=9"),
    "lenet_paper_same": lenet("paper", "--curvature_loss=same", "--batch_size=16"),
    "lenet_modern": lenet("modern"),
    "lenet_modern_fixed_8": lenet("modern", "--reduction=fixed", devices=8),
    "alexnet_small": alexnet("small", *CIFAR),
    "alexnet_small_killed": alexnet("small", *CIFAR, "--save_every_steps=2", killed=True),
    "alexnet_small_2": alexnet("small", *CIFAR, devices=2),
    "alexnet_small_pmap_2": alexnet("small", *CIFAR, "--parallel=pmap", devices=2),
    "alexnet_small_fixed_1": alexnet("small", *CIFAR, "--reduction=fixed"),
    "alexnet_small_fixed_2": alexnet("small", *CIFAR, "--reduction=fixed", devices=2),
    "alexnet_small_fixed_8": alexnet("small", *CIFAR, "--reduction=fixed", devices=8),
    "alexnet_small_model_axis": alexnet("small", *CIFAR, "--mesh=data:2,model:2", devices=4),
    "alexnet_small_plateau": alexnet(
        "small",
        *CIFAR,
        "--schedule=plateau",
        "--patience=1",
        "--num_epochs=4",
        "--average_decay=0.9",
    ),
    "alexnet_small_ten_crops": alexnet("small", *CIFAR, "--ten_crop", "--crop_size=28", "--pad=0"),
    "alexnet_cifar18": alexnet("cifar18", *CIFAR),
    "alexnet_cifar13": alexnet("cifar13", *CIFAR),
    "alexnet_fake": alexnet("cifar18", "--dataset=fake", "--train_size=512", "--num_epochs=2"),
    "alexnet_deck": alexnet("deck", *VALIDATED),
    "alexnet_deck_workers_0": alexnet("deck", *VALIDATED, "--num_workers=0"),
    "alexnet_paper": alexnet("paper", *VALIDATED),
    "alexnet_caffe": alexnet("caffe", *VALIDATED),
    "alexnet_code2012": alexnet("code2012", *VALIDATED),
    "alexnet_torchvision": alexnet("torchvision", *VALIDATED),
    "alexnet_modern": alexnet("modern", *VALIDATED, "--warmup_epochs=1"),
}


def run(name: str, tree: Path, data_dir: str, work: Path) -> dict:
    """What one run ended in."""
    module, flags, devices, killed = RUNS[name]
    workdir = work / name
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TFDS_DATA_DIR": data_dir}
    if devices > 1:
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", module, f"--workdir={workdir}", *flags, "--seed=3"]
    start = time.monotonic()
    if killed:
        process = subprocess.Popen(command, cwd=tree, env=environment, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            saved = [path for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()]
            if saved:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        process.wait()
        if (workdir / "result.json").exists():
            raise RuntimeError(f"{name} was complete before it was killed")
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"{name}: {' '.join(command)} ended with {done.returncode}\n{done.stderr}"
        )
    result = json.loads((workdir / "result.json").read_text())
    row = {key: value for key, value in result.items() if key.endswith("_error_pct")}
    row.pop("best_validation_error_pct", None)  # which the first table lacks
    row["state_sha256"] = result["state_sha256"]
    row["metrics_sha256"] = hashlib.sha256((workdir / "metrics.jsonl").read_bytes()).hexdigest()
    shutil.rmtree(workdir / "checkpoints")
    print(f"{name}: {row['state_sha256'][:16]} {time.monotonic() - start:.0f} s", flush=True)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tree", default=".")
    parser.add_argument("--data_dir", default=os.environ.get("TFDS_DATA_DIR", ""))
    parser.add_argument("--out", required=True)
    parser.add_argument("--against", default="")
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    names = [
        name
        for name in RUNS
        if not given.only or any(part in name for part in given.only.split(","))
    ]
    tree, table, failed = Path(given.tree).absolute(), {}, []
    with (
        tempfile.TemporaryDirectory() as work,
        concurrent.futures.ThreadPoolExecutor(given.jobs) as pool,
    ):
        runs = {
            name: pool.submit(run, name, tree, str(Path(given.data_dir).absolute()), Path(work))
            for name in names
        }
        for name, future in runs.items():
            try:
                table[name] = future.result()
            except RuntimeError as error:
                failed.append(name)
                print(error, file=sys.stderr, flush=True)
            Path(given.out).write_text(json.dumps(table, indent=1) + "\n")
    if given.against:
        before = json.loads(Path(given.against).read_text())
        for name in table:
            for key in before.get(name, {}).keys() | table[name].keys():
                if before.get(name, {}).get(key) != table[name].get(key):
                    failed.append(name)
                    print(
                        f"{name} {key}: {before.get(name, {}).get(key)} -> {table[name].get(key)}"
                    )
        print(f"{len(table)} runs, {len(set(failed))} differ or failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
