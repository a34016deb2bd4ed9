import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec

from core import sharding, trees
from core.errors import UserError
from core.recipe.parse import parse
from core.recipe.sharding import Fsdp, Sharding

jax.config.update("jax_num_cpu_devices", 8)

PARAMS = {
  "block": {
    "kernel": jax.ShapeDtypeStruct((2, 512, 2048), jnp.float32),
    "bias": jax.ShapeDtypeStruct((7,), jnp.float32),
  },
  "head": {"kernel": jax.ShapeDtypeStruct((512, 1_000), jnp.float32)},
}


def read(strategy):
  return parse(Sharding, dict(sharding_strategy=strategy)).sharding_strategy


def specs(strategy, mesh):
  found = sharding.params_shardings(PARAMS, mesh, read(strategy))
  return {n: s.spec for n, s in trees.flatten_with_names(found)}


def test_a_mesh_takes_what_is_left():
  assert dict(sharding.make_mesh([("data", -1), ("model", 2)]).shape) == {"data": 4, "model": 2}


@pytest.mark.parametrize(
  "axes", [[("data", 3)], [("data", 16)], [("data", -1), ("model", -1)], [("data", -1), ("model", 3)]]
)
def test_a_mesh_that_does_not_fit_is_refused(axes):
  with pytest.raises(UserError, match=r"config\.mesh"):
    sharding.make_mesh(axes)


def test_fsdp_splits_the_largest_dimension_and_leaves_small_arrays_whole():
  found = specs([(".*", "fsdp(axis='data')")], sharding.make_mesh())
  assert found["block/kernel"] == PartitionSpec(None, None, "data")
  assert found["block/bias"] == PartitionSpec()
  assert found["head/kernel"] == PartitionSpec()  # 2 MB, below the default of 4.
  small_too = specs([(".*", "fsdp(min_size_to_shard_mb=0)")], sharding.make_mesh())
  assert small_too["head/kernel"] == PartitionSpec(None, "data")
  assert small_too["block/bias"] == PartitionSpec()  # 7 does not divide by 8.


def test_the_first_rule_that_matches_decides_and_dimensions_count_from_the_last():
  mesh = sharding.make_mesh([("data", 4), ("model", 2)])
  found = specs([("block/kernel", (None, "model")), ("head/.*", "replicate"), (".*", "fsdp(axis='data')")], mesh)
  assert found["block/kernel"] == PartitionSpec(None, None, "model")
  assert found["head/kernel"] == PartitionSpec()


@pytest.mark.parametrize(
  "how, words",
  [
    ("fsdp(axis='model')", r"config\.sharding_strategy\[0\]\[1\]: the mesh has no axis 'model'"),
    ("fsdp(axis=('data', 'model'))", r"config\.sharding_strategy\[0\]\[1\]: the mesh has no axis 'model'"),
    ("fsdp(tensor=-1)", r"config\.sharding_strategy\[0\]\[1\]: the mesh has no axis 'tensor'"),
    ((None, "dta"), r"config\.sharding_strategy\[0\]\[1\]: the mesh has no axis 'dta' \(did you mean 'data'"),
    (("data", None), r"config\.sharding_strategy: a \(7, 7\): 7 is not divisible by data=8"),
    ((None, None, None, "data"), r"config\.sharding_strategy: .* names 4 dimensions, a has shape \(7, 7\)"),
  ],
)
def test_a_rule_that_cannot_hold_is_refused(how, words):
  params = {"a": jax.ShapeDtypeStruct((7, 7), jnp.float32)}
  with pytest.raises(UserError, match=words):
    sharding.params_shardings(params, sharding.make_mesh(), read([("a", how)]))


def test_a_last_rule_that_is_left_with_no_parameter_must_be_right_all_the_same():
  rules = [("block/.*|head/.*", "replicate"), (".*", "fsdp(axis='dta')")]
  with pytest.raises(UserError, match=r"config\.sharding_strategy\[1\]\[1\]: the mesh has no axis 'dta'"):
    specs(rules, sharding.make_mesh())


@pytest.mark.parametrize(
  "patterns, words",
  [
    (["hed/.*", ".*"], "'hed/.*' matches no parameter by its whole name .nearest: head/kernel"),
    (["block", ".*"], "'block' matches no parameter"),
    ([".*", "head/.*"], "'head/.*' comes after '.*', which takes all it would match; put it first"),
  ],
)
def test_a_rule_without_effect_is_refused_but_a_last_one_for_the_rest(patterns, words):
  with pytest.raises(UserError, match=rf"config\.sharding_strategy: {words}"):
    specs([(pattern, "replicate") for pattern in patterns], sharding.make_mesh())
  assert specs([("block/.*|head/.*", "replicate"), (".*", "fsdp")], sharding.make_mesh())


