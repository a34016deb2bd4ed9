"""Looking before running: what the flags show of a run, none of which writes anything."""

import json
from pathlib import Path

import pytest
import yaml

from core.training import cli
from projects.vit.train import TASK

TINY = ("--config.model.depth=1", "--config.model.width=16", "--config.model.mlp_dim=32", "--config.model.num_heads=2")


@pytest.fixture
def shown(tmp_path, monkeypatch, capfd):
  """Runs the trainer in an empty folder and returns what it printed; nothing may be in the folder afterwards."""
  monkeypatch.setenv("BUILD_WORKING_DIRECTORY", str(tmp_path))
  monkeypatch.chdir(tmp_path)

  def show(*arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_:
      cli.main(TASK, project=Path(__file__).parent, default="digits", argv=arguments)
    out, err = capfd.readouterr()
    assert (exit_.value.code or 0, err) == (0, "")
    assert not list(tmp_path.iterdir())
    return out

  return show


def test_the_help_has_every_flag_and_the_projects_configs(shown):
  text = shown("--help")
  for flag in ("config", "config.KEY", "workdir", "dry_run", "print_config", "keys", "cache_dir", "coordinator"):
    assert f"  --{flag}" in text
  for name in ("digits", "s16_i1k", "bit_hyperrule"):
    assert name in text
  assert all(len(line) <= 120 for line in text.splitlines())


def test_the_keys_are_told_with_their_types_defaults_and_meanings(shown):
  lines = [line.strip() for line in shown("--keys").splitlines()]
  assert "lr  (a number that is not negative; required)" in lines
  assert lines[lines.index("seed  (a whole number in [0, 4294967295]; 0)") + 1].startswith("seeds the parameters")
  for path in ("schedule", "evals", "model", "rho_max", "mesh"):
    assert any(line.startswith(f"{path}  (") for line in lines), path
  assert {"sam", "input.data with source = tfds", "model with model_name = vit"} <= set(lines)


def test_the_printed_config_is_whole_and_makes_the_same_run(shown, tmp_path_factory):
  text = shown("--print_config=yaml", "--config.lr=0.25")
  config = yaml.safe_load(text)
  assert (config["lr"], config["seed"], config["mixup"]) == (0.25, 0, {"p": 0.2})
  assert config["sam"] is None  # A default that the file does not name.
  file = tmp_path_factory.mktemp("again") / "again.py"
  file.write_text(f"def get_config(arg=None):\n  return {config!r}\n")
  assert json.loads(shown("--print_config=json", f"--config={file}")) == json.loads(json.dumps(config))


def test_a_dry_run_tells_what_would_run_and_writes_nothing(shown):
  text = shown("--dry_run", *TINY, "--config.wd_mults=[('head/kernel', 2.0)]", "--cpu_devices=4")
  titles = (
    "vit digits",
    "a batch",
    "variables",
    "learning rates and weight decays",
    "when, of 2,694 steps",
    "memory of the compiled step on a device",
  )
  assert all(any(line.startswith(title) for line in text.splitlines()) for title in titles)
  rows = {line.strip().split("  ")[0]: line for line in text.splitlines()}
  assert "64x8x8x1" in rows["image"]
  assert rows["head"].split()[1:3] == ["170", "680"]  # 16 x 10 weights and 10 biases of four bytes.
  assert "0.004" in next(line for line in text.splitlines() if line.endswith("head/kernel"))
  assert "every 500 steps" in rows["checkpoint"]
  assert rows["evaluate test"].split()[-2] == "12"


def test_a_dry_run_refuses_what_the_run_would(capfd):
  with pytest.raises(SystemExit) as exit_:
    cli.main(TASK, project=Path(__file__).parent, default="digits", argv=["--dry_run", "--config.input.batch_size=0"])
  assert exit_.value.code == 2
  line = "error: config.input.batch_size must be a whole number in [1, 1048576], got 0"
  assert capfd.readouterr().err.startswith(line)
