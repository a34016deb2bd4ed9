"""How many captions a second become rows of tokens, beside the libraries that do it bare, in one run.

    ./bazelw run //tools/bench:tokenization
    ./bazelw run //tools/bench:tokenization -- --model=c4_en --vocab=bert_base --captions=captions.txt

By default the captions and the tokenizers are made up: ten words a caption, 32,000 pieces each. Each rate is the median
of some rounds in which all take their turn:

- bare: the library alone, one call for all captions, lists of ids: sentencepiece; and transformers' fast BertTokenizer,
  or where transformers is not installed the library `tokenizers` that it runs on, set up as it does.
- bare_padded: the same, cut and filled up to `max_len` in NumPy arrays as plainly as can be.
- batched: the op on batches of `--batch_size` in memory.
- tf_data: the op in a tf.data pipeline, one caption an example, in parallel.

`batched_to_bare_padded` and the like are the medians of the rounds' ratios.
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core import command
from core.data.columns import bytes_column
from core.pp import builder, tokenizers

_LETTERS = "etaoinshrdlucmfwypvbgk"


_COMMAND = command.Command("tokenization [options]", about=__doc__)
_COMMAND.text("model", "a sentencepiece model, by name or file")
_COMMAND.text("vocab", "a WordPiece vocabulary, by name or file")
_COMMAND.text("captions", "a file of captions, one a line", shown="FILE")
_COMMAND.whole("count", "captions that are made up", default=20_000)
_COMMAND.whole("max_len", "tokens a caption", default=64)
_COMMAND.whole("batch_size", "captions", default=1_024)
_COMMAND.whole("rounds", "how often each is measured", default=5)


def main(argv: Sequence[str]) -> int:
  """Prints the rates; returns the exit status."""
  flags, _ = _COMMAND.parse(argv)
  draw = random.Random(0)
  words = ["".join(draw.choices(_LETTERS, k=draw.randint(2, 9))) for _ in range(40_000)]
  if flags.captions:
    captions = Path(flags.captions).read_text("utf-8").split("\n")
  else:
    # As in natural text, a few words are most of it.
    weights = [1 / (rank + 10) for rank in range(len(words))]
    captions = [" ".join(draw.choices(words, weights, k=10)) for _ in range(flags.count)]
  with tempfile.TemporaryDirectory() as folder:
    model = flags.model or _train_sentencepiece(captions, Path(folder))
    vocab = flags.vocab or _write_vocabulary(words, Path(folder))
    result = {"captions": len(captions), "max_len": flags.max_len, "batch_size": flags.batch_size}
    result["sentencepiece"] = measure(
      f"tokenize({flags.max_len}, model={model!r}, eos='sticky', pad_value=1)",
      *_bare_sentencepiece(model),
      captions,
      flags,
    )
    name, encode = _bare_bert(vocab)
    result["bert"] = {"bare_is": name} | measure(
      f"bert_tokenize({flags.max_len}, {vocab!r})", encode, 0, captions, flags
    )
  print(json.dumps(result, indent=2))
  return 0


def measure(
  pp: str, encode: Callable[[list[str]], list[list[int]]], fill: int, captions: list[str], flags: Any
) -> dict[str, float]:
  """Returns the captions a second of each way, and how they compare."""
  column, size = bytes_column(captions), flags.batch_size
  batched = builder.get_batched_fn(pp)

  def bare_padded() -> None:
    rows = np.full((len(captions), flags.max_len), fill, np.int32)
    for row, ids in zip(rows, encode(captions)):
      ids = ids[: flags.max_len]
      row[: len(ids)] = ids

  def in_batches() -> None:
    for first in range(0, len(captions), size):
      batched({"text": column[first : first + size]})

  ways = {
    "bare": lambda: encode(captions),
    "bare_padded": bare_padded,
    "batched": in_batches,
    "tf_data": _in_tf_data(pp, column, size),
  }
  seconds = {way: [] for way in ways}
  for way in ways.values():
    way()  # Not timed: caches, threads, graphs.
  for _ in range(flags.rounds):
    for name, way in ways.items():
      began = time.perf_counter()
      way()
      seconds[name].append(time.perf_counter() - began)
  found = {name: round(len(captions) / statistics.median(each)) for name, each in seconds.items()}

  def ratio(name: str, base: str) -> float:
    return round(statistics.median(b / a for a, b in zip(seconds[name], seconds[base])), 3)

  return found | {
    "batched_to_bare": ratio("batched", "bare"),
    "batched_to_bare_padded": ratio("batched", "bare_padded"),
    "tf_data_to_bare": ratio("tf_data", "bare"),
  }


def _in_tf_data(pp: str, column: np.ndarray, size: int) -> Callable[[], None]:
  import tensorflow as tf

  fn = builder.get_preprocess_fn(f"{pp}|keep('labels')")
  made = tf.data.Dataset.from_tensor_slices({"text": column}).map(fn, num_parallel_calls=tf.data.AUTOTUNE).batch(size)

  def run() -> None:
    for _ in made.as_numpy_iterator():
      pass

  return run


def _bare_sentencepiece(model: str) -> tuple[Callable[[list[str]], list[list[int]]], int]:
  import sentencepiece

  processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizers.load(model).path))
  return lambda captions: processor.encode(captions, add_eos=True, num_threads=-1), 1


def _bare_bert(vocab: str) -> tuple[str, Callable[[list[str]], list[list[int]]]]:
  path = str(tokenizers.load(vocab).path)
  try:
    import transformers

    fast = transformers.BertTokenizerFast(path)
    return "transformers", lambda captions: fast(captions, add_special_tokens=True)["input_ids"]
  except ImportError:
    from tokenizers import BertWordPieceTokenizer

    bare = BertWordPieceTokenizer(path, lowercase=True)
    return "tokenizers", lambda captions: [each.ids for each in bare.encode_batch(captions)]


def _train_sentencepiece(captions: list[str], folder: Path) -> str:
  import sentencepiece

  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(captions),
    model_prefix=str(folder / "bench"),
    vocab_size=32_000,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  return str(folder / "bench.model")


def _write_vocabulary(words: list[str], folder: Path) -> str:
  """Writes BERT's special tokens, half of the words, and letters to spell the others."""
  pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
  pieces = list(dict.fromkeys([*pieces, *words[::2], *(f"##{word}" for word in words[1:12_000:2])]))[:32_000]
  (folder / "bench.txt").write_text("\n".join(pieces) + "\n")
  return str(folder / "bench.txt")


if __name__ == "__main__":
  command.run(main)
