"""The sources that need no TensorFlow."""

import json

import numpy as np
import pytest
import sklearn.datasets

from core.data.source import open_source
from core.errors import UserError
from core.recipe.parse import parse
from core.recipe.sources import Source


def opened(data, where="config.input.data"):
  return open_source(parse(Source, data, where), where)


def digits(split):
  return opened({"name": "digits", "split": split})


def refused(line, **data):
  with pytest.raises(UserError) as error:
    opened(data)
  assert str(error.value).startswith("config.input.data")
  assert line in str(error.value)
  assert "\n" not in str(error.value)


def test_digits_are_those_of_scikit_learn():
  theirs = sklearn.datasets.load_digits()
  ours = digits("train+test")
  image = (ours.arrays["image"].astype(np.float64) * 16 / 255).round().reshape(-1, 64)
  pairs = sorted((*x, y) for x, y in zip(image.astype(int).tolist(), ours.arrays["label"].tolist()) for x in [tuple(x)])
  assert pairs == sorted((*x, y) for x, y in zip(map(tuple, theirs.data.astype(int).tolist()), theirs.target.tolist()))


def test_digits_splits_are_stratified_and_whole():
  train, test = digits("train"), digits("test")
  assert (len(train), len(test)) == (1437, 360)
  assert (np.bincount(test.arrays["label"]) == 36).all()
  assert train.arrays["image"].shape == (1437, 8, 8, 1)
  assert (train.arrays["image"].min(), train.arrays["image"].max()) == (0, 255)
  rows = {train.describe(i) for i in range(1437)} | {test.describe(i) for i in range(360)}
  assert len(rows) == 1797


def test_part_of_a_split_is_named_by_rows_of_the_whole():
  assert digits("train[100:200]").describe(5) == digits("train").describe(105)


def test_zeros_have_the_shapes_that_are_asked_for_and_take_no_memory():
  spec = dict(image=dict(shape=(224, 224, 3), dtype="uint8"), label=dict(dtype="int64"))
  zeros = opened(dict(source="zeros", spec=spec, examples=1_000_000, split="all[:25%]"))
  assert len(zeros) == 250_000
  rows = zeros.take(np.array([0, 7]))
  assert {key: (x.dtype.name, x.shape) for key, x in rows.items()} == {
    "image": ("uint8", (2, 224, 224, 3)),
    "label": ("int64", (2,)),
  }
  assert not any(x.any() for x in rows.values())
  assert zeros.arrays["image"].strides == (0, 0, 0, 0)
  refused("there is no split 'train'", source="zeros", spec=spec, split="train")


def test_arrays_with_and_without_splits(tmp_path):
  x, y = np.arange(10.0), np.arange(10)
  np.savez(tmp_path / "flat.npz", image=x, label=y, text=np.array(["ä"] * 10))
  np.savez(tmp_path / "splits.npz", **{"train/image": x, "train/label": y, "test/image": x[:3], "test/label": y[:3]})
  flat = opened(dict(source="arrays", path=str(tmp_path / "flat.npz"), split="all[2:4]"))
  np.testing.assert_array_equal(flat.arrays["label"], [2, 3])
  assert flat.arrays["text"].tolist() == ["ä".encode()] * 2
  assert flat.describe(1) == f"row 3 of {tmp_path / 'flat.npz'}"
  assert len(opened(dict(source="arrays", path=str(tmp_path / "splits.npz"), split="test"))) == 3
  assert len(opened(dict(source="arrays", columns={"image": x}))) == 10


def test_jsonl_columns_and_paths(tmp_path):
  rows = [{"image": f"{i}.jpg", "label": i, "box": [0.5, i], "text": "é"} for i in range(4)]
  path = tmp_path / "train.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
  source = opened(dict(source="jsonl", path=str(path), split="all[1:]"))
  assert source.files == ("image",)
  assert source.arrays["image"][0] == str(tmp_path / "1.jpg").encode()
  assert source.arrays["label"].dtype == np.int64
  np.testing.assert_array_equal(source.arrays["box"], np.float32([[0.5, 1], [0.5, 2], [0.5, 3]]))
  assert source.arrays["text"][0] == "é".encode()
  assert source.describe(0) == f"line 2 of {path} ({tmp_path / '1.jpg'})"


