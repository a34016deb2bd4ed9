"""Labels as vectors, in graph mode inside tf.data and on batches."""

import numpy as np
import pytest
import tensorflow as tf

from core.errors import UserError
from core.pp import builder
from core.pp.op_examples import run_tf


@pytest.mark.parametrize(
  "arguments, labels, want",
  [
    ("", 2, [0, 0, 1, 0]),
    ("on=0.9, off=0.1", 0, [0.9, 0.1, 0.1, 0.1]),
    ("", [1, 3, 1, -1], [0, 1, 0, 1]),
    ("", [-1, -1], [0, 0, 0, 0]),
    ("", [], [0, 0, 0, 0]),
    ("multi=False", [1, 3], [[0, 1, 0, 0], [0, 0, 0, 1]]),
  ],
)
def test_onehot(arguments, labels, want):
  data = {"labels": np.array([labels], np.int32)}
  got = run_tf(f"onehot(4, {arguments})", data)[0]["labels"]
  np.testing.assert_array_equal(got, np.float32(want))
  np.testing.assert_array_equal(builder.get_batched_fn(f"onehot(4, {arguments})")(data)["labels"][0], got)


@pytest.mark.parametrize(
  "arguments, labels", [("", 4), ("", -1), ("", [0, 4]), ("", [-2, 0]), ("multi=False", [-1, 0]), ("", 2**40)]
)
def test_a_label_outside_num_classes_is_refused_by_value_depth_and_key(arguments, labels):
  data = {"cls": np.array([labels])}
  wrong = next(label for label in np.atleast_1d(labels) if not 0 <= label < 4)
  pp = f"onehot(4, 'cls', {arguments})"
  with pytest.raises(tf.errors.InvalidArgumentError, match=rf"labels outside \[0, 4\) under key ..cls..:.*{wrong}"):
    run_tf(pp, data)
  with pytest.raises(UserError, match=rf"pp op onehot: labels outside \[0, 4\) under key 'cls': {wrong}"):
    builder.get_batched_fn(pp)(data)
