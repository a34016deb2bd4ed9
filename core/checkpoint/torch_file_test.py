import collections
import contextlib
import io
import os
import pickle
import shutil
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest

from core import data_files
from core.checkpoint import state_dict, torch_file, torch_stand_ins, values
from core.errors import UserError

WITNESS = data_files.find("core/checkpoint/witness")
FORMS = ("zip.pth", "legacy.pth")


@pytest.mark.parametrize("form", FORMS)
def test_the_arrays_are_those_that_pytorch_saved(form):
  content = torch_file.read(WITNESS / form)
  assert content["epoch"] == 3
  np.testing.assert_array_equal(content["optimizer"]["state"][0]["exp_avg"].read(), np.ones(3))
  arrays = {name.removeprefix("module."): tensor.read() for name, tensor in content["state_dict"].items()}
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
  storage = torch_stand_ins.Storage(WITNESS, np.dtype(np.float32), 4, lambda: bytes(16))
  rebuild = torch_stand_ins.KNOWN["torch._utils", "_rebuild_tensor_v2"]
  assert rebuild(storage, 0, (2, 2), (2, 1)).read().shape == (2, 2)
  for offset, size, stride in ((1, (2, 2), (2, 1)), (0, (5,), (1,)), (0, (2,), (-1,)), (-1, (2,), (1,))):
    with pytest.raises(ValueError, match="reaches beyond its storage"):
      rebuild(storage, offset, size, stride)
  with pytest.raises(ValueError, match="holds no whole numbers"):
    rebuild(storage, 0, (2.0,), (1,))


KINDS = ("kinds_zip.pth", "kinds_legacy.pth")


@pytest.mark.parametrize("form", KINDS)
def test_every_type_of_numbers_is_read_as_pytorch_shows_it(form):
  tensors = torch_file.read(WITNESS / form)["read"]
  with np.load(WITNESS / "kinds_expected.npz") as expected:
    assert set(tensors) == set(expected) - {"made_with"}
    for name, tensor in tensors.items():
      np.testing.assert_array_equal(tensor.read().astype(expected[name].dtype), expected[name], err_msg=name)
  own = {name: tensor.read().dtype.name for name, tensor in tensors.items() if "float" in name or "int" in name}
  assert own == {name: name for name in own}
  np.testing.assert_array_equal(tensors["negated"].read(), [-0.5, 1.5, -4.0])
  np.testing.assert_array_equal(tensors["conjugated"].read(), [0.5 + 2j, -3j])


@pytest.mark.parametrize("form", KINDS)
def test_tensors_of_other_kinds_are_refused_by_their_kind(form):
  for name, tensor in torch_file.read(WITNESS / form)["unread"].items():
    with pytest.raises(values.UnreadError, match=name if "type" in tensor.kind else "^a .* ?tensor|without numbers"):
      tensor.read()


@pytest.mark.parametrize("form", KINDS)
def test_harmless_objects_of_other_packages_are_read_as_nothing(form):
  objects = torch_file.read(WITNESS / form)["objects"]
  assert objects["counter"] == {"a": 2, "b": 1}
  assert objects["lists"] == {"a": [1]}
  for name in ("numpy", "paths", "times", "sets"):
    assert all(type(each) is torch_stand_ins.Inert for each in objects[name])
  assert type(objects["options"]) is torch_stand_ins.Inert


WRITTEN = {"dict": b"}X\x04\x00\x00\x00markK\x01s", "slots": b"N}X\x04\x00\x00\x00markK\x01s\x86"}


def unpickled(data):
  """What the reader makes of a pickle, or None of one that it refuses."""
  file = io.BytesIO(b"\x80\x02" + data + b".")
  storage = torch_stand_ins.Storage(WITNESS, np.dtype(np.float32), 4, lambda: bytes(16))
  with contextlib.suppress(*torch_stand_ins._NONSENSE):
    return torch_file._Unpickler(file, WITNESS, lambda *_: storage).load()


@pytest.mark.parametrize("written", WRITTEN)
def test_such_pickles_write_attributes_of_objects_that_are_open(written):
  class Open:
    pass

  class Unpickler(pickle.Unpickler):
    def find_class(self, *_):
      return Open

  found = Unpickler(io.BytesIO(b"\x80\x02cm\nn\n)\x81" + WRITTEN[written] + b"b.")).load()
  assert found.mark == 1


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("made", [b"", b")R", b")\x81"], ids=["itself", "called", "new"])
def test_no_attribute_of_what_a_pickle_names_can_be_written(written, made):
  for (module, name), known in torch_stand_ins.KNOWN.items():
    found = unpickled(f"c{module}\n{name}\n".encode() + made + WRITTEN[written] + b"b")
    for each in (found, type(found), known, type(known)):
      assert not hasattr(each, "mark"), (module, name)


@pytest.mark.parametrize("added", [b"K\x01a", b"(K\x01e", b"K\x01K\x01s", b"(K\x01\x90"], ids=["a", "e", "s", "add"])
def test_nothing_can_be_added_to_what_a_pickle_names(added):
  for (module, name), known in torch_stand_ins.KNOWN.items():
    before = dict(vars(known)) if isinstance(known, type) else known
    unpickled(f"c{module}\n{name}\n".encode() + added)
    assert (dict(vars(known)) if isinstance(known, type) else known) == before


@pytest.mark.parametrize("written", [b"}X\x05\x00\x00\x00shapeK\x09\x85s", b"N}X\x05\x00\x00\x00shapeK\x09\x85s\x86"])
def test_a_tensor_cannot_be_changed_once_it_was_found_to_lie_within_its_storage(written):
  reference = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
  tensor = unpickled(
    b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + b"K\x00K\x04\x85K\x01\x85tR" + written + b"b"
  )
  assert (tensor.shape, tensor.read().shape) == ((4,), (4,))
  storage = unpickled(reference + written.replace(b"\x05\x00\x00\x00shape", b"\x05\x00\x00\x00count") + b"b")
  assert storage.count == 4


def test_an_entry_twice_is_refused(tmp_path):
  shutil.copyfile(WITNESS / "zip.pth", tmp_path / "x.pth")
  with zipfile.ZipFile(tmp_path / "x.pth", "a") as archive, warnings.catch_warnings(action="ignore"):
    archive.writestr(archive.namelist()[-1], b"")
  with pytest.raises(UserError, match=r"x.pth: holds .* more than once$"):
    torch_file.read(tmp_path / "x.pth")


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


def test_a_pickle_that_asks_for_more_room_than_it_has_objects_is_refused(tmp_path):
  # The numbers are small: what a reader would make room for is what is refused, however much it is.
  kept = b"\x80\x02}q\x2aX\x01\x00\x00\x00aq\x01K\x01s."  # A dict, kept as object 42.
  with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
    archive.writestr("x/data.pkl", kept)
  with pytest.raises(
    UserError, match=r"x\.pth: damaged, or not a file of torch\.save \(object 2 is kept under the number 42\)"
  ):
    torch_file.read(tmp_path / "x.pth")
