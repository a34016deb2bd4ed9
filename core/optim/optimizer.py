"""The optimizer a config describes, as one optax transformation."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from core import trees
from core.errors import UserError, nearest
from core.optim import adafactor, ema, sam, schedule
from core.optim.masks import make_mask, schedule_rules

FROZEN = -1  # In a tree of schedule numbers: the parameter has no schedule and stays as it is.
DECAYED_BY_DEFAULT = ((".*/kernel$", 1.0),)


def make(
  config: Mapping[str, Any], params: trees.PyTree, *, sched_kw: Mapping[str, Any]
) -> tuple[optax.GradientTransformation, list[schedule.Schedule]]:
  """The transformation and the schedules (one a rule that trains) of `config`.

  With g' the gradients clipped (by `agc`, then `grad_clip_norm`), and T the transformation `optax_name`, a parameter p
  is updated by

      p <- p - schedule(step) * (lr * lr_mult * T(g') + wd * wd_mult * p)

  Weight decay is decoupled from both the gradient and `lr` (Loshchilov & Hutter 2019, arXiv:1711.05101): AdamW with
  rate lr and decay w is `wd = lr * w` here. `step` is an int32 count in the optimizer's own state, so a restored state
  goes on exactly where it was. A frozen parameter is left alone to the last bit, has no part in the global norm, and no
  state. Inside the state, moments stand in trees like `params`, under the same names.

  Args:
    config: read for these keys:
      optax_name: an optax transformation (`scale_by_adam`, `trace`, `identity`, ...), or `scale_by_adafactor` or
        `momentum_hp` of core.optim.adafactor (the prefix `big_vision.` may stand before them).
      optax: its arguments, types as strings (`mu_dtype="bfloat16"`).
      lr: the learning rate.
      lr_mults: [(regex, factor > 0)]; 1 for parameters that match none.
      wd: weight decay a step, 0 if absent.
      wd_mults: [(regex, factor)]; 0 for parameters that match none. Kernels alone are decayed if absent.
      grad_clip_norm: the largest global norm; absent, None or 0 for no clipping.
      agc: arguments of `adaptive_clip`, dict(clipping=0.01) say; absent or None for no such clipping.
      ema: an average of the parameters is kept in the state, see core.optim.ema; absent or None for none.
      sam: LookSAM's direction is kept in the state, see core.optim.sam; the step itself is core.training.step's.
      schedule: arguments of `schedule.create`, and `mult`, a factor on the whole; or [(regex, arguments, or None for
        frozen)], which must cover every parameter. Constant if absent.
    params: the parameters, or their shapes. Only names are used, and the shardings if `ema` asks for one of its own.
    sched_kw: total_steps, batch_size and data_size for `schedule.create`.

  Raises:
    UserError: an unknown name, wrong arguments, or patterns that do not fit the parameters.
  """
  rules = schedule_rules(config)
  numbers = iter(range(len(rules)))
  which = make_mask(
    params,
    [(regex, FROZEN if arguments is None else next(numbers)) for regex, arguments in rules],
    where="config.schedule",
  )
  trainable = jax.tree.map(lambda number: number != FROZEN, which)
  if not any(jax.tree.leaves(trainable)):
    raise UserError("config.schedule: every parameter is frozen; give at least one of them a schedule")
  schedules = [_schedule(arguments, sched_kw) for _, arguments in rules if arguments is not None]
  parts = [
    optax.masked(optax.chain(*_clip(config, params), _transformation(config)), trainable),
    _scale_and_decay(_learning_rates(config, params), _weight_decays(config, params), which, schedules),
  ]
  if look_sam := sam.look_sam_state(config, trainable):
    parts.append(look_sam)
  if average := ema.from_config(config, params, trainable, sched_kw=sched_kw):
    parts.append(average)
  return optax.chain(*parts), schedules


def _scale_and_decay(
  lr: trees.PyTree, wd: trees.PyTree, which: trees.PyTree, schedules: Sequence[schedule.Schedule]
) -> optax.GradientTransformation:
  """u -> -schedule(step) * (lr * u + wd * p); `lr`, `wd` and the schedule's number are given for each parameter."""

  def init(params):
    del params
    return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

  def update(updates, state, params):
    factors = [fn(state.count) for fn in schedules]

    def leaf(u, p, lr, wd, which):
      if which == FROZEN:
        return -jnp.zeros_like(u)  # p + -0.0 is p to the last bit, p = -0.0 included.
      return -factors[which] * (lr * u + wd * p if wd else lr * u)

    updates = jax.tree.map(leaf, updates, params, lr, wd, which)
    return updates, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

  return optax.GradientTransformation(init, update)


def _schedule(arguments: Mapping[str, Any], sched_kw: Mapping[str, Any]) -> schedule.Schedule:
  if not hasattr(arguments, "keys"):
    raise UserError(f"config.schedule: expected the arguments of a schedule or None for frozen, got {arguments!r}")
  arguments = dict(arguments)
  mult = arguments.pop("mult", 1.0)
  for key in arguments.keys() & {"base", *sched_kw}:
    raise UserError(f"config.schedule: {key} is not set here; scale a schedule by mult, set sizes at the top")
  return schedule.create(base=_number("schedule.mult", mult), **sched_kw, **arguments)


def adaptive_clip(
  params: trees.PyTree, *, clipping: float = 0.01, eps: float = 1e-3, exclude: Sequence[str] | None = None
) -> optax.GradientTransformation:
  """Adaptive gradient clipping, the other half of NFNets (Brock et al. 2021, eq. 3).

  With |.| the Euclidean norm, the gradient G of each unit's weights W becomes G min(1, clipping max(|W|, eps) / |G|). A
  unit is an output of a dense layer or a convolution, or a whole vector or scalar; `optax.adaptive_grad_clip` says
  how it takes other shapes.

  Args:
    params: the parameters, or their shapes.
    clipping: the largest norm of a gradient relative to that of the weights. The larger the batch, the smaller: 0.01
      served for 4,096.
    eps: what the norm of a unit's weights counts for at least, so that those which start at zero can move.
    exclude: regexes over names of parameters that are not clipped; by default the head's, as published.

  Raises:
    UserError: a wrong value, a regex that matches no parameter, or a parameter of too many dimensions.
  """
  for key, value in (("clipping", clipping), ("eps", eps)):
    if not _number(f"agc.{key}", value) > 0:
      raise UserError(f"config.agc.{key} must be greater than 0, got {value!r}")
  if isinstance(exclude, str):
    raise UserError(f"config.agc.exclude must be a list of regexes over names of parameters, got {exclude!r}")
  if exclude is None:
    clipped = trees.map_with_names(lambda name, _: not name.startswith("head/"), params)
  else:
    clipped = make_mask(params, [(regex, False) for regex in exclude], where="config.agc.exclude", default=True)
  for (name, leaf), clips in zip(trees.flatten_with_names(params), jax.tree.leaves(clipped)):
    if clips and leaf.ndim > 5:
      raise UserError(f"config.agc: {name} has {leaf.ndim} dimensions, whose units are not known; exclude it")
  return optax.masked(optax.adaptive_grad_clip(clipping, eps), clipped)


def _clip(config: Mapping[str, Any], params: trees.PyTree) -> list[optax.GradientTransformation]:
  norm = _number("grad_clip_norm", config.get("grad_clip_norm") or 0.0)
  parts = [optax.clip_by_global_norm(norm) if norm else optax.identity()]
  if config.get("agc") is not None:
    known = _parameters(adaptive_clip).keys() - {"params"}
    for key in config["agc"]:
      if key not in known:
        raise UserError(f"config.agc: unknown key {key!r}{nearest(key, known)}")
    parts.insert(0, adaptive_clip(params, **config["agc"]))
  return parts


def _learning_rates(config: Mapping[str, Any], params: trees.PyTree) -> trees.PyTree:
  if config.get("lr") is None:
    raise UserError("config.lr: missing; give the learning rate")
  lr = _number("lr", config["lr"])
  mults = make_mask(params, config.get("lr_mults") or (), where="config.lr_mults", default=1.0)
  if any(_number("lr_mults", mult) == 0 for mult in jax.tree.leaves(mults)):
    raise UserError(
      "config.lr_mults: a factor of 0 would still decay the weights; freeze with schedule=[(regex, None)]"
    )
  return jax.tree.map(lambda mult: lr * mult, mults)


def _weight_decays(config: Mapping[str, Any], params: trees.PyTree) -> trees.PyTree:
  wd = _number("wd", config.get("wd") or 0.0)
  rules = config.get("wd_mults")
  rules = DECAYED_BY_DEFAULT if rules is None else rules
  mults = make_mask(params, rules if wd else (), where="config.wd_mults", default=0.0)
  return jax.tree.map(lambda mult: wd * _number("wd_mults", mult), mults)


def _number(key: str, value: Any) -> float:
  if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
    raise UserError(f"config.{key} must be a number that is not negative, got {value!r}")
  return float(value)


def _transformation(config: Mapping[str, Any]) -> optax.GradientTransformation:
  """The transformation `config.optax_name` with the arguments `config.optax`."""
  name, arguments = config.get("optax_name"), dict(config.get("optax") or {})
  if not isinstance(name, str):
    raise UserError(f"config.optax_name must name an optax transformation, 'scale_by_adam' say, got {name!r}")
  known = _known_transformations()
  published = name.removeprefix("big_vision.")
  make_transformation = known.get(published)
  if make_transformation is None:
    if "learning_rate" in _parameters(getattr(optax, name, None)):
      instead = "'scale_by_adam', 'trace' (momentum) or 'identity' (plain SGD)"
      raise UserError(
        f"config.optax_name: {name!r} brings a learning rate of its own; name what it wraps, like {instead}"
      )
    raise UserError(f"config.optax_name: unknown {name!r}{nearest(published, known)}")
  parameters = _parameters(make_transformation)
  for key in arguments.keys() - parameters.keys():
    raise UserError(f"config.optax: {name} has no argument {key!r}{nearest(key, parameters)}")
  try:
    tx = make_transformation(**arguments)
    # Wrong values (a string for a number) show in the first update only, so one is traced here, on a tiny parameter.
    jax.eval_shape(lambda p: tx.update(p, tx.init(p), p), {"kernel": jax.ShapeDtypeStruct((2, 2), jnp.float32)})
  except (AssertionError, AttributeError, TypeError, ValueError) as error:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise UserError(f"config.optax: {name} does not work with {arguments}: {reason}") from None
  return tx


def _known_transformations() -> dict[str, Callable[..., optax.GradientTransformation]]:
  """What `optax_name` may be: optax's transformations that need nothing but gradients and parameters, and our own.

  Optax's whole optimizers and line searches are marked in their signatures: by a learning rate, or by returning a
  transformation with extra arguments.
  """
  transformations = {}
  for name, fn in vars(optax).items():
    if not inspect.isfunction(fn) or "learning_rate" in _parameters(fn):
      continue
    returned = inspect.signature(fn).return_annotation
    # scale_by_factored_rms says nothing of what it returns.
    unsaid = returned is inspect.Signature.empty and name.startswith("scale_by_")
    if returned is optax.GradientTransformation or unsaid:
      transformations[name] = fn
  ours = {"scale_by_adafactor": adafactor.scale_by_adafactor, "momentum_hp": adafactor.momentum_hp}
  return transformations | ours


def _parameters(fn: Any) -> Mapping[str, inspect.Parameter]:
  return inspect.signature(fn).parameters if inspect.isfunction(fn) else {}
