"""A tokenizer's files for transformers, read from a pp string: what `AutoTokenizer.from_pretrained(FOLDER)` loads.

They are of the library `tokenizers` (`tokenizer.json`), so what is done to a text before it is cut into tokens, and
what is put around them, is as the pp string has it. transformers' own classes do more: BERT's puts [SEP] behind a text,
SigLIP's takes punctuation away. With eos="yes" the end stands behind texts that are cut, too, as with "sticky".
"""

import json
import string
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.pp import tokenizers as own
from tools import export_images

_NEVER = -10_000.0  # A score, the logarithm of a probability, that no text's other tokens come down to.


def files(pp: str, where: str) -> dict[str, bytes]:
  """Returns `tokenizer.json` and `tokenizer_config.json` of the tokenizer in a pp string.

  Raises:
    UserError: there is none, it cannot be had, or the library has no like.
  """
  ops = export_images.bound(pp, where)
  chain = [(name, given) for name, given in ops if name in ("lower", "canonicalize", "tokenize", "bert_tokenize")]
  if not chain or "tokenize" not in chain[-1][0]:
    raise UserError(f"{where}: tokenizes nothing")
  name, given = chain[-1]
  before = [_normalizer(*each, where) for each in chain[:-1]]
  length, spec = given["max_len"], given["model"] if name == "tokenize" else given["vocab_path"]
  if isinstance(length, str):  # bert_tokenize takes the two in either order.
    length, spec = spec, length
  tokenizer = own.load(spec)
  make = _word_piece if isinstance(tokenizer, own.WordPiece) else _unigram
  made, special = make(tokenizer, given, before, where)
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": length,
    "padding_side": "right",
    "truncation_side": "right",
    "clean_up_tokenization_spaces": False,
    "split_special_tokens": True,  # Special tokens that a text spells are text.
    "model_input_names": ["input_ids"],
    **special,
  }
  return {
    "tokenizer.json": made.to_str().encode(),
    "tokenizer_config.json": f"{json.dumps(config, indent=2)}\n".encode(),
  }


def _normalizer(name: str, given: dict[str, Any], where: str) -> Any:
  """Returns what an op on texts does to one."""
  from tokenizers import Regex, normalizers

  if name == "lower":
    return normalizers.Lowercase() if given["unicode"] else _lower_ascii()
  if given["keep"]:
    raise UserError(f"{where}: canonicalize(keep=...) there has no like in transformers")
  punctuation = "".join(rf"\x{ord(each):02x}" for each in string.punctuation if each != "_")
  steps = [normalizers.Replace("_", " "), normalizers.Replace(Regex(f"[{punctuation}]"), ""), normalizers.Lowercase()]
  return normalizers.Sequence([*steps, normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()])


def _lower_ascii() -> Any:
  from tokenizers import normalizers

  return normalizers.Sequence([normalizers.Replace(each.upper(), each) for each in string.ascii_lowercase])


def _word_piece(tokenizer: own.WordPiece, given: dict[str, Any], before: list[Any], where: str) -> tuple[Any, dict]:
  """Returns BERT's tokenizer as `bert_tokenize` has it, and its special tokens."""
  from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

  del given, where
  lines = tokenizer.path.read_text("utf-8").split("\n")
  ids = {piece.rstrip(): number for number, piece in enumerate(lines) if number < tokenizer.size}
  made = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
  made.normalizer = normalizers.Sequence([*before, normalizers.BertNormalizer(lowercase=True)])
  made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  made.post_processor = processors.TemplateProcessing(
    single="[CLS] $A", special_tokens=[("[CLS]", tokenizer.special["cls"])]
  )
  (pad,) = [piece for piece, number in ids.items() if number == 0]
  return made, {"pad_token": pad, "cls_token": "[CLS]", "unk_token": "[UNK]"}


def _unigram(tokenizer: own.SentencePiece, given: dict[str, Any], before: list[Any], where: str) -> tuple[Any, dict]:
  """Returns a sentencepiece model as `tokenize` has it, and its special tokens."""
  from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

  proto = _read_model(tokenizer.path, where)
  if proto.trainer_spec.model_type != proto.trainer_spec.UNIGRAM:
    raise UserError(f"{where}: of sentencepiece's models unigrams are written, and {tokenizer.path.name} is another")
  pieces = proto.pieces[: tokenizer.size]
  kind = proto.SentencePiece
  best = max((each.score for each in pieces if each.type == kind.NORMAL), default=0.0)
  # What sentencepiece's search takes for each: that of a piece of its maker's own makes it win.
  scores = {
    kind.USER_DEFINED: lambda each: len(each.piece.encode()) * best - 0.1,
    **dict.fromkeys((kind.CONTROL, kind.UNKNOWN, kind.UNUSED), lambda _: _NEVER),
  }
  vocabulary = [(each.piece, scores.get(each.type, lambda each: each.score)(each)) for each in pieces]
  byte_fallback = proto.trainer_spec.byte_fallback
  made = Tokenizer(models.Unigram(vocabulary, unk_id=tokenizer.special["unk"], byte_fallback=byte_fallback))
  spec = proto.normalizer_spec
  steps = [*before, _lower_ascii()] if given["lower"] else before
  if spec.precompiled_charsmap:
    steps = [*steps, normalizers.Precompiled(spec.precompiled_charsmap)]
  if spec.remove_extra_whitespaces:
    steps = [*steps, normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
  made.normalizer = normalizers.Sequence(steps)
  made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if spec.add_dummy_prefix else "never")
  first = "bos" if given["add_bos"] or given["bos"] == "yes" else None
  last = "eos" if given["eos"] in ("yes", "sticky") else None
  named = {each: pieces[tokenizer.special[each]].piece for each in ("unk", first, last) if each}
  around = [named[first]] if first else [], [named[last]] if last else []
  made.post_processor = processors.TemplateProcessing(
    single=[*around[0], "$A", *around[1]],
    special_tokens=[(named[each], tokenizer.special[each]) for each in (first, last) if each],
  )
  pad = given["pad_value"]
  named["pad"] = pad if isinstance(pad, str) else pieces[pad].piece
  return made, {f"{each}_token": piece for each, piece in named.items()}


def _read_model(path: Path, where: str) -> Any:
  try:
    from sentencepiece import sentencepiece_model_pb2
  except ImportError:
    raise UserError(f"{where}: the library protobuf reads {path.name}, and it is not installed here") from None
  return sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
