"""A linear model of images and texts, for tests of evaluators and tools, and the same in NumPy to check them by."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from core import sharding
from core.data.columns import bytes_column
from core.data.sources import digit_captions
from core.evaluators import registry
from core.pp import builder
from core.recipe.evaluators import Evaluator
from core.recipe.parse import parse
from core.state import Batch, Predict, Variables

PP_IMG = "value_range(-1,1)"
PP_TXT = "bert_tokenize(12, 'digit_words')"
_DIM, _VOCABULARY = 8, 200
_RNG = np.random.default_rng(0)
PARAMS = {
  "img": _RNG.normal(size=(768, _DIM)).astype(np.float32),
  "txt": _RNG.normal(size=(_VOCABULARY, _DIM)).astype(np.float32),
  "t": np.log(np.float32([10.0])),
  "b": np.float32([-5.0]),
}


def _image(variables: Variables, batch: Batch) -> tuple[Float[Array, "batch dim"], dict[str, Any]]:
  # A model may well give NaN for padding, and it must not count.
  flat = jnp.where(batch["_mask"][:, None] > 0, batch["image"].reshape(batch["image"].shape[0], -1), jnp.nan)
  with jax.default_matmul_precision("highest"):
    return _unit(flat @ variables["params"]["img"]), {}


def _text(variables: Variables, batch: Batch) -> tuple[Float[Array, "batch dim"], dict[str, Any]]:
  known = jnp.where((batch["_mask"][:, None] > 0) & (batch["labels"] > 0), 1.0, 0.0)
  return _unit((variables["params"]["txt"][batch["labels"]] * known[..., None]).sum(axis=1)), {}


def _both(
  variables: Variables, batch: Batch
) -> tuple[Float[Array, "batch dim"], Float[Array, "batch dim"], dict[str, Any]]:
  out = {"t": jnp.exp(variables["params"]["t"]), "b": variables["params"]["b"]}
  return _image(variables, batch)[0], _text(variables, batch)[0], out


def _unit(x: Any) -> Any:
  return x / ((x**2).sum(axis=-1, keepdims=True) ** 0.5)


PREDICT = {"predict": _both, "image": _image, "text": _text, "contrastive": _both}


def images(split: str, **options: Any) -> Float64[np.ndarray, "examples dim"]:
  """Returns what the images' embeddings must be."""
  raw = digit_captions.load(split=split, **options).arrays["image"]
  return _unit((raw.reshape(len(raw), -1) / 127.5 - 1).astype(np.float64) @ PARAMS["img"].astype(np.float64))


def texts(written: Sequence[str]) -> Float64[np.ndarray, "texts dim"]:
  """Returns what the texts' embeddings must be."""
  labels = builder.get_batched_fn(PP_TXT)({"text": bytes_column(written)})["labels"]
  rows = PARAMS["txt"].astype(np.float64)
  return _unit(np.stack([rows[row[row > 0]].sum(axis=0) for row in labels]))


def evaluator(config: Mapping[str, Any], predict: Mapping[str, Predict] | None = None, **kw: Any) -> Any:
  """Returns the evaluator `test` of an entry of a config's `evals`, on all devices."""
  where = sharding.batch_sharding(sharding.make_mesh())
  options = parse(Evaluator, config, "config.evals.test")
  return registry.make("test", options, predict=predict or PREDICT, sharding=where, **kw)


def variables() -> Variables:
  """Returns `PARAMS` on all devices."""
  return {"params": jax.device_put(PARAMS, sharding.replicated(sharding.make_mesh()))}
