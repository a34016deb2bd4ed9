"""A linear model of the digits with named layers, for tests of evaluators, and the same in NumPy to check them by."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from core import sharding
from core.data.sources import digits
from core.evaluators import registry
from core.state import TrainState

IMAGES_AND_LABELS = "value_range(0,1)|keep('image','label')"
PARAMS = {"w": np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)}


def predict(params: Any, batch: Any) -> tuple[jax.Array, dict[str, Any]]:
  """Logits and the layers `pre_logits` [batch, 64], `encoder/block00/rows` [batch, 8, 8], `encoder/block01/total`."""
  rows = batch["image"].reshape(batch["image"].shape[0], 8, 8)
  # A model may well give NaN for padding, and it must not count.
  rows = jnp.where(batch["_mask"][:, None, None] > 0, rows, jnp.nan)
  flat = rows.reshape(-1, 64)
  out = {"pre_logits": flat, "encoder": {"block00": {"rows": rows}, "block01": {"total": flat.sum(axis=1)}}}
  return flat @ params["w"], out


def images(split: str) -> np.ndarray:
  """What `pre_logits` must be, float64 [examples, 64]."""
  return digits.load(split=split).arrays["image"].reshape(-1, 64).astype(np.float64) / 255


def labels(split: str) -> np.ndarray:
  """int64 [examples]."""
  return digits.load(split=split).arrays["label"]


def evaluator(config: dict[str, Any], predict: Any = predict, **kw: Any) -> Any:
  """The evaluator `test` of a config, on all devices."""
  where = sharding.batch_sharding(sharding.make_mesh())
  return registry.make("test", config, predict={"predict": predict}, sharding=where, **kw)


def state() -> TrainState:
  """`PARAMS` on all devices."""
  return TrainState.create(jax.device_put(PARAMS, sharding.replicated(sharding.make_mesh())), ())
