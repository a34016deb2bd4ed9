"""What the configs make of their arguments: weights that there are, the pixels of each model, and one view for all."""

from pathlib import Path

import jax
import numpy as np
import pytest

from core.checkpoint import catalog
from core.errors import UserError
from core.models import registry as models
from core.pp import builder
from core.testing import configs
from projects.distill.configs import bigsweep, bit_i1k
from projects.distill.train import TASK

CONFIGS = Path(__file__).parent / "configs"


def load(name, *arguments):
  return configs.read(CONFIGS / f"{name}.py", *arguments)


@pytest.mark.parametrize(
  "name, argument",
  [("bit_i1k", f"teachers={'+'.join(bit_i1k.TEACHERS)}")]
  + [("bigsweep", f"dataset={dataset}") for dataset in bigsweep.DATASETS]
  + [("vit_i1k", f"teacher=deit3_{size}_224_{data}") for size in "SBL" for data in ("1k", "21k")],
)
def test_the_weights_of_every_teacher_there_are(name, argument):
  config = load(name, argument)
  for prof in config.teachers:
    family = config[f"{prof}_name"]
    models.get(family).Model(num_classes=config.num_classes, **config[prof])
    assert catalog.locate(family, config[f"{prof}_init"]).startswith("gs://")


def test_a_teacher_sees_the_crop_of_the_student_at_its_own_resolution():
  config = load("bit_i1k", "teachers=ic224+rc384")
  image = np.tile(np.linspace(0, 255, 500, dtype=np.uint8)[:, None, None], (1, 500, 3))
  pp = config.input.pp.replace("decode_jpeg_and_inception_crop", "inception_crop")
  made = builder.get_preprocess_fn(pp)({"image": image, "label": np.int64(3), "_seed": 7})
  assert made.keys() - {"_seed"} == {"image", "prof_rc384", "labels"}  # The teacher of 224 px shares the student's.
  student, teacher = (np.asarray(made[key]) for key in ("image", "prof_rc384"))
  assert (student.shape, teacher.shape) == ((224, 224, 3), (384, 384, 3))
  # One gradient from top to bottom, so of one crop: the edges have the same grey.
  for edge in (0, -1):
    np.testing.assert_allclose(student[edge].mean(), teacher[edge].mean(), atol=0.01)
  assert load("bit_i1k").input.pp.count("resize(") == 0


def test_two_normalizations_are_of_the_same_pixels():
  pp = load("vit_i1k").input.pp.replace("decode_jpeg_and_inception_crop", "inception_crop")
  image = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
  made = builder.get_preprocess_fn(pp)({"image": image, "label": np.int64(3), "_seed": 7})
  mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
  np.testing.assert_allclose((np.asarray(made["image"]) + 1) / 2, made["prof"] * std + mean, atol=1e-5)


def test_the_student_alone_is_the_student_of_the_distillation():
  distilled, alone = load("digits"), load("digits", "alone")
  batch = {"image": np.zeros((1, 8, 8, 1), np.float32)}

  def shapes(config):
    return jax.eval_shape(lambda: configs.task_of(TASK, config).init(jax.random.key(0), batch)["params"])

  assert jax.tree.map(np.shape, shapes(distilled)["student"]) == jax.tree.map(np.shape, shapes(alone))
  same = ("total_steps", "input", "lr", "wd", "schedule", "optax_name", "grad_clip_norm")
  assert all(distilled[key] == alone[key] for key in same)


def test_arguments_that_make_no_sense_are_refused():
  with pytest.raises(UserError, match="teachers='ic225' is unknown"):
    load("bit_i1k", "teachers=ic225")
  with pytest.raises(UserError, match="teacher='deit3_B_384_1k' must be one of"):
    load("vit_i1k", "teacher=deit3_B_384_1k")
  with pytest.raises(UserError, match=r"teacher is missing: the params.npz of a run with train=teacher"):
    load("cifar")
