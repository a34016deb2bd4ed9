"""The default run, cut to a third, as a person starts it; and on several devices."""

from core.testing import default_run, trainer

test_a_third_of_the_default_run_reaches_90_percent_and_says_where_it_lies = default_run.make_test(
  "vit", "--config.total_epochs=40", accuracy=0.90
)


def test_four_devices_with_fsdp_follow_the_losses_of_one(tmp_path):
  options = ("--config=digits", "--config.total_steps=20", "--config.log_training_steps=1", "--config.model.depth=2")
  fsdp = "--config.sharding_strategy=[('.*', 'fsdp(min_size_to_shard_mb=0)')]"
  for devices in (1, 4):
    workdir = f"--workdir={tmp_path / str(devices)}"
    status, output = trainer.run("projects.vit.train", *options, fsdp, f"--cpu_devices={devices}", workdir)
    assert status == 0, output
  one, four = (
    [line["training_loss"] for line in trainer.repeatable_metrics(tmp_path / d) if "lr" in line] for d in "14"
  )
  assert len(one) == len(four) == 20
  assert max(abs(a - b) for a, b in zip(one, four)) < 1e-3
