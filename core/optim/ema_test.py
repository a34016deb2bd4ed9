import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from core import sharding, trees
from core.errors import UserError
from core.optim import ema, optimizer
from core.recipe.ema import Ema
from core.recipe.optimizer import Optimizer
from core.recipe.parse import parse
from core.recipe.sharding import Sharding
from core.testing import compilation

jax.config.update("jax_num_cpu_devices", 8)

quick_compilation = compilation.quick(scope="function", autouse=False)


FORMS = {
  "float32": dict(dtype="float32"),
  "compensated": dict(rounding="compensated"),
  "stochastic": dict(rounding="stochastic"),
  "nearest": dict(rounding="nearest"),
}
SHAPES = {"block": {"kernel": (16, 8), "bias": (7,)}, "head": {"kernel": (8, 24), "scale": ()}}
SIZE = dict(total_steps=20, batch_size=8, data_size=40)


def tree(seed, dtype=np.float32):
  rng = np.random.default_rng(seed)

  def fill(shape):
    return np.asarray(rng.standard_normal(shape), dtype)

  return jax.tree.map(fill, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def run(tx, steps, params=None):
  """The state after `steps` updates, and all parameters on the way, from the start."""
  params = tree(0) if params is None else params
  state, update, all_params = tx.init(params), jax.jit(tx.update), [params]
  for step in range(steps):
    _, state = update(tree(100 + step, jax.tree.leaves(params)[0].dtype), state, params)
    params = jax.tree.map(np.add, params, tree(100 + step, jax.tree.leaves(params)[0].dtype))
    all_params.append(params)
  return state, all_params


def assert_same_bits(got, want):

  def bits(x):
    return np.atleast_1d(np.asarray(x)).view(np.uint8)

  jax.tree.map(lambda a, b: np.testing.assert_array_equal(bits(a), bits(b)), got, want)


# What is averaged.


def test_without_warmup_it_is_the_incremental_update_of_optax():
  state, all_params = run(ema.track(0.9, dtype="float32", warmup=False), 6)
  expected = all_params[0]
  for params in all_params[1:]:
    expected = optax.incremental_update(params, expected, 0.1)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.average, expected)
  assert int(state.count) == 6


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("start_step", [0, 4])
def test_with_warmup_weights_are_the_documented_ones(start_step):
  state, all_params = run(ema.track(0.7, dtype="float32", start_step=start_step), 40)
  expected = np.float64(all_params[0]["block"]["kernel"])
  for step, params in enumerate(all_params[1:], start=1):
    n = step - start_step
    weight = max(1 - 0.7, 9 / (9 + n)) if n > 0 else 1.0
    expected += weight * (params["block"]["kernel"] - expected)
  np.testing.assert_allclose(state.average["block"]["kernel"], expected, rtol=1e-4, atol=1e-5)


def test_before_the_start_the_average_is_the_parameters_to_the_last_bit():
  state, all_params = run(ema.track(0.999, dtype="float32", start_step=5), 5)
  assert_same_bits(state.average, all_params[-1])
  state, all_params = run(ema.track(0.999, dtype="float32", start_step=5), 6)
  assert not np.array_equal(state.average["block"]["kernel"], all_params[-1]["block"]["kernel"])


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("form", FORMS)
def test_parameters_that_rest_are_their_own_average(form):
  params = tree(0, ml_dtypes.bfloat16)  # Numbers that bfloat16 has.
  tx = ema.track(0.99, **FORMS[form])
  state, zeros = tx.init(params), jax.tree.map(np.zeros_like, params)
  for _ in range(20):
    _, state = jax.jit(tx.update)(zeros, state, params)
  assert_same_bits(ema.params_of(state, params), params)


@pytest.mark.usefixtures("quick_compilation")
def test_updates_pass_as_they_are_and_parameters_must_be_there():
  tx = ema.track(0.99)
  updates, _ = jax.jit(tx.update)(tree(1), tx.init(tree(0)), tree(0))
  assert_same_bits(updates, tree(1))
  with pytest.raises(ValueError, match="an average of the parameters needs them"):
    tx.update(tree(1), tx.init(tree(0)))


# Accuracy and memory.


