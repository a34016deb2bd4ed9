"""Configs in tests: read, made tasks of, and run for 20 steps of their `runlocal` form with a resume."""

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from core.evaluators import registry
from core.recipe import load
from core.recipe.evaluators import Evaluator
from core.recipe.parse import parse
from core.tasks.task import Task
from core.testing import generated_tfds, trainer
from core.training import cli

STEPS = 20


def read(file: Path, *arguments: str, **overrides: Any) -> ConfigDict:
  """Returns the config of a file with its arguments, `"runlocal"`, and entries changed, `{"model.width": 16}`."""
  changed = [(key, str(value)) for key, value in overrides.items()]
  return ConfigDict(load.read(f"{file}:{','.join(arguments)}", changed))


def task_of(choice: cli.TaskChoice, config: Mapping[str, Any] | ConfigDict) -> Task:
  """Returns the task that a trainer's `TASK` makes of a config."""
  kind, recipe = cli.read_recipe(choice, config)
  return kind(recipe)


def make_test(project: Path, task: cli.TaskChoice) -> Callable:
  """Returns the test to be assigned to `test_...` in a project's test file: one case for each file in `configs/`.

  Args:
    project: the project's folder.
    task: what its trainer hands to `cli.main`.
  """
  files = sorted((project / "configs").glob("*.py"))
  assert files, f"{project} has no configs"

  @pytest.mark.parametrize("file", files, ids=lambda file: file.stem)
  def test_config(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read(file, "runlocal")
    for name in sorted(lacking(config)):
      pytest.fail(f"projects/{project.name}/BUILD: evaluators lacks {name!r}, which {file.name} names", pytrace=False)
    data = tmp_path.parent / "data"  # Shared by all configs.
    for name in generated_tfds.datasets_of(config):
      if not (data / name).exists():
        generated_tfds.write(data, name)
    monkeypatch.setenv("TFDS_DATA_DIR", str(data))
    workdir = tmp_path / "run"
    arguments = [
      f"--config={file}:runlocal",
      f"--workdir={workdir}",
      f"--cache_dir={tmp_path.parent / 'cache'}",  # Shared: small programs are alike in many configs.
      f"--config.total_steps={STEPS}",
      "--config.log_training_steps=5",
      f"--config.ckpt_steps={STEPS // 2}",
    ]
    assert _status(task, project, arguments) == 0
    whole = trainer.repeatable_metrics(workdir)
    assert whole[-1]["step"] == STEPS
    for name in config.get("evals", {}):
      assert any(key.startswith(f"{name}/") for line in whole for key in line), f"{name} was not evaluated"

    # As if killed in the second half: the newest checkpoint is gone, and all that came after the one before.
    newest = workdir / "checkpoints" / str(STEPS)
    newest.rename(tmp_path / "newest")
    (workdir / "params.npz").unlink()
    assert _status(task, project, arguments) == 0
    assert trainer.repeatable_metrics(workdir) == whole
    assert json.loads((workdir / "run.json").read_text())[-1]["start_step"] == STEPS // 2
    assert (workdir / "params.npz").exists()

  return test_config


def lacking(config: ConfigDict) -> set[str]:
  """Returns the modules of the evaluators that a config names and this test's target does not hold."""
  kinds = {type(parse(Evaluator, each, f"config.evals.{name}")) for name, each in config.get("evals", {}).items()}
  modules = {registry.MODULES[kind] for kind in kinds}
  return {name for name in modules if importlib.util.find_spec(f"core.evaluators.{name}") is None}


def _status(task: cli.TaskChoice, project: Path, arguments: list[str]) -> int:
  with pytest.raises(SystemExit) as exit_:
    cli.main(task, project=project, default="digits", argv=arguments)
  return exit_.value.code
