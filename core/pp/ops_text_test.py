"""Text ops against sentencepiece, transformers' BertTokenizer and plain Python; on batches, without TensorFlow."""

import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from core import data_files
from core.data.columns import bytes_column
from core.errors import UserError
from core.pp import builder, text, tokenizers, vocabulary

WITNESS = data_files.find("core/pp/witness")
MODEL, VOCABULARY = str(WITNESS / "text.model"), str(WITNESS / "bert_vocab.txt")
TEXTS = json.loads((WITNESS / "texts.json").read_text("utf-8"))
SIGLIP = f"tokenize(16, model={MODEL!r}, eos='sticky', pad_value=1)"


def run(pp, texts, key="text", **others):
  """The batch that a pp string makes of some texts, or of arrays of several."""
  texts = np.array(texts, object)
  return builder.get_batched_fn(pp)({key: bytes_column(texts.flat).reshape(texts.shape), **others})


def rows(pp, texts):
  return run(pp, texts)["labels"].tolist()


def witnessed(name):
  """The ids of each text by another's tokenizer."""
  with np.load(WITNESS / "tokens.npz") as file:
    flat, ends = file[f"{name}/ids"], np.cumsum(file[f"{name}/lengths"], dtype=int)
  return [part.tolist() for part in np.split(flat, ends[:-1])]


def padded(ids, length, *, fill, first=(), last=(), sticky=False):
  """What a row is, in plain Python."""
  room = length - len(first)
  if sticky:
    row = [*first, *ids[: room - 1], *last]
  else:
    row = [*first, *ids, *last][:length]
  return row + [fill] * (length - len(row))


@pytest.mark.parametrize("lower", [False, True])
def test_tokens_of_mixed_scripts_are_those_of_sentencepiece(lower):
  theirs = witnessed("sentencepiece_lower" if lower else "sentencepiece")
  assert len(theirs) == len(TEXTS) == 1_000
  ours = rows(f"tokenize(200, model={MODEL!r}, lower={lower}, eos='no', pad_value=0, empty='keep')", TEXTS)
  assert ours == [padded(ids, 200, fill=0) for ids in theirs]


@pytest.mark.parametrize("length", [1, 2, 8, 64])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("eos", ["yes", "no", "none", "sticky"])
def test_rows_are_cut_and_filled_as_the_docstring_says(length, bos, eos):
  if bos and length == 1:
    return
  pp = f"tokenize({length}, eos={eos!r}, model={MODEL!r}, lower=False, bos={'yes' if bos else 'no'!r}, empty='keep')"
  last = [1] if eos in ("yes", "sticky") else []
  expected = [
    padded(ids, length, fill=0, first=[3] if bos else [], last=last, sticky=eos == "sticky")
    for ids in witnessed("sentencepiece")
  ]
  assert rows(pp, TEXTS) == expected
  assert [rows(pp, [text])[0] for text in TEXTS[:100]] == expected[:100]


def test_wordpiece_gives_the_tokens_of_transformers():
  ours = rows(f"bert_tokenize(max_len=200, vocab_path={VOCABULARY!r}, empty='keep')", TEXTS)
  assert ours == [padded(ids, 200, fill=0, first=[2]) for ids in witnessed("bert_fast")]


def test_wordpiece_gives_the_tokens_of_berts_form_in_python_but_for_a_final_capital_sigma():
  ours = rows(f"bert_tokenize({VOCABULARY!r}, 200, empty='keep')", TEXTS)
  different = [
    text for text, ours, theirs in zip(TEXTS, ours, witnessed("bert")) if ours != padded(theirs, 200, fill=0, first=[2])
  ]
  assert len(different) < 30
  assert all("Σ" in text for text in different)  # Python lower-cases it to another letter at the end of a word.


def test_bert_rows_begin_with_cls_and_have_no_sep():
  ours = rows(f"bert_tokenize(4, {VOCABULARY!r})", ["a dog", "a photo of the dog", "[SEP] a"])
  ids = {piece: n for n, piece in enumerate(Path(VOCABULARY).read_text("utf-8").splitlines())}
  assert ours[0] == [ids["[CLS]"], ids["a"], ids["dog"], 0]
  assert ours[1] == [ids["[CLS]"], ids["a"], ids["photo"], ids["of"]]
  assert ids["[SEP]"] not in ours[2]