@pytest.fixture(scope="module")
def walked():
  """Averages after 20,000 steps along a drifting random walk by form, and in float64."""
  steps, size, decay = 20_000, 2_000, 0.9999
  rng = np.random.default_rng(0)
  start, drift = (np.float32(0.05 * rng.standard_normal(size)) for _ in range(2))
  noise = np.float32(5e-5 * rng.standard_normal((64, size)))
  transformations = {form: ema.track(decay, **options) for form, options in FORMS.items()}

  @jax.jit
  def walk(start, drift, noise):
    def body(carry, step):
      params, states = carry
      updates = drift / steps + noise[step % 64]
      states = {form: tx.update(updates, states[form], params)[1] for form, tx in transformations.items()}
      return (params + updates, states), None

    carry = start, {form: tx.init(start) for form, tx in transformations.items()}
    (params, states), _ = jax.lax.scan(body, carry, jnp.arange(steps))
    return {form: ema.params_of(state, params) for form, state in states.items()}

  averages = walk(start, drift, noise)
  params, exact = start.copy(), np.float64(start)
  for step in range(steps):
    params = params + (drift / np.float32(steps) + noise[step % 64])
    exact += max(1 - decay, 9 / (10 + step)) * (params - exact)
  return {form: np.float64(average) for form, average in averages.items()} | {"exact": exact}


@pytest.mark.parametrize(
  "form, at_least, at_most",
  [("float32", 0, 5e-5), ("compensated", 1e-4, 6e-4), ("stochastic", 5e-3, 2.5e-2), ("nearest", 0.3, 1.0)],
)
def test_errors_against_float64_are_as_told_and_nearest_fails(walked, form, at_least, at_most):

  def rms(x):
    return np.sqrt(np.mean(np.square(x)))

  error = rms(walked[form] - walked["exact"]) / rms(walked["exact"])
  assert at_least <= error <= at_most
  if form in ("compensated", "stochastic"):  # No bias: errors of many parameters cancel.
    mean = np.mean((walked[form] - walked["exact"]) * np.sign(walked["exact"])) / rms(walked["exact"])
    assert abs(mean) < 4 * error / np.sqrt(walked[form].size)


@pytest.mark.parametrize("form, per_parameter", [("float32", 4), ("compensated", 3), ("stochastic", 2), ("nearest", 2)])
def test_it_takes_the_bytes_that_are_told_and_no_copy(form, per_parameter):
  params = {f"layer{i}": jax.ShapeDtypeStruct((256, 512), jnp.float32) for i in range(8)}
  count = 8 * 256 * 512
  tx = optax.chain(optax.trace(0.9), optax.scale(-0.1), ema.track(0.9999, **FORMS[form]))

  def step(params, opt_state, grads):
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  opt_state = jax.eval_shape(tx.init, params)
  memory = jax.jit(step, donate_argnums=(0, 1)).lower(params, opt_state, params).compile().memory_analysis()
  # Parameters, momentum and gradients have 4 bytes each.
  assert memory.argument_size_in_bytes == pytest.approx((12 + per_parameter) * count, rel=0.01)
  assert memory.alias_size_in_bytes == pytest.approx((8 + per_parameter) * count, rel=0.01)
  # On a CPU, XLA has no loop with two results: the sums that become average and remainder are written first.
  assert memory.temp_size_in_bytes < (4 if form == "compensated" else 0.01) * count


# In the optimizer.


def made(params=None, **config):
  seed = config.pop("seed", 0)
  recipe = parse(Optimizer, {"optax_name": "scale_by_adam", "lr": 0.1, **config})
  return optimizer.make(recipe, tree(0) if params is None else params, sched_kw=SIZE, seed=seed)[0]


def trained(tx, steps, params, state=None, start=0):
  step = jax.jit(lambda params, state, grads: _step(tx, params, state, grads))
  state = jax.jit(tx.init)(params) if state is None else state
  for i in range(start, steps):
    params, state = step(params, state, tree(100 + i))
  return params, state


def _step(tx, params, state, grads):
  updates, state = tx.update(grads, state, params)
  return optax.apply_updates(params, updates), state


