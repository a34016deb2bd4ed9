"""When things happen in a run, in steps."""

import dataclasses
from collections.abc import Callable, Mapping

from core.errors import UserError
from core.recipe.duration import Duration
from core.recipe.evaluators_base import Evaluation
from core.recipe.recipe import Recipe, metric_prefix

_MOST_STEPS = 2**31 - 1  # The counters of the train state and of optimizers are int32.
EMA = "_ema"  # Ends the name of an evaluation of the parameters' average.


@dataclasses.dataclass(frozen=True)
class Plan:
  """The length of a run and its rhythms.

  Attributes:
    total: the last step.
    log_training: steps from one logged step to the next.
    ckpt: steps from one checkpoint to the next.
    keep_ckpt: of which multiples the checkpoint is kept for good; None for none.
    evals: steps from one evaluation to the next, by name; None for one that runs before the first step alone.
    first: names of the evaluations that run before the first step.
    prefixes: what begins the names of an evaluation's metrics, by name.
    lengths: total_steps, batch_size and data_size, by which durations become steps.
  """

  total: int
  log_training: int
  ckpt: int
  keep_ckpt: int | None
  evals: Mapping[str, int | None]
  first: frozenset[str]
  prefixes: Mapping[str, str]
  lengths: Mapping[str, int]

  @classmethod
  def of(cls, recipe: Recipe, data_size: int) -> "Plan":
    """Returns the plan of a recipe whose training data have `data_size` examples.

    Raises:
      UserError: a duration that cannot be turned into steps, or that does not lie within the run.
    """
    known = dict(batch_size=recipe.input.batch_size, data_size=data_size)
    total = recipe.total.steps(**known)
    if total > _MOST_STEPS:
      raise UserError(f"{recipe.total.key} must be at most {_MOST_STEPS:,} steps, got {total:,}")
    if recipe.profile_steps and recipe.profile_steps[1] > total:
      first, last = recipe.profile_steps
      raise UserError(f"config.profile_steps must be steps of the run, 1 to {total:,}, got ({first:,}, {last:,})")
    lengths = dict(total_steps=total, **known)

    def every(duration: Duration) -> int:
      return max(1, duration.steps(**lengths))  # A part of a run of no step is none.

    evals = {name: _rhythm(each, total, every) for name, each in recipe.evals.items()}
    first = {name for name, each in recipe.evals.items() if each.first}
    prefixes = {name: metric_prefix(name, each) for name, each in recipe.evals.items()}
    if recipe.ema:
      own = {name for name, each in recipe.evals.items() if each.prefix is None}
      evals |= {name + EMA: steps for name, steps in evals.items()}
      first |= {name + EMA for name in first}
      prefixes |= {name + EMA: f"{name}{EMA}/" if name in own else f"ema/{prefix}" for name, prefix in prefixes.items()}
    return cls(
      total=total,
      log_training=every(recipe.log_training),
      ckpt=every(recipe.ckpt),
      keep_ckpt=None if recipe.keep_ckpt is None else recipe.keep_ckpt.steps(**lengths) or None,
      evals=evals,
      first=frozenset(first),
      prefixes=prefixes,
      lengths=lengths,
    )

  def logs(self, step: int) -> bool:
    """Tells whether the metrics of a step are logged."""
    return step == 1 or step == self.total or (step > 0 and step % self.log_training == 0)

  def saves(self, step: int) -> bool:
    """Tells whether a checkpoint is saved after a step: those that are kept for good are due whatever `ckpt` is."""
    keeps = self.keep_ckpt is not None and step % self.keep_ckpt == 0
    return keeps or step % self.ckpt == 0 or step == self.total

  def evaluates(self, name: str, step: int) -> bool:
    """Tells whether an evaluation runs after a step; after step 0, whether before the first."""
    if step == 0:
      return name in self.first or self.total == 0
    every = self.evals[name]
    return every is not None and (step % every == 0 or step == self.total)

  def evaluates_any(self, step: int) -> bool:
    """Tells whether any evaluation runs after a step."""
    return any(self.evaluates(name, step) for name in self.evals)


def _rhythm(options: Evaluation, total: int, every: Callable[[Duration], int]) -> int | None:
  """Returns the steps from one evaluation to the next; None for one that runs before the first step alone."""
  if options.first == "only":
    return None
  return max(1, total) if options.log is None else every(options.log)
