"""The figures of small steps are those that were pinned; golden_run_test.py has those that take minutes."""

import json

import pytest

from tools.aot import flagships, golden

PINNED = json.loads(golden.path().read_text())


@pytest.mark.parametrize("name", golden.LIGHT)
def test_the_figures_are_those_that_were_pinned(name):
  moved = golden.differences(name, PINNED[name], golden.record(name))
  assert not moved, f"meant? then: ./bazelw run //tools/aot:repin -- {name}"


@pytest.mark.parametrize(
  "found, words",
  [
    ({"temporaries": 104, "limit": "memory"}, []),
    ({"temporaries": 106, "limit": "memory"}, ["x temporaries: 106, pinned 100"]),
    ({"temporaries": 100, "limit": "compute"}, ["x limit: compute, pinned memory"]),
    ({"temporaries": 100, "limit": "memory", "all-gather bytes": 5}, ["x all-gather bytes: 5, pinned None"]),
    ({"refused": "does not fit"}, ["x temporaries: None, pinned 100", "x limit: None, pinned memory"]),
  ],
)
def test_what_moved_is_told_by_name(found, words):
  assert golden.differences("x", {"temporaries": 100, "limit": "memory"}, found) == words


@pytest.mark.parametrize("name", flagships.entries())
def test_every_flagship_fits_its_chips(name):
  assert "refused" not in PINNED[name]


def transformer_flops(width: int, depth: int, tokens: int) -> float:
  """Forward, of one example: projections, MLP of four times the width, and attention."""
  return 2 * depth * (12 * width**2 * tokens + 2 * tokens**2 * width)


def test_vit_g_on_2048_chips_is_split_all_the_way():
  pinned = PINNED["vit g/14, 16 a chip, on 2048"]
  assert pinned["temporaries"] <= 4e9
  assert pinned["arguments"] <= 0.5e9
  # Never more at a time than one layer's parameters, in bfloat16.
  assert pinned["largest all-gather in loops"] <= 2 * (4 * 1_408**2 + 2 * 1_408 * 6_144)
  assert pinned["roofline mfu"] >= 0.5
  assert pinned["limit"] in ("compute", "memory", "interconnect")


def test_vit_l_on_16_chips_fits_without_computing_anything_again():
  assert PINNED["vit_l16_v5e_4x4_unrolled_none"]["temporaries"] <= 9e9
  best = PINNED["vit_l16_v5e_4x4_dots_with_no_batch_dims_saveable"]
  assert best["temporaries"] <= 15.75 * 2**30
  assert best["compiled_flops"] <= 1.1 * best["model_flops"]


def test_the_memory_of_siglips_step_is_linear_in_the_local_batch():
  whole, half = (PINNED[f"siglip_b16_v5e_8x8{name}"]["temporaries"] for name in ("", "_half_the_batch"))
  assert half / whole == pytest.approx(0.5, rel=0.05)


def test_lit_computes_no_gradient_through_its_locked_tower():
  image, text = transformer_flops(1_024, 24, 197), transformer_flops(1_024, 24, 16)
  assert PINNED["lit_l16_v5e_8x8"]["compiled_flops"] == pytest.approx(16_384 * (image + 3 * text), rel=0.02)