def test_rules_that_come_with_the_mesh_may_match_nothing():
  mesh = sharding.make_mesh([("fsdp", 4), ("tensor", 2)])  # There are no heads and hidden layers.
  assert specs((), mesh)["block/kernel"] == PartitionSpec(None, None, "fsdp")


def test_the_tensor_axis_is_not_taken_twice():
  params = {"a": jax.ShapeDtypeStruct((1024, 2048), jnp.float32)}
  mesh = sharding.make_mesh([("tensor", 2), ("data", 4)])
  found = sharding.params_shardings(params, mesh, [(".*", Fsdp(tensor=-1))])
  assert found["a"].spec == PartitionSpec("data", "tensor")


def test_optimizer_state_follows_its_parameter():
  mesh = sharding.make_mesh()
  of_params = sharding.params_shardings(PARAMS, mesh, [(".*", Fsdp(axis="data"))])
  state = jax.eval_shape(optax.adam(1e-3).init, PARAMS)
  found = {n: s.spec for n, s in trees.flatten_with_names(sharding.follow_params(state, PARAMS, of_params))}
  assert found["0/mu/block/kernel"] == found["0/nu/block/kernel"] == PartitionSpec(None, None, "data")
  assert found["0/count"] == found["0/mu/head/kernel"] == PartitionSpec()


@pytest.mark.parametrize("batch, right", [(12, "8 or 16"), (3, "8"), (0, "8")])
def test_a_batch_that_does_not_divide_is_refused_with_sizes_that_do(batch, right):
  where = sharding.batch_sharding(sharding.make_mesh())
  with pytest.raises(UserError, match=f"; {right} can"):
    sharding.check_batch_size(batch, where, "config.input.batch_size")


def test_a_batch_may_be_split_over_two_axes():
  mesh = sharding.make_mesh([("replica", 2), ("fsdp", 4)])
  where = sharding.batch_sharding(mesh, [("act_batch", ("replica", "fsdp"))])
  assert where.shard_shape((16, 3)) == (2, 3)


def test_a_factored_moment_is_split_as_the_dimensions_that_it_keeps():
  mesh = sharding.make_mesh([("fsdp", 8)])
  params = {"encoderblock": {"kernel": jax.ShapeDtypeStruct((2, 512, 2048), jnp.float32)}}
  of_params = sharding.params_shardings(params, mesh)
  state = jax.eval_shape(optax.scale_by_factored_rms().init, params)
  found = {n: s.spec for n, s in trees.flatten_with_names(sharding.follow_params(state, params, of_params))}
  # The factors lack one of the two largest dimensions each: 2048, which is split, and 512.
  assert found["v_row/encoderblock/kernel"] == PartitionSpec(None, None)
  assert found["v_col/encoderblock/kernel"] == PartitionSpec(None, "fsdp")
  assert found["v/encoderblock/kernel"] == PartitionSpec()


def test_several_axes_take_what_divides_and_a_stack_of_blocks_is_not_cut():
  mesh = sharding.make_mesh([("fsdp", 4), ("tensor", 2)])
  params = {
    "encoderblock": {"kernel": jax.ShapeDtypeStruct((1152, 9, 258), jnp.float32)},
    "odd": jax.ShapeDtypeStruct((999, 1154), jnp.float32),
  }
  strategy = [(".*", "fsdp(axis=('fsdp', 'tensor'), min_size_to_shard_mb=0)")]
  found = {n: s.spec for n, s in trees.flatten_with_names(sharding.params_shardings(params, mesh, read(strategy)))}
  assert found["encoderblock/kernel"] == PartitionSpec(None, None, "tensor")  # 258 = 2 x 129; 1,152 blocks stay whole.
  assert found["odd"] == PartitionSpec(None, "tensor")


def test_heads_and_hidden_layers_go_over_the_tensor_axis_and_the_rest_over_fsdp():
  mesh = sharding.make_mesh([("fsdp", 4), ("tensor", 2)])
  shapes = {"query": (1024, 16, 64), "out": (16, 64, 1024), "Dense_0": (1024, 4096), "Dense_1": (4096, 1024)}
  params = {
    "MultiHeadDotProductAttention_0": {
      n: {"kernel": jax.ShapeDtypeStruct(shapes[n], "float32")} for n in ("query", "out")
    },
    "MlpBlock_0": {n: {"kernel": jax.ShapeDtypeStruct(shapes[n], "float32")} for n in ("Dense_0", "Dense_1")},
  }
  params = {"encoderblock_0": params}
  found = {n.split("/")[2]: s.spec for n, s in trees.flatten_with_names(sharding.params_shardings(params, mesh))}
  assert found["query"] == PartitionSpec("fsdp", "tensor", None)
  assert found["out"] == PartitionSpec("tensor", None, "fsdp")
  assert found["Dense_0"] == PartitionSpec("fsdp", "tensor")
  assert found["Dense_1"] == PartitionSpec("tensor", "fsdp")


