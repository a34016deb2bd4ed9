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
from tools.port_config import port, port_config, shrunken

CONFIGS = sorted(data_files.find("tools/port_config/testdata").glob("*.json"))


def run(project, arguments):
  """Runs a project's trainer and returns its exit status."""
  with pytest.raises(SystemExit) as exit_:
    cli.main(trained_model.trainer_of(project).TASK, project=port.PROJECTS / project, default="", argv=arguments)
  return exit_.value.code


def ported(file, folder):
  """Ports a config and returns its project and the result."""
  output = folder / "ported.py"
  assert port_config.main([f"--config={file}", f"--output={output}", "--no_dry_run"]) == 0
  return output.read_text().partition("//projects/")[2].partition(":")[0], load.read(str(output))


def flags(config, folder, monkeypatch):
  """Returns the flags of a run of a small config, the data of which are written."""
  small = folder / "small.py"
  small.write_text(f"import json\n\n\ndef get_config(arg=None):\n  return json.loads({json.dumps(config)!r})\n")
  data = folder.parent / "data"  # Shared by all configs.
  shrunken.write_data(data, config)
  monkeypatch.setenv("TFDS_DATA_DIR", str(data))
  return [f"--config={small}", f"--workdir={folder / 'run'}", f"--cache_dir={folder.parent / 'cache'}"]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_ported_config_trains_evaluates_and_resumes(file, tmp_path, monkeypatch):
  project, config = ported(file, tmp_path)
  config = shrunken.shrunken(config)
  arguments = flags(config, tmp_path, monkeypatch)
  workdir = tmp_path / "run"

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


@pytest.mark.parametrize("name", ["load_and_eval", "load_and_eval__name_vit_i21k"])
def test_a_config_that_only_evaluates_does_so_and_ends(name, tmp_path, monkeypatch):
  project, config = ported(data_files.find(f"tools/port_config/testdata/{name}.json"), tmp_path)
  config = shrunken.evaluating(config)
  assert run(project, flags(config, tmp_path, monkeypatch)) == 0
  (line,) = [line for line in trainer.repeatable_metrics(tmp_path / "run") if any("/" in key for key in line)]
  assert line["step"] == 0
  assert {key.partition("/")[0] for key in line if "prec@1" in key} == set(config["evals"]) - {"fewshot"}
