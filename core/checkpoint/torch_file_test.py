import collections
import contextlib
import io
import os
import pickle
import shutil
import zipfile

import ml_dtypes
import numpy as np
import pytest

from core import data_files
from core.checkpoint import state_dict, torch_file
from core.errors import UserError

WITNESS = data_files.find("core/checkpoint/witness")
FORMS = ("zip.pth", "legacy.pth")


@pytest.mark.parametrize("form", FORMS)
def test_the_arrays_are_those_that_pytorch_saved(form):
  content = torch_file.read(WITNESS / form)
  assert content["epoch"] == 3
  np.testing.assert_array_equal(content["optimizer"]["state"][0]["exp_avg"](), np.ones(3))
  arrays = {name.removeprefix("module."): tensor() for name, tensor in content["state_dict"].items()}
  with np.load(WITNESS / "expected.npz") as expected:
    assert set(arrays) == set(expected) - {"made_with"}
    for name, array in arrays.items():
      np.testing.assert_array_equal(array.astype(expected[name].dtype), expected[name], err_msg=name)
  assert arrays["bfloat16"].dtype == ml_dtypes.bfloat16
  assert arrays["half"].dtype == np.float16
  assert arrays["scalar"].shape == ()


@pytest.mark.parametrize("form", FORMS)
def test_a_truncated_file_is_one_line_wherever_it_ends(form, tmp_path):
  whole = (WITNESS / form).read_bytes()
  path = tmp_path / "part.pth"
  for size in {0, 1, 10, 100, 300, len(whole) // 2, len(whole) - 100, len(whole) - 1}:
    path.write_bytes(whole[:size])
    with pytest.raises(UserError) as e:
      torch_file.read(path)
    assert str(e.value).startswith(f"{path}: ")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("form", FORMS)
def test_any_flipped_byte_is_read_or_refused_but_nothing_else(form, tmp_path):
  whole = bytearray((WITNESS / form).read_bytes())
  path = tmp_path / "flipped.pth"
  for place in np.random.default_rng(0).choice(len(whole), 300, replace=False):
    flipped = whole.copy()
    flipped[place] ^= 0xFF
    path.write_bytes(flipped)
    with contextlib.suppress(UserError):
      state_dict.read(path)


class Harmful:
  def __init__(self, ran):
    self._ran = str(ran)

  def __reduce__(self):
    return os.mkdir, (self._ran,)


def save_zip(path, content):
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))


def save_legacy(path, content):
  file = io.BytesIO()
  for each in (torch_file._MAGIC, torch_file._VERSION, {"little_endian": True}, content, []):
    pickle.dump(each, file, protocol=2)
  path.write_bytes(file.getvalue())


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_a_pickle_that_would_run_code_is_refused_by_name_and_does_not_run_it(save, tmp_path):
  path, ran = tmp_path / "harmful.pth", tmp_path / "ran"
  save(path, {"state_dict": {"weight": Harmful(ran)}})
  with pytest.raises(
    UserError, match=r"harmful.pth: names posix.mkdir, whose reading could run code; save the model's"
  ):
    torch_file.read(path)
  assert not ran.exists()


def test_a_tensor_that_reaches_beyond_its_storage_is_refused():
  storage = torch_file._Storage(WITNESS, np.dtype(np.float32), 4, lambda: bytes(16))
  assert torch_file._rebuild_tensor(storage, 0, (2, 2), (2, 1))().shape == (2, 2)
  for offset, size, stride in ((1, (2, 2), (2, 1)), (0, (5,), (1,)), (0, (2,), (-1,)), (-1, (2,), (1,))):
    with pytest.raises(ValueError, match="reaches beyond its storage"):
      torch_file._rebuild_tensor(storage, offset, size, stride)


def save_program(path):
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("model/data.pkl", b"\x80\x02}.")
    archive.writestr("model/constants.pkl", b"")


@pytest.mark.parametrize(
  "write, words",
  [
    (lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)), "a zip archive, but not of torch.save"),
    (save_program, "a TorchScript program, not a state dict"),
    (lambda path: save_zip(path, [1, 2]), "holds a list, not the arrays of a model by name"),
    (lambda path: path.write_bytes(pickle.dumps({"weight": 1})), "a pickle, but not of torch.save"),
    (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "not a file of torch.save, or a truncated one"),
    (lambda path: path.write_bytes(b"<html>404</html>"), "not a file of torch.save, or a truncated one"),
    (lambda path: shutil.make_archive(str(path.with_suffix("")), "tar", WITNESS, "expected.npz"), "a tar archive"),
    (lambda path: None, "no such file"),
  ],
)
def test_other_files_are_one_line(write, words, tmp_path):
  path = tmp_path / "other.tar"
  write(path)
  with pytest.raises(UserError, match=words) as e:
    torch_file.read(path)
  assert str(e.value).startswith(f"{path}: ")


def test_strings_and_ordered_dicts_come_as_they_are(tmp_path):
  save_zip(tmp_path / "a.pth", collections.OrderedDict(arch="vit", nothing=None))
  assert torch_file.read(tmp_path / "a.pth") == {"arch": "vit", "nothing": None}
