"""Runs every config of a project for 20 steps of its `runlocal` form, evaluates, and resumes: a config is code, too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core import config as config_lib
from core.testing import generated_tfds, trainer
from core.training import cli

STEPS = 20


def make_test(project: Path, make_task: Callable[[Any], Any]) -> Callable:
  """The test to be assigned to `test_...` in a project's test file: one case for each file in `configs/`.

  Args:
    project: the project's folder.
    make_task: what its trainer hands to `cli.main`.
  """
  files = sorted((project / "configs").glob("*.py"))
  assert files, f"{project} has no configs"

  @pytest.mark.parametrize("file", files, ids=lambda file: file.stem)
  def test_config(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_lib.load(f"{file}:runlocal")
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
    assert _status(make_task, project, arguments) == 0
    whole = trainer.repeatable_metrics(workdir)
    assert whole[-1]["step"] == STEPS
    for name in config.get("evals", {}):
      assert any(key.startswith(f"{name}/") for line in whole for key in line), f"{name} was not evaluated"

    # As if killed in the second half: the newest checkpoint is gone, and all that came after the one before.
    newest = workdir / "checkpoints" / str(STEPS)
    newest.rename(tmp_path / "newest")
    (workdir / "params.npz").unlink()
    assert _status(make_task, project, arguments) == 0
    assert trainer.repeatable_metrics(workdir) == whole
    assert json.loads((workdir / "run.json").read_text())[-1]["start_step"] == STEPS // 2
    assert (workdir / "params.npz").exists()

  return test_config


def _status(make_task: Callable, project: Path, arguments: list[str]) -> int:
  with pytest.raises(SystemExit) as exit_:
    cli.main(make_task, project=project, default="digits", argv=arguments)
  return exit_.value.code
