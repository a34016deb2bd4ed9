"""Reading of compiled programs, against XLA's own figures and programs whose figures are known by hand."""

import functools

import jax
import jax.numpy as jnp
import pytest

from tools.aot import hlo, hlo_cost

DEPTH, DIM, BATCH = 6, 64, 32
FORWARD = 2 * BATCH * DIM * DIM


def loss(w, x, *, unroll, remat=False):
  layer = lambda x, w: (jnp.tanh(x @ w), None)
  layer = jax.checkpoint(layer) if remat else layer
  if unroll:
    for i in range(len(w)):
      x, _ = layer(x, w[i])
  else:
    x, _ = jax.lax.scan(layer, x, w)
  return jnp.sum(x)


@functools.cache
def compiled(unroll, remat=False, depth=DEPTH, grad=True):
  w, x = jax.ShapeDtypeStruct((depth, DIM, DIM), "float32"), jax.ShapeDtypeStruct((BATCH, DIM), "float32")
  fn = functools.partial(loss, unroll=unroll, remat=remat)
  return jax.jit(jax.grad(fn, argnums=(0, 1)) if grad else fn).lower(w, x).compile()


def cost(program, devices=1):
  return hlo_cost.cost(hlo.Module(program.as_text()), devices)


def test_a_scanned_and_an_unrolled_model_have_the_same_flops():
  scanned, unrolled = cost(compiled(unroll=False)), cost(compiled(unroll=True))
  assert scanned.flops == unrolled.flops == FORWARD * 3 * DEPTH  # Forward, by the weights, by the inputs.
  assert scanned.unknown_loops == ()
  assert compiled(unroll=False).cost_analysis()["flops"] < FORWARD * 4  # XLA's own: one trip.


def test_a_scanned_model_that_computes_again_has_a_third_more_flops():
  assert cost(compiled(unroll=False, remat=True)).flops == FORWARD * 4 * DEPTH


def test_a_scanned_and_an_unrolled_model_access_the_same_bytes_but_for_what_loops_copy():
  scanned, unrolled = (cost(compiled(unroll=unroll, grad=False)).bytes for unroll in (False, True))
  assert scanned == pytest.approx(unrolled, rel=0.25)


def test_bytes_of_a_scanned_model_grow_with_its_depth():
  once, twice = (cost(compiled(unroll=False, depth=depth)).bytes for depth in (DEPTH, 2 * DEPTH))
  assert twice == pytest.approx(2 * once, rel=0.02)


def test_flops_are_those_of_xla_where_there_is_no_loop():
  program = compiled(unroll=True)
  # XLA's have those of single numbers as well.
  assert cost(program).flops == pytest.approx(program.cost_analysis()["flops"], rel=0.05)


CONVOLUTIONS = [
  # A matrix product over 16 heads of 64, as a TPU writes it: padded so that each place meets one tap.
  ("f32[8,16,64] convolution(%a, %b), window={size=16 pad=15_15 rhs_reversal=1}, dim_labels=bf0_i0o->b0f",
   "f32[8,32,1]", "f32[32,16,64]", 2 * 8 * 16 * 64 * 32),
  # One that has both operands' batches as dilated dimensions of space.
  ("f32[4,16,196,196] convolution(%a, %b), window={size=4x16 stride=3x15 lhs_dilate=4x16}, dim_labels=0b1f_0o1i->01bf",
   "f32[4,196,16,64]", "f32[4,196,16,64]", 2 * 4 * 16 * 196 * 196 * 64),
  # Patches.
  ("f32[2,14,14,32] convolution(%a, %b), window={size=16x16 stride=16x16}, dim_labels=b01f_01io->b01f",
   "f32[2,224,224,3]", "f32[16,16,3,32]", 2 * 2 * 14 * 14 * 32 * 16 * 16 * 3),
]  # fmt: skip


@pytest.mark.parametrize("text, left, right, flops", CONVOLUTIONS)
def test_flops_of_convolutions_leave_padding_out(text, left, right, flops):
  module = hlo.Module(f"""
ENTRY %main (a: f32[], b: f32[]) -> f32[] {{
  %a = {left}{{0}} parameter(0)
  %b = {right}{{0}} parameter(1)
  ROOT %c = {text}
}}
""")
  assert hlo_cost.cost(module, 1).flops == flops


