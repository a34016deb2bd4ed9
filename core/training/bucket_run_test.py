"""A run whose workdir is in a bucket: a whole one, and what its workdir says of it."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from core import files
from core.errors import UserError
from core.recipe.parse import parse
from core.recipe.recipe import Recipe
from core.tasks import losses
from core.tasks.task import Task
from core.testing import bucket
from core.training import loop, metrics

PP = "value_range(0,1)|onehot(10,key='label',key_result='labels')|keep('image','labels')"
DATA = dict(name="digits", split="test")
RECIPE = parse(
  Recipe,
  dict(
    total_steps=4,
    input=dict(data=DATA, batch_size=32, pp=PP),
    optax_name="scale_by_adam",
    lr=0.05,
    schedule=dict(decay_type="cosine"),
    evals=dict(test=dict(data=DATA, pp_fn=PP, batch_size=64, log_steps=2)),
    log_training_steps=1,
    ckpt_steps=2,
  ),
)


class Linear(Task):
  def init(self, rng, batch):
    return {"params": {"w": jax.random.normal(rng, (64, 10)) / 8}}

  def loss(self, variables, batch, rng):
    return jnp.mean(losses.softmax_xent(_logits(variables, batch)[0], batch["labels"])), {}

  @property
  def predict(self):
    return {"predict": _logits}


def _logits(variables, batch):
  return batch["image"].reshape(-1, 64) @ variables["params"]["w"], {}


def steps_of(workdir):
  lines = metrics.read(workdir / "metrics.jsonl")
  return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def test_a_run_in_a_bucket_leaves_the_bytes_of_one_on_disk_and_is_found_again(tmp_path):
  with bucket.serving() as served:
    workdir = files.from_here("gs://models/run")
    results = loop.run(Linear(), RECIPE, workdir)
    assert loop.run(Linear(), RECIPE, tmp_path) == results
    assert served.objects["models/run/params.npz"] == (tmp_path / "params.npz").read_bytes()
    assert steps_of(workdir) == steps_of(tmp_path)
    assert {name.split("/")[3] for name in served.objects if "/checkpoints/" in name} == {"2", "4"}
    assert not any(name.endswith(".part") for name in served.objects)
    assert loop.run(Linear(), RECIPE, workdir) == results  # There is nothing left to do.
    other = dataclasses.replace(RECIPE, lr=0.1)
    with pytest.raises(UserError, match=r"^workdir gs://models/run was made by another config \("):
      loop.run(Linear(), other, workdir)


def test_a_bucket_that_does_not_take_the_run_is_found_before_the_first_step():
  with bucket.serving() as served:
    served.refuses = 403
    with pytest.raises(UserError, match=r"^workdir gs://models/run cannot be written: Forbidden"):
      loop.run(Linear(), RECIPE, files.from_here("gs://models/run"))
    assert served.objects == {}
