"""pp ops on text: tokens of it, its case and punctuation, one of several captions.

Text is UTF-8 bytes under a key, by default `text`; tokens go to `labels` unless told otherwise, int32 [max_len]. A key
that holds several texts gives several rows. Every op has a form for batches in memory. `choice` (`ops_general`) picks
one of several captions at random, `get_single` a certain one.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int64

from core.errors import UserError, nearest
from core.pp import text as text_lib
from core.pp import tokenizers
from core.pp.registry import OpFunctions, both, key_op, op

_EMPTY = ("refuse", "keep")
_EOS = ("yes", "no", "sticky", "none")


@key_op(key="text", outkey="labels")
def tokenize(max_len, eos="yes", model="c4_en", lower=True, pad_value="<pad>", bos="no", empty="refuse"):
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
    pad_value: the piece, or its id, that fills a row; SigLIP's is 1, the end of sentence.
    bos: "yes" or "no": whether the beginning of sentence precedes the text.
    empty: what becomes of an example without a token: "refuse" it (`input.skip_errors=True` counts and skips such
      examples), or "keep" it.
  """
  _check_length(max_len)
  _check("eos", eos, _EOS)
  _check("bos", bos, ("yes", "no"))
  _check("empty", empty, _EMPTY)
  tokenizer = tokenizers.load(model)
  if not isinstance(tokenizer, tokenizers.SentencePiece):
    raise UserError(f"model={model!r} is a WordPiece vocabulary; bert_tokenize takes it")
  first = _special(tokenizer, model, "bos") if bos == "yes" else None
  last = _special(tokenizer, model, "eos") if eos in ("yes", "sticky") else None
  fill = _pad_id(tokenizer, model, pad_value)

  def rows(texts):
    flat, lengths = tokenizer.encode([text.lower() for text in texts] if lower else texts)
    return lengths, tokenizers.pad(flat, lengths, max_len, fill=fill, first=first, last=last, sticky=eos == "sticky")

  return _tokens(rows, max_len, empty)


@key_op(key="text", outkey="labels")
def bert_tokenize(max_len, vocab_path, empty="refuse"):
  """Turns text into `max_len` ids of BERT's uncased WordPiece: [CLS], the tokens, and [PAD] (0) to the end.

  There is no [SEP]: the text towers of LiT (Zhai et al. 2022) were trained without.

  Args:
    max_len: ids a text, the first of which is [CLS]; what is longer is cut. The two may come in either order.
    vocab_path: the `vocab.txt` of a BERT release, or a name; see `core.pp.tokenizers`.
    empty: see `tokenize`.
  """
  if isinstance(max_len, str) and isinstance(vocab_path, int):
    max_len, vocab_path = vocab_path, max_len
  _check_length(max_len)
  _check("empty", empty, _EMPTY)
  tokenizer = tokenizers.load(vocab_path)
  if not isinstance(tokenizer, tokenizers.WordPiece):
    raise UserError(f"vocab_path={vocab_path!r} is a sentencepiece model; tokenize takes it")

  def rows(texts):
    flat, lengths = tokenizer.encode(texts)
    return lengths, tokenizers.pad(flat, lengths, max_len, fill=0, first=tokenizer.special["cls"])

  return _tokens(rows, max_len, empty)


@key_op(key="text")
def lower(unicode=False):
  """Lower-cases the letters A to Z, or with `unicode` those of all scripts."""
  if unicode:
    return text_lib.map_texts(str.lower)

  def per_example(value):
    import tensorflow as tf

    return tf.strings.lower(value)

  return OpFunctions(per_example, text_lib.op_functions(lambda texts: [text.lower() for text in texts]).batched)


@key_op(key="text")
def canonicalize(keep=""):
  """Lower-case, no ASCII punctuation, single spaces, as SigLIP's prompts are; punctuation in `keep` ("{}") stays."""
  if not isinstance(keep, str):
    raise UserError(f"keep is a piece of text whose punctuation stays, got {keep!r}")
  return text_lib.map_texts(lambda text: text_lib.canonicalize(text, keep))


@op()
def get_single(key, index=0):
  """Takes the entry `index` along the first axis of a key; a negative one counts from the end."""
  if isinstance(index, bool) or not isinstance(index, int):
    raise UserError(f"index is a whole number, got {index!r}")

  def check(length):
    if not -length <= index < length:
      raise UserError(f"no entry {index} under {key!r}, which holds {length}")

  def per_example(data):
    import tensorflow as tf

    value = data[key]
    if value.shape[0] is not None:
      check(value.shape[0])
    length = tf.shape(value)[0]
    message = f"pp op get_single: no entry {index} under {key}; it holds"
    fits = tf.raw_ops.Assert(condition=(-length <= index) & (index < length), data=[message, length])
    with tf.control_dependencies([fits]):
      return {**data, key: value[index]}

  def batched(data):
    check(np.shape(data[key])[1])
    return {**data, key: data[key][:, index]}

  return OpFunctions(per_example, batched)


@op()
def coco_captions(outkey="captions"):
  """Puts the texts of TFDS's `coco_captions`, `captions/text` of each example, under `outkey`."""

  def texts(data):
    if not isinstance(data["captions"], dict) or "text" not in data["captions"]:
      raise UserError("'captions' holds no 'text'; this op is for the dataset coco_captions")
    return {**data, outkey: data["captions"]["text"]}

  return both(texts)


def _tokens(
  rows: Callable[[list[bytes]], tuple[Int64[np.ndarray, "n"], np.ndarray]], max_len: int, empty: str
) -> OpFunctions:
  """The forms of a tokenizing op; `rows` gives how many tokens each text has, and the rows of ids."""

  def made(texts, examples):
    lengths, ids = rows(texts)
    # Of several texts of an example, some may be padding.
    filled = lengths.reshape(examples, len(texts) // max(examples, 1)).any(axis=1)
    if empty == "refuse" and not filled.all():
      shown = texts[int(np.argmin(filled)) * (len(texts) // examples)] if texts else b""
      raise UserError(f"the text is empty: {shown!r}; empty='keep' takes it, input.skip_errors=True leaves it out")
    return ids

  functions = lambda examples: text_lib.op_functions(lambda texts: made(texts, examples), np.int32, (max_len,))
  return OpFunctions(functions(1).per_example, lambda values: functions(len(values)).batched(values))


def _check_length(max_len: object) -> None:
  if isinstance(max_len, bool) or not isinstance(max_len, int) or max_len < 1:
    raise UserError(f"max_len is the number of ids a text, a whole number from 1 on, got {max_len!r}")


def _check(name: str, value: object, known: tuple[str, ...]) -> None:
  if value not in known:
    raise UserError(f"{name} cannot be {value!r}{nearest(str(value), known)}")


def _special(tokenizer: tokenizers.SentencePiece, model: str, name: str) -> int:
  found = tokenizer.special[name]
  if found is None:
    raise UserError(f"the model {model!r} has no piece for {name}; give {name}='no'")
  return found


def _pad_id(tokenizer: tokenizers.SentencePiece, model: str, pad_value: object) -> int:
  if isinstance(pad_value, str):
    found = tokenizer.id_of(pad_value)
    if found is None:
      raise UserError(f"pad_value {pad_value!r} is no piece of the model {model!r}; give another one, or an id")
    return found
  if isinstance(pad_value, bool) or not isinstance(pad_value, int) or not 0 <= pad_value < tokenizer.size:
    raise UserError(f"pad_value is a piece or an id below {tokenizer.size}, got {pad_value!r}")
  return pad_value
