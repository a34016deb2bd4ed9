"""Evaluations before the first step, names of metrics, and a run of no step at all."""

import os
import signal

import numpy as np
import pytest

from core import state
from core.cluster import preemption
from core.data.sources import digits
from core.errors import UserError
from core.evaluators import classification
from core.recipe.parse import parse
from core.recipe.recipe import Recipe
from core.testing.linear_digits import PP, Linear, make_config
from core.training import dry_run, loop, metrics, plan

DATA = dict(data=dict(name="digits", split="test"), pp_fn=PP, batch_size=64)


def run(workdir, **changes):
  return loop.run(Linear(), config(**changes), workdir)


def config(**changes):
  return parse(Recipe, make_config(evaluate="evals" not in changes, **changes))


def lines(workdir):
  found = metrics.read(workdir / "metrics.jsonl")
  return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in found]


def loss_at_the_start():
  """The mean cross-entropy of the parameters that seed 0 begins with, in double precision."""
  params = Linear().init(state.step_rng(0, 0, stream=1), None)["params"]
  test = digits.load(split="test").arrays
  logits = (test["image"].reshape(-1, 64) / 255.0) @ np.asarray(params["w"], np.float64)
  largest = logits.max(axis=1)
  log_sums = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
  return float(np.mean(log_sums - logits[np.arange(len(logits)), test["label"]]))


def test_an_evaluation_before_the_first_step_is_of_the_parameters_that_training_starts_from(tmp_path):
  evals = dict(test=dict(**DATA, log_steps=10, first=True), once=dict(**DATA, first="only"), last=DATA)
  results = run(tmp_path, evals=evals)
  log = lines(tmp_path)
  steps = {name: [line["step"] for line in log if f"{name}/loss" in line] for name in evals}
  assert steps == {"test": [0, 10, 20], "once": [0], "last": [20]}
  found = next(line["test/loss"] for line in log if line["step"] == 0 and "test/loss" in line)
  np.testing.assert_allclose(found, loss_at_the_start(), rtol=1e-5)
  assert {name.split("/")[0] for name in results} == {"test", "last"}
  assert run(tmp_path, evals=evals) == results


def test_it_does_not_change_the_training(tmp_path):
  run(tmp_path / "with", evals=dict(test=dict(**DATA, log_steps=10, first=True)))
  run(tmp_path / "without", evals=dict(test=dict(**DATA, log_steps=10)))
  assert [line for line in lines(tmp_path / "with") if line["step"]] == lines(tmp_path / "without")
  assert (tmp_path / "with" / "params.npz").read_bytes() == (tmp_path / "without" / "params.npz").read_bytes()


def test_a_run_that_goes_on_does_not_evaluate_its_start_again(tmp_path):
  evals = dict(test=dict(**DATA, log_steps=10, first=True))
  run(tmp_path / "run", evals=evals)
  whole = lines(tmp_path / "run")
  (tmp_path / "run" / "checkpoints" / "20").rename(tmp_path / "newest")  # As if killed in the second half.
  run(tmp_path / "run", evals=evals)
  assert lines(tmp_path / "run") == whole
  # Branched off at step 10, it has no first step of its own.
  run(tmp_path / "branch", evals=evals, resume=str(tmp_path / "run" / "checkpoints" / "10"))
  assert [line["step"] for line in lines(tmp_path / "branch") if "test/loss" in line] == [10, 20]


def test_a_run_stopped_before_its_first_step_evaluates_the_rest_of_it_when_started_again(tmp_path, monkeypatch):
  evals = {name: dict(**DATA, first="only") for name in ("a", "b")}
  evaluate, ran = classification.Evaluator.run, []

  def interrupted(self, variables, interrupted):
    ran.append(self)
    if len(ran) == 2:
      os.kill(os.getpid(), signal.SIGTERM)
    return evaluate(self, variables, interrupted)

  monkeypatch.setattr(classification.Evaluator, "run", interrupted)
  with pytest.raises(preemption.Preempted):
    run(tmp_path, evals=evals)
  assert [line["step"] for line in lines(tmp_path)] == [0]
  run(tmp_path, evals=evals)
  assert len(ran) == 3  # `a` is known.
  assert [next(iter(line)) for line in lines(tmp_path)[:2]] == ["step", "step"]
  assert lines(tmp_path)[0].keys() == {key.replace("b/", "a/") for key in lines(tmp_path)[1]}


