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


def test_partitioned_variables_are_read_whole_and_words_left_out(saver, tmp_path):
  kernel = np.arange(20.0, dtype=np.float32).reshape(10, 2)
  saver(tmp_path / "old.ckpt", {"kernel": kernel, "words": np.array([b"left out"])}, partitions=["kernel"])
  read = tf_checkpoint.read(str(tmp_path / "old.ckpt"))
  assert list(read) == ["kernel"]
  np.testing.assert_array_equal(read["kernel"], kernel)


# All types that TensorFlow's SaveV2 takes, but words, with numbers that each holds.
INTEGERS = ("int2", "int4", "int8", "int16", "int32", "int64", "uint2", "uint4", "uint8", "uint16", "uint32", "uint64")
FLOATS = ("float8_e4m3fn", "float8_e5m2", "bfloat16", "float16", "float32", "float64")
QUANTIZED = ("qint8", "quint8", "qint16", "quint16", "qint32")


def dtype_of(name):
  return np.dtype(getattr(ml_dtypes, name, None) or name)


def limits(name):
  found = (ml_dtypes if name.endswith(("t2", "t4")) else np).iinfo(dtype_of(name))
  return np.array([int(found.min), int(found.max)], dtype_of(name))


@pytest.fixture(scope="module")
def save_tensors():
  """A function that saves tensors by name, of any type."""
  tf = import_tensorflow()

  def save(prefix, tensors):
    names = list(tensors)
    tensors = [tensors[name] if tf.is_tensor(tensors[name]) else tf.constant(tensors[name]) for name in names]
    tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)
    return str(prefix)

  return save


def test_every_real_type_of_the_format_is_read_as_it_is(save_tensors, tmp_path):
  stored = {name: limits(name) for name in INTEGERS}
  stored |= {name: np.array([0.5, -1.5, 2.0]).astype(dtype_of(name)) for name in FLOATS} | {
    "bool": np.array([True, False])
  }
  read = tf_checkpoint.read(save_tensors(tmp_path / "x.ckpt", stored))
  assert set(read) == set(stored)
  for name, array in stored.items():
    assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape), name
    np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize("kind", [*QUANTIZED, "complex64", "complex128"])
def test_every_other_type_of_the_format_is_one_line_that_names_the_array(kind, save_tensors, tmp_path):
  tf = import_tensorflow()
  bits = {"8": np.uint8, "16": np.uint16, "32": np.int32}
  complexes = kind.startswith("c")
  tensor = np.ones(2, kind) if complexes else tf.bitcast(bits[kind.lstrip("quint")](np.ones(2)), getattr(tf, kind))
  line = refused(save_tensors(tmp_path / "x.ckpt", {"kernel": tensor}))
  assert line.startswith(f"{tmp_path}/x.ckpt")
  assert f"kernel holds complex numbers ({kind})" in line if complexes else f"kernel is of the type {kind}" in line


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
