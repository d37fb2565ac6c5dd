#!/usr/bin/env bash
# `bash scripts/test.sh [--all] [PYTEST ARGUMENTS]`: the linter and the fast tests; --all goes on with the slow ones.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
tiers=("not slow")
if [ "${1:-}" = --all ]; then
  shift
  [ $# = 0 ] && tiers+=(slow) || tiers=("") # what arguments choose runs at once: one of two tiers might have none of it
fi
install requirements.txt
install requirements-dev.txt
unset PYTHONDONTWRITEBYTECODE # hundreds of commands are run, which need not each compile the same modules

.venv/bin/ruff check .
.venv/bin/ruff format --check .
for tier in "${tiers[@]}"; do # in a process for each core, but no more than four: the largest tests need gigabytes
  .venv/bin/python -m pytest -m "$tier" -n auto --maxprocesses=4 --dist=worksteal -rs --durations=15 "$@"
done
