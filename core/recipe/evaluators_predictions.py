"""Recipes of the evaluators that look at what a prediction gives for the examples of one dataset."""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from core.recipe.distances import DISTANCES
from core.recipe.evaluators_base import (
  Evaluation,
  Key,
  OneDataset,
  Several,
  StudentTeacher,
  TwoSided,
  different,
  file_name,
)
from core.recipe.types import Check, Count, OneOf, Regex, Text, Whole

Classes = Annotated[tuple[Whole, ...], Check("a list of class indices from 0 on, each but once", different)]
ClassificationLoss = Literal["softmax_xent", "sigmoid_xent"]  # The functions of `core.tasks.losses`.
# Numbers that are kept apart from 0 and from infinity in float32, too.
Positive32 = Annotated[float, Meta(ge=1e-30, le=1e30)]
Seed32 = Annotated[int, Meta(ge=0, le=2**31 - 1)]

Distance = Annotated[Any, OneOf("kind", DISTANCES)]

STUDENT_TEACHER = StudentTeacher(student="student", teacher="teacher")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(OneDataset, Evaluation):
  """Accuracy, loss and calibration of a classifier.

  Attributes:
    pp_fn: the preprocessing of its examples. It leaves `image` and the labels.
    loss_name: the loss that is reported.
    label_key: where the labels of an example are, one-hot or multi-hot.
    classes: indices of the classes that the dataset has. All others are no choice. None: all classes. For a dataset of
      a part of the model's classes, as ImageNet-R is; its labels have a column for each class of the model, or for each
      index here.
    per_class: writes the number of examples and the accuracy of each class to a file. The name of a `.csv` or `.json`
      file, or True for `per_class.csv`.
  """

  TITLE: ClassVar[str] = "the evaluator classification"

  loss_name: ClassificationLoss = "softmax_xent"
  label_key: Key = "labels"
  classes: Classes | None = None
  per_class: bool | Annotated[str, file_name(".csv", ".json")] = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mean(OneDataset, Evaluation):
  """The mean of each value that a prediction gives for an example.

  Attributes:
    pred: the prediction of the task that is evaluated. It gives `{name: [batch]}`, numbers or truth values, or a tuple
      that begins with such a dict. Or a dict of predictions by label.
    pp_fn: the preprocessing of its examples. It leaves what the prediction reads.
  """

  TITLE: ClassVar[str] = "the evaluator mean"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Save(OneDataset, Evaluation):
  """A file with what a model gives for each example.

  Attributes:
    pp_fn: the preprocessing of its examples. It leaves what the prediction reads, and what is to be saved with it.
    outputs: regexes of names to save, each of which must match one whole. Names are `output` (`output/NAME` if the
      prediction gives a dict), intermediates (`pre_logits`, `encoder/block05/.*`), and entries of the batch that hold
      numbers (`batch/label`).
    outfile: the name of the .npz file.
  """

  TITLE: ClassVar[str] = "the evaluator save"

  outputs: Several[Regex] = ("output",)
  outfile: Annotated[str, file_name(".npz")] = "outputs.npz"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layers:
  """A layer of a student and one of its teacher.

  Attributes:
    student: the layer of the student.
    teacher: the layer of the teacher.
  """

  student: Text
  teacher: Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement(OneDataset, TwoSided):
  """How well a student does as its teacher does.

  Attributes:
    pp_fn: the preprocessing of its examples. It leaves the images; no labels are read.
    layer: the representation that is compared, a name among the intermediates of both models, or one for each. Tokens
      and places are averaged. None: no `cka`.
    distances: what else is measured of the logits, [dict(kind="l2"), dict(kind="agree", k=5)] say. Of each the mean,
      the deviation, the least and the most are reported, `kind=agree_k=5/avg`.
  """

  TITLE: ClassVar[str] = "the evaluator agreement"

  pred: Literal["predict"] | StudentTeacher = STUDENT_TEACHER
  layer: Text | Layers | None = "pre_logits"
  distances: tuple[Distance, ...] = ()

  def layers(self) -> dict[str, str]:
    """Returns the layer of each side; none where none is compared."""
    if self.layer is None:
      return {}
    each = Layers(student=self.layer, teacher=self.layer) if isinstance(self.layer, str) else self.layer
    return {"student": each.student, "teacher": each.teacher}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sharpness(OneDataset, Evaluation):
  """How sharp the minimum is that training found.

  Attributes:
    pp_fn: the preprocessing of its examples. It leaves `image` and the labels.
    rho: the radius of the surrogate gap.
    loss_name: the loss whose surface is measured.
    label_key: where the labels of an example are, one-hot or multi-hot.
    tolerance: the residual at which the iteration ends, relative to the eigenvalue.
    max_iterations: the most products of the Hessian and a vector, for each of the two attempts.
    seed: seeds the first vector.
  """

  TITLE: ClassVar[str] = "the evaluator sharpness"

  rho: Positive32 = 0.05
  loss_name: ClassificationLoss = "softmax_xent"
  label_key: Key = "labels"
  tolerance: Positive32 = 0.01
  max_iterations: Count = 100
  seed: Seed32 = 0
