"""Co-training against the two losses computed apart, with the batches of the input and on 1 and 4 devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.special import expit

from core import sharding
from core.data import pipeline
from core.errors import UserError
from core.tasks.contrastive import Contrastive
from projects.clippo.train import make_task

jax.config.update("jax_num_cpu_devices", 4)

PP = "render_text(16,inkey='caption',outkey='labels')|value_range(-1,1)|value_range(-1,1,key='labels')"
BATCH, WEIGHT, CLASSES = 20, 0.5, 110


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
  """Nearly all the time of these tests is XLA optimizing programs that run once."""
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


def config(**changes):
  data = dict(source="digit_captions", split="train[:200]")
  keep = "keep('image','labels','label')"
  made = ConfigDict(
    dict(
      input=dict(
        data=dict(pairs=4, classes=1),
        batch_size=BATCH,
        pairs=dict(data=data, pp=f"{PP}|paired|{keep}"),
        classes=dict(data=data, pp=f"value_range(-1,1)|labelled({CLASSES})|{keep}"),
      ),
      model_name="one_tower",
      model=dict(image=dict(variant="mu/8", pool_type="map"), out_dim=8, temperature_init=10.0),
      co_training=dict(labelled="classes", num_classes=CLASSES, weight=WEIGHT, head_bias=-1.0),
      mesh=[("data", 4)],
    )
  )
  made.update(changes)
  return made


def without_co_training():
  made = config()
  del made.co_training
  return made


@pytest.fixture(scope="module")
def batch():
  made = next(pipeline.train_batches(config().input, seed=0, start_step=3))
  assert (made["label"] >= 0).sum() == BATCH // 5
  assert not np.array_equal(made["label"] >= 0, np.sort(made["label"] >= 0))  # They are mixed.
  return made


def params_of(task, batch):
  params = jax.jit(task.init)(jax.random.key(0), batch)["params"]
  noise = 0.1 * np.random.default_rng(0).normal(size=params["head_cls"]["kernel"].shape)
  return {**params, "head_cls": {**params["head_cls"], "kernel": jnp.asarray(noise, jnp.float32)}}


def test_the_loss_is_the_sum_of_both_each_on_its_own_examples(batch):
  task = make_task(config())
  params = params_of(task, batch)
  loss, metrics = jax.jit(task.loss)(params, batch, jax.random.key(0))

  labelled = batch["label"] >= 0
  pairs = {key: batch[key][~labelled] for key in ("image", "labels")}
  tower = {key: value for key, value in params.items() if key != "head_cls"}
  alone = Contrastive(without_co_training())
  contrastive, _ = jax.jit(alone.loss)(tower, pairs, jax.random.key(0))
  _, out = jax.jit(alone.predict["image"])(tower, {"image": batch["image"][labelled]})
  features = np.float64(out["img/pre_logits"])
  logits = features @ np.float64(params["head_cls"]["kernel"]) + np.float64(params["head_cls"]["bias"])
  right = np.eye(CLASSES)[batch["label"][labelled]] > 0
  classification = -np.log(expit(np.where(right, logits, -logits))).sum(axis=1).mean()

  assert np.isclose(metrics["contrastive_loss"], contrastive, rtol=1e-5)
  assert np.isclose(metrics["classification_loss"], classification, rtol=1e-5)
  assert np.isclose(loss, contrastive + WEIGHT * classification, rtol=1e-5)
  assert np.isclose(metrics["accuracy"], np.mean(logits.argmax(axis=1) == batch["label"][labelled]))


def test_on_several_devices_it_is_the_same(batch):
  found = []
  for mesh in ([("data", 1), ("model", 4)], [("data", 4)]):
    task = make_task(config(mesh=mesh))
    where = sharding.batch_sharding(sharding.make_mesh(mesh))
    params = params_of(task, batch)
    step = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    params = jax.device_put(params, sharding.replicated(where.mesh))
    (loss, _), gradient = step(params, jax.device_put(batch, where), jax.random.key(0))
    found.append((loss, gradient["head_cls"]["kernel"], gradient["img"]["embedding"]["kernel"]))
  for one, several in zip(*map(jax.device_get, found)):
    np.testing.assert_allclose(one, several, rtol=1e-4, atol=1e-6)


def test_weights_are_loaded_into_the_tower_and_the_classifier_stays(batch, tmp_path):
  from core.checkpoint import pretrained

  plain = Contrastive(without_co_training())
  tower = jax.device_get(
    jax.jit(plain.init)(jax.random.key(7), {key: batch[key] for key in ("image", "labels")})["params"]
  )
  pretrained.save_params(tmp_path / "clippo.npz", tower)
  task = make_task(config(model_init=str(tmp_path / "clippo.npz")))
  fresh = jax.device_get(jax.jit(task.init)(jax.random.key(0), batch)["params"])
  loaded = task.load(fresh)
  assert np.array_equal(loaded["img"]["embedding"]["kernel"], tower["img"]["embedding"]["kernel"])
  assert np.array_equal(loaded["head_cls"]["bias"], np.full(CLASSES, -1.0, np.float32))


def test_without_co_training_it_is_the_contrastive_task(batch):
  task, plain = make_task(without_co_training()), Contrastive(without_co_training())
  assert task.predict.keys() == plain.predict.keys()
  params = jax.eval_shape(task.init, jax.random.key(0), batch)["params"]
  assert params.keys() == {"img", "t"}


@pytest.mark.parametrize(
  "change, line",
  [
    (dict(co_training=dict(labelled="classs")), "labelled: 'classs' is no component.*did you mean 'classes'"),
    (dict(co_training=dict(num_classes=0)), "num_classes must be a whole number"),
    (dict(co_training=dict(weight=0)), "weight must be a number above 0"),
    (dict(co_training=dict(loss="xent")), "no loss 'xent'"),
    (dict(co_training=dict(wait=1)), "config.co_training.wait is no key of co-training"),
    (dict(input=dict(batch_size=8)), "batch_size: 8 cannot be dealt out in the parts .*; 320 and its multiples"),
  ],
)
def test_options_that_do_not_fit_are_refused(change, line):
  with pytest.raises(UserError, match=line):
    make_task(config(**change))


def test_a_batch_without_labels_is_refused(batch):
  task = make_task(config())
  with pytest.raises(UserError, match="must leave 'label', by labelled"):
    task.init(jax.random.key(0), {key: batch[key] for key in ("image", "labels")})
