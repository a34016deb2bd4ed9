"""Text as the ops handle it: UTF-8 bytes, one text an example or an array of several, in memory and in tf.data.

Nothing here knows of tokens: a function of a list of texts becomes an op's two forms, see `op_functions`. In tf.data it
runs in Python (`tf.numpy_function`), as the libraries that read text are not TensorFlow's.
"""

import math
import re
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped

from core.errors import UserError
from core.pp.held import require_text
from core.pp.registry import OpFunctions
from core.pp.rng import Rng
from core.recipe import words

TextArray = Shaped[np.ndarray, "..."]  # An object array of `bytes`, as `core.data.columns.bytes_column` makes it.

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def op_functions(fn: Callable[[list[bytes]], Any], dtype: Any = object, shape: tuple[int, ...] = ()) -> OpFunctions:
  """Returns the forms of an op that maps texts: its value may hold one text an example or several, in any shape.

  Args:
    fn: a list of n texts -> n results, an array [n, *shape] of `dtype`, or with `dtype` object a list of n texts.
    dtype: object for text, else a NumPy type of numbers.
    shape: of one text's result.
  """

  def batched(values):
    values = np.asarray(values)
    return _filled(fn(_flat(values)), (*values.shape, *shape), dtype)

  def per_example(value):
    import tensorflow as tf

    def run(texts):
      try:
        return _filled(fn(_flat(texts)), (*np.shape(texts), *shape), dtype)
      except UserError as error:  # As of any other op on a bad example, which the pipeline names or leaves out.
        raise tf.errors.InvalidArgumentError(None, None, str(error)) from None

    result = tf.numpy_function(run, [value], tf.string if dtype is object else tf.as_dtype(dtype), stateful=False)
    return tf.ensure_shape(result, value.shape.concatenate(shape))

  return OpFunctions(per_example, batched, require_text)


def op_functions_by_example(fn: Callable[[list[bytes], int], Any], dtype: Any, shape: tuple[int, ...]) -> OpFunctions:
  """Returns the forms of an op that maps texts and must know how many examples they are of.

  Args:
    fn: a list of n texts, and the number of examples -> an array [n, *shape] of `dtype`.
    dtype: a NumPy type of numbers.
    shape: of one text's result.
  """

  def forms(examples: int) -> OpFunctions:
    def mapped(texts: list[bytes]) -> Any:
      return fn(texts, examples)

    return op_functions(mapped, dtype, shape)

  def batched(values):
    return forms(len(values)).batched(values)

  return OpFunctions(forms(1).per_example, batched, require_text)


def of_first(ops: OpFunctions) -> OpFunctions:
  """Returns the forms of an op that reads the first text of each example, of the forms that read one text each."""

  def require(shape: Sequence[int | None]) -> None:
    if 0 in shape:
      raise UserError("the example has no text")

  def batched(values):
    values = np.asarray(values)
    require(values.shape[1:])
    return ops.batched(values.reshape(len(values), math.prod(values.shape[1:]))[:, 0])

  def per_example(value):
    import tensorflow as tf

    require(value.shape.as_list() if value.shape.rank is not None else ())
    return ops.per_example(tf.reshape(value, [-1])[0])

  return OpFunctions(per_example, batched, ops.accepts)


def of_one(functions: OpFunctions, *, at_random: bool) -> OpFunctions:
  """Returns the forms of a random op that takes one of an example's texts, where there are several.

  Args:
    functions: of the op on it.
    at_random: take any that is not empty, if there is one; if False, the first. No text at all counts as an empty one.
  """

  def per_example(value, rng):
    import tensorflow as tf

    if value.shape.rank == 0:
      return functions.per_example(value)
    texts = tf.concat([tf.reshape(value, [-1]), [""]], axis=0)
    if not at_random:
      return functions.per_example(texts[0])
    candidates = filled(texts)
    return functions.per_example(texts[candidates[rng.integer(0, tf.size(candidates))]])

  def batched(values, rng):
    values = np.asarray(values)
    if values.ndim == 1:
      return functions.batched(values)
    texts = values.reshape(len(values), math.prod(values.shape[1:]))
    texts = np.concatenate([texts, np.full((len(values), 1), b"", object)], axis=1)
    index = one_of(texts.astype(bool), rng) if at_random else 0
    return functions.batched(texts[np.arange(len(texts)), index])

  return OpFunctions(per_example, batched, functions.accepts)


