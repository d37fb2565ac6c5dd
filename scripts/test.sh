#!/usr/bin/env bash
# `bash scripts/test.sh [--all] [PYTEST ARGUMENTS]`: the linter and the fast tests, two at a time; --all adds the slow ones.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
marks="not slow"
if [ "${1:-}" = --all ]; then
  marks="" # no selection
  shift
fi
install requirements.txt
install requirements-dev.txt

.venv/bin/ruff check .
.venv/bin/ruff format --check .
# Most of a test is Python's start and XLA's compiler, which are at one core's pace. Files stay whole: their tests share runs.
workers=(--numprocesses=2 --dist=loadfile --no-loadscope-reorder)
.venv/bin/python -m pytest -m "$marks" -rs --durations=15 "${workers[@]}" "$@"
