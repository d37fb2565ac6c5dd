#!/usr/bin/env bash
# From a fresh clone to a trained LeNet-5: `bash scripts/quickstart.sh`. Trains on the MNIST digits that come with the project.
# Run again, it installs nothing, and resumes the run or says that it is complete.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
install requirements.txt

preset=lenet/presets/deck.flags
workdir=runs/quickstart
# 8,000 digits are few: distortions keep the network from learning them by heart, and take more epochs.
quick=(--distortions=elastic --distortion_strength=0.6 --batch_size=64 --num_epochs=60)
.venv/bin/python -m scripts.summarize --model=lenet --flagfile=$preset
.venv/bin/python -m lenet.train --workdir=$workdir --flagfile=$preset --dataset=mnist10k --validation_size=500 "${quick[@]}"

.venv/bin/python - $workdir <<'PYTHON'
import json, sys
workdir = sys.argv[1]
with open(f"{workdir}/result.json") as file:
    result = json.load(file)
print(f"""
{result["test_error_pct"]:.2f}% error on the {result["num_test_examples"]:,} held-out digits of mnist10k
0.95% is the 1998 paper's error, on another test set: the 10,000 of MNIST, after training on 60,000
The run lies in {workdir}: result.json, curves.png, metrics.jsonl, checkpoints; flags.txt replays it.""")
PYTHON
