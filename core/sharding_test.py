import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec

from core import sharding, trees
from core.errors import UserError

jax.config.update("jax_num_cpu_devices", 8)

PARAMS = {
  "block": {
    "kernel": jax.ShapeDtypeStruct((2, 512, 2048), jnp.float32),
    "bias": jax.ShapeDtypeStruct((7,), jnp.float32),
  },
  "head": {"kernel": jax.ShapeDtypeStruct((512, 1_000), jnp.float32)},
}


def specs(strategy, mesh):
  return {n: s.spec for n, s in trees.flatten_with_names(sharding.params_shardings(PARAMS, mesh, strategy))}


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
    ("fsdpp(axis='data')", "did you mean 'fsdp'"),
    ("fsdp(axsi='data')", "did you mean 'axis'"),
    ("fsdp(axis='model')", "no axis 'model'"),
    ("fsdp('data'", "cannot read"),
    ((None, "dta"), "did you mean 'data'"),
    (("data", None), "not divisible"),
    ((None, None, None, "data"), "names 4 dimensions"),
  ],
)
def test_a_rule_that_cannot_hold_is_refused(how, words):
  with pytest.raises(UserError, match=words):
    sharding.params_shardings({"a": jax.ShapeDtypeStruct((7, 7), jnp.float32)}, sharding.make_mesh(), [("a", how)])


def test_optimizer_state_follows_its_parameter():
  mesh = sharding.make_mesh()
  of_params = sharding.params_shardings(PARAMS, mesh, [(".*", "fsdp(axis='data')")])
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
