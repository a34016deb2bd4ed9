"""pp ops on text: tokens of it, its case and punctuation, one of several captions.

Text is UTF-8 bytes under a key, by default `text`; tokens go to `labels` unless told otherwise, int32 [max_len]. Of
several texts under a key one at random is tokenized, or all are. Every op has a form for batches in memory. `choice`
(`ops_choice`) picks one of several captions at random, `get_single` a certain one.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Int64

from core.errors import UserError
from core.pp import text as text_lib
from core.pp import tokenizers
from core.pp.arguments import Empty, Index, NewKey, NumTokens
from core.pp.held import require_entries, require_text
from core.pp.registry import OpFunctions, both, key_op, op
from core.recipe.types import FilePath, Text, Whole


@key_op(key="text", outkey="labels", random=True)
def tokenize(
  max_len: NumTokens,
  eos: Literal["yes", "no", "sticky", "none"] = "yes",
  model: FilePath = "c4_en",
  lower: bool = True,
  sample_if_multi: bool = True,
  pad_value: Text | Whole = "<pad>",
  add_bos: bool = False,
  bos: Literal["yes", "no"] = "no",
  empty: Empty = "refuse",
):
  """Turns text into `max_len` ids of a sentencepiece model.

  With `max_len=3`, 9 the end of sentence and 0 the padding, one, two and three tokens become:

    yes      2 9 0    2 2 9    2 2 2
    no       2 0 0    2 2 0    2 2 2
    sticky   2 9 0    2 2 9    2 2 9

  Args:
    max_len: ids a text; what is longer is cut.
    eos: "yes", "no" (or "none") or "sticky": whether the end of sentence follows the text, see above.
    model: a name or a file, see `core.pp.tokenizers`.
    lower: lower-case the letters A to Z first, as published models expect; for those of all scripts see `lower`.
    sample_if_multi: of several texts take one at random, of those that are not empty if any; if False tokenize all, a
      row each.
    pad_value: the piece, or its id, that fills a row; SigLIP's is 1, the end of sentence.
    add_bos: whether the beginning of sentence precedes the text.
    bos: "yes" is `add_bos=True`.
    empty: what becomes of an example without a token: "refuse" it (`input.skip_errors=True` counts and skips such
      examples), or "keep" it.
  """
  tokenizer = tokenizers.load(model)
  if not isinstance(tokenizer, tokenizers.SentencePiece):
    raise UserError(f"model={model!r} is a WordPiece vocabulary; bert_tokenize takes it")
  first = _special(tokenizer, model, "bos") if add_bos or bos == "yes" else None
  last = _special(tokenizer, model, "eos") if eos in ("yes", "sticky") else None
  fill = _pad_id(tokenizer, model, pad_value)

  def rows(texts):
    flat, lengths = tokenizer.encode([text.lower() for text in texts] if lower else texts)
    return lengths, tokenizers.pad(flat, lengths, max_len, fill=fill, first=first, last=last, sticky=eos == "sticky")

  tokens = _tokens(rows, max_len, empty)
  return text_lib.of_one(tokens, at_random=True) if sample_if_multi else text_lib.without_rng(tokens)


@key_op(key="text", outkey="labels", random=True)
def bert_tokenize(
  max_len: NumTokens | FilePath,
  vocab_path: FilePath | NumTokens,
  sample_if_multi: bool = True,
  empty: Empty = "refuse",
):
  """Turns text into `max_len` ids of BERT's uncased WordPiece: [CLS], the tokens, and [PAD] (0) to the end.

  There is no [SEP]: the text towers of LiT (Zhai et al. 2022) were trained without.

  Args:
    max_len: ids a text, the first of which is [CLS]; what is longer is cut. The two may come in either order.
    vocab_path: the `vocab.txt` of a BERT release, or a name; see `core.pp.tokenizers`.
    sample_if_multi: of several texts take one at random, of those that are not empty if any; if False take the first.
    empty: see `tokenize`.
  """
  if isinstance(max_len, str) and isinstance(vocab_path, int):
    max_len, vocab_path = vocab_path, max_len
  if isinstance(max_len, str) or isinstance(vocab_path, int):
    raise UserError(f"wants max_len, a number, and vocab_path, a file; got {max_len!r} and {vocab_path!r}")
  tokenizer = tokenizers.load(vocab_path)
  if not isinstance(tokenizer, tokenizers.WordPiece):
    raise UserError(f"vocab_path={vocab_path!r} is a sentencepiece model; tokenize takes it")

  def rows(texts):
    flat, lengths = tokenizer.encode(texts)
    return lengths, tokenizers.pad(flat, lengths, max_len, fill=0, first=tokenizer.special["cls"])

  return text_lib.of_one(_tokens(rows, max_len, empty), at_random=sample_if_multi)


@key_op(key="text")
def lower(unicode: bool = False):
  """Lower-cases the letters A to Z, or with `unicode` those of all scripts."""
  if unicode:
    return text_lib.map_texts(str.lower)

  def per_example(value):
    import tensorflow as tf

    return tf.strings.lower(value)

  def lowered(texts: list[bytes]) -> list[bytes]:
    return [text.lower() for text in texts]

  return OpFunctions(per_example, text_lib.op_functions(lowered).batched, require_text)


@key_op(key="text")
def canonicalize(keep: str = ""):
  """Makes text lower-case, without ASCII punctuation and with single spaces, as SigLIP's prompts are.

  Args:
    keep: a piece of text whose punctuation stays: "{}".
  """

  def canonical(text: str) -> str:
    return text_lib.canonicalize(text, keep)

  return text_lib.map_texts(canonical)


@op()
def get_single(key: NewKey, index: Index = 0):
  """Takes one entry along the first axis of a key.

  Args:
    key: where the entries are.
    index: which one, from 0 on; a negative one counts from the end.
  """
  outside = f"no entry {index} under {key!r}, which holds:"

  def accepts(held):
    entries = held(key)
    require_entries(entries, key)
    length = entries.shape[0]
    if length is not None and not -length <= index < length:
      raise UserError(f"{outside} {length}")

  def per_example(data):
    import tensorflow as tf

    value = data[key]
    length = tf.shape(value)[0]
    condition = (-length <= index) & (index < length)
    fits = tf.raw_ops.Assert(condition=condition, data=[f"pp op get_single: {outside}", length])
    with tf.control_dependencies([fits]):
      return {**data, key: value[index]}

  def batched(data):
    return {**data, key: data[key][:, index]}

  return OpFunctions(per_example, batched, accepts)


@op()
def coco_captions(outkey: NewKey = "captions"):
  """Puts the texts of TFDS's `coco_captions`, `captions/text` of each example, under `outkey`."""

  def texts(data):
    if not isinstance(data["captions"], dict) or "text" not in data["captions"]:
      raise UserError("'captions' holds no 'text'; this op is for the dataset coco_captions")
    return {**data, outkey: data["captions"]["text"]}

  return both(texts)


