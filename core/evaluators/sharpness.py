"""How sharp the minimum is that training found: the surrogate gap, and the largest eigenvalue of the Hessian."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from core import sharding as sharding_lib
from core.data import feed
from core.errors import UserError
from core.evaluators import batches
from core.optim import sam
from core.state import Batch, Params, Predict, TrainState
from core.tasks import losses


class Evaluator:
  """Of f, the mean loss over a dataset as a function of all parameters w, without dropout or mixup:

    loss            f(w)
    surrogate_gap   f(w + rho g / |g|) - f(w) with g = f'(w) of the whole dataset (Zhuang et al. 2022, section 3)
    top_eigenvalue  the largest eigenvalue of f''(w), by power iteration
    residual        |f''(w) v - top_eigenvalue v| for the unit vector v found: an eigenvalue is that near, or nearer
    iterations      products of the Hessian and a vector that it took

  The iteration starts from a seeded random vector and ends where the residual is at most `tolerance` times the
  eigenvalue, or after `max_iterations`. It finds the eigenvalue of the largest absolute value; if that is negative, it
  begins again with the Hessian shifted by it, so that the largest comes out on top. Two eigenvalues of nearly the same
  absolute value keep it from its tolerance: the residual tells.

  Each product is a pass over the dataset that costs more than a gradient, and the dataset is held on the devices
  meanwhile: take a part of a split, `train[:512]` say. Computed in float32 at least, whatever the parameters are.

  Args:
    predict: `(params, batch) -> (logits, ...)`.
    sharding: how a batch lies on the devices.
    data: the dataset, `{"name": ..., "split": ...}`.
    pp_fn: preprocessing that leaves `image` and the labels.
    batch_size: examples a step over all devices; the last batch is padded.
    rho: the radius of the surrogate gap.
    loss_name: a function of `core.tasks.losses`.
    label_key: where the one-hot or multi-hot labels are.
    tolerance: of the residual, relative to the eigenvalue.
    max_iterations: products at most, for each of the two attempts.
    seed: of the first vector.
    cache: see `core.evaluators.batches.open_batches`.
  """

  def __init__(
    self,
    predict: Predict,
    *,
    sharding: NamedSharding,
    data: Mapping[str, Any],
    pp_fn: str,
    batch_size: int,
    rho: float = 0.05,
    loss_name: str = "softmax_xent",
    label_key: str = "labels",
    tolerance: float = 0.01,
    max_iterations: int = 100,
    seed: int = 0,
    cache: bool | str | None = None,
  ):
    for key, value in (("rho", rho), ("tolerance", tolerance), ("max_iterations", max_iterations)):
      if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"evals.{key} must be a number greater than 0, got {value!r}")
    self.data = batches.open_batches(data, pp_fn, batch_size=batch_size, sharding=sharding, cache=cache)
    self._sharding, self._seed = sharding, seed
    self._tolerance, self._max_iterations = tolerance, math.ceil(max_iterations)
    self._loss = functools.partial(_share_of_loss, predict, losses.get(loss_name), label_key, self.data.num_examples)
    everywhere = sharding_lib.replicated(sharding.mesh)
    self._two_losses = jax.jit(functools.partial(_two_losses, self._loss, rho), out_shardings=everywhere)
    self._first_vector = jax.jit(_random_direction)
    self._multiply = jax.jit(functools.partial(_multiply, self._loss), out_shardings=(None, everywhere, everywhere))

  def check(self, state: TrainState) -> None:
    """Refuses, by the shapes of one batch, what the first evaluation would; `state` may be shapes, too.

    Raises:
      UserError: the data cannot be read, or do not fit the model or the loss.
    """
    with feed.to_devices(self.data, self._sharding) as fed:
      jax.eval_shape(self._loss, state.params, next(fed))

  def run(self, state: TrainState, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """The metrics of `state.params`; None if `interrupted()` became true on the way."""
    params = jax.tree.map(lambda p: p.astype(jnp.promote_types(p.dtype, jnp.float32)), state.params)
    data = self._all_batches()
    loss, uphill = jax.device_get(self._two_losses(params, data))
    found = self._largest(params, data, 0.0, interrupted)
    if found and found["top_eigenvalue"] < 0:
      again = self._largest(params, data, -found["top_eigenvalue"], interrupted)
      found = again and again | {"iterations": found["iterations"] + again["iterations"]}
    return found and {"loss": float(loss), "surrogate_gap": float(uphill - loss), **found}

  def _all_batches(self) -> Batch:
    """The dataset on the devices, [batches, batch size, ...]."""
    with feed.to_devices(self.data, self._sharding) as fed:
      all_of_them = list(fed)
    where = NamedSharding(self._sharding.mesh, PartitionSpec(None, *self._sharding.spec))
    return jax.jit(lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees), out_shardings=where)(all_of_them)

  def _largest(
    self, params: Params, data: Batch, shift: float, interrupted: Callable[[], bool]
  ) -> dict[str, float] | None:
    """The eigenvalue whose sum with `shift` has the largest absolute value; None if interrupted."""
    vector, iterations = self._first_vector(params, self._seed), 0
    while iterations < self._max_iterations:
      iterations += 1
      vector, *values = self._multiply(vector, params, data, shift)
      eigenvalue, residual = map(float, jax.device_get(values))
      if interrupted():
        return None
      if not residual > self._tolerance * abs(eigenvalue):  # Nor is there hope where it is NaN.
        break
    return {"top_eigenvalue": eigenvalue, "residual": residual, "iterations": iterations}


def _share_of_loss(
  predict: Predict, loss_fn: Callable, label_key: str, num_examples: int, params: Params, batch: Batch
) -> Float[Array, ""]:
  """What a batch adds to the mean loss over all examples."""
  batches.require(batch, "image", label_key)
  logits, *_ = predict(params, batch)
  labels = batch[label_key]
  if labels.shape != logits.shape:
    raise UserError(
      f"evals: pp_fn leaves labels of shape {labels.shape[1:]} an example, the model has {logits.shape[1:]} logits"
    )
  values = loss_fn(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), labels)
  return jnp.sum(jnp.where(batch["_mask"] > 0, values, 0.0)) / num_examples


def _total(fn: Callable[[Batch], Any], data: Batch) -> Any:
  """The sum of `fn(batch)`, one batch after the other."""
  first = jax.tree.map(lambda x: x[0], data)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(fn, first))
  return jax.lax.scan(lambda total, batch: (optax.tree.add(total, fn(batch)), None), zeros, data)[0]


def _two_losses(loss: Callable, rho: float, params: Params, data: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """f(w) and f(w + rho g / |g|)."""
  value, gradient = _total(functools.partial(jax.value_and_grad(loss), params), data)
  uphill = sam.perturbed(params, gradient, rho)
  return value, _total(functools.partial(loss, uphill), data)


def _multiply(
  loss: Callable, vector: Params, params: Params, data: Batch, shift: float
) -> tuple[Params, Float[Array, ""], Float[Array, ""]]:
  """A step of power iteration with the Hessian H + shift: the next unit vector, v'Hv, and |Hv - (v'Hv) v|."""

  def product(batch):
    return jax.jvp(lambda params: jax.grad(loss)(params, batch), (params,), (vector,))[1]

  shifted = optax.tree.add_scale(_total(product, data), shift, vector)
  value, norm = optax.tree.vdot(vector, shifted), optax.tree.norm(shifted)
  residual = optax.tree.norm(optax.tree.add_scale(shifted, -value, vector))
  # Of a Hessian that is zero, any vector is an eigenvector.
  return optax.tree.scale(1 / jnp.where(norm > 0, norm, 1.0), shifted), value - shift, residual


def _random_direction(params: Params, seed: int) -> Params:
  """A unit vector like the parameters, uniformly distributed over all directions."""
  vector = optax.tree.random_like(jax.random.key(seed), params, jax.random.normal)
  return optax.tree.scale(1 / optax.tree.norm(vector), vector)
