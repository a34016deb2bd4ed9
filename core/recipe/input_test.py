"""The input of a config: one source or a mixture, and whatever does not fit by its path."""

import ml_collections
import numpy as np
import pytest

from core.errors import UserError
from core.recipe.input import Input
from core.recipe.parse import parse
from core.recipe.sources import Arrays, Digits, Tfds

DIGITS = dict(name="digits", split="train")
ONE = dict(data=DIGITS, batch_size=8, pp="flip_lr")
TWO = dict(
  data=dict(a=2, b=0.5),
  a=dict(data=DIGITS, pp="keep('image')", cache_raw=True),
  b=dict(data=dict(name="cifar10", split="test")),
  batch_size=8,
  shuffle_buffer_size=100,
  pp="flip_lr",
)


def read(config):
  return parse(Input, config, "config.input")


def test_one_source_is_one_component():
  (component,) = read(ONE).components
  assert (component.name, component.key, component.pp_key) == ("", "config.input", "config.input.pp")
  assert (component.data, component.pp, component.weight) == (Digits(split="train"), "flip_lr", 1.0)
  assert (component.shuffle_buffer_size, component.cache_raw) == (250_000, False)


def test_components_take_from_the_input_what_they_leave_out():
  a, b = read(ml_collections.ConfigDict(TWO)).components
  assert (a.key, a.pp, a.pp_key, a.cache_raw) == ("config.input.a", "keep('image')", "config.input.a.pp", True)
  assert (b.key, b.pp, b.pp_key, b.cache_raw) == ("config.input.b", "flip_lr", "config.input.pp", False)
  assert (a.weight, b.weight, a.shuffle_buffer_size) == (2.0, 0.5, 100)
  assert b.data == Tfds(name="cifar10", split="test")


def test_components_are_made_once():
  recipe = read(TWO)
  assert recipe.components is recipe.components


def test_arrays_of_a_program_are_taken_as_they_are():
  image = np.zeros((3, 2, 2, 1), np.uint8)
  (component,) = read(ONE | dict(data=dict(source="arrays", columns={"image": image}))).components
  assert component.data.columns["image"] is image
  assert parse(Arrays, dict(columns=dict(label=[1, 2]))).columns == {"label": (1, 2)}


@pytest.mark.parametrize(
  "config, line",
  [
    (5, "config.input must be a dict, got 5"),
    (None, "config.input must be a dict, got None"),
    ({}, "config.input.data is missing"),
    (dict(data=DIGITS), "config.input.batch_size is missing; it is the number of examples a step over all processes"),
    (ONE | dict(batchsize=8), "config.input.batchsize is no key of the input (did you mean 'batch_size'?)"),
    (ONE | dict(batch_size=0), "config.input.batch_size must be a whole number in [1, 1048576], got 0"),
    (ONE | dict(batch_size=True), "config.input.batch_size must be a whole number in [1, 1048576], got True"),
    (ONE | dict(batch_size=2**31), "config.input.batch_size must be a whole number in [1, 1048576], got 2147483648"),
    (ONE | dict(cache_raw=1), "config.input.cache_raw must be True or False, got 1"),
    (ONE | dict(skip_errors=None), "config.input.skip_errors must be True or False, got None"),
    (ONE | dict(pp=None), "config.input.pp must be ops joined by |, got None"),
    (ONE | dict(pp="a(|b"), "config.input.pp must be ops joined by |, got 'a(|b': pp string cannot be read"),
    (ONE | dict(shuffle_buffer_size=1.5), "config.input.shuffle_buffer_size must be a whole number from 1 on, got 1.5"),
    (ONE | dict(extra={}), "config.input.extra is no key of the input"),
    (ONE | dict(a=dict(data=DIGITS)), "config.input.a is no key of the input"),
    (ONE | dict(data="digits"), "config.input.data must be a dict, got 'digits'"),
    (ONE | dict(data={}), "config.input.data.name is missing; it is the dataset, as TFDS names it"),
    (ONE | dict(data=dict(source="digit")), "config.input.data.source: there is no 'digit' (did you mean 'digits'?)"),
    (ONE | dict(data=dict(source=3)), "config.input.data.source: there is no 3"),
    (ONE | dict(data=dict(name="digits")), "config.input.data.split is missing"),
    (ONE | dict(data=dict(DIGITS, splt="x")), "config.input.data.splt is no key of the source digits (did you mean"),
    (ONE | dict(data=dict(a=1)), "config.input.a is missing; the mixture data names it"),
    (TWO | dict(data=dict(a=0, b=1)), "config.input.data.a must be a number above 0, got 0"),
    (TWO | dict(data=dict(a=1, b=True)), "config.input.data.b must be a number above 0, got True"),
    (TWO | dict(data=dict(a=1, b=None)), "config.input.data.b must be a number above 0, got None"),
    (TWO | dict(data=dict(a=1, b=float("nan"))), "config.input.data.b must be a number above 0, got nan"),
    (TWO | dict(data=dict(a=1)), "config.input.b is no key of the input"),
    (
      TWO | dict(data=dict(a=1, b=1, pp=1)),
      "config.input.data.pp is a key of the input; a component must have another",
    ),
    (TWO | dict(a=dict(DIGITS)), "config.input.a.name is no key of a component of the input"),
    (TWO | dict(a=None), "config.input.a must be a dict, got None"),
    (TWO | dict(a={}), "config.input.a.data is missing; it is its source"),
    (TWO | dict(a=dict(data=DIGITS, batch_size=3)), "config.input.a.batch_size is no key of a component of the input"),
    (TWO | dict(a=dict(data=DIGITS, pp="a(")), "config.input.a.pp must be ops joined by |, got 'a('"),
    (TWO | dict(a=dict(data=dict(DIGITS, split=3))), "config.input.a.data.split must be a split, got 3"),
    ({**TWO, "data": {"a": 1, "b": 1, 3: 1}}, "config.input.data: keys are text, and 3 is none"),
  ],
)
def test_what_does_not_fit_is_refused_by_its_path(config, line):
  with pytest.raises(UserError) as error:
    read(config)
  assert str(error.value).startswith(line)
  assert "\n" not in str(error.value)
  assert len(str(error.value)) <= 300
