"""Recipes of the evaluators that compare the features of a train and a test split: few-shot and nearest neighbours."""

import dataclasses
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from core.recipe.evaluators_base import Evaluation, Key, NonEmptyDict, Several
from core.recipe.evaluators_predictions import Positive32
from core.recipe.pp_string import PpString
from core.recipe.sources import Source
from core.recipe.types import Count, Refused, Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferDataset:
  """A dataset that a representation is tried on.

  Attributes:
    train: the train split.
    test: the test split.
    pp_train: the preprocessing of the train split. None: that of the evaluator.
    pp_eval: the preprocessing of the test split. None: that of the evaluator.
  """

  TITLE: ClassVar[str] = "a dataset"

  train: Source
  test: Source
  pp_train: PpString | None = None
  pp_eval: PpString | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer(Evaluation):
  """An evaluation of the features that a model computes for the train and test splits of several datasets.

  Attributes:
    datasets: the datasets by name. Each is `dict(train=..., test=...)`, or as in published configs (name in TFDS, train
      split, test split).
    pp_train: the preprocessing of train splits. It leaves `image` and one integer label.
    pp_eval: the preprocessing of test splits. It leaves the same.
    representation_layer: the layers whose features are evaluated, a name or several, such as `pre_logits` or
      `encoder/block05/+mlp`. None: the model's output. Of several, the layer begins the metrics' names.
    pool: how a layer of tokens or places becomes one vector an example. Their "mean", the "first" of them (a class
      token), or "flatten" for all in a row. None: such a layer is refused.
    label_key: where the label of an example is, one integer.
  """

  datasets: Annotated[dict[str, TransferDataset | tuple[Text, Text, Text]], NonEmptyDict]
  pp_train: PpString
  pp_eval: PpString
  representation_layer: Several[Text] | None = "pre_logits"
  pool: Literal["mean", "first", "flatten"] | None = None
  label_key: Key = "label"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fewshot(Transfer):
  """Few-shot accuracy of a representation.

  Attributes:
    shots: train examples a class, one number or several. A class that has fewer gives all.
    l2_reg: the strength of regularization. Of several, the one that ranks best over the datasets is chosen for each
      number of shots and layer.
    num_seeds: draws of the train examples, from the seeds 0, 1, ... At most 1,000.
    display_first: (dataset, shots) whose metrics come first. Those that are not evaluated are passed over.
  """

  TITLE: ClassVar[str] = "the evaluator fewshot"

  shots: Several[Count] = (1, 5, 10)
  l2_reg: Several[Positive32] = 2.0**10
  num_seeds: Annotated[int, Meta(ge=1, le=1_000)] = 3
  display_first: tuple[tuple[str, Count], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knn(Transfer):
  """Accuracy of nearest neighbours.

  Attributes:
    k: how many neighbours vote, one number or several.
    temperature: of the votes, each of which counts exp(cosine / temperature).
    weights: how votes count. "exp": by the temperature; "uniform": all of them one.
  """

  TITLE: ClassVar[str] = "the evaluator knn"

  k: Several[Count] = (10, 20)
  temperature: Positive32 = 0.07
  weights: Literal["exp", "uniform"] = "exp"

  def __post_init__(self):
    super().__post_init__()
    if self.weights == "uniform" and self.temperature != Knn.temperature:
      raise Refused("is of no effect where weights='uniform'; leave it out", key="temperature")
