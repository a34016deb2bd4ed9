import dataclasses
import json
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from core import data_files
from core.checkpoint import state_dict
from core.errors import UserError

WITNESS = data_files.find("core/checkpoint/witness")


def arrays(*names):
  return {name: np.full(2, i, np.float32) for i, name in enumerate(names)}


def save(path, *names):
  safetensors.numpy.save_file(arrays(*names), path)
  return path


@pytest.mark.parametrize(
  "location, yes",
  [
    ("a/model.safetensors", True),
    ("https://host/vit-b-300ep.pth.tar", True),
    ("https://host/dino.pth?download=1", True),
    ("model.pt#sha256=00", True),
    ("pytorch_model.bin", True),
    ("runs/x.pth.tar:state_dict", True),
    ("https://host/x.pt?download=1:model", True),
    ("https://host.pt:8080/x.npz", False),
    ("https://host.pt:8080/x.pth", True),
    ("vit.npz", False),
    ("https://host/two_towers.npz:img", False),
    ("howto-i21k-B/16", False),
  ],
)
def test_such_files_are_known_by_their_names(location, yes):
  assert state_dict.is_one(location) is yes


@dataclasses.dataclass
class Stored:
  """An array as a file gives it."""

  array: np.ndarray

  def read(self):
    return self.array


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema"])
def test_averaged_weights_are_read_before_raw_ones_as_timm_does_and_it_is_said(key, tmp_path, monkeypatch, capsys):
  raw, averaged = ({"module.a": Stored(np.full(2, value))} for value in (1.0, 2.0))
  held = {"epoch": 3, "state_dict": raw, "model": raw, key: averaged}
  monkeypatch.setattr(state_dict, "_open", lambda path: held)
  np.testing.assert_array_equal(state_dict.read(tmp_path / "x.pth")["a"], [2, 2])
  assert (
    f"x.pth: its averaged weights are read ({key}), not the raw ones; x.pth:state_dict names those"
    in capsys.readouterr().err
  )
  monkeypatch.setattr(state_dict, "_open", lambda path: held | {key: None})  # A run without an average.
  np.testing.assert_array_equal(state_dict.read(tmp_path / "x.pth")["a"], [1, 1])
  assert capsys.readouterr().err == ""


def test_the_count_of_an_averaged_model_is_no_weight(tmp_path, monkeypatch):
  held = {name: Stored(np.ones(2)) for name in ("n_averaged", "module.a", "module.b.c")}
  monkeypatch.setattr(state_dict, "_open", lambda path: held)
  assert set(state_dict.read(tmp_path / "x.pth")) == {"a", "b.c"}


def test_a_folder_is_one(tmp_path):
  assert state_dict.is_one(str(tmp_path))


@pytest.mark.parametrize("form", ["zip.pth", "legacy.pth"])
def test_a_training_state_of_pytorch_is_unwrapped_to_the_models_arrays(form):
  read = state_dict.read(WITNESS / form)
  with np.load(WITNESS / "expected.npz") as expected:
    assert set(read) == set(expected) - {"made_with"}
    np.testing.assert_array_equal(read["transposed"], expected["transposed"])


def test_half_precision_is_kept(tmp_path):
  stored = {"a": np.ones(2, np.float16), "b": np.ones(2, ml_dtypes.bfloat16)}
  safetensors.numpy.save_file(stored, tmp_path / "x.safetensors")
  assert {name: array.dtype for name, array in state_dict.read(tmp_path / "x.safetensors").items()} == {
    "a": np.float16,
    "b": ml_dtypes.bfloat16,
  }


@pytest.mark.parametrize(
  "stored, names",
  [
    (["a.weight", "head.bias"], {"a.weight", "head.bias"}),
    (["module.a.weight", "module.head.bias"], {"a.weight", "head.bias"}),
    (["_orig_mod.module.a"], {"a"}),
    (["model.a", "model.b"], {"a", "b"}),
    (["model.a", "b"], {"model.a", "b"}),  # A part that is called so, no wrapper.
    (["module.backbone.a", "module.head.mlp"], {"a"}),
    (["module.base_encoder.a", "module.momentum_encoder.a", "module.predictor.b"], {"a"}),
    (["student.backbone.a", "teacher.backbone.a", "teacher.dino_head.b"], {"a"}),
  ],
)
def test_wrappers_are_taken_off(stored, names, tmp_path):
  assert set(state_dict.read(save(tmp_path / "x.safetensors", *stored))) == names


def test_the_teacher_and_the_base_encoder_are_the_ones_taken(tmp_path):
  (student_or_teacher,) = state_dict.read(save(tmp_path / "x.safetensors", "student.a", "teacher.a")).values()
  np.testing.assert_array_equal(student_or_teacher, 1)
  (encoder,) = state_dict.read(save(tmp_path / "y.safetensors", "momentum_encoder.a", "base_encoder.a")).values()
  np.testing.assert_array_equal(encoder, 1)


