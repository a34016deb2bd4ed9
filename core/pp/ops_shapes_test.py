"""Padding, joining and ragged arrays, against NumPy and tf, in graph mode inside tf.data and on batches."""

import numpy as np
import pytest
import tensorflow as tf

from core.errors import UserError
from core.pp import builder
from core.pp.op_examples import run_tf


def refused(pp, data, words):
  for run in (builder.get_batched_fn(pp), lambda data: run_tf(pp, data)):
    with pytest.raises(UserError, match=words) as error:
      run(data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "arguments, pads, value",
  [
    ("(5, 7)", [(0, 2), (0, 3)], 0),
    ("(5, 7), -1, 'before'", [(2, 0), (3, 0)], -1),
    ("(5, 7), 9, where='both'", [(1, 1), (1, 2)], 9),
    ("[None, 6], pad_value=3", [(0, 0), (0, 2)], 3),
    ("(3, 4)", [(0, 0), (0, 0)], 0),
  ],
)
def test_padding_to_a_shape_is_that_of_numpy(arguments, pads, value):
  rows = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
  want = np.pad(rows, [(0, 0), *pads], constant_values=value)
  pp = f"pad_to_shape({arguments}, key='x')"
  np.testing.assert_array_equal(builder.get_batched_fn(pp)({"x": rows})["x"], want)
  np.testing.assert_array_equal([out["x"] for out in run_tf(pp, {"x": rows})], want)


def test_rows_of_many_lengths_become_one_batch_and_a_longer_one_is_refused():
  fn = builder.get_preprocess_fn("pad_to_shape(3, -1, key='x')")
  rows = tf.data.Dataset.range(4).map(lambda n: fn({"x": tf.range(n)})["x"])
  assert rows.element_spec.shape == [3]
  assert rows.batch(4).get_single_element().numpy().tolist() == [[-1, -1, -1], [0, -1, -1], [0, 1, -1], [0, 1, 2]]
  rows = tf.data.Dataset.range(4, 5).map(lambda n: fn({"x": tf.range(n)})["x"])
  with pytest.raises(tf.errors.InvalidArgumentError, match=r"pp op pad_to_shape: the value is larger than shape 3:.*4"):
    list(rows)


@pytest.mark.parametrize(
  "arguments, words",
  [
    ("(3, 4)", r"shape \(3, 4\) has 2 sizes; the value is uint8 \[3\]"),
    ("2", r"the value is larger than shape 2: uint8 \[3\]"),
    ("5, -1", "pad_value -1 is none of uint8"),
    ("5, 0.5", "pad_value 0.5 is none of uint8"),
  ],
)
def test_a_shape_that_does_not_fit_is_refused(arguments, words):
  refused(f"pad_to_shape({arguments}, key='x')", {"x": np.zeros((2, 3), np.uint8)}, f"pp op pad_to_shape: {words}")


@pytest.mark.parametrize("axis", [-3, -2, -1, 0, 1, 2])
def test_arrays_are_joined_as_by_numpy(axis):
  a = np.arange(48).reshape(2, 2, 3, 4)
  pp = f"concat(['a', 'b', 'a'], 'c', axis={axis})"
  want = np.concatenate([a, -a, a], axis if axis < 0 else axis + 1)
  np.testing.assert_array_equal(builder.get_batched_fn(pp)({"a": a, "b": -a})["c"], want)
  np.testing.assert_array_equal([out["c"] for out in run_tf(pp, {"a": a, "b": -a})], want)


def test_joined_arrays_go_to_the_first_key_unless_told_otherwise_and_may_be_texts():
  data = {"a": np.array([[b"x"], [b"y"]], object), "b": np.array([[b"", b"z"]] * 2, object)}
  assert builder.get_batched_fn("concat(['a', 'b'])")(data)["a"].tolist() == [[b"x", b"", b"z"], [b"y", b"", b"z"]]
  assert run_tf("concat(['a', 'b'])", data)[1]["a"].tolist() == [b"y", b"", b"z"]


@pytest.mark.parametrize(
  "b, axis, words",
  [
    (np.zeros((2, 3, 5)), 0, r"but for the axis 0 sizes must be the same: 'a' and 'b' hold float64 \[3, 4\] and"),
    (np.zeros((2, 3, 4), np.float32), 0, r"'a' and 'b' hold float64 \[3, 4\] and float32 \[3, 4\]"),
    (np.zeros((2, 3)), 0, r"'a' and 'b' hold float64 \[3, 4\] and float64 \[3\]"),
    (np.zeros((2, 3, 4)), 2, r"there is no axis 2: 'a' holds float64 \[3, 4\]"),
    (np.zeros(2), 0, "'b' must hold several entries"),
  ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(b, axis, words):
  refused(f"concat(['a', 'b'], axis={axis})", {"a": np.zeros((2, 3, 4)), "b": b}, f"pp op concat: {words}")


def test_ragged_arrays_of_many_sizes_become_one_batch():
  fn = builder.get_preprocess_fn("rag_tensor(key='x')")
  rows = tf.data.Dataset.range(1, 4).map(lambda n: fn({"x": tf.range(n)})["x"])
  batch = rows.batch(3).get_single_element()
  assert isinstance(batch, tf.RaggedTensor)
  assert batch.to_list() == [[[0]], [[0, 1]], [[0, 1, 2]]]
  assert builder.get_batched_fn("rag_tensor") is None
  with pytest.raises(UserError, match=r"pp op rag_tensor: it takes an array; the key holds int64 \[\]"):
    run_tf("rag_tensor(key='x')", {"x": np.zeros(2, np.int64)})