def test_several_texts_give_several_rows_where_they_are_not_sampled():
  several = np.array(TEXTS[:12], object).reshape(3, 4)
  pp = f"{SIGLIP[:-1]}, sample_if_multi=False, empty='keep')"
  one, many = run(pp, TEXTS[:12]), run(pp, several)
  assert many["labels"].shape == (3, 4, 16)
  assert many["labels"].dtype == np.int32
  np.testing.assert_array_equal(many["labels"].reshape(12, 16), one["labels"])


@pytest.mark.parametrize("pp", [SIGLIP, f"bert_tokenize(16, {VOCABULARY!r})"])
def test_of_several_texts_one_at_random_is_tokenized_as_choice_would_pick_it(pp):
  captions = [["a dog", "a cat", "", ""], ["", "the photo", "", ""]]
  many = np.array(captions, object)[np.arange(200) % 2]
  found = run(pp, many, _seed=np.arange(200))["labels"]
  dog, cat, photo = rows(pp, ["a dog", "a cat", "the photo"])
  assert found[1::2].tolist() == [photo] * 100
  dogs = sum(row == dog for row in found[::2].tolist())
  assert dogs + sum(row == cat for row in found[::2].tolist()) == 100
  assert 30 < dogs < 70


def test_of_several_texts_bert_takes_the_first_where_they_are_not_sampled():
  pp = f"bert_tokenize(8, {VOCABULARY!r}, sample_if_multi=False, empty='keep')"
  assert rows(pp, [["a dog", "a cat"], ["", "a photo"]]) == rows(pp, ["a dog", ""])
  assert run(pp, np.empty((2, 0), object))["labels"].tolist() == rows(pp, ["", ""])


def test_no_text_is_an_empty_one():
  none = np.empty((2, 0), object)
  kept = run(f"{SIGLIP[:-1]}, empty='keep')", none, _seed=np.arange(2))["labels"]
  assert kept.tolist() == [[1] * 16] * 2
  with pytest.raises(UserError, match="the text is empty"):
    run(SIGLIP, none, _seed=np.arange(2))


def test_several_texts_cannot_be_sampled_without_a_seed_and_one_can():
  with pytest.raises(UserError, match="pp op tokenize: is random and there is no key '_seed'"):
    run(SIGLIP, [["a", "b"]])
  assert run(SIGLIP, ["a"])["labels"].shape == (1, 16)


def test_add_bos_is_the_published_name_of_bos():
  pp = f"tokenize(8, 'yes', {MODEL!r}, empty='keep', add_bos=True)"
  assert rows(pp, TEXTS[:9]) == rows(pp.replace("add_bos=True", "bos='yes'"), TEXTS[:9])
  assert rows(pp, ["a dog"])[0][0] == 3


def test_text_is_read_from_text_and_tokens_go_to_labels_unless_told_otherwise():
  assert set(run(SIGLIP, ["a"])) == {"text", "labels"}
  assert set(run(f"{SIGLIP[:-1]}, inkey='caption')", ["a"], key="caption")) == {"caption", "labels"}
  assert run(f"{SIGLIP[:-1]}, key='caption')", ["a"], key="caption")["caption"].shape == (1, 16)
  assert set(run(f"{SIGLIP[:-1]}, outkey='tokens')", ["a"])) == {"text", "tokens"}


@pytest.mark.parametrize(
  "theirs, ours",
  [
    ("A Photo of: a Dog!", "a photo of a dog"),
    ("hot_dog -- (mustard)", "hot dog mustard"),
    ("a_b __c__", "a b c"),  # As the published code has it, not "ab c" as transformers' SiglipTokenizer.
    ("  a\t b\n\u00a0c ", "a b c"),
    ("ÀÉ ΣΑΣ İ", "àé σας i\u0307"),
    ("“quoted” 犬。", "“quoted” 犬。"),
    ("!?", ""),
  ],
)
def test_canonical_text_is_lower_case_without_punctuation(theirs, ours):
  assert run("canonicalize", [theirs])["text"][0].decode() == ours


def test_canonical_prompts_keep_their_place_for_the_name():
  assert text.canonicalize("A photo of {}, {a} Pet.", keep="{}") == "a photo of {} a pet"
  assert run("canonicalize(keep='{}')", ["a {}."])["text"][0] == b"a {}"


def test_lower_takes_ascii_or_all_scripts():
  assert run("lower", ["ÀB Σ"])["text"][0].decode() == "Àb Σ"
  assert run("lower(unicode=True)", ["ÀB Σ"])["text"][0].decode() == "àb σ"


