"""The standard evaluations on stand-ins of their datasets: ReaL counted by hand, few-shot as the evaluator takes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import sharding
from core.errors import UserError
from core.evaluators import published_evals, registry
from core.recipe.evaluators import Evaluator
from core.recipe.parse import parse
from core.testing import generated_tfds

PP = "decode|resize(8)|value_range(-1,1)"
GUESS = 7  # The class of which the model below is always sure.


def predict(variables, batch):
  features = jnp.mean(batch["image"], axis=(1, 2)) + variables["params"]["shift"]
  logits = jnp.zeros((features.shape[0], 1000)).at[:, GUESS].set(1.0)
  return logits, {"pre_logits": features}


def results(entries, name):
  where = sharding.batch_sharding(sharding.make_mesh())
  options = parse(Evaluator, entries[name], f"config.evals.{name}")
  evaluator = registry.make(name, options, predict={"predict": predict}, sharding=where)
  params = jax.device_put({"shift": np.zeros(3, np.float32)}, sharding.replicated(where.mesh))
  return evaluator.run({"params": params})


def test_real_counts_any_of_an_images_labels_and_leaves_images_without_one_out(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  real = [[GUESS], [3, GUESS, 5], [3], [], [GUESS, 999], [0, 1], []]
  numbers = iter(range(len(real)))

  def example(features, rng):
    number = next(numbers)
    made = generated_tfds.example(features, rng)
    return {**made, "original_label": GUESS if number < 2 else 1, "real_label": real[number]}

  generated_tfds.write(tmp_path, "imagenet2012_real", splits={"validation": len(real)}, make_example=example)
  entries = published_evals.imagenet(PP, alone=True, batch_size=4)
  assert list(entries) == ["val", "real", "v2"]
  assert results(entries, "real")["prec@1"] == pytest.approx(3 / 5)
  assert results(entries, "val")["prec@1"] == pytest.approx(2 / 7)


def test_few_shot_transfer_reports_what_the_configs_ask_for(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  for name in ("uc_merced", "dtd"):
    generated_tfds.write(tmp_path, name)
  entries = published_evals.fewshot("dtd+uc_merced", resize=12, crop=8, batch_size=32, shots=(1, 5))
  # Of uc_merced, the published splits are parts of `train`, more than the stand-in has.
  entries["fewshot"]["datasets"]["uc_merced"] = ("uc_merced", "train[:50]", "train[50:]")
  found = results(entries, "fewshot")
  assert {f"{name}_{shots}shot" for name in ("dtd", "uc_merced") for shots in (1, 5)} <= found.keys()
  assert all(0 <= value <= 1 for value in found.values())


def test_the_tests_and_datasets_can_be_chosen():
  assert list(published_evals.imagenet(PP, tests="v2", batch_size=4)) == ["v2"]
  assert published_evals.imagenet(PP, tests="val", batch_size=4)["val"]["data"]["name"] == "imagenet2012"
  assert published_evals.fewshot("none", batch_size=4) == {}
  assert list(published_evals.fewshot("all", batch_size=4)["fewshot"]["datasets"]) == list(published_evals.FEWSHOT)
  entries = published_evals.image_text(PP, "lower", tests="imagenet_v2+coco+cifar100", batch_size=4)
  assert list(entries) == ["zeroshot", "coco"]
  assert entries["zeroshot"]["dataset_names"] == ["imagenet_v2", "cifar100"]
  assert list(published_evals.image_text(PP, "lower", tests="coco")) == ["coco"]
  assert published_evals.image_text(PP, "lower", tests="none") == {}


@pytest.mark.parametrize(
  "make, words",
  [
    (lambda: published_evals.imagenet(PP, tests="val+reel"), "tests='reel' is unknown.*did you mean 'real'"),
    (lambda: published_evals.fewshot("pet"), "fewshot='pet' is unknown.*did you mean 'pets'"),
    (
      lambda: published_evals.image_text(PP, "", tests="coco+cifar1000"),
      "tests='cifar1000' is unknown.*did you mean 'cifar10",
    ),
  ],
)
def test_an_unknown_one_is_refused(make, words):
  with pytest.raises(UserError, match=words):
    make()
