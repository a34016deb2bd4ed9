"""How sizes are drawn, what is refused, and that a run is what it says at each of its sizes."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from core.checkpoint import pretrained
from core.errors import UserError
from core.models import vit
from core.testing import compilation, configs, trainer
from core.testing.params import random_like, shapes
from core.training import cli
from projects.flexivit import flexible, train

CONFIGS = Path(__file__).parent / "configs"
TINY = {"model.width": "16", "model.depth": "1", "model.mlp_dim": "32", "model.num_heads": "2"}


def tiny(**changes):
  return make_task(configs.read(CONFIGS / "digits.py", **{**TINY, **changes}))


def make_task(config):
  return configs.task_of(train.TASK, config)


def run(*arguments):
  with pytest.raises(SystemExit) as exit_:
    cli.main(train.TASK, project=Path(__file__).parent, default="digits", argv=["--config=digits", *arguments])
  return exit_.value.code


quick_compilation = compilation.quick()


def options(**changes):
  return [f"--config.{key}={value}" for key, value in {**TINY, **changes}.items()]


def forms(task, steps=200):
  return [task.form(step) for step in range(1, steps + 1)]


def test_the_sequence_of_sizes_is_a_pure_function_of_seed_and_step():
  task, again = (tiny() for _ in range(2))
  sequence = forms(task)
  assert sequence == forms(again)
  assert [task.form(step) for step in (150, 3, 77)] == [sequence[149], sequence[2], sequence[76]]
  assert sequence != forms(tiny(seed=1))


def test_a_checkpoint_of_today_goes_on_with_the_same_sizes_for_ever():
  """Pinned: NumPy promises the stream of this generator."""
  assert [flexible.draw(0, step, (0.2,) * 5) for step in range(1, 13)] == [4, 0, 3, 4, 1, 3, 0, 2, 2, 0, 0, 3]


def test_each_size_is_drawn_as_often_as_its_weight_says():
  weights, count = np.array([1.0, 2.0, 5.0]), 10_000
  drawn = np.bincount([flexible.draw(0, step, tuple(weights / 8)) for step in range(count)], minlength=3)
  expected = count * weights / 8
  # Chi-squared with two degrees of freedom: 13.8 is passed once in a thousand times.
  assert np.sum((drawn - expected) ** 2 / expected) < 13.8


def test_steps_are_drawn_independently():
  drawn = np.array([flexible.draw(0, step, (0.5, 0.5)) for step in range(4_000)])
  for lag in (1, 2, 7):
    assert abs(np.corrcoef(drawn[:-lag], drawn[lag:])[0, 1]) < 0.05


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"flexi.seqhw.v": "()"}, r"config\.flexi\.seqhw\.v is empty"),
    ({"flexi.seqhw.v": "(2, 3, 0, 4, 6)"}, r"config\.flexi\.seqhw\.v\[2\] must be a whole number from 1 on, got 0"),
    (
      {"flexi.seqhw.v": "(2, 3, 2.5, 4, 6)"},
      r"config\.flexi\.seqhw\.v\[2\] must be a whole number.*got 2\.5",
    ),
    ({"flexi.seqhw.v": "(2, 2, 3, 4, 6)"}, "has a size twice"),
    ({"flexi.seqhw.p": "(1, 1)"}, r"config\.flexi\.seqhw\.p has 2 weights, and v has 5 sizes"),
    ({"flexi.seqhw.p": "(1, 1, 1, 1, 0)"}, r"config\.flexi\.seqhw\.p\[4\] must be a number above 0, got 0"),
    ({"flexi.seqhw.p": "(1, 1, 1, 1, -2.0)"}, r"config\.flexi\.seqhw\.p\[4\] must be a number above 0, got -2\.0"),
    ({"flexi.sizes": "3"}, r"config\.flexi\.sizes is no key of flexi"),
    ({"flexi": "3"}, r"config\.flexi must be a dict, got 3"),
    ({"flexi.seqhw": "[8]"}, r"config\.flexi\.seqhw must be a dict, got \(8,\)"),
    ({"model_name": "vit", "model.posemb_size": "None"}, r"config\.model\.posemb_size is no key of the model vit"),
    (
      {"evals.test.pred": "{'7': 'predict_7'}"},
      r"config\.evals\.test\.pred\.7: the task has no prediction 'predict_7'",
    ),
    ({"flexi.seqhw.v": "(2, 3, 4, 5, 6)"}, r"5x5 patches \(seqhw\) do not divide an image of 24x24 px"),
  ],
)
def test_a_mistake_is_refused_in_one_line_before_the_first_step(changes, words, tmp_path, capfd):
  if "flexi.seqhw.v" in changes:
    changes = {**changes, "evals.test.pred": "{'first': 'predict'}"}
  assert run(*options(**changes), f"--workdir={tmp_path / 'run'}") == 2
  (line,) = capfd.readouterr().err.strip().splitlines()
  assert re.search(f"error: .*{words}", line), line
  assert not list((tmp_path / "run").glob("*"))


def test_a_fixed_size_must_be_one_of_those_that_are_compared():
  with pytest.raises(UserError, match="fixed=5 must be one of 12, 8, 6, 4, 3"):
    configs.read(CONFIGS / "digits.py", "fixed=5")


def test_every_size_takes_the_loss_of_its_own_program():
  task = tiny()
  batch = {"image": np.random.default_rng(0).uniform(-1, 1, (4, 24, 24, 1)).astype(np.float32)}
  batch["labels"] = np.eye(10, dtype=np.float32)[:4]
  variables = jax.jit(task.init)(jax.random.key(0), batch)
  head = variables["params"]["head"]
  head["kernel"] = jax.random.normal(jax.random.key(1), head["kernel"].shape)

  def loss(task):
    return float(jax.jit(task.loss)(variables, batch, jax.random.key(2))[0])

  assert len({loss(task.in_form(size)) for size in (2, 4)}) == 2
  assert loss(task) == loss(task.in_form(2))


def test_predictions_are_named_by_size_and_without_one_are_those_of_the_first():
  assert set(tiny().predict) == {"predict", *(f"predict_{size}" for size in (2, 3, 4, 6, 8))}
  distilled = make_task(configs.read(CONFIGS / "i1k_deit3_distill.py", "runlocal"))
  assert {"prof", "student", "student_2", "student_4"} <= set(distilled.predict)
  assert distilled.frozen == ("prof/.*",)


def test_a_student_that_keeps_its_teachers_sizes_begins_as_its_teacher(tmp_path):
  config = configs.read(CONFIGS / "i21k_distill.py", "runlocal")
  teacher = vit.Model(config.num_classes, **config.prof)
  pretrained.save_params(tmp_path / "teacher.npz", random_like(shapes(teacher)))
  config.prof_init = config.student_init = str(tmp_path / "teacher.npz")
  task = make_task(config)
  batch = {"image": np.random.default_rng(0).uniform(-1, 1, (4, 32, 32, 3)).astype(np.float32)}
  variables = task.load(jax.eval_shape(lambda: task.init(jax.random.key(0), batch)))

  def distance(size):
    return float(jax.jit(task.in_form(size).loss)(variables, batch, jax.random.key(0))[0])

  assert abs(distance(2)) < 1e-6  # 32 px are two of its patches.
  assert distance(4) > 1e-3


def test_a_resumed_run_goes_on_with_the_same_sizes_and_ends_with_the_same_bits(tmp_path):
  few = {"flexi.seqhw.v": "(2, 3)", "flexi.seqhw.p": "(1, 2)", "evals": "{}"}
  same = [*options(total_steps=12, ckpt_steps=4, log_training_steps=1, **few), f"--cache_dir={tmp_path / 'cache'}"]
  assert run(*same, f"--workdir={tmp_path / 'whole'}") == 0
  assert run(*same, f"--workdir={tmp_path / 'stopped'}") == 0
  for step in ("8", "12"):  # As if it had been killed before its second checkpoint.
    (tmp_path / "stopped" / "checkpoints" / step).rename(tmp_path / step)
  assert run(*same, f"--workdir={tmp_path / 'stopped'}") == 0
  assert trainer.differences(tmp_path / "whole", tmp_path / "stopped") == []


def test_the_plain_model_to_compare_with_is_a_plain_vit():
  config = configs.read(CONFIGS / "digits.py", "fixed=4")
  assert config.model_name == "vit"
  assert config.model.patch_size == (4, 4)
  assert make_task(config).form(3) is None
