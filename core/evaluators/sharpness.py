"""How sharp the minimum is that training found: the surrogate gap, and the largest eigenvalue of the Hessian."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from core import sharding as sharding_lib
from core.data import feed
from core.evaluators import batches
from core.optim import sam
from core.recipe.evaluators import Sharpness
from core.recipe.types import Refused
from core.state import Batch, Params, Predict, Variables
from core.tasks import losses


class Evaluator:
  """Of f, the mean loss over a dataset as a function of all parameters w, without dropout or mixup:

    loss            f(w)
    surrogate_gap   f(w + rho g / |g|) - f(w) with g = f'(w) of the whole dataset (Zhuang et al. 2022, section 3)
    top_eigenvalue  the largest eigenvalue of f''(w), by power iteration
    residual        |f''(w) v - top_eigenvalue v| for the unit vector v found: an eigenvalue is that near, or nearer
    iterations      products of the Hessian and a vector that it took

  The iteration starts from a seeded random vector and ends where the residual is at most `tolerance` times the
  eigenvalue, or after `max_iterations`. It finds the eigenvalue of the largest absolute value. If that is negative, it
  begins again with the Hessian shifted by it, so that the largest comes out on top. Where two eigenvalues have nearly
  the same absolute value, it does not reach its tolerance, and the residual tells.

  Each product is a pass over the dataset that costs more than a gradient, and the dataset is held on the devices
  meanwhile: take a part of a split, `train[:512]` say. Computed in float32 at least, whatever the parameters are.
  Variables that are no parameters stay as they are.

  Args:
    options: see there.
    predict: `(variables, batch) -> (logits, ...)`.
    sharding: how a batch lies on the devices.
    where: the path of the options in the config, for messages.
  """

  def __init__(self, options: Sharpness, predict: Predict, *, sharding: NamedSharding, where: str):
    self.data = batches.open_dataset(options, sharding, where)
    self._options, self._sharding, self._where = options, sharding, where
    loss_fn = losses.LOSSES[options.loss_name]
    self._loss = functools.partial(_share_of_loss, predict, loss_fn, options.label_key, self.data.num_examples)
    everywhere = sharding_lib.replicated(sharding.mesh)
    self._two_losses = jax.jit(functools.partial(_two_losses, self._loss, options.rho), out_shardings=everywhere)
    self._first_vector = jax.jit(_random_direction)
    self._multiply = jax.jit(functools.partial(_multiply, self._loss), out_shardings=(None, everywhere, everywhere))

  def check(self, variables: Variables) -> None:
    """Refuses, by the shapes of one batch, what the first evaluation would; `variables` may be shapes, too.

    Raises:
      UserError: the data cannot be read, or do not fit the model or the loss.
    """
    with feed.to_devices(self.data, self._sharding) as fed, batches.refused_at(self._where):
      jax.eval_shape(self._loss, *_split(variables), next(fed))

  def run(self, variables: Variables, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """Returns the metrics; None if `interrupted()` became true on the way."""
    params, rest = _split(variables)
    params = jax.tree.map(lambda p: p.astype(jnp.promote_types(p.dtype, jnp.float32)), params)
    data = self._all_batches()
    with batches.refused_at(self._where):
      loss, uphill = jax.device_get(self._two_losses(params, rest, data))
    found = self._largest(params, rest, data, 0.0, interrupted)
    if found and found["top_eigenvalue"] < 0:
      again = self._largest(params, rest, data, -found["top_eigenvalue"], interrupted)
      found = again and again | {"iterations": found["iterations"] + again["iterations"]}
    return found and {"loss": float(loss), "surrogate_gap": float(uphill - loss), **found}

  def _all_batches(self) -> Batch:
    """Returns the dataset on the devices, [batches, batch size, ...]."""
    with feed.to_devices(self.data, self._sharding) as fed:
      all_of_them = list(fed)
    where = NamedSharding(self._sharding.mesh, PartitionSpec(None, *self._sharding.spec))
    return jax.jit(lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees), out_shardings=where)(all_of_them)

  def _largest(
    self, params: Params, rest: Variables, data: Batch, shift: float, interrupted: Callable[[], bool]
  ) -> dict[str, float] | None:
    """Returns the eigenvalue whose sum with `shift` has the largest absolute value; None if interrupted."""
    vector, iterations = self._first_vector(params, self._options.seed), 0
    while iterations < self._options.max_iterations:
      iterations += 1
      vector, *values = self._multiply(vector, params, rest, data, shift)
      eigenvalue, residual = map(float, jax.device_get(values))
      if interrupted():
        return None
      if not residual > self._options.tolerance * abs(eigenvalue):  # Or is NaN, which no further step mends.
        break
    return {"top_eigenvalue": eigenvalue, "residual": residual, "iterations": iterations}


def _split(variables: Variables) -> tuple[Params, Variables]:
  """Returns the parameters, and all other variables."""
  return variables["params"], {name: tree for name, tree in variables.items() if name != "params"}


def _share_of_loss(
  predict: Predict,
  loss_fn: Callable,
  label_key: str,
  num_examples: int,
  params: Params,
  rest: Variables,
  batch: Batch,
) -> Float[Array, ""]:
  """Returns what a batch adds to the mean loss over all examples."""
  batches.require(batch, "image", label_key)
  logits, *_ = predict({"params": params, **rest}, batch)
  labels = batch[label_key]
  if labels.shape != logits.shape:
    line = f"leaves labels of shape {labels.shape[1:]} an example, the model has {logits.shape[1:]} logits"
    raise Refused(line, key="pp_fn")
  values = loss_fn(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), labels)
  return jnp.sum(jnp.where(batch["_mask"] > 0, values, 0.0)) / num_examples


def _total(fn: Callable[[Batch], Any], data: Batch) -> Any:
  """Returns the sum of `fn(batch)`, one batch after the other."""
  first = jax.tree.map(lambda x: x[0], data)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(fn, first))

  def add(total: Any, batch: Batch) -> tuple[Any, None]:
    return optax.tree.add(total, fn(batch)), None

  return jax.lax.scan(add, zeros, data)[0]


def _two_losses(
  loss: Callable, rho: float, params: Params, rest: Variables, data: Batch
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Returns f(w) and f(w + rho g / |g|)."""
  value, gradient = _total(functools.partial(jax.value_and_grad(loss), params, rest), data)
  uphill = sam.perturbed(params, gradient, rho)
  return value, _total(functools.partial(loss, uphill, rest), data)


def _multiply(
  loss: Callable, vector: Params, params: Params, rest: Variables, data: Batch, shift: float
) -> tuple[Params, Float[Array, ""], Float[Array, ""]]:
  """Returns a step of power iteration with the Hessian H + shift: the next unit vector, v'Hv, and |Hv - (v'Hv) v|."""

  def product(batch: Batch) -> Params:
    return jax.jvp(lambda params: jax.grad(loss)(params, rest, batch), (params,), (vector,))[1]

  shifted = optax.tree.add_scale(_total(product, data), shift, vector)
  value, norm = optax.tree.vdot(vector, shifted), optax.tree.norm(shifted)
  residual = optax.tree.norm(optax.tree.add_scale(shifted, -value, vector))
  # Of a Hessian that is zero, any vector is an eigenvector.
  return optax.tree.scale(1 / jnp.where(norm > 0, norm, 1.0), shifted), value - shift, residual


def _random_direction(params: Params, seed: int) -> Params:
  """Returns a unit vector like the parameters, uniformly distributed over all directions."""
  vector = optax.tree.random_like(jax.random.key(seed), params, jax.random.normal)
  return optax.tree.scale(1 / optax.tree.norm(vector), vector)
