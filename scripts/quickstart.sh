#!/usr/bin/env bash
# From a fresh clone to a trained LeNet-5: `bash scripts/quickstart.sh`. It trains on the MNIST
# digits that are in the repository. Rerun, it resumes, or says that the run is complete.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
install requirements.txt

workdir=runs/quickstart
# With 7,500 digits the network overfits; distortions prevent that and need more epochs.
settings=(--dataset=mnist10k --validation_size=500 --distortions=elastic --distortion_strength=0.6
  --batch_size=64 --num_epochs=60)
.venv/bin/python -m scripts.summarize --model=lenet --preset=deck
.venv/bin/python -m lenet.train --workdir=$workdir --preset=deck "${settings[@]}"
.venv/bin/python -m scripts.inspect $workdir --out=$workdir/report.html

.venv/bin/python - $workdir <<'PYTHON'
import json, sys
workdir = sys.argv[1]
with open(f"{workdir}/result.json") as file:
    result = json.load(file)
print(f"""
{result["test_error_pct"]:.2f}% error on the {result["num_test_examples"]:,} held-out digits of mnist10k.
The 1998 paper's 0.95% is on another test set: MNIST's 10,000, after training on 60,000.
The run is in {workdir}: result.json, curves.png, metrics.jsonl, checkpoints; flags.txt replays it.
What it learned and where it errs: open {workdir}/report.html in a browser.""")
PYTHON
