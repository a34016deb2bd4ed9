"""The files in witness/ were written by TensorFlow (witness/generate_tf_checkpoint.py); no test here needs it."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from core.checkpoint import tf_checkpoint
from core.errors import UserError

WITNESS = Path(__file__).parent / "witness"
FILES = ["tf.ckpt.index", "tf.ckpt.data-00000-of-00002", "tf.ckpt.data-00001-of-00002"]


@pytest.fixture
def copied(tmp_path):
  for name in FILES:
    shutil.copyfile(WITNESS / name, tmp_path / name)
  return tmp_path


def test_arrays_are_those_that_tensorflow_was_given():
  read = tf_checkpoint.read(str(WITNESS / "tf.ckpt"))
  with np.load(WITNESS / "tf_expected.npz") as expected:
    assert set(read) == set(expected.files)  # `text`, an array of strings, is left out.
    assert len(read) > 200
    for name, array in read.items():
      assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape), name
      np.testing.assert_array_equal(array, expected[name])


def test_a_checkpoint_is_named_by_its_beginning_its_index_or_its_folder(copied):
  expected = str(copied / "tf.ckpt")
  for location in (expected, f"{expected}.index", str(copied)):
    assert tf_checkpoint.prefix(location) == expected
  remote = "gs://bucket/uncased_L-12_H-768_A-12"
  for location in (remote, f"{remote}/", f"{remote}/bert_model.ckpt", f"{remote}/bert_model.ckpt.index"):
    assert tf_checkpoint.prefix(location) == f"{remote}/bert_model.ckpt"


@pytest.mark.parametrize(
  "location", ["x.npz:txt", "https://host/lit.npz?v=2:txt", "gs://b/model.safetensors", "no/such"]
)
def test_other_locations_are_no_checkpoints(location):
  assert tf_checkpoint.prefix(location) is None


def test_a_folder_of_something_else_is_none(tmp_path):
  assert tf_checkpoint.prefix(str(tmp_path)) is None


def refused(prefix):
  with pytest.raises(UserError) as e:
    tf_checkpoint.read(str(prefix))
  assert "\n" not in str(e.value)
  return str(e.value)


def test_several_checkpoints_in_a_folder_are_to_be_told_apart(copied):
  shutil.copyfile(copied / FILES[0], copied / "other.ckpt.index")
  with pytest.raises(UserError, match=r"several checkpoints: other.ckpt, tf.ckpt; name one$"):
    tf_checkpoint.prefix(str(copied))


@pytest.mark.parametrize("file", FILES)
def test_files_that_are_not_there_or_cut_are_named(copied, file):
  path = copied / file
  whole = path.read_bytes()
  for end in (0, 1, len(whole) // 2, len(whole) - 1):
    path.write_bytes(whole[:end])
    assert file in refused(copied / "tf.ckpt")
  path.unlink()
  line = refused(copied / "tf.ckpt")
  assert file in line
  assert "no such file" in line


@pytest.mark.parametrize("file", FILES)
def test_a_changed_byte_is_found_or_changes_nothing(copied, file):
  path = copied / file
  whole = path.read_bytes()
  expected = tf_checkpoint.read(str(copied / "tf.ckpt"))
  unharmed = 0
  for at in range(0, len(whole), 17):
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
    try:
      read = tf_checkpoint.read(str(copied / "tf.ckpt"))
    except UserError as error:
      line = str(error)
    else:
      unharmed += 1
      line = file
      for name, array in expected.items():
        np.testing.assert_array_equal(read[name], array)
    assert file in line
  assert unharmed < 0.1 * len(range(0, len(whole), 17)) + 3  # The array of strings, and the names of the footer.


def test_data_of_another_checkpoint_is_refused(copied):
  shutil.copyfile(copied / FILES[2], copied / FILES[1])
  assert f"{FILES[1]}: damaged: the checksum of a/rather/long/common/beginning/layer_0/kernel differs" in refused(
    copied / "tf.ckpt"
  )