GATHERS = """
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %start = (f32[8]{0}, f32[32]{0}) all-gather-start(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %done = f32[32]{0} all-gather-done(%start)
  ROOT %t = (s32[], f32[8]) tuple(%i, %x)
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(7)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%all-reduce-scatter (x: f32[64]) -> f32[8] {
  %x = f32[64]{0} parameter(0)
  %sum = f32[64]{0} all-reduce(%x), channel_id=2, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %part = f32[8]{0} dynamic-slice(%sum, %zero), dynamic_slice_sizes={8}
}

ENTRY %main (x: f32[8], y: f32[64]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %y = f32[64]{0} parameter(1)
  %zero = s32[] constant(2)
  %init = (s32[], f32[8]) tuple(%zero, %x)
  %loop = (s32[], f32[8]) while(%init), condition=%condition, body=%body
  %whole = f32[64]{0} all-gather(%x), channel_id=3, replica_groups=mesh['a'=2,'b'=4] {'a','b'}, dimensions={0}
  ROOT %part = f32[8]{0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter
}
"""


def test_collectives_are_counted_by_kind_with_the_trips_of_their_loops():
  found = hlo_cost.cost(hlo.Module(GATHERS), 8).collectives
  assert hlo_cost.by_kind(found) == {
    "all-gather": {"count": 5 + 1, "bytes": 5 * 32 * 4 + 64 * 4},  # From 2 to 7, and once.
    "reduce-scatter": {"count": 1, "bytes": 64 * 4},
  }
  assert {c.kind: c.group for c in found if not c.in_loop} == {"all-gather": 8, "reduce-scatter": 8}
  assert hlo_cost.largest(found, "all-gather", in_loop=True).bytes == 128
  assert hlo_cost.largest(found, "all-gather", in_loop=True).group == 4


def test_a_condition_inside_of_a_fusion_is_read():
  wrapped = """
%wrapped (i: s32[]) -> pred[] {
  %i = s32[] parameter(0)
  %n = s32[] constant(9)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}
"""
  text = wrapped + GATHERS.replace("compare(%i, %n), direction=LT", "fusion(%i), kind=kLoop, calls=%wrapped")
  found = hlo_cost.by_kind(hlo_cost.cost(hlo.Module(text), 8).collectives)
  assert found["all-gather"]["count"] == 7 + 1  # From 2 to 9, and once.


def test_a_loop_that_nothing_tells_the_length_of_counts_once_and_is_named():
  cost = hlo_cost.cost(hlo.Module(GATHERS.replace("%zero = s32[] constant(2)", "%zero = s32[] parameter(2)")), 8)
  assert cost.unknown_loops == ("loop",)
  assert hlo_cost.by_kind(cost.collectives)["all-gather"]["count"] == 1 + 1


def test_a_value_on_the_chip_costs_no_memory_bandwidth():
  text = """
ENTRY %main (a: f32[8]) -> f32[8] {{
  %a = f32[8]{{0:T(128){0}}} parameter(0)
  ROOT %b = f32[8]{{0:T(128)}} negate(%a)
}}
"""
  count = lambda space: hlo_cost.cost(hlo.Module(text.format(space)), 1).bytes
  assert (count(""), count("S(1)")) == (64, 32)


def test_types_are_read_with_their_layouts():
  arrays = hlo.arrays_of("(s32[]{:T(128)}, bf16[24,64]{1,0:T(8,128)(2,1)S(1)}, /*index=2*/pred[3])")
  assert [(a.dtype, a.shape, a.space, a.bytes) for a in arrays] == [
    ("s32", (), 0, 4), ("bf16", (24, 64), 1, 3_072), ("pred", (3,), 0, 3),
  ]  # fmt: skip


@pytest.mark.parametrize("stride, trips", [(1, 8), (2, 4), (3, 3)])
def test_a_loop_may_move_its_counter_by_more_than_one(stride, trips):
  def loop(x):
    return jax.lax.while_loop(lambda c: c[0] < 8, lambda c: (c[0] + stride, jnp.tanh(c[1] @ c[1])), (0, x))[1]

  text = jax.jit(loop).lower(jax.ShapeDtypeStruct((DIM, DIM), "float32")).compile().as_text()
  assert hlo_cost.cost(hlo.Module(text), 1).flops == trips * 2 * DIM**3
  # A TPU's program does not state it.
  untold = text.replace("known_trip_count", "")
  assert untold != text
  assert hlo_cost.cost(hlo.Module(untold), 1).flops == trips * 2 * DIM**3
