"""The loop on a linear model: what it compiles, transfers, writes and refuses."""

import json
import math
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import state
from core.checkpoint import pretrained
from core.cluster import preemption
from core.errors import UserError
from core.evaluators import classification
from core.recipe.parse import parse
from core.recipe.recipe import Recipe
from core.testing import trainer
from core.testing.linear_digits import Linear, make_config
from core.training import loop, metrics, parts, prepare

jax.config.update("jax_num_cpu_devices", 8)


def run(task, config, workdir):
  return loop.run(task, parse(Recipe, config), workdir)


def lines(workdir):
  return [
    {k: v for k, v in line.items() if not k.startswith("time/")} for line in metrics.read(workdir / "metrics.jsonl")
  ]


def test_a_run_learns_and_leaves_behind_what_it_promises(tmp_path):
  results = run(Linear(), make_config(total_steps=100), tmp_path)
  assert results["test/prec@1"] > 0.9
  log = lines(tmp_path)
  assert log[0]["step"] == 1
  assert [line["step"] for line in log if "training_loss" in line] == [1, *range(5, 101, 5)]
  assert [line["step"] for line in log if "test/loss" in line] == list(range(10, 101, 10))
  np.testing.assert_allclose(
    [line["lr"] for line in log if line["step"] in (1, 100) and "lr" in line], [0, 0], atol=1e-4
  )
  assert json.loads((tmp_path / "config.json").read_text())["lr"] == 0.05
  (start,) = json.loads((tmp_path / "run.json").read_text())
  assert start["versions"]["jax"] == jax.__version__
  assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["100", "90"]
  assert set(pretrained.load_params(str(tmp_path / "params.npz"))) == {"w", "b"}


def test_a_finished_run_started_again_has_nothing_left_to_do(tmp_path):
  results = run(Linear(), make_config(), tmp_path)
  log = (tmp_path / "metrics.jsonl").read_text()
  assert run(Linear(), make_config(), tmp_path) == results
  assert (tmp_path / "metrics.jsonl").read_text() == log


def test_nothing_is_compiled_after_the_first_step_and_the_first_evaluation(tmp_path):
  compiled = []

  def listener(event, *_, **__):
    if "backend_compile" in event:
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listener)
  run(Linear(), make_config(), tmp_path / "warm")
  counts = []
  for steps in (20, 80):
    compiled.clear()
    run(Linear(), make_config(total_steps=steps), tmp_path / str(steps))
    counts.append(len(compiled))
  assert counts[0] == counts[1] > 0


class Alternating(Linear):
  """Every third step is of another form, which says so in its metrics."""

  def __init__(self, number=0, traced=None):
    self._number, self._traced = number, [] if traced is None else traced

  def form(self, step):
    return 1 if step % 3 == 0 else 2

  def in_form(self, form):
    return Alternating(form, self._traced)

  def loss(self, variables, batch, rng):
    self._traced.append(self._number)
    loss, _ = super().loss(variables, batch, rng)
    return loss, {"form": jnp.asarray(self._number)}


def test_a_step_takes_the_form_that_its_task_says_and_each_is_traced_once(tmp_path):
  task = Alternating()
  run(task, make_config(log_training_steps=1), tmp_path)
  taken = {line["step"]: line["form"] for line in lines(tmp_path) if "form" in line}
  assert taken == {step: 1 if step % 3 == 0 else 2 for step in range(1, 21)}
  assert sorted(task._traced) == [1, 2]


def test_a_step_that_needs_an_implicit_transfer_is_an_error(tmp_path, monkeypatch):
  class FromHost:
    """Host batches where device arrays belong."""

    def __init__(self, batches, sharding):
      self._batches, self._sharding, self._given = batches, sharding, 0

    def __iter__(self):
      return self

    def __next__(self):
      self._given += 1
      batch = next(self._batches)
      return batch if self._given == 3 else jax.device_put(batch, self._sharding)

    def close(self):
      pass

  monkeypatch.setattr(prepare.feed, "to_devices", FromHost)
  with pytest.raises(Exception, match=r"[Dd]isallowed host-to-device transfer"):
    run(Linear(), make_config(evaluate=False), tmp_path)


