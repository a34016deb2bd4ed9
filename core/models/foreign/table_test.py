import numpy as np
import pytest

from core.errors import UserError
from core.models.foreign import table
from core.models.foreign.table import CONV, DENSE, FLAT, FROM_HEADS, TO_HEADS, Rule

QKV = ("query", "key", "value")
TABLE = [
  Rule("stem/kernel", "stem.weight", CONV),
  Rule(tuple(f"block_{{i}}/{name}/kernel" for name in QKV), "blocks.{i}.qkv.weight", table.fused(TO_HEADS, 3)),
  Rule(tuple(f"block_{{i}}/{name}/bias" for name in QKV), "blocks.{i}.qkv.bias", table.fused(FLAT, 3)),
  Rule("block_{i}/out/kernel", "blocks.{i}.out.weight", FROM_HEADS),
  Rule("unit{b+1}/layer{u+1:02}/scale", "stages.{b}.{u}.weight"),
  Rule("unit{b+1}/layer{u+1:02}/bias", "stages.{b}.{u}.bias", optional=True),
  Rule("head/kernel", "head.weight", DENSE, optional=True),
  Rule((), "mask_token", table.constant(np.zeros((1, 4)))),
]


@pytest.fixture
def state_dict():
  rng = np.random.default_rng(0)
  shapes = {
    "stem.weight": (4, 3, 2, 2),
    **{f"blocks.{i}.qkv.weight": (12, 4) for i in (0, 10)},
    **{f"blocks.{i}.qkv.bias": (12,) for i in (0, 10)},
    **{f"blocks.{i}.out.weight": (4, 4) for i in (0, 10)},
    "stages.0.9.weight": (5,),
    "stages.1.0.weight": (5,),
    "stages.1.0.bias": (5,),
    "head.weight": (7, 4),
  }
  return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} | {
    "mask_token": np.zeros((1, 4))
  }


def test_arrays_come_under_our_names_in_our_layouts(state_dict):
  published = table.to_published(TABLE, state_dict, source="x")
  assert {"unit1/layer10/scale", "unit2/layer01/scale", "unit2/layer01/bias", "block_10/key/bias"} <= set(published)
  assert "unit1/layer10/bias" not in published
  x = np.random.default_rng(1).normal(size=(5, 4))
  # A PyTorch linear layer is x @ weight.T.
  keys = x @ state_dict["blocks.10.qkv.weight"].T[:, 4:8] + state_dict["blocks.10.qkv.bias"][4:8]
  np.testing.assert_allclose(x @ published["block_10/key/kernel"] + published["block_10/key/bias"], keys)
  np.testing.assert_array_equal(published["stem/kernel"][1, 0, 2, 3], state_dict["stem.weight"][3, 2, 1, 0])


def test_the_way_out_gives_back_what_came_in(state_dict):
  published = table.to_published(TABLE, state_dict, source="x")
  # Our models have an axis of heads.
  for name, array in published.items():
    if name.split("/")[-2] in QKV:
      published[name] = array.reshape(*array.shape[:-1], 2, 2)
    if "/out/" in name:
      published[name] = array.reshape(2, 2, 4)
  back = table.to_foreign(TABLE, published, source="x")
  assert set(back) == set(state_dict)
  for name, array in back.items():
    np.testing.assert_array_equal(array, state_dict[name])
    assert array.flags.c_contiguous


def test_what_is_missing_or_surplus_is_named_in_one_line(state_dict):
  del state_dict["blocks.10.out.weight"], state_dict["stem.weight"]
  state_dict |= {f"decoder.{i}": np.zeros(1) for i in range(5)}
  with pytest.raises(UserError) as e:
    table.to_published(TABLE, state_dict, source="x.pth")
  assert str(e.value) == (
    "x.pth: not the parameters of this kind of model: it lacks blocks.10.out.weight, stem.weight; "
    "it has besides decoder.0, decoder.1, decoder.2 and 2 more"
  )


def test_a_rule_of_several_names_needs_them_all(state_dict):
  published = table.to_published(TABLE, state_dict, source="x")
  del published["block_0/key/bias"]
  with pytest.raises(UserError, match=r"it lacks block_0/key/bias$"):
    table.to_foreign(TABLE, published, source="x")


def test_a_layer_scale_is_folded_into_the_layer_before_it():
  rng = np.random.default_rng(0)
  weight, bias, scale, x = (rng.normal(size=size).astype(np.float32) for size in ((3, 4), 3, 3, (5, 4)))
  rules = [Rule(("kernel", "bias"), ("weight", "bias", "gamma"), table.scaled(DENSE))]
  ours = table.to_published(rules, {"weight": weight, "bias": bias, "gamma": scale}, source="x")
  np.testing.assert_allclose(x @ ours["kernel"] + ours["bias"], (x @ weight.T + bias) * scale, rtol=1e-5)
  theirs = table.to_foreign(rules, ours, source="x")
  np.testing.assert_array_equal(theirs["gamma"], 1)
  np.testing.assert_allclose(x @ theirs["weight"].T + theirs["bias"], (x @ weight.T + bias) * scale, rtol=1e-5)


def test_a_state_dict_is_read_by_the_first_format_that_knows_it(state_dict):
  never, ours, other = (
    table.Format(recognizes, None, None, None)
    for recognizes in (lambda _: False, lambda names: "stem.weight" in names, lambda _: True)
  )
  assert table.recognize({"a": never, "b": ours, "c": other}, state_dict, source="x") is ours
  with pytest.raises(UserError, match=r"^x: not weights that are known here \(known: a's\); it holds blocks.0.out"):
    table.recognize({"a": never}, state_dict, source="x")


def test_what_is_dropped_is_read_past(state_dict):
  state_dict["head.0.weight"] = state_dict["projector"] = np.zeros(1)
  rules = table.dropped(state_dict, r"head\.\d.*|projector")
  assert "head/kernel" in table.to_published([*TABLE, *rules], state_dict, source="x")
