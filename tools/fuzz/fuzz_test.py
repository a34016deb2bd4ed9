"""The tool itself: what it begins with is read, and a fault that is planted is found, made small and told once."""

import pickle

import pytest
from hypothesis import strategies as st

from core.errors import UserError
from tools.fuzz import fuzz, inputs, targets

WITHOUT_TENSORFLOW = [name for name in targets.TARGETS if name not in ("tf_checkpoint", "tfrecord", "pp_string")]


@pytest.mark.parametrize("name", WITHOUT_TENSORFLOW)
def test_what_a_target_begins_with_is_read(name, tmp_path):
  target = targets.TARGETS[name](tmp_path)
  assert target.seeds
  for seed in target.seeds:
    target.call(seed)


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
