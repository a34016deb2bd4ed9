"""What a FlexiViT's training reads besides: the sequence lengths, of which every step draws one."""

import dataclasses
from typing import ClassVar

from core.recipe import tasks
from core.recipe.models.vit import FlexiViT
from core.recipe.types import Count, Positive, Refused


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceLengths:
  """Sequence lengths and how often each is drawn.

  Attributes:
    v: the numbers of patches along each side of an image, [8, 10, 15] say.
    p: the weight of each, above 0. None draws all equally often.
  """

  TITLE: ClassVar[str] = "sequence lengths"

  v: tuple[Count, ...]
  p: tuple[Positive, ...] | None = None

  def __post_init__(self):
    if not self.v:
      raise Refused("is empty: list the numbers of patches along a side, [8, 10, 15] say", key="v")
    if len(set(self.v)) < len(self.v):
      raise Refused(f"has a size twice: {self.v}; give it a larger weight in p instead", key="v")
    if self.p is not None and len(self.p) != len(self.v):
      raise Refused(f"has {len(self.p)} weights, and v has {len(self.v)} sizes", key="p")

  @property
  def probabilities(self) -> tuple[float, ...]:
    """The probability of each length."""
    weights = self.p or (1,) * len(self.v)
    return tuple(weight / sum(weights) for weight in weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flexi:
  """What is drawn for each step.

  Attributes:
    seqhw: the sequence lengths.
  """

  TITLE: ClassVar[str] = "flexi"

  seqhw: SequenceLengths


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlexibleClassification(tasks.Classification):
  """The training of a classifier at several sequence lengths.

  Attributes:
    flexi: what is drawn for each step.
  """

  TITLE: ClassVar[str] = "classification at several sequence lengths"

  flexi: Flexi

  def __post_init__(self):
    super().__post_init__()
    _refuse_other_models(self.model, self.model_name, "model_name")

  def at(self, seqhw: int) -> "FlexibleClassification":
    """Returns the recipe at one sequence length."""
    return dataclasses.replace(self, model=dataclasses.replace(self.model, seqhw=(seqhw, seqhw)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlexibleDistillation(tasks.Distillation):
  """The training of a student by teachers at several sequence lengths of the student.

  Attributes:
    flexi: what is drawn for each step.
  """

  TITLE: ClassVar[str] = "distillation at several sequence lengths"

  flexi: Flexi

  def __post_init__(self):
    super().__post_init__()
    student = self.models["student"]
    _refuse_other_models(student.options, student.name, "student_name")

  def at(self, seqhw: int) -> "FlexibleDistillation":
    """Returns the recipe at one sequence length."""
    return self.with_options("student", seqhw=(seqhw, seqhw))


def _refuse_other_models(options: object, name: str, key: str) -> None:
  if not isinstance(options, FlexiViT):
    raise Refused(f"must be 'flexi_vit' where flexi gives sequence lengths, got {name!r}", key=key)
