"""The ops of this project: pairs of sentences, and labelled images among pairs; in tf.data and on batches."""

import numpy as np
import pytest

from core.data.columns import bytes_column
from core.errors import UserError
from core.import_tensorflow import import_tensorflow
from core.pp import builder
from projects.clippo.pp import labelled, sentences  # noqa: F401 (the ops register themselves)
from projects.clippo.pp.sentences import split_sentences


@pytest.mark.parametrize(
  "text, expected",
  [
    ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
    ("Mr. J. Smith saw Dr. Who, e.g. here. He left.", ["Mr. J. Smith saw Dr. Who, e.g. here.", "He left."]),
    ('"Stop!" she said. (He did.) Then...  he ran.', ['"Stop!" she said.', "(He did.)", "Then...  he ran."]),
    ("It costs 3.50 at www.a.org now. Buy", ["It costs 3.50 at www.a.org now.", "Buy"]),
    ("A title\nA line.\n\nAnother", ["A title", "A line.", "Another"]),
    ("これは文です。次の文。", ["これは文です。", "次の文。"]),
    ("  ", []),
  ],
)
def test_sentences_end_where_a_reader_ends_them(text, expected):
  assert split_sentences(text) == expected


def streamed(pp, data):
  """The outputs of tf.data, one dict an example."""
  tf = import_tensorflow()
  return list(tf.data.Dataset.from_tensor_slices(data).map(builder.get_preprocess_fn(pp)).as_numpy_iterator())


def both(pp, data):
  """The outputs of the two paths, each a list of one dict an example."""
  batch = builder.get_batched_fn(pp)(data)
  return [{key: value[row] for key, value in batch.items()} for row in range(len(data["_seed"]))], streamed(pp, data)


TEXT = b"First one. Second one. Third one. Fourth one."


def test_a_pair_is_a_random_sentence_and_the_next():
  n = 200
  batched, in_tf = both("sentence_pair", {"text": bytes_column([TEXT] * n), "_seed": np.arange(n)})
  assert [each["first"] for each in batched] == [each["first"] for each in in_tf]
  assert [each["second"] for each in batched] == [each["second"] for each in in_tf]
  follows = {b"First one.": b"Second one.", b"Second one.": b"Third one.", b"Third one.": b"Fourth one."}
  assert all(follows[each["first"]] == each["second"] for each in batched)
  counts = [sum(each["first"] == first for each in batched) for first in follows]
  assert min(counts) > 40  # Of 67; six standard deviations are 40 less.


def test_texts_of_unequal_numbers_of_sentences_go_in_one_batch():
  texts = bytes_column([TEXT, b"One. Two.", b"just some words here"])
  batched, in_tf = both("sentence_pair(outkeys=('a', 'b'))", {"text": texts, "_seed": np.arange(3)})
  assert batched[1]["a"] == in_tf[1]["a"] == b"One."
  assert (batched[2]["a"], batched[2]["b"]) == (in_tf[2]["a"], in_tf[2]["b"]) == (b"just some", b"words here")


@pytest.mark.parametrize("pp, text", [("sentence_pair", b"word"), ("sentence_pair(short='refuse')", b"two words")])
def test_a_text_that_gives_no_pair_is_refused(pp, text):
  data = {"text": bytes_column([text]), "_seed": np.zeros(1, np.int64)}
  with pytest.raises(UserError, match=r"sentence_pair: the text has no two sentences.*skip_errors"):
    builder.get_batched_fn(pp)(data)
  with pytest.raises(import_tensorflow().errors.OpError, match="no two sentences"):
    streamed(pp, data)


def test_labelled_images_and_pairs_have_the_same_keys_types_and_shapes():
  data = {"image": np.ones((4, 8, 8, 3), np.float32), "label": np.array([0, 6, 3, 1]), "_seed": np.arange(4)}
  pair = {**data, "labels": data["image"]}
  for ours, theirs in zip(both("labelled(7)|keep('image','labels','label')", data), both("paired", pair)):
    for a, b, label in zip(ours, theirs, data["label"]):
      assert a["label"] == label
      assert b["label"] == -1
      assert not a["labels"].any()
      assert {key: (value.dtype, value.shape) for key, value in a.items()} == {
        key: (value.dtype, value.shape) for key, value in b.items()
      }


def test_labels_that_there_are_not_are_refused():
  data = {"image": np.ones((2, 8, 8, 3), np.float32), "label": np.array([0, 7])}
  with pytest.raises(UserError, match=r"labels outside \[0, 7\) under key 'label': 7"):
    builder.get_batched_fn("labelled(7)")(data)
  with pytest.raises(import_tensorflow().errors.OpError, match=r"outside \[0, 7\)"):
    streamed("labelled(7)", data)
  with pytest.raises(UserError, match="one label, an integer, not float"):
    builder.get_batched_fn("labelled(7)")({**data, "label": np.zeros(2)})


@pytest.mark.parametrize(
  "pp, line",
  [
    ("sentence_pair(short='no')", "short must be one of 'halve', 'refuse', got 'no'"),
    ("sentence_pair(outkeys='ab')", r"outkeys must be \(a key, a key\), got 'ab'"),
    ("sentence_pair(outkeys=('a', 'a'))", "outkeys must be two different keys"),
    ("labelled(0)", "num_classes must be a whole number"),
  ],
)
def test_arguments_that_do_not_fit_are_refused(pp, line):
  with pytest.raises(UserError, match=line):
    builder.steps(pp)
