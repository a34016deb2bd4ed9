"""A tiny model of two towers with random weights, its config, and image files: what tests of programs need."""

from pathlib import Path

import jax
import numpy as np
from PIL import Image

from core.checkpoint import pretrained
from core.data.sources import digit_captions
from core.recipe import load
from core.tasks.contrastive import Contrastive
from core.testing import configs

CONFIG = """
from core import config as config_lib
from core.data.sources import digit_captions

def get_config(arg=None):
  data = dict(source="digit_captions", split="test[:20]", digits=1)
  tower = dict(width=16, depth=1, mlp_dim=32, num_heads=2)
  digits = dict(data=data, class_names=digit_captions.DIGITS, templates=digit_captions.DIGIT_PROMPTS)
  sides = dict(pp_img="value_range(-1,1)", pp_txt="bert_tokenize(12,'digit_words')", batch_size=8)
  return config_lib.ConfigDict(dict(
    model_name="two_towers", loss="sigmoid", optax_name="scale_by_adam", lr=1e-3, total_steps=1,
    input=dict(data=data, batch_size=8),
    model=dict(
      image=dict(patch_size=8, pool_type="map", **tower), text=dict(vocab_size=64, **tower), out_dim=8,
      temperature_init=10.0, bias_init={bias_init},
    ),
    evals=dict(
      zeroshot=dict(type="zeroshot", datasets=dict(digits=digits), **sides),
      retrieval=dict(type="retrieval", data=data, same_text_counts=True, **sides),
    ),
  ))
"""


def write(folder: Path, *, bias_init: float | None = -5.0) -> tuple[Path, Path]:
  """Writes a config and weights into a folder.

  Returns:
    The paths of the two files.
  """
  config, weights = folder / "config.py", folder / "weights.npz"
  config.write_text(CONFIG.format(bias_init=bias_init))
  task = task_of(config)
  batch = {"image": np.zeros((1, 16, 16, 3), np.float32), "labels": np.zeros((1, 12), np.int32)}
  variables = jax.jit(lambda rng: task.init(rng, batch))(jax.random.key(0))
  pretrained.save_variables(weights, jax.device_get(variables))
  return config, weights


def task_of(config: Path) -> Contrastive:
  """Returns the task of a config that `write` wrote."""
  return configs.task_of(Contrastive, load.read(str(config)))


def write_images(folder: Path, count: int) -> list[Path]:
  """Writes pictures of digits, `0_seven.png`, as PNG files and returns their paths."""
  folder.mkdir(parents=True, exist_ok=True)
  rows = digit_captions.load(split=f"test[:{count}]", digits=1).arrays
  paths = []
  for number, (image, label) in enumerate(zip(rows["image"], rows["label"])):
    paths.append(folder / f"{number}_{digit_captions.DIGITS[label]}.png")
    Image.fromarray(image).save(paths[-1])
  return paths
