"""Makes the tokenizers and the tokens that `ops_text_test.py` holds ours against: 1,000 texts of mixed scripts.

  python -m venv ENV && ENV/bin/pip install -r core/pp/witness/generate_tokens_requirements.txt
  ENV/bin/python core/pp/witness/generate_tokens.py core/pp/witness

texts.json        the texts
bert_vocab.txt    a WordPiece vocabulary of 1,377 pieces, trained on them
text.model        a sentencepiece model of 800 pieces, trained on them
tokens.npz        `NAME/ids`, all ids one after the other, and `NAME/lengths`, for the NAMEs
  bert                transformers' BertTokenizerLegacy, the one written in Python, without special tokens
  bert_fast           transformers' BertTokenizer, which runs on the library `tokenizers`
  sentencepiece       sentencepiece itself
  sentencepiece_lower the same after lower-casing A to Z
"""

import io
import json
import random
import sys
from pathlib import Path

import numpy as np
import sentencepiece
import tokenizers
import transformers
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

SEED = 41
TEXTS = 1_000

WORDS = {
  "english": "a photo of the Dog running through tall grass near WATER old bridge two people's bicycle "
  "don't well-known",
  "french": "une Photographie été garçon naïve œuvre À l'école français noël Ça château où déjà",
  "german": "ein Foto der Straße Müller größte ÜBER Äpfel schön heiß Donaudampfschifffahrtsgesellschaft",
  "turkish": "İstanbul ışık çocuk ğ şeker IĞDIR",
  "vietnamese": "một bức ảnh của Việt Nam đường phố người Hà Nội",
  "polish": "Zdjęcie łódź ŻÓŁĆ źrebię ćma część",
  "russian": "фотография собаки Москва бежит ЁЛКА подъезд",
  "greek": "φωτογραφία σκύλος ΑΘΗΝΑ θάλασσα ὁδός",
  "arabic": "صورة كلب يركض في الحديقة مَدْرَسَة ١٢٣",
  "hebrew": "תמונה של כלב שָׁלוֹם ירושלים",
  "hindi": "एक कुत्ते की तस्वीर नमस्ते हिन्दी १२३",
  "bengali": "একটি কুকুরের ছবি বাংলা",
  "tamil": "ஒரு நாயின் படம் தமிழ்",
  "thai": "ภาพถ่ายของสุนัข กรุงเทพ",
  "chinese": "一张狗的照片 北京 中文维基百科 繁體字",
  "japanese": "犬の写真 東京タワー カタカナ ﾊﾝｶｸ ひらがな",
  "korean": "개의 사진 서울 대한민국 한글",
  "georgian": "ძაღლის ფოტო თბილისი",
  "numbers": "3.14 1,000 42 2023-10-05 50% $9.99 №7 1/2 ½ x² H₂O 12:30 ⅷ",
  "marks": "... !? -- — – “quoted” 'single' (round) [square] {} @user #tag a_b c/d e=mc² & * ~ ^ ` | \\ § © ™ €",
  "emoji": "😀 🐕 👩‍🔬 ❤️ 🇫🇷 👍🏽 ☀ ♥ → ∑ √",
  "odd": "ﬁne ＦＵＬＬ e\u0301 n\u0303 a\u0300\u0301 zero\u200bwidth "
  "soft\u00adhyphen nb\u00a0space \ufeffbom x\u0000y tab\tbed \u2028line",
  "long": "supercalifragilisticexpialidocious " + "ab" * 60 + " " + "漢" * 30,
}
SPACES = (" ",) * 12 + ("  ", "\t", "\n", "\u00a0", "\u3000", ", ", "", ". ")


def make_texts() -> list[str]:
  """Most of one or two scripts, some of many, some odd; the first few are the shortest there are."""
  draw = random.Random(SEED)
  groups = {name: words.split(" ") for name, words in WORDS.items()}
  texts = ["a", "A dog.", " ", "  two  spaces  ", "é", "犬", "\u00ad", "😀"]
  while len(texts) < TEXTS:
    names = draw.sample(sorted(groups), draw.choice((1, 1, 2, 2, 3, 8)))
    pieces = []
    for _ in range(draw.randint(1, 14)):
      word = draw.choice(groups[draw.choice(names)])
      pieces += [draw.choice((str, str, str, str.upper, str.title))(word), draw.choice(SPACES)]
    texts.append("".join(pieces))
  return texts


def train_wordpiece(texts: list[str], path: Path) -> None:
  tokenizer = tokenizers.BertWordPieceTokenizer(lowercase=True)
  # Each text once: what is rare in them is then spelled or unknown.
  tokenizer.train_from_iterator(texts, vocab_size=1_377, min_frequency=1, limit_alphabet=350, show_progress=False)
  vocabulary = tokenizer.get_vocab()
  path.write_text("".join(f"{piece}\n" for piece in sorted(vocabulary, key=vocabulary.get)), "utf-8")


def train_sentencepiece(texts: list[str], path: Path) -> None:
  made = io.BytesIO()
  sentencepiece.set_random_generator_seed(SEED)
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(text for text in texts if "\0" not in text and "\n" not in text),
    model_writer=made,
    vocab_size=800,
    character_coverage=0.98,
    normalization_rule_name="identity",  # The rules of the others take 240 kB.
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=3,
    num_threads=1,
    minloglevel=2,
  )
  path.write_bytes(made.getvalue())


def joined(ids: list[list[int]]) -> dict[str, np.ndarray]:
  flat = np.array([number for each in ids for number in each], np.int16)
  return {"ids": flat, "lengths": np.array([len(each) for each in ids], np.int16)}


def lower_ascii(text: str) -> str:
  return "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in text)


def main(folder: Path) -> None:
  texts = make_texts()
  (folder / "texts.json").write_text(json.dumps(texts, indent=0, ensure_ascii=False) + "\n", "utf-8")
  if not (folder / "bert_vocab.txt").exists():  # Its trainer breaks ties differently every time.
    train_wordpiece(texts, folder / "bert_vocab.txt")
  train_sentencepiece(texts, folder / "text.model")
  slow = BertTokenizerLegacy(str(folder / "bert_vocab.txt"))
  fast = transformers.BertTokenizer(str(folder / "bert_vocab.txt"))
  processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "text.model"))
  found = {
    "bert": [slow.encode(text, add_special_tokens=False) for text in texts],
    "bert_fast": [fast.encode(text, add_special_tokens=False) for text in texts],
    "sentencepiece": [processor.encode(text) for text in texts],
    "sentencepiece_lower": [processor.encode(lower_ascii(text)) for text in texts],
  }
  different = sum(a != b for a, b in zip(found["bert"], found["bert_fast"]))
  print(f"bert and bert_fast differ on {different} texts")
  arrays = {f"{name}/{key}": array for name, ids in found.items() for key, array in joined(ids).items()}
  versions = {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__}
  versions |= {"sentencepiece": sentencepiece.__version__, "seed": SEED}
  np.savez_compressed(folder / "tokens.npz", versions=json.dumps(versions), **arrays)


if __name__ == "__main__":
  main(Path(sys.argv[1]))
