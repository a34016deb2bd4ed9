"""What the recipes of all evaluators share: which predictions are evaluated, when, and in which batches."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from core.recipe.duration import Duration
from core.recipe.pp_string import PpString
from core.recipe.sources import Source
from core.recipe.types import BatchSize, Check, Refused, Text

T = TypeVar("T")

_LONGEST_NAME = 200  # Bytes. File systems take 255, and unfinished files have longer names.


def _at_least_one(values: Any) -> Any:
  if not values:
    raise ValueError("it is empty")
  return values


def different(values: tuple[Any, ...]) -> tuple[Any, ...]:
  """Returns a list of at least one, of which none stands there twice.

  Raises:
    ValueError: it is empty, or names one more than once.
  """
  twice = next((each for number, each in enumerate(_at_least_one(values)) if each in values[:number]), None)
  if twice is not None:
    raise ValueError(f"it names {twice!r} more than once")
  return values


NonEmpty = Check("a list of at least one", _at_least_one)
NonEmptyDict = Check("a dict of at least one", _at_least_one)
# One, or a list.
Several = T | Annotated[tuple[T, ...], Check("a list of at least one", different)]


def as_tuple(several: Any) -> tuple[Any, ...]:
  """Returns what a field of the type `Several` holds, one or a list, as a tuple."""
  return several if isinstance(several, tuple) else (several,)


def _not_the_pipelines(key: str) -> str:
  if key.startswith("_"):
    raise ValueError("keys that begin with _ are the pipeline's own")
  return key


Key = Annotated[Text, Check("a key of the examples", _not_the_pipelines)]


def _of_metrics(prefix: str) -> str:
  if prefix.startswith("time/"):
    raise ValueError("what begins with time/ measures the machine")
  if not prefix.isprintable():
    raise ValueError("it is shown in a line")
  return prefix


Prefix = Annotated[str, Check("text that begins the metrics' names", _of_metrics)]


def file_name(*suffixes: str) -> Check:
  """Returns a marker of an annotation: the name of a file, without a folder, that ends in one of `suffixes`."""

  def check(name: str) -> str:
    if "/" in name or "\0" in name:
      raise ValueError("it names no folder")
    if Path(name).suffix not in suffixes:
      raise ValueError(f"it must end in {' or '.join(suffixes)}")
    if len(name.encode()) > _LONGEST_NAME:
      raise ValueError(f"it is longer than {_LONGEST_NAME} bytes")
    return name

  return Check(f"the name of a {' or '.join(suffixes)} file", check)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """An entry of `config.evals`.

  Attributes:
    pred: the prediction of the task that is evaluated. A dict of predictions by label, `{"30": "predict_30"}`, has each
      of them evaluated, and the label begins the metrics' names, `30/prec@1`.
    pred_kw: keyword arguments of the prediction.
    prefix: begins the metrics' names, in the place of the evaluation's own name and a slash. Of the average of the
      parameters, `ema/` stands in front of it.
    log: how often it runs. It also runs after the last step, and if this is None, then alone.
    first: whether it runs before the first step, too, on the parameters that training starts from. "only": then alone.
    batch_size: examples a step over all devices. The last batch is padded. None: as many as in training.
    cache: whether preprocessed examples stay in memory from the first run on. True ("final_data"), False ("none"), or
      None ("pipeline", "raw_data"): where they take at most 256 MiB a process.
  """

  pred: Text | dict[str, Text] = "predict"
  pred_kw: dict[str, Any] = dataclasses.field(default_factory=dict)
  prefix: Prefix | None = None
  log: Duration | None = None
  first: bool | Literal["only"] = False
  batch_size: BatchSize | None = None
  cache: bool | Literal["final_data", "none", "pipeline", "raw_data"] | None = None

  def __post_init__(self):
    if self.first == "only" and self.log is not None:
      raise Refused("is given, and first='only' runs it before the first step alone", key=f"log_{self.log.unit}")
    if self.log is not None and self.log.value == 0:
      raise Refused("must be above 0; leave it out to evaluate after the last step alone", key=f"log_{self.log.unit}")
    if not isinstance(self.pred, dict):
      return
    if not self.pred:
      raise Refused("must be a prediction, or a dict of at least one by label, got {}", key="pred")
    for label in self.pred:
      # A label names the folder of the files that an evaluator writes.
      if not label or "/" in label or "\0" in label or label.startswith("."):
        raise Refused(f"has the label {label!r}, which cannot be the name of a folder", key="pred")

  def predictions(self) -> dict[str, str]:
    """Returns the names of the predictions by the arguments of the evaluator that take them."""
    return {"predict": self.pred}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageText:
  """The predictions of the two sides of a model of images and texts.

  Attributes:
    image: the prediction that embeds images.
    text: the prediction that embeds texts.
  """

  image: Text
  text: Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentTeacher:
  """The predictions of a student and of its teacher.

  Attributes:
    student: the prediction of the student.
    teacher: the prediction of the teacher.
  """

  student: Text
  teacher: Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoSided(Evaluation):
  """An evaluation of two predictions at once, each of a side that has a name.

  Attributes:
    pred: the predictions of the task that are evaluated, one a side. "predict", which published configs have, stands
      for the default.
  """

  def predictions(self) -> dict[str, str]:
    """Returns the names of the predictions by the arguments of the evaluator that take them."""
    default = next(field.default for field in dataclasses.fields(self) if field.name == "pred")
    sides = default if self.pred == "predict" else self.pred
    return {f"predict_{side.name}": getattr(sides, side.name) for side in dataclasses.fields(sides)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneDataset:
  """What an evaluator that reads one dataset knows of it.

  Attributes:
    data: the dataset, every example of which counts once.
    pp_fn: the preprocessing of its examples.
  """

  data: Source
  pp_fn: PpString
