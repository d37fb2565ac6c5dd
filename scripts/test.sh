#!/usr/bin/env bash
# The linter and the tests: `bash scripts/test.sh [--quick|--ci|--all] [PYTEST ARGUMENTS]`.
#   --quick  unit tests: no process is started, no whole network compiled
#   (none)   and tiny runs of the real commands, and what takes seconds
#   --ci     and slow tests: one kill, one corruption, two devices, PyTorch ... of each kind
#   --all    and the nightly ones: every preset and setting, many kills, many devices, full data sets
set -euo pipefail
source "$(dirname "$0")/environment.sh"
option=${1:-}
case $option in
  --quick) minutes=1 tests="not commands and not slow and not nightly" ;;
  --ci) minutes=25 tests="not nightly" ;;
  --all) minutes=45 tests="" ;;
  *) minutes=5 tests="not slow and not nightly" option="" ;;
esac
[ -z "$option" ] || shift
install requirements.txt
install requirements-dev.txt
unset PYTHONDONTWRITEBYTECODE # or each of hundreds of commands compiles the same modules

echo "At most $minutes min on 2 cores."
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# A process per core, at most four: the largest tests need gigabytes.
.venv/bin/python -m pytest -m "$tests" -n auto --maxprocesses=4 --dist=worksteal -rs \
  --durations=15 "$@"
