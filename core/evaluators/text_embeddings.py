"""Embeddings of lists of texts, computed in batches on all devices and brought to the host of every process."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from core import sharding as sharding_lib
from core.data import pipeline
from core.data.columns import bytes_column
from core.errors import UserError
from core.evaluators import batches, features
from core.pp import builder
from core.state import Batch, Params, Predict

# The predictions of a task of images and texts that embed one side alone.
SIDES = {"image": "image", "text": "text"}


class Embedder:
  """Embeds texts, or images, of the batches that it opens.

  Args:
    predict: `(params, batch) -> (embeddings [batch, dim], ...)`, traced by JAX.
    sharding: how a batch lies on the devices.
    side: "image" or "text", for messages.
  """

  def __init__(self, predict: Predict, sharding: NamedSharding, side: str):
    self._predict, self._side = predict, side
    self._extractor = features.Extractor(lambda params, batch: {"z": self.of_batch(params, batch)}, sharding)

  def of_batch(self, params: Params, batch: Batch) -> Float[Array, "batch dim"]:
    """The embeddings of one batch, in float32; traced.

    Raises:
      UserError: the prediction gives something else.
    """
    z = self._predict(params, batch)[0]
    if getattr(z, "ndim", 0) != 2:
      found = f"of shape {z.shape}" if hasattr(z, "shape") else type(z).__name__
      raise UserError(f"evals: the prediction of {self._side}s must give embeddings [batch, dim], not {found}")
    return z.astype(jnp.float32)

  def check(self, params: Params, data: pipeline.EvalInput) -> int:
    """The embeddings' size, by the shapes of one batch; `params` may be shapes, too.

    Raises:
      UserError: the data do not fit the prediction.
    """
    return self._extractor.shapes(params, data)["z"].shape[1]

  def run(
    self, params: Params, data: pipeline.EvalInput, interrupted: Callable[[], bool] = lambda: False
  ) -> Float[np.ndarray, "examples dim"] | None:
    """All embeddings in the order of the data, float32; None if `interrupted()` became true on the way."""
    rows = self._extractor.whole(params, data, interrupted)
    return None if rows is None else rows["z"]


def open_texts(
  texts: Sequence[str], pp_txt: str, *, batch_size: int, sharding: NamedSharding, cache: Any = None
) -> pipeline.EvalInput:
  """The batches of a list of texts.

  Args:
    texts: at least one.
    pp_txt: preprocessing of the key `text` (also there as `texts`), which must leave `labels`: ids of tokens, or an
      image of the text.
    batch_size: texts a step over all devices.
    sharding: how a batch lies on the devices.
    cache: see `core.evaluators.batches.open_batches`.

  Raises:
    UserError: whatever is wrong with these arguments, or a text that `pp_txt` refuses.
  """
  column = bytes_column(texts)
  data = dict(source="arrays", columns={"text": column, "texts": column}, name="texts")
  pp = with_keep(pp_txt, "labels")
  return batches.open_batches(data, pp, batch_size=batch_size, sharding=sharding, cache=cache, key="pp_txt")


def text_batch_size(count: int, batch_size: int, sharding: NamedSharding) -> int:
  """Texts a step: `batch_size`, or no more than it takes for `count` of them."""
  parts = math.lcm(sharding_lib.batch_parts(sharding), jax.process_count())
  return min(batch_size, -(-count // parts) * parts)


def with_keep(pp: str, *keys: str) -> str:
  """`pp` so that it leaves `keys`, unless it already ends in a `keep` of its own."""
  chain = builder.parse(pp)
  if chain and chain[-1][0] == "keep":
    return pp
  return "|".join([*filter(None, [pp]), f"keep({', '.join(map(repr, keys))})"])


class Joined:
  """Batches of images with texts beside them, all that a model of two sides can be initialized by.

  Args:
    images: batches with the images.
    texts: batches with `labels`; the rows of the first are repeated as needed.
  """

  def __init__(self, images: pipeline.EvalInput, texts: pipeline.EvalInput):
    self._images, self._texts = images, texts

  def __len__(self) -> int:
    return len(self._images)

  def __iter__(self) -> Iterator[pipeline.Batch]:
    labels = next(iter(self._texts))["labels"]
    for batch in self._images:
      yield {**batch, "labels": labels[np.arange(len(batch["_id"])) % len(labels)]}