@pytest.mark.parametrize(
  "gib, batch, devices, slices, axes",
  [
    (0.1, 512, 1, 1, {"fsdp": 1}),
    (0.1, 512, 8, 1, {"replica": 8, "fsdp": 1}),  # Small enough to be whole everywhere.
    (6, 32_768, 2_048, 1, {"replica": 128, "fsdp": 16}),
    (6, 32_768, 2_048, 4, {"slice": 4, "replica": 32, "fsdp": 16}),
    (6, 1_024, 2_048, 1, {"replica": 64, "fsdp": 16, "tensor": 2}),  # More devices than examples.
    (600, 256, 256, 1, {"replica": 2, "fsdp": 128}),  # 1,152 = 128 x 9: more could not be split over.
  ],
)
def test_auto_takes_the_smallest_fsdp_that_holds_half_a_gib_a_device(gib, batch, devices, slices, axes):
  params = {"kernel": jax.ShapeDtypeStruct((27, 1_152, 1_153), jnp.float32)}
  assert dict(sharding.auto_axes(params, int(gib * 2**30), batch, devices, slices)) == axes


def test_activations_are_constrained_only_while_they_are_held():
  x = jnp.zeros((16, 6, 8))

  def fn(x):
    return sharding.constrain(x, "act_batch", None, "act_mlp")

  assert "sharding_constraint" not in str(jax.make_jaxpr(fn)(x))
  mesh = sharding.make_mesh([("replica", 2), ("fsdp", 2), ("tensor", 2)])
  with sharding.activations(mesh):
    assert jax.jit(lambda x: fn(x))(x).sharding.spec == PartitionSpec(("replica", "fsdp"), None, "tensor")
    assert jax.jit(lambda x: fn(x))(x[:3]).sharding.spec[:1] in ((), (None,))  # 3 examples cannot be split over 4.
  assert sharding.held_batch() is None


@pytest.mark.parametrize(
  "rules, words",
  [
    ([("act_len", "dta")], r"config\.sharding_rules\[0\]\[1\]: the mesh has no axis 'dta' \(did you mean 'data'"),
    ([("act_batch", ("data", "model"))], r"config\.sharding_rules\[0\]\[1\]: the mesh has no axis 'model'"),
    ([("act_len", "data")], "'data' would split both act_batch and act_len of an array; give it to one of them"),
    ([("act_classes", "data"), ("act_mlp", None)], "'data' would split both act_batch and act_classes"),
  ],
)
def test_a_rule_of_activations_that_cannot_hold_is_refused(rules, words):
  with pytest.raises(UserError, match=words):
    sharding.batch_sharding(sharding.make_mesh(), rules)


def test_an_axis_may_split_two_kinds_that_stand_in_no_array_together():
  rules = [("act_heads", "tensor"), ("act_mlp", ("tensor",)), ("act_emb", "tensor"), ("act_len", None)]
  mesh = sharding.make_mesh([("data", 4), ("tensor", 2)])
  assert sharding.batch_sharding(mesh, rules).spec == PartitionSpec(("data",))
  with pytest.raises(UserError, match="'tensor' would split both act_len and act_emb"):
    sharding.batch_sharding(mesh, [*rules[:3], ("act_len", "tensor")])


def test_what_splits_the_batch_splits_by_default_nothing_else():
  x = jnp.zeros((8, 8, 8, 8))
  for axes, rules in [([("tensor", 8)], ()), ([("fsdp", 4), ("tensor", 2)], [("act_batch", ("fsdp", "tensor"))])]:
    mesh = sharding.make_mesh(axes)
    with sharding.activations(mesh, rules):
      found = jax.jit(lambda x: sharding.constrain(x, "act_batch", "act_len", "act_heads"))(x).sharding
    assert found.shard_shape(x.shape) == (1, 8, 8, 8)


def test_the_kinds_of_dimensions_are_those_of_the_recipe():
  with pytest.raises(UserError) as error:
    parse(Sharding, dict(sharding_rules=[("act_btach", "data")]))
  assert str(error.value).startswith(
    f"config.sharding_rules[0][0] must be one of {', '.join(map(repr, sharding.ACTIVATIONS))}, got 'act_btach'"
  )


def test_auto_is_to_a_program_that_does_not_train_one_axis():
  assert dict(sharding.make_mesh("auto").shape) == {"fsdp": 8}
