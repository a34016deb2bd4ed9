"""Retrieval: how often an image's captions are among the texts nearest to it, and a caption's image among images."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from core import sharding as sharding_lib
from core.data import pipeline
from core.errors import UserError, nearest
from core.evaluators import batches, text_embeddings, transfer_features
from core.state import Predict, TrainState

# Similarities a device holds at once: 128 MiB of them, and what is computed from them.
_MAX_SCORES = 1 << 25
_CAPTION_KEYS = ("captions/text", "captions", "texts", "caption", "text")


class Evaluator:
  """`img2txt_recall@K` and `txt2img_recall@K`: shares of the queries with a right answer among the K best.

  Every image is asked for once, a right answer being any of its captions; every caption is asked for once, the right
  answer being its image. This is how COCO and Flickr30k are reported (Karpathy & Fei-Fei 2015): for COCO
  `data=dict(name="coco_captions", split=...)` and `captions_per_image=5`.

  Ties are taken to fall at random, and the recall is the expectation of that, exactly: texts that all get the same
  embedding are found by chance, not always or never. Similarities are inner products, computed in float32.

  Args:
    predict_image: `(params, batch) -> (embeddings [batch, dim], ...)`, from the batch's `image`.
    predict_text: the same from the batch's `labels`.
    sharding: how a batch lies on the devices.
    data: the dataset, `{"name": ..., "split": ...}`.
    pp_img: preprocessing from the data to `image`.
    pp_txt: preprocessing from a caption under `text` (also there as `texts`) to `labels`.
    batch_size: images, and texts, a step over all devices.
    txt_name: where the captions of an example are, one or several; within dicts joined by `/` (or as a tuple). None:
      the first that is there of `captions/text`, `captions`, `texts`, `caption`, `text`.
    captions_per_image: at most so many, the first; None: all.
    skip_empty: leave out captions without a word, and images without a caption; else they are refused. They are
      counted, as `skipped_captions` and `skipped_images`.
    same_text_counts: where several images have word for word the same caption, each of them is a right answer to it.
      No benchmark counts so; it is for captions made from templates.
    k: how many of the best.
    cache: see `core.evaluators.batches.open_batches`.
  """

  default_pred = text_embeddings.SIDES

  def __init__(
    self,
    predict_image: Predict,
    predict_text: Predict,
    *,
    sharding: NamedSharding,
    data: Mapping[str, Any],
    pp_img: str,
    pp_txt: str,
    batch_size: int,
    txt_name: str | Sequence[str] | None = None,
    captions_per_image: int | None = None,
    skip_empty: bool = False,
    same_text_counts: bool = False,
    k: int | Sequence[int] = (1, 5, 10),
    cache: bool | str | None = None,
  ):
    self._k = transfer_features.numbers("k", k, whole=True)
    if captions_per_image is not None:
      (captions_per_image,) = transfer_features.numbers("captions_per_image", captions_per_image, whole=True)
    self._sharding = sharding
    options = dict(sharding=sharding, cache=cache)
    captions = read_captions(data, txt_name, captions_per_image)
    self._pairs = match(captions, skip_empty=skip_empty, same_text_counts=same_text_counts)
    self._images = text_embeddings.Embedder(predict_image, sharding, "image")
    self._texts = text_embeddings.Embedder(predict_text, sharding, "text")
    self._image_data = batches.open_batches(
      data, text_embeddings.with_keep(pp_img, "image"), batch_size=batch_size, **options
    )
    size = text_embeddings.text_batch_size(len(self._pairs.texts), batch_size, sharding)
    self._text_data = text_embeddings.open_texts(self._pairs.texts, pp_txt, batch_size=size, **options)
    self._counts = jax.jit(_counts, out_shardings=sharding_lib.replicated(sharding.mesh))
    self.data = text_embeddings.Joined(self._image_data, self._text_data)

  def check(self, state: TrainState) -> None:
    """Refuses, by the shapes of one batch, what the first evaluation would.

    Raises:
      UserError: the data cannot be read or do not fit the model, or the two sides do not fit each other.
    """
    image = self._images.check(state.params, self._image_data)
    text = self._texts.check(state.params, self._text_data)
    if image != text:
      raise UserError(f"evals: embeddings of images have size {image}, those of texts {text}")

  def run(self, state: TrainState, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """The metrics of `state.params`; None if `interrupted()` became true on the way."""
    zimg = self._images.run(state.params, self._image_data, interrupted)
    ztxt = None if zimg is None else self._texts.run(state.params, self._text_data, interrupted)
    if ztxt is None:
      return None
    zimg, found = zimg[self._pairs.images], {}
    # A text's own image; the images' texts.
    for name, queries, answers, right in (
      ("img2txt", zimg, ztxt, self._pairs.texts_of),
      ("txt2img", ztxt, zimg, self._pairs.images_of),
    ):
      counts = self._ranks(queries, answers, right, interrupted)
      if counts is None:
        return None
      found |= {f"{name}_recall@{k}": recall_at(k, *counts) for k in self._k}
    return found | self._pairs.skipped

  def _ranks(
    self,
    queries: Float[np.ndarray, "queries dim"],
    answers: Float[np.ndarray, "answers dim"],
    right: Int[np.ndarray, "queries most"],
    interrupted: Callable[[], bool],
  ) -> tuple[Int[np.ndarray, "queries"], ...] | None:
    """What `recall_at` needs of every query, a part of them at a time: memory grows with the answers alone."""
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


def _part(rows: np.ndarray, low: int, size: int, fill: float) -> np.ndarray:
  """Rows from `low` on, of which the last part is padded so that one program serves all parts."""
  part = rows[low : low + size]
  return np.concatenate([part, np.full((size - len(part), *rows.shape[1:]), fill, rows.dtype)])


@dataclasses.dataclass(frozen=True)
class Pairs:
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


def match(captions: Sequence[Sequence[str]], *, skip_empty: bool = False, same_text_counts: bool = False) -> Pairs:
  """The pairs of images and captions.

  Args:
    captions: of each image of a split.
    skip_empty: see `Evaluator`.
    same_text_counts: see `Evaluator`.

  Raises:
    UserError: a caption without a word or an image without a caption, unless skipped; nothing left to ask for.
  """
  empty = sum(not text.strip() for each in captions for text in each)
  captions = [[text for text in each if text.strip()] for each in captions]
  images = [number for number, each in enumerate(captions) if each]
  bare = len(captions) - len(images)
  if not images:
    raise UserError(f"evals: none of the {len(captions)} images has a caption with a word in it")
  if (empty or bare) and not skip_empty:
    first = next((number for number, each in enumerate(captions) if not each), None)
    which = f"; the first such image has index {first}" if bare else ""
    raise UserError(
      f"evals: {empty} captions without a word, {bare} images without a caption{which}; skip_empty=True leaves them out"
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
  return Pairs(tuple(asked), np.array(images, np.int64), _padded(texts_of), _padded(images_of), skipped)


def _padded(rows: Sequence[Sequence[int]]) -> Int[np.ndarray, "rows most"]:
  found = np.full((len(rows), max(map(len, rows))), -1, np.int32)
  for number, row in enumerate(rows):
    found[number, : len(row)] = row
  return found


def read_captions(
  data: Mapping[str, Any], txt_name: str | Sequence[str] | None = None, most: int | None = None
) -> list[list[str]]:
  """The captions of every example of a split, in its order; every process reads them all.

  Args:
    data: the dataset, `{"name": ..., "split": ...}`.
    txt_name: see `Evaluator`.
    most: how many of each example, at most.

  Raises:
    UserError: the data cannot be read, have no such key, or hold something else than UTF-8 text there.
  """
  options = dict(batch_size=1, cache=False, where="evals.data")  # One by one, as their numbers of captions differ.
  keys = [key for key in next(iter(pipeline.eval_batches(data, "flatten", **options))) if not key.startswith("_")]
  if txt_name is None:
    name = next((each for each in _CAPTION_KEYS if each in keys), None)
    if name is None:
      raise UserError(f"evals.txt_name: the examples have no {' or '.join(_CAPTION_KEYS)}; they have {', '.join(keys)}")
  else:
    name = txt_name if isinstance(txt_name, str) else "/".join(txt_name)
    if name not in keys:
      raise UserError(f"evals.txt_name: the examples have no key {name!r}{nearest(name, keys)}")
  rows = pipeline.eval_batches(data, f"flatten|keep({name!r})", **options)
  return [_decoded(row[name][0], number, name)[:most] for number, row in enumerate(rows)]


def _decoded(value: Any, number: int, name: str) -> list[str]:
  found = np.atleast_1d(np.asarray(value, object)).reshape(-1).tolist()
  if not all(isinstance(text, bytes | str) for text in found):
    raise UserError(f"evals.txt_name: {name!r} holds {found[0]!r}; captions are text")
  try:
    return [text.decode() if isinstance(text, bytes) else text for text in found]
  except UnicodeDecodeError:
    raise UserError(f"evals.txt_name: {name!r} of the example with index {number} is not UTF-8 text") from None


def recall_at(
  k: int, ahead: Int[np.ndarray, "queries"], tied: Int[np.ndarray, "queries"], right: Int[np.ndarray, "queries"]
) -> float:
  """Expected share of the queries with a right answer among the `k` best, where ties fall at random.

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
  """`ahead`, `tied` and `right` of `recall_at`; `right` are indices of answers, then -1s."""
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
