"""Steps of several projects for devices that are not there: what is known of each holds in its compiled program."""

import dataclasses

import pytest

from tools import trained_model
from tools.aot import aot, chips, program

RING = 4


def reported(config, overrides=(), topology="v5e:2x2", step="train"):
  return aot.compile_and_report(f"projects/{config}", topology, overrides=overrides, step=step)


@pytest.fixture(scope="module")
def siglip():
  return reported("siglip/configs/generic.py:runlocal", [("loss_form", "ring")])


def test_a_loss_over_all_devices_runs_on_those_that_it_is_compiled_for(siglip):
  # Texts, their numbers and what is gathered about them go around the ring.
  found = siglip["collectives"]["collective-permute"]
  assert found["count"] >= RING * 2  # Forward and backward.
  assert siglip["devices"] == RING


def test_a_loss_in_a_ring_is_counted_with_its_hops(siglip):
  assert siglip["flops"]["compiled"] == pytest.approx(siglip["flops"]["model"], rel=0.05)


def test_a_contrastive_step_in_parts_needs_the_flops_of_the_whole_batch():
  _, task, recipe = trained_model.recipe_of("projects/siglip/configs/generic.py:runlocal", [])
  one = chips.topology("cpu:1")
  whole, in_parts = (
    program.make_step(task, dataclasses.replace(recipe, grad_accum_steps=parts), one, data_size=100).model_flops()
    for parts in (1, 4)
  )
  assert in_parts == whole > 0


def test_no_backward_pass_runs_through_a_locked_tower():
  config = "lit/configs/generic.py:runlocal"

  def flops(overrides=(), step="train"):
    return reported(config, overrides, "v5e:1x1", step)["flops"]["compiled"]

  locked, free = flops(), flops([("schedule", "[('.*', {'decay_type': 'cosine'})]")])
  # The backward pass costs two forward passes, but for the gradient by the pixels, which nobody wants.
  by_pixels = 2 * 8 * 4 * (16 * 16 * 3) * 32  # Of 8 images of 4 patches.
  assert free - locked == pytest.approx(2 * flops(step="eval:image") - by_pixels, rel=0.02)


@pytest.mark.parametrize(
  "message, sizes",
  [
    ("the total memory required for HLO temporaries (20.78G) exceeds available HBM (15.75G). HLO", (20.78, 15.75)),
    ("the total memory required for HLO temporaries (1.5T) exceeds available HBM (95.00G)", (1.5 * 1024, 95.0)),
    ("out of memory", (None, None)),
  ],
)
def test_the_compilers_own_refusal_is_read(message, sizes):
  error = program.OutOfMemory(message)
  in_gib = [None if x is None else x / 2**30 for x in (error.needed, error.there)]
  assert in_gib == [None if x is None else pytest.approx(x) for x in sizes]
