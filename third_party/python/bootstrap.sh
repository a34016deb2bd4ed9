#!/bin/sh
# What everything else is installed with. Run by Bazel (lock.bzl) and by a bundle's `start` (tools/bundle_start.sh):
#   bootstrap.sh find                     prints the path of this machine's Python 3.11; status 1 where it has none
#   bootstrap.sh uv LOCK FOLDER           installs the uv of LOCK as FOLDER/bin/uv, by pip of any Python from 3.8 on
#   bootstrap.sh build PINS               prints which Python PINS, cpython.json, stands for: "3.11.18, build 20261110"
#   bootstrap.sh python UV PINS FOLDER    installs that Python into FOLDER, a folder of its own, and prints its path
set -eu
unset PYTHONHOME PYTHONPATH

# Prints the path of the first Python on PATH that meets a condition. Behind a virtual environment, a link or a shim of
# pyenv's that is the path of the interpreter itself: one that can be moved, such as uv's, finds its library by no other.
# $2: a command that must succeed with that path as its argument.
first_python() {
  code="import os, sys; ($1) or sys.exit(1); print(os.path.realpath(sys._base_executable))"
  for name in python3.11 python3 python; do
    if python=$("$name" -I -c "$code" 2>/dev/null) && $2 "$python"; then
      echo "$python"
      return
    fi
  done
  return 1
}

has_pip() {
  "$1" -m pip --version >/dev/null 2>&1
}

install_uv() {
  python=$(first_python "sys.version_info >= (3, 8)" has_pip) || {
    echo "no Python 3.8 or newer with pip is on PATH: install one (Debian, Ubuntu: apt-get install python3-pip)" >&2
    exit 1
  }
  # LOCK's entry of uv alone: an older pip would refuse the others for the Python they need, though none is run by it.
  sed -n '/^uv==/,/[^\\]$/p' "$1" |
    "$python" -m pip install --quiet --no-user --disable-pip-version-check --require-hashes --no-deps \
      --only-binary=:all: --target "$2" --requirement /dev/stdin
}

name_build() {
  sed -n 's/.*cpython-\([0-9.]*\)%2B\([0-9]*\)-.*/\1, build \2/p' "$1" | head -n 1
}

install_python() {
  # PINS in place of uv's own list: one build, held to its SHA-256 wherever it comes from ($UV_PYTHON_INSTALL_MIRROR).
  "$1" python install --no-progress --no-bin --install-dir "$3" --python-downloads-json-url "$2" 3.11 >&2 || {
    echo "if this machine cannot reach GitHub: set UV_PYTHON_INSTALL_MIRROR, or put a Python 3.11 on PATH" >&2
    exit 1
  }
  ls "$3"/cpython-3.11.*/bin/python3.11
}

command=$1
shift
case $command in
  find) first_python "sys.version_info[:2] == (3, 11)" true ;;
  uv) install_uv "$@" ;;
  build) name_build "$@" ;;
  python) install_python "$@" ;;
esac
