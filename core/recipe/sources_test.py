"""The arguments of every source: each value of a wrong type is refused by its path, right ones are taken."""

import dataclasses

import numpy as np
import pytest

from core.errors import UserError
from core.recipe import annotations, sources, words
from core.recipe.parse import parse

# What each source needs at least.
LEAST = {
  "arrays": dict(path="x.npz"),
  "digit_captions": dict(split="train"),
  "digits": dict(split="train"),
  "folder": dict(path="photos"),
  "fractals": dict(split="train"),
  "jsonl": dict(path="x.jsonl"),
  "tfds": dict(name="cifar10", split="train"),
  "zeros": dict(spec=dict(image=dict(shape=[8, 8, 3]))),
}
FIELDS = [(name, field.name) for name, kind in sources.SOURCES.items() for field in dataclasses.fields(kind)]
WRONG = [
  True,
  -1,
  0.5,
  float("nan"),
  float("inf"),
  2**70,
  10**9,
  "",
  "a\0b",
  "\ud800",
  b"x",
  1j,
  [[]],
  [None],
  [1, [2]],
]
WRONG += [
  {},
  {1: 2},
  {"a": 1},
  {"a": None},
  {1},
  object(),
  print,
  np.zeros(3),
  np.zeros(()),
  "train[",
  "train[:1%%]",
  "a[1:2]b",
]


def refusal(name, given):
  """The line by which arguments are refused; None where they are not."""
  try:
    parse(sources.Source, dict(given, source=name), "config.input.data")
  except UserError as error:
    return str(error)
  return None


def test_every_source_is_listed():
  assert LEAST.keys() == sources.SOURCES.keys()
  assert all(refusal(name, given) is None for name, given in LEAST.items())


@pytest.mark.parametrize("name, field", FIELDS)
def test_a_wrong_value_is_refused_by_its_path(name, field):
  taken = []
  least = {} if field == "columns" else LEAST[name]
  for value in WRONG:
    line = refusal(name, least | {field: value})
    if line is None:
      taken.append(value)
      continue
    assert line.startswith(f"config.input.data.{field}")
    assert "\n" not in line
    assert len(line) <= 300
  kind = annotations.hints(sources.SOURCES[name])[field]
  if "text" in words.describe(kind) or "path" in words.describe(kind) or field == "skip_decode":
    # A name or a path may be spelled anyhow but empty; a path holds no NUL.
    taken = [value for value in taken if not (isinstance(value, str) and value)]
  if (name, field) == ("fractals", "seed"):
    taken.remove(10**9)
  assert not taken


@pytest.mark.parametrize("name, field", FIELDS)
def test_none_is_refused_where_a_value_is_needed(name, field):
  line = refusal(name, LEAST[name] | {field: None})
  kind = annotations.hints(sources.SOURCES[name])[field]
  if (name, field) == ("arrays", "path"):
    assert line == "config.input.data: give one of path (an .npz file) and columns (a dict of arrays)"
  else:
    assert (line is None) == annotations.may_be_none(kind)


@pytest.mark.parametrize("name", sources.SOURCES)
def test_every_argument_is_documented(name):
  kind = sources.SOURCES[name]
  assert words.documentation(kind).keys() == {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize(
  "given, line",
  [
    (dict(source="arrays"), "config.input.data: give one of path (an .npz file) and columns (a dict of arrays)"),
    (dict(source="arrays", path="a", columns=dict(a=[1])), "config.input.data: give one of path"),
    (dict(source="arrays", columns={}), "config.input.data.columns holds no column"),
    (
      dict(source="arrays", columns=dict(a=3)),
      "config.input.data.columns.a must be a column, an array or a list, got 3",
    ),
    (
      dict(source="digit_captions", split="train", digits=()),
      "config.input.data.digits must be 1, 2 or (1, 2), got ()",
    ),
    (
      dict(source="digit_captions", split="train", held_out=[(a, b) for a in range(10) for b in range(10)]),
      "config.input.data.held_out leaves no pair to train on",
    ),
    (dict(source="fractals", split="train", classes=10**6), "config.input.data: classes, per_class and size make 1430"),
    (dict(source="zeros", spec={}), "config.input.data.spec holds no entry"),
    (dict(source="zeros", spec=dict(x=dict(shape=[0]))), "config.input.data.spec.x.shape[0] must be a whole number"),
    (dict(name="../../etc", split="train"), "config.input.data.name must be a dataset of TFDS, got '../../etc'"),
    (dict(name="cifar10", split="train[:12.5%]+all"), None),
    (
      dict(name="digits", split="train[:200%]"),
      "config.input.data.split must be a split, got 'train[:200%]': percents",
    ),
    (dict(name="cifar10", split="train[1shard:]+test[:1_000]"), None),
    (dict(name="imagenet_v2/matched-frequency:3.0.0", split="test"), None),
  ],
)
def test_arguments_that_do_not_fit_each_other_are_refused(given, line):
  given = dict(given)
  found = refusal(given.pop("source", None), given)
  assert found is None if line is None else found.startswith(line)
