"""Few-shot accuracy of a representation: a linear classifier in closed form on a few examples of each class.

The protocol of Kolesnikov et al. 2020 (BiT) and Dosovitskiy et al. 2021 (ViT, section 4.1): L2-regularized least
squares from the frozen features of the first k examples of each class, in a seeded order, to targets in {-1, 1}.
"""

import itertools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from core import sharding as sharding_lib
from core.evaluators import transfer_features
from core.recipe.evaluators import Fewshot
from core.recipe.evaluators_base import as_tuple
from core.state import Predict, Variables

# The constant feature that stands for the bias: so large that regularization hardly touches its weight.
_BIAS = 100.0


class Evaluator:
  """`DATASET_Kshot`: accuracy on the test split, the mean over seeds, and `DATASET_Kshot_std` over them.

  With several strengths of regularization, one is chosen for each number of shots (and layer): the one that ranks best
  by accuracy, on average over the datasets, as in the published protocol. It is chosen on the test splits, so the
  accuracy is a little optimistic; a single strength avoids that. The choice is reported as `Kshot_l2`.

  With a list of layers, each metric begins with its layer: `pre_logits/DATASET_Kshot`.

  Args:
    options: see there.
    predict: `(variables, batch) -> (output, intermediates)`.
    sharding: how a batch lies on the devices.
    where: the path of the options in the config, for messages.
  """

  def __init__(self, options: Fewshot, predict: Predict, *, sharding: NamedSharding, where: str):
    self._shots, self._l2_reg = as_tuple(options.shots), as_tuple(options.l2_reg)
    self._num_seeds, self._first, self._sharding = options.num_seeds, options.display_first, sharding
    self._features = transfer_features.TransferFeatures(options, predict, sharding=sharding, where=where)
    self.data = self._features.first
    self._replicated = sharding_lib.replicated(sharding.mesh)
    self._correct = jax.jit(_correct, static_argnames="num_classes", out_shardings=self._replicated)

  def check(self, variables: Variables) -> None:
    """Refuses, by the shapes of one batch of each split, what the first evaluation would.

    Raises:
      UserError: the data cannot be read or do not fit the model, a layer is not there or no vector.
    """
    self._features.check(variables)

  def run(self, variables: Variables, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """Returns the metrics; None if `interrupted()` became true on the way."""
    by_shots = self._features.evaluate(variables, self._evaluate, interrupted)
    if by_shots is None:
      return None
    return self._metrics(
      {(layer, name, k): found for (name, layer), each in by_shots.items() for k, found in each.items()}
    )

  def _evaluate(
    self, layer: str, train: transfer_features.Split, test: transfer_features.Split, interrupted: Callable[[], bool]
  ) -> dict[int, Float[np.ndarray, "seeds l2"]] | None:
    """Returns the accuracies of one layer on one dataset, by number of shots."""
    train_labels, test_labels, num_classes = transfer_features.class_numbers(train, test)
    # The test features are split over the devices; -1 marks padding and classes unknown in training: never right.
    x_test = transfer_features.split_rows(test.layers[layer], self._sharding)
    y_test = transfer_features.split_rows(test_labels.astype(np.int32), self._sharding, fill=-1)
    l2_reg = transfer_features.put(np.asarray(self._l2_reg, np.float32), self._replicated)
    counts: dict[int, list[jax.Array]] = {shots: [] for shots in self._shots}
    for seed, shots in itertools.product(range(self._num_seeds), self._shots):
      if interrupted():
        return None
      rows = first_shots(train_labels, shots, seed)
      x = transfer_features.put(train.layers[layer][rows], self._replicated)
      y = transfer_features.put(train_labels[rows].astype(np.int32), self._replicated)
      counts[shots].append(self._correct(x, y, x_test, y_test, l2_reg, num_classes=num_classes))
    return {k: np.asarray(found, np.float64) / len(test_labels) for k, found in jax.device_get(counts).items()}

  def _metrics(self, accuracies: Mapping[tuple[str, str, int], Float[np.ndarray, "seeds l2"]]) -> dict[str, float]:
    found, chosen = {}, {}
    for layer, shots in itertools.product(self._features.layers, self._shots):
      each = [accuracies[layer, name, shots].mean(axis=0) for name in self._features.names]
      best = chosen[layer, shots] = best_on_average(np.stack(each))
      if len(self._l2_reg) > 1:
        found[self._features.metric(layer, f"{shots}shot_l2")] = self._l2_reg[best]
    results = {}
    for layer, name, shots in sorted(accuracies, key=lambda key: key[1:] not in self._first):
      by_seed = accuracies[layer, name, shots][:, chosen[layer, shots]]
      metric = self._features.metric(layer, f"{name}_{shots}shot")
      results[metric] = float(by_seed.mean())
      if len(by_seed) > 1:
        results[f"{metric}_std"] = float(by_seed.std(ddof=1))
    return results | found


def first_shots(labels: Int[np.ndarray, "examples"], shots: int, seed: int) -> Int[np.ndarray, "chosen"]:
  """Returns the rows of the first `shots` examples of each class in an order that the seed draws.

  Of one seed, the rows of more shots contain those of fewer.
  """
  rng = np.random.default_rng(seed)
  return np.concatenate([rng.permutation(np.flatnonzero(labels == each))[:shots] for each in np.unique(labels)])


def best_on_average(accuracies: Float[np.ndarray, "datasets l2"]) -> int:
  """Returns the index of the strength with the highest mean rank over datasets.

  Equal ones share a rank, and the first of several with the same mean is taken.
  """
  ranks = scipy.stats.rankdata(accuracies, axis=1)
  return int(ranks.mean(axis=0).argmax())


def ridge_scores(
  x: Float[Array, "examples channels"],
  labels: Int[Array, "examples"],
  x_test: Float[Array, "tests channels"],
  l2_reg: Float[Array, ""],
  *,
  num_classes: int,
) -> Float[Array, "tests classes"]:
  """Returns the scores x_test w of the w that minimizes |x w - y|^2 + l2_reg |w|^2.

  y is 1 for the label's class and -1 for others.

  Features are standardized by the mean and deviation of `x`, and a constant feature of 100 is appended for the bias.
  Since the other features then have mean zero, it is independent of them: its weight is solved for apart, and theirs
  from the smaller of x'x and xx' and the rest of y, which keeps the problem well conditioned in float32.

  Args:
    x: features of the train examples.
    labels: their classes, from 0.
    x_test: features to be classified.
    l2_reg: strength of regularization, above 0.
    num_classes: how many there are.
  """
  # Accelerators multiply float32 in fewer bits unless told otherwise.
  with jax.default_matmul_precision("highest"):
    x, x_test = _standardize(x, x_test)
    y = 2.0 * jax.nn.one_hot(labels, num_classes) - 1.0
    examples, channels = x.shape
    bias = _BIAS**2 * y.sum(axis=0) / (_BIAS**2 * examples + l2_reg)
    y = y - y.mean(axis=0)
    wide = channels > examples
    gram = x @ x.T if wide else x.T @ x
    factor = jax.scipy.linalg.cho_factor(gram + l2_reg * jnp.eye(len(gram)))
    weights = x.T @ jax.scipy.linalg.cho_solve(factor, y) if wide else jax.scipy.linalg.cho_solve(factor, x.T @ y)
    return x_test @ weights + bias


def _standardize(
  x: Float[Array, "examples channels"], x_test: Float[Array, "tests channels"]
) -> tuple[Float[Array, "examples channels"], Float[Array, "tests channels"]]:
  # Twice, for what rounding leaves of a mean that is large beside the deviation.
  for _ in range(2):
    mean = x.mean(axis=0)
    x, x_test = x - mean, x_test - mean
  deviation = x.std(axis=0) + 1e-5
  return x / deviation, x_test / deviation


def _correct(
  x: Float[Array, "examples channels"],
  labels: Int[Array, "examples"],
  x_test: Float[Array, "tests channels"],
  test_labels: Int[Array, "tests"],
  l2_reg: Float[Array, "l2"],
  *,
  num_classes: int,
) -> Int[Array, "l2"]:
  """Returns how many of the test examples are classified right, for each strength."""

  def correct(l2: Float[Array, ""]) -> Int[Array, ""]:
    return jnp.sum(ridge_scores(x, labels, x_test, l2, num_classes=num_classes).argmax(axis=-1) == test_labels)

  return jax.lax.map(correct, l2_reg)
