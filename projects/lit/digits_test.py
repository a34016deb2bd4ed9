"""The tower that the default run locks."""

from pathlib import Path

import jax
import numpy as np

from core import trees
from core.checkpoint import pretrained
from core.data.sources import digit_captions
from core.testing import configs, trainer
from projects.lit.configs import digits
from projects.lit.train import TASK

CONFIGS = Path(__file__).parent / "configs"


def shapes_by_name(tree):
  return {name: leaf.shape for name, leaf in trees.flatten_with_names(tree)}


def test_the_tower_is_that_of_its_config_and_classifies_other_handwritings():
  params = pretrained.load_params(str(digits.TOWER))
  task = configs.task_of(TASK, configs.read(CONFIGS / "digits_tower.py"))
  arrays = digit_captions.load(split="test", digits=1).arrays
  images = arrays["image"].astype(np.float32) / 127.5 - 1
  shapes = jax.eval_shape(lambda rng: task.init(rng, {"image": images})["params"], jax.random.key(0))
  assert shapes_by_name(params) == shapes_by_name(shapes)
  logits, _ = jax.jit(task.predict["predict"])({"params": params}, {"image": images})
  assert np.mean(np.argmax(logits, axis=1) == arrays["label"]) > 0.95
  assert digits.TOWER.stat().st_size < 300_000


def test_training_leaves_the_tower_as_it_was_to_the_last_bit(tmp_path):
  run = tmp_path / "run"
  status, output = trainer.run("projects.lit.train", "--config.total_steps=10", f"--workdir={run}")
  assert status == 0, output
  before, after = pretrained.load_params(str(digits.TOWER)), pretrained.load_params(f"{run}/params.npz:img")
  kept = [name for name, _ in trees.flatten_with_names(before) if not name.startswith("head/")]
  assert [name for name, _ in trees.flatten_with_names(after)] == kept
  after = dict(trees.flatten_with_names(after))
  assert all(leaf.tobytes() == after[name].tobytes() for name, leaf in trees.flatten_with_names(before) if name in kept)
