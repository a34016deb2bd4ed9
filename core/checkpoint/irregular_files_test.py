"""Weights that are no regular files are refused by name: a pipe would be waited for, a device may never end."""

import json
import os
import shutil

import pytest

from core import data_files
from core.checkpoint import pretrained, remote, state_dict, tf_checkpoint
from core.errors import UserError

WITNESS = data_files.find("core/checkpoint/witness")


def read(location):
  return state_dict.read(remote.fetch(location))


@pytest.mark.parametrize("name", ["pipe.npz", "pipe.safetensors", "pipe.pth", "pipe.txt"])
@pytest.mark.parametrize("end", ["", f"#sha256={'0' * 64}"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, name, end):
  os.mkfifo(tmp_path / name)
  for call in (read, remote.fetch, pretrained.load_params, pretrained.load_grids):
    with pytest.raises(UserError, match=f"{name}: no regular file$"):
      call(f"{tmp_path / name}{end}")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_shard_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path, name):
  (tmp_path / f"{name}.index.json").write_text(json.dumps({"weight_map": {"a": f"1-{name}"}}))
  os.mkfifo(tmp_path / f"1-{name}")
  with pytest.raises(UserError, match=f"1-{name}: no regular file$"):
    read(str(tmp_path))


def test_a_checkpoint_of_tensorflow_whose_data_are_a_pipe_is_refused_and_not_waited_for(tmp_path):
  for part in ("index", "data-00000-of-00002"):
    shutil.copy(WITNESS / f"tf.ckpt.{part}", tmp_path)
  os.mkfifo(tmp_path / "tf.ckpt.data-00001-of-00002")
  with pytest.raises(UserError, match=r"data-00001-of-00002: no regular file$"):
    tf_checkpoint.read(str(tmp_path / "tf.ckpt"))
