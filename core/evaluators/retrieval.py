"""Retrieval: how often an image's captions are among the texts nearest to it, and a caption's image among images."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int, Shaped

from core import sharding as sharding_lib
from core.data import pipeline
from core.errors import UserError, nearest
from core.evaluators import batches, text_embeddings, transfer_features
from core.recipe import words
from core.recipe.evaluators import Retrieval
from core.recipe.evaluators_base import as_tuple
from core.recipe.types import Refused
from core.state import Predict, Variables

# Similarities a device holds at once: 128 MiB of them, and what is computed from them.
_MAX_SCORES = 1 << 25
_CAPTION_KEYS = ("captions/text", "captions", "texts", "caption", "text")


class Evaluator:
  """`img2txt_recall@K` and `txt2img_recall@K`: shares of the queries with a right answer among the K best.

  Every image is asked for once, and each of its captions is a right answer. Every caption is asked for once, and its
  image is the right answer. COCO and Flickr30k are reported so (Karpathy & Fei-Fei 2015), COCO by
  `data=dict(name="coco_captions", split=...)` and `captions_per_image=5`.

  Ties fall at random, and the recall is the exact expectation of that: of texts that all have the same embedding, the
  right one is found by chance. Similarities are inner products in float32.

  Args:
    options: see there.
    predict_image: `(variables, batch) -> (embeddings [batch, dim], ...)`, from the batch's `image`.
    predict_text: the same from the batch's `labels`.
    sharding: how a batch lies on the devices.
    where: the path of the options in the config, for messages.

  Raises:
    UserError: the data cannot be read, or have no captions where they should be.
  """

  def __init__(
    self, options: Retrieval, predict_image: Predict, predict_text: Predict, *, sharding: NamedSharding, where: str
  ):
    self._k, self._sharding, self._where = as_tuple(options.k), sharding, where
    common = batches.common(options, sharding, where)
    captions = read_captions(options.data, options.txt_name, options.captions_per_image, where=where)
    with batches.refused_at(where):
      self._matches = match(captions, skip_empty=options.skip_empty, same_text_counts=options.same_text_counts)
    self._images = text_embeddings.Embedder(predict_image, sharding, "image", where)
    self._texts = text_embeddings.Embedder(predict_text, sharding, "text", where)
    pp_img = text_embeddings.with_keep(options.pp_img, "image")
    self._image_data = batches.open_batches(options.data, pp_img, pp_key="pp_img", **common)
    size = text_embeddings.text_batch_size(len(self._matches.texts), options.batch_size, sharding)
    self._text_data = text_embeddings.open_texts(self._matches.texts, options.pp_txt, **common | dict(batch_size=size))
    self._counts = jax.jit(_counts, out_shardings=sharding_lib.replicated(sharding.mesh))
    self.data = text_embeddings.ImagesWithTexts(self._image_data, self._text_data)

  def check(self, variables: Variables) -> None:
    """Refuses, by the shapes of one batch, what the first evaluation would.

    Raises:
      UserError: the data cannot be read or do not fit the model, or the two sides do not fit each other.
    """
    image = self._images.check(variables, self._image_data)
    text = self._texts.check(variables, self._text_data)
    if image != text:
      raise UserError(f"{self._where}.pred gives images embeddings of size {image}, texts of size {text}")

  def run(self, variables: Variables, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """Returns the metrics; None if `interrupted()` became true on the way."""
    zimg = self._images.run(variables, self._image_data, interrupted)
    ztxt = None if zimg is None else self._texts.run(variables, self._text_data, interrupted)
    if ztxt is None:
      return None
    zimg, found = zimg[self._matches.images], {}
    # A text's own image; the images' texts.
    for name, queries, answers, right in (
      ("img2txt", zimg, ztxt, self._matches.texts_of),
      ("txt2img", ztxt, zimg, self._matches.images_of),
    ):
      counts = self._ranks(queries, answers, right, interrupted)
      if counts is None:
        return None
      found |= {f"{name}_recall@{k}": recall_at(k, *counts) for k in self._k}
    return found | self._matches.skipped

  def _ranks(
    self,
    queries: Float[np.ndarray, "queries dim"],
    answers: Float[np.ndarray, "answers dim"],
    right: Int[np.ndarray, "queries most"],
    interrupted: Callable[[], bool],
  ) -> tuple[Int[np.ndarray, "queries"], ...] | None:
    """Returns what `recall_at` needs of every query; memory grows with the answers alone."""
    parts = sharding_lib.batch_parts(self._sharding)
    size = min(max(1, _MAX_SCORES // len(answers)), -(-len(queries) // parts)) * parts
    everywhere = transfer_features.put(answers, sharding_lib.replicated(self._sharding.mesh))
    found = []
    for low in range(0, len(queries), size):
      if interrupted():
        return None
      x, index = (
        transfer_features.put(_part(rows, low, size, fill), self._sharding)
        for rows, fill in ((queries, 0), (right, -1))
      )
      found.append(jax.device_get(self._counts(x, everywhere, index)))
    return tuple(np.concatenate(each)[: len(queries)] for each in zip(*found))


def _part(rows: Shaped[np.ndarray, "rows *rest"], low: int, size: int, fill: float) -> Shaped[np.ndarray, "size *rest"]:
  """Returns `size` rows from `low` on; the last part is padded, so that one program serves all parts."""
  part = rows[low : low + size]
  return np.concatenate([part, np.full((size - len(part), *rows.shape[1:]), fill, rows.dtype)])


@dataclasses.dataclass(frozen=True)
class Matches:
  """Which captions belong to which images.

  Attributes:
    texts: the captions that are asked for.
    images: indices in the split of the images that are asked for.
    texts_of: for each of `images` the indices of its texts, then -1s.
    images_of: for each text the indices in `images` of its images, then -1s.
    skipped: how many captions and images were left out, where they were allowed to be.
  """

  texts: tuple[str, ...]
  images: Int[np.ndarray, "images"]
  texts_of: Int[np.ndarray, "images most"]
  images_of: Int[np.ndarray, "texts most"]
  skipped: dict[str, float]


def match(captions: Sequence[Sequence[str]], *, skip_empty: bool = False, same_text_counts: bool = False) -> Matches:
  """Returns which captions belong to which images.

  Args:
    captions: of each image of a split.
    skip_empty: see `core.recipe.evaluators.Retrieval`.
    same_text_counts: see there.

  Raises:
    Refused: a caption without a word or an image without a caption, unless skipped; nothing left to ask for.
  """
  empty = sum(not text.strip() for each in captions for text in each)
  captions = [[text for text in each if text.strip()] for each in captions]
  images = [number for number, each in enumerate(captions) if each]
  bare = len(captions) - len(images)
  if not images:
    raise Refused(f"none of the {len(captions)} images has a caption with a word in it")
  if (empty or bare) and not skip_empty:
    first = next((number for number, each in enumerate(captions) if not each), None)
    which = f"; the first such image has index {first}" if bare else ""
    raise Refused(
      f"{empty} captions without a word, {bare} images without a caption{which}; skip_empty=True leaves them out"
    )
  owner = [(image, text) for image, number in enumerate(images) for text in captions[number]]
  asked, images_of = [text for _, text in owner], [[image] for image, _ in owner]
  if same_text_counts:
    of_text: dict[str, list[int]] = {}
    for image, text in owner:
      of_text.setdefault(text, []).append(image)
    asked, images_of = list(of_text), [sorted(set(each)) for each in of_text.values()]
  texts_of: list[list[int]] = [[] for _ in images]
  for text, each in enumerate(images_of):
    for image in each:
      texts_of[image].append(text)
  skipped = {"skipped_captions": float(empty), "skipped_images": float(bare)} if skip_empty else {}
  return Matches(tuple(asked), np.array(images, np.int64), _padded(texts_of), _padded(images_of), skipped)


def _padded(rows: Sequence[Sequence[int]]) -> Int[np.ndarray, "rows most"]:
  """Returns the rows as an array; the shorter ones end in -1s."""
  found = np.full((len(rows), max(map(len, rows))), -1, np.int32)
  for number, row in enumerate(rows):
    found[number, : len(row)] = row
  return found


def read_captions(
  data: Any, txt_name: str | Sequence[str] | None = None, most: int | None = None, *, where: str
) -> list[list[str]]:
  """Returns the captions of every example of a split, in its order; every process reads them all.

  Args:
    data: the dataset, a dataclass of `core.recipe.sources`.
    txt_name: see `core.recipe.evaluators.Retrieval`.
    most: how many of each example, at most.
    where: the path in the config of what `data` is a part of, for messages.

  Raises:
    UserError: the data cannot be read, have no such key, or hold something else than UTF-8 text there.
  """
  options = dict(batch_size=1, cache=False, where=f"{where}.data")  # One by one, as their numbers of captions differ.
  keys = [key for key in next(iter(pipeline.eval_batches(data, "flatten", **options))) if not key.startswith("_")]
  if txt_name is None:
    name = next((each for each in _CAPTION_KEYS if each in keys), None)
    if name is None:
      captions = " or ".join(_CAPTION_KEYS)
      raise UserError(f"{where}.txt_name: the examples have no {captions}; they have {', '.join(keys)}")
  else:
    name = txt_name if isinstance(txt_name, str) else "/".join(txt_name)
    if name not in keys:
      raise UserError(f"{where}.txt_name: the examples have no key {name!r}{nearest(name, keys)}")
  rows = pipeline.eval_batches(data, f"flatten|keep({name!r})", **options)
  with batches.refused_at(where):
    return [_decoded(row[name][0], number, name)[:most] for number, row in enumerate(rows)]


def _decoded(value: Any, number: int, name: str) -> list[str]:
  """Returns the captions that the example with the index `number` has under `name`."""
  found = np.atleast_1d(np.asarray(value, object)).reshape(-1).tolist()
  if not all(isinstance(text, bytes | str) for text in found):
    raise Refused(f"names {name!r}, which holds {words.shown(found[0])}; captions are text", key="txt_name")
  try:
    return [text.decode() if isinstance(text, bytes) else text for text in found]
  except UnicodeDecodeError:
    line = f"names {name!r}, which in the example with index {number} is not UTF-8 text"
    raise Refused(line, key="txt_name") from None


def recall_at(
  k: int, ahead: Int[np.ndarray, "queries"], tied: Int[np.ndarray, "queries"], right: Int[np.ndarray, "queries"]
) -> float:
  """Returns the expected share of the queries with a right answer among the `k` best, where ties fall at random.

  Args:
    k: how many.
    ahead: answers better than the best right one.
    tied: answers exactly as good as it, itself included.
    right: right ones among these; 0 where there is none, which is never found.
  """
  ahead, tied, right = (np.asarray(each, np.int64) for each in (ahead, tied, right))
  room = np.clip(k - ahead, 0, tied)
  missed = np.ones(len(ahead))
  for place in range(min(k, int(room.max(initial=0)))):
    # Drawn without replacement: what is left of the wrong ones, of what is left of all.
    wrong = np.maximum(tied - right - place, 0) / np.maximum(tied - place, 1)
    missed *= np.where(place < room, wrong, 1.0)
  return float(np.mean(np.where(right > 0, 1.0 - missed, 0.0)))


def _counts(
  queries: Float[Array, "queries dim"], answers: Float[Array, "answers dim"], right: Int[Array, "queries most"]
) -> tuple[Int[Array, "queries"], Int[Array, "queries"], Int[Array, "queries"]]:
  """Returns `ahead`, `tied` and `right` of `recall_at`; the argument `right` is indices of answers, then -1s."""
  with jax.default_matmul_precision("highest"):
    scores = queries @ answers.T
  # Taken from the same product: computed another way they might differ in the last bit.
  of_right = jnp.where(right >= 0, jnp.take_along_axis(scores, jnp.maximum(right, 0), axis=1), -jnp.inf)
  best = of_right.max(axis=1, keepdims=True)
  # What is not a number is ahead of all, so that a model that gives NaN finds nothing.
  return (
    jnp.sum(~(scores <= best), axis=1),
    jnp.sum(scores == best, axis=1),
    jnp.sum((of_right == best) & (right >= 0), axis=1),
  )
