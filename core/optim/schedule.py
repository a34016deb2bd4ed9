"""Learning-rate schedules: warm-up, decay and cooldown, each given in steps, examples, epochs or percent."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from core.errors import UserError
from core.recipe import schedule as recipe
from core.recipe.duration import Duration
from core.recipe.parse import parse

Schedule = Callable[[int | Int[Array, ""]], Float[Array, ""]]


def create(
  *,
  total_steps: int,
  batch_size: int | None = None,
  data_size: int | None = None,
  base: float = 1.0,
  decay_type: str = "stair",
  **kw: Any,
) -> Schedule:
  """Returns the schedule `step -> base * decay(step) * warmup(step) * cooldown(step)`, traceable by JAX.

  Steps count the updates already made: the first update is scaled by `schedule(0)`, the last by
  `schedule(total_steps - 1)`. With W = warm-up and C = cooldown steps, T = `total_steps` and the progress
  q = (step - W) / (T - W), clipped to [0, 1]:

      warmup(step)    min(1, step / W)                       (1 where W = 0)
      cooldown(step)  min(1, (T - step) / C), at least 0     (1 where C = 0)

      constant            1
      cosine              (1 + cos(pi q)) / 2
      linear, polynomial  (end + (base - end) (1 - q)^power) / base
      rsqrt               1 / sqrt(1 + (max(step - W, 0) + shift) / timescale)
      stair               1, then mults[i] from the i-th boundary on (in place of the factor before, not on top of it)

  Sources: cosine, Loshchilov & Hutter 2017 (arXiv:1608.03983); rsqrt with a linear cooldown to 0, Zhai et al. 2021,
  "Scaling Vision Transformers", section 3.5 (arXiv:2106.04560); scaling by batch size, Goyal et al. 2017
  (arXiv:1706.02677).

  Args:
    total_steps: steps of the whole run.
    batch_size: examples a step, for durations in examples or epochs.
    data_size: examples an epoch, for durations in epochs.
    base: the value that warm-up ends at.
    decay_type: a key of `core.recipe.schedule.DECAYS`.
    **kw: the options, the fields of that decay's dataclass. Durations have a unit in their name, `warmup_U`, where U is
      steps, examples, epochs or percent (of the whole run, a fraction).

  Raises:
    UserError: an unknown key or decay, a wrong value, or a warm-up and cooldown that do not fit into training.
  """
  options = parse(recipe.Schedule, {"decay_type": decay_type, **kw}, "config.schedule")
  return from_recipe(options, total_steps=total_steps, batch_size=batch_size, data_size=data_size, base=base)


def from_recipe(
  options: recipe.Decay,
  *,
  total_steps: int,
  batch_size: int | None = None,
  data_size: int | None = None,
  base: float = 1.0,
  where: str = "config.schedule",
) -> Schedule:
  """Returns the schedule that a config describes, see `create`.

  Args:
    options: of the schedule.
    total_steps: steps of the whole run.
    batch_size: examples a step, for durations in examples or epochs.
    data_size: examples an epoch, for durations in epochs.
    base: the value that warm-up ends at, times `options.mult`.
    where: the schedule's path in the config, for messages.

  Raises:
    UserError: a duration cannot be known here, or warm-up and cooldown do not fit into training.
  """
  size = dict(total_steps=total_steps, batch_size=batch_size, data_size=data_size)
  to_steps = functools.partial(Duration.steps, **size)
  warmup, cooldown = to_steps(options.warmup), to_steps(options.cooldown)
  _refuse_overlap(options, warmup, cooldown, total_steps, where)
  base = base * options.mult
  if options.scale_with_batchsize:
    if batch_size is None:
      raise UserError(f"{where}.scale_with_batchsize needs a batch size, and none is known here")
    base = base * batch_size / 256
  decay = _DECAYS[type(options)](options, base, _Course(to_steps, total_steps, warmup, where))

  def schedule(step: int | Int[Array, ""]) -> Float[Array, ""]:
    step = jnp.asarray(step, jnp.float32)
    value = decay(step)
    if warmup:
      value = value * jnp.minimum(1.0, step / warmup)
    if cooldown:
      value = value * jnp.clip((total_steps - step) / cooldown, 0.0, 1.0)
    return jnp.asarray(value, jnp.float32)

  return schedule


@dataclasses.dataclass(frozen=True)
class _Course:
  """What a decay needs to know of the run.

  Attributes:
    to_steps: turns a duration into steps.
    total_steps: of the whole run.
    warmup: steps of it.
    where: the schedule's path in the config.
  """

  to_steps: Callable[[Duration], int]
  total_steps: int
  warmup: int
  where: str

  def progress(self, step: Float[Array, ""]) -> Float[Array, ""]:
    """Returns how far `step` is from the end of warm-up (0) to the end of training (1)."""
    return jnp.clip((step - self.warmup) / max(self.total_steps - self.warmup, 1), 0.0, 1.0)


_Factor = Callable[[Float[Array, ""]], Float[Array, ""]]


def _constant(options: recipe.Constant, base: float, course: _Course) -> _Factor:
  del options, course
  return lambda step: jnp.full_like(step, base)


def _cosine(options: recipe.Cosine, base: float, course: _Course) -> _Factor:
  del options
  return lambda step: base * 0.5 * (1.0 + jnp.cos(jnp.pi * course.progress(step)))


def _polynomial(options: recipe.Polynomial, base: float, course: _Course) -> _Factor:
  end = next((end for end in (options.end, options.linear_end) if end is not None), 0.0)
  return lambda step: end + (base - end) * (1.0 - course.progress(step)) ** options.power


def _rsqrt(options: recipe.Rsqrt, base: float, course: _Course) -> _Factor:
  # Floats, for both may be longer than the run, whose steps are int32.
  shift, timescale = float(course.to_steps(options.shift)), float(course.to_steps(options.timescale))
  return lambda step: base / jnp.sqrt(1.0 + (jnp.maximum(step - course.warmup, 0.0) + shift) / timescale)


def _stair(options: recipe.Stair, base: float, course: _Course) -> _Factor:
  given = options.boundaries(course.where)
  boundaries = [course.to_steps(boundary) for boundary in given]
  if any(later <= earlier for earlier, later in itertools.pairwise(boundaries)):
    raise UserError(f"{given[0].key} must increase from step to step, got the steps {boundaries}")
  # NumPy, not jnp: constants of the traced program, so that making a schedule touches no device.
  levels = base * np.array([1.0, *options.mults], np.float32)
  edges = np.array(boundaries, np.float32)
  return lambda step: jnp.take(levels, jnp.searchsorted(edges, step, side="right"))


_DECAYS: dict[type[recipe.Decay], Callable[..., _Factor]] = {
  recipe.Constant: _constant,
  recipe.Cosine: _cosine,
  recipe.Polynomial: _polynomial,
  recipe.Rsqrt: _rsqrt,
  recipe.Stair: _stair,
}


def _refuse_overlap(options: recipe.Decay, warmup: int, cooldown: int, total: int, where: str) -> None:
  """Refuses warm-up and cooldown that do not fit into training."""
  if total <= 1:  # A run that only evaluates, or compiles one step: the schedule is of no consequence.
    return
  for length, given in ((warmup, options.warmup), (cooldown, options.cooldown)):
    if length > total:
      raise UserError(f"{given.key}: {length:,} steps are longer than the {total:,} steps of training")
  # Each of the two is rounded to whole steps, so two halves of an odd number of steps may be one step too long.
  rounding = 0 if "steps" in (options.warmup.unit, options.cooldown.unit) else 1
  if warmup + cooldown > total + rounding:
    both = f"warmup of {warmup:,} steps and cooldown of {cooldown:,} steps together are"
    raise UserError(f"{where}: {both} longer than the {total:,} steps of training")
