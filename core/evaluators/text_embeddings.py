"""Embeddings of lists of texts, computed in batches on all devices and brought to the host of every process."""

import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from core import sharding as sharding_lib
from core.data import pipeline
from core.data.columns import bytes_column
from core.evaluators import batches, features
from core.pp import builder
from core.recipe.sources import Arrays
from core.recipe.types import Refused
from core.state import Batch, Predict, Variables

# The predictions of a task of images and texts that embed one side alone.
SIDES = ("image", "text")
_KEYS = {"image": "image", "text": "labels"}  # What each reads of a batch.


class Embedder:
  """Embeds texts, or images, of the batches that it opens.

  Args:
    predict: `(variables, batch) -> (embeddings [batch, dim], ...)`, traced by JAX.
    sharding: how a batch lies on the devices.
    side: "image" or "text", for messages.
    where: the path in the config of who asks, for messages: `config.evals.NAME`.
  """

  def __init__(self, predict: Predict, sharding: NamedSharding, side: str, where: str):
    self._predict, self._side = predict, side
    self._extractor = features.Extractor(self._embed, sharding, where)

  def of_batch(self, variables: Variables, batch: Batch) -> Float[Array, "batch dim"]:
    """Returns the embeddings of one batch, in float32; traced.

    Raises:
      Refused: the batch lacks what the side reads, or the prediction gives something else.
    """
    batches.require(batch, _KEYS[self._side])
    made = self._predict(variables, batch)
    z = made[0] if isinstance(made, tuple) and made else made
    if getattr(z, "ndim", 0) != 2:
      found = f"of shape {z.shape}" if hasattr(z, "shape") else type(z).__name__
      raise Refused(f"must give embeddings [batch, dim] of {self._side}s, not {found}", key="pred")
    return z.astype(jnp.float32)

  def check(self, variables: Variables, data: pipeline.EvalInput) -> int:
    """Returns the embeddings' size, by the shapes of one batch; `variables` may be shapes, too.

    Raises:
      UserError: the data do not fit the prediction.
    """
    return self._extractor.shapes(variables, data)["z"].shape[1]

  def run(
    self, variables: Variables, data: pipeline.EvalInput, interrupted: Callable[[], bool] = lambda: False
  ) -> Float[np.ndarray, "examples dim"] | None:
    """Returns all embeddings in the order of the data, float32; None if `interrupted()` became true on the way."""
    rows = self._extractor.whole(variables, data, interrupted)
    return None if rows is None else rows["z"]

  def _embed(self, variables: Variables, batch: Batch) -> dict[str, Array]:
    return {"z": self.of_batch(variables, batch)}


def open_texts(
  texts: Sequence[str],
  pp_txt: str,
  *,
  batch_size: int,
  sharding: NamedSharding,
  cache: bool | str | None = None,
  where: str,
  pp_key: str = "pp_txt",
) -> pipeline.EvalInput:
  """Returns the batches of a list of texts.

  Args:
    texts: at least one.
    pp_txt: preprocessing of the key `text` (also there as `texts`), which must leave `labels`: ids of tokens, or an
      image of the text.
    batch_size: texts a step over all devices.
    sharding: how a batch lies on the devices.
    cache: see `core.evaluators.batches.open_batches`.
    where: the path in the config of who asks, for messages: `config.evals.NAME`.
    pp_key: of the preprocessing there, for messages.

  Raises:
    UserError: whatever is wrong with these arguments, or a text that `pp_txt` refuses.
  """
  column = bytes_column(texts)
  data = Arrays(columns={"text": column, "texts": column}, name="texts")
  pp = with_keep(pp_txt, "labels")
  options = dict(batch_size=batch_size, sharding=sharding, cache=cache, where=where)
  return batches.open_batches(data, pp, key=pp_key, pp_key=pp_key, **options)


def text_batch_size(count: int, batch_size: int, sharding: NamedSharding) -> int:
  """Returns the texts a step: `batch_size`, or no more than it takes for `count` of them."""
  parts = math.lcm(sharding_lib.batch_parts(sharding), jax.process_count())
  return min(batch_size, -(-count // parts) * parts)


def with_keep(pp: str, *keys: str) -> str:
  """Returns `pp` changed so that it leaves `keys`, unless it already ends in a `keep` of its own."""
  chain = builder.parse(pp)
  if chain and chain[-1][0] == "keep":
    return pp
  return "|".join([*filter(None, [pp]), f"keep({', '.join(map(repr, keys))})"])


class ImagesWithTexts:
  """Batches of images with texts beside them: what a model of two sides is initialized by.

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
