"""Tokenizers written for transformers, against the pp ops that they were read from.

The library `tokenizers`, which reads the files here, is what transformers 5.24 runs them by.
"""

import json

import numpy as np
import pytest
import tokenizers

from core import data_files
from core.errors import UserError
from core.pp import builder
from tools import export_texts

WITNESS = data_files.find("tools/witness") / "minilm.npz"  # Made by generate_minilm.py beside it.
TEXTS = [
  *("A man is eating food.", "a_b  c", "Nine ZERO 3, seven!", "\u00dcn\u00efcode \ufb01ne \u00bd ", "x" * 50, ""),
  *(
    "\u65e5\u672c\u8a9e text",
    "the digit seven is red",
    "  lead and trail  ",
    "tab\tand\nline",
    "a " * 40,
    "\u0130stanbul",
  ),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A model as sentencepiece trains one by default: unigrams behind its normalization of Unicode."""
  import sentencepiece

  prefix = tmp_path_factory.mktemp("trained") / "unigram"
  lines = [f"{text.lower()} < / > and {text} 0123456789 <unpadded>" for text in TEXTS if text.strip()]
  special = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=3)
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines * 4), model_prefix=str(prefix), vocab_size=120, hard_vocab_limit=False, **special
  )
  return f"{prefix}.model"


def written(pp):
  """A function as transformers' call with padding="max_length" and truncation=True is."""
  made = export_texts.files(pp, "config.evals.val.pp_txt")
  config = json.loads(made["tokenizer_config.json"])
  tokenizer = tokenizers.Tokenizer.from_str(made["tokenizer.json"].decode())
  pad = config["pad_token"]
  tokenizer.enable_truncation(config["model_max_length"])
  tokenizer.enable_padding(length=config["model_max_length"], pad_id=tokenizer.token_to_id(pad), pad_token=pad)
  return lambda text: tokenizer.encode(text).ids


@pytest.mark.parametrize(
  "pp",
  [
    "tokenize(16,model='digit_captions',eos='sticky',pad_value=1)",
    "canonicalize|tokenize(16,model='digit_captions',eos='sticky',pad_value=1)",
    "tokenize(8,model='digit_captions',eos='no',lower=False)",
    "tokenize(16,model=TRAINED,eos='sticky',pad_value=1)",
    "tokenize(16,model=TRAINED,eos='sticky',lower=False)",
    "canonicalize|tokenize(32,model=TRAINED,eos='sticky',bos='yes')",
    "lower(unicode=True)|tokenize(64,model=TRAINED,eos='yes')",
    "bert_tokenize(16,vocab_path='digit_words')",
    "bert_tokenize('digit_words',5)",
  ],
)
def test_the_tokens_are_those_of_the_pp_string(pp, trained):
  pp = pp.replace("TRAINED", repr(trained))
  keeping = pp[:-1] + ",empty='keep')"
  ours = builder.get_batched_fn(keeping)
  tokens = written(pp)
  spelled = ["</s> <pad>"] if trained in pp else []  # With < and / among its pieces: special tokens are text.
  for text in TEXTS + spelled:
    expected = ours({"text": np.array([text.encode()], object)})["labels"][0]
    np.testing.assert_array_equal(tokens(text), expected, err_msg=repr(text))


def test_real_sentences_are_cut_as_transformers_cuts_them(tmp_path):
  with np.load(WITNESS) as file:
    sentences, expected, length = file["sentences"].tolist(), file["tokens"].tolist(), int(file["length"])
  # The longest piece of a vocabulary that fits is the longest of those that were ever taken, too.
  pieces = ["[PAD]", "[UNK]", *sorted({piece for tokens in expected for piece in tokens.split()} - {"[UNK]"})]
  (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", "utf-8")
  pp = f"bert_tokenize({length}, vocab_path='{tmp_path}/vocab.txt')"
  ids = builder.get_batched_fn(pp)({"text": np.array([each.encode() for each in sentences], object)})["labels"]
  tokens = written(pp)
  assert len(sentences) == 50
  for sentence, row, known in zip(sentences, ids, expected):
    assert " ".join(pieces[each] for each in row if each) == known, sentence
    np.testing.assert_array_equal(tokens(sentence), row, err_msg=sentence)


def test_the_settings_are_those_that_transformers_reads():
  made = export_texts.files("tokenize(16,model='digit_captions',eos='sticky',pad_value=1)", "x")
  assert json.loads(made["tokenizer_config.json"]) == {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": 16,
    "padding_side": "right",
    "truncation_side": "right",
    "clean_up_tokenization_spaces": False,
    "split_special_tokens": True,
    "model_input_names": ["input_ids"],
    "unk_token": "<unk>",
    "eos_token": "</s>",
    "pad_token": "</s>",
  }


def test_another_kind_of_sentencepiece_model_is_one_line(tmp_path):
  import sentencepiece

  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["some words of a text"] * 9),
    model_prefix=str(tmp_path / "bpe"),
    vocab_size=30,
    model_type="bpe",
  )
  with pytest.raises(UserError, match=r"^x: of sentencepiece's models unigrams are written, and bpe.model is another$"):
    export_texts.files(f"tokenize(8,model='{tmp_path}/bpe.model',pad_value=0)", "x")


@pytest.mark.parametrize(
  "pp, line",
  [
    ("resize(32)", "x: tokenizes nothing"),
    ("tokenize(8,model='no_such')", "tokenizer 'no_such': no such file"),
    ("canonicalize(keep='{}')|tokenize(8,model='digit_captions')", r"x: canonicalize\(keep=...\) there has no like"),
  ],
)
def test_what_cannot_be_written_is_one_line(pp, line):
  with pytest.raises(UserError, match=line):
    export_texts.files(pp, "x")