def test_choice_among_captions_passes_over_the_empty_ones():
  captions = [["a", "b", "", ""], ["c", "", "", ""], ["", "", "", ""], ["", "d", "", "e"]]
  data = dict(_seed=np.arange(200))
  many = np.array(captions, object)[np.arange(200) % 4]
  found = run("choice(inkey='captions', outkey='text')", many, key="captions", **data)["text"]
  assert [set(found[n::4]) for n in range(4)] == [{b"a", b"b"}, {b"c"}, {b""}, {b"d", b"e"}]
  assert 15 < np.sum(found[::4] == b"a") < 35


def test_get_single_takes_one_of_several():
  several = np.array([["a", "b"], ["c", "d"]], object)
  assert run("get_single('text')", several)["text"].tolist() == [b"a", b"c"]
  assert run("get_single('text', -1)", several)["text"].tolist() == [b"b", b"d"]
  with pytest.raises(UserError, match="pp op get_single: no entry 2 under 'text', which holds: 2"):
    run("get_single('text', index=2)", several)


@pytest.mark.parametrize(
  "texts, words",
  [
    (["a", ""], "pp op tokenize: the text is empty: b''; empty='keep' takes it, input.skip_errors=True leaves it out"),
    ([["", ""], ["", ""]], "the text is empty"),
    (["a", b"caf\xe9 au lait"], r"text is not UTF-8: byte 0xe9 at place 3 of 'caf"),
    ([b"\xe4\xb8"], "byte 0xe4 at place 0"),
    ([3], "it takes text; the key holds 3"),
  ],
)
def test_a_text_that_cannot_be_used_is_refused_in_one_line(texts, words):
  with pytest.raises(UserError, match=words) as error:
    builder.get_batched_fn(SIGLIP)({"text": np.array(texts, object), "_seed": np.arange(len(texts))})
  assert "\n" not in str(error.value)


def test_some_of_several_texts_may_be_empty():
  assert rows(f"{SIGLIP[:-1]}, sample_if_multi=False)", [["a", ""]])[0][1] == [1] * 16


@pytest.mark.parametrize(
  "pp, words",
  [
    ("tokenize(0, model='digit_captions')", "max_len must be a whole number .*, got 0"),
    ("tokenize(8, 'stiky')", r"eos must be one of .*, got 'stiky' \(did you mean 'sticky'\?\)"),
    ("tokenize(8, eos=True)", "eos must be one of .*, got True"),
    ("tokenize(8, model='c4en')", r"tokenizer 'c4en': no such file, nor a name that is known \(did you mean 'c4_en'"),
    ("tokenize(8, model='nowhere.model')", "tokenizer 'nowhere.model': no such file"),
    ("tokenize(8, model=VOCABULARY)", "is a WordPiece vocabulary; bert_tokenize takes it"),
    ("tokenize(8, model='digit_captions', bos='yes')", "has no piece for bos; give bos='no'"),
    ("tokenize(8, model='digit_captions', pad_value='<padd>')", "pad_value '<padd>' is no piece"),
    ("tokenize(8, model='digit_captions', pad_value=99)", "an id below 74, got 99"),
    ("tokenize(8, model='digit_captions', empty='skip')", "empty must be one of 'refuse', 'keep', got 'skip'"),
    ("bert_tokenize(8, 8)", "wants max_len, a number, and vocab_path, a file; got 8 and 8"),
    ("bert_tokenize(8, MODEL)", "is a sentencepiece model; tokenize takes it"),
    ("bert_tokenize(8, TEXTS)", r"no WordPiece vocabulary; no line of it reads \[CLS\]"),
    ("tokenize(8, model=BROKEN)", "no sentencepiece model"),
    ("canonicalize(keep=3)", "keep must be text, got 3"),
    ("get_single('a', 'b')", "index must be a whole number .*, got 'b'"),
  ],
)
def test_a_bad_tokenizer_is_refused_before_anything_runs(tmp_path, pp, words):
  (tmp_path / "texts.txt").write_text("a\nb\n")
  (tmp_path / "broken.model").write_bytes(b"no model at all")
  names = dict(MODEL=MODEL, VOCABULARY=VOCABULARY, TEXTS=tmp_path / "texts.txt", BROKEN=tmp_path / "broken.model")
  for name, path in names.items():
    pp = pp.replace(name, repr(str(path)))
  with pytest.raises(UserError, match=words) as error:
    builder.get_batched_fn(pp)
  assert "\n" not in str(error.value)


