"""Keys kept, dropped, flattened and filled, in graph mode inside tf.data and on batches."""

import numpy as np
import pytest
import tensorflow as tf

from core.errors import UserError
from core.pp import builder
from core.pp.op_examples import run_tf

DATA = {
  "a": np.arange(2),
  "b": {"c": np.arange(2), "d": {"e": np.arange(2)}},
  "f": {"g": np.arange(2)},
  "_id": np.arange(2),
}


@pytest.mark.parametrize(
  "pp, keys",
  [
    ("keep('a', 'nothing')", {"_id", "a"}),
    ("drop('nothing', 'a', '_id')", {"_id", "b", "f"}),
    ("drop('nothing')", {"_id", "a", "b", "f"}),
    ("flatten", {"_id", "a", "b/c", "b/d/e", "f/g"}),
    ("flatten('b')", {"_id", "a", "b/c", "b/d/e", "f"}),
    ("flatten(['f', 'a'], '.')", {"_id", "a", "b", "f.g"}),
    ("flatten([])", {"_id", "a", "b", "f"}),
  ],
)
def test_these_keys_are_left(pp, keys):
  assert set(builder.get_batched_fn(pp)(DATA)) == keys
  assert set(run_tf(pp, DATA)[0]) == keys


def test_to_keep_nothing_is_refused():
  for run in (builder.get_batched_fn("keep('x', 'y')"), lambda data: run_tf("keep('x', 'y')", data)):
    with pytest.raises(UserError, match="pp op keep: no key 'x'; the example has: _id, a, b, f"):
      run(DATA)


def alike(pp, data):
  """The values of both paths, which must be the same."""
  together, alone = builder.get_batched_fn(pp)(data), run_tf(pp, data)
  for n, out in enumerate(alone):
    assert out.keys() == together.keys()
    for key, value in out.items():
      assert np.asarray(value).dtype.kind in ("S", "O") or value.dtype == together[key].dtype
      assert np.asarray(value).tolist() == np.asarray(together[key][n]).tolist()
  return together


@pytest.mark.parametrize(
  "value, shape, dtype, want",
  [
    ("1", (0, 0, 0), np.float32, [[[1.0]]]),
    ("0.5", (3, 0), np.float32, [[0.5]] * 3),
    ("'Lucas'", (0,), object, [b"Lucas"]),
    ("[1, 2]", (0, 2), np.int64, [[1, 2]]),
    ("7", (2,), np.int32, [0, 0]),
  ],
)
def test_a_default_fills_an_empty_array_and_leaves_another(value, shape, dtype, want):
  empty = np.zeros((3, *shape), dtype)
  assert alike(f"setdefault('x', {value})", {"x": empty})["x"].tolist() == [want] * 3


@pytest.mark.parametrize(
  "value, dtype, want",
  [("3", np.int32, 3), ("3.0", np.float32, 3.0), ("''", object, b""), ("[1, 2]", np.int32, [1, 2])],
)
def test_a_default_stands_where_there_is_no_key(value, dtype, want):
  out = alike(f"setdefault('x', {value})", {"a": np.arange(2)})["x"]
  assert out.dtype == dtype
  assert out.tolist() == [want] * 2


def test_a_size_that_is_known_only_when_the_data_come_is_filled_then():
  fn = builder.get_preprocess_fn("setdefault('x', 'none')")
  texts = tf.data.Dataset.range(3).map(lambda n: fn({"x": tf.fill([n], "some")})["x"])
  assert [each.tolist() for each in texts.as_numpy_iterator()] == [[b"none"], [b"some"], [b"some", b"some"]]


@pytest.mark.parametrize(
  "value, array, words",
  [
    ("'a'", np.zeros((2, 0)), "value is no float64, and 'x' holds float64"),
    ("1", np.zeros((2, 0), object), "value is no text, and 'x' holds text"),
    ("300", np.zeros((2, 0), np.uint8), "value is no uint8"),
    ("0.5", np.zeros((2, 0), np.int64), "value is no int64"),
    ("[1, 2]", np.zeros((2, 0), np.int64), r"value has the shape \[2\], and 'x' holds int64 \[0\]"),
    ("1", {"y": np.zeros((2, 0))}, "'x' holds a dict"),
  ],
)
def test_a_default_that_does_not_fit_is_refused_in_one_line(value, array, words):
  pp = f"setdefault('x', {value})"
  for run in (builder.get_batched_fn(pp), lambda data: run_tf(pp, data)):
    with pytest.raises(UserError, match=f"pp op setdefault: {words}") as error:
      run({"x": array})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["[1, 'a']", "[]", "None", "[[1]]"])
def test_a_default_is_a_number_a_text_or_a_list_of_one_kind(value):
  with pytest.raises(UserError, match="pp op setdefault: value"):
    builder.get_batched_fn(f"setdefault('x', {value})")
