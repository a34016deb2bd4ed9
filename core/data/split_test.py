"""Splits of data in memory."""

import pytest

from core.data import split
from core.errors import UserError

SIZES = {"train": [1437], "test": [360]}


@pytest.mark.parametrize(
  "text, expected",
  [
    ("train", [("train", 0, 1437)]),
    ("train[:100]", [("train", 0, 100)]),
    ("train[:98%]", [("train", 0, 1408)]),
    ("train[98%:]", [("train", 1408, 1437)]),
    ("train[-10:]", [("train", 1427, 1437)]),
    ("test[10:360]", [("test", 10, 360)]),
    ("train[:12.5%]", [("train", 0, 180)]),
    ("train[:0.5%]", [("train", 0, 7)]),
    ("train[:1_000]", [("train", 0, 1000)]),
    ("test[:1shard]", [("test", 0, 360)]),
    ("test[0shard]", [("test", 0, 360)]),
    ("all", [("train", 0, 1437), ("test", 0, 360)]),
    ("train[:1]+test[1:2]", [("train", 0, 1), ("test", 1, 2)]),
  ],
)
def test_ranges(text, expected):
  assert split.ranges(text, SIZES, "digits") == expected


@pytest.mark.parametrize(
  "text, line",
  [
    ("tran", "there is no split 'tran' (did you mean 'train'?)"),
    ("train[:0]", "'train[:0]' holds no examples"),
    ("train[50:10]", "'train[50:10]' holds no examples"),
    ("test[10:5000]", "'test[10:5000]': 5,000 is beyond 'test', which holds 360 examples"),
    ("test+train[-1_438:]", "'test+train[-1_438:]': -1,438 is beyond 'train', which holds 1,437 examples"),
    ("test[-0.1%:]", "'test[-0.1%:]': -0.1% of the 360 examples of 'test' is none"),
    ("test[:2shard]", "'test[:2shard]': 2shard is beyond 'test', which has 1 of them"),
    ("all[:10]", "'all' is every split and has no ranges; give each of train, test one"),
    ("train[:1.5]", "'train[:1.5]' cannot be read; '1.5' is no whole number"),
    ("train[:]", "'train[:]' cannot be read; a range has at least one bound, train[:90%] or train[100:]"),
    (
      "train[7]",
      "'train[7]' cannot be read; a range has a colon, train[:90%] or train[100:]; only shards go by one "
      "number, train[3shard]",
    ),
    ("train[", "'train[' cannot be read; write it as train, train[:90%] or train[100:200]"),
  ],
)
def test_errors(text, line):
  with pytest.raises(UserError) as error:
    split.ranges(text, SIZES, "config.input.data.split")
  assert str(error.value) == f"config.input.data.split: {line}"


@pytest.mark.parametrize(
  "text", ["", "+", "train+", "train[:", "train[1:2:3]", "a b", "train[:101%]", "a" * 9_999, "a[:" + "9" * 5_000 + "]"]
)
def test_what_is_no_split_is_refused_in_one_line(text):
  with pytest.raises(UserError) as error:
    split.ranges(text, SIZES, "config.input.data.split")
  assert str(error.value).startswith("config.input.data.split: ")
  assert len(str(error.value)) <= 300


def test_a_split_that_is_named_all_is_that_one():
  assert split.ranges("all[:50%]", {"all": [10], "train": [4]}, "x") == [("all", 0, 5)]