def filled(texts: Any) -> Any:
  """Returns the indices of one example's texts, a tensor, that are not empty; of all, where all are."""
  import tensorflow as tf

  some = tf.strings.length(texts) > 0
  return tf.where(some | ~tf.reduce_any(some))[:, 0]


def one_of(some: Bool[np.ndarray, "batch entries"], rng: Rng) -> Int[np.ndarray, "batch"]:
  """Returns which entry of each example is drawn, among `some`; among all, where they are none."""
  some = some | ~some.any(axis=1, keepdims=True)
  candidates = np.argsort(~some, axis=1, kind="stable")
  return candidates[np.arange(len(some)), rng.integer(0, some.sum(axis=1))]


def without_rng(functions: OpFunctions) -> OpFunctions:
  """Returns the forms of a random op that draws nothing."""
  return OpFunctions(
    lambda value, rng: functions.per_example(value), lambda values, rng: functions.batched(values), functions.accepts
  )


def map_texts(fn: Callable[[str], str]) -> OpFunctions:
  """Returns the forms of an op that changes each text by itself."""

  def mapped(texts: list[bytes]) -> list[bytes]:
    return [fn(text).encode() for text in decoded(texts)]

  return op_functions(mapped)


def decoded(texts: Sequence[bytes]) -> list[str]:
  """Returns the texts as `str`.

  Raises:
    UserError: one is not UTF-8; the line shows it and where.
  """
  try:
    return [text.decode() for text in texts]
  except UnicodeDecodeError:
    check_utf8(texts)
    raise


def check_utf8(texts: Sequence[bytes]) -> None:
  """Refuses texts that are not UTF-8.

  Raises:
    UserError: one is not; the line shows it and where.
  """
  try:
    b"\n".join(texts).decode()  # No sequence of bytes goes on across a line's end, so one call checks all.
  except UnicodeDecodeError:
    for text in texts:
      try:
        text.decode()
      except UnicodeDecodeError as error:
        byte, place = text[error.start], error.start
        start = text[: place + 20].decode(errors="replace")[-60:]
        raise UserError(f"text is not UTF-8: byte 0x{byte:02x} at place {place} of {start!r}") from None


def canonicalize(text: str, keep: str = "") -> str:
  """Makes text lower-case and drops ASCII punctuation; underscores and runs of white space become one space each.

  This is how SigLIP (Zhai et al. 2023) prepares class names and prompts: by the rule of the published code
  (big_vision's `prompt_engineering.py`), in which "a_b" is "a b". The SiglipTokenizer of transformers drops the
  underscore with the other punctuation, "ab".

  Args:
    text: any.
    keep: a piece of text whose punctuation stays, such as the "{}" of a prompt.
  """
  parts = text.replace("_", " ").split(keep) if keep else [text.replace("_", " ")]
  bare = keep.join(part.translate(_PUNCTUATION) for part in parts)
  return re.sub(r"\s+", " ", bare.lower()).strip()


def _flat(values: TextArray) -> list[bytes]:
  texts = np.asarray(values).reshape(-1).tolist()
  if not all(map(bytes.__instancecheck__, texts)):
    texts = [text.encode() if isinstance(text, str) else text for text in texts]
    if other := next((text for text in texts if not isinstance(text, bytes)), None):
      raise UserError(f"it takes text; the key holds {words.shown(other)}")
  return texts


def _filled(results: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  if dtype is not object:
    return np.asarray(results, dtype).reshape(shape)
  array = np.empty(len(results), object)
  array[:] = results
  return array.reshape(shape)
