"""Tokenizers by name or file: sentencepiece models and WordPiece vocabularies, opened once a process.

    c4_en, cc_all, t5, mc4, gemma, ...      published sentencepiece models, fetched when first used
    bert_base, bert_large                   the vocabulary beside the published BERT weights
    digit_captions, digit_words             a sentencepiece model and a vocabulary of this repository's own, for the
                                            captions of `core/data/sources/digit_captions.py`
    PATH.model, PATH.txt, gs://..., ...     any other, a file ending in .txt being a WordPiece vocabulary

T. Kudo, J. Richardson 2018, "SentencePiece"; M. Schuster, K. Nakajima 2012 and J. Devlin et al. 2019 (WordPiece, BERT).
The libraries `sentencepiece` and `tokenizers` do the work; both release the threads of a batch to C++ and Rust.
"""

import functools
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from core import data_files, text_lines
from core.checkpoint import catalog, remote
from core.errors import UserError, nearest
from core.pp import text

_SHIPPED = data_files.find("core/pp/vocabularies")

# The names that configs of published models use. mc4 is the vocabulary of mT5, gemma that of SigLIP 2.
SENTENCEPIECE = {
  "c4_en": "gs://t5-data/vocabs/cc_en.32000/sentencepiece.model",
  "cc_all": "gs://t5-data/vocabs/cc_all.32000/sentencepiece.model",
  "t5": "gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model",
  "mc4": "gs://t5-data/vocabs/mc4.250000.100extra/sentencepiece.model",
  "gemma": "gs://big_vision/paligemma_tokenizer.model",
  "digit_captions": str(_SHIPPED / "digit_captions.model"),
}
WORDPIECE = {
  **{name: f"{catalog.locate('bert', name)}/vocab.txt" for name in ("bert_base", "bert_large")},
  "digit_words": str(_SHIPPED / "digit_words.txt"),
}

# Texts a thread gets at least; starting threads takes as long as some dozens.
_TEXTS_A_THREAD = 128


