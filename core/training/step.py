"""One optimizer step as a pure function of state and batch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from core import sharding
from core.errors import UserError
from core.optim.sam import Sam
from core.state import Batch, TrainState, step_rng
from core.tasks.task import Task

Metrics = dict[str, jax.Array]


def make_update(
  task: Task, tx: optax.GradientTransformation, *, seed: int, accumulate: int = 1, sam: Sam | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """`update(state, batch) -> (state, metrics)`: gradient of the task's loss, optimizer, new parameters.

  The metrics hold the loss and the global L2 norms of gradients, updates and new parameters.

  Args:
    task: gives the loss.
    tx: the optimizer.
    seed: the run's seed; the step's key is a function of it and of `state.step`.
    accumulate: number of parts into which a batch is split to save memory; the gradient is their mean.
    sam: what to descend by in place of the gradient, `core.optim.sam.from_config`; None for the gradient.

  Raises:
    UserError: `accumulate` is less than 1 or, when the step is traced, does not divide the batch.
  """
  if accumulate < 1:
    raise UserError(f"config.grad_accum_steps must be at least 1, got {accumulate}")
  grads_of = functools.partial(loss_and_grads, accumulate=accumulate)

  def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    rng, opt_state = step_rng(seed, state.step), state.opt_state
    if sam is None:
      (loss, metrics), grads = grads_of(task.loss, state.params, batch, rng)
    else:
      (loss, metrics), grads, opt_state = sam.gradients(
        grads_of, task.loss, state.params, opt_state, batch=batch, rng=rng, step=state.step
      )
    updates, opt_state = tx.update(grads, opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    norms = {"l2_grads": grads, "l2_updates": updates, "l2_params": params}
    metrics = {"training_loss": loss, **{k: optax.tree.norm(v) for k, v in norms.items()}, **metrics}
    return TrainState(state.step + 1, params, opt_state), metrics

  return update


def jitted_update(
  task: Task, tx: optax.GradientTransformation, shapes: TrainState, mesh: jax.sharding.Mesh, **settings: Any
) -> jax.stages.Wrapped:
  """`make_update` as it is compiled: the new state takes the place of the old one, on the devices where that lay.

  Args:
    task, tx, settings: see `make_update`.
    shapes: of the state, with its shardings.
    mesh: on all devices of which the metrics are.
  """
  where = (jax.tree.map(lambda x: x.sharding, shapes), sharding.replicated(mesh))
  return jax.jit(make_update(task, tx, **settings), donate_argnums=0, out_shardings=where)


def loss_and_grads(
  loss: Callable[..., Any], params: Any, batch: Batch, rng: jax.Array, accumulate: int = 1
) -> tuple[tuple[jax.Array, Metrics], Any]:
  """`((loss, metrics), gradients)` of the batch's mean loss, computed in `accumulate` parts one after the other."""
  value_and_grad = jax.value_and_grad(loss, has_aux=True)
  if accumulate == 1:
    return value_and_grad(params, batch, rng)

  def split(x: jax.Array) -> jax.Array:
    if x.shape[0] % accumulate:
      raise UserError(f"config.grad_accum_steps: a batch of {x.shape[0]} cannot be split into {accumulate} equal parts")
    # Part i takes examples i, i + n, i + 2n, ...: the batch stays split over the same devices within each part.
    return jnp.swapaxes(x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]), 0, 1)

  def add_part(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, value_and_grad(params, *part)), None

  parts = (jax.tree.map(split, batch), jax.random.split(rng, accumulate))
  first = jax.tree.map(lambda x: x[0], parts)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(value_and_grad, params, *first))
  total, _ = jax.lax.scan(add_part, zeros, parts)
  return jax.tree.map(lambda x: x / accumulate, total)
