"""Learning-rate schedules: warm-up, decay and cooldown, each given in steps, examples, epochs or percent."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from core import durations
from core.errors import UserError, nearest

Schedule = Callable[[int | Int[Array, ""]], Float[Array, ""]]


def create(
  *,
  total_steps: int,
  batch_size: int | None = None,
  data_size: int | None = None,
  base: float = 1.0,
  decay_type: str = "stair",
  scale_with_batchsize: bool = False,
  **kw: Any,
) -> Schedule:
  """The schedule `step -> base * decay(step) * warmup(step) * cooldown(step)`, a float32 scalar, traceable by JAX.

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
    decay_type: a key of `DECAYS`.
    scale_with_batchsize: multiplies `base` by `batch_size / 256`.
    **kw: the options. Any decay takes `warmup_U` and `cooldown_U`, where U is steps, examples, epochs or percent (of
      the whole run, a fraction). linear and polynomial take `end` (or its older name `linear_end`; default 0), the
      value at the end in the units of `base`, and `power` (default 1). rsqrt takes `timescale_U` (default 10,000 steps)
      and `shift_U` (default 0). stair takes the increasing boundaries `steps` or `stair_U`, and as many `mults`.

  Raises:
    UserError: an unknown key or decay, a wrong type, or a warm-up and cooldown that do not fit into training.
  """
  if decay_type not in DECAYS:
    raise UserError(f"config.schedule: unknown decay_type {decay_type!r}{nearest(str(decay_type), DECAYS)}")
  _refuse_unknown_keys(kw, decay_type)
  options = _Options(kw, total_steps=total_steps, batch_size=batch_size, data_size=data_size)
  warmup, cooldown = options.steps("warmup", 0), options.steps("cooldown", 0)
  _refuse_overlap(options, warmup, cooldown)
  if scale_with_batchsize:
    if batch_size is None:
      raise UserError("config.schedule: scale_with_batchsize needs a batch size, and none is known here")
    base = base * batch_size / 256
  decay = DECAYS[decay_type](options, base)

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
class _Options:
  """The options of a schedule, with what its durations need to become steps."""

  given: Mapping[str, Any]
  total_steps: int
  batch_size: int | None
  data_size: int | None

  def steps(self, name: str, default: int) -> int:
    return self._to_steps(name, self.given, default)

  def number(self, name: str, default: float) -> float:
    value = self.given.get(name)
    if value is None:
      return default
    return _number(name, value)

  def boundaries(self) -> list[int]:
    """The boundaries of a stair, in steps."""
    names = [name for name in ("steps", *_units("stair")) if self.given.get(name) is not None]
    if not names:
      return []
    if len(names) > 1:
      raise UserError(f"config.schedule: {' and '.join(names)} are both set; keep one of them")
    unit = names[0].removeprefix("stair_")
    values = _numbers(names[0], self.given[names[0]])
    return [self._to_steps("stair", {f"stair_{unit}": value}, 0) for value in values]

  def _to_steps(self, name: str, given: Mapping[str, Any], default: int) -> int:
    size = dict(batch_size=self.batch_size, data_size=self.data_size, total_steps=self.total_steps)
    return durations.steps(name, given, default=default, **size)

  def progress(self, step: Float[Array, ""]) -> Float[Array, ""]:
    """How far `step` is from the end of warm-up (0) to the end of training (1)."""
    warmup = self.steps("warmup", 0)
    return jnp.clip((step - warmup) / max(self.total_steps - warmup, 1), 0.0, 1.0)


Decay = Callable[[Float[Array, ""]], Float[Array, ""]]


def _constant(options: _Options, base: float) -> Decay:
  del options
  return lambda step: jnp.full_like(step, base)


def _cosine(options: _Options, base: float) -> Decay:
  return lambda step: base * 0.5 * (1.0 + jnp.cos(jnp.pi * options.progress(step)))


def _polynomial(options: _Options, base: float) -> Decay:
  if options.given.get("end") is not None and options.given.get("linear_end") is not None:
    raise UserError("config.schedule: end and linear_end are both set; keep one of them")
  end = options.number("end", options.number("linear_end", 0.0))
  power = options.number("power", 1.0)
  return lambda step: end + (base - end) * (1.0 - options.progress(step)) ** power


def _rsqrt(options: _Options, base: float) -> Decay:
  warmup, shift = options.steps("warmup", 0), options.steps("shift", 0)
  timescale = options.steps("timescale", 10_000)
  if timescale < 1:
    raise UserError("config.schedule: the timescale of rsqrt must be at least one step")
  return lambda step: base / jnp.sqrt(1.0 + (jnp.maximum(step - warmup, 0.0) + shift) / timescale)


def _stair(options: _Options, base: float) -> Decay:
  boundaries, mults = options.boundaries(), _numbers("mults", options.given.get("mults") or ())
  if len(boundaries) != len(mults):
    raise UserError(f"config.schedule: stair has {len(boundaries)} boundaries and {len(mults)} mults; give as many")
  if any(later <= earlier for earlier, later in itertools.pairwise(boundaries)):
    raise UserError(f"config.schedule: the boundaries of stair must increase, got steps {boundaries}")
  # NumPy, not jnp: constants of the traced program, so that making a schedule touches no device.
  levels = base * np.array([1.0, *mults], np.float32)
  edges = np.array(boundaries, np.float32)
  return lambda step: jnp.take(levels, jnp.searchsorted(edges, step, side="right"))


def _units(name: str) -> tuple[str, ...]:
  return tuple(f"{name}_{unit}" for unit in durations.UNITS)


DECAYS: dict[str, Callable[[_Options, float], Decay]] = {
  "constant": _constant,
  "cosine": _cosine,
  "linear": _polynomial,
  "polynomial": _polynomial,
  "rsqrt": _rsqrt,
  "stair": _stair,
}
_KEYS_OF_ALL = (*_units("warmup"), *_units("cooldown"))
_KEYS_OF_ONE = {
  "linear": ("end", "linear_end", "power"),
  "polynomial": ("end", "linear_end", "power"),
  "rsqrt": (*_units("timescale"), *_units("shift")),
  "stair": ("steps", *_units("stair"), "mults"),
}


def _refuse_unknown_keys(kw: Mapping[str, Any], decay_type: str) -> None:
  known = (*_KEYS_OF_ALL, *_KEYS_OF_ONE.get(decay_type, ()))
  for key in kw.keys() - set(known):
    owners = [decay for decay, keys in _KEYS_OF_ONE.items() if key in keys]
    if owners:
      raise UserError(f"config.schedule: {key} belongs to decay_type {' or '.join(owners)}, not to {decay_type!r}")
    raise UserError(
      f"config.schedule: unknown key {key!r}{nearest(key, ('decay_type', 'scale_with_batchsize', *known))}"
    )


def _refuse_overlap(options: _Options, warmup: int, cooldown: int) -> None:
  total = options.total_steps
  if total <= 1:  # A run that only evaluates, or compiles one step: the schedule is of no consequence.
    return
  for name, length in (("warmup", warmup), ("cooldown", cooldown)):
    if length > total:
      raise UserError(f"config.schedule: {name} of {length:,} steps is longer than the {total:,} steps of training")
  # Each of the two is rounded to whole steps, so two halves of an odd number of steps may be one step too long.
  rounding = 0 if {"warmup_steps", "cooldown_steps"} & options.given.keys() else 1
  if warmup + cooldown > total + rounding:
    both = f"warmup of {warmup:,} steps and cooldown of {cooldown:,} steps together are"
    raise UserError(f"config.schedule: {both} longer than the {total:,} steps of training")


def _number(name: str, value: Any) -> float:
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise UserError(f"config.schedule: {name} must be a number, got {value!r}")
  return float(value)


def _numbers(name: str, values: Any) -> list[float]:
  if not isinstance(values, list | tuple):
    raise UserError(f"config.schedule: {name} must be a list of numbers, got {values!r}")
  return [_number(name, value) for value in values]