@pytest.mark.parametrize("key", ["state_dict", "model", "teacher", "student"])
def test_nested_states_are_entered(key, tmp_path):
  with zipfile.ZipFile(WITNESS / "zip.pth") as source, zipfile.ZipFile(tmp_path / "x.pth", "w") as target:
    for entry in source.namelist():
      data = source.read(entry)
      # The pickle's string "state_dict", with its length before it.
      target.writestr(entry, data.replace(b"\n\x00\x00\x00state_dict", bytes([len(key), 0, 0, 0]) + key.encode()))
  assert "plain" in state_dict.read(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_is_read_whole_or_in_shards(name, tmp_path):
  one, two = tmp_path / "one", tmp_path / "two"
  one.mkdir()
  two.mkdir()
  if name == "model.safetensors":
    save(one / name, "a", "b")
    save(two / "1.safetensors", "a")
    save(two / "2.safetensors", "b")
    weight_map = {"a": "1.safetensors", "b": "2.safetensors"}
  else:
    (one / name).write_bytes((WITNESS / "zip.pth").read_bytes())
    (two / "1.bin").write_bytes((WITNESS / "zip.pth").read_bytes())
    weight_map = {"a": "1.bin"}
  (two / f"{name}.index.json").write_text(json.dumps({"weight_map": weight_map}))
  assert set(state_dict.read(one)) == set(state_dict.read(two))
  assert state_dict.read_config(one) == {}
  (one / "config.json").write_text('{"hidden_act": "gelu"}')
  assert state_dict.read_config(one) == state_dict.read_config(one / name) == {"hidden_act": "gelu"}
  assert state_dict.read_config(save(one / "other.safetensors", "a")) == {}


def test_of_an_array_in_two_shards_the_index_tells_which(tmp_path):
  for i, name in enumerate(("1.safetensors", "2.safetensors")):
    safetensors.numpy.save_file({"a": np.full(2, i, np.float32), f"b{i}": np.ones(2)}, tmp_path / name)
  (tmp_path / "model.safetensors.index.json").write_text(
    json.dumps({"weight_map": {"a": "1.safetensors", "b1": "2.safetensors"}})
  )
  read = state_dict.read(tmp_path)
  assert set(read) == {"a", "b0", "b1"}
  np.testing.assert_array_equal(read["a"], 0)


# A dict that holds itself under "state_dict", beside "epoch", as a zip file of PyTorch's.
LEADS_BACK = b"\x80\x02}q\x00(X\x0a\x00\x00\x00state_dicth\x00X\x05\x00\x00\x00epochK\x01u."


def test_a_state_that_leads_back_to_itself_is_refused(tmp_path):
  with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
    archive.writestr("x/data.pkl", LEADS_BACK)
  with pytest.raises(UserError, match=r"x.pth: what it holds under state_dict_ema or .* leads back to itself$"):
    state_dict.read(tmp_path / "x.pth")


def test_an_index_that_names_its_own_folder_is_refused(tmp_path):
  (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "."}}')
  with pytest.raises(UserError, match="cannot be read"):
    state_dict.read(tmp_path)


def truncated(path):
  save(path, "a", "b")
  path.write_bytes(path.read_bytes()[:-3])


def index(text):
  def write(path):
    path.mkdir()
    (path / "model.safetensors.index.json").write_text(text)

  return write


@pytest.mark.parametrize(
  "name, write, words",
  [
    ("x.safetensors", lambda path: None, "no such file"),
    ("x.safetensors", truncated, "not a .safetensors file, or a damaged one"),
    ("x.safetensors", lambda path: path.write_bytes(b""), "not a .safetensors file, or a damaged one"),
    ("x.safetensors", lambda path: path.write_bytes(pickle.dumps({})), "not a .safetensors file, or a damaged one"),
    ("folder", lambda path: path.mkdir(), "a folder without model.safetensors or pytorch_model.bin"),
    ("folder", index("[1]"), "must hold a JSON object"),
    ("folder", index("{"), "not readable as JSON"),
    ("folder", index("{}"), "has no weight_map"),
    ("folder", index('{"weight_map": {"a": "gone.safetensors"}}'), "gone.safetensors: no such file"),
  ],
)
def test_bad_files_are_one_line(name, write, words, tmp_path):
  write(tmp_path / name)
  with pytest.raises(UserError, match=words) as e:
    state_dict.read(tmp_path / name)
  assert str(e.value).startswith(str(tmp_path / name))
  assert "\n" not in str(e.value)