class SentencePiece:
  """A sentencepiece model. It may be shared by threads, and pickles as the path of its file.

  Attributes:
    path: of the file.
    size: of the vocabulary: ids are in [0, size). Without the sentinels `<extra_id_N>` that T5's files end in, which
      models of images do not embed; a text that spells one gives the unknown token.
    special: ids of `bos`, `eos` and `unk`; None where the model has none.
  """

  def __init__(self, path: Path):
    import sentencepiece

    self.path = path
    try:
      self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
      raise UserError(f"tokenizer {path}: no sentencepiece model ({str(error).splitlines()[0][:80]})") from None
    processor = self._processor
    self.size = processor.vocab_size()
    while self.size > 1 and processor.id_to_piece(self.size - 1).startswith("<extra_id_"):
      self.size -= 1
    ids = {"bos": processor.bos_id(), "eos": processor.eos_id(), "unk": processor.unk_id()}
    self.special = {name: number if number >= 0 else None for name, number in ids.items()}

  def __reduce__(self):
    return load, (str(self.path),)

  def encode(self, texts: Sequence[bytes]) -> tuple[Int32[np.ndarray, "tokens"], Int64[np.ndarray, "n"]]:
    """Returns the ids of all texts, one after the other, and how many each has.

    Raises:
      UserError: a text that is not UTF-8.
    """
    text.check_utf8(texts)
    threads = min(_processors(), len(texts) // _TEXTS_A_THREAD)
    encode = self._processor.encode
    flat, lengths = _joined(encode(list(texts), num_threads=threads) if threads > 1 else list(map(encode, texts)))
    flat[flat >= self.size] = self.special["unk"]
    return flat, lengths

  def id_of(self, piece: str) -> int | None:
    """Returns the id of a piece, None if there is no such."""
    number = self._processor.piece_to_id(piece)
    return number if self._processor.id_to_piece(number) == piece else None


class WordPiece:
  """BERT's tokenizer, uncased: accents dropped, Chinese characters and punctuation split off. Pickles as its path.

  Special tokens spelled in a text are text.

  Attributes:
    path: of the vocabulary, a piece a line; the id is the number of the line, from 0.
    size: of the vocabulary.
    special: ids of `cls`, `sep`, `pad` and `unk`; None where the vocabulary has none.
  """

  def __init__(self, path: Path):
    import tokenizers

    self.path = path
    lines = list(text_lines.read(path, "tokenizer"))
    # White space behind a piece is none of it, but a line of nothing else is a piece: U+2028 is one of BERT's Chinese.
    self._ids = {piece.rstrip() or piece: number for number, piece in enumerate(lines)}
    self.size = len(lines)
    self.special = {name: self._ids.get(f"[{name.upper()}]") for name in ("cls", "sep", "pad", "unk")}
    for name in ("cls", "unk"):
      if self.special[name] is None:
        raise UserError(f"tokenizer {path}: no WordPiece vocabulary; no line of it reads [{name.upper()}]")
    model = tokenizers.models.WordPiece(self._ids, unk_token="[UNK]", max_input_chars_per_word=100)
    self._tokenizer = tokenizers.Tokenizer(model)
    self._tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    self._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()

  def __reduce__(self):
    return load, (str(self.path),)

  def encode(self, texts: Sequence[bytes]) -> tuple[Int32[np.ndarray, "tokens"], Int64[np.ndarray, "n"]]:
    """Returns the ids of all texts, one after the other, without [CLS] and [SEP], and how many each has.

    Raises:
      UserError: a text that is not UTF-8.
    """
    found = self._tokenizer.encode_batch_fast(text.decoded(texts), add_special_tokens=False)
    return _joined([encoding.ids for encoding in found])

  def id_of(self, piece: str) -> int | None:
    """Returns the id of a piece, None if there is no such."""
    return self._ids.get(piece)


Tokenizer = SentencePiece | WordPiece


def load(spec: str) -> Tokenizer:
  """Returns the tokenizer that `spec` names (see the top of this file), opened once a process.

  Raises:
    UserError: an unknown name, a file that is not there or is no tokenizer, or cannot be fetched.
  """
  known = {**SENTENCEPIECE, **WORDPIECE}
  if not isinstance(spec, str) or not spec:
    raise UserError(f"a tokenizer is a name or a file, got {spec!r}")
  path = remote.fetch(known.get(spec, spec))
  if not path.is_file():
    if spec in known:
      raise UserError(f"tokenizer {spec!r}: its file {path} is missing")
    raise UserError(f"tokenizer {spec!r}: no such file, nor a name that is known{nearest(spec, known)}")
  stat = path.stat()
  return _open(path, WordPiece if path.suffix == ".txt" else SentencePiece, stat.st_mtime_ns, stat.st_size)


def vocab_size(spec: str) -> int:
  """Returns the size of a tokenizer's vocabulary: its ids are in [0, vocab_size).

  Raises:
    UserError: as `load`.
  """
  return load(spec).size


def pad(
  flat: Int32[np.ndarray, "tokens"],
  lengths: Int64[np.ndarray, "n"],
  max_len: int,
  *,
  fill: int,
  first: int | None = None,
  last: int | None = None,
  sticky: bool = False,
) -> Int32[np.ndarray, "n max_len"]:
  """Returns a row of exactly `max_len` ids a text, cut or filled up.

  Args:
    flat: the ids of all texts, one after the other.
    lengths: how many each has.
    max_len: the length of a row.
    fill: the id behind a text's end.
    first: an id to put before each text.
    last: an id to put behind each text, where there is room for it.
    sticky: there always is: a text that is too long loses one id more.
  """
  before = first is not None
  room = max_len - before
  if len(lengths) == 1:  # As below, at a third of the time, for pipelines that make examples one by one.
    count = len(flat) + (last is not None)
    row = np.full((1, max_len), fill, np.int32)
    row[0, before : before + len(flat)] = flat[:room]
    if before:
      row[0, 0] = first
    if last is not None and (sticky or count <= room):
      row[0, before + min(count, room) - 1] = last
    return row
  row = np.repeat(np.arange(len(lengths)), lengths)
  column = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
  rows = np.full((len(lengths), max_len), fill, np.int32)
  fits = column < room
  rows[row[fits], column[fits] + before] = flat[fits]
  if before:
    rows[:, 0] = first
  if last is not None:
    end = np.minimum(lengths, room - 1) if sticky else lengths
    (here,) = np.nonzero(end < room)
    rows[here, end[here] + before] = last
  return rows


@functools.lru_cache(maxsize=32)
def _open(path: Path, kind: Any, *_state: int) -> Tokenizer:
  return kind(path)


@functools.cache
def _processors() -> int:
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _joined(ids: list[list[int]]) -> tuple[Int32[np.ndarray, "tokens"], Int64[np.ndarray, "n"]]:
  lengths = np.fromiter(map(len, ids), np.int64, len(ids))
  return np.fromiter(itertools.chain.from_iterable(ids), np.int32, lengths.sum()), lengths
