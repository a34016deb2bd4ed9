"""Every type of numbers of every format: equal values, or one line that names the array."""

import json
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from core.checkpoint import pretrained, state_dict, values
from core.errors import UserError
from core.testing import torch_files

NUMPY = [each for each in np.typecodes["All"] if each != "V"] + ["V4", "M8[s]"]  # V2 is how bfloat16 is stored.
REAL = {"b", "i", "u", "f"}


def refused(read, path):
  with pytest.raises(UserError) as e:
    read(path)
  line = str(e.value)
  assert "\n" not in line
  assert line.startswith(str(path))
  assert "kernel" in line or "pickled objects" in line
  return line


def read_npz(path):
  return pretrained.load_params(str(path))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", NUMPY)
def test_every_type_of_npz_is_read_as_it_is_or_one_line(kind, order, tmp_path):
  path, dtype = tmp_path / "x.npz", np.dtype(order + kind)
  array = np.zeros(2, dtype) if dtype.kind in "VOMm" else np.array([1, 0]).astype(dtype)
  np.savez(path, kernel=array)
  if dtype.kind in REAL:
    read = read_npz(path)["kernel"]
    assert read.dtype.isnative
    assert read.dtype == dtype.newbyteorder("=")
    np.testing.assert_array_equal(read, array)
  else:
    refused(read_npz, path)


@pytest.mark.parametrize("kind", [name for name in dir(ml_dtypes) if name.startswith(("float", "int", "uint"))])
def test_what_npz_has_no_name_for_is_not_written(kind, tmp_path):
  params = {"kernel": np.ones(2, getattr(ml_dtypes, kind))}
  line = refused(lambda path: pretrained.save_params(path, params), tmp_path / "x.npz")
  assert line.endswith(f"kernel is of the type {kind}, for which .npz files have no name")
  assert list(tmp_path.iterdir()) == []


# All that safetensors 0.8.0 knows (the names in its own error for one that it does not), and how they are to be read.
SAFETENSORS = {
  "BOOL": np.bool_,
  "U8": np.uint8,
  "I8": np.int8,
  "F8_E5M2": ml_dtypes.float8_e5m2,
  "F8_E4M3": ml_dtypes.float8_e4m3fn,
  "F8_E8M0": ml_dtypes.float8_e8m0fnu,
  "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
  "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
  "I16": np.int16,
  "U16": np.uint16,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
  "I32": np.int32,
  "U32": np.uint32,
  "F32": np.float32,
  "F64": np.float64,
  "I64": np.int64,
  "U64": np.uint64,
  "C64": np.complex64,
  "F4": None,
  "F6_E2M3": None,
  "F6_E3M2": None,
}


def write_safetensors(path, kind, data, shape):
  header = json.dumps({"kernel": {"dtype": kind, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
  path.write_bytes(len(header).to_bytes(8, "little") + header + data)
  return path


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_every_type_of_safetensors_is_read_as_it_is_or_one_line(kind, tmp_path):
  path, dtype = tmp_path / "x.safetensors", SAFETENSORS[kind]
  if dtype in (None, np.complex64):
    size = 64 if dtype else int(kind[1])
    line = refused(state_dict.read, write_safetensors(path, kind, bytes(size), [8]))
    assert (
      "holds complex numbers" in line
      if dtype
      else line.endswith(f"kernel is an array of the type {kind}, which is not read")
    )
    return
  array = np.array([[1, 0.5, 2]] if kind == "F8_E8M0" else [[1, 0, 2]]).astype(dtype)
  read = state_dict.read(write_safetensors(path, kind, array.tobytes(), [1, 3]))["kernel"]
  assert read.dtype == dtype
  np.testing.assert_array_equal(read.astype(np.float32), array.astype(np.float32))


def test_the_types_of_safetensors_are_all_that_it_knows(tmp_path):
  with pytest.raises(safetensors.SafetensorError) as e:
    safetensors.safe_open(write_safetensors(tmp_path / "x.safetensors", "F7", b"", [0]), "numpy")
  assert {word.strip("`,") for word in str(e.value).partition("one of ")[2].split() if "`" in word} == set(SAFETENSORS)


BAD = {
  "NaN": (np.float32([1, np.nan]), "kernel holds NaN (1 of 2 numbers are not finite)"),
  "infinite": (np.float32([-np.inf, np.inf]), "kernel holds infinite numbers (2 of 2 numbers are not finite)"),
  "half": (np.float16([np.inf]), "kernel holds infinite numbers"),
  "beyond": (np.array([1.0, -1e300]), "kernel holds numbers beyond float32, as -1e+300"),
  "complex": (np.complex64([1]), "kernel holds complex numbers (complex64); weights are real"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("family", ["npz", "safetensors", "torch"])
def test_numbers_that_no_model_holds_are_one_line_that_names_the_array(family, bad, tmp_path):
  array, words = BAD[bad]
  if family == "npz":
    np.savez(tmp_path / "x.npz", kernel=array)
    line = refused(read_npz, tmp_path / "x.npz")
  elif family == "safetensors":
    safetensors.numpy.save_file({"kernel": array}, tmp_path / "x.safetensors")
    line = refused(state_dict.read, tmp_path / "x.safetensors")
  else:
    torch_files.save(tmp_path / "x.pth", {"kernel": array})
    line = refused(state_dict.read, tmp_path / "x.pth")
  assert words in line


def test_numbers_at_float32_s_own_limit_are_taken():
  largest = np.array([np.finfo(np.float32).max, -np.finfo(np.float32).max, 5e-324])
  assert values.check(largest, "kernel", "x") is largest
  with pytest.raises(UserError, match=r"^x: kernel holds numbers beyond float32, as 3.4e\+38$"):
    values.check(np.array([3.4028236e38]), "kernel", "x")


def test_a_name_twice_in_npz_is_refused(tmp_path):
  path = tmp_path / "x.npz"
  for second in ("kernel.npy", "kernel"):
    np.savez(path, kernel=np.ones(2))
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "a") as archive:
      archive.writestr(second, archive.read("kernel.npy"))
    assert refused(read_npz, path).endswith("holds kernel 2 times; a name must stand for one array")
    assert refused(lambda path: pretrained.load_params(f"{path}:kernel"), path)
