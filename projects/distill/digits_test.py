"""The shipped teacher, what a run leaves of it, and mistakes as a person meets them: in one line, before any step."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from core import trees
from core.checkpoint import pretrained
from core.data.sources import digits as digits_data
from core.testing import compilation, configs, trainer
from core.training import cli
from projects.distill.configs import digits
from projects.distill.train import TASK

PROJECT = Path(__file__).parent

quick_compilation = compilation.quick()


def run(*arguments) -> int:
  with pytest.raises(SystemExit) as exit_:
    cli.main(TASK, project=PROJECT, default="digits", argv=arguments)
  return exit_.value.code


def test_the_teacher_is_that_of_its_config_and_classifies_digits_that_it_has_not_seen():
  config = configs.read(PROJECT / "configs" / "digits_teacher.py", model_init=digits.WEIGHTS)
  task = configs.task_of(TASK, config)
  arrays = digits_data.load(split="test").arrays
  batch = {"image": arrays["image"].astype(np.float32) / 127.5 - 1}
  shapes = jax.eval_shape(lambda: task.init(jax.random.key(0), batch))
  variables = task.load(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
  logits, _ = jax.jit(task.predict["predict"])(variables, batch)
  assert np.mean(np.argmax(logits, axis=1) == arrays["label"]) >= 0.98
  assert digits.WEIGHTS.stat().st_size < 1_000_000


def test_a_run_leaves_the_teacher_as_it_was_to_the_last_bit_once_in_the_checkpoint(tmp_path):
  workdir = tmp_path / "run"
  assert run("--config.total_steps=8", f"--workdir={workdir}") == 0
  before = dict(trees.flatten_with_names(pretrained.load_params(str(digits.WEIGHTS))))
  after = dict(trees.flatten_with_names(pretrained.load_params(f"{workdir}/params.npz:prof")))
  assert before.keys() == after.keys()
  assert all(after[name].tobytes() == leaf.tobytes() for name, leaf in before.items())
  saved = [name for name in trainer.final_state(workdir) if re.search(r"(^|/)prof/", name)]
  assert sorted(saved) == sorted(f"params/prof/{name}" for name in before)
  last = {k: v for line in trainer.repeatable_metrics(workdir) if line["step"] == 8 for k, v in line.items()}
  assert {"test/prec@1", "prof/prec@1", "agreement/agree@1", "agreement/kl", "agreement/cka"} <= last.keys()
  assert last["prof/prec@1"] >= 0.98


@pytest.mark.parametrize(
  "arguments, words",
  [
    (["--config=digits:teacher=none.npz"], r"config.prof_init: .*none.npz: no such file"),
    (["--config.distance=kll"], r"config.distance: there is no 'kll' \(did you mean 'kl'"),
    (["--config=digits:t=0.0"], "config.distance_kw.t must be a number above 0, got 0"),
    (["--config.input.pp=value_range(-1,1)|keep('label')"], "must leave 'image' .*; it leaves: label"),
    (["--config.input.pp=copy('image','porf')|keep('image','porf')"], r"under 'porf', .*did you mean 'prof'"),
    (["--config.evals.test.pred=prfo"], r"config.evals.test.pred: .*no prediction 'prfo' \(did you mean 'prof'"),
  ],
)
def test_mistakes_are_one_line(tmp_path, capfd, arguments, words):
  workdir = tmp_path / "run"
  assert run(*arguments, f"--workdir={workdir}") == 2
  (line,) = capfd.readouterr().err.strip().splitlines()
  assert line.startswith("error: ")
  assert re.search(words, line), line
  assert not (workdir / "config.json").exists()
