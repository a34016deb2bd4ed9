"""The files in witness/ were written by TensorFlow (witness/generate_tf_checkpoint.py)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from core.checkpoint import tf_checkpoint
from core.errors import UserError
from core.import_tensorflow import import_tensorflow

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
  "location",
  ["x.npz:txt", "https://host/lit.npz?v=2:txt", "gs://b/model.safetensors", "no/such", "hf://google/bert-base-uncased"],
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
    line = refused(copied / "tf.ckpt")
    assert line.startswith(f"{copied}/tf.ckpt{file.removeprefix('tf.ckpt')[:5]}")  # `.index` or `.data`
    assert len(line) <= 300
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
      line = f"{copied}/tf.ckpt"
      for name, array in expected.items():
        np.testing.assert_array_equal(read[name], array)
    assert line.startswith(f"{copied}/tf.ckpt")
    assert "\n" not in line
  assert unharmed < 0.1 * len(range(0, len(whole), 17)) + 3  # The array of strings, and the names of the footer.


def test_data_of_another_checkpoint_is_refused(copied):
  shutil.copyfile(copied / FILES[2], copied / FILES[1])
  line = refused(copied / "tf.ckpt")
  assert "a/rather/long/common/beginning/layer_0/kernel" in line
  assert line.startswith(f"{copied}/tf.ckpt.data-00000-of-*: damaged: ")


@pytest.fixture(scope="module")
def saver():
  """A function that saves variables with `tf.compat.v1.train.Saver`, as old programs did."""
  tf = import_tensorflow()

  def save(prefix, variables, partitions=()):
    with tf.Graph().as_default():
      for name, value in variables.items():
        partitioner = tf.compat.v1.fixed_size_partitioner(3) if name in partitions else None
        with tf.compat.v1.variable_scope("", partitioner=partitioner):
          tf.compat.v1.get_variable(name, initializer=tf.constant(value), use_resource=True)
      with tf.compat.v1.Session() as session:
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, str(prefix), write_meta_graph=False, write_state=False)

  return save


VARIABLES = {
  "partitioned/kernel": np.arange(20.0, dtype=np.float32).reshape(10, 2),
  "complex64": np.array([1 + 2j, -3j], np.complex64),
  "complex128": np.array([[1e300 + 2j]]),
  "uint16": np.array([1, 65535], np.uint16),
  "uint32": np.array([1, 2**32 - 1], np.uint32),
  "uint64": np.array([2**64 - 1], np.uint64),
  "int8": np.array([-128, 127], np.int8),
  "bfloat16": np.array([1.5, -2.0], ml_dtypes.bfloat16),
  "bool": np.array([True, False]),
}


def test_partitioned_complex_and_unsigned_variables_are_read(saver, tmp_path):
  saver(tmp_path / "old.ckpt", VARIABLES | {"words": np.array([b"left out"])}, partitions=["partitioned/kernel"])
  read = tf_checkpoint.read(str(tmp_path / "old.ckpt"))
  assert set(read) == set(VARIABLES)
  for name, value in VARIABLES.items():
    assert (read[name].dtype, read[name].shape) == (value.dtype, value.shape), name
    np.testing.assert_array_equal(read[name], value)


def test_a_checkpoint_of_no_numbers_is_refused(saver, tmp_path):
  saver(tmp_path / "old.ckpt", {"words": np.array([b"a"])})
  assert refused(tmp_path / "old.ckpt") == f"{tmp_path}/old.ckpt.index: holds no parameters"


def test_a_remote_checkpoint_is_read_from_the_cache_whose_files_lie_apart(tmp_path, monkeypatch):
  brought = []

  def fetch(location):
    name = location.rpartition("/")[2]
    brought.append(name)
    folder = tmp_path / str(len(brought))
    folder.mkdir()
    return Path(shutil.copyfile(WITNESS / name, folder / name))

  monkeypatch.setattr(tf_checkpoint.remote, "fetch", fetch)
  read = tf_checkpoint.read("gs://bucket/folder/tf.ckpt")
  assert sorted(brought) == sorted(FILES)
  assert len(read) > 200


def test_without_tensorflow_the_line_says_so(monkeypatch):
  def not_installed():
    raise ImportError("No module named 'tensorflow'")

  monkeypatch.setattr(tf_checkpoint, "import_tensorflow", not_installed)
  line = refused(WITNESS / "tf.ckpt")
  assert line == f"{WITNESS}/tf.ckpt: TensorFlow reads its checkpoints, and it is not installed here"


def test_tensorflow_is_imported_only_when_a_checkpoint_is_read():
  program = "import sys; from core.checkpoint import tf_checkpoint; assert 'tensorflow' not in sys.modules"
  environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
  subprocess.run([sys.executable, "-c", program], check=True, env=environment)
