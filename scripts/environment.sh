# Sourced by quickstart.sh, test.sh and .ci/run: changes to the repository's root, makes .venv with
# ${PYTHON:-python3} if it is missing, and defines `install FILE`. Rerun, it changes nothing.
CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
if [ -z "${PYTHON:-}" ] && [ -e .venv/bin/pip ] && .venv/bin/python -c '' 2>/dev/null; then
  python=.venv/bin/python # an existing .venv is replaced only if PYTHON asks for another version
fi

fail() {
  echo "$*" >&2
  exit 1
}
trap 'echo "Interrupted; rerun the same command to continue." >&2; exit 130' INT

minor_version() { # "3.11" for a Python that runs, nothing otherwise
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

install() { # install FILE: a requirements file; its copy in .venv marks that this was completed
  cmp -s "$1" ".venv/$1" && return
  echo "Installing $1 into .venv (the first time this takes a few minutes) ..."
  rm -f ".venv/$1"
  .venv/bin/python -m pip install -qq --disable-pip-version-check --requirement "$1" ||
    fail "Installing $1 failed: see above."
  cp "$1" ".venv/$1"
}

version=$(minor_version "$python")
choose="Python 3.11, 3.12 or 3.13 is needed; to choose one: PYTHON=python3.12 bash $0"
case $version in
  3.11 | 3.12 | 3.13) ;;
  "") fail "'$python' does not run. $choose" ;;
  *) fail "'$python' is Python $version. $choose" ;;
esac

made_by=$(minor_version .venv/bin/python)
# pip is installed last: without it, making .venv was interrupted
if [ "$made_by" != "$version" ] || [ ! -e .venv/bin/pip ]; then
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "'$python' lacks venv or ensurepip. On Debian and Ubuntu: apt install python$version-venv"
  [ -z "$made_by" ] || echo "Replacing .venv: Python $made_by made it, and '$python' is $version."
  "$python" -m venv --clear .venv
fi
