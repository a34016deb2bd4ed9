"""Accuracy of nearest neighbours: what a representation knows without any training on it.

Weighted as in Wu et al. 2018 ("Unsupervised feature learning via non-parametric instance discrimination", section 3.4)
and Caron et al. 2021 (DINO): the k most similar train examples vote for their class with exp(cosine / temperature).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from core import sharding as sharding_lib
from core.errors import UserError
from core.evaluators import transfer_features
from core.state import Predict, TrainState

WEIGHTS = ("exp", "uniform")
# Similarities that a device holds at once: 256 MiB of float32.
_MAX_SIMILARITIES = 1 << 26
_MAX_QUERIES = 1024


class Evaluator:
  """`DATASET_Knn`: accuracy on the test split with the train split as neighbours, for each K of `k`.

  With a list of layers, each metric begins with its layer: `pre_logits/DATASET_20nn`. Of equally similar neighbours
  those that come first in the train split are taken; of classes with equal votes the lowest number.

  Args:
    predict: `(params, batch) -> (output, intermediates)`.
    sharding: how a batch lies on the devices; the train features are split over them alike.
    datasets: by name, see `core.evaluators.transfer_features.TransferFeatures`.
    pp_train: preprocessing of the train splits, that leaves `image` and one integer `label`.
    pp_eval: preprocessing of the test splits.
    batch_size: examples a step over all devices.
    k: how many neighbours vote, one number or several.
    temperature: of the votes.
    weights: "exp", or "uniform" for votes that all count one.
    representation_layer: a name or several, see `core.evaluators.features.layer_features`; None is the model's output.
    pool: how a layer of tokens becomes a vector, see there.
    label_key: where the labels are.
    cache: see `core.evaluators.batches.open_batches`.
  """

  def __init__(
    self,
    predict: Predict,
    *,
    sharding: NamedSharding,
    datasets: Mapping[str, Any],
    pp_train: str,
    pp_eval: str,
    batch_size: int,
    k: int | Sequence[int] = (10, 20),
    temperature: float = 0.07,
    weights: str = "exp",
    representation_layer: str | Sequence[str] | None = "pre_logits",
    pool: str | None = None,
    label_key: str = "label",
    cache: bool | str | None = None,
  ):
    self._k = transfer_features.numbers("k", k, whole=True)
    (self._temperature,) = transfer_features.numbers("temperature", temperature)
    if weights not in WEIGHTS:
      raise UserError(f"evals.weights must be one of {', '.join(WEIGHTS)}; got {weights!r}")
    self._uniform = weights == "uniform"
    self._pairs = transfer_features.TransferFeatures(
      predict,
      sharding=sharding,
      datasets=datasets,
      pp_train=pp_train,
      pp_eval=pp_eval,
      batch_size=batch_size,
      layers=representation_layer,
      pool=pool,
      label_key=label_key,
      cache=cache,
    )
    self.data = self._pairs.first
    for name in self._pairs.names:
      if max(self._k) > self._pairs.size(name):
        raise UserError(f"evals.k is {max(self._k)}; datasets.{name} has {self._pairs.size(name)} train examples")
    self._sharding, self._replicated = sharding, sharding_lib.replicated(sharding.mesh)
    self._normalize = jax.jit(_normalize)
    self._vote = jax.jit(self._neighbours_vote, out_shardings=self._replicated)

  def check(self, state: TrainState) -> None:
    """Refuses, by the shapes of one batch of each split, what the first evaluation would.

    Raises:
      UserError: the data cannot be read or do not fit the model, a layer is not there or no vector.
    """
    self._pairs.check(state.params)

  def run(self, state: TrainState, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """The metrics of `state.params`; None if `interrupted()` became true on the way."""
    correct = self._pairs.evaluate(state.params, self._evaluate, interrupted)
    if correct is None:
      return None
    return {
      self._pairs.metric(layer, f"{name}_{k}nn"): float(accuracy)
      for (name, layer), found in correct.items()
      for k, accuracy in zip(self._k, found)
    }

  def _evaluate(
    self, layer: str, train: transfer_features.Split, test: transfer_features.Split, interrupted: Callable[[], bool]
  ) -> Float[np.ndarray, "ks"] | None:
    """Accuracies of one layer on one dataset."""
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
    """As many as keep their similarities to a device's part of the bank, and their votes, in bounds."""
    part = bank.sharding.shard_shape(bank.shape)[0]
    each = max(part, max(self._k) ** 2)
    return max(1, min(_MAX_QUERIES, _MAX_SIMILARITIES // each))

  def _neighbours_vote(
    self, queries: Float[Array, "queries channels"], bank: Float[Array, "bank channels"], labels: Int[Array, "bank"]
  ) -> Int[Array, "ks queries"]:
    """The class that the neighbours of each query choose, for each k."""
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
  """Similarity and label of the `k` rows of `bank` with the largest inner product, in falling order.

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

  def best_here(queries, bank, labels):
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
  """The class with the largest sum of weights; of several the lowest."""
  same = labels[:, :, None] == labels[:, None, :]
  # One total for each neighbour, of its class: no larger for many classes, and summed in the same order every time.
  votes = jnp.sum(jnp.where(same, weights[:, None, :], 0.0), axis=-1)
  wins = votes == votes.max(axis=1, keepdims=True)
  return jnp.min(jnp.where(wins, labels, jnp.iinfo(labels.dtype).max), axis=1)


def _normalize(x: Float[Array, "rows channels"]) -> Float[Array, "rows channels"]:
  """Vectors of length 1; zero stays zero."""
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
