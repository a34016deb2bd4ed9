"""Pairs of sentences that follow each other: text to train one tower on without an image.

CLIPPO learns from such pairs, out of C4, in the same batches as from images and their alt-texts (Tschannen et al. 2023,
section 3): the first sentence is rendered in the place of the image, the second in that of the text.
"""

import re
import unicodedata
from typing import Literal

import numpy as np
from jaxtyping import Int, Shaped

from core.errors import UserError
from core.pp import text as text_lib
from core.pp.arguments import Key, NewKey
from core.pp.registry import OpFunctions, op

# The end of a sentence, with what closes quotes and brackets; or a line's.
_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？]+[」』”’）]*|[\n\r\u2028\u2029]+")
# A full stop after these ends no sentence, and none after a single capital: Mr. J. Smith, vs. Dr. Who, e.g. this.
_NO_END = re.compile(r"(?:^|[\s(\"'“‘])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|cf|Fig|No|Vol)\.$")


def split_sentences(text: str) -> list[str]:
  """Returns the sentences of a text, without white space around them.

  A sentence ends with a full stop, exclamation or question mark before white space, if what follows does not go on in
  lower case; with its East Asian form; or with its line. Abbreviations and initials do not end one.
  """
  found, start = [], 0
  for match in _END.finditer(text):
    candidate, rest = text[start : match.end()].strip(), text[match.end() :].lstrip()
    is_line = not match[0].strip()
    goes_on = rest[:1] and unicodedata.category(rest[0]) == "Ll"
    if not is_line and match[0][0] in ".!?…" and (goes_on or _NO_END.search(candidate)):
      continue
    found.append(candidate)
    start = match.end()
  return [sentence for sentence in (*found, text[start:].strip()) if sentence]


@op(random=True)
def sentence_pair(
  inkey: Key = "text",
  outkeys: tuple[NewKey, NewKey] = ("first", "second"),
  short: Literal["halve", "refuse"] = "halve",
):
  """Picks a random sentence of a text and the one after it.

  Args:
    inkey: the text.
    outkeys: where the two go.
    short: what becomes of a text of a single sentence: "halve" it between two words, or "refuse" it, as a text of a
      single word always is (`input.skip_errors=True` counts and skips such).
  """
  if len(set(outkeys)) < 2:
    raise UserError(f"outkeys must be two different keys, got {outkeys!r}")

  def accepts(held):
    text = held(inkey)
    if not text.is_text or text.rank != 0:
      raise UserError(f"{inkey!r} must hold one text, not {text}")

  def parts(text: bytes) -> list[bytes]:
    return _parts(text, short == "halve")

  def batched(data, rng):
    lists = [parts(text) for text in data[inkey]]
    index = rng.integer(0, np.array([max(1, len(each) - 1) for each in lists], np.int64))
    return {**data, **{key: _column(lists, index + n) for n, key in enumerate(outkeys)}}

  def per_example(data, rng):
    import tensorflow as tf

    def split(texts: Shaped[np.ndarray, "1"]) -> Shaped[np.ndarray, "sentences"]:
      return np.array(parts(texts[0]), object)

    # As an array, for `numpy_function` takes a scalar of text apart into an array of characters.
    sentences = tf.numpy_function(split, [data[inkey][None]], tf.string, stateful=False)
    index = rng.integer(0, tf.size(sentences) - 1)
    return {**data, **{key: tf.ensure_shape(sentences[index + n], []) for n, key in enumerate(outkeys)}}

  return OpFunctions(per_example, batched, accepts)


def _parts(text: bytes, halve: bool) -> list[bytes]:
  """Returns at least two sentences, or the halves of one."""
  (decoded,) = text_lib.decoded([text])
  sentences = split_sentences(decoded)
  words = decoded.split()
  if len(sentences) < 2 and halve and len(words) > 1:
    sentences = [" ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])]
  if len(sentences) < 2:
    raise UserError(f"the text has no two sentences: {decoded[:60]!r}; input.skip_errors=True leaves such out")
  return [sentence.encode() for sentence in sentences]


def _column(lists: list[list[bytes]], index: Int[np.ndarray, "n"]) -> Shaped[np.ndarray, "n"]:
  column = np.empty(len(lists), object)
  column[:] = [each[number] for each, number in zip(lists, index)]
  return column
