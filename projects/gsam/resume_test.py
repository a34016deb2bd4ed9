"""LookSAM keeps its direction in the checkpoint: a run stopped between two second passes goes on to the last bit."""

from core.testing import trainer

OPTIONS = (
  "--config=digits:runlocal",
  "--config.sam={'rho': 0.05, 'every': 4}",
  "--config.total_steps=10",
  "--config.ckpt_steps=6",
  "--config.log_training_steps=1",
  "--config.model.width=16",
  "--config.model.num_heads=2",
  "--config.evals={}",
)


def test_looksam_resumes_bit_for_bit(tmp_path):
  cache = f"--cache_dir={tmp_path / 'cache'}"
  for name in ("whole", "resumed"):
    status, output = trainer.run("projects.gsam.train", *OPTIONS, cache, f"--workdir={tmp_path / name}")
    assert status == 0, output
  workdir = tmp_path / "resumed"
  kept = [name for name in trainer.state_at(workdir, 6) if "direction" in name]
  assert any(name.endswith("direction/head/kernel") for name in kept)
  # As if killed after step 6, from which LookSAM goes on with what it found at step 4.
  (workdir / "checkpoints" / "10").rename(tmp_path / "newest")
  status, output = trainer.run("projects.gsam.train", *OPTIONS, cache, f"--workdir={workdir}")
  assert status == 0, output
  assert "resumed after step 6" in output
  assert trainer.differences(tmp_path / "whole", workdir) == []
