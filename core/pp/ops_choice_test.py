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


def test_a_range_of_numbers_draws_each_as_often_and_keeps_the_order():
  data = {"x": np.arange(6)[None].repeat(1500, 0), "_seed": np.arange(1500)}
  found = [out["x"] for out in run_tf("choice([2, 4], key='x')", data)]
  sizes = np.bincount([len(each) for each in found], minlength=7)
  assert sizes[[0, 1, 5, 6]].sum() == 0
  assert stats.chisquare(sizes[2:5]).pvalue > 1e-4
  assert all((np.diff(each) > 0).all() for each in found)
  assert stats.chisquare(np.bincount(np.concatenate(found), minlength=6)).pvalue > 1e-4
  (all_of,) = run_tf("choice([9, 12], key='x', fewer_ok=True)", {"x": np.arange(6)[None], "_seed": np.arange(1)})
  assert all_of["x"].tolist() == [0, 1, 2, 3, 4, 5]
  assert builder.get_batched_fn("choice([2, 4], key='x')") is None  # Examples of a batch would differ in size.


def test_a_key_in_braces_is_the_one_that_is_read():
  data = {"x": np.arange(8).reshape(2, 4), "y/z": np.arange(8).reshape(2, 4), "_seed": np.arange(2)}
  pp = "choice(2, ['x', 'y/z'], outkey=['{key}_two', 'two of {key}'])"
  out = builder.get_batched_fn(pp)(data)
  assert sorted(out) == ["_seed", "two of y/z", "x", "x_two", "y/z"]
  np.testing.assert_array_equal(out["x_two"], out["two of y/z"])
  assert sorted(run_tf(pp, data)[0]) == sorted(out)


@pytest.mark.parametrize("entries", [1, 2, 5])
def test_without_replacement_each_entry_comes_once_before_any_comes_again(entries):
  ids, epochs = 40, 4 * entries
  data = {
    "x": np.arange(entries)[None].repeat(ids * epochs, 0),
    "_id": np.repeat(np.arange(ids), epochs) - 7,
    "_epoch": np.tile(np.arange(epochs), ids),
  }
  out = builder.get_batched_fn("choice_no_replacement(inkey='x', outkey='one')|choice_no_replacement('x')")(data)
  passes = out["one"].reshape(ids, 4, entries)
  np.testing.assert_array_equal(np.sort(passes, axis=-1), np.broadcast_to(np.arange(entries), passes.shape))
  if entries == 5:
    assert len({tuple(each) for each in passes.reshape(-1, entries).tolist()}) > 60  # Of 120 orders, in 160 draws.
    assert stats.chisquare(np.bincount(passes[:, 0, 0], minlength=5)).pvalue > 1e-4
    assert np.mean(out["x"] == out["one"]) < 0.5  # Two ops go through their entries apart.
  found = [each["one"] for each in run_tf("choice_no_replacement(inkey='x', outkey='one')", data)]
  np.testing.assert_array_equal(found, out["one"])


def test_without_replacement_the_keys_of_a_list_give_the_same_entry():
  data = {
    "x": np.arange(12).reshape(2, 6),
    "y": np.arange(12).reshape(2, 6),
    "_id": np.arange(2),
    "_epoch": np.arange(2),
  }
  out = builder.get_batched_fn("choice_no_replacement(['x', 'y'])")(data)
  np.testing.assert_array_equal(out["x"], out["y"])


@pytest.mark.parametrize(
  "pp, words",
  [
    ("choice([3, 2], key='x')", r"n is \[min, max\], got \(3, 2\)"),
    ("choice([1, 2, 3], key='x')", "n must be"),
    ("choice(inkey='x', outkey='_{key}')", "'_x' belongs to the pipeline|key"),
    ("choice_no_replacement", "wants key=, or inkey= and outkey="),
    ("choice_no_replacement(['x', 'y'], outkey='z')", "with as many keys each"),
  ],
)
def test_what_cannot_be_chosen_is_refused_in_one_line(pp, words):
  with pytest.raises(UserError, match=words) as error:
    builder.get_preprocess_fn(pp)
  assert "\n" not in str(error.value)
