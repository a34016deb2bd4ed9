#!/usr/bin/env bash
# np.savez writes float8_e5m2 of ml_dtypes into a file that np.load cannot read; its other types come back as bytes.
#
# Versions: numpy 2.4.6, ml_dtypes 0.6.0. Run on 2026-11-30.
#
# An .npy header keeps dtype.str. That of float8_e5m2 is "<f1", by which NumPy knows no type, that of all others of
# ml_dtypes is a void of their size ("<V1", "<V2"), by which their name is lost. Saving says nothing in either case.
#
# Seen, of [0, 1, 2, 3] saved and loaded:
#   float8_e5m2     np.savez is silent, np.load: ValueError: descr is not a valid dtype descriptor: '<f1'
#   float8_e4m3fn   |V1, whose view as float8_e4m3fn is equal
#   bfloat16        |V2, whose view as bfloat16 is equal
#   int4            |V1, whose view as int4 is equal
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 ml_dtypes==0.6.0
"$folder/venv/bin/python" - <<'PYTHON'
import io

import ml_dtypes
import numpy as np


def saved_and_loaded(array):
  file = io.BytesIO()
  np.savez(file, x=array)
  file.seek(0)
  return np.load(file)["x"]


for name, shown in (("float8_e4m3fn", "|V1"), ("bfloat16", "|V2"), ("int4", "|V1")):
  array = np.arange(4).astype(getattr(ml_dtypes, name))
  found = saved_and_loaded(array)
  print(name, array.dtype.str, "comes back as", found.dtype.str)
  assert found.dtype.str == shown
  np.testing.assert_array_equal(found.view(array.dtype), array)

array = np.arange(4).astype(ml_dtypes.float8_e5m2)
assert array.dtype.str == "<f1"
try:
  print("float8_e5m2 comes back as", saved_and_loaded(array).dtype.str)
except ValueError as error:
  print("float8_e5m2: ValueError:", error)
  assert "'<f1'" in str(error)
else:
  raise SystemExit("float8_e5m2 can be read now")
PYTHON
