"""What the configs make of their arguments: the papers' rules, and weights that there are."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.checkpoint import catalog
from core.errors import UserError
from core.models import registry as models
from core.optim import schedule
from core.pp import builder
from core.testing import configs
from projects.vit.configs import bit_hyperrule, i21k, transfer

CONFIGS = Path(__file__).parent / "configs"


def load(name, *arguments):
  return configs.read(CONFIGS / f"{name}.py", *arguments)


def rates(config, steps):
  fn = schedule.create(total_steps=config.total_steps, batch_size=config.input.batch_size, **config.schedule)
  return config.lr * np.array([fn(step) for step in steps])


def test_a_scaling_run_is_cooled_down_from_a_kept_checkpoint():
  long, cooled = load("scaling"), load("scaling", "cooldown_from=runs/g14/checkpoints/500000")
  assert 500_000 % long.keep_ckpt_steps == 0
  assert cooled.resume == "runs/g14/checkpoints/500000"
  assert cooled.total_steps == 550_000
  steps = np.array([0, 5_000, 10_000, 100_000, 499_999, 500_000])
  closed_form = 8e-4 * np.minimum(1, steps / 10_000) / np.sqrt(1 + np.maximum(steps - 10_000, 0) / 10_000)
  np.testing.assert_allclose(rates(long, steps), closed_form, rtol=1e-5)
  np.testing.assert_allclose(rates(cooled, steps), closed_form, rtol=1e-5)
  steps = np.array([510_000, 525_000, 550_000])
  np.testing.assert_allclose(rates(cooled, steps), rates(long, steps) * (550_000 - steps) / 50_000, rtol=1e-5)


def test_the_head_of_scaling_is_decayed_a_hundred_times_as_much():
  config = load("scaling")
  assert config.wd * dict(config.wd_mults)["head/kernel"] == pytest.approx(3.0 * config.lr)


def test_a_cooldown_needs_the_step_it_begins_at():
  with pytest.raises(UserError, match="WORKDIR/checkpoints/STEP"):
    load("scaling", "cooldown_from=runs/g14")


@pytest.mark.parametrize(
  "examples, steps, warmup, mixup",
  [(1_020, 500, 100, 0.0), (19_999, 500, 100, 0.0), (20_000, 10_000, 500, 0.1), (1_281_167, 20_000, 500, 0.1)],
)
def test_the_hyperrule_goes_by_the_number_of_examples(examples, steps, warmup, mixup):
  assert bit_hyperrule.length(examples) == (steps, warmup, mixup)


def test_the_hyperrule_goes_by_the_size_of_the_images():
  assert bit_hyperrule.resolution(32) == (160, 128)
  assert bit_hyperrule.resolution(95) == (160, 128)
  assert bit_hyperrule.resolution(96) == (448, 384)
  assert bit_hyperrule.resolution(32, "152x4") == (160, 128)
  assert bit_hyperrule.resolution(500, "152x4") == (512, 480)


def test_the_hyperrule_divides_the_rate_by_ten_three_times():
  config = load("bit_hyperrule", "dataset=cifar10")
  steps = [250, 500, 2_999, 3_001, 5_999, 6_001, 8_999, 9_001, 9_999]
  decays = [0.5, 1, 1, 0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3]
  np.testing.assert_allclose(rates(config, steps), 0.003 * np.array(decays), rtol=1e-5)


def test_the_hyperrule_takes_a_dataset_of_ones_own():
  config = load("bit_hyperrule", "dataset=dtd", "classes=47", "examples=1880", "side=300")
  assert (config.num_classes, config.total_steps, config.input.data.name) == (47, 500, "dtd")
  assert "resize(448)|random_crop(384)" in config.input.pp
  with pytest.raises(UserError, match="give all three"):
    load("bit_hyperrule", "dataset=dtd", "classes=47")
  with pytest.raises(UserError, match="did you mean 'cifar10'"):
    load("bit_hyperrule", "dataset=cifar")


@pytest.mark.parametrize("model", transfer.MODELS)
@pytest.mark.parametrize("dataset", transfer.DATASETS)
@pytest.mark.parametrize("crop", transfer.CROPS)
def test_every_transfer_is_a_config_whose_model_and_weights_there_are(model, dataset, crop):
  check_weights(load("transfer", f"model={model}", f"dataset={dataset}", f"crop={crop}"))


@pytest.mark.parametrize("variant", i21k.BEST)
def test_the_weights_of_every_augreg_transfer_there_are(variant):
  config = load("i21k_to_i1k", f"variant={variant}")
  check_weights(config)
  # The published file tells in its name what it was trained with: the same as i21k.py trains the variant with.
  aug, wd = i21k.BEST[variant]
  assert f"-aug_{aug}-wd_{wd}-" in catalog.locate("vit", config.model_init)


@pytest.mark.parametrize("data", ["S", "M"])
@pytest.mark.parametrize("variant", ["50x1", "50x3", "101x1", "101x3", "152x2", "152x4"])
def test_the_weights_of_every_bit_there_are(data, variant):
  check_weights(load("bit_hyperrule", f"data={data}", f"variant={variant}"))


@pytest.mark.parametrize("model", [f"deit3_{s}_{r}_{d}" for s in "SBL" for r in (224, 384) for d in ("1k", "21k")])
def test_the_weights_of_every_deit3_there_are(model):
  config = load("deit3_eval", f"model={model}")
  check_weights(config)
  assert model in catalog.names("vit")
  res = model.split("_")[2]
  assert f"resize_small({res},method='bicubic',antialias=True)|central_crop({res})" in config.evals.val.pp_fn


def test_deit3_sees_the_pixels_that_pillow_resizes():
  pixels = np.random.default_rng(0).integers(0, 256, (20, 25, 3), np.uint8)
  image = Image.fromarray(pixels).resize((500, 400), Image.Resampling.BICUBIC)
  file = io.BytesIO()
  image.save(file, "PNG")
  pp = load("deit3_eval", "model=deit3_S_224_1k").evals.val.pp_fn.partition("|onehot")[0]
  found = builder.get_preprocess_fn(pp)({"image": file.getvalue()})["image"]
  small = image.resize((280, 224), Image.Resampling.BICUBIC).crop((28, 0, 252, 224))
  mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
  # Pillow rounds to whole grey levels after each of two passes, `resize_small` cuts once: half a level less on average.
  levels = (np.asarray(small) / 255 - mean) / std - np.asarray(found)
  levels *= 255 * std
  assert abs(levels.mean() - 0.5) < 0.05
  assert np.abs(levels).max() < 2.01


def test_an_unknown_argument_is_refused():
  with pytest.raises(UserError, match="did you mean 'bit-m-r50x1'"):
    load("transfer", "model=bit-m-r50")
  with pytest.raises(UserError, match="model='deit3_H_224_1k' must be one of"):
    load("deit3_eval", "model=deit3_H_224_1k")


def check_weights(config):
  family = models.get(config.model_name)
  family.Model(num_classes=config.num_classes, **config.model)
  assert catalog.locate(config.model_name, config.model_init).startswith("gs://")
