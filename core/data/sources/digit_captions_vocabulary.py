"""Makes the tokenizers that ship for the captions of `digit_captions`, `core/pp/vocabularies/digit_*`.

    python -m core.data.sources.digit_captions_vocabulary core/pp/vocabularies

Every word of the captions is one piece; single letters and numerals spell whatever else a person may type.
"""

import io
import itertools
import string
import sys
from pathlib import Path

from core.data.sources import digit_captions

_SPELLING = string.ascii_lowercase + string.digits


def corpus() -> list[str]:
  """Returns a caption for each template and each filling of one of its slots, held-out templates included."""
  fillings = {
    "digit": digit_captions.DIGITS,
    "first": digit_captions.DIGITS,
    "second": digit_captions.DIGITS[1:] + digit_captions.DIGITS[:1],
    "colour": tuple(digit_captions.COLOURS),
    "other": tuple(reversed(digit_captions.COLOURS)),
    "place": digit_captions.PLACES,
    "relation": ("to the left of", "above"),
    "reverse": ("to the right of", "below"),
  }
  count = max(map(len, fillings.values()))
  turns = [{key: values[n % len(values)] for key, values in fillings.items()} for n in range(count)]
  templates = (
    *digit_captions.TEMPLATES,
    *digit_captions.PAIR_TEMPLATES,
    *digit_captions.HELD_OUT_TEMPLATES,
    *digit_captions.HELD_OUT_PAIR_TEMPLATES,
  )
  return [template.format(**turn) for template, turn in itertools.product(templates, turns)]


def words() -> list[str]:
  """Returns the words of the captions, sorted."""
  return sorted({word for caption in corpus() for word in caption.split()})


def sentencepiece_model() -> bytes:
  """Returns a unigram model with T5's special tokens: 0 `<pad>`, 1 `</s>`, 2 `<unk>`."""
  import sentencepiece

  made = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(corpus()),
    model_writer=made,
    model_type="unigram",
    vocab_size=128,
    hard_vocab_limit=False,
    # Words are pieces as they are; one is left, for training must find something.
    user_defined_symbols=["\u2581" + word for word in words()[:-1]],
    required_chars=_SPELLING,
    normalization_rule_name="identity",  # The rules of the others take 240 kB.
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    pad_piece="<pad>",
    eos_piece="</s>",
    unk_piece="<unk>",
    num_threads=1,
    minloglevel=2,
  )
  return made.getvalue()


def wordpiece_vocabulary() -> str:
  """Returns BERT's special tokens, the words, and letters and numerals to begin and to go on with."""
  special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  letters = [letter for letter in _SPELLING if letter not in words()]
  return "\n".join([*special, *words(), *letters, *(f"##{letter}" for letter in _SPELLING)]) + "\n"


def main() -> None:
  folder = Path(sys.argv[1])
  folder.mkdir(exist_ok=True)
  (folder / "digit_captions.model").write_bytes(sentencepiece_model())
  (folder / "digit_words.txt").write_text(wordpiece_vocabulary())


if __name__ == "__main__":
  main()
