# Sourced by quickstart.sh, test.sh and .ci/run: goes to the repository's root, makes .venv with ${PYTHON:-python3} where it is
# missing, and defines `install FILE`. When everything is in place it changes nothing.
CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
if [ -z "${PYTHON:-}" ] && [ -e .venv/bin/pip ] && .venv/bin/python -c '' 2>/dev/null; then
  python=.venv/bin/python # whatever made it: nothing is replaced unasked
fi

fail() {
  echo "$*" >&2
  exit 1
}
trap 'echo "Interrupted; the same command goes on from here." >&2; exit 130' INT

minor_version() { # "3.11" for a Python that runs, nothing otherwise
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

install() { # install FILE: what a requirements file names; its copy in .venv tells that this was done, to the end
  cmp -s "$1" ".venv/$1" && return
  echo "Installing $1 into .venv (the first time this takes a few minutes) ..."
  rm -f ".venv/$1"
  .venv/bin/python -m pip install -qq --disable-pip-version-check --requirement "$1" || fail "Installing $1 failed: see above."
  cp "$1" ".venv/$1"
}

version=$(minor_version "$python")
case $version in
  3.11 | 3.12 | 3.13) ;;
  "") fail "'$python' does not run. Python 3.11, 3.12 or 3.13 is needed; to choose one: PYTHON=python3.12 bash $0" ;;
  *) fail "'$python' is Python $version, and 3.11, 3.12 or 3.13 is needed; to choose one: PYTHON=python3.12 bash $0" ;;
esac

made_by=$(minor_version .venv/bin/python)
if [ "$made_by" != "$version" ] || [ ! -e .venv/bin/pip ]; then # pip comes last: without it, making .venv was interrupted
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "'$python' lacks venv or ensurepip, which make .venv. On Debian and Ubuntu: apt install python$version-venv"
  [ -z "$made_by" ] || echo "Replacing .venv: it was made by Python $made_by, and '$python' is $version."
  "$python" -m venv --clear .venv
fi
