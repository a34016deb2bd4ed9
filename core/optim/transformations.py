"""The transformation of gradients that a config names, optax's or one of our own, with its arguments checked."""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from core import trees
from core.errors import UserError, nearest
from core.optim import adafactor, stacked
from core.recipe import words
from core.recipe.optimizer import Optimizer
from core.recipe.parse import parse
from core.recipe.transformations import PREFIX, MomentDtype
from core.recipe.types import Count, Integer, NonNegative, Number, Rate, Whole

# Optax calls numbers alike that are not. What none of these says must not be negative. A mean whose decay is 1 never
# moves, and its correction for its start is 0 / 0.
_BOUNDS = dict.fromkeys(("b1", "b2", "b3", "decay", "decay_rate", "rho"), Rate) | {"step_size": Number}
# Of arguments whose annotation does not say what a config may give; None: nothing.
_KINDS = {"key": Whole | None, "axis": Integer | tuple[Integer, ...] | None, "mask": None, "freeze_mask": None}


# What looks at a parameter as a whole, its shape or its norm: it is to see the layers that `scan` stacks one by one.
_OF_WHOLE_PARAMETERS = frozenset(
  {
    "adaptive_grad_clip",
    "centralize",
    "clip_by_block_rms",
    "scale_by_adafactor",
    "scale_by_distance_over_gradients",
    "scale_by_factored_rms",
    "scale_by_novograd",
    "scale_by_param_block_norm",
    "scale_by_param_block_rms",
    "scale_by_sm3",
    "scale_by_trust_ratio",
  }
)


def from_recipe(recipe: Optimizer, params: trees.PyTree) -> optax.GradientTransformation:
  """Returns the transformation `recipe.optax_name` with the arguments `recipe.optax`.

  Args:
    recipe: of the run.
    params: the parameters, or their shapes, for the layers that are stacked in them.

  Raises:
    UserError: there is no such transformation, it needs what a config cannot give, or an argument is wrong.
  """
  name = recipe.optax_name
  function = _function(name)
  if dataclasses.is_dataclass(recipe.optax):
    arguments = {field.name: getattr(recipe.optax, field.name) for field in dataclasses.fields(recipe.optax)}
  else:
    options = parse(_arguments_of(name, function), recipe.optax or {}, "config.optax")
    arguments = {key: getattr(options, key) for key in recipe.optax or {}}
  try:
    tx = function(**arguments)
    # What does not work shows in the first update only, so one is traced here, on a tiny parameter.
    jax.eval_shape(lambda p: tx.update(p, tx.init(p), p), {"kernel": jax.ShapeDtypeStruct((2, 2), jnp.float32)})
  except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    line = f"config.optax: {name} does not work with {words.shown(arguments)}: {reason}"
    raise UserError(line) from None
  return stacked.layer_by_layer(tx, params) if name.removeprefix(PREFIX) in _OF_WHOLE_PARAMETERS else tx


def known() -> dict[str, Callable[..., optax.GradientTransformation]]:
  """Returns what `optax_name` may be: optax's transformations that need gradients and parameters alone, and our own.

  Optax's whole optimizers and line searches are marked in their signatures: by a learning rate, or by returning a
  transformation with extra arguments.
  """
  found = {}
  for name, fn in vars(optax).items():
    if name.startswith("_") or not inspect.isfunction(fn) or "learning_rate" in _parameters(fn):
      continue
    returned = inspect.signature(fn).return_annotation
    # scale_by_factored_rms says nothing of what it returns.
    unsaid = returned is inspect.Signature.empty and name.startswith("scale_by_")
    if returned is optax.GradientTransformation or unsaid:
      found[name] = fn
  return found | {"scale_by_adafactor": adafactor.scale_by_adafactor, "momentum_hp": adafactor.momentum_hp}


def _function(name: str) -> Callable[..., optax.GradientTransformation]:
  """Returns the function that makes the transformation of a config's `optax_name`."""
  functions, published = known(), name.removeprefix(PREFIX)
  if published in functions:
    return functions[published]
  shown = words.shown(name)
  if "learning_rate" in _parameters(getattr(optax, name, None)):
    instead = "'scale_by_adam', 'trace' (momentum) or 'identity' (plain SGD)"
    raise UserError(f"config.optax_name: {shown} brings a learning rate of its own; name what it wraps, like {instead}")
  raise UserError(f"config.optax_name: there is no {shown}{nearest(published, functions)}")


@functools.cache
def _arguments_of(name: str, function: Callable[..., optax.GradientTransformation]) -> type:
  """Returns a dataclass of the arguments of one of optax's functions, by their names, annotations and defaults.

  Args:
    name: what a config calls the function.
    function: returns a transformation.

  Raises:
    UserError: it needs a function, a mask or another transformation.
  """
  fields = []
  for key, parameter in _parameters(function).items():
    kind, required = _kind(parameter), parameter.default is parameter.empty
    if kind is None and required:
      raise UserError(f"config.optax_name: {name!r} needs the argument {key}, which a config cannot give")
    if kind is not None:
      default = dataclasses.MISSING if required else parameter.default
      fields.append((key, kind, dataclasses.field(default=default)))
  titled = {"TITLE": f"the transformation {name}"}
  return dataclasses.make_dataclass("Arguments", fields, frozen=True, kw_only=True, namespace=titled)


def _kind(parameter: inspect.Parameter) -> Any:
  """Returns the type of an argument of one of optax's functions; None for what a config cannot give."""
  name, default, said = parameter.name, parameter.default, parameter.annotation
  if name in _KINDS:
    return _KINDS[name]
  if name.endswith("dtype"):
    return MomentDtype if default not in (None, parameter.empty) else MomentDtype | None
  if said is bool or isinstance(default, bool):
    return bool
  if typing.get_origin(said) is Literal:
    return said
  members = typing.get_args(said) or (said,)
  if int in members and float not in members:
    return (Whole | None) if type(None) in members else Count
  if isinstance(default, int):
    return Count if default > 0 else Whole
  if float in members or isinstance(default, float):
    return _BOUNDS.get(name, NonNegative)
  return None


def _parameters(fn: Any) -> Mapping[str, inspect.Parameter]:
  return inspect.signature(fn).parameters if inspect.isfunction(fn) else {}
