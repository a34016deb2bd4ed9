"""A linear model of the digits with named layers, for tests of evaluators, and the same in NumPy to check them by."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int64

from core import sharding
from core.data.sources import digits
from core.evaluators import registry
from core.recipe.evaluators import Evaluator
from core.recipe.parse import parse
from core.state import Batch, Predict, Variables

IMAGES_AND_LABELS = "value_range(0,1)|keep('image','label')"
PARAMS = {"w": np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)}


def predict(variables: Variables, batch: Batch) -> tuple[Float[Array, "batch 10"], dict[str, Any]]:
  """Returns logits, and the layers `pre_logits`, `encoder/block00/rows` (8 to a row) and `encoder/block01/total`."""
  rows = batch["image"].reshape(batch["image"].shape[0], 8, 8)
  # A model may well give NaN for padding, and it must not count.
  rows = jnp.where(batch["_mask"][:, None, None] > 0, rows, jnp.nan)
  flat = rows.reshape(-1, 64)
  out = {"pre_logits": flat, "encoder": {"block00": {"rows": rows}, "block01": {"total": flat.sum(axis=1)}}}
  return flat @ variables["params"]["w"], out


def images(split: str) -> Float64[np.ndarray, "examples 64"]:
  """Returns what `pre_logits` must be."""
  return digits.load(split=split).arrays["image"].reshape(-1, 64).astype(np.float64) / 255


def labels(split: str) -> Int64[np.ndarray, "examples"]:
  """Returns the labels of a split."""
  return digits.load(split=split).arrays["label"]


def evaluator(config: dict[str, Any], predict: Predict = predict, **kw: Any) -> Any:
  """Returns the evaluator `test` of an entry of a config's `evals`, on all devices."""
  where = sharding.batch_sharding(sharding.make_mesh())
  options = parse(Evaluator, config, "config.evals.test")
  return registry.make("test", options, predict={"predict": predict}, sharding=where, **kw)


def variables(params: Any = PARAMS) -> Variables:
  """Returns variables that are parameters alone, on all devices."""
  return {"params": jax.device_put(params, sharding.replicated(sharding.make_mesh()))}
