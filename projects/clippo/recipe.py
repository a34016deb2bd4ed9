"""What CLIPPO's training reads besides: a classifier that is trained beside the contrastive loss."""

import dataclasses
from typing import ClassVar

from core.errors import nearest
from core.recipe import tasks
from core.recipe.types import Count, Number, Positive, Refused, Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
  """A classifier on the tower's representation of the labelled images.

  Attributes:
    labelled: the component of the input that holds labelled images, under `image` and `label`.
    num_classes: the number of classes.
    loss: the loss of logits and labels, "softmax_xent" or "sigmoid_xent".
    weight: what the classification loss is multiplied with, above 0. The contrastive loss counts 1.
    head_bias: the initial bias of each class.
  """

  TITLE: ClassVar[str] = "co-training"

  labelled: Text
  num_classes: Count
  loss: tasks.ClassificationLoss = "sigmoid_xent"
  weight: Positive = 1.0
  head_bias: Number = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoTraining(tasks.Contrastive):
  """The training of one tower for images and rendered texts.

  Attributes:
    co_training: a classifier to train beside the contrastive loss. None trains none.
  """

  co_training: Classifier | None = None

  def __post_init__(self):
    super().__post_init__()
    if self.co_training is None:
      return
    names = [component.name for component in self.input.components]
    if self.co_training.labelled not in names or len(names) < 2:
      raise Refused(
        f"{self.co_training.labelled!r} is no component of a mixture{nearest(self.co_training.labelled, names)}",
        key="co_training.labelled",
      )
