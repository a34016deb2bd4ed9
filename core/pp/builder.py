"""From a pp string to a function: `decode|resize(224)|flip_lr|value_range(-1,1)|keep("image","labels")`.

A pp string is a chain of ops joined by `|`, each a name with or without arguments, which are Python literals. Two
functions come of it: one on a single example's tensors, for `tf.data.Dataset.map`, and one on a batch of NumPy arrays,
for data in memory, which needs no TensorFlow. Keys that begin with `_` belong to the pipeline and pass through.
"""

import ast
import dataclasses
from collections.abc import Callable
from typing import Any

from core.errors import UserError, nearest
from core.pp import ops_general, ops_image, ops_text, ops_text_render, randaug, registry  # noqa: F401 (they register)
from core.pp.rng import Rng

Data = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Step:
  """One op of a pp string, its arguments bound. `place` counts from 0: the stream of its random draws."""

  name: str
  place: int
  random: bool
  functions: registry.OpFunctions


def get_preprocess_fn(pp_string: str) -> Callable[[Data], Data]:
  """The function of one example (a dict of tensors) that `pp_string` describes, for `tf.data.Dataset.map`.

  An empty string is the identity. Random ops draw from the example's `_seed`, an int64 scalar, and nothing else.

  Raises:
    UserError: a string that cannot be read, an unknown op, arguments that do not fit; when traced, a missing key.
  """
  chain = steps(pp_string)
  import tensorflow as tf

  # The ops hold no Python control flow over tensors: AutoGraph would only slow the tracing down.
  return tf.autograph.experimental.do_not_convert(
    lambda data: _apply(data, [(step, step.functions.per_example) for step in chain])
  )


def get_batched_fn(pp_string: str) -> Callable[[Data], Data] | None:
  """The function of a batch (a dict of NumPy arrays with a leading batch dimension) that `pp_string` describes.

  Random ops draw from `_seed`, an int64 array [batch], and give what `get_preprocess_fn` gives each example alone.

  Returns:
    The function, or None where some op has no form for batches. TensorFlow is not imported.

  Raises:
    UserError: as `get_preprocess_fn`.
  """
  chain = [(step, step.functions.batched) for step in steps(pp_string)]
  return None if any(fn is None for _, fn in chain) else lambda data: _apply(data, chain)


def steps(pp_string: str) -> list[Step]:
  """The ops of `pp_string` with their arguments bound and checked.

  Raises:
    UserError: a string that cannot be read, an unknown op, or arguments that do not fit.
  """
  return [_step(place, *call) for place, call in enumerate(parse(pp_string))]


def parse(pp_string: str) -> list[tuple[str, list[Any], dict[str, Any]]]:
  """The calls that `pp_string` spells: `[(name, args, kwargs), ...]`.

  Raises:
    UserError: not a chain of calls, or an argument that is not a literal.
  """
  if not pp_string.strip():
    return []
  try:
    tree = ast.parse(f"({pp_string}\n)", mode="eval").body
  except (SyntaxError, ValueError):
    raise UserError(
      f"pp string cannot be read (ops are joined by |, as in decode|resize(224)): {pp_string!r}"
    ) from None
  return [_call(node) for node in _chain(tree)]


def _chain(node: ast.expr) -> list[ast.expr]:
  """`a|b|c` is Python's `or` of bits, which its parser nests to the left; a `|` inside quotes never gets here."""
  later = []
  while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
    later.append(node.right)
    node = node.left
  return [node, *reversed(later)]


def _call(node: ast.expr) -> tuple[str, list[Any], dict[str, Any]]:
  call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
  if not isinstance(call.func, ast.Name):
    raise UserError(f"pp string: {ast.unparse(node)!r} is not an op; ops read name or name(arguments), joined by |")
  name = call.func.id
  if any(keyword.arg is None for keyword in call.keywords):
    raise UserError(f"pp op {name}: ** is not allowed; name the arguments one by one")
  args = [_literal(name, arg) for arg in call.args]
  return name, args, {keyword.arg: _literal(name, keyword.value) for keyword in call.keywords}


def _literal(name: str, node: ast.expr) -> Any:
  try:
    return ast.literal_eval(node)
  except (ValueError, TypeError):
    raise UserError(
      f"pp op {name}: {ast.unparse(node)!r} is not a literal (number, string in quotes, tuple, list, ...)"
    ) from None


def _step(place: int, name: str, args: list[Any], kwargs: dict[str, Any]) -> Step:
  if name not in registry.OPS:
    raise UserError(f"pp op {name!r} is unknown{nearest(name, registry.OPS)}")
  op = registry.OPS[name]
  try:
    op.signature.bind(*args, **kwargs)
  except TypeError as error:
    raise UserError(f"pp op {name}: {error}; it is {name}{op.signature}") from None
  try:
    return Step(name, place, op.random, op.make(*args, **kwargs))
  except UserError as error:
    raise UserError(f"pp op {name}: {error}") from None
  except (TypeError, ValueError) as error:  # All that it was given is the string's literals.
    raise UserError(f"pp op {name}: arguments that do not fit ({error}); it is {name}{op.signature}") from error


def _apply(data: Data, chain: list[tuple[Step, Callable[..., Data]]]) -> Data:
  """Runs the ops of `chain` one after the other."""
  rng = Rng(data["_seed"]) if "_seed" in data and any(step.random for step, _ in chain) else None
  for step, fn in chain:
    try:
      if step.random and rng is None:
        raise UserError("is random and there is no key '_seed'; training gives it, evaluation must not be random")
      data = fn(registry.Example(data), *([rng.fold_in(step.place)] if step.random else []))
    except UserError as error:
      raise UserError(f"pp op {step.name}: {error}") from None
  return dict(data)
