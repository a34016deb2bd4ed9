"""The tool itself: what it begins with is read, and a fault that is planted is found, made small and told once."""

import pickle

import pytest
from hypothesis import strategies as st

from core import data_files, errors
from core.errors import UserError
from core.recipe import load
from tools.fuzz import coverage, fuzz, inputs, targets

WITHOUT_TENSORFLOW = [name for name in targets.TARGETS if name not in ("tf_checkpoint", "tfrecord", "pp_string")]


@pytest.mark.parametrize("name", WITHOUT_TENSORFLOW)
def test_what_a_target_begins_with_is_read(name, tmp_path):
  target = targets.TARGETS[name](tmp_path)
  assert target.seeds
  for seed in target.seeds:
    target.call(seed)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_the_witnesses_are_read_or_refused_in_one_line(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  witnesses = targets.witnesses(data_files.find(f"tools/fuzz/witness/{name}.txt"))
  target = targets.TARGETS[name](tmp_path)
  assert witnesses
  for drawn in witnesses:
    assert fuzz.fault_of(target.call, drawn) is None, drawn


def test_what_reaches_new_lines_of_core_is_kept_and_changed_in_turn(tmp_path):
  asked = []

  def changed(kept):
    asked.append(kept)
    return st.sampled_from(kept)

  def call(drawn):
    errors.cut("text")
    if drawn:
      errors.multiples_near(drawn, 8)

  corpus = fuzz.explore("lines", targets.Target(st.just(1), call, (0,), changed), 0, 0, tmp_path)
  assert corpus.kept == [0, 1]
  assert asked == [[0]]
  targets.write_witnesses(tmp_path / "lines.txt", [b"a\nb", ("\u2028", "'")])
  assert targets.witnesses(tmp_path / "lines.txt") == [b"a\nb", ("\u2028", "'")]


def test_the_smallest_inputs_that_reach_all_are_the_witnesses():
  corpus = coverage.Corpus()
  for drawn, lines in (("long word", {1, 2}), ("b", {2}), ("word", {1, 3}), ("none", {2, 3}), ("longest word", {4})):
    corpus.offer(drawn, lines)
  assert corpus.kept == ["long word", "word", "longest word"]  # The others brought nothing when they came.
  assert corpus.smallest(room=100) == ["word", "long word", "longest word"]
  assert corpus.smallest(room=len("'word''long word'")) == ["word", "long word"]


def test_where_an_exception_comes_from_is_reached_as_well():
  def of(text):
    with coverage.reached() as lines:
      assert fuzz.fault_of(lambda _: load.from_json(FakeFile(text)), None) is None
    return lines

  class FakeFile:
    def __init__(self, text):
      self.read_bytes, self.is_file = (lambda: text), (lambda: True)

  assert of(b"[1 2]") != of(b"1 2")  # Both are refused by the same line of ours.
  assert of(b"[1]") == of(b"[2]")


def test_a_planted_fault_is_found_made_small_and_told_once(tmp_path):
  def call(number):
    if number > 1_000:
      raise KeyError(number)
    if number % 2:
      raise UserError("odd numbers are refused")

  said = []
  fuzz.explore("planted", targets.Target(st.integers(), call), 1, 0, tmp_path, found=said.append)
  assert len(said) == 1
  assert said[0].startswith("planted: fuzz_test.py:")
  assert "KeyError: 1001: " in said[0]
  assert pickle.loads((tmp_path / "planted-0.pickle").read_bytes()) == 1_001


def test_a_line_that_is_none_is_a_fault(tmp_path):
  class Refused(UserError):
    def __str__(self):
      return "two\nlines"

  def call(_):
    raise Refused("")

  said = []
  fuzz.explore("lines", targets.Target(st.none(), call), 0, 0, tmp_path, found=said.append)
  assert len(said) == 1
  assert "a line that is none" in said[0]


def test_changes_are_small_and_many():
  seed = bytes(range(200))
  drawn = []

  def call(content):
    drawn.append(content)

  fuzz.explore("changes", targets.Target(inputs.changed_bytes([seed]), call), 0, 0, None)
  assert seed in drawn
  assert len(set(drawn)) > 100


def test_a_target_that_there_is_not_is_one_line(tmp_path):
  with pytest.raises(UserError, match=r"--targets: there is no 'npy' \(did you mean 'npz'\?\)"):
    fuzz.main([f"--output={tmp_path}", "--targets=npy"])