def test_a_tokenizer_is_opened_once_and_pickles_as_its_file():
  for path in (MODEL, VOCABULARY):
    tokenizer = tokenizers.load(path)
    assert tokenizers.load(path) is tokenizer
    assert len(pickle.dumps(tokenizer)) < 500
    assert pickle.loads(pickle.dumps(tokenizer)) is tokenizer


@pytest.mark.parametrize("pp", [SIGLIP, f"bert_tokenize(16, {VOCABULARY!r})"])
def test_threads_share_a_tokenizer(pp):
  texts = [each for each in TEXTS if each.strip().isascii() and each.strip()]
  fn = builder.get_batched_fn(pp)
  column = bytes_column(texts)
  with ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda n: fn({"text": column[n : n + 7]})["labels"], range(0, len(texts), 7)))
  np.testing.assert_array_equal(np.concatenate(found), fn({"text": column})["labels"])


def test_the_vocabulary_is_known_before_a_batch_is():
  pp = f"decode|{SIGLIP}|keep('image','labels')"
  assert vocabulary.vocab_sizes(pp) == {"labels": 800}
  assert vocabulary.vocab_sizes(f"bert_tokenize({VOCABULARY!r}, 8, outkey='txt')") == {"txt": 1377}
  assert vocabulary.vocab_sizes("decode|keep('image')") == {}
  assert tokenizers.vocab_size("digit_captions") == 74
  assert tokenizers.vocab_size("digit_words") == 110


def test_ids_of_sentinels_are_no_part_of_the_vocabulary(tmp_path):
  import sentencepiece

  sentinels = [f"<extra_id_{n}>" for n in range(3)]
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["a b c d e"] * 10),
    model_prefix=str(tmp_path / "t5"),
    vocab_size=20,
    hard_vocab_limit=False,
    user_defined_symbols=sentinels,
    minloglevel=2,
  )
  # The trainer puts them first; T5's file has them last.
  from sentencepiece import sentencepiece_model_pb2

  model = sentencepiece_model_pb2.ModelProto.FromString((tmp_path / "t5.model").read_bytes())
  pieces = sorted(model.pieces, key=lambda piece: piece.piece in sentinels)
  count = len(pieces) - 3
  del model.pieces[:]
  model.pieces.extend(pieces)
  (tmp_path / "t5.model").write_bytes(model.SerializeToString())
  tokenizer = tokenizers.load(str(tmp_path / "t5.model"))
  assert tokenizer.size == count
  ids, _ = tokenizer.encode([b"a <extra_id_1>"])
  assert ids.max() < count
  assert tokenizer.special["unk"] in ids


def test_text_in_memory_needs_no_tensorflow():
  program = f"""
import sys
sys.modules["tensorflow"] = None  # Importing it fails.
import numpy as np
from core.pp import builder
captions = np.array([[b"A dog.", b""], [b"one", b"two"]], object)
pp = "choice(inkey='captions', outkey='text')|canonicalize|lower|copy('text', 'again')|get_single('captions')"
pp += "|{SIGLIP.replace('"', "'")}|bert_tokenize(8, 'digit_words', inkey='again', outkey='bert')"
out = builder.get_batched_fn(pp)(dict(captions=captions, _seed=np.arange(2)))
assert out["labels"].shape == (2, 16) and out["bert"].shape == (2, 8), out
"""
  run = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
  )
  assert run.returncode == 0, run.stderr


def test_a_batch_may_have_no_examples_of_a_mixtures_component():
  fn = builder.get_batched_fn("tokenize(5,model='digit_captions',eos='sticky',pad_value=1)")
  assert fn({"text": bytes_column([])})["labels"].shape == (0, 5)


@pytest.mark.parametrize("piece", "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_id_of_a_wordpiece_is_the_number_of_its_line(tmp_path, piece, end):
  # U+2028 is a piece of BERT's Chinese vocabulary; transformers read later ones one too high (its pull request 860).
  path = tmp_path / "vocabulary.txt"
  path.write_bytes(("\ufeff" + end.join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", piece, "cat"])).encode())
  tokenizer = tokenizers.load(str(path))
  assert [tokenizer.id_of(each) for each in ("[PAD]", "[SEP]", "cat")] == [0, 3, 5]
  assert tokenizer.encode([b"cat"])[0].tolist() == [5]
  assert tokenizer.size == 6
