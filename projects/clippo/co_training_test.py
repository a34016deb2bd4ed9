"""Co-training against the two losses computed apart, with the batches of the input and on 1 and 4 devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.special import expit

from core import sharding
from core.checkpoint import pretrained
from core.data import pipeline
from core.errors import UserError
from core.recipe.parse import parse
from core.tasks.contrastive import Contrastive
from core.testing import compilation, configs
from projects.clippo.train import TASK

jax.config.update("jax_num_cpu_devices", 4)

PP = "render_text(16,inkey='caption',outkey='labels')|value_range(-1,1)|value_range(-1,1,key='labels')"
BATCH, WEIGHT, CLASSES = 20, 0.5, 110

quick_compilation = compilation.quick()


def make_task(config):
  return configs.task_of(TASK, config)


def plain_task():
  return Contrastive(parse(Contrastive.Recipe, without_co_training()))


def config(**changes):
  data = dict(source="digit_captions", split="train[:200]")
  keep = "keep('image','labels','label')"
  made = ConfigDict(
    dict(
      total_steps=1,
      optax_name="scale_by_adam",
      lr=1e-3,
      input=dict(
        data=dict(pairs=4, classes=1),
        batch_size=BATCH,
        pairs=dict(data=data, pp=f"{PP}|paired|{keep}"),
        classes=dict(data=data, pp=f"value_range(-1,1)|labelled({CLASSES})|{keep}"),
      ),
      loss="softmax",
      model_name="one_tower",
      model=dict(image=dict(variant="mu/8", pool_type="map"), out_dim=8, temperature_init=10.0),
      co_training=dict(labelled="classes", num_classes=CLASSES, weight=WEIGHT, head_bias=-1.0),
      mesh=[("data", 4)],
    )
  )
  with made.ignore_type():
    made.update(changes)
  return made


def without_co_training():
  made = config()
  del made.co_training
  return made


@pytest.fixture(scope="module")
def batch():
  made = next(pipeline.train_batches(parse(TASK.Recipe, config()).input, seed=0, start_step=3))
  assert (made["label"] >= 0).sum() == BATCH // 5
  assert not np.array_equal(made["label"] >= 0, np.sort(made["label"] >= 0))  # They are mixed.
  return made


def variables_of(task, batch):
  variables = jax.jit(task.init)(jax.random.key(0), batch)
  head = variables["params"]["head_cls"]
  noise = 0.1 * np.random.default_rng(0).normal(size=head["kernel"].shape)
  head["kernel"] = jnp.asarray(noise, jnp.float32)
  return variables


def test_the_loss_is_the_sum_of_both_each_on_its_own_examples(batch):
  task = make_task(config())
  variables = variables_of(task, batch)
  params = variables["params"]
  loss, metrics = jax.jit(task.loss)(variables, batch, jax.random.key(0))

  labelled = batch["label"] >= 0
  pairs = {key: batch[key][~labelled] for key in ("image", "labels")}
  tower = {"params": {key: value for key, value in params.items() if key != "head_cls"}}
  alone = plain_task()
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
    variables = variables_of(task, batch)
    step = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    variables = jax.device_put(variables, sharding.replicated(where.mesh))
    (loss, _), gradient = step(variables, jax.device_put(batch, where), jax.random.key(0))
    gradient = gradient["params"]
    found.append((loss, gradient["head_cls"]["kernel"], gradient["img"]["embedding"]["kernel"]))
  for one, several in zip(*map(jax.device_get, found)):
    np.testing.assert_allclose(one, several, rtol=1e-4, atol=1e-6)


def trained(task, where, batch, parts):
  """Returns loss, metrics and gradient of a batch in parts."""
  step = jax.jit(jax.value_and_grad(functools.partial(task.loss_in_parts, parts=parts), has_aux=True))
  variables = jax.device_put(variables_of(task, batch), sharding.replicated(where.mesh))
  return jax.device_get(step(variables, jax.device_put(batch, where), jax.random.key(0)))


@pytest.mark.parametrize("form", ["plain", "chunked"])
def test_in_parts_it_is_the_same_to_a_millionth(batch, form):
  one, several = [("data", 1), ("model", 4)], [("data", 4)]
  whole, in_parts = (
    trained(make_task(config(mesh=mesh, loss_form=form)), sharding.batch_sharding(sharding.make_mesh(mesh)), batch, n)
    for mesh, n in ((one, 1), (one if form == "plain" else several, 4))
  )
  assert len(batch["label"]) == BATCH
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole[1]))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * largest), in_parts[1], whole[1])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), in_parts[0], whole[0])


def test_parts_that_divide_the_pairs_and_not_the_labelled_images_are_refused(batch):
  task = make_task(config())
  variables = variables_of(task, batch)
  with pytest.raises(UserError, match=r"grad_accum_steps: .* 16 pairs and 4 labelled images .* into 8 .*; 4 and its"):
    task.loss_in_parts(variables, batch, jax.random.key(0), 8)


def test_weights_are_loaded_into_the_tower_and_the_classifier_stays(batch, tmp_path):
  pairs = {key: batch[key] for key in ("image", "labels")}
  tower = jax.device_get(jax.jit(plain_task().init)(jax.random.key(7), pairs))["params"]
  pretrained.save_params(tmp_path / "clippo.npz", tower)
  task = make_task(config(model_init=str(tmp_path / "clippo.npz")))
  fresh = jax.device_get(jax.jit(task.init)(jax.random.key(0), batch))
  loaded = task.load(fresh)["params"]
  assert np.array_equal(loaded["img"]["embedding"]["kernel"], tower["img"]["embedding"]["kernel"])
  assert np.array_equal(loaded["head_cls"]["bias"], np.full(CLASSES, -1.0, np.float32))


def test_without_co_training_it_is_the_contrastive_task(batch):
  task, plain = make_task(without_co_training()), plain_task()
  assert task.predict.keys() == plain.predict.keys()
  params = jax.eval_shape(task.init, jax.random.key(0), batch)["params"]
  assert params.keys() == {"img", "t"}


@pytest.mark.parametrize(
  "change, line",
  [
    (dict(co_training=dict(labelled="classs")), "co_training.labelled 'classs' is no comp.*did you mean 'classes'"),
    (dict(co_training=dict(labelled=3)), "co_training.labelled must be text that is not empty, got 3"),
    (dict(co_training=dict(num_classes=0)), "co_training.num_classes must be a whole number from 1 on, got 0"),
    (dict(co_training=dict(weight=0)), "co_training.weight must be a number above 0, got 0"),
    (dict(co_training=dict(weight="1")), "co_training.weight must be a number above 0, got '1'"),
    (dict(co_training=dict(head_bias=float("nan"))), "co_training.head_bias must be a number, got nan"),
    (dict(co_training=dict(loss="xent")), "co_training.loss must be one of 'softmax_xent', 'sigmoid_xent', got 'xent'"),
    (dict(co_training=dict(wait=1)), "co_training.wait is no key of co-training"),
    (dict(input=dict(batch_size=8)), "input.batch_size: 8 cannot be dealt out in the parts .*; 320 and its multiples"),
  ],
)
def test_options_that_do_not_fit_are_refused(change, line):
  with pytest.raises(UserError, match=rf"^config\.{line}"):
    make_task(config(**change))


@pytest.mark.parametrize("value", [3, "classes", ["classes"], True])
def test_co_training_is_a_dict(value):
  changed = without_co_training()
  changed.co_training = value
  with pytest.raises(UserError, match=r"^config\.co_training must be a dict"):
    make_task(changed)


def test_a_batch_without_labels_is_refused(batch):
  task = make_task(config())
  with pytest.raises(UserError, match="must leave 'label', by labelled"):
    task.init(jax.random.key(0), {key: batch[key] for key in ("image", "labels")})
