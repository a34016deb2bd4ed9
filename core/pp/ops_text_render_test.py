"""The ops that render text, in tf.data and on batches; what they draw is the matter of `render/render_test.py`."""

import numpy as np
import pytest
import tensorflow as tf

from core.data.columns import bytes_column
from core.errors import UserError
from core.pp import builder
from core.pp.render import fonts

TEXTS = ["A photo of\na Seven.", "été ☃", "x " * 500]


def batched(pp, texts, key="text"):
  return builder.get_batched_fn(pp)({key: bytes_column(texts)})


def one_by_one(pp, texts, key="text"):
  dataset = tf.data.Dataset.from_tensor_slices({key: bytes_column(texts)})
  return list(dataset.map(builder.get_preprocess_fn(pp), num_parallel_calls=2).as_numpy_iterator())


@pytest.mark.parametrize("pp", ["render_text(48)", "render_text((32, 64), lower=True, channels=1, wrap='char')"])
def test_both_paths_draw_the_same(pp):
  images = batched(pp, TEXTS)["labels"]
  assert images.dtype == np.uint8
  assert all(np.array_equal(image, each["labels"]) for image, each in zip(images, one_by_one(pp, TEXTS), strict=True))


def test_the_shape_is_known_while_tf_data_traces():
  spec = {"text": tf.TensorSpec([], tf.string)}
  traced = tf.function(builder.get_preprocess_fn("render_text((32, 48))"), autograph=False).get_concrete_function(spec)
  assert traced.structured_outputs["labels"].shape == (32, 48, 3)


def test_it_draws_black_on_the_grey_that_becomes_0():
  image = batched("render_text(32)|value_range(-1, 1, key='labels')", ["x"])["labels"]
  assert sorted({round(float(value), 2) for value in np.unique(image)}) == [-1.0, 0.0]


def test_several_texts_of_an_example_give_several_images():
  texts = bytes_column(["a", "b", "c", "d"]).reshape(2, 2)
  images = builder.get_batched_fn("render_text(16)")({"text": texts})["labels"]
  assert images.shape == (2, 2, 16, 16, 3)
  assert np.array_equal(images[1, 0], batched("render_text(16)", ["c"])["labels"][0])


def test_the_published_op_lower_cases_and_writes_where_published_configs_say():
  pp = f"render_unifont(inkey='texts', outkey='labels', image_size=64, lower=True, font_size=16, text_brightness=0, \
background_brightness=127, font={fonts.NAMED['ascii'][0]!r})|value_range(-1, 1, inkey='labels', outkey='labels')"
  image = batched(pp, ["A Photo"], key="texts")["labels"]
  expected = batched("render_unifont(64, lower=False, font='ascii')", ["a photo"], key="texts")["image"]
  assert np.allclose(image, expected / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("arguments", ["40, lower=False", "50, 8, monospace=True", "70, 24, spacing=2"])
def test_the_published_op_draws_the_same_in_both_paths(arguments):
  pp = f"render_unifont({arguments}, font='ascii')"
  images = batched(pp, TEXTS, key="texts")["image"]
  assert all(
    np.array_equal(image, each["image"]) for image, each in zip(images, one_by_one(pp, TEXTS, "texts"), strict=True)
  )


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_an_empty_text_is_refused_or_kept(text):
  with pytest.raises(UserError, match=r"render_text: the text is empty.*empty='keep'"):
    batched("render_text(16)", ["a", text])
  with pytest.raises(tf.errors.OpError, match="the text is empty"):
    one_by_one("render_text(16)", [text])
  assert np.unique(batched("render_text(16, empty='keep')", [text])["labels"]).tolist() == [127]


def test_some_of_an_examples_texts_may_be_empty():
  pad = builder.get_batched_fn("render_text(16)")
  assert pad({"text": bytes_column(["a", "", "", "d"]).reshape(2, 2)})["labels"].shape == (2, 2, 16, 16, 3)
  with pytest.raises(UserError, match="the text is empty"):
    pad({"text": bytes_column(["a", "b", "", ""]).reshape(2, 2)})


def test_a_batch_of_no_examples():
  """As a component of a mixture gives where a batch has none of it."""
  assert batched("render_text(16)", [])["labels"].shape == (0, 16, 16, 3)


def test_text_that_is_not_utf8_is_refused():
  with pytest.raises(UserError, match="render_text: text is not UTF-8: byte 0xff at place 1"):
    batched("render_text(16)", [b"a\xff"])


@pytest.mark.parametrize(
  "pp, line",
  [
    ("render_text(0)", "image_size must be a whole number"),
    ("render_text((8, 2, 2))", r"image_size must be \(a whole number"),
    ("render_text(15)", "a line of text is 16 pixels high; the image, image_size, 15"),
    ("render_text(32, wrap='words')", "wrap must be one of 'word', 'char', got 'words' .did you mean 'word'"),
    ("render_text(32, unknown='no')", "unknown must be one of"),
    ("render_text(32, empty='skip')", "empty must be one of"),
    ("render_text(32, channels=2)", "channels must be one of 1, 3, got 2"),
    ("render_text(32, text_brightness=1.0)", r"text_brightness must be a whole number in \[0, 255\]"),
    ("render_text(32, background_brightness=256)", r"background_brightness must be a whole number in \[0, 255\]"),
    ("render_text(32, font_size=0)", "font_size must be a whole number"),
    ("render_text(32, max_chars=-1)", r"max_chars must be a whole number in \[1, 1048576\]"),
    ("render_text(32, font='nowhere.hex')", "'nowhere.hex': no such file"),
    ("render_text(32, fnt='ascii')", "unexpected keyword argument 'fnt'"),
  ],
)
def test_arguments_that_do_not_fit_are_refused(pp, line):
  with pytest.raises(UserError, match=f"pp op render_text: .*{line}"):
    builder.steps(pp)
