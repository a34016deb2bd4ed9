"""Texts made of what keys hold, against tf.strings and plain Python."""

import numpy as np
import pytest
import tensorflow as tf

from core.errors import UserError
from core.pp import builder
from core.pp.op_examples import run_tf


def written(template, data):
  """The texts of both paths, which must be the same."""
  pp = f"strfmt({template!r}, outkey='out')"
  together = builder.get_batched_fn(pp)(data)["out"]
  assert [np.asarray(out["out"]).tolist() for out in run_tf(pp, data)] == together.tolist()
  return together.tolist()


def test_texts_and_numbers_stand_where_their_keys_do():
  data = {"a/b": np.array([b"red", "é".encode()], object), "n": np.array([3, -4]), "row": np.array([[1, 2], [3, 4]])}
  assert written("answer en {a/b}: {n}, {{{row}}}", data) == [
    b"answer en red: 3, {[1 2]}",
    "answer en é: -4, {[3 4]}".encode(),
  ]
  assert written("caption en", data) == [b"caption en"] * 2
  assert written("", data) == [b""] * 2


def test_several_texts_give_several():
  data = {"a": np.array([[b"x", b"y"], [b"z", b""]], object), "b": np.array([b"1", b"2"], object)}
  assert written("{b}.{a}{a}", data) == [[b"1.xx", b"1.yy"], [b"2.zz", b"2."]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.uint8, np.int64, bool])
def test_a_number_is_written_as_tensorflow_does_it(dtype):
  rng = np.random.default_rng(0)
  numbers = np.concatenate([[0, 1, 0.1, 1 / 3, 100], rng.normal(size=40) * 10.0 ** rng.integers(-4, 3, 40)])
  numbers = (numbers if np.issubdtype(dtype, np.floating) else np.abs(numbers) % 100).astype(dtype)
  if np.issubdtype(dtype, np.floating):
    numbers = np.concatenate([numbers, np.array([np.nan, np.inf, -np.inf, -0.0], dtype)])
  want = [tf.strings.format("{}", number, summarize=-1).numpy() for number in tf.constant(numbers)]
  assert written("{x}", {"x": numbers}) == want


@pytest.mark.parametrize("template", ["{", "a}", "{}", "{a!r}", "{a:>3}", "{a:{b}}"])
def test_a_template_holds_keys_in_brackets_and_nothing_else(template):
  with pytest.raises(UserError, match=r"pp op strfmt: template .*(cannot be read|a key and nothing else)") as error:
    builder.get_batched_fn(f"strfmt({template!r})")
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "data, words",
  [
    ({"b": np.zeros(2)}, "no key 'a'; the example has: b"),
    ({"a": np.zeros((2, 3, 4))}, r"numbers are written where they are one or a row; 'a' holds float64 \[3, 4\]"),
    ({"a": {"b": np.zeros(2)}}, "it takes real numbers; the key holds a dict"),
  ],
)
def test_what_cannot_be_written_is_refused(data, words):
  for run in (builder.get_batched_fn("strfmt('{a}')"), lambda data: run_tf("strfmt('{a}')", data)):
    with pytest.raises(UserError, match=f"pp op strfmt: {words}"):
      run(data)
  several = {"a": np.full((2, 3), b"x", object), "b": np.full((2, 2), b"y", object)}
  with pytest.raises(UserError, match=r"there must be as many under each key: 'a' text \[3\], 'b' text \[2\]"):
    builder.get_batched_fn("strfmt('{a}{b}')")(several)
