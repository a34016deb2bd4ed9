"""What each kind of training reads besides what all have in common: classification, contrastive and distillation."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from core.recipe import annotations, words
from core.recipe.distances import TRAINING_DISTANCES
from core.recipe.models.load import Load
from core.recipe.models.registry import LOADS, MODELS
from core.recipe.models.towers import TEXT_MODELS, OneTower, TwoTowers
from core.recipe.recipe import Recipe, named
from core.recipe.types import Count, Dtype, FilePath, NonNegative, Number, OneOf, Refused, Text

# The models of images and texts, and those of images alone, by name.
IMAGE_TEXT_MODELS = {name: kind for name, kind in MODELS.items() if kind in (TwoTowers, OneTower)}
IMAGE_MODELS = {name: kind for name, kind in MODELS.items() if name not in {**IMAGE_TEXT_MODELS, **TEXT_MODELS}}

ClassificationLoss = Literal["softmax_xent", "sigmoid_xent"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixup:
  """Training on convex combinations of examples.

  Attributes:
    p: the parameter of the Beta distribution of their weight, from 0 on. 0 mixes nothing.
  """

  TITLE: ClassVar[str] = "mixup"

  p: NonNegative = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Recipe):
  """The training of a classifier of images.

  Attributes:
    model_name: the model's family, "vit" say.
    model: the options of that model.
    num_classes: the number of classes.
    loss: the loss of logits and labels, "softmax_xent" or "sigmoid_xent". It has no default, as that of others' code,
      big_vision's, is the sigmoid one.
    init_head_bias: the initial bias of each class. None keeps the model's own.
    mixup: how examples are mixed.
    model_init: the weights to start from, a name, path or URL. None starts from random ones.
    model_load: how these are fitted to the model.
  """

  TITLE: ClassVar[str] = "classification"

  model_name: Text
  model: Annotated[Any, OneOf("model_name", IMAGE_MODELS, beside=True)]
  num_classes: Count
  loss: ClassificationLoss
  init_head_bias: Number | None = None
  mixup: Mixup = Mixup()
  model_init: FilePath | None = None
  model_load: Annotated[Any, OneOf("model_name", LOADS, beside=True)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerFiles:
  """Weights to start from, a name, path or URL for each part of a model of images and texts.

  Attributes:
    image, img: of the image tower. None keeps the random ones, here and below.
    text, txt: of the text tower.
    temperature, t: of the temperature.
    bias, b: of the bias.
  """

  TITLE: ClassVar[str] = "the parts of a model of images and texts"

  image: FilePath | None = None
  img: FilePath | None = None
  text: FilePath | None = None
  txt: FilePath | None = None
  temperature: FilePath | None = None
  t: FilePath | None = None
  bias: FilePath | None = None
  b: FilePath | None = None

  def __post_init__(self):
    for one, other in (("image", "img"), ("text", "txt"), ("temperature", "t"), ("bias", "b")):
      if getattr(self, one) and getattr(self, other):
        raise Refused(f"is given twice, under {one!r} too; keep one of them", key=other)

  def by_part(self) -> dict[str, str]:
    """Returns the files that are given, by the names of these fields."""
    return {name: file for name, file in vars(self).items() if file}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrastive(Recipe):
  """The training of a model of images and texts.

  Attributes:
    model_name: the model's family, "two_towers" or "one_tower".
    model: the options of that model.
    loss: the loss of embeddings, "softmax" (LiT, CLIPPO) or "sigmoid" (SigLIP). It has no default. A softmax leaves a
      bias, the model's bias_init, without a gradient.
    loss_form: how it is computed over the devices. "chunked" and "ring" save memory.
    init_shapes: the shapes of images and texts for which the model is made, [(1, 224, 224, 3), (1, 16)] say. They are
      read where batches hold no images or no texts.
    model_init: the weights to start from, a name, path or URL, or a dict of one for each part. None starts from
      random ones.
    model_load: how these are fitted to the model.
  """

  TITLE: ClassVar[str] = "contrastive training"

  model_name: Text
  model: Annotated[Any, OneOf("model_name", IMAGE_TEXT_MODELS, beside=True)]
  loss: Literal["softmax", "sigmoid"]
  loss_form: Literal["plain", "chunked", "ring"] = "plain"
  init_shapes: (
    tuple[tuple[Count, Count, Count, Count], tuple[Count, Count] | tuple[Count, Count, Count, Count]] | None
  ) = None
  model_init: FilePath | TowerFiles | None = None
  model_load: Annotated[Any, OneOf("model_name", LOADS, beside=True)]

  def __post_init__(self):
    super().__post_init__()
    if self.sam is not None and self.sam.perturbation == "per_device":
      raise Refused(
        "'per_device' does not go with a contrastive loss, which compares the examples of all devices; use 'global'",
        key="sam.perturbation",
      )
    if self.grad_clip_per_example:
      line = "does not go with a contrastive loss, which compares the examples of a batch"
      raise Refused(line, key="grad_clip_per_example")
    if self.loss == "softmax" and self.model.bias_init is not None:
      raise Refused(
        "is the initial bias b of a sigmoid loss, which a softmax would not train: it cancels; give bias_init=None, or "
        "config.loss='sigmoid'",
        key="model.bias_init",
      )
    if isinstance(self.model_init, TowerFiles) and isinstance(self.model, OneTower):
      for part in ("text", "txt"):
        if getattr(self.model_init, part):
          raise Refused("is no part of one_tower, whose image tower takes the texts", key=f"model_init.{part}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistilledModel:
  """The student or a teacher of a distillation; a config has its keys with its name in front.

  Attributes:
    name: NAME_name, the model's family, "vit" say.
    options: NAME, the options of that model.
    init: NAME_init, the weights to start from, a name, path or URL. None starts from random ones. A teacher's must be
      given.
    load: NAME_load, how these are fitted to the model.
    dtype: NAME_dtype, in which a teacher's parameters are kept, "float32" or "bfloat16". The model computes in it
      unless its options state another.
  """

  name: str
  options: Any
  init: str | None
  load: Load
  dtype: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation(Recipe):
  """The training of a student by teachers.

  A config has besides, for the student and for each teacher, the keys of `DistilledModel`.

  Attributes:
    teachers: the names of the teachers, ["prof"] say.
    num_classes: the number of classes of all models.
    distance: the distance of the student's outputs to a teacher's.
    distance_kw: the options of that distance.
    init_head_bias: the initial bias of each class of the student. None keeps the model's own.
    mixup: how images are mixed.
    model_init: the weights of all models to start from, the params.npz of a run. None reads NAME_init of each.
    extra: what is given of each model, by key.
  """

  TITLE: ClassVar[str] = "distillation"
  EXTRA: ClassVar[Mapping[str, Any]]

  teachers: tuple[Text, ...]
  num_classes: Count
  distance: Text = "kl"
  distance_kw: Annotated[Any, OneOf("distance", TRAINING_DISTANCES, beside=True)]
  init_head_bias: Number | None = None
  mixup: Mixup = Mixup()
  model_init: FilePath | None = None
  extra: dict[str, Any]

  def describe_model(self) -> str:
    """Returns the student and its teachers in a few words."""
    student = self.models["student"]
    return f"{named(student.name, student.options)} and {', '.join(self.teachers)}"

  @classmethod
  def extra_keys(cls, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of the student and of the teachers that a config names, with their types."""
    if _fault_of_teachers(cls, given.get("teachers")):  # Which keys a config may have is not known then.
      return {key: Any for key in given if key not in annotations.keys_of(cls)}
    return {key: kind for name in ("student", *given["teachers"]) for key, kind in _keys_of_model(name).items()}

  def __post_init__(self):
    super().__post_init__()
    if fault := _fault_of_teachers(type(self), self.teachers):
      raise Refused(fault, key="teachers")
    for name in self.teachers:
      if f"{name}_init" not in self.extra and self.model_init is None:
        raise Refused("is missing: the teacher's weights, a name, path or URL (None: random ones)", key=f"{name}_init")
      if self.extra.get(f"{name}_load", Load()).dont_load:
        raise Refused("leaves random numbers in a teacher, which never trains", key=f"{name}_load.dont_load")
    object.__setattr__(self, "extra", {key: self._in_dtype(key, value) for key, value in self.extra.items()})

  def _in_dtype(self, key: str, value: Any) -> Any:
    """Returns the options of a teacher so that it computes in the dtype of its parameters, unless they state another.

    What is no teacher's options is returned as it is.
    """
    dtype = self.extra.get(f"{key}_dtype") if key in self.teachers else None
    return value if dtype is None or "dtype_mm" in value.stated else dataclasses.replace(value, dtype_mm=dtype)

  @functools.cached_property
  def models(self) -> dict[str, DistilledModel]:
    """The student under "student", then the teachers under their names."""
    return {
      name: DistilledModel(
        name=self.extra[f"{name}_name"],
        options=self.extra[name],
        init=self.extra.get(f"{name}_init"),
        load=self.extra.get(f"{name}_load", Load()),
        dtype=self.extra.get(f"{name}_dtype"),
      )
      for name in ("student", *self.teachers)
    }

  def with_options(self, name: str, **options: Any) -> "Distillation":
    """Returns the recipe with some options of a model replaced."""
    changed = dataclasses.replace(self.models[name].options, **options)
    return dataclasses.replace(self, extra={**self.extra, name: changed})


