"""Which examples meet a condition of a config, `pre_filter_fn` and `post_filter_fn`: see `core.recipe.predicate`.

NumPy judges all rows of columns at once, TensorFlow one example at a time; both compute whole numbers in int64, numbers
with a fraction in float32 or, beside whole numbers or doubles, in float64.
"""

import ast
import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool

from core.data import tfrecord
from core.data.columns import Columns
from core.data.tfrecord import Records
from core.errors import UserError, nearest
from core.import_tensorflow import import_tensorflow
from core.recipe import predicate, words

_ORDER = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge}
_EQUAL = {ast.Eq: operator.eq, ast.NotEq: operator.ne}
_ARITHMETIC = {
  ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
  ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
_KINDS = {"b": "bool", "i": "int64", "u": "int64", "f": "float32", "V": "float32", "O": "text", "S": "text"}


def meets(condition: str, example: Mapping[str, Any], where: str) -> Any:
  """Returns whether an example, a dict of TensorFlow's tensors, meets a condition, a tensor of one truth value.

  Raises:
    UserError: it names no entry of the example, or does not fit those it names.
  """
  tf = import_tensorflow()
  found = _judged(condition, example, _Tensors(tf), where)
  if found.shape.rank not in (None, 0):
    raise UserError(_not_one(condition, where))
  return tf.ensure_shape(found, [])


def filtered(source: Columns | Records, condition: str, where: str, *, skip_errors: bool = False) -> Columns | Records:
  """Returns the source with the records that meet a condition; all of them are read to find these.

  Args:
    source: the records.
    condition: of its raw examples.
    where: the path of the condition in the config, for messages.
    skip_errors: leave out what is damaged, too.

  Raises:
    UserError: it does not fit the examples, none meets it, or a record cannot be read.
  """
  if isinstance(source, Columns):
    for key in source.files:
      if key in predicate.entries(condition):
        raise UserError(f"{where}: {key!r} is the bytes of a file, which are not read to choose the examples")
    keep = _meeting_rows(source, condition, where)
    rows = np.flatnonzero(keep)
    _refuse_none(rows, len(source), where)
    return dataclasses.replace(
      source, arrays={key: array[rows] for key, array in source.arrays.items()}, describe=_describer(source, rows)
    )

  def passes(record: Any) -> Any:
    return meets(condition, source.parse(record), where)

  rows = _meeting_records(source, passes, where, skip_errors)
  _refuse_none(rows, len(source), where)
  ends = np.cumsum(source.takes)
  parts = np.split(rows, np.searchsorted(rows, ends[:-1]))
  kept = tuple(part - (end - take) for part, end, take in zip(parts, ends, source.takes))
  return dataclasses.replace(source, takes=tuple(map(len, kept)), kept=kept, passes=passes)


def _refuse_none(rows: np.ndarray, size: int, where: str) -> None:
  if not len(rows):
    raise UserError(f"{where}: none of the {size:,} examples meets it")


def _describer(source: Columns, rows: np.ndarray) -> Callable[[int], str]:
  return lambda row: source.describe(int(rows[row]))


def _meeting_rows(source: Columns, condition: str, where: str) -> Bool[np.ndarray, "rows"]:
  with np.errstate(all="ignore"):
    found = _judged(condition, source.arrays, _Rows(), where)
  if found.ndim > 1:
    raise UserError(_not_one(condition, where))
  return np.broadcast_to(found, len(source))


def _meeting_records(source: Records, passes: Callable[[Any], Any], where: str, skip_errors: bool) -> np.ndarray:
  tf = import_tensorflow()
  records = tfrecord.read(source.range(0, len(source)), pad_damaged=skip_errors).enumerate()
  judge = tf.autograph.experimental.do_not_convert(lambda row, record: (row, passes(record)))
  judged = records.map(judge, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
  if skip_errors:
    judged = judged.ignore_errors()
  chosen = judged.filter(lambda row, good: good).map(lambda row, good: row).batch(4096)
  try:
    return np.concatenate([np.zeros(0, np.int64), *chosen.as_numpy_iterator()])
  except tf.errors.OpError as error:
    reason = tfrecord.first_damage(source.range(0, len(source))) or tfrecord.reason(error)
    raise UserError(f"{where}: a record cannot be read to choose the examples ({reason})") from None


def _not_one(condition: str, where: str) -> str:
  return f"{where}: {words.shown(condition)} gives more than one truth value an example; any() or all() makes it one"


class _Misfit(Exception):
  """A condition that does not fit the values it names; the reason."""


def _judged(condition: str, example: Mapping[str, Any], lib: Any, where: str) -> Any:
  try:
    found = _value(predicate.read(condition), example, lib)
    if lib.kind(found) != "bool":
      raise _Misfit("it gives no truth value")
    return lib.constant(found, "bool") if _is_literal(found) else found
  except _Misfit as error:
    raise UserError(f"{where}: {words.shown(condition)} does not fit the examples: {error}") from None
  except (ValueError, TypeError, LookupError, ArithmeticError) as error:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    raise UserError(f"{where}: {words.shown(condition)} does not fit the examples ({reason})") from None


def _value(node: ast.expr, example: Mapping[str, Any], lib: Any) -> Any:
  value = functools.partial(_value, example=example, lib=lib)
  match node:
    case ast.Constant(value=literal):
      return literal
    case ast.Name(id=key):
      return lib.entry(_entry(example, key))
    case ast.Subscript(value=ast.Name(id=predicate.EXAMPLE), slice=ast.Constant(value=key)):
      return lib.entry(_entry(example, key))
    case ast.Subscript(value=part, slice=index):
      whole, key = value(part), ast.literal_eval(index)
      if _is_literal(whole):
        raise _Misfit(f"[{key!r}] is asked of a literal")
      return lib.entry(_entry(whole, key)) if isinstance(key, str) else lib.item(whole, key)
    case ast.Call(func=ast.Name(id=name), args=[part]):
      return _reduced(name, value(part), lib)
    case ast.UnaryOp(op=ast.Not(), operand=part):
      return lib.negated(_truth(value(part), "not", lib))
    case ast.UnaryOp(operand=part):
      return operator.neg(_number(value(part), lib))
    case ast.BoolOp(op=op, values=parts):
      joined, word = (lib.both, "and") if isinstance(op, ast.And) else (lib.either, "or")
      return functools.reduce(joined, [_truth(value(part), word, lib) for part in parts])
    case ast.BinOp(left=left, op=op, right=right):
      return _ARITHMETIC[type(op)](*_matched(_number(value(left), lib), _number(value(right), lib), lib))
    case ast.Compare(left=left, ops=ops, comparators=parts):
      sides = [value(each) if not isinstance(op, ast.In | ast.NotIn) else each for op, each in zip(ops, parts)]
      firsts = [value(left), *sides]
      found = [_compared(op, a, b, lib) for op, a, b in zip(ops, firsts, sides)]
      return functools.reduce(lib.both, found)
  raise AssertionError(node)  # The grammar has nothing else.


def _entry(example: Any, key: str) -> Any:
  if not isinstance(example, Mapping):
    raise _Misfit(f"{key!r} is asked of what holds no entries")
  if key not in example:
    known = [name for name in example if not name.startswith("_")]
    raise _Misfit(f"there is no entry {key!r}{nearest(key, known)}")
  return example[key]


def _compared(op: ast.cmpop, one: Any, other: Any, lib: Any) -> Any:
  if isinstance(op, ast.In | ast.NotIn):
    choices = [ast.literal_eval(each) for each in other.elts]
    found = [_compared(ast.Eq(), one, each, lib) for each in choices]
    among = functools.reduce(lib.either, found) if found else lib.constant(False, "bool")
    return lib.negated(among) if isinstance(op, ast.NotIn) else among
  texts = [lib.kind(each) == "text" for each in (one, other)]
  if texts[0] != texts[1]:
    raise _Misfit("it compares text with a number")
  if all(texts):
    if type(op) not in _EQUAL:
      raise _Misfit("texts have no order here")
    return lib.same_text(one, other) if isinstance(op, ast.Eq) else lib.negated(lib.same_text(one, other))
  return (_ORDER | _EQUAL)[type(op)](*_matched(one, other, lib))


def _is_literal(value: Any) -> bool:
  return isinstance(value, bool | int | float | str)


def _number(value: Any, lib: Any) -> Any:
  if lib.kind(value) == "text":
    raise _Misfit("it computes with text")
  return lib.cast(value, "int64") if lib.kind(value) == "bool" else value


def _truth(value: Any, word: str, lib: Any) -> Any:
  if lib.kind(value) != "bool":
    raise _Misfit(f"{word} takes truth values")
  return lib.constant(value, "bool") if _is_literal(value) else value


def _reduced(name: str, value: Any, lib: Any) -> Any:
  if _is_literal(value):
    raise _Misfit(f"{name}() is asked of a literal")
  if name == "len":
    return lib.length(value)
  if name in ("any", "all"):
    return lib.reduced(name, _truth(value, name, lib))
  return lib.reduced(name, _number(value, lib))


def _matched(one: Any, other: Any, lib: Any) -> tuple[Any, Any]:
  """Returns two numbers in one type, see the head of this file; of two literals, as tensors."""
  kinds = {"int64" if lib.kind(each) == "bool" else lib.kind(each) for each in (one, other) if not _is_literal(each)}
  literals = [each for each in (one, other) if _is_literal(each)]
  if any(isinstance(each, float) for each in literals) and kinds <= {"int64"}:
    kinds.add("float64")
  kind = next(iter(kinds)) if len(kinds) == 1 else "float64" if kinds else "int64"
  pair = tuple(lib.constant(each, kind) if _is_literal(each) else lib.cast(each, kind) for each in (one, other))
  return lib.aligned(*pair)


class _Rows:
  """Columns of NumPy arrays [rows, ...], computed row by row; a literal is an array [1]."""

  def entry(self, value: Any) -> Any:
    if isinstance(value, Mapping):
      return value
    kind = "float64" if value.dtype == np.float64 else _KINDS.get(value.dtype.kind, value.dtype.name)
    return value if kind == "text" else value.astype(kind)

  def kind(self, value: Any) -> str:
    if isinstance(value, Mapping):
      raise _Misfit("it takes a dict of entries for a value")
    dtype = np.asarray(value).dtype if _is_literal(value) else value.dtype
    return "text" if isinstance(value, str) or dtype.kind in "OS" else dtype.name

  def constant(self, value: Any, kind: str) -> Any:
    return np.full(1, value, kind)

  def cast(self, value: Any, kind: str) -> Any:
    return self.constant(value, kind) if _is_literal(value) else value.astype(kind)

  def aligned(self, one: Any, other: Any) -> tuple[Any, Any]:
    rank = max(one.ndim, other.ndim)
    return tuple(each.reshape(len(each), *(1,) * (rank - each.ndim), *each.shape[1:]) for each in (one, other))

  def same_text(self, one: Any, other: Any) -> Any:
    pair = [np.array([each.encode()], object) if isinstance(each, str) else each for each in (one, other)]
    return np.asarray(np.frompyfunc(operator.eq, 2, 1)(*self.aligned(*pair)), bool)

  def item(self, value: Any, index: int) -> Any:
    self.kind(value)
    if value.ndim < 2:
      raise _Misfit(f"[{index}] is asked of a single value")
    return value[:, index]

  def length(self, value: Any) -> Any:
    if self.kind(value) == "text" and value.ndim == 1:
      return np.array([len(text.decode(errors="replace")) for text in value], np.int64)
    if value.ndim < 2:
      raise _Misfit("len() is asked of a single value")
    return np.full(len(value), value.shape[1], np.int64)

  def reduced(self, name: str, value: Any) -> Any:
    return getattr(np, name)(value, axis=tuple(range(1, value.ndim)))

  def negated(self, value: Any) -> Any:
    return ~value

  def both(self, one: Any, other: Any) -> Any:
    return np.logical_and(*self.aligned(one, other))

  def either(self, one: Any, other: Any) -> Any:
    return np.logical_or(*self.aligned(one, other))


class _Tensors:
  """TensorFlow's tensors of one example."""

  def __init__(self, tf: Any):
    self._tf = tf

  def entry(self, value: Any) -> Any:
    if isinstance(value, Mapping):
      return value
    value = self._tf.convert_to_tensor(value)
    kind = value.dtype
    if kind.is_integer:
      return self._tf.cast(value, "int64")
    return self._tf.cast(value, "float32") if kind.is_floating and kind != self._tf.float64 else value

  def kind(self, value: Any) -> str:
    if isinstance(value, Mapping):
      raise _Misfit("it takes a dict of entries for a value")
    if _is_literal(value):
      return "text" if isinstance(value, str) else np.asarray(value).dtype.name
    return "text" if value.dtype == self._tf.string else value.dtype.name

  def constant(self, value: Any, kind: str) -> Any:
    return self._tf.constant(value, kind)

  def cast(self, value: Any, kind: str) -> Any:
    return self.constant(value, kind) if _is_literal(value) else self._tf.cast(value, kind)

  def aligned(self, one: Any, other: Any) -> tuple[Any, Any]:
    return one, other

  def same_text(self, one: Any, other: Any) -> Any:
    return self._tf.equal(*(self._tf.constant(x.encode()) if isinstance(x, str) else x for x in (one, other)))

  def item(self, value: Any, index: int) -> Any:
    self.kind(value)
    if value.shape.rank == 0:
      raise _Misfit(f"[{index}] is asked of a single value")
    return value[index]

  def length(self, value: Any) -> Any:
    if self.kind(value) == "text" and value.shape.rank == 0:
      return self._tf.cast(self._tf.strings.length(value, unit="UTF8_CHAR"), "int64")
    if value.shape.rank == 0:
      raise _Misfit("len() is asked of a single value")
    return self._tf.cast(self._tf.shape(value)[0], "int64")

  def reduced(self, name: str, value: Any) -> Any:
    return getattr(self._tf, f"reduce_{name}")(value)

  def negated(self, value: Any) -> Any:
    return self._tf.logical_not(value)

  def both(self, one: Any, other: Any) -> Any:
    return self._tf.logical_and(one, other)

  def either(self, one: Any, other: Any) -> Any:
    return self._tf.logical_or(one, other)
