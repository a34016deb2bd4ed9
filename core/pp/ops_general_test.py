"""Choices among entries, in graph mode inside tf.data and on batches."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from core.errors import UserError
from core.pp import builder
from core.pp.op_examples import run_tf


def test_fewer_entries_than_asked_for_are_all_taken_only_if_allowed():
  data = {"x": np.arange(8).reshape(2, 4), "_seed": np.arange(2)}
  np.testing.assert_array_equal([out["x"] for out in run_tf("choice(9, 'x', fewer_ok=True)", data)], data["x"])
  np.testing.assert_array_equal(builder.get_batched_fn("choice(9, 'x', fewer_ok=True)")(data)["x"], data["x"])
  with pytest.raises(UserError, match="pp op choice: fewer than 9 entries under 'x': 4"):
    run_tf("choice(9, 'x')", data)
  lengths = tf.data.Dataset.range(9).map(lambda n: {"x": tf.range(n), "_seed": n})  # Known only when they come by.
  with pytest.raises(tf.errors.InvalidArgumentError, match=r"pp op choice: fewer than 9 entries under ..x..:"):
    list(lengths.map(builder.get_preprocess_fn("choice(9, 'x')")))


def test_choices_are_uniform_different_and_in_order():
  data = {
    "x": np.arange(6)[None].repeat(4000, 0),
    "y": np.arange(6)[None].repeat(4000, 0) * 10,
    "_seed": np.arange(4000),
  }
  one = builder.get_batched_fn("choice(key='x')")(data)["x"]
  assert stats.chisquare(np.bincount(one, minlength=6)).pvalue > 1e-4
  many = builder.get_batched_fn("choice(3, key=['x', 'y'])")(data)
  assert (np.diff(many["x"], axis=1) > 0).all()
  np.testing.assert_array_equal(many["x"] * 10, many["y"])
  sets = np.unique(many["x"], axis=0, return_counts=True)[1]
  assert len(sets) == 20
  assert stats.chisquare(sets).pvalue > 1e-4
