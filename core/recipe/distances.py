"""Distances of a student's outputs to a teacher's, by which it is trained or evaluated."""

import dataclasses
from typing import ClassVar

from core.recipe.types import Count, Positive, Rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kl:
  """The relative entropy of the student's probabilities to the teacher's.

  Attributes:
    t: the temperature, above 0, by which logits are divided. The distance is multiplied by its square.
  """

  TITLE: ClassVar[str] = "the distance kl"

  t: Positive = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Euclidean:
  """The length of the difference of outputs."""

  TITLE: ClassVar[str] = "the distance euclidean"


@dataclasses.dataclass(frozen=True, kw_only=True)
class L2:
  """The squared length of the difference of outputs."""

  TITLE: ClassVar[str] = "the distance l2"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSoftmaxEuclidean:
  """The length of the difference of the logarithms of probabilities."""

  TITLE: ClassVar[str] = "the distance logsoftmax_euclidean"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hard:
  """The cross-entropy with the class that the teacher prefers.

  Attributes:
    ls: label smoothing, the mass in [0, 1) that the other classes share. The entropy of that target is taken off.
  """

  TITLE: ClassVar[str] = "the distance hard"

  ls: Rate = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agree:
  """Whether the class that the teacher prefers is among the first of the student. It has no gradient.

  Attributes:
    k: how many of the student's classes count.
  """

  TITLE: ClassVar[str] = "the distance agree"

  k: Count = 1


# By the name that a config gives; those that can be trained by, and all.
TRAINING_DISTANCES = {
  "kl": Kl,
  "euclidean": Euclidean,
  "l2": L2,
  "logsoftmax_euclidean": LogSoftmaxEuclidean,
  "hard": Hard,
}
DISTANCES = {**TRAINING_DISTANCES, "agree": Agree}
DistanceOptions = Kl | Euclidean | L2 | LogSoftmaxEuclidean | Hard | Agree