@pytest.mark.parametrize("mesh", [[("data", 1), ("rest", 8)], [("data", 8)], [("data", 4), ("model", 2)]])
def test_every_mesh_gives_the_same_losses(tmp_path, mesh):
  one = make_config(sharding_strategy=[(".*", "replicate")])
  other = make_config(mesh=mesh, sharding_strategy=[("w", "fsdp(axis='data', min_size_to_shard_mb=0)")])
  run(Linear(), one, tmp_path / "one")
  run(Linear(), other, tmp_path / "other")
  for a, b in zip(lines(tmp_path / "one"), lines(tmp_path / "other"), strict=True):
    assert a.keys() == b.keys()
    np.testing.assert_allclose([a[key] for key in a], [b[key] for key in a], rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_last_good_checkpoint(tmp_path):
  class Diverging(Linear):
    def loss(self, variables, batch, rng):
      loss, aux = super().loss(variables, batch, rng)
      # `noise` is a pure function of seed and step; the loss blows up at the first step where it is large.
      return jnp.where(aux["noise"] > 0.93, jnp.nan, loss), aux

  with pytest.raises(parts.NonFiniteLoss, match=r"training_loss is nan at step (\d+)") as error:
    run(Diverging(), make_config(total_steps=500, ckpt_steps=1, evaluate=False), tmp_path)
  step = int(str(error.value).split(" at step ")[1].split(";")[0])
  assert step > 1
  good = tmp_path / "checkpoints" / str(step - 1)
  assert str(good) in str(error.value)
  assert max(int(path.name) for path in good.parent.iterdir() if path.name.isdigit()) == step - 1
  assert all(math.isfinite(line["training_loss"]) for line in lines(tmp_path))


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path):
  class Wider(Linear):
    def init(self, rng, batch):
      return {"params": {"w": jnp.zeros((64, 10)), "b": jnp.zeros(12)}}

  run(Linear(), make_config(), tmp_path)
  with pytest.raises(UserError, match=r"params/b: float32\[10\] in the checkpoint, float32\[12\] in the model"):
    run(Wider(), make_config(), tmp_path)


@pytest.mark.parametrize(
  "changes, words",
  [
    (dict(total_steps=None), r"^config\.total_steps must be a number"),
    (dict(total_epochs=3), "both set"),
    (dict(schedule=dict(decay_type="cosine", warmup_steps=21)), "longer than"),
    (dict(mesh=[("data", 3)]), r"config\.mesh"),
    (dict(input=dict(batch_size=62)), "56 or 64 can"),
    (dict(optax_name="scale_by_adma"), "scale_by_adam"),
    (dict(evals=dict(test=dict(pp_fn="value_rnage"))), "value_range"),
  ],
)
def test_a_mistake_is_refused_before_the_first_step(tmp_path, changes, words):
  with pytest.raises(UserError, match=words):
    run(Linear(), make_config(**changes), tmp_path)
  assert not (tmp_path / "checkpoints").exists()
  assert not (tmp_path / "metrics.jsonl").exists()


