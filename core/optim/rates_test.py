"""What the optimizer does to each parameter, told before it does it."""

import numpy as np

from core import trees
from core.optim import optimizer
from core.recipe.optimizer import Optimizer
from core.recipe.parse import parse

PARAMS = {name: {"kernel": np.ones((2, 3)), "bias": np.ones(3)} for name in ("embedding", "block", "head", "teacher")}


def test_each_parameter_has_its_schedule_its_rate_and_its_decay():
  schedule = [("embedding/.*", None), ("head/.*", dict(decay_type="cosine")), (".*", {})]
  options = dict(optax_name="scale_by_adam", lr=0.1, wd=0.01, lr_mults=[("head/kernel", 2.0)], schedule=schedule)
  found = optimizer.rates(parse(Optimizer, options), PARAMS, frozen=("teacher/.*",))
  which, lr, wd = (dict(trees.flatten_with_names(tree)) for tree in found)
  numbers = {"embedding": optimizer.FROZEN, "head": 0, "block": 1, "teacher": optimizer.FROZEN}
  assert which == {f"{name}/{leaf}": number for name, number in numbers.items() for leaf in ("kernel", "bias")}
  assert lr == {name: 0.2 if name == "head/kernel" else 0.1 for name in which}
  assert wd == {name: 0.01 if name.endswith("kernel") else 0.0 for name in which}


def test_without_weight_decay_there_is_none():
  _, _, wd = optimizer.rates(parse(Optimizer, dict(optax_name="scale_by_adam", lr=0.1)), PARAMS)
  assert {decay for _, decay in trees.flatten_with_names(wd)} == {0.0}
