import json
import os
import re
import time

import numpy as np
import pytest
import safetensors.numpy

from core.checkpoint import catalog, hub, pretrained, remote, state_dict
from core.testing import hub as fake
from core.testing.file_server import refused

pytest_plugins = ["core.testing.file_server"]

ARRAYS = {"a.weight": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b.bias": np.ones(2, np.float32)}
WEIGHTS = safetensors.numpy.save(ARRAYS)
CONFIG = json.dumps({"architecture": "vit_tiny"}).encode()
MODEL = {"model.safetensors": WEIGHTS, "config.json": CONFIG, "README.md": b"# words", "pytorch_model.bin": b"twice"}


@pytest.fixture(autouse=True)
def served(monkeypatch, tmp_path):
  monkeypatch.delenv("HF_TOKEN", raising=False)
  monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
  with fake.serving() as served:
    served.models["timm/vit_tiny.in1k"] = {"main": dict(MODEL)}
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    yield served


def test_a_model_is_its_weights_and_its_config_and_needs_no_hub_afterwards(served, cache):
  location = catalog.locate("vit", "timm/vit_tiny.in1k")
  assert location == "hf://timm/vit_tiny.in1k"
  assert state_dict.is_one(location)
  folder = remote.fetch(location)
  assert folder.is_relative_to(cache)
  assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json"}
  read = state_dict.read(folder)
  assert set(read) == set(ARRAYS)
  for name, array in ARRAYS.items():
    np.testing.assert_array_equal(read[name], array)
  assert state_dict.read_config(folder) == {"architecture": "vit_tiny"}
  served.status = 500
  asked = len(served.requests)
  assert remote.fetch(location) == folder
  assert len(served.requests) == asked


def test_a_revision_pins_a_model(served):
  newer = safetensors.numpy.save({"a.weight": np.zeros((2, 3), np.float32)})
  served.models["timm/vit_tiny.in1k"]["v1"] = dict(MODEL)
  served.models["timm/vit_tiny.in1k"]["main"] = {"model.safetensors": newer}
  commit = served.commit_of("timm/vit_tiny.in1k", "v1")
  folders = [remote.fetch(f"hf://timm/vit_tiny.in1k{end}") for end in ("", "@v1", f"@{commit}")]
  sizes = [len(state_dict.read(folder)) for folder in folders]
  assert sizes == [1, 2, 2]
  record = json.loads(folders[1].with_name(f"{folders[1].name}.json").read_text())
  assert record["commit"] == commit
  assert refused("hf://timm/vit_tiny.in1k@v2").startswith("hf://timm/vit_tiny.in1k@v2: it has no revision 'v2'; put")


def test_shards_are_those_that_the_index_names(served):
  shards = {
    "model-1.safetensors": {"a.weight": ARRAYS["a.weight"]},
    "model-2.safetensors": {"b.bias": ARRAYS["b.bias"]},
  }
  index = {"weight_map": {name: file for file, arrays in shards.items() for name in arrays}}
  served.models["org/large"] = {
    "main": {file: safetensors.numpy.save(arrays) for file, arrays in shards.items()}
    | {"model.safetensors.index.json": json.dumps(index).encode(), "model-3.safetensors": b"of another"}
  }
  folder = remote.fetch("hf://org/large")
  assert set(state_dict.read(folder)) == set(ARRAYS)
  assert not (folder / "model-3.safetensors").exists()


@pytest.mark.parametrize(
  "index", [b"{", b"[]", b'{"weight_map": {}}', b'{"weight_map": {"a": "../../x"}}', b'{"weight_map": {"a": 1}}']
)
def test_an_index_that_names_no_shards_of_the_model_is_refused(served, index):
  served.models["org/large"] = {"main": {"model.safetensors.index.json": index}}
  assert refused("hf://org/large").startswith("hf://org/large: its model.safetensors.index.json names no shards; put")


def test_one_file_is_brought_by_its_name(served, tmp_path):
  pretrained.save_params(tmp_path / "w.npz", {"img": {"cls": np.ones(3)}})
  served.models["google/big"] = {"main": {"files/w.npz": (tmp_path / "w.npz").read_bytes()}}
  loaded = pretrained.load_params("hf://google/big/files/w.npz:img")
  np.testing.assert_array_equal(loaded["cls"], np.ones(3))
  assert "there is no such file (HTTP 404)" in refused("hf://google/big/files/v.npz")


@pytest.fixture
def broken_off(served):
  """A model of which one file came before the hub failed."""
  served.models["org/m"] = {"main": dict(MODEL)}
  served.failing = "config.json"
  assert "the server refused (HTTP 503)" in refused("hf://org/m")
  served.failing = None
  served.requests.clear()


def test_a_download_that_was_broken_off_goes_on(served, broken_off):
  folder = remote.fetch("hf://org/m")
  assert set(state_dict.read(folder)) == set(ARRAYS)
  assert [path.rpartition("/")[2] for path in served.requests] == ["m", "config.json"]
  assert [path.name for path in folder.parent.iterdir() if path.name.endswith(".part")] == []


def test_files_of_two_commits_never_mix(served, broken_off):
  newer = safetensors.numpy.save({"a.weight": np.zeros((2, 3), np.float32)})
  served.models["org/m"]["main"] = {"model.safetensors": newer, "config.json": b"{}"}
  folder = remote.fetch("hf://org/m")
  assert (folder / "model.safetensors").read_bytes() == newer
  assert [path.name for path in folder.parent.iterdir() if path.name.endswith(".part")] == []


@pytest.mark.parametrize(
  "location, words",
  [
    ("hf://org", "no name of the hub; give hf://ORG/NAME"),
    ("hf://", "no name of the hub; give hf://ORG/NAME"),
    ("hf://org/name/../x.npz", "no name of the hub; give hf://ORG/NAME"),
    ("hf://org/none", "the hub has no such model, or it is private (hf auth login); put its files by hand into /"),
    ("hf://org/empty", "it has neither model.safetensors nor pytorch_model.bin; name one of its files; put"),
    (f"hf://timm/vit_tiny.in1k#sha256={'0' * 64}", "#sha256= is of one file, and this is a model"),
  ],
)
def test_what_the_hub_does_not_have_is_one_line(served, location, words):
  served.models["org/empty"] = {"main": {"README.md": b""}}
  assert words in refused(location)


def test_terms_to_accept_and_refusals_are_told_apart(served):
  served.status, served.error_code = 403, "GatedRepo"
  assert "its authors want their terms accepted on the hub first" in refused("hf://org/gated")
  served.status, served.error_code = 418, None
  assert "the hub refused (HTTP 418)" in refused("hf://org/gated")


def test_without_a_network_the_line_comes_soon(served):
  served.close()
  began = time.monotonic()
  line = refused("hf://timm/vit_tiny.in1k")
  assert re.match(r"hf://timm/vit_tiny.in1k: the hub cannot be reached \(\w+\); put its files by hand into /", line)
  assert time.monotonic() - began < 30


def test_files_put_there_by_hand_are_used(served):
  served.close()
  folder = remote.cached_path("hf://timm/vit_tiny.in1k")
  folder.mkdir(parents=True)
  (folder / "model.safetensors").write_bytes(WEIGHTS)
  assert set(state_dict.read(remote.fetch("hf://timm/vit_tiny.in1k"))) == set(ARRAYS)


def test_the_token_is_sent_and_never_said_or_stored(served, cache, capsys, monkeypatch):
  monkeypatch.setenv("HF_TOKEN", "hf_hunter2")
  remote.fetch("hf://timm/vit_tiny.in1k")
  assert served.tokens == {"Bearer hf_hunter2"}
  stored = b"".join(path.read_bytes() for path in cache.rglob("*.json")).decode()
  assert "hunter2" not in stored + "".join(capsys.readouterr())


def test_a_local_folder_of_that_name_comes_first(tmp_path, monkeypatch):
  monkeypatch.setenv("BUILD_WORKING_DIRECTORY", str(tmp_path))
  os.makedirs(tmp_path / "timm" / "mine")
  assert catalog.locate("vit", "timm/mine") == "timm/mine"
  assert catalog.locate("nfnet", "timm/other@v1") == "hf://timm/other@v1"


@pytest.mark.parametrize(
  "location, name",
  [
    ("hf://a/b", hub.Name("a/b", None, None)),
    ("hf://a/b.c@refs%2Fpr%2F1", hub.Name("a/b.c", "refs/pr/1", None)),
    ("hf://a/b@v1/c/d.npz", hub.Name("a/b", "v1", "c/d.npz")),
    ("hf://a/b/", None),
    ("https://a/b", None),
    ("a/b", None),
  ],
)
def test_names_have_their_parts(location, name):
  assert hub.parse(location) == name
