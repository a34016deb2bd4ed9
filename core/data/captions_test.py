"""Captions through the input pipeline: in memory and in tf.data, of differing number, empty, damaged, missing."""

import json
import re

import numpy as np
import pytest

from core.data import pipeline
from core.data.columns import bytes_column
from core.data.import_tensorflow import import_tfds
from core.errors import UserError
from core.import_tensorflow import import_tensorflow
from core.recipe import sources
from core.recipe.input import Input
from core.recipe.parse import parse
from core.testing import tiny_tfds

TOKENS = "choice(inkey='captions', outkey='text')|tokenize(8, model='digit_captions', eos='sticky', pad_value=1)"
CAPTIONS = [["a red seven"], ["the digit two", "a photo of two", "two"], ["six above six", "the digits six and six"]]


def write_jsonl(folder, captions, *, images):
  tf = import_tensorflow()
  for n in range(len(captions)):
    (folder / f"{n}.png").write_bytes(tf.io.encode_png(np.full((2, 2, 3), n, np.uint8)).numpy())
  image = (lambda n: {"image": f"{n}.png"}) if images else (lambda n: {"number": n})
  rows = [image(n) | {"captions": some} for n, some in enumerate(captions)]
  (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
  return dict(source="jsonl", path=str(folder / "train.jsonl"))


def config(data, pp=TOKENS, **options):
  return dict(data=data, batch_size=4, pp=f"{pp}|keep('labels')", **options)


def take(config, start, count):
  batches = pipeline.train_batches(parse(Input, config), seed=7, start_step=start)
  found = [next(batches)["labels"] for _ in range(count)]
  skipped = batches.skipped
  batches.close()
  return np.concatenate(found), skipped


def refused(config):
  with pytest.raises(UserError) as error:
    take(config, 0, 6)
  assert "\n" not in str(error.value)
  return str(error.value)


def test_tf_data_and_memory_give_the_same_tokens_and_resume(tmp_path):
  in_tf = config(write_jsonl(tmp_path, CAPTIONS, images=True))
  tokens, _ = take(in_tf, 0, 12)
  in_memory, _ = take(config(write_jsonl(tmp_path, CAPTIONS, images=False)), 0, 12)
  np.testing.assert_array_equal(tokens, in_memory)
  assert len(np.unique(tokens, axis=0)) == 6
  write_jsonl(tmp_path, CAPTIONS, images=True)
  np.testing.assert_array_equal(take(in_tf, 5, 3)[0], tokens[20:32])


@pytest.mark.parametrize("images", [True, False])
def test_an_empty_caption_is_named_or_counted_and_skipped(tmp_path, images):
  captions = [*CAPTIONS, ["", ""], ["  "]]
  data = write_jsonl(tmp_path, captions, images=images)
  line = refused(config(data))
  assert "the text is empty" in line
  assert "skip_errors=True" in line
  if images:
    assert re.search(rf"data: line {4 + ('  ' in line)} of \S+/train\.jsonl", line)
  tokens, skipped = take(config(data, skip_errors=True), 0, 10)
  assert skipped == 16  # Two of five, and 40 examples.
  assert not (tokens == 1).all(axis=1).any()
  kept, _ = take(config(data, pp=f"{TOKENS[:-1]}, empty='keep')"), 0, 10)
  assert (kept == 1).all(axis=1).sum() == 16


def write_tfds(folder, texts):
  tfds = import_tfds()
  features = tfds.features.FeaturesDict({"captions": tfds.features.Sequence({"text": tfds.features.Text()})})
  rows = [{"captions": {"text": some}} for some in texts]
  tiny_tfds.write(folder, "captions", features, {"train": [rows]})
  return dict(name="captions", split="train", data_dir=str(folder))


def test_captions_of_records_differ_in_number(tmp_path):
  data = write_tfds(tmp_path, CAPTIONS)
  tokens, _ = take(config(data, f"coco_captions|{TOKENS}"), 0, 12)
  assert len(np.unique(tokens, axis=0)) == 6


@pytest.mark.parametrize("bad, word", [([b"caf\xe9"], "not UTF-8: byte 0xe9"), ([], "cannot be made an example")])
def test_a_record_whose_text_cannot_be_read_is_named_or_skipped(tmp_path, bad, word):
  data = write_tfds(tmp_path, [*CAPTIONS, bad])
  pp = f"coco_captions|{TOKENS}"
  line = refused(config(data, pp))
  assert "record 3 of captions-train.tfrecord" in line
  assert word in line
  assert take(config(data, pp, skip_errors=True), 0, 10)[1] == 10


def test_a_caption_key_that_is_missing_is_told_with_those_there_are(tmp_path):
  for images in (True, False):
    data = write_jsonl(tmp_path, CAPTIONS, images=images)
    line = refused(config(data, TOKENS.replace("captions", "caption", 1)))
    there = "image" if images else "number"
    assert f"pp op choice: no key 'caption'; the example has: _epoch, _id, _seed, captions, {there}" in line


def test_text_of_another_kind_is_refused_while_tracing(tmp_path):
  data = write_tfds(tmp_path, CAPTIONS)
  line = refused(config(data, "coco_captions|copy('_seed', 'text')|tokenize(8, model='digit_captions')"))
  assert "pp op tokenize: it takes text; the key holds int64" in line


def test_an_evaluation_names_the_empty_caption(tmp_path):
  data = sources.Arrays(columns={"text": bytes_column(["a", "two", ""])})
  pp = "tokenize(8, model='digit_captions')"
  with pytest.raises(UserError, match="pp op tokenize: the text is empty"):
    list(pipeline.eval_batches(data, pp, batch_size=3))
  (batch,) = pipeline.eval_batches(data, f"{pp[:-1]}, empty='keep')", batch_size=4)
  assert batch["labels"].shape == (4, 8)
