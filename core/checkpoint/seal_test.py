"""A checkpoint's seal is whole, or no good: whatever stands in its place."""

import json

import numpy as np
import pytest

from core.checkpoint import seal
from core.checkpoint.state import Checkpoints


@pytest.fixture
def saved(tmp_path):
  """A folder with the checkpoints of steps 1 and 2, whose files are stand-ins: a seal vouches for any."""
  for step in (1, 2):
    folder = tmp_path / "checkpoints" / str(step)
    (folder / "d").mkdir(parents=True)
    (folder / "_METADATA").write_bytes(b"{}")
    (folder / "d" / "array").write_bytes(np.arange(9.0).tobytes())
    seal.write(folder, step, {"step": [[], "int32"], "params/w": [[3, 3], "float64"]})
  return tmp_path / "checkpoints"


def seal_of(saved):
  return json.loads((saved / "2" / "integrity.json").read_text())


@pytest.mark.parametrize(
  "damage",
  [
    "[]",
    "null",
    "3",
    "",
    "[" * 100_000,
    "{}",
    {"files": None},
    {"files": {"_METADATA": [1]}},
    {"files": {"_METADATA": None}},
    {"files": {"_METADATA": ["1", 2]}},
    {"files": []},
    {"arrays": {"step": ["int32"]}},
    {"arrays": {"step": [[], 7]}},
    {"arrays": {"step": [7, "int32"]}},
    {"step": "2"},
    {"step": None},
  ],
  ids=str,
)
def test_aseal_of_any_other_form_is_no_good(saved, damage):
  content = seal_of(saved)
  assert content.pop("crc")
  assert seal.step(saved / "2") == 2
  text = damage if isinstance(damage, str) else json.dumps({**content, **damage})
  (saved / "2" / "integrity.json").write_text(text)
  assert seal.arrays(saved / "2") is seal.step(saved / "2") is None
  warnings = []
  assert Checkpoints(saved, warn=warnings.append).newest_good() == 1
  (line,) = warnings
  assert "is damaged (integrity.json is missing or unreadable), set aside as 2.damaged" in line


def test_aseal_of_before_it_had_a_sum_of_its_own_is_good(saved):
  content = seal_of(saved)
  del content["crc"]
  (saved / "2" / "integrity.json").write_text(json.dumps(content, indent=1))
  assert Checkpoints(saved).newest_good() == 2


def test_a_seal_that_is_cut_or_has_a_byte_changed_is_no_good_or_says_the_same(saved):
  file, arrays, same = saved / "2" / "integrity.json", seal.arrays(saved / "2"), 0
  whole = file.read_bytes()
  for at in range(0, len(whole), 7):
    file.write_bytes(whole[:at])
    assert seal.step(saved / "2") is None
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
    if seal.step(saved / "2") is not None:
      same += 1
      assert (seal.step(saved / "2"), seal.arrays(saved / "2")) == (2, arrays)
      assert seal.fault(saved / "2", 2) is None
  assert same < len(whole) / 14  # Spaces, and the name of the sum.
