"""Sharpness-aware minimization: descend by the gradient at the worst parameters nearby. One option of every trainer:

    config.sam = dict(rho=0.05)                                # SAM
    config.sam = dict(rho=1.0, adaptive=True)                  # ASAM
    config.sam = dict(rho_max=0.6, rho_min=0.1, alpha=0.6)     # GSAM
    config.sam = dict(rho=0.1, every=5)                        # LookSAM, whose steps between cost what plain ones do
    config.sam = dict(rho=0.05, perturbation="per_device")     # m-SAM, with m examples a device

With w the parameters that train, f the batch's loss, g = f'(w), and T = 1, or |w| + 0.01 where `adaptive`:

    w_p = w + rho T^2 g / |T g|                   the perturbed parameters (Foret et al. 2021, eq. 2; Kwon et al. 2021)
    w_p = w + rho |w| g / |g|                     with adaptive_perturbation=True, as in GSAM's published code
    g_p = f'(w_p)                                 the second pass, and SAM's gradient
    d   = g_p - alpha (g perpendicular to g_p)    GSAM's: the surrogate gap f(w_p) - f(w) falls, and to first order
                                                  f(w_p) falls as it does in SAM (Zhuang et al. 2022, algorithm 1)
    d   = g + alpha (g_p perpendicular to g)      with decompose_against="clean", where f(w) falls as in plain training;
                                                  alpha=0 is plain training then, not SAM
    rho = rho_min + (rho_max - rho_min) (lr - lr_min) / (lr_max - lr_min)

Between its steps LookSAM descends by g + reuse |g| / |v| v, where v is the part of the last d that is perpendicular to
the g of its step (Liu et al. 2022, section 3).

Keys: rho, or rho_max and rho_min (rho_max if absent); alpha (0); adaptive (False) or adaptive_perturbation (False);
decompose_against ("perturbed"); every (1); reuse (0.7); perturbation ("global", or "per_device": each device runs all
of the above on its own part of the batch, and what they find is averaged). GSAM's published config says
minimize_fp=True for decompose_against="perturbed"; its lr_max and lr_min are read off the schedule here (the first,
where there are several): the peak, and the lowest rate after it. rho is kept within its bounds, so that warm-up begins
at rho_min.
Both passes see the same mixup, dropout and parts of an accumulated batch, because they have the same key. What depends
on no parameter, mixup and dropout's masks among it, stands twice in the program and the compiler is free to compute it
once, unless the gradient is accumulated. No activation can be shared: the passes differ from the first layer on.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key

from core import sharding, trees
from core.errors import UserError
from core.optim import masks
from core.optim.schedule import Schedule
from core.recipe.optimizer import Optimizer
from core.recipe.sam import Sam

GradsAt = Callable[[trees.PyTree], tuple[tuple[Float[Array, ""], Any], trees.PyTree]]

_ETA = 0.01  # ASAM's: a parameter at zero is perturbed, too.


class LookSamState(NamedTuple):
  """LookSAM's part of an optimizer's state: a tree like the parameters that train, under their names."""

  direction: trees.PyTree


def perturbed(
  params: trees.PyTree,
  grads: trees.PyTree,
  rho: float | Float[Array, ""],
  *,
  adaptive: bool = False,
  adaptive_perturbation: bool = False,
) -> trees.PyTree:
  """Returns `w + rho T^2 g / |T g|`, or `w + rho |w| g / |g|`; `w` where the gradient is zero."""
  if adaptive_perturbation:
    norm = _norm(grads)
    factor = jnp.where(norm > 0, rho / norm, 0.0)
    return jax.tree.map(lambda p, g: (_wide(p) + factor * jnp.abs(_wide(p)) * _wide(g)).astype(p.dtype), params, grads)
  scale = jax.tree.map(lambda p: jnp.abs(_wide(p)) + _ETA if adaptive else 1.0, params)
  norm = _norm(jax.tree.map(lambda t, g: t * _wide(g), scale, grads))
  factor = jnp.where(norm > 0, rho / norm, 0.0)
  return jax.tree.map(lambda p, g, t: (_wide(p) + factor * t * t * _wide(g)).astype(p.dtype), params, grads, scale)


def second_pass(
  grads_at: GradsAt,
  params: trees.PyTree,
  clean: trees.PyTree,
  *,
  rho: float | Float[Array, ""],
  alpha: float = 0.0,
  adaptive: bool = False,
  adaptive_perturbation: bool = False,
  decompose_against: str = "perturbed",
) -> tuple[Float[Array, ""], trees.PyTree]:
  """Returns `(f(w_p), d)`: the loss at the perturbed parameters, and what to descend by in place of the gradient.

  Args:
    grads_at: `params -> ((loss, metrics), gradients)` of the batch.
    params: w.
    clean: g, the gradients at w.
    rho: the radius.
    alpha: GSAM's; with 0 and "perturbed" it is SAM.
    adaptive: ASAM's.
    adaptive_perturbation: that of GSAM's code.
    decompose_against: "perturbed" or "clean".
  """
  at = perturbed(params, clean, rho, adaptive=adaptive, adaptive_perturbation=adaptive_perturbation)
  (loss, _), sharp = grads_at(at)
  if decompose_against == "clean":
    return loss, _sum(clean, alpha, _perpendicular(sharp, to=clean))
  return loss, _sum(sharp, -alpha, _perpendicular(clean, to=sharp)) if alpha else sharp


@dataclasses.dataclass(frozen=True)
class SamStep:
  """Finds what a step descends by.

  Attributes:
    rho: the radius at a step.
    trainable: a tree of booleans like the parameters; the others are not perturbed and no part of any norm.
    second_pass: `second_pass` with its options.
    every: how many steps to one with a second pass.
    reuse: the weight of the kept direction in the steps between.
    parts: how a batch lies on the devices, where each is to perturb by its own part; else None.
  """

  rho: Schedule
  trainable: trees.PyTree
  second_pass: Callable[..., tuple[Float[Array, ""], trees.PyTree]] = second_pass
  every: int = 1
  reuse: float = 0.0
  parts: NamedSharding | None = None

  def gradients(
    self,
    grads_of: Callable[..., tuple[tuple[Float[Array, ""], Mapping[str, Any]], trees.PyTree]],
    loss: Callable[..., Any],
    params: trees.PyTree,
    opt_state: trees.PyTree,
    *,
    batch: trees.PyTree,
    rng: Key[Array, ""],
    step: Int[Array, ""],
  ) -> tuple[tuple[Float[Array, ""], Mapping[str, Any]], trees.PyTree, trees.PyTree]:
    """Returns `((loss, metrics), what to descend by, opt_state)` of one step.

    The loss is that of the parameters themselves; `metrics` gains `rho` and, where each step has a second pass,
    `surrogate_gap`. Frozen parameters have zeros to descend by.

    Args:
      grads_of: `(loss, params, batch, rng) -> ((loss, metrics), gradients)`.
      loss: the task's.
      params: all parameters.
      opt_state: the optimizer's state, where `look_sam_state` has its place.
      batch: of the step.
      rng: the step's key, the same for both passes.
      step: updates made before this one.
    """
    kept = _look_sam_state_in(opt_state).direction if self.every > 1 else None
    free = jax.tree.map(lambda p, trains: p if trains else optax.MaskedNode(), params, self.trainable)

    def find(params, free, kept, batch, rng, step):
      def loss_at(free, *data):
        return loss(_filled(free, params), *data)

      return self._find(lambda free: grads_of(loss_at, free, batch, rng), free, kept, step)

    if self.parts is not None:
      find = _on_each_device(find, self.parts)
    aux, direction, kept = find(params, free, kept, batch, rng, step)
    if self.every > 1:
      opt_state = jax.tree.map(
        lambda x: LookSamState(kept) if _is_look_sam_state(x) else x, opt_state, is_leaf=_is_look_sam_state
      )
    return aux, _filled(direction, jax.tree.map(jnp.zeros_like, params)), opt_state

  def _find(self, grads_at: GradsAt, params: trees.PyTree, kept: trees.PyTree, step: Int[Array, ""]):
    (loss, metrics), clean = grads_at(params)
    rho = self.rho(step)
    again = functools.partial(self.second_pass, grads_at, params, clean, rho=rho)
    if self.every == 1:
      perturbed_loss, direction = again()
      return (loss, {**metrics, "rho": rho, "surrogate_gap": perturbed_loss - loss}), direction, kept

    def look():
      _, direction = again()
      return direction, _perpendicular(direction, to=clean)

    def go_on():
      norm = _norm(kept)
      return _sum(clean, jnp.where(norm > 0, self.reuse * _norm(clean) / norm, 0.0), kept), kept

    direction, kept = jax.lax.cond(step % self.every == 0, look, go_on)
    return (loss, {**metrics, "rho": rho}), direction, kept


def from_recipe(
  recipe: Optimizer,
  params: trees.PyTree,
  schedules: Sequence[Schedule],
  *,
  total_steps: int,
  batch_sharding: NamedSharding,
  frozen: Sequence[str] = (),
) -> SamStep | None:
  """Returns what `recipe.sam` asks for; None without it, and where rho is 0, which is plain training.

  Args:
    recipe: `sam` and `schedule` are read.
    params: the parameters or their shapes; "per_device" looks at their shardings.
    schedules: the optimizer's, the first of which moves rho.
    total_steps: of the run.
    batch_sharding: how a batch lies on the devices.
    frozen: regexes of parameters that never train.

  Raises:
    UserError: "per_device" with parameters that are split over devices.
  """
  options = recipe.sam
  if options is None or options.most == 0:
    return None
  per_device = options.perturbation == "per_device"
  if per_device:
    for name, leaf in trees.flatten_with_names(params):
      if not leaf.sharding.is_fully_replicated:
        line = (
          "config.sam.perturbation: 'per_device' needs all parameters whole on each device, and the mesh splits "
          f"{name}; use 'global', or config.mesh = [('data', -1)] without a sharding_strategy"
        )
        raise UserError(line)
  return SamStep(
    rho=rho_schedule(schedules[0], total_steps, rho_max=options.most, rho_min=options.least),
    trainable=masks.trainable_by(recipe, params, frozen),
    second_pass=functools.partial(
      second_pass,
      alpha=options.alpha,
      adaptive=options.adaptive,
      adaptive_perturbation=options.adaptive_perturbation,
      decompose_against=options.decompose_against,
    ),
    every=options.every,
    reuse=options.reuse,
    # One device's own gradient is the whole batch's.
    parts=batch_sharding if per_device and sharding.batch_parts(batch_sharding) > 1 else None,
  )


def rho_schedule(schedule: Schedule, total_steps: int, *, rho_max: float, rho_min: float) -> Schedule:
  """Returns rho as a function of the step: rho_max at the schedule's peak, rho_min at the lowest point after it.

  Between them it moves with the rate. A constant schedule stays at rho_max.
  """
  rates = np.asarray(schedule(np.arange(total_steps)))
  highest, lowest = float(rates.max()), float(rates[rates.argmax() :].min())
  if rho_max == rho_min or highest == lowest:
    return lambda step: jnp.asarray(rho_max, jnp.float32)

  def rho(step: int | Int[Array, ""]) -> Float[Array, ""]:
    part = (schedule(step) - lowest) / (highest - lowest)
    return rho_min + (rho_max - rho_min) * jnp.clip(part, 0.0, 1.0)

  return rho


def look_sam_state(options: Sam | None, trainable: trees.PyTree) -> optax.GradientTransformation | None:
  """Returns a part of the optimizer's chain that holds LookSAM's direction and leaves updates as they are.

  Args:
    options: of the recipe; where `every` is 1 nothing is kept, and None is returned.
    trainable: a tree of booleans like the parameters.
  """
  if options is None or options.most == 0 or options.every == 1:
    return None

  def init(params):
    return LookSamState(jax.tree.map(jnp.zeros_like, params))

  def update(updates, state, params=None):
    del params
    return updates, state

  return optax.masked(optax.GradientTransformation(init, update), trainable)


def _on_each_device(find: Callable, where: NamedSharding) -> Callable:
  """Returns what runs `find` on each device's part of the batch, and the mean of what they find.

  Each device has dropout and mixup of its own.
  """
  axes = sharding.batch_axes(where)

  def on_one(params, free, kept, batch, rng, step):
    rng = jax.random.fold_in(rng, jax.lax.axis_index(axes))
    return jax.lax.pmean(find(params, free, kept, batch, rng, step), axes)

  whole, part = PartitionSpec(), PartitionSpec(axes)
  # Unchecked, because a checked gradient of parameters that all devices have is summed over them.
  return jax.shard_map(
    on_one, mesh=where.mesh, in_specs=(whole, whole, whole, part, whole, whole), out_specs=whole, check_vma=False
  )


def _filled(free: trees.PyTree, rest: trees.PyTree) -> trees.PyTree:
  """Returns the whole tree: `free`, and where it has none, `rest`."""
  return jax.tree.map(lambda x, r: r if _is_absent(x) else x, free, rest, is_leaf=_is_absent)


def _is_absent(x: Any) -> bool:
  return isinstance(x, optax.MaskedNode)


def _is_look_sam_state(x: Any) -> bool:
  return isinstance(x, LookSamState)


def _look_sam_state_in(opt_state: trees.PyTree) -> LookSamState:
  """Returns LookSAM's state, wherever in an optimizer's state it stands."""
  return next(x for x in jax.tree.leaves(opt_state, is_leaf=_is_look_sam_state) if _is_look_sam_state(x))


# Vectors of all parameters. Sums are in float32 at least: bfloat16's 8 bits would lose what is small.


def _wide(x: Float[Array, "..."]) -> Float[Array, "..."]:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _dot(a: trees.PyTree, b: trees.PyTree) -> Float[Array, ""]:
  return sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(_wide(x) * _wide(y)), a, b)))


def _norm(a: trees.PyTree) -> Float[Array, ""]:
  return jnp.sqrt(_dot(a, a))


def _sum(a: trees.PyTree, factor: float | Float[Array, ""], b: trees.PyTree) -> trees.PyTree:
  """Returns `a + factor b`, in the dtypes of `a`."""
  return jax.tree.map(lambda x, y: (_wide(x) + factor * _wide(y)).astype(x.dtype), a, b)


def _perpendicular(a: trees.PyTree, *, to: trees.PyTree) -> trees.PyTree:
  """Returns the part of `a` that is perpendicular to `to`; `a` where that is zero."""
  square = _dot(to, to)
  return _sum(a, -jnp.where(square > 0, _dot(a, to) / square, 0.0), to)
