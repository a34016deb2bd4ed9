"""What `optax_name` and `optax` may be: dataclasses that agree with optax, and all else that optax has."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import optax
import pytest

from core.errors import UserError
from core.optim import transformations
from core.recipe.optimizer import Optimizer
from core.recipe.parse import parse
from core.recipe.transformations import PREFIX, TRANSFORMATIONS

SHAPES = {"kernel": jax.ShapeDtypeStruct((3, 4), jnp.float32)}
NEEDED = {
  "trace": dict(decay=0.9),
  "ema": dict(decay=0.9),
  "scale": dict(step_size=-1),
  "adaptive_grad_clip": dict(clipping=0.1),
  "clip": dict(max_delta=1),
  "clip_by_block_rms": dict(threshold=1),
  "clip_by_global_norm": dict(max_norm=1),
  "add_noise": dict(eta=0.1, gamma=0.5, key=3),
}
# What needs a function, a mask or another transformation.
NOT_IN_A_CONFIG = {"stateless", "stateless_with_tree_map", "lookahead", "scale_by_schedule", "apply_if_finite"}
NOT_IN_A_CONFIG |= {"freeze", "selective_transform", "snapshot"}


def read(name, arguments=None):
  return parse(Optimizer, dict(optax_name=name, lr=1, optax=arguments or {}))


def make(name, arguments=None):
  return transformations.from_recipe(read(name, arguments), {})


@pytest.mark.parametrize("name", [name for name in TRANSFORMATIONS if not name.startswith(PREFIX)])
def test_a_dataclass_has_the_arguments_and_defaults_of_its_function(name):
  parameters = inspect.signature(transformations.known()[name]).parameters
  fields = {field.name: field.default for field in dataclasses.fields(TRANSFORMATIONS[name])}
  assert fields.keys() == parameters.keys() - {"decay_rate_fn"}
  for key, default in fields.items():
    wanted = parameters[key].default
    if key in ("dtype", "dtype_momentum"):
      assert jnp.dtype(default) == jnp.dtype(wanted)
    elif default is dataclasses.MISSING:
      assert wanted is inspect.Parameter.empty
    else:
      assert default == wanted


@pytest.mark.parametrize("name", sorted(transformations.known()))
def test_every_transformation_of_optax_works_or_is_refused_in_one_line(name):
  if name in NOT_IN_A_CONFIG:
    with pytest.raises(UserError, match=f"^config.optax_name: '{name}' needs the argument .* a config cannot give"):
      make(name)
    return
  tx = make(name, NEEDED.get(name))
  assert jax.eval_shape(lambda p: tx.update(p, tx.init(p), p)[0], SHAPES) == SHAPES


@pytest.mark.parametrize("name", [name for name in dir(optax) if name.startswith("scale_by_")])
def test_line_searches_and_learning_rates_are_no_transformations(name):
  refused = {"scale_by_learning_rate", "scale_by_rprop", "scale_by_backtracking_linesearch", "scale_by_polyak"}
  assert (name in transformations.known()) == (name not in refused | {"scale_by_zoom_linesearch"})


def test_arguments_arrive():
  state = jax.eval_shape(make("scale_by_adam", dict(mu_dtype="bfloat16")).init, SHAPES)
  assert state.mu["kernel"].dtype == jnp.bfloat16
  state = jax.eval_shape(make("scale_by_amsgrad", dict(mu_dtype="bfloat16")).init, SHAPES)
  assert state.mu["kernel"].dtype == jnp.bfloat16
  state = jax.eval_shape(make("big_vision.momentum_hp", dict(dtype="float32")).init, SHAPES)
  assert state.trace["kernel"].dtype == jnp.float32


# Those with a dataclass, and those that are read off their signature.
KEYS = [
  *(("scale_by_adam", key) for key in ("b1", "b2", "eps", "eps_root", "mu_dtype", "nesterov")),
  *(("scale_by_radam", key) for key in ("b1", "b2", "eps", "eps_root", "threshold", "nesterov")),
  *(("scale_by_yogi", key) for key in ("b1", "eps", "initial_accumulator_value")),
  *(("scale_by_lion", key) for key in ("b1", "mode", "smooth_beta")),
  *(("scale_by_factored_rms", key) for key in ("factored", "decay_rate", "min_dim_size_to_factor", "step_offset")),
  *(("big_vision.scale_by_adafactor", key) for key in ("beta2_cap", "momentum", "dtype_momentum", "decay_offset")),
  *(("scale_by_distance_over_gradients", key) for key in ("reps_rel", "param_dtype", "global_scale")),
  *(("trace", key) for key in ("decay", "accumulator_dtype")),
  *(("apply_every", "k"), ("scale_by_lbfgs", "memory_size"), ("scale", "step_size"), ("add_noise", "key")),
]
WRONG = [float("nan"), float("inf"), "", "text", [], {}, [[1]], {"a": {}}, object(), 1.5j, b"", -1e-9, 1e39]


@pytest.mark.parametrize("name, key", KEYS)
@pytest.mark.parametrize("value", WRONG, ids=str)
def test_a_wrong_argument_is_refused_by_its_path(name, key, value):
  if (key, value) == ("step_size", -1e-9):
    return  # A negative factor turns the updates round.
  with pytest.raises(UserError) as error:
    make(name, NEEDED.get(name, {}) | {key: value})
  assert str(error.value).startswith(f"config.optax.{key} must be ")
  assert len(str(error.value)) <= 300


@pytest.mark.parametrize(
  "name, arguments, line",
  [
    ("scale_by_adm", {}, "config.optax_name: there is no 'scale_by_adm' (did you mean 'scale_by_adam'?)"),
    ("big_vision.scale_by_adafacto", {}, "config.optax_name: there is no 'big_vision.scale_by_adafacto' (did you mean"),
    ("big_vision.sgd", {}, "config.optax_name: there is no 'big_vision.sgd' "),
    ("x" * 1_000, {}, "config.optax_name: there is no 'xxxx"),
    (
      "adamw",
      {},
      "config.optax_name: 'adamw' brings a learning rate of its own; name what it wraps, like 'scale_by_adam",
    ),
    ("__doc__", {}, "config.optax_name: there is no '__doc__'"),
    (None, {}, "config.optax_name must be text that is not empty, got None"),
    (3, {}, "config.optax_name must be text that is not empty, got 3"),
    ("", {}, "config.optax_name must be text that is not empty, got ''"),
    ("scale_by_adam", dict(beta1=0.9), "config.optax.beta1 is no key of the transformation scale_by_adam (known: "),
    ("scale_by_radam", dict(beta1=0.9), "config.optax.beta1 is no key of the transformation scale_by_radam (known: "),
    ("scale_by_adam", dict(b1="0.9"), "config.optax.b1 must be a number in [0, 1), got '0.9'"),
    ("scale_by_radam", dict(b1=1.5), "config.optax.b1 must be a number in [0, 1), got 1.5"),
    (
      "scale_by_adam",
      dict(mu_dtype="bfloat61"),
      "config.optax.mu_dtype must be one of 'float32', 'bfloat16', 'float16'",
    ),
    ("scale_by_factored_rms", dict(decay_rate_fn=1), "config.optax.decay_rate_fn is no key of the transformation"),
    ("add_decayed_weights", dict(mask=True), "config.optax.mask is no key of the transformation add_decayed_weights"),
    ("trace", {}, "config.optax.decay is missing; it is the decay of the sum, in [0, 1] (a number in [0, 1])"),
    ("clip", {}, "config.optax.max_delta is missing; it is a number that is not negative"),
    (
      "adaptive_grad_clip",
      dict(clipping=1, axis=7),
      "config.optax: adaptive_grad_clip does not work with {'clipping': 1",
    ),
    ("scale_by_adam", 5, "config.optax must be a dict or None, got 5"),
    ("scale_by_radam", 5, "config.optax must be a dict or None, got 5"),
  ],
)
def test_a_mistake_is_refused_in_one_line(name, arguments, line):
  with pytest.raises(UserError) as error:
    transformations.from_recipe(parse(Optimizer, dict(optax_name=name, lr=1, optax=arguments)), {})
  assert str(error.value).startswith(line)
  assert len(str(error.value)) <= 300
  assert "\n" not in str(error.value)
