"""The program on small configs: its report, its comparisons, and what it refuses."""

import dataclasses
import json

import pytest

from core.errors import UserError
from tools.aot import aot, chips, report

DIGITS = "--config=projects/vit/configs/digits.py:runlocal"
CPU = "--topology=cpu:2"
# As small as a ViT gets, but for its MLP, whose products are what counts.
OVERRIDES = [("model.depth", "1"), ("model.width", "16"), ("model.mlp_dim", "384"), ("model.num_heads", "2")]
TINY = [DIGITS, *(f"--config.{key}={value}" for key, value in OVERRIDES)]


@pytest.fixture(scope="module")
def reported():
  return aot.compile_and_report(DIGITS.removeprefix("--config="), "cpu:2", overrides=OVERRIDES)


def test_a_step_without_remat_computes_what_its_model_needs(reported):
  assert reported["flops"]["compiled"] == pytest.approx(reported["flops"]["model"], rel=0.01)


def test_loops_of_unknown_length_are_named(reported):
  assert reported["unknown_loops"]  # Mixup draws from a Beta distribution, which tries until it hits.
  assert "loops of unknown length" in report.table(reported)


def test_memory_is_that_of_state_and_batch_on_each_device(reported):
  parts = reported["arguments"]
  assert parts["params"] == 4 * reported["parameters"]  # Replicated.
  assert reported["memory"]["arguments"] == pytest.approx(sum(parts.values()), rel=0.01)
  assert sum(kind["bytes"] for kind in reported["shardings"]) == parts["params"]


def test_gradients_of_replicated_parameters_are_reduced_once(reported):
  found = reported["collectives"]["all-reduce"]
  assert found["bytes"] == pytest.approx(4 * reported["parameters"], rel=0.05)


def test_an_evaluation_costs_a_third_of_a_step(reported, capsys):
  assert aot.main([*TINY, CPU, "--step=eval", "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["flops"]["model"] == pytest.approx(reported["flops"]["model"] / 3, rel=0.1)
  assert "optimizer" not in found["arguments"]


def test_two_configs_stand_side_by_side(capsys):
  assert aot.main([*TINY, CPU, "--step=eval", f"--compare={DIGITS.removeprefix('--config=')}"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert any(line.startswith("FLOPs compiled") and line.endswith("same") for line in lines)


def test_a_tpus_report_has_an_estimate_of_time(capsys):
  assert aot.main([*TINY, "--topology=v5e:2x2", "--step=eval"]) == 0
  out = capsys.readouterr().out
  assert "4 x TPU v5 lite" in out
  assert "step at best" in out
  assert "MFU at best" in out


def test_what_does_not_fit_is_refused_with_the_numbers_and_two_remedies(monkeypatch):
  small = dataclasses.replace(chips.CHIPS["v5e"], hbm=200_000.0)
  monkeypatch.setitem(chips.CHIPS, "v5e", small)
  with pytest.raises(UserError) as error:
    aot.main([*TINY, "--topology=v5e:2x2", "--step=eval"])
  assert "does not fit" in str(error.value)
  assert "v5e:2x2 has 195.31 KiB; try " in str(error.value)
  assert "; or " in str(error.value)


@pytest.mark.parametrize(
  "arguments, words",
  [
    (["--topology=v9:2x2"], "(known: v2:2x2, v3:2x2, v4:2x2x1, "),
    (["--topology=v5e"], "is unknown (known:"),
    (["--topology=v5e:3x5"], "(known: 1x1, 2x2"),
    (["--topology=v5p:4x4"], "v5p has 3 dimensions"),
    (["--topology=cpu:many"], "a number of devices, cpu:8 say"),
    (["--topology=gpu:2"], "needs an NVIDIA driver and jax[cuda13]"),
    ([], "--topology=... is missing"),
    (["--topology=v5e:2x2", "--config.input.batch_size=30"], "28 or 32 can"),
    (["--topology=v5e:2x2", "--config.mesh=[('data', 3)]"], "needs 3 devices, there are 4"),
    (["--topology=v5e:2x2", "--step=evil"], "no step 'evil' (known: eval:predict, train)"),
    (["--topology=v5e:2x2", "--example=image=3"], "--example must read like"),
    (["--topology=v5e:2x2", "--data_size=few"], "flag --data_size must be a whole number above 0"),
    (["--topolgy=v5e:2x2"], "did you mean 'topology'?"),
    ([CPU, "--compare_revision=no-such-revision"], "--compare_revision: 'no-such-revision'"),
    ([CPU, "--compare_revision=HEAD", "--compare=x.py"], "give one of --compare and --compare_revision"),
  ],
)
def test_a_mistake_is_one_line(arguments, words):
  with pytest.raises(UserError) as error:
    aot.main([DIGITS, *arguments])
  assert words in str(error.value)
  assert "\n" not in str(error.value)