def test_a_profile_of_the_asked_steps_is_written(tmp_path):
  run(Linear(), make_config(profile_steps=(5, 6)), tmp_path)
  assert list(Path(tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_run_branched_off_a_kept_checkpoint_goes_on_as_the_run_it_left(tmp_path):
  config = make_config(keep_ckpt_steps=10, ckpt_steps=5)
  run(Linear(), config, tmp_path / "long")
  resumed = make_config(keep_ckpt_steps=10, ckpt_steps=5, resume=str(tmp_path / "long" / "checkpoints" / "10"))
  run(Linear(), resumed, tmp_path / "branch")
  tail = [line for line in lines(tmp_path / "long") if line["step"] > 10]
  assert [line for line in lines(tmp_path / "branch") if line["step"] > 10] == tail
  # Under another schedule and length it differs from its first step on; the run that it left is as it was.
  before = sorted(path for path in (tmp_path / "long").rglob("*"))
  cooldown = dict(decay_type="rsqrt", warmup_steps=5, cooldown_steps=5)
  shorter = make_config(
    total_steps=15, log_training_steps=1, schedule=cooldown, resume=str(tmp_path / "long" / "checkpoints" / "10")
  )
  run(Linear(), shorter, tmp_path / "cooled")
  rates = [line["lr"] for line in lines(tmp_path / "cooled") if "lr" in line]
  assert 0 < rates[-1] < rates[0]
  assert sorted(path for path in (tmp_path / "long").rglob("*")) == before


@pytest.mark.parametrize(
  "resume, words", [("nowhere", "config.resume: no checkpoint at .*nowhere"), ("long/checkpoints/7", "there are .*20")]
)
def test_a_checkpoint_to_branch_off_that_is_not_there_is_refused(tmp_path, resume, words):
  run(Linear(), make_config(evaluate=False), tmp_path / "long")
  with pytest.raises(UserError, match=words):
    run(Linear(), make_config(resume=str(tmp_path / resume)), tmp_path / "branch")
  assert not list((tmp_path / "branch").glob("*"))


def test_a_damaged_checkpoint_to_branch_off_is_refused_and_left_in_place(tmp_path):
  run(Linear(), make_config(evaluate=False), tmp_path / "long")
  newest = tmp_path / "long" / "checkpoints" / "20"
  max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size).write_bytes(b"x")
  with pytest.raises(UserError, match=r"config\.resume: the checkpoint .*20 is damaged"):
    run(Linear(), make_config(resume=str(tmp_path / "long")), tmp_path / "branch")
  assert newest.is_dir()


@pytest.mark.parametrize(
  "form, tolerance",
  [
    (dict(rounding="stochastic"), 4e-3),
    (dict(rounding="compensated"), 5e-5),
    (dict(dtype="float32", sharding="fsdp"), 1e-6),
  ],
)
def test_the_average_is_evaluated_beside_the_weights_saved_and_resumed(tmp_path, form, tolerance):
  config = make_config(ema=dict(decay=0.9, **form), log_training_steps=1, mesh=[("fsdp", -1)])
  run(Linear(), config, tmp_path / "whole")
  whole = lines(tmp_path / "whole")
  evaluated = [line for line in whole if "test_ema/loss" in line]
  assert [line["step"] for line in evaluated] == [10, 20]
  # A float64 average of the same parameters, taken from a run that keeps a checkpoint of every step.
  run(Linear(), make_config(ckpt_steps=1, keep_ckpt_steps=1, evaluate=False), tmp_path / "every")
  average = final = pretrained.load_params(str(tmp_path / "whole" / "params.npz"))
  steps = [trainer.state_at(tmp_path / "every", step)["params/w"].astype(np.float64) for step in range(1, 21)]
  np.testing.assert_array_equal(steps[-1].astype(np.float32), final["w"])
  average = np.asarray(Linear().init(state.step_rng(0, 0, stream=1), None)["params"]["w"], np.float64)
  for n, w in enumerate(steps, 1):
    average += max(0.1, 9 / (9 + n)) * (w - average)
  found = pretrained.load_params(str(tmp_path / "whole" / "params_ema.npz"))["w"]
  np.testing.assert_allclose(found, average, atol=tolerance)
  assert np.abs(found - final["w"]).max() > 0.01

  # As if killed in the second half.
  (tmp_path / "whole" / "checkpoints" / "20").rename(tmp_path / "newest")
  before = (tmp_path / "whole" / "params_ema.npz").read_bytes()
  (tmp_path / "whole" / "params_ema.npz").unlink()
  run(Linear(), config, tmp_path / "whole")
  assert (tmp_path / "whole" / "params_ema.npz").read_bytes() == before
  assert lines(tmp_path / "whole") == whole


def test_a_run_stopped_in_its_last_evaluation_is_not_done_and_evaluates_when_started_again(tmp_path, monkeypatch):
  evaluate = classification.Evaluator.run

  def interrupted(self, variables, interrupted):
    os.kill(os.getpid(), signal.SIGTERM)
    return evaluate(self, variables, interrupted)

  config = make_config(evals=dict(test=dict(log_steps=20)))
  for _ in range(2):  # In the step's own evaluation, and in that which makes up for it.
    with monkeypatch.context() as patch:
      patch.setattr(classification.Evaluator, "run", interrupted)
      with pytest.raises(preemption.Preempted, match="after step 20"):
        run(Linear(), config, tmp_path / "run")
    assert not (tmp_path / "run" / "params.npz").exists()
  assert "test/loss" in run(Linear(), config, tmp_path / "run")
  assert lines(tmp_path / "run")[-1]["step"] == 20
  assert (tmp_path / "run" / "params.npz").exists()


def test_a_project_may_add_a_part_and_leave_one_out(tmp_path):
  seen = []

  class Watching:
    def after(self, now):
      seen.append(now.step)

  with prepare.prepare(Linear(), parse(Recipe, make_config()), tmp_path) as run_, parts.usual(run_) as usual:
    rest = [part for part in usual if not isinstance(part, parts.Evaluating)]
    assert loop.train(run_, [*rest, Watching()]) == {}
  assert seen == list(range(21))
  log = lines(tmp_path)
  assert [line["step"] for line in log if "training_loss" in line] == [1, 5, 10, 15, 20]
  assert not any("test/loss" in line for line in log)
  assert (tmp_path / "params.npz").exists()
