"""The task of knowledge distillation: a student learns to give what fixed teachers give for the same view of an image.

As in Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and consistent" (2106.05237): student and
teachers see one crop of an image, mixed up with another's by one weight, and no label has a part in the loss.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from core import trees
from core.errors import UserError, naming, nearest
from core.models import registry as models
from core.recipe import tasks as recipes
from core.recipe.models.options import changed
from core.recipe.types import Refused
from core.state import Batch, Params, Predict, Variables
from core.tasks import distances
from core.tasks import variables as variables_lib
from core.tasks.mixup import mixup
from core.tasks.task import Loss, Task

_LEAVES_THE_HEAD_OUT = "; model_load.dont_load=['head/.*'] leaves the head out"

Images = Float[Array, "batch height width channels"]
Logits = Float[Array, "batch classes"]


class Distillation(Task):
  """The distance of a student's outputs to those of one or several teachers, which are fixed.

  The loss is the mean of the distances to each teacher. For "kl" its gradient is that of the distance to the mean of
  the teachers' probabilities.

  The parameters are `{"student": ..., "prof": ...}`, and so is each other collection, of the models that have it.
  Teachers run as in evaluation, and nothing is differentiated by them; they are frozen whatever the schedule says, so
  they have no optimizer state and stay as they are to the last bit. A batch holds `image`, and under its name the
  images of a model that is to have its own: another resolution or value range of the same crop. All are mixed up by one
  weight; with `mixup.p=1` it is uniform in [0, 1], up to the order of the two images: the paper's function matching.

  Args:
    recipe: see `core.recipe.tasks.Distillation`.
  """

  Recipe = recipes.Distillation

  def __init__(self, recipe: recipes.Distillation):
    self._recipe = recipe
    self._distance = distances.make(recipe.distance_kw)
    self._models = {name: self._make(name, model.options) for name, model in recipe.models.items()}
    self.frozen = tuple(f"{name}/.*" for name in recipe.teachers)
    self.load = self._load_weights if any(map(self._weights_of, self._models)) else None

  def init(self, rng: Key[Array, ""], batch: Batch) -> Variables:
    self._check(batch)
    parts, shapes = {}, {}
    for number, (name, model) in enumerate(self._models.items()):
      # The student begins as it would without a teacher.
      key = jax.random.fold_in(rng, number) if number else rng
      with _naming(name):
        (shapes[name], _), variables = model.init_with_output(key, _images_of(name, batch))
      parts[name] = {**variables, "params": self._stored(name, variables["params"])}
    for name in self._recipe.teachers:
      if shapes[name].shape != shapes["student"].shape:
        raise UserError(
          f"config.{name}: the teacher gives {_outputs(shapes[name])} an image, and the student "
          f"{_outputs(shapes['student'])}; a distance compares the same classes"
        )
    variables = variables_lib.joined(parts)
    if bias := self._recipe.init_head_bias:
      head = variables["params"]["student"]["head"]
      head["bias"] = jnp.full_like(head["bias"], bias)
    self._check_schedule(variables["params"])
    return variables

  def loss(self, variables: Variables, batch: Batch, rng: Key[Array, ""]) -> Loss:
    self._check(batch)
    rng_mixup, rng_dropout = jax.random.split(rng)
    keys = [key for key in ("image", *self._models) if key in batch]
    mixed = mixup(rng_mixup, self._recipe.mixup.p, *(batch[key] for key in keys))
    images = dict(zip(keys, mixed))
    (student, _), updated = variables_lib.apply_in_training(
      self._models["student"],
      variables_lib.part(variables, "student"),
      _images_of("student", images),
      rngs={"dropout": rng_dropout},
    )
    student = student.astype(jnp.float32)
    found = {}
    for name in self._recipe.teachers:
      of_teacher = jax.lax.stop_gradient(variables_lib.part(variables, name))
      teacher, _ = self._models[name].apply(of_teacher, _images_of(name, images))
      found[f"distance/{name}"] = jnp.mean(self._distance(student, teacher.astype(jnp.float32)))
    loss = sum(found.values()) / len(found)
    return variables_lib.result(loss, found, {name: {"student": tree} for name, tree in updated.items()})

  @property
  def predict(self) -> Mapping[str, Predict]:
    """`student` (also `predict`) and each teacher by its name: `(logits, intermediates)`.

    Further arguments, an evaluator's `pred_kw`, are options of the model that take the place of the config's.
    """
    of_models = {name: self._predict_of(name) for name in self._models}
    return {"predict": of_models["student"], **of_models}

  def _predict_of(self, name: str) -> Predict:
    def predict(variables: Variables, batch: Batch, **options: Any) -> tuple[Logits, Any]:
      if lack := _lack_of_images(batch, name):
        raise Refused(f"the preprocessing {lack}")
      model = self._changed(name, options) if options else self._models[name]
      logits, out = model.apply(variables_lib.part(variables, name), _images_of(name, batch))
      return logits.astype(jnp.float32), out

    return predict

  def _changed(self, name: str, options: Mapping[str, Any]) -> Any:
    """Returns the module of a model with some options changed.

    Raises:
      Refused: the model has no such option, or not with this value.
    """
    try:
      of_model = changed(self._recipe.models[name].options, options, "pred_kw")
    except UserError as error:
      key, _, line = str(error).partition(" ")
      raise Refused(line, key=key) from None
    return self._make(name, of_model)

  def _make(self, name: str, options: Any) -> Any:
    """Returns the module of a model."""
    with _naming(name):
      return models.get(self._recipe.models[name].name).make(self._recipe.num_classes, options)

  def _stored(self, name: str, params: Params) -> Params:
    """Returns the parameters of a model in the dtype in which they are kept."""
    dtype = self._recipe.models[name].dtype
    return jax.tree.map(lambda x: x.astype(dtype), params) if dtype else params

  def _weights_of(self, name: str) -> str | None:
    whole = self._recipe.model_init
    return f"{whole}:{name}" if whole else self._recipe.models[name].init

  def _load_weights(self, variables: Variables) -> Variables:
    parts = {name: variables_lib.part(variables, name) for name in self._models}
    for name, model in self._recipe.models.items():
      if file := self._weights_of(name):
        with naming("config.model_init") if self._recipe.model_init else _naming(name, "_init"):
          parts[name] = variables_lib.load(model.name, parts[name], file, model.options, model.load)
    return variables_lib.joined(parts)

  def _check(self, batch: Batch) -> None:
    """Refuses batches that the models cannot take, before anything is computed."""
    for name in self._models:
      if lack := _lack_of_images(batch, name):
        raise UserError(f"config.input.pp {lack}")
    for key, value in batch.items():
      if value.ndim == 4 and key != "image" and key not in self._models:
        raise UserError(
          f"config.input.pp leaves images under {key!r}, which no model reads{nearest(key, ['image', *self._models])}"
        )

  def _check_schedule(self, params: Params) -> None:
    """Refuses rules by which a teacher, and nothing else, would be trained."""
    names = [name for name, _ in trees.flatten_with_names(params)]
    for regex, schedule in self._recipe.schedule if isinstance(self._recipe.schedule, tuple) else ():
      owners = {name.partition("/")[0] for name in names if trees.first_match(name, [regex]) is not None}
      if schedule is not None and owners and owners <= set(self._recipe.teachers):
        raise UserError(f"config.schedule: {regex!r} would train the teacher {min(owners)}; teachers stay as they are")


def _images_of(name: str, batch: Batch) -> Images:
  """Returns the images that stand under a model's name, else those that all share."""
  return batch[name if name in batch else "image"]


