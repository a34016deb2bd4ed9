"""Accuracy of nearest neighbours: what a representation knows without any training on it.

Weighted as in Wu et al. 2018 ("Unsupervised feature learning via non-parametric instance discrimination", section 3.4)
and Caron et al. 2021 (DINO): the k most similar train examples vote for their class with exp(cosine / temperature).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from core import sharding as sharding_lib
from core.errors import UserError
from core.evaluators import transfer_features
from core.recipe.evaluators import Knn
from core.recipe.evaluators_base import as_tuple
from core.state import Predict, Variables

# Similarities that a device holds at once: 256 MiB of float32.
_MAX_SIMILARITIES = 1 << 26
_MAX_QUERIES = 1024


class Evaluator:
  """`DATASET_Knn`: accuracy on the test split with the train split as neighbours, for each K of `k`.

  With a list of layers, each metric begins with its layer: `pre_logits/DATASET_20nn`. Of equally similar neighbours
  those that come first in the train split are taken. Of classes with equal votes the lowest number is taken.

  Args:
    options: see there.
    predict: `(variables, batch) -> (output, intermediates)`.
    sharding: how a batch lies on the devices; the train features are split over them alike.
    where: the path of the options in the config, for messages.

  Raises:
    UserError: the data cannot be read, or have fewer examples than neighbours are asked for.
  """

  def __init__(self, options: Knn, predict: Predict, *, sharding: NamedSharding, where: str):
    self._k, self._temperature, self._uniform = as_tuple(options.k), options.temperature, options.weights == "uniform"
    self._features = transfer_features.TransferFeatures(options, predict, sharding=sharding, where=where)
    self.data = self._features.first
    for name in self._features.names:
      if max(self._k) > self._features.size(name):
        size = self._features.size(name)
        raise UserError(f"{where}.k is {max(self._k)}; datasets.{name} has {size} train examples")
    self._sharding, self._replicated = sharding, sharding_lib.replicated(sharding.mesh)
    self._normalize = jax.jit(_normalize)
    self._vote = jax.jit(self._neighbours_vote, out_shardings=self._replicated)

  def check(self, variables: Variables) -> None:
    """Refuses, by the shapes of one batch of each split, what the first evaluation would.

    Raises:
      UserError: the data cannot be read or do not fit the model, a layer is not there or no vector.
    """
    self._features.check(variables)

  def run(self, variables: Variables, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """Returns the metrics; None if `interrupted()` became true on the way."""
    correct = self._features.evaluate(variables, self._evaluate, interrupted)
    if correct is None:
      return None
    return {
      self._features.metric(layer, f"{name}_{k}nn"): float(accuracy)
      for (name, layer), found in correct.items()
      for k, accuracy in zip(self._k, found)
    }

  def _evaluate(
    self, layer: str, train: transfer_features.Split, test: transfer_features.Split, interrupted: Callable[[], bool]
  ) -> Float[np.ndarray, "ks"] | None:
    """Returns the accuracies of one layer on one dataset, for each k."""
    train_labels, test_labels, _ = transfer_features.class_numbers(train, test)
    bank = self._normalize(transfer_features.split_rows(train.layers[layer], self._sharding))
    bank_labels = transfer_features.split_rows(train_labels.astype(np.int32), self._sharding, fill=-1)
    queries, guesses = test.layers[layer], []
    size = min(len(queries), self._queries_at_once(bank))
    for low in range(0, len(queries), size):
      if interrupted():
        return None
      some = queries[low : low + size]
      # The last few repeat an example, so that nothing is compiled for their number.
      some = np.concatenate([some, np.repeat(some[-1:], size - len(some), axis=0)])
      guesses.append(self._vote(transfer_features.put(some, self._replicated), bank, bank_labels))
      jax.block_until_ready(guesses[-2:-1])
    guesses = np.concatenate(jax.device_get(guesses), axis=1)[:, : len(test_labels)]
    return np.mean(guesses == test_labels, axis=1)

  def _queries_at_once(self, bank: jax.Array) -> int:
    """Returns how many queries keep their similarities to a device's part of the bank, and their votes, in bounds."""
    part = bank.sharding.shard_shape(bank.shape)[0]
    each = max(part, max(self._k) ** 2)
    return max(1, min(_MAX_QUERIES, _MAX_SIMILARITIES // each))

  def _neighbours_vote(
    self, queries: Float[Array, "queries channels"], bank: Float[Array, "bank channels"], labels: Int[Array, "bank"]
  ) -> Int[Array, "ks queries"]:
    """Returns the class that the neighbours of each query choose, for each k."""
    similarity, labels = nearest(_normalize(queries), bank, labels, k=max(self._k), sharding=self._sharding)
    # Relative to the nearest one: no vote overflows, however low the temperature.
    weight = jnp.exp((similarity - similarity[:, :1]) / self._temperature)
    weight = jnp.ones_like(weight) if self._uniform else weight
    return jnp.stack([vote(weight[:, :k], labels[:, :k]) for k in self._k])


def nearest(
  queries: Float[Array, "queries channels"],
  bank: Float[Array, "bank channels"],
  labels: Int[Array, "bank"],
  *,
  k: int,
  sharding: NamedSharding,
) -> tuple[Float[Array, "queries k"], Int[Array, "queries k"]]:
  """Returns similarity and label of the `k` rows of `bank` with the largest inner product, in falling order.

  Each device finds the k best of its own rows; the best of these are the best of all. Of equal ones the first in the
  bank comes first.

  Args:
    queries: on every device.
    bank: rows split over the devices, as `sharding` splits a batch.
    labels: of the bank, split alike; -1 for a row that is no neighbour.
    k: at most the number of neighbours.
    sharding: how a batch lies on the devices.
  """
  axes = sharding_lib.batch_axes(sharding)
  rows = PartitionSpec(axes)

  def best_here(
    queries: Float[Array, "queries channels"], bank: Float[Array, "part channels"], labels: Int[Array, "part"]
  ) -> tuple[Float[Array, "queries found"], Int[Array, "queries found"]]:
    similarity = jnp.matmul(queries, bank.T, precision=jax.lax.Precision.HIGHEST)
    similarity = jnp.where(labels < 0, -jnp.inf, similarity)
    similarity, index = jax.lax.top_k(similarity, min(k, len(bank)))
    return jax.lax.all_gather((similarity, labels[index]), axes, axis=1, tiled=True)

  similarity, labels = jax.shard_map(
    best_here,
    mesh=sharding.mesh,
    in_specs=(PartitionSpec(), rows, rows),
    out_specs=PartitionSpec(),
    check_vma=False,  # That gathering leaves the same on every device is not inferred.
  )(queries, bank, labels)
  # The devices' parts stand in the order of the bank, and so top_k keeps its promise for ties.
  similarity, index = jax.lax.top_k(similarity, k)
  return similarity, jnp.take_along_axis(labels, index, axis=1)


def vote(weights: Float[Array, "queries k"], labels: Int[Array, "queries k"]) -> Int[Array, "queries"]:
  """Returns the class with the largest sum of weights; of several the lowest."""
  same = labels[:, :, None] == labels[:, None, :]
  # One total for each neighbour, of its class: no larger for many classes, and summed in the same order every time.
  votes = jnp.sum(jnp.where(same, weights[:, None, :], 0.0), axis=-1)
  wins = votes == votes.max(axis=1, keepdims=True)
  return jnp.min(jnp.where(wins, labels, jnp.iinfo(labels.dtype).max), axis=1)


def _normalize(x: Float[Array, "rows channels"]) -> Float[Array, "rows channels"]:
  """Returns the rows at length 1; zero stays zero."""
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
