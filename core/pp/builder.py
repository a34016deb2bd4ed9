"""From a pp string to a function: `decode|resize(224)|flip_lr|value_range(-1,1)|keep("image","labels")`.

A pp string is a chain of ops joined by `|`, each a name with or without arguments, which are Python literals; see
`core.recipe.pp_string`. Two functions come of it: one on a single example's tensors, for `tf.data.Dataset.map`, and one
on a batch of NumPy arrays, for data in memory, which needs no TensorFlow. Both refuse the same. Keys that begin with
`_` belong to the pipeline and pass through.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from core.errors import UserError, nearest
from core.pp import (  # noqa: F401 (the ops register themselves)
  arguments,
  ops_choice,
  ops_crop,
  ops_general,
  ops_labels,
  ops_resize,
  ops_shapes,
  ops_strfmt,
  ops_text,
  ops_text_render,
  ops_values,
  randaug,
  registry,
)
from core.pp.rng import NoRng, Rng
from core.recipe import pp_string as grammar
from core.recipe import words

Data = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Step:
  """One op of a pp string, its arguments bound.

  Attributes:
    name: of the op.
    place: in the string, from 0 on: the stream of its random draws.
    random: whether it draws.
    functions: what it does.
    arguments: all its arguments by name, with defaults, as the op takes them.
    given: the names of those that the string gives.
  """

  name: str
  place: int
  random: bool
  functions: registry.OpFunctions
  arguments: dict[str, Any]
  given: frozenset[str]


def get_preprocess_fn(pp_string: str, where: str | None = None, *, upright: bool = False) -> Callable[[Data], Data]:
  """Returns the function of one example (a dict of tensors) that `pp_string` describes, for `tf.data.Dataset.map`.

  An empty string is the identity. Random ops draw from the example's `_seed`, an int64 scalar, and nothing else.

  Args:
    pp_string: the ops.
    where: its path in the config, "config.input.pp", which then begins every message.
    upright: what ops that decode images and do not say `upright` do.

  Raises:
    UserError: a string that cannot be read, an unknown op, arguments that do not fit; when traced, a missing key or a
      value that an op is not for.
  """
  chain = [(step, step.functions.per_example) for step in steps(pp_string, where, upright=upright)]
  import tensorflow as tf

  def preprocess(data: Data) -> Data:
    return _apply(data, chain, where)

  # The ops hold no Python control flow over tensors: AutoGraph would only slow the tracing down.
  return tf.autograph.experimental.do_not_convert(preprocess)


def get_batched_fn(pp_string: str, where: str | None = None) -> Callable[[Data], Data] | None:
  """Returns the function of a batch (a dict of NumPy arrays with a leading batch dimension) that `pp_string` describes.

  Random ops draw from `_seed`, an int64 array [batch], and give what `get_preprocess_fn` gives each example alone.
  TensorFlow is not imported.

  Args:
    pp_string: the ops.
    where: as `get_preprocess_fn`.

  Returns:
    The function, or None where some op has no form for batches.

  Raises:
    UserError: as `get_preprocess_fn`.
  """
  chain = [(step, step.functions.batched) for step in steps(pp_string, where)]
  if any(fn is None for _, fn in chain):
    return None

  def preprocess(data: Data) -> Data:
    return _apply(data, chain, where)

  return preprocess


def steps(pp_string: str, where: str | None = None, *, upright: bool = False) -> list[Step]:
  """Returns the ops of `pp_string` with their arguments bound and checked; `upright` as of `get_preprocess_fn`.

  Raises:
    UserError: a string that cannot be read, an unknown op, or arguments that do not fit.
  """
  calls = enumerate(parse(pp_string, where))
  return [_step(place, call, _prefix(where), {"upright": upright}) for place, call in calls]


def parse(pp_string: str, where: str | None = None) -> list[grammar.Call]:
  """Returns the calls that `pp_string` spells: `[(name, args, kwargs), ...]`.

  Raises:
    UserError: not a chain of calls, or an argument that is not a literal.
  """
  try:
    return grammar.read(pp_string)
  except ValueError as error:
    raise UserError(f"{_prefix(where)}{error}") from None


def _prefix(where: str | None) -> str:
  return f"{where}: " if where else ""


def _step(place: int, call: grammar.Call, prefix: str, by_source: dict[str, Any]) -> Step:
  """Returns one op; arguments of `by_source` that it has and the string does not give, or gives as None, are filled."""
  if call.name not in registry.OPS:
    name = words.shown(call.name)
    raise UserError(f"{prefix}pp op {name} is unknown{nearest(call.name, registry.OPS)}")
  op = registry.OPS[call.name]
  where = f"{prefix}pp op {op.name}"
  bound = arguments.bind(op.signature, op.annotations, call.args, call.kwargs, where)
  given = frozenset(bound.arguments)
  for key, value in by_source.items():
    if key in op.signature.parameters and bound.arguments.get(key) is None:
      bound.arguments[key] = value
  try:
    functions = op.make(*bound.args, **bound.kwargs)
  except UserError as error:
    raise UserError(f"{where}: {error}") from None
  except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
    # An argument that has no type: all that the op was given are the string's literals.
    shown = f"{op.name}{op.signature}"
    raise UserError(f"{where}: arguments that do not fit ({error}); it is {shown}") from error
  bound.apply_defaults()
  return Step(op.name, place, op.random, functions, dict(bound.arguments), given)


def _apply(data: Data, chain: list[tuple[Step, Callable[..., Data]]], where: str | None) -> Data:
  """Runs the ops of `chain` one after the other."""
  at_random = any(step.random for step, _ in chain)
  rng = Rng(data["_seed"]) if at_random and "_seed" in data else NoRng()
  for step, fn in chain:
    try:
      data = fn(registry.Example(data), *([rng.fold_in(step.place)] if step.random else []))
    except UserError as error:
      raise UserError(f"{_prefix(where)}pp op {step.name}: {error}") from None
    except (TypeError, ValueError, ArithmeticError, LookupError, MemoryError) as error:
      reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
      raise UserError(f"{_prefix(where)}pp op {step.name} does not fit the data ({reason})") from error
  return dict(data)
