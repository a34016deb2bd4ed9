"""The first lines of a run name its classes, and evaluations of what is trained on."""

import dataclasses
import json

import numpy as np
import pytest

from core.data import class_names, notes
from core.recipe import sources
from core.recipe.evaluators import Evaluator
from core.recipe.input import Input
from core.recipe.parse import parse

PP = "keep('label')"


def recipe_of(data, **more):
  return parse(Input, dict(data=data, batch_size=2, pp=PP, **more), "config.input")


def overlaps(recipe, data=None, **options):
  options = dict(type="mean", log_steps=1) | ({"data": data, "pp_fn": PP} if data else {}) | options
  return notes.overlaps(recipe, {"val": parse(Evaluator, options, "config.evals.val")})


def rows(path, names):
  path.write_text("".join(f"{json.dumps({'label': name})}\n" for name in names))
  return dict(source="jsonl", path=str(path), classes=path.name)


@pytest.mark.parametrize(
  "names, ordered",
  [
    (["10", "9", "0", "100", "2"], ["0", "2", "9", "10", "100"]),
    (["01", "1", "00", "-2", "-10"], ["-10", "-2", "00", "01", "1"]),
    (["b", "10", "a", "9", "9a"], ["9", "10", "9a", "a", "b"]),
    (["1.5", "1.25", "x" * 5], ["1.25", "1.5", "xxxxx"]),
    (["9" * 5000, "2", "1" * 5000], ["2", "1" * 5000, "9" * 5000]),
  ],
)
def test_whole_numbers_are_sorted_by_their_values(tmp_path, names, ordered):
  assert class_names.in_order(names) == tuple(ordered)
  rows(tmp_path / "t.jsonl", names)
  assert class_names.read("t.jsonl", tmp_path, "x") == tuple(ordered)


def test_the_classes_are_counted_and_the_first_and_the_last_are_named(tmp_path):
  data = rows(tmp_path / "t.jsonl", [str(number) for number in range(1000)])
  assert notes.classes(recipe_of(data)) == "1,000 classes, 0 to 999"
  one = rows(tmp_path / "one.jsonl", ["x" * 99])
  assert notes.classes(recipe_of(one)) == f"1 class, {'x' * 12} ... {'x' * 12}"
  assert notes.classes(recipe_of(dict(name="digits", split="train"))) == ""
  mixed = dict(a=dict(data=data), b=dict(data=one), c=dict(data=data))
  assert notes.classes(recipe_of(dict(a=1, b=1, c=1), **mixed)).startswith("1,000 classes, 0 to 999; 1 class, x")


@pytest.mark.parametrize(
  "train, tested, line",
  [
    ("train", "test", None),
    ("train[:90%]", "train[90%:]", None),
    ("train", "train", "tests on train: 1,437 of 1,437 examples are trained on"),
    ("train[:90%]", "train[1_200:]+test", "tests on train[1_200:]+test: 93 of 597 examples are trained on"),
    ("train[:100]+train[50:200]", "train[90:300]", "tests on train[90:300]: 110 of 210 examples are trained on"),
    ("all", "test[:10]", "tests on test[:10]: 10 of 10 examples are trained on"),
  ],
)
def test_an_evaluation_of_what_is_trained_on_is_told(train, tested, line):
  recipe, data = recipe_of(dict(name="digits", split=train)), dict(name="digits", split=tested)
  expected = [f"config.evals.val {line}"] if line else []
  assert overlaps(recipe, data) == expected
  assert overlaps(recipe, type="knn", pp_train=PP, pp_eval=PP, datasets=dict(x=dict(train=data, test=data))) == expected
  other = dict(name="digits", split="test") if line is None else dict(name="cifar10", split="train")
  assert overlaps(recipe, type="knn", pp_train=PP, pp_eval=PP, datasets=dict(x=dict(train=data, test=other))) == []
  assert overlaps(recipe, data, type="sharpness") == []


def test_the_same_file_by_another_path_overlaps_and_another_file_does_not(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  data = rows(tmp_path / "t.jsonl", ["a", "b"])
  rows(tmp_path / "u.jsonl", ["a", "b"])
  recipe = recipe_of(data)
  assert len(overlaps(recipe, data | dict(path="t.jsonl"))) == 1
  assert overlaps(recipe, data | dict(path="u.jsonl")) == []


def test_a_folder_overlaps_by_its_splits(tmp_path):
  for name in ("train/a/1.png", "train/b/2.png", "val/a/3.png"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"")
  folder = dict(source="folder", path=str(tmp_path))
  recipe = recipe_of(folder | dict(split="train"))
  assert overlaps(recipe, folder | dict(split="val")) == []
  assert len(overlaps(recipe, folder | dict(split="train"))) == 1
  flat = folder | dict(path=str(tmp_path / "train"))
  assert len(overlaps(recipe_of(flat | dict(split="train")), flat | dict(split="all"))) == 1


def test_arrays_overlap_where_they_are_the_same(tmp_path):
  np.savez(tmp_path / "x.npz", label=np.arange(4))
  in_file = dict(source="arrays", path=str(tmp_path / "x.npz"))
  assert len(overlaps(recipe_of(in_file | dict(split="all[:2]")), in_file | dict(split="all[1:]"))) == 1
  assert overlaps(recipe_of(in_file | dict(split="all[:2]")), in_file | dict(split="all[2:]")) == []
  assert overlaps(recipe_of(in_file), dict(source="arrays", columns=dict(label=np.arange(4)))) == []


def test_every_source_is_told_apart_by_its_arguments():
  assert notes.OF_RECORDS.keys() == set(sources.SOURCES.values())
  for kind, keys in notes.OF_RECORDS.items():
    assert set(keys) <= {field.name for field in dataclasses.fields(kind)}