def _tokens(
  rows: Callable[[list[bytes]], tuple[Int64[np.ndarray, "n"], np.ndarray]], max_len: int, empty: str
) -> OpFunctions:
  """Returns the forms of a tokenizing op; `rows` gives how many tokens each text has, and the rows of ids."""

  def made(texts, examples):
    lengths, ids = rows(texts)
    # Of several texts of an example, some may be padding.
    filled = lengths.reshape(examples, len(texts) // max(examples, 1)).any(axis=1)
    if empty == "refuse" and not filled.all():
      shown = texts[int(np.argmin(filled)) * (len(texts) // examples)] if texts else b""
      raise UserError(f"the text is empty: {shown!r}; empty='keep' takes it, input.skip_errors=True leaves it out")
    return ids

  return text_lib.op_functions_by_example(made, np.int32, (max_len,))


def _special(tokenizer: tokenizers.SentencePiece, model: str, name: str) -> int:
  found = tokenizer.special[name]
  if found is None:
    raise UserError(f"the model {model!r} has no piece for {name}; give {name}='no'")
  return found


def _pad_id(tokenizer: tokenizers.SentencePiece, model: str, pad_value: str | int) -> int:
  if isinstance(pad_value, str):
    found = tokenizer.id_of(pad_value)
    if found is None:
      raise UserError(f"pad_value {pad_value!r} is no piece of the model {model!r}; give another one, or an id")
    return found
  if pad_value >= tokenizer.size:
    raise UserError(f"pad_value is a piece or an id below {tokenizer.size}, got {pad_value!r}")
  return pad_value