@pytest.mark.parametrize(
  "second, line",
  [
    ("{", "line 2: not JSON"),
    ("[1]", "line 2: not an object"),
    ('{"image": "b.jpg"}', "line 2: 'label' is missing"),
    ('{"image": "b.jpg", "label": 1, "x": 2}', "line 2: 'x' is new here"),
    ('{"image": "b.jpg", "label": "cat"}', "line 2: 'label' has the form ('text',)"),
    ('{"image": "b.jpg", "label": [1, [2]]}', "line 2: 'label' has the form ('uneven',)"),
  ],
)
def test_a_bad_line_is_named(tmp_path, second, line):
  path = tmp_path / "x.jsonl"
  path.write_text('{"image": "a.jpg", "label": 0}\n' + second + "\n")
  refused(f"{path} {line}", source="jsonl", path=str(path))


def test_bad_sources_are_refused(tmp_path):
  (tmp_path / "bad.npz").write_bytes(b"no zip")
  np.savez(tmp_path / "uneven.npz", a=np.zeros(3), b=np.zeros(4))
  (tmp_path / "empty.jsonl").write_text("")
  (tmp_path / "null.jsonl").write_text('{"label": null}\n')
  (tmp_path / "ok.jsonl").write_text('{"label": 1}\n')
  refused("config.input.data.source: there is no 'arays' (did you mean 'arrays'?)", source="arays")
  refused("input.data.splt is no key of the source digits (did you mean 'split'?)", name="digits", splt="train")
  refused("input.data.split is missing", name="digits")
  refused("no file nowhere.npz", source="arrays", path="nowhere.npz")
  refused("not a readable .npz file", source="arrays", path=str(tmp_path / "bad.npz"))
  refused("columns of unequal lengths: a 3, b 4", source="arrays", path=str(tmp_path / "uneven.npz"))
  refused("give one of path", source="arrays")
  refused("there is no split 'test' (known: all)", source="arrays", columns={"a": np.zeros(3)}, split="test")
  refused("columns.a must be a column, an array or a list, got 0.0", source="arrays", columns={"a": np.zeros(())})
  refused("no file nowhere.jsonl", source="jsonl", path="nowhere.jsonl")
  refused("split: 'all' holds no examples", source="jsonl", path=str(tmp_path / "empty.jsonl"))
  refused("'label' holds NoneType", source="jsonl", path=str(tmp_path / "null.jsonl"))
  refused("files='image' names no column of paths", source="jsonl", path=str(tmp_path / "ok.jsonl"), files=("image",))


def wrong_paths(tmp_path):
  """Paths by what is wrong with them: of no file, of a folder, of a file of another kind."""
  (tmp_path / "folder").mkdir()
  (tmp_path / "empty").write_bytes(b"")
  (tmp_path / "binary").write_bytes(bytes(range(256)) * 8)
  (tmp_path / "text").write_text("a\nb\n")
  (tmp_path / "number.npy").write_bytes(b"\x93NUMPY")
  (tmp_path / "deep.jsonl").write_text("[" * 100_000)
  (tmp_path / "half.jsonl").write_text('{"image": "\\ud800"}\n')
  (tmp_path / "large.jsonl").write_text('{"label": 1' + "0" * 30 + "}\n")
  names = ("nowhere", "folder", "empty", "binary", "text", "number.npy", "deep.jsonl", "half.jsonl", "large.jsonl")
  return [
    *(str(tmp_path / name) for name in names),
    "x" * 5_000,
    "~nobody/x",
    "\udc80",
    "a\nb",
    "/dev/null",
    "/proc/1/mem",
  ]


@pytest.mark.parametrize("source", ["arrays", "folder", "jsonl"])
def test_a_wrong_path_is_refused_by_its_key(tmp_path, source):
  for path in wrong_paths(tmp_path):
    with pytest.raises(UserError) as error:
      opened(dict(source=source, path=path))
    line = str(error.value)
    # A file of no lines is a split of no examples.
    assert line.startswith(("config.input.data.path", "config.input.data.split: 'all' holds no examples")), path
    assert "\n" not in line
    assert len(line) <= 300


