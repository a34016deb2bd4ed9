"""The optimizer a config describes, as one optax transformation."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Shaped

from core import trees
from core.errors import UserError
from core.optim import ema, sam, schedule, stacked, transformations
from core.optim.masks import make_mask, schedule_rules
from core.recipe.optimizer import Agc, Optimizer
from core.recipe.schedule import Decay

FROZEN = -1  # In a tree of schedule numbers: the parameter has no schedule and stays as it is.
DECAYED_BY_DEFAULT = ((".*/kernel$", 1.0),)


def make(
  recipe: Optimizer, params: trees.PyTree, *, sched_kw: Mapping[str, Any], seed: int = 0, frozen: Sequence[str] = ()
) -> tuple[optax.GradientTransformation, list[schedule.Schedule]]:
  """Returns the transformation and the schedules (one a rule that trains) that `recipe` describes.

  With g' the gradients clipped (by `agc`, then `grad_clip_norm`), and T the transformation `optax_name`, a parameter p
  is updated by

      p <- p - schedule(step) * (lr * lr_mult * T(g') + wd * wd_mult * p)

  Weight decay is decoupled from both the gradient and `lr` (Loshchilov & Hutter 2019, arXiv:1711.05101): AdamW with
  rate lr and decay w is `wd = lr * w` here. `step` is an int32 count in the optimizer's own state, so a restored state
  goes on exactly where it was. A frozen parameter is left alone to the last bit, has no part in the global norm, and no
  state. Inside the state, moments stand in trees like `params`, under the same names.

  Args:
    recipe: of the run; read but for `grad_accum_steps`.
    params: the parameters, or their shapes. Names are used, the shapes of stacked layers and of what `agc` clips, and
      the shardings if `ema` asks for one of its own.
    sched_kw: total_steps, batch_size and data_size of the schedules.
    seed: of the average's random rounding.
    frozen: regexes of parameters that never train, whatever the schedule says.

  Raises:
    UserError: an unknown transformation, arguments that do not work, or regexes that do not fit the parameters.
  """
  which, lr, wd = rates(recipe, params, frozen)
  trainable = jax.tree.map(lambda number: number != FROZEN, which)
  if not any(jax.tree.leaves(trainable)):
    raise UserError("config.schedule: every parameter is frozen; give at least one of them a schedule")
  schedules = [
    schedule.from_recipe(rule[1], where=_where(recipe, rule), **sched_kw)
    for rule in schedule_rules(recipe, frozen)
    if rule[1] is not None
  ]
  parts = [
    optax.masked(optax.chain(*_clip(recipe, params), transformations.from_recipe(recipe, params)), trainable),
    _scale_and_decay(lr, wd, which, schedules),
  ]
  if look_sam := sam.look_sam_state(recipe.sam, trainable):
    parts.append(look_sam)
  if average := ema.from_recipe(recipe.ema, params, trainable, sched_kw=sched_kw, seed=seed):
    parts.append(average)
  return optax.chain(*parts), schedules


def rates(
  recipe: Optimizer, params: trees.PyTree, frozen: Sequence[str] = ()
) -> tuple[trees.PyTree, trees.PyTree, trees.PyTree]:
  """Returns what moves each parameter: `(which, lr, wd)`, three trees like `params`.

  `which` holds the number of the parameter's schedule among those that `make` returns, or `FROZEN`; `lr` and `wd` the
  learning rate and the weight decay that this schedule multiplies.

  Args:
    recipe: of the run.
    params: the parameters, or their shapes; only names are used.
    frozen: regexes of parameters that never train, whatever the schedule says.

  Raises:
    UserError: regexes that do not fit the parameters.
  """
  numbers = itertools.count()
  which = make_mask(
    params,
    [(regex, FROZEN if options is None else next(numbers)) for regex, options in schedule_rules(recipe, frozen)],
    where="config.schedule",
  )
  return which, _learning_rates(recipe, params), _weight_decays(recipe, params)


def _where(recipe: Optimizer, rule: tuple[str, Decay]) -> str:
  """Returns the path in the config of a rule's schedule."""
  several = isinstance(recipe.schedule, tuple)
  return f"config.schedule[{recipe.schedule.index(rule)}][1]" if several else "config.schedule"


def _scale_and_decay(
  lr: trees.PyTree, wd: trees.PyTree, which: trees.PyTree, schedules: Sequence[schedule.Schedule]
) -> optax.GradientTransformation:
  """Returns u -> -schedule(step) * (lr * u + wd * p), of each parameter's own `lr`, `wd` and schedule number."""

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


def adaptive_clip(params: trees.PyTree, options: Agc) -> optax.GradientTransformation:
  """Returns adaptive gradient clipping, the other half of NFNets (Brock et al. 2021, eq. 3).

  With |.| the Euclidean norm, the gradient G of each unit's weights W becomes G min(1, clipping max(|W|, eps) / |G|). A
  unit is an output of a dense layer, of an attention or of a convolution; all else is one unit, be it a bias or the
  embeddings of all positions. Of an embedding's table it is a column, as `optax.adaptive_grad_clip` takes it.

  Args:
    params: the parameters, or their shapes.
    options: clipping, of which 0.01 served for batches of 4,096; eps, by which units that start at zero can move; and
      what to exclude, by default the head, as published.

  Raises:
    UserError: a regex that matches no parameter, or a parameter of too many dimensions.
  """
  if options.exclude is None:
    clipped = trees.map_with_names(lambda name, _: not name.startswith("head/"), params)
  else:
    rules = [(regex, False) for regex in options.exclude]
    clipped = make_mask(params, rules, where="config.agc.exclude", default=True)
  for (name, leaf), clips in zip(trees.flatten_with_names(params), jax.tree.leaves(clipped)):
    if clips and leaf.ndim > 5:
      line = f"config.agc.exclude must name {name}, whose {leaf.ndim} dimensions have no known units"
      raise UserError(line)
  clip = optax.adaptive_grad_clip(options.clipping, options.eps)

  def update(updates, state, params):
    matrices = [trees.map_with_names(_inputs_by_outputs, tree) for tree in (updates, params)]
    clipped, state = clip.update(matrices[0], state, matrices[1])
    return jax.tree.map(lambda x, update: x.reshape(update.shape), clipped, updates), state

  return optax.masked(stacked.layer_by_layer(optax.GradientTransformation(clip.init, update), params), clipped)


def _inputs_by_outputs(name: str, x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
  """Returns a parameter in the shape by which optax finds its units: those of a matrix are its columns."""
  layer, _, kind = name.rpartition("/")
  if kind == "kernel":  # Of an attention: (dim, heads, head dim) for queries, keys and values, the reverse for `out`.
    return x.reshape(-1, x.shape[-1]) if x.ndim == 3 and layer.endswith("out") else x
  return x if kind == "embedding" else x.ravel()


def _clip(recipe: Optimizer, params: trees.PyTree) -> list[optax.GradientTransformation]:
  # Where each example's gradient is clipped, the step does so before there is a mean (`core.optim.per_example`).
  norm = None if recipe.grad_clip_per_example else recipe.grad_clip_norm
  parts = [optax.clip_by_global_norm(norm) if norm else optax.identity()]
  if recipe.agc is not None:
    parts.insert(0, adaptive_clip(params, recipe.agc))
  return parts


def _learning_rates(recipe: Optimizer, params: trees.PyTree) -> trees.PyTree:
  mults = make_mask(params, recipe.lr_mults or (), where="config.lr_mults", default=1.0)
  return jax.tree.map(lambda mult: recipe.lr * mult, mults)


def _weight_decays(recipe: Optimizer, params: trees.PyTree) -> trees.PyTree:
  wd, rules = recipe.wd or 0.0, recipe.wd_mults
  if rules is None:
    rules = DECAYED_BY_DEFAULT if wd else ()
  mults = make_mask(params, rules, where="config.wd_mults", default=0.0)
  return jax.tree.map(lambda mult: wd * mult, mults)
