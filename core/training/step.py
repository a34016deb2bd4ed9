"""One optimizer step as a pure function of state and batch."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from core import sharding
from core.errors import UserError
from core.optim.per_example import PerExample
from core.optim.sam import Sam
from core.state import Batch, Params, TrainState, Variables, step_rng
from core.tasks import in_parts
from core.tasks.task import Task

Metrics = dict[str, Any]
LossAndGrads = tuple[tuple[Float[Array, ""], Metrics], Params]

# Where a loss's metrics hold the collections that it updated, until the step takes them out.
_COLLECTIONS = "collections"


def make_update(
  task: Task,
  tx: optax.GradientTransformation,
  *,
  seed: int,
  accumulate: int = 1,
  sam: Sam | None = None,
  clip: PerExample | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Returns `update(state, batch) -> (state, metrics)`: gradient of the task's loss, optimizer, new parameters.

  The metrics hold the loss and the global L2 norms of gradients, updates and new parameters.

  Variables that are no parameters are updated by the pass at the parameters themselves; what the second pass of SAM
  would make of them is dropped. The parts of an accumulated batch all start from the step's own, and so do the devices
  of a perturbation per device: the new ones are the mean over the parts.

  Args:
    task: gives the loss.
    tx: the optimizer.
    seed: the run's seed; the step's key is a function of it and of `state.step`.
    accumulate: number of parts into which a batch is split to save memory; the gradient is the mean of theirs, or, of a
      task with a `loss_in_parts`, that of the whole batch.
    sam: what to descend by in place of the gradient, `core.optim.sam.from_recipe`; None for the gradient.
    clip: clips each example's gradient, `core.optim.per_example.from_recipe`; None clips none.

  Raises:
    UserError: when the step is traced, `accumulate` does not divide the batch.
  """
  loss = task.loss
  if accumulate > 1 and task.loss_in_parts is not None:
    loss, accumulate = functools.partial(task.loss_in_parts, parts=accumulate), 1
  grads_of = functools.partial(loss_and_grads, accumulate=accumulate, clip=clip)

  def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    rng, opt_state = step_rng(seed, state.step), state.opt_state
    loss_at = functools.partial(_loss_at, loss, state.collections)
    if sam is None:
      (value, metrics), grads = grads_of(loss_at, state.params, batch, rng)
    else:
      (value, metrics), grads, opt_state = sam.gradients(
        grads_of, loss_at, state.params, opt_state, batch=batch, rng=rng, step=state.step
      )
    metrics, collections = _divided(metrics, state.collections)
    updates, opt_state = tx.update(grads, opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    norms = {"l2_grads": grads, "l2_updates": updates, "l2_params": params}
    metrics = {"training_loss": value, **{k: optax.tree.norm(v) for k, v in norms.items()}, **metrics}
    return TrainState(state.step + 1, params, opt_state, collections), metrics

  return update


def jitted_update(
  task: Task, tx: optax.GradientTransformation, shapes: TrainState, mesh: jax.sharding.Mesh, **settings: Any
) -> jax.stages.Wrapped:
  """Returns `make_update` as it is compiled: the new state takes the place of the old one, where that lay.

  Args:
    task, tx, settings: see `make_update`.
    shapes: of the state, with its shardings.
    mesh: on all devices of which the metrics are.
  """
  where = (jax.tree.map(lambda x: x.sharding, shapes), sharding.replicated(mesh))
  return jax.jit(make_update(task, tx, **settings), donate_argnums=0, out_shardings=where)


def loss_and_grads(
  loss: Callable[..., Any],
  params: Params,
  batch: Batch,
  rng: Key[Array, ""],
  accumulate: int = 1,
  clip: PerExample | None = None,
) -> LossAndGrads:
  """Returns `((loss, metrics), gradients)` of the batch's mean loss, computed in `accumulate` parts one by one.

  With `clip` the gradients are the mean of those of its examples, each clipped.
  """
  value_and_grad = jax.value_and_grad(loss, has_aux=True)
  if clip is not None:
    value_and_grad = functools.partial(clip.mean, value_and_grad)
  if accumulate == 1:
    return value_and_grad(params, batch, rng)

  def add_part(total: Any, part: tuple[Batch, Array]) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, value_and_grad(params, *part)), None

  parts = (in_parts.split(batch, accumulate), jax.random.split(rng, accumulate))
  first = jax.tree.map(lambda x: x[0], parts)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(value_and_grad, params, *first))
  total, _ = jax.lax.scan(add_part, zeros, parts)
  return jax.tree.map(lambda x: x / accumulate, total)


def _loss_at(
  loss: Callable[..., Any], collections: Mapping[str, Any], params: Params, batch: Batch, rng: Key[Array, ""]
) -> tuple[Float[Array, ""], Metrics]:
  """Returns a task's loss and metrics as a function of the parameters, with the updated collections among these."""
  variables: Variables = {"params": params, **collections}
  value, metrics, *updated = loss(variables, batch, rng)
  return value, {**metrics, **({_COLLECTIONS: updated[0]} if updated and updated[0] else {})}


def _divided(metrics: Metrics, before: Mapping[str, Any]) -> tuple[Metrics, Mapping[str, Any]]:
  """Returns the metrics without the collections, and the collections after the step."""
  collections = _merged(before, metrics.get(_COLLECTIONS, {}), "")
  return {key: value for key, value in metrics.items() if key != _COLLECTIONS}, collections


def _merged(before: Any, updated: Any, name: str) -> Any:
  """Returns the collections with those parts replaced that the task updated."""
  if not isinstance(before, Mapping):
    # A mean over parts makes floats of counts, which are the same in all of them.
    return updated.astype(before.dtype)
  if surplus := sorted(updated.keys() - before.keys()):
    raise UserError(f"the task updates the collection {name + surplus[0]!r}, which its init does not make")
  return {key: _merged(old, updated[key], f"{name}{key}/") if key in updated else old for key, old in before.items()}