@pytest.mark.usefixtures("quick_compilation")
def test_the_average_follows_training_and_does_not_change_it():
  params, state = trained(made(ema=dict(decay=0.5, dtype="float32", warmup=False)), 3, tree(0))
  plain, plain_state = trained(made(), 3, tree(0))
  assert_same_bits(params, plain)
  assert ema.state_of(plain_state) is None
  expected = tree(0)
  for steps in (1, 2, 3):
    expected = optax.incremental_update(trained(made(), steps, tree(0))[0], expected, 0.5)
  average = ema.params_of(state, params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), average, expected)


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("form", FORMS)
def test_frozen_parameters_have_no_average_and_are_their_own(form):
  frozen = [("block/.*", None), (".*", {})]
  params, state = trained(made(ema=dict(decay=0.9, **FORMS[form]), schedule=frozen), 3, tree(0))
  names = [name for name, _ in trees.flatten_with_names(ema.state_of(state))]
  assert not [name for name in names if "block" in name]
  assert "average/head/kernel" in names
  average = ema.params_of(state, params)
  assert_same_bits(average["block"], tree(0)["block"])
  assert np.all(np.asarray(average["head"]["kernel"]) != params["head"]["kernel"])


def test_an_average_of_bfloat16_parameters_is_given_in_bfloat16():
  params = tree(0, ml_dtypes.bfloat16)
  state, _ = run(ema.track(0.9), 3, params)
  assert {leaf.dtype for leaf in jax.tree.leaves(ema.params_of(state, params))} == {jnp.dtype("bfloat16")}


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("form", FORMS)
def test_a_restored_state_goes_on_bit_for_bit(form):
  config = dict(ema=dict(decay=0.99, start_steps=2, **FORMS[form]))
  whole = trained(made(**config), 8, tree(0))
  stopped = jax.tree.map(np.array, trained(made(**config), 5, tree(0)))  # On the host, as a checkpoint is.
  assert_same_bits(trained(made(**config), 8, *stopped, start=5), whole)


@pytest.mark.usefixtures("quick_compilation")
def test_the_start_may_be_given_in_any_unit_and_the_seed_turns_the_rounding():
  epochs = trained(made(ema=dict(decay=0.9, dtype="float32", start_epochs=1)), 5, tree(0))  # Five steps.
  assert_same_bits(ema.params_of(epochs[1], epochs[0]), epochs[0])
  rounded = [trained(made(ema=dict(decay=0.9, rounding="stochastic"), seed=seed), 5, tree(0))[1] for seed in (0, 0, 1)]
  averages = [ema.state_of(state).average["head"]["kernel"] for state in rounded]
  assert np.array_equal(averages[0], averages[1])
  assert not np.array_equal(averages[0], averages[2])


def test_no_average_is_one_line():
  with pytest.raises(UserError, match=r"keeps no average of the parameters; set config\.ema="):
    ema.params_of(optax.adam(0.1).init(tree(0)), tree(0))


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(), "config.ema.decay is missing; it is the part of the average that a step keeps, in .0, 1., 0.9999 say"),
    (dict(decay=1.0), "config.ema.decay must be a number in .0, 1., got 1.0"),
    (dict(decay=None), "config.ema.decay must be a number in .0, 1., got None"),
    (dict(decay=0.9, dtype="float16"), "config.ema.dtype must be one of 'float32', 'bfloat16', got 'float16'"),
    (
      dict(decay=0.9, rounding="kahan"),
      "config.ema.rounding must be one of 'stochastic', 'compensated', 'nearest', got",
    ),
    (dict(decay=0.9, dtype="float32", rounding="stochastic"), "config.ema.rounding 'stochastic' is for dtype='bfloat"),
    (dict(decay=0.9, warmup=100), "config.ema.warmup must be True or False, got 100"),
    (dict(decay=0.9, warm_up=True), "config.ema.warm_up is no key of the average ema .did you mean 'warmup'"),
    (dict(decay=0.9, start_steps=-1), "config.ema.start_steps must be a number that is not negative, got -1"),
    (dict(decay=0.9, start_steps=1, start_epochs=1), "config.ema: start_steps and start_epochs are both set"),
    (dict(decay=0.9, sharding=3), "config.ema.sharding must be text that is not empty, got 3"),
  ],
)
def test_a_mistake_is_refused_in_one_line(options, words):
  with pytest.raises(UserError, match=words) as error:
    made(ema=options)
  assert "\n" not in str(error.value)


