"""Recall is what a brute-force search in double precision finds, whatever the batch size and parts; ties are chance."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.data.sources import digit_captions
from core.errors import UserError
from core.evaluators import retrieval
from core.recipe.parse import parse
from core.recipe.sources import Source
from core.recipe.types import Refused
from core.testing import compilation, generated_tfds, linear_image_text

jax.config.update("jax_num_cpu_devices", 8)

PATH = r"^config\.evals\.test"  # How every line begins.

DATA = dict(source="digit_captions", split="test[:203]")
BASE = dict(
  type="retrieval", data=DATA, pp_img=linear_image_text.PP_IMG, pp_txt=linear_image_text.PP_TXT, batch_size=64
)

quick_compilation = compilation.quick(scope="function")


def evaluator(predict=None, **options):
  return linear_image_text.evaluator(BASE | options, predict)


def captions():
  return [[text.decode() for text in row] for row in digit_captions.load(split="test[:203]").arrays["captions"]]


def brute_force(zimg, ztxt, owner, k):
  """Recall at k both ways, by sorting all; for embeddings without ties."""
  found = {}
  ranked = np.argsort(-(zimg @ ztxt.T), axis=1)[:, :k]
  found[f"img2txt_recall@{k}"] = np.mean([(owner[row] == image).any() for image, row in enumerate(ranked)])
  ranked = np.argsort(-(ztxt @ zimg.T), axis=1)[:, :k]
  found[f"txt2img_recall@{k}"] = np.mean([owner[text] in row for text, row in enumerate(ranked)])
  return found


def untied(most=4):
  """Predictions whose embeddings have something of the image and differ from caption to caption, so that none are tied.

  Returns:
    The predictions, and what they must give in double precision: embeddings of images, of texts, and whose these are.
  """
  rows = [row[:most] for row in captions()]
  owner = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
  of_image, of_text = (np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32) for n in (203, len(owner)))
  of_text += of_image[owner]

  def noisy(side, noise):
    table = jnp.asarray(noise)
    return lambda variables, batch: (
      linear_image_text.PREDICT[side](variables, batch)[0] + table[jnp.maximum(batch["_id"], 0)],
      {},
    )

  zimg = linear_image_text.images("test[:203]") + of_image
  ztxt = linear_image_text.texts([text for row in rows for text in row]) + of_text
  return (
    {**linear_image_text.PREDICT, "image": noisy("image", of_image), "text": noisy("text", of_text)},
    zimg,
    ztxt,
    owner,
  )


@pytest.mark.parametrize("batch_size, most", [(8, 1 << 26), (104, 3 * 203), (512, 1)])
def test_recall_is_that_of_a_brute_force_search(monkeypatch, batch_size, most):
  monkeypatch.setattr(retrieval, "_MAX_SCORES", most)
  predict, *witness = untied()
  evaluation = evaluator(predict, batch_size=batch_size)
  evaluation.check(linear_image_text.variables())
  found = evaluation.run(linear_image_text.variables())
  want = {}
  for k in (1, 5, 10):
    want |= brute_force(*witness, k)
  assert found == want
  assert 0 < found["img2txt_recall@1"] < found["txt2img_recall@10"] < 1


def test_only_the_first_captions_of_each_image_may_be_asked_for():
  predict, *witness = untied(most=2)
  assert evaluator(predict, captions_per_image=2, k=3).run(linear_image_text.variables()) == brute_force(*witness, 3)


def test_ties_are_taken_to_fall_at_random():
  """The witness counts all orders in which the tied may stand."""
  rng = np.random.default_rng(0)
  for _ in range(30):
    tied, ahead = rng.integers(1, 7), rng.integers(0, 4)
    right = rng.integers(1, tied + 1)
    k = int(rng.integers(1, 8))
    orders = list(itertools.combinations(range(tied), right))
    want = np.mean([ahead + order[0] < k for order in orders])
    found = retrieval.recall_at(k, np.array([ahead]), np.array([tied]), np.array([right]))
    np.testing.assert_allclose(found, want, rtol=1e-12)


def test_a_model_that_gives_all_the_same_finds_by_chance():
  same = lambda variables, batch: (jnp.ones((batch["_id"].shape[0], 4)), {})
  predict = {**linear_image_text.PREDICT, "image": same, "text": same}
  found = evaluator(predict, data=DATA | dict(split="test[:100]"), k=5).run(linear_image_text.variables())
  assert found["txt2img_recall@5"] == pytest.approx(5 / 100)
  # 400 texts, 4 of them right: none of them is among 5 that are drawn.
  missed = np.prod([(396 - j) / (400 - j) for j in range(5)])
  assert found["img2txt_recall@5"] == pytest.approx(1 - missed)


def test_a_model_that_gives_nan_finds_nothing():
  nan = lambda variables, batch: (jnp.full((batch["_id"].shape[0], 4), jnp.nan), {})
  found = evaluator({**linear_image_text.PREDICT, "image": nan, "text": nan}, k=(1, 1000)).run(
    linear_image_text.variables()
  )
  assert set(found.values()) == {0.0}


def test_all_images_of_a_caption_may_count():
  """A model that knows the words finds each text; that it stands for several images is no fault."""
  words = lambda variables, batch: (jax.nn.one_hot(batch["labels"], 200).sum(axis=1), {})
  data = DATA | dict(digits=1)
  whole = digit_captions.load(split="test[:203]", digits=1).arrays["caption"]
  tokens = linear_image_text.builder.get_batched_fn(linear_image_text.PP_TXT)({"text": whole})["labels"]
  table = jax.nn.one_hot(jnp.asarray(tokens), 200).sum(axis=1)
  image = lambda variables, batch: (table[jnp.maximum(batch["_id"], 0)], {})
  predict = {**linear_image_text.PREDICT, "image": image, "text": words}
  options = dict(data=data, txt_name="caption", k=1)
  found = evaluator(predict, **options, same_text_counts=True).run(linear_image_text.variables())
  assert set(found.values()) == {1.0}
  strict = evaluator(predict, **options).run(linear_image_text.variables())
  assert strict["txt2img_recall@1"] < 1.0


def test_pairs_are_matched_as_the_captions_say():
  found = retrieval.match([["a", "b"], ["b"]])
  assert found.texts == ("a", "b", "b")
  assert found.texts_of.tolist() == [[0, 1], [2, -1]]
  assert found.images_of.tolist() == [[0], [0], [1]]
  found = retrieval.match([["a", "b"], ["b"]], same_text_counts=True)
  assert found.texts == ("a", "b")
  assert found.texts_of.tolist() == [[0, 1], [1, -1]]
  assert found.images_of.tolist() == [[0, -1], [0, 1]]


def test_what_is_empty_is_counted_and_left_out_where_it_may_be():
  rows = [["a", " "], [], ["b", "c"]]
  with pytest.raises(Refused, match=r"1 captions without a word, 1 images without a caption; the first .* index 1"):
    retrieval.match(rows)
  found = retrieval.match(rows, skip_empty=True)
  assert found.texts == ("a", "b", "c")
  assert found.images.tolist() == [0, 2]
  assert found.images_of.tolist() == [[0], [1], [1]]
  assert found.skipped == {"skipped_captions": 1, "skipped_images": 1}
  with pytest.raises(Refused, match="none of the 2 images has a caption"):
    retrieval.match([[], [""]], skip_empty=True)


def test_the_captions_of_coco_are_read_with_their_number(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  generated_tfds.write(tmp_path, "coco_captions", splits={"val": 7})
  data = dict(name="coco_captions", split="val")
  read = functools.partial(retrieval.read_captions, parse(Source, data), where="x")
  rows = read()
  assert [len(row) for row in rows] == [2] * 7
  assert rows == read(("captions", "text"), 5)
  assert read("captions/text", 1) == [row[:1] for row in rows]
  pp = "decode|resize(16)|value_range(-1,1)"
  evaluation = evaluator(data=data, pp_img=pp, batch_size=8)
  evaluation.check(linear_image_text.variables())
  assert 0 <= evaluation.run(linear_image_text.variables())["txt2img_recall@5"] <= 1
  batch = next(iter(evaluation.data))
  assert batch["image"].shape == (8, 16, 16, 3)
  assert batch["labels"].shape == (8, 12)


def test_an_interrupted_evaluation_gives_nothing():
  assert evaluator().run(linear_image_text.variables(), interrupted=lambda: True) is None


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(txt_name="capt"), ".txt_name: the examples have no key 'capt' .did you mean 'caption'"),
    (dict(txt_name="label"), ".txt_name names 'label', which holds .*captions are text"),
    (
      dict(data=dict(name="digits", split="test")),
      ".txt_name: the examples have no captions/text or captions or",
    ),
    (dict(pp_img="value_rnge(-1,1)"), ".pp_img: pp op 'value_rnge' is unknown"),
    (dict(pp_txt="lower("), ".pp_txt must be ops joined by .*pp string cannot be read"),
    (dict(txt_name=[]), ".txt_name must be a list of at least one"),
    (dict(skip_empty=1), ".skip_empty must be True or False, got 1"),
    (dict(k=0), ".k must be a whole number from 1 on or a list of at least one, got 0"),
    (
      dict(captions_per_image=0),
      ".captions_per_image must be a whole number from 1 on, got 0",
    ),
    (dict(batch_size=63), ".batch_size: 63 examples cannot be split"),
  ],
)
def test_a_mistake_is_one_line(options, words):
  with pytest.raises(UserError, match=PATH + words):
    evaluator(**options)


def test_text_that_is_not_utf8_is_named(tmp_path):
  rows = np.array([b"fine", "Käfer".encode("latin-1")], "S")
  np.savez(tmp_path / "data.npz", image=np.zeros((2, 16, 16, 3), np.uint8), caption=rows)
  with pytest.raises(
    UserError, match=PATH + r".txt_name names 'caption', which in the example with index 1 is not UTF-8"
  ):
    evaluator(data=dict(source="arrays", path=str(tmp_path / "data.npz")))


def test_sides_that_do_not_fit_are_refused_before_the_first_step():
  wide = {**linear_image_text.PREDICT, "image": lambda variables, batch: (jnp.zeros((64, 3)), {})}
  with pytest.raises(UserError, match=PATH + r".pred gives images embeddings of size 3, texts of size 8"):
    evaluator(wide).check(linear_image_text.variables())