def test_no_step_at_all_evaluates_once_and_ends(tmp_path, monkeypatch):
  traced = []
  monkeypatch.setattr(Linear, "loss", lambda *_: traced.append(1))
  results = run(tmp_path, total_steps=0, evals=dict(test=dict(**DATA, log_steps=10), last=DATA))
  assert not traced
  np.testing.assert_allclose([results["test/loss"], results["last/loss"]], loss_at_the_start(), rtol=1e-5)
  assert [line["step"] for line in lines(tmp_path)] == [0, 0]
  assert not list(tmp_path.glob("checkpoints/*"))
  text = (tmp_path / "metrics.jsonl").read_text()
  assert run(tmp_path, total_steps=0, evals=dict(test=dict(**DATA, log_steps=10), last=DATA)) == results
  assert (tmp_path / "metrics.jsonl").read_text() == text


def test_parts_of_a_run_of_no_step_are_none(tmp_path):
  parts = dict(log_training_percent=0.1, ckpt_percent=0.5, keep_ckpt_percent=0.5)
  own = {
    key: value for key, value in make_config(total_steps=0).items() if key not in ("log_training_steps", "ckpt_steps")
  }
  recipe = parse(Recipe, own | parts | dict(evals=dict(test=dict(**DATA, log_percent=0.1))))
  assert "no step is taken" in dry_run.describe(Linear(), recipe, title="parts")
  results = loop.run(Linear(), recipe, tmp_path)
  np.testing.assert_allclose(results["test/loss"], loss_at_the_start(), rtol=1e-5)


def test_no_step_needs_no_data_but_their_shapes(tmp_path):
  zeros = dict(source="zeros", spec=dict(image=dict(shape=(8, 8, 1), dtype="uint8")))
  given = make_config(total_steps=0) | dict(input=dict(data=zeros, batch_size=8, pp="value_range(0,1)"))
  recipe = parse(Recipe, given)
  assert "test/loss" in loop.run(Linear(), recipe, tmp_path)
  shown = dry_run.describe(Linear(), recipe, title="zeros")
  assert "no step is taken" in shown
  assert "before the first step" in shown


def test_a_prefix_takes_the_place_of_the_name(tmp_path):
  evals = {
    "bare": dict(**DATA, prefix=""),
    "named": dict(**DATA, prefix="z/named_"),
    "mean": dict(**DATA, first=True),
  }
  results = run(tmp_path, evals=evals, ema=dict(decay=0.5))
  prefixes = ["", "z/named_", "mean/", "ema/", "ema/z/named_", "mean_ema/"]
  assert {f"{prefix}loss" for prefix in prefixes} == {key for key in results if key.endswith("loss")}
  assert results["loss"] == results["z/named_loss"] == results["mean/loss"]
  assert results["ema/loss"] == results["mean_ema/loss"] != results["loss"]
  whole = lines(tmp_path)
  assert run(tmp_path, evals=evals, ema=dict(decay=0.5)) == results
  assert lines(tmp_path) == whole


@pytest.mark.parametrize(
  "evals, line",
  [
    (dict(a=dict(first="only", log_steps=5)), "config.evals.a.log_steps is given, and first='only' runs it before"),
    (dict(a=dict(prefix="x"), b=dict(prefix="x")), "config.evals.b.prefix must not be 'x': so begin the"),
    (dict(a={}, b=dict(prefix="a/")), "config.evals.b.prefix must not be 'a/': so begin the metrics of evals.a"),
    (dict(a=dict(prefix="time/x")), "config.evals.a.prefix must be text that begins the metrics' names, got 'time/x'"),
    (dict(a=dict(prefix="\n")), "config.evals.a.prefix must be text that begins the metrics' names, got"),
  ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(evals, line):
  with pytest.raises(UserError) as error:
    config(evals={name: DATA | each for name, each in evals.items()})
  assert str(error.value).startswith(line)


def test_other_kinds_of_evaluation_may_share_a_prefix():
  evals = dict(a=dict(**DATA, prefix="x/"), b=dict(**DATA, prefix="x/", type="mean"))
  found = plan.Plan.of(config(evals=evals), data_size=1_000)
  assert found.prefixes == {"a": "x/", "b": "x/"}
