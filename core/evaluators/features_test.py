"""Features of a layer are what the model gives for it, in the order of the split; a second pass compiles nothing."""

import contextlib

import jax
import numpy as np
import pytest
from flax import linen as nn

from core import sharding
from core.data.sources import digits
from core.errors import UserError
from core.evaluators import batches, features
from core.models import vit
from core.recipe.sources import Digits
from core.testing import linear_classifier, params

jax.config.update("jax_num_cpu_devices", 8)

PP = linear_classifier.IMAGES_AND_LABELS
WHERE = sharding.batch_sharding(sharding.make_mesh())


def open_digits(pp, batch_size=32, split="test[:75]"):
  return batches.open_batches(Digits(split=split), pp, batch_size=batch_size, sharding=WHERE, where="config.evals.x")


@pytest.mark.parametrize("scan", [False, True])
def test_layers_of_a_vit_by_their_path(scan):
  model = vit.Model(num_classes=None, patch_size=4, width=16, depth=2, mlp_dim=16, num_heads=2, scan=scan)
  variables = {"params": params.random_like(params.shapes(model, (1, 8, 8, 1)))}
  apply = lambda variables, batch: model.apply(variables, batch["image"])
  images = digits.load(split="test[:75]").arrays["image"].astype(np.float32) / 255
  output, out = jax.jit(apply)(variables, {"image": images})
  tokens = np.asarray(out["encoder"]["block01"]["+mlp"])
  want = {
    "mean": tokens.mean(axis=1),
    "first": tokens[:, 0],
    "flatten": tokens.reshape(75, -1),
  }
  for pool, value in want.items():
    fn = features.layer_features(apply, ("encoder/block01/+mlp", "output"), pool=pool, keys=("label",))
    found = features.Extractor(fn, WHERE, "config.evals.x").whole(variables, open_digits(PP))
    np.testing.assert_allclose(found["encoder/block01/+mlp"], value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["output"], output, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["label"], linear_classifier.labels("test")[:75])


def test_an_unknown_layer_lists_each_kind_of_block_but_once():
  model = vit.Model(num_classes=3, patch_size=4, width=8, depth=12, mlp_dim=8, num_heads=1)
  apply = lambda variables, batch: model.apply(variables, batch["image"])
  extractor = features.Extractor(features.layer_features(apply, ("zzz",), pool=None, keys=()), WHERE, "config.evals.x")
  with pytest.raises(UserError) as refused:
    extractor.shapes({"params": params.shapes(model, (1, 8, 8, 1))}, open_digits(PP))
  line = str(refused.value)
  assert line.startswith("config.evals.x.representation_layer names 'zzz', which the model does not have (nearest: ")
  assert line.endswith("encoder/block00/sa; there are 14)")
  assert "block11" not in line


class Dense(nn.Module):
  """A model whose number of parameters follows from the size of the images."""

  @nn.compact
  def __call__(self, images):
    return nn.Dense(3)(images.reshape(images.shape[0], -1)), {}


@pytest.mark.parametrize(
  "model, words",
  [
    (vit.Model(num_classes=3, patch_size=4, width=8, depth=1, mlp_dim=8, num_heads=1), "the image has 2x2 patches"),
    (Dense(), "the model does not fit what the preprocessing leaves: "),
  ],
  ids=["vit", "dense"],
)
def test_a_model_of_another_image_size_is_refused_by_the_path_of_who_asks(model, words):
  apply = lambda variables, batch: model.apply(variables, batch["image"])
  fn = features.layer_features(apply, ("output",), pool=None, keys=())
  with pytest.raises(UserError, match=r"^config\.evals\.x: .*" + words) as refused:
    features.Extractor(fn, WHERE, "config.evals.x").shapes(
      {"params": params.shapes(model, (1, 16, 16, 1))}, open_digits(PP)
    )
  assert len(str(refused.value)) <= 300


def test_pieces_hold_every_example_once_and_padding_never():
  fn = features.layer_features(linear_classifier.predict, ("pre_logits",), pool=None, keys=("label",))
  with contextlib.closing(
    features.Extractor(fn, WHERE, "config.evals.x").pieces({"params": linear_classifier.PARAMS}, open_digits(PP))
  ) as pieces:
    ids, rows = zip(*pieces)
  assert [len(each) for each in ids] == [32, 32, 11]
  np.testing.assert_array_equal(np.concatenate(ids), np.arange(75))
  found = np.concatenate([each["pre_logits"] for each in rows])
  np.testing.assert_allclose(found, linear_classifier.images("test")[:75], rtol=1e-6)


PAIR = dict(train=dict(name="digits", split="train[:100]"), test=dict(name="digits", split="test[:75]"))
SEVERAL = dict(datasets=dict(digits=PAIR), pp_train=PP, pp_eval=PP, batch_size=32)


@pytest.mark.parametrize(
  "config",
  [
    dict(type="fewshot", shots=(1, 2), num_seeds=2, **SEVERAL),
    dict(type="knn", k=(1, 3), **SEVERAL),
    dict(type="save", data=PAIR["test"], pp_fn=PP, batch_size=32, outputs="pre_logits"),
  ],
  ids=lambda config: config["type"],
)
def test_a_second_evaluation_compiles_nothing_and_gives_the_same(tmp_path, config):
  compiled = []
  listener = lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
  jax.monitoring.register_event_duration_secs_listener(listener)
  evaluation, variables = linear_classifier.evaluator(config, output_dir=tmp_path), linear_classifier.variables()
  first = evaluation.run(variables)
  assert compiled
  compiled.clear()
  assert evaluation.run(variables) == first
  assert not compiled
