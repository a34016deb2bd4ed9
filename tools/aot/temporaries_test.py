"""Lifetimes of arrays in programs written by hand, and against the compiler's own figure."""

import jax
import jax.numpy as jnp
import pytest

from tools.aot import hlo, temporaries

PROGRAM = """
%body (p: (s32[], f32[64])) -> (s32[], f32[64]) {
  %p = (s32[], f32[64]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[64]{0} get-tuple-element(%p), index=1
  %inside = f32[1000]{0} broadcast(%i), dimensions={}
  %sum = f32[64]{0} fusion(%inside, %x), kind=kLoop, calls=%add
  ROOT %t = (s32[], f32[64]{0}) tuple(%i, %sum)
}

%condition (p: (s32[], f32[64])) -> pred[] {
  %p = (s32[], f32[64]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(7)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%add (a: f32[1000], b: f32[64]) -> f32[64] {
  %a = f32[1000]{0} parameter(0)
  %b = f32[64]{0} parameter(1)
  ROOT %c = f32[64]{0} add(%a, %b)
}

ENTRY %main (x: f32[64]) -> f32[64] {
  %x = f32[64]{0} parameter(0)
  %zero = s32[] constant(0)
  %early = f32[9000]{0} broadcast(%zero), dimensions={}
  %small = f32[64]{0} fusion(%early, %x), kind=kLoop, calls=%add
  %held = f32[500]{0} broadcast(%zero), dimensions={}
  %view = f32[5,100]{1,0} bitcast(%held)
  %init = (s32[], f32[64]{0}) tuple(%zero, %small)
  %loop = (s32[], f32[64]{0}) while(%init), condition=%condition, body=%body
  %end = f32[64]{0} get-tuple-element(%loop), index=1
  ROOT %out = f32[64]{0} fusion(%view, %end), kind=kLoop, calls=%add
}
"""


def found(text):
  return [(each.bytes, each.type, each.in_loop) for each in temporaries.at_peak(hlo.Module(text))]


def test_the_fullest_moment_is_where_most_bytes_live_at_once():
  assert found(PROGRAM) == [(36_000, "f32[9000]{0}", False), (256, "f32[64]{0}", False)]


def test_what_a_loop_makes_lives_beside_what_is_held_around_it():
  # Without what is gone before: the loop's own array, the one read after it through a view, and the loop's state.
  without = PROGRAM.replace("f32[9000]", "f32[9]")
  assert found(without) == [(4_000, "f32[1000]{0}", True), (2_000, "f32[500]{0}", False), (256, "f32[64]{0}", False)]


def test_an_update_in_place_is_no_new_array():
  text = """
ENTRY %main (x: f32[64]) -> f32[64] {
  %x = f32[64]{0} parameter(0)
  %zero = s32[] constant(0)
  %held = f32[500]{0} broadcast(%zero), dimensions={}
  %updated = f32[500]{0} dynamic-update-slice(%held, %x, %zero)
  ROOT %out = f32[64]{0} dynamic-slice(%updated, %zero), dynamic_slice_sizes={64}
}
"""
  assert found(text) == [(2_000, "f32[500]{0}", False)]


@pytest.mark.parametrize(
  "text, padded", [("f32[10,60]{1,0:T(8,128)}", 4 * 16 * 128), ("bf16[3,64,16]{1,2,0:T(8,128)(2,1)}", 2 * 3 * 16 * 128),
                   ("f32[5]{0:T(128)}", 512), ("s32[]{:T(128)}", 512), ("f32[10,60]{1,0}", 2_400)]
)  # fmt: skip
def test_tiles_are_stored_whole(text, padded):
  assert hlo.arrays_of(text)[0].padded_bytes == padded


def test_the_sum_is_near_the_compilers_own_figure():
  def loss(w, x):
    return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0])

  w, x = jax.ShapeDtypeStruct((6, 64, 64), "float32"), jax.ShapeDtypeStruct((512, 64), "float32")
  program = jax.jit(jax.grad(loss)).lower(w, x).compile()
  total = sum(each.bytes for each in temporaries.at_peak(hlo.Module(program.as_text())))
  assert total == pytest.approx(program.memory_analysis().temp_size_in_bytes, rel=0.15)
