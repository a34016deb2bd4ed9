import jax
import jax.numpy as jnp
import optax
import pytest

from core.errors import UserError
from core.optim.masks import make_mask, trainable_by
from core.recipe.optimizer import Optimizer
from core.recipe.parse import parse

PARAMS = {
  "embedding": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
  "head": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
  "cls": jnp.ones(3),
}


def test_the_first_rule_that_matches_the_whole_name_wins():
  got = make_mask(PARAMS, [("head/bias", 1), ("head/.*", 2), (".*bias", 3), (".*", 4)], where="config.x")
  assert got == {"embedding": {"kernel": 4, "bias": 3}, "head": {"kernel": 2, "bias": 1}, "cls": 4}


def test_parameters_that_no_rule_matches_get_the_default():
  got = make_mask(PARAMS, [(".*/kernel$", True)], where="config.x", default=False)
  assert got == {"embedding": {"kernel": True, "bias": False}, "head": {"kernel": True, "bias": False}, "cls": False}


def test_shapes_alone_are_enough_and_optax_takes_the_mask():
  shapes = jax.eval_shape(lambda: PARAMS)
  mask = make_mask(shapes, [("head/.*", True)], where="config.x", default=False)
  tx = optax.masked(optax.scale(3.0), mask)
  updates, _ = tx.update(PARAMS, tx.init(PARAMS))
  assert updates["head"]["bias"][0] == 3
  assert updates["cls"][0] == 1


def test_a_last_rule_for_the_rest_may_be_left_with_none():
  make_mask(PARAMS, [("head/.*", 1), ("embedding/.*|cls", 2), (".*", 3)], where="config.x")


@pytest.mark.parametrize(
  "rules, words",
  [
    ([("hed/.*", 1), (".*", 2)], r"config.x: 'hed/\.\*' matches no parameter by its whole name .nearest: head/"),
    ([("head", 1), (".*", 2)], "'head' matches no parameter by its whole name .nearest: head/"),
    ([(".*", 1), ("head/.*", 2)], r"'head/\.\*' comes after '\.\*', which takes all it would match"),
    ([("head/.*", 1)], "no pattern matches cls, embedding/bias, embedding/kernel; every parameter needs one"),
    ([], "no pattern matches cls, embedding/bias, embedding/kernel and 2 more"),
    ([("h" * 1_000, 1), (".*", 2)], "'hhhh.* matches no parameter by its whole name"),
  ],
)
def test_rules_that_do_not_fit_the_parameters_are_refused_in_one_line(rules, words):
  with pytest.raises(UserError, match=words) as error:
    make_mask(PARAMS, rules, where="config.x")
  assert "\n" not in str(error.value)
  assert len(str(error.value)) <= 300


@pytest.mark.parametrize(
  "schedule, frozen, trains",
  [
    ({}, (), {"cls", "embedding", "head"}),
    ({}, ("head/.*",), {"cls", "embedding"}),
    ([("cls", None), (".*", {})], (), {"embedding", "head"}),
    ([("cls", None), (".*", {})], ("head/.*",), {"embedding"}),
    ([("cls", None), (".*", {})], ("cls",), {"embedding", "head"}),  # Said twice.
  ],
)
def test_what_a_task_freezes_stands_before_the_schedule(schedule, frozen, trains):
  recipe = parse(Optimizer, dict(optax_name="identity", lr=1, schedule=schedule))
  mask = trainable_by(recipe, PARAMS, frozen)
  assert {name for name, part in mask.items() if all(jax.tree.leaves(part))} == trains
  assert {name for name, part in mask.items() if any(jax.tree.leaves(part))} == trains