@pytest.mark.parametrize("source", ["folder", "jsonl"])
def test_wrong_classes_are_refused_by_their_key(tmp_path, source):
  (tmp_path / "photos" / "cat").mkdir(parents=True)
  (tmp_path / "photos" / "cat" / "1.jpg").write_bytes(b"")
  (tmp_path / "rows.jsonl").write_text('{"label": "cat"}\n')
  path = tmp_path / ("photos" if source == "folder" else "rows.jsonl")
  for classes in [*wrong_paths(tmp_path), (), ("cat", "cat"), ("dog",)]:
    with pytest.raises(UserError) as error:
      opened(dict(source=source, path=str(path), classes=classes))
    line = str(error.value)
    assert line.startswith(("config.input.data.classes", "config.input.data.path")), classes
    assert "\n" not in line
    assert len(line) <= 300


@pytest.mark.parametrize(
  "columns, words",
  [
    (dict(a=[1, 2], b=[1]), "columns of unequal lengths: a 2, b 1"),
    (dict(a=[[1], [2, 3]]), "columns: 'a' holds lists of unequal lengths"),
    (dict(a=[None, 1]), "columns: 'a' holds None; a column is of numbers or of text"),
    (dict(a=[{"b": 1}]), "columns: 'a' holds {'b': 1}; a column is of numbers or of text"),
    (dict(a=np.array(["2020"], "datetime64[D]")), "columns: 'a' holds datetime64[D]; a column is of numbers"),
    (dict(a=[]), "split: 'all' holds no examples"),
    ({"train/a": [1], "test/a": [1]}, "split is missing; arrays holds the splits test, train"),
  ],
)
def test_wrong_columns_are_refused(columns, words):
  refused(f"config.input.data.{words}" if ":" in words[:9] else words, source="arrays", columns=columns)


def test_lists_of_a_config_are_columns():
  found = opened(dict(source="arrays", columns=dict(label=[1, 2], text=["ä", "b"])))
  assert found.arrays["label"].tolist() == [1, 2]
  assert found.arrays["text"].tolist() == ["ä".encode(), b"b"]


def test_digits_without_scikit_learn_are_refused(monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  refused("config.input.data: the digits ship with scikit-learn, which is not installed", name="digits", split="test")


@pytest.mark.parametrize(
  "values, expected",
  [
    ([0, 2**63 - 1, -(2**63)], np.int64),
    ([True, 2], np.int64),
    ([True, False], bool),
    ([16_777_216, 4.5], float),
    ([2**40, 4.5], float),
    ([float("inf"), 1.0], float),
    ([2**63, 1], "holds 9223372036854775808, which 64 bits do not hold"),
    ([-(2**63) - 1, 1], "holds -9223372036854775809, which 64 bits do not hold"),
    ([10**30], "which 64 bits do not hold"),
    ([16_777_217, 4.0], "holds 16777217 beside fractions, and float32 holds no such whole number"),
    ([2**53 + 1, 4.0], "holds 9007199254740993 beside fractions"),
    ([1e300, 1.0], "holds 1e+300, which is beyond float32"),
    ([[1, 2], [3, 16_777_217.0]], float),
    ([[1, 0.5], [3, 16_777_217]], "holds 16777217 beside fractions"),
  ],
)
def test_numbers_stay_what_they_are_or_are_refused(tmp_path, values, expected):
  path = tmp_path / "x.jsonl"
  path.write_text("".join(f"{json.dumps({'x': value})}\n" for value in values))
  for data in (dict(source="jsonl", path=str(path)), dict(source="arrays", columns=dict(x=values))):
    if isinstance(expected, str):
      refused(expected, **data)
    else:
      found, wanted = opened(data).arrays["x"], np.float32 if expected is float else expected
      assert np.issubdtype(found.dtype, np.floating if expected is float else expected)
      np.testing.assert_array_equal(found.astype(wanted), np.array(values, wanted))


def test_integers_that_no_int64_holds_are_refused_in_arrays():
  refused(
    "columns: 'x' holds 9223372036854775808, from 2^63 on", source="arrays", columns=dict(x=np.uint64([2**63, 1]))
  )
  assert opened(dict(source="arrays", columns=dict(x=np.uint64([1, 2**63 - 1])))).arrays["x"].dtype == np.uint64
