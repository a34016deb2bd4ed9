"""When things happen: every rhythm lies within the run, and what is kept is saved."""

import re

import pytest

from core.errors import UserError
from core.recipe.parse import parse
from core.recipe.recipe import Recipe
from core.training import dry_run
from core.training.plan import Plan

DATA = dict(name="digits", split="test")


def plan_of(data_size=1_000, **changes):
  config = dict(
    total_steps=20,
    input=dict(data=DATA, batch_size=10),
    optax_name="identity",
    lr=1,
    log_training_steps=5,
    ckpt_steps=5,
    evals=dict(test=dict(data=DATA, pp_fn="")),
  )
  if any(key.startswith("total_") for key in changes):
    del config["total_steps"]
  return Plan.of(parse(Recipe, config | changes), data_size)


def test_a_checkpoint_that_is_kept_is_saved_though_no_other_is_due():
  plan = plan_of(keep_ckpt_steps=7)
  assert [step for step in range(1, 21) if plan.saves(step)] == [5, 7, 10, 14, 15, 20]


def test_an_evaluation_without_a_rhythm_runs_after_the_last_step():
  plan = plan_of()
  assert [step for step in range(21) if plan.evaluates("test", step)] == [20]


@pytest.mark.parametrize(
  "changes, line",
  [
    (dict(total_steps=2**31), "config.total_steps must be at most 2,147,483,647 steps, got 2,147,483,648"),
    (dict(total_epochs=1e12), "config.total_epochs must be at most 2,147,483,647 steps, got 100,000,000,000,000"),
    (
      dict(total_examples=1e17),
      "config.total_examples must be at most 2,147,483,647 steps, got 10,000,000,000,000,000",
    ),
    (dict(profile_steps=(5, 21)), "config.profile_steps must be steps of the run, 1 to 20, got (5, 21)"),
    (dict(profile_steps=(900, 950)), "config.profile_steps must be steps of the run, 1 to 20, got (900, 950)"),
  ],
)
def test_what_lies_beyond_the_run_or_its_counter_is_refused(changes, line):
  with pytest.raises(UserError) as error:
    plan_of(**changes)
  assert str(error.value) == line


def test_the_longest_run_is_one_that_its_counter_holds():
  assert plan_of(total_steps=2**31 - 1).total == 2**31 - 1


@pytest.mark.parametrize("every", [dict(), dict(keep_ckpt_steps=7), dict(keep_ckpt_steps=10), dict(ckpt_steps=40)])
@pytest.mark.parametrize("total, log", [(20, 5), (21, 5), (20, 1), (1, 3), (20, 30)])
def test_a_dry_run_tells_how_often_each_thing_happens(total, log, every):
  plan = plan_of(total_steps=total, log_training_steps=log, **every)
  told = dict(re.findall(r"^ *(log|checkpoint) .* (\d+) times$", dry_run._times_table(plan), flags=re.MULTILINE))
  steps = range(1, total + 1)
  assert told == {"log": str(sum(map(plan.logs, steps))), "checkpoint": str(sum(map(plan.saves, steps)))}