# Sharding.


def _sharded(form, strategy=(), axis="data"):
  """The optimizer, parameters and state on a mesh of eight devices, and their shardings."""
  mesh = sharding.make_mesh()
  options = dict(decay=0.99, sharding=axis, **FORMS[form])
  strategy = parse(Sharding, dict(sharding_strategy=strategy)).sharding_strategy
  shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree(0)))
  of_params = sharding.params_shardings(shapes, mesh, strategy)
  shapes = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, of_params)
  tx = made(shapes, ema=options)
  state = jax.eval_shape(tx.init, shapes)
  of_state = ema.shardings(parse(Ema, options), sharding.follow_params(state, shapes, of_params), state)
  params = jax.device_put(tree(0), of_params)
  return tx, params, jax.jit(tx.init, out_shardings=of_state)(params), (of_params, of_state)


def test_the_average_is_split_where_parameters_are_whole():
  _, _, _, (_, of_state) = _sharded("compensated")
  specs = {name: where.spec for name, where in trees.flatten_with_names(of_state)}
  for kind in ("average", "remainder"):
    assert specs[f"2/inner_state/{kind}/block/kernel"] == PartitionSpec("data", None)
    assert specs[f"2/inner_state/{kind}/head/kernel"] == PartitionSpec(None, "data")
    assert specs[f"2/inner_state/{kind}/block/bias"] == PartitionSpec()  # 7 does not divide by 8.
  others = {spec for name, spec in specs.items() if "average" not in name and "remainder" not in name}
  assert others == {PartitionSpec()}


def test_an_average_already_split_stays_and_another_axis_is_added():
  mesh = sharding.make_mesh([("data", 4), ("model", 2)])
  shapes = {"a": jax.ShapeDtypeStruct((8, 16), jnp.float32), "b": jax.ShapeDtypeStruct((8, 16), jnp.float32)}
  of_params = sharding.params_shardings(shapes, mesh, [("a", (None, "model")), ("b", ("data", None))])
  state = jax.eval_shape(ema.track(0.9, dtype="float32").init, shapes)
  split = ema.shardings(Ema(decay=0.9, sharding="data"), sharding.follow_params(state, shapes, of_params), state)
  assert split.average["a"].spec == PartitionSpec("data", "model")
  assert split.average["b"].spec == PartitionSpec("data", None)
  assert ema.shardings(None, split, state) is ema.shardings(Ema(decay=0.9), split, state) is split
  with pytest.raises(UserError, match=r"config\.ema\.sharding: the mesh has no axis 'dta' .did you mean 'data'"):
    ema.shardings(Ema(decay=0.9, sharding="dta"), split, state)


@pytest.mark.parametrize("form", ["float32", "compensated", "stochastic"])
def test_a_split_average_costs_no_communication_in_a_step_and_one_gathering_in_an_evaluation(form):
  tx, params, state, (of_params, of_state) = _sharded(form)

  def step(*arguments):
    return _step(tx, *arguments)

  compiled = jax.jit(step, donate_argnums=(0, 1), out_shardings=(of_params, of_state)).lower(params, state, params)
  communication = re.compile(r"\b(all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all)(-start)?\(")
  assert not communication.findall(compiled.compile().as_text())
  evaluated = jax.jit(ema.params_of, out_shardings=of_params).lower(state, params).compile().as_text()
  assert {match[0] for match in communication.findall(evaluated)} == {"all-gather"}


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("form", ["float32", "compensated", "stochastic"])
def test_the_average_has_the_same_bits_under_any_sharding(form):
  expected = trained(made(ema=dict(decay=0.99, **FORMS[form])), 4, tree(0))
  for strategy in ((), [(".*", "fsdp(axis='data', min_size_to_shard_mb=0)")]):
    tx, params, state, shardings = _sharded(form, strategy)
    step = jax.jit(lambda *arguments, tx=tx: _step(tx, *arguments), donate_argnums=(0, 1), out_shardings=shardings)
    for i in range(4):
      params, state = step(params, state, jax.device_put(tree(100 + i), shardings[0]))
    assert_same_bits(jax.device_get(ema.state_of(state)), jax.device_get(ema.state_of(expected[1])))
