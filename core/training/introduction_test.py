"""A run's first lines: its classes, and evaluations of what is trained on."""

import json
import types

import jax
import numpy as np
import pytest

from core.recipe.evaluators import Evaluator
from core.recipe.input import Input
from core.recipe.parse import parse
from core.training import introduction

PP = "keep('label')"


def lines(data, tested):
  given = dict(val=dict(type="mean", data=tested, pp_fn=PP, log_steps=1))
  recipe = types.SimpleNamespace(
    input=parse(Input, dict(data=data, batch_size=2, pp=PP), "config.input"),
    evals={name: parse(Evaluator, each, f"config.evals.{name}") for name, each in given.items()},
    describe_model=lambda: "a model",
  )
  mesh = types.SimpleNamespace(devices=np.array(jax.devices()[:1]), shape={"data": 1})
  shapes = types.SimpleNamespace(params={})
  placement = types.SimpleNamespace(recipe=recipe, mesh=mesh, shapes=shapes)
  return introduction.lines("vit x", placement, types.SimpleNamespace(total=3), 10, "run", 0).splitlines()


@pytest.mark.parametrize("tested", ["all[:2]", "all[8:]"])
def test_the_classes_and_an_overlap_are_said(tmp_path, tested):
  path = tmp_path / "t.jsonl"
  path.write_text("".join(f"{json.dumps({'label': str(number)})}\n" for number in range(12)))
  data = dict(source="jsonl", path=str(path), classes="t.jsonl", split="all[:8]")
  said = lines(data, data | dict(split=tested))
  (of_data,) = [line for line in said if line.split()[0] == "data"]
  assert of_data.endswith("10 examples, batch 2; 12 classes, 0 to 11")
  overlap = [line.split(maxsplit=1)[1] for line in said if line.split()[0] == "overlap"]
  whole = "config.evals.val tests on all[:2]: 2 of 2 examples are trained on"
  assert overlap == ([whole] if tested == "all[:2]" else [])
