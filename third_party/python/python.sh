#!/bin/sh
# The interpreter of every target. Of PYTHONPATH it keeps what Bazel put there, the target's own runfiles; what the caller's
# shell had in it is dropped. -P: no folder is importable just because the main file lies in it.
kept=
IFS=:
set -f
for entry in $PYTHONPATH; do
  case $entry in *.runfiles | *.runfiles/*) kept=$kept${kept:+:}$entry ;; esac
done
unset IFS PYTHONHOME
export PYTHONPATH="$kept"
exec "@python@" -P "$@"