# What a batch, or a task, calls something else.
_TAKEN = ("student", "predict", "image", "labels")


def _fault_of_teachers(kind: type, teachers: Any) -> str | None:
  """Returns what is wrong with names of teachers; None where they can be."""
  if not isinstance(teachers, tuple) or not teachers or not all(isinstance(name, str) for name in teachers):
    return f"must name one teacher or more, ['prof'] say, got {words.shown(teachers)}"
  keys = [key for name in ("student", *teachers) for key in _keys_of_model(name)]
  for name in teachers:
    own = _keys_of_model(name)
    taken = name in _TAKEN or any(key in annotations.keys_of(kind) or keys.count(key) > 1 for key in own)
    if taken or not name.isidentifier():
      return f"{words.shown(name)} cannot be a teacher's name; take a word of its own for each, 'prof' say"
  return None


def _keys_of_model(name: str) -> dict[str, Any]:
  dtype = {} if name == "student" else {f"{name}_dtype": Dtype | None}
  return {
    f"{name}_name": Text,
    name: Annotated[Any, OneOf(f"{name}_name", IMAGE_MODELS, beside=True)],
    f"{name}_init": FilePath | None,
    f"{name}_load": Load,
    **dtype,
  }


def _documented(name: str, who: str) -> dict[str, Any]:
  """Returns the keys of a model with what they are, for the page of all keys."""
  meanings = words.documentation(DistilledModel)
  told = {
    key: meanings[field].partition(", ")[2]
    for field in meanings
    for key in [meanings[field].partition(",")[0].replace("NAME", name)]
  }
  return {key: Annotated[kind, f"{who}: {told[key]}"] for key, kind in _keys_of_model(name).items()}


Distillation.EXTRA = {**_documented("student", "of the student"), **_documented("TEACHER", "of each teacher")}
