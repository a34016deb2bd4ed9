"""The pp op that puts what keys hold into a text, `strfmt("answer en {question}", outkey="prefix")`."""

import string
from typing import Any

import numpy as np
from jaxtyping import Shaped

from core.errors import UserError
from core.pp.arguments import NewKey, Words
from core.pp.held import Held, require_numbers
from core.pp.ops_general import examples_in
from core.pp.registry import OpFunctions, op


@op()
def strfmt(template: Words, outkey: NewKey = "text"):
  """Writes a text with `{key}` in the place of what a key holds.

  A number is written as TensorFlow does it, 2.0 as 2; several, as [1 2 3]. Several texts of an example give several.

  Args:
    template: the text. `{{` and `}}` stand for brackets.
    outkey: where it goes.
  """
  parts = _parts(template)

  def accepts(held):
    of_keys = {key: held(key) for _, key in parts if key}
    for key, each in of_keys.items():
      if not each.is_text:
        _require_row(each, key)
    shapes = {each.shape for each in of_keys.values() if each.is_text and each.shape != ()}
    if len(shapes) > 1:
      several = ", ".join(f"{key!r} {each}" for key, each in of_keys.items() if each.is_text)
      raise UserError(f"of several texts there must be as many under each key: {several}")

  def per_example(data):
    import tensorflow as tf

    texts = []
    for literal, key in parts:
      texts.append(tf.constant(literal))
      if key:
        value = tf.convert_to_tensor(data[key])
        texts.append(value if value.dtype == tf.string else tf.strings.format("{}", value, summarize=-1))
    return {**data, outkey: tf.strings.join(texts)}

  def batched(data):
    made = np.array([b""], object)
    for literal, key in parts:
      made = made + np.array([literal.encode()], object)
      if key:
        made, values = _of_one_rank(made, _texts(np.asarray(data[key])))
        made = made + values
    return {**data, outkey: made if any(key for _, key in parts) else made.repeat(examples_in(data))}

  return OpFunctions(per_example, batched, accepts)


def _parts(template: str) -> list[tuple[str, str | None]]:
  """Returns what a template is made of: a text, and the key behind it or None.

  Raises:
    UserError: a bracket that is alone, or more between two than a key.
  """
  try:
    found = list(string.Formatter().parse(template))
  except ValueError as error:
    raise UserError(f"template {template!r} cannot be read ({error})") from None
  for _, key, spec, conversion in found:
    if key == "" or spec or conversion:
      raise UserError(f"template {template!r}: between two brackets stands a key and nothing else")
  return [(literal, key) for literal, key, _, _ in found]


def _require_row(held: Held, key: str) -> None:
  require_numbers(held)
  if held.rank is None or held.rank > 1:
    raise UserError(f"numbers are written where they are one or a row; {key!r} holds {held}")


def _texts(values: Shaped[np.ndarray, "batch ..."]) -> Shaped[np.ndarray, "batch ..."]:
  """Returns texts as they are, and numbers as `tf.strings.format` writes them."""
  if values.dtype.kind in "OSU":
    flat = [value.encode() if isinstance(value, str) else value for value in values.ravel().tolist()]
    shape = values.shape
  else:
    flat = [_shown(value).encode() for value in values]
    shape = values.shape[:1]
  array = np.empty(len(flat), object)
  array[:] = flat
  return array.reshape(shape)


def _shown(value: Any) -> str:
  if np.ndim(value):
    return f"[{' '.join(map(_shown, value))}]"
  if not np.issubdtype(np.asarray(value).dtype, np.floating):
    return str(int(value))
  # Six digits, or fifteen of a double, where those tell the number; else as many as any number needs.
  number, few, many = (value, 15, 17) if value.dtype == np.float64 else (np.float32(value), 6, 9)
  short = f"{number:.{few}g}"
  return short if type(number)(short) == number or np.isnan(number) else f"{number:.{many}g}"


def _of_one_rank(a: Any, b: Any) -> tuple[Any, Any]:
  """Returns two arrays, the one of fewer axes with more of size 1 at its end."""
  return tuple(x.reshape(x.shape + (1,) * (max(a.ndim, b.ndim) - x.ndim)) for x in (a, b))
