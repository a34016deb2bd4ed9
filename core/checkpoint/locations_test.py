"""Whatever a person gives as the place of a file: each function takes it, or refuses it in one line."""

import os

import pytest

from core import files
from core.checkpoint import catalog, pretrained, remote, state, state_dict, tf_checkpoint
from core.errors import UserError

pytest_plugins = ["core.testing.file_server"]

LOCATIONS = [
  *("", "/", "x" * 5000, "a\0b", "x\ny.npz", "*", "[", "%00", "~", "~nobody/x.npz", "\udcff"),
  *("x.npz:", "x.npz:a:b", ":img", "x.npz#sha256=", f"x.npz#sha256={'0' * 64}"),
  *("://", "a://b", "file://", "file:///no/such/x.npz", "gs://", "http://", "http://[", "http://[::1", "http://a/%zz"),
  *("http://127.0.0.1:9/x.npz", "http://127.0.0.1:99999/x", "http://user:hunter2@/"),
  *("hf://", "hf://a", "hf://a/b", "hf://a/b@", "hf://a/b/c.npz:img", "timm/", "timm/x", "timm/x/y"),
  *("FOLDER", "FOLDER/empty", "FOLDER/empty/x.npz", "FOLDER/x.safetensors", "FOLDER/x.bin", "FOLDER/shards"),
  *("x.pt:", "x.pt:a:b", "FOLDER/x.bin:state_dict", "http://127.0.0.1:9/x.pt:state_dict", "http://a.pt:9x/x.npz:"),
  *("FOLDER/pipe", "FOLDER/pipe.npz", "FOLDER/pipe.npz:img", "FOLDER/pipe.pth", "FOLDER/pipes", "/dev/zero"),
]


def read_arrays(location):
  location, entry = pretrained.split(location)
  return state_dict.read(remote.fetch(location), entry)


def read_config(location):
  return state_dict.read_config(remote.fetch(location))


def find_checkpoint(location):
  return state.find(location, "config.resume")


def find_steps(location):
  return state.steps(files.from_here(location))


def locate(location):
  return catalog.locate("vit", location)


def save(location):
  return pretrained.save_params(location, {})


CALLS = [
  *(pretrained.load_params, pretrained.load_variables, pretrained.names, remote.fetch, locate, state_dict.is_one),
  *(read_arrays, read_config, tf_checkpoint.prefix, find_checkpoint, find_steps, save),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
  for name in ("empty", "x.safetensors", "x.bin"):
    (tmp_path / name).write_bytes(b"" if name == "empty" else b"not weights")
  (tmp_path / "shards").mkdir()
  (tmp_path / "shards" / "model.safetensors.index.json").write_text('{"weight_map": {"a": [1]}}')
  for name in ("pipe", "pipe.npz", "pipe.pth", "pipes/model.safetensors", "pipes/config.json", "pipes/x.index"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
  (tmp_path / "here").mkdir()
  monkeypatch.setenv("BUILD_WORKING_DIRECTORY", str(tmp_path / "here"))
  monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
  return tmp_path


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_every_location_is_taken_or_refused_in_one_line(folder, call):
  refused = 0
  for location in LOCATIONS:
    if call is save and location != "file://" and ("://" in location or location in ("/", "/dev/zero")):
      continue
    try:
      call(location.replace("FOLDER", str(folder)))
    except UserError as error:
      line = str(error)
      assert "\n" not in line, location
      assert len(line) <= 300, location
      assert "hunter2" not in line
      refused += 1
  assert refused >= 3
