"""Splits of data in memory."""

import pytest

from core.data import split
from core.errors import UserError

SIZES = {"train": 1437, "test": 360}


@pytest.mark.parametrize(
  "text, expected",
  [
    ("train", [("train", 0, 1437)]),
    ("train[:100]", [("train", 0, 100)]),
    ("train[:98%]", [("train", 0, 1408)]),
    ("train[98%:]", [("train", 1408, 1437)]),
    ("train[-10:]", [("train", 1427, 1437)]),
    ("test[10:5000]", [("test", 10, 360)]),
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
