"""Every published config of a project that is here, ported, trains three small steps, evaluates and resumes."""

import json

import pytest

from core import data_files
from core.recipe import load
from core.recipe.evaluators import Evaluator
from core.recipe.parse import parse
from core.recipe.recipe import metric_prefix
from core.testing import trainer
from core.training import cli
from tools import trained_model
from tools.port_config import port_config, shrunken

CONFIGS = sorted(data_files.find("tools/port_config/testdata").glob("*.json"))


def run(project, arguments):
  """Runs a project's trainer and returns its exit status."""
  with pytest.raises(SystemExit) as exit_:
    cli.main(trained_model.trainer_of(project).TASK, project=port_config.PROJECTS / project, default="", argv=arguments)
  return exit_.value.code


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_ported_config_trains_evaluates_and_resumes(file, tmp_path, monkeypatch):
  output = tmp_path / "ported.py"
  assert port_config.main([f"--config={file}", f"--output={output}", "--no_dry_run"]) == 0
  project = output.read_text().partition("//projects/")[2].partition(":")[0]
  config = shrunken.shrunken(load.read(str(output)))
  small = tmp_path / "small.py"
  small.write_text(f"import json\n\n\ndef get_config(arg=None):\n  return json.loads({json.dumps(config)!r})\n")
  data = tmp_path.parent / "data"  # Shared by all configs.
  shrunken.write_data(data, config)
  monkeypatch.setenv("TFDS_DATA_DIR", str(data))
  workdir = tmp_path / "run"
  arguments = [f"--config={small}", f"--workdir={workdir}", f"--cache_dir={tmp_path.parent / 'cache'}"]

  assert run(project, arguments) == 0
  whole = trainer.repeatable_metrics(workdir)
  assert whole[-1]["step"] == shrunken.STEPS
  for name, entry in config["evals"].items():
    prefix = metric_prefix(name, parse(Evaluator, entry, name))
    for step in (0, shrunken.STEPS) if entry.get("first") is True else (0,):
      lines = [line for line in whole if line["step"] == step]
      assert any(key.startswith(prefix) for line in lines for key in line), f"{name} was not evaluated at step {step}"

  # As if killed before the last step.
  (workdir / "checkpoints" / str(shrunken.STEPS)).rename(tmp_path / "newest")
  (workdir / "params.npz").unlink()
  assert run(project, arguments) == 0
  assert trainer.repeatable_metrics(workdir) == whole
  assert json.loads((workdir / "run.json").read_text())[-1]["start_step"] == shrunken.STEPS - 1