def _lack_of_images(batch: Batch, name: str) -> str | None:
  """Returns what a batch must have for a model; None if it has it."""
  key = name if name in batch else "image"
  if key not in batch:
    or_own = f" (or {name!r}, for the {'student' if name == 'student' else 'teacher'} alone)"
    return f"must leave 'image'{or_own}; it leaves: {', '.join(sorted(batch))}"
  if batch[key].ndim != 4:
    return f"must leave images [batch, height, width, channels] under {key!r}, not {batch[key].shape}"
  return None


def _outputs(logits: jax.Array) -> str:
  return f"{logits.shape[1]:,} classes" if logits.ndim == 2 else f"outputs of shape {logits.shape[1:]}"


@contextlib.contextmanager
def _naming(name: str, key: str = "") -> Iterator[None]:
  """Names a model, and the keys that describe it, in a `UserError` that is raised within.

  Raises:
    UserError: what was raised within.
  """
  try:
    yield
  except UserError as error:
    line = str(error)
    if name != "student":
      line = line.replace(_LEAVES_THE_HEAD_OUT, "; student and teacher must have the same classes")
    line = line.removeprefix("config: ").replace("model_load", f"{name}_load").replace("model_name", f"{name}_name")
    raise UserError(line if line.startswith("config.") else f"config.{name}{key}: {line}") from None
