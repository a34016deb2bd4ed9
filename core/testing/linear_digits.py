"""A linear classifier of the digits, and the config that trains it: the smallest run there is."""

from typing import Any

import jax
import jax.numpy as jnp

from core.tasks import losses
from core.tasks.task import Task

PP = "value_range(0,1)|onehot(10,key='label',key_result='labels')|keep('image','labels')"


class Linear(Task):
  """Softmax cross-entropy of one matrix, with a metric that tells the step's key."""

  def init(self, rng, batch):
    return {"params": {"w": jax.random.normal(rng, (64, 10)) / 8, "b": jnp.zeros(10)}}

  def loss(self, variables, batch, rng):
    logits, _ = self._predict(variables, batch)
    return jnp.mean(losses.softmax_xent(logits, batch["labels"])), {"noise": jax.random.uniform(rng)}

  @property
  def predict(self):
    """`predict`: `(logits, {})`."""
    return {"predict": self._predict}

  def _predict(self, variables, batch):
    params = variables["params"]
    return batch["image"].reshape(-1, 64) @ params["w"] + params["b"], {}


def make_config(evaluate: bool = True, **changes: Any) -> dict[str, Any]:
  """Returns the config of 20 steps with some entries changed; sections are merged."""
  evals = dict(test=dict(data=dict(name="digits", split="test"), pp_fn=PP, batch_size=64, log_steps=10))
  config = dict(
    seed=0,
    total_steps=20,
    input=dict(data=dict(name="digits", split="train"), batch_size=64, pp=PP),
    optax_name="scale_by_adam",
    lr=0.05,
    schedule=dict(decay_type="cosine", warmup_steps=5),
    evals=evals if evaluate else {},
    log_training_steps=5,
    ckpt_steps=10,
  )
  return merged(config, changes)


def merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
  """Returns a config with some entries changed; sections are merged."""
  sections = {key for key in config.keys() & changes.keys() if isinstance(config[key], dict)}
  return {**config, **changes, **{key: merged(config[key], changes[key]) for key in sections}}
