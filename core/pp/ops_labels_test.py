"""Labels as vectors and names, and numbers of names, in graph mode inside tf.data and on batches."""

import numpy as np
import pytest
import tensorflow as tf

from core.errors import UserError
from core.pp import builder
from core.pp.op_examples import run_tf


@pytest.mark.parametrize(
  "arguments, labels, want",
  [
    ("", 2, [0, 0, 1, 0]),
    ("on=0.9, off=0.1", 0, [0.9, 0.1, 0.1, 0.1]),
    ("", [1, 3, 1, -1], [0, 1, 0, 1]),
    ("", [-1, -1], [0, 0, 0, 0]),
    ("", [], [0, 0, 0, 0]),
    ("multi=False", [1, 3], [[0, 1, 0, 0], [0, 0, 0, 1]]),
  ],
)
def test_onehot(arguments, labels, want):
  data = {"labels": np.array([labels], np.int32)}
  got = run_tf(f"onehot(4, {arguments})", data)[0]["labels"]
  np.testing.assert_array_equal(got, np.float32(want))
  np.testing.assert_array_equal(builder.get_batched_fn(f"onehot(4, {arguments})")(data)["labels"][0], got)


@pytest.mark.parametrize(
  "arguments, labels", [("", 4), ("", -1), ("", [0, 4]), ("", [-2, 0]), ("multi=False", [-1, 0]), ("", 2**40)]
)
def test_a_label_outside_num_classes_is_refused_by_value_depth_and_key(arguments, labels):
  data = {"cls": np.array([labels])}
  wrong = next(label for label in np.atleast_1d(labels) if not 0 <= label < 4)
  pp = f"onehot(4, 'cls', {arguments})"
  with pytest.raises(tf.errors.InvalidArgumentError, match=rf"labels outside \[0, 4\) under key ..cls..:.*{wrong}"):
    run_tf(pp, data)
  with pytest.raises(UserError, match=rf"pp op onehot: labels outside \[0, 4\) under key 'cls': {wrong}"):
    builder.get_batched_fn(pp)(data)


def looked_up(pp, texts):
  """The numbers of both paths, which must be the same."""
  data = {"image": np.array([text.encode() for text in texts], object)}
  together = builder.get_batched_fn(pp)(data)["image"]
  assert together.dtype == np.int64
  assert [out["image"] for out in run_tf(pp, data)] == together.tolist()
  return together.tolist()


def test_a_text_is_looked_up_by_its_line_its_pair_or_its_place(tmp_path):
  (tmp_path / "lines.txt").write_text("cat\ndog\n\nécu\u2028l\n")
  (tmp_path / "pairs.tsv").write_text("cat\t7\ndog dog\t-3\n")
  np.savez(tmp_path / "names.npz", fnames=np.array(["a.jpg", "é.jpg"]), ids=np.array([b"x", b"y"]))
  assert looked_up(f"lookup('{tmp_path}/lines.txt')", ["dog", "", "écu\u2028l", "Cat", "cat"]) == [1, 2, 3, -1, 0]
  assert looked_up(f"lookup('{tmp_path}/pairs.tsv', sep='\\t')", ["dog dog", "cat", "dog"]) == [-3, 7, -1]
  assert looked_up(f"lookup('{tmp_path}/names.npz')", ["é.jpg", "b.jpg", "a.jpg"]) == [1, -1, 0]
  assert looked_up(f"lookup('{tmp_path}/names.npz', npzkey='ids')", ["y", "x"]) == [1, 0]


@pytest.mark.parametrize(
  "name, content, arguments, words",
  [
    ("a.txt", b"x\ny\nx\n", "", "has two numbers for 'x'"),
    ("a.txt", b"x 1\ny\n", ", sep=' '", "line 2 is no text, ' ' and whole number: 'y'"),
    ("a.txt", b"x 1 2\n", ", sep=' '", "line 1 is no text"),
    ("a.txt", b"x 1.5\n", ", sep=' '", "line 1 is no text"),
    ("a.txt", b"\xff\n", "", "line 1 is not UTF-8 text"),
    ("a.npz", b"no zip", "", "no .npz of arrays"),
    ("b.txt", b"", "", "a.txt cannot be read"),
  ],
)
def test_a_mapping_that_cannot_be_used_is_refused_in_one_line(tmp_path, name, content, arguments, words):
  (tmp_path / name).write_bytes(content)
  read = "a.txt" if name == "b.txt" else name
  with pytest.raises(UserError, match=f"pp op lookup: mapping.*{words}") as error:
    builder.get_batched_fn(f"lookup('{tmp_path}/{read}'{arguments})")
  assert "\n" not in str(error.value)


def test_an_npz_without_the_array_or_with_another_kind_of_it_is_refused(tmp_path):
  np.savez(tmp_path / "a.npz", numbers=np.arange(3))
  with pytest.raises(UserError, match=r"mapping .* has no array 'fnames'; it has 'numbers'"):
    builder.get_batched_fn(f"lookup('{tmp_path}/a.npz')")
  with pytest.raises(UserError, match=r"mapping .*: 'numbers' must be a list of texts; it is int64 \[3\]"):
    builder.get_batched_fn(f"lookup('{tmp_path}/a.npz', npzkey='numbers')")


def test_labels_of_imagenet_become_clips_names():
  # The first and last of its list, and the two cranes and the two missiles, as CLIP's notebook of prompts has them.
  labels = np.array([0, 1, 134, 517, 657, 744, 999])
  names = [b"tench", b"goldfish", b"crane bird", b"construction crane", b"missile", b"missile", b"toilet paper"]
  assert builder.get_batched_fn("clip_i1k_label_names")({"label": labels})["labels"].tolist() == names
  assert [out["labels"] for out in run_tf("clip_i1k_label_names", {"label": labels})] == names
  pairs = builder.get_batched_fn("clip_i1k_label_names(key='label')")({"label": np.array([[0, 1], [1, 0]], np.uint8)})
  assert pairs["label"].tolist() == [[b"tench", b"goldfish"], [b"goldfish", b"tench"]]


@pytest.mark.parametrize("label", [-1, 1000])
def test_a_label_without_a_name_is_refused(label):
  data = {"label": np.array([label])}
  with pytest.raises(UserError, match=rf"pp op clip_i1k_label_names: labels outside \[0, 1000\): {label}"):
    builder.get_batched_fn("clip_i1k_label_names")(data)
  with pytest.raises(tf.errors.InvalidArgumentError, match=rf"labels outside \[0, 1000\):.*{label}"):
    run_tf("clip_i1k_label_names", data)
