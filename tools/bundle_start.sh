#!/bin/sh
# ./start [the flags of @module@]
# Trains from this folder alone: makes the environment of @lock@ beside this script, once, and runs in it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
unset PYTHONHOME PYTHONPATH

# One environment a lock: a bundle unpacked over an older one makes its own.
digest=$(cat "$here/@uv_lock@" "$here/@cpython@" "$here/@lock@" | sha256sum | cut -c 1-16)
environment=$here/.environment-$digest

bootstrap() {
  sh "$here/@bootstrap@" "$@"
}

if [ ! -d "$environment" ]; then
  python=$(bootstrap find) ||
    echo "Python 3.11 is not on PATH: installing uv's CPython $(bootstrap build "$here/@cpython@") (once)" >&2
  echo "Installing the packages of @lock@ (once)" >&2

  # Made aside and renamed when whole: an interrupted installation is not mistaken for an environment, and of two that
  # start at once the first to finish is taken by both.
  making=$(mktemp -d "$here/.installing-XXXXXX")
  trap 'rm -rf "$making"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  quietly() {
    "$@" 2>"$making/log" || { cat "$making/log" >&2; echo "error: this failed: $*" >&2; exit 2; }
  }
  quietly bootstrap uv "$here/@uv_lock@" "$making/uv"
  [ -n "$python" ] ||
    python=$(quietly bootstrap python "$making/uv/bin/uv" "$here/@cpython@" "$here/.python-$digest")
  quietly "$python" -m venv --without-pip "$making/environment"
  quietly "$making/uv/bin/uv" pip install --quiet --no-progress --require-hashes --no-deps --build-constraints "$here/@uv_lock@" \
    --python "$making/environment/bin/python" --requirements "$here/@lock@"
  mv -T "$making/environment" "$environment" 2>/dev/null || [ -d "$environment" ]
  rm -rf "$making"
  trap - EXIT INT TERM
fi

# -P and PYTHONPATH: the bundle's sources are found from any folder, and no others.
export PYTHONPATH="$here"
exec "$environment/bin/python" -P -m @module@ "$@"
