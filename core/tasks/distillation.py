"""The task of knowledge distillation: a student learns to give what fixed teachers give for the same view of an image.

As in Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and consistent" (2106.05237): student and
teachers see one crop of an image, mixed up with another's by one weight, and no label has a part in the loss.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from core import config as config_lib
from core import trees
from core.data import input_config
from core.errors import UserError, nearest
from core.models import registry as models
from core.optim import masks
from core.state import Batch, Params, Predict
from core.tasks import distances
from core.tasks.mixup import mixup
from core.tasks.task import Task

_DTYPES = ("float32", "bfloat16")
_TAKEN = ("student", "predict", "image", "labels")
_LEAVES_THE_HEAD_OUT = "; model_load.dont_load=['head/.*'] leaves the head out"


@dataclasses.dataclass(frozen=True)
class _Model:
  """The student or a teacher: its family, its options as the config states them, and the dtype of its parameters."""

  name: str
  family: Any
  options: Mapping[str, Any]
  dtype: str | None

  def make(self, **more: Any) -> Any:
    """The module; `more` options take the place of those of the same name."""
    with _naming(self.name):
      return self.family.Model(**{**self.options, **more})

  def stored(self, params: Params) -> Params:
    """The parameters in the dtype in which they are kept."""
    return jax.tree.map(lambda x: x.astype(self.dtype), params) if self.dtype else params

  def input_of(self, batch: Batch) -> Float[Array, "batch height width channels"]:
    """The images that stand under the model's name, else those that all share."""
    return batch[self.name if self.name in batch else "image"]


class Distillation(Task):
  """The distance of a student's outputs to those of one or several teachers, which are fixed.

  Reads from the config: `teachers`, a list of names; of the teacher `prof`, `prof_name`, `prof` and `prof_load` as
  others read `model_name`, `model` and `model_load`, `prof_init`, its weights (None for random ones, to try a config),
  and `prof_dtype`, "bfloat16" to keep and use its parameters in less memory; of the student `student_name`, `student`,
  `student_init` and `student_load`; `num_classes`, `distance` with `distance_kw` (`core.tasks.distances`; "kl"),
  `mixup`, `init_head_bias` of the student; and `model_init`, the `params.npz` of a run, for all of them.

  The loss is the mean of the distances to each teacher. For "kl" its gradient is that of the distance to the mean of
  the teachers' probabilities.

  The parameters are `{"student": ..., "prof": ...}`. Teachers run as in evaluation, and nothing is differentiated by
  them; they are frozen whatever the schedule says (`core.optim.masks.schedule_rules`), so they have no optimizer state
  and stay as they are to the last bit. A batch holds `image`, and under its name the images of a model that is to have
  its own: another resolution or value range of the same crop. All are mixed up by one weight; with `mixup.p=1` it is
  uniform in [0, 1], up to the order of the two images: the paper's function matching.

  Args:
    config: see above.
    **student: options of the student's model that take the place of the config's; the parameters are the same.
  """

  def __init__(self, config: ConfigDict, **student: Any):
    self._config = config
    self._teachers = _checked_names(config.get("teachers"))
    self._distance = distances.get(config.get("distance", "kl"), dict(config.get("distance_kw", {})))
    self._models = {"student": _model(config, "student", **student), **{n: _model(config, n) for n in self._teachers}}
    for model in self._models.values():  # Refuses options, before there is a batch.
      model.make()
    self.load = self._load_weights if any(map(self._weights_of, self._models)) else None

  def init(self, rng: Key[Array, ""], batch: Batch) -> Mapping[str, Any]:
    self._check(batch)
    params, shapes = {}, {}
    for number, (name, model) in enumerate(self._models.items()):
      # The student begins as it would without a teacher.
      key = jax.random.fold_in(rng, number) if number else rng
      with _naming(name):
        (shapes[name], _), variables = model.make().init_with_output(key, model.input_of(batch))
      params[name] = model.stored(variables["params"])
    for name in self._teachers:
      if shapes[name].shape != shapes["student"].shape:
        raise UserError(
          f"config.{name}: the teacher gives {_outputs(shapes[name])} an image, and the student "
          f"{_outputs(shapes['student'])}; a distance compares the same classes"
        )
    if bias := self._config.get("init_head_bias"):
      head = params["student"]["head"]
      head["bias"] = jnp.full_like(head["bias"], bias)
    self._check_schedule(params)
    return {"params": params}

  def loss(self, params: Params, batch: Batch, rng: Key[Array, ""]) -> tuple[Float[Array, ""], Mapping[str, jax.Array]]:
    self._check(batch)
    rng_mixup, rng_dropout = jax.random.split(rng)
    keys = [key for key in ("image", *self._models) if key in batch]
    mixed = mixup(rng_mixup, self._config.get("mixup", {}).get("p", 0.0), *(batch[key] for key in keys))
    images = dict(zip(keys, mixed))
    student, _ = self._apply("student", params, images, train=True, rngs={"dropout": rng_dropout})
    found = {}
    for name in self._teachers:
      teacher, _ = self._apply(name, jax.lax.stop_gradient({name: params[name]}), images)
      found[f"distance/{name}"] = jnp.mean(self._distance(student, teacher))
    return sum(found.values()) / len(found), found

  @property
  def predict(self) -> Mapping[str, Predict]:
    """`student` (also `predict`) and each teacher by its name: `(logits, intermediates)`.

    Further arguments, an evaluator's `pred_kw`, are options of the model that take the place of the config's.
    """

    def of(name: str) -> Predict:
      return lambda params, batch, **options: self._apply(name, params, batch, options)

    return {"predict": of("student"), **{name: of(name) for name in self._models}}

  def _apply(
    self, name: str, params: Params, batch: Batch, options: Mapping[str, Any] | None = None, **kw: Any
  ) -> tuple[Float[Array, "batch classes"], Any]:
    """Logits in float32, and intermediates."""
    _require_images(batch, name)
    model = self._models[name]
    logits, out = model.make(**(options or {})).apply({"params": params[name]}, model.input_of(batch), **kw)
    return logits.astype(jnp.float32), out

  def _weights_of(self, name: str) -> str | None:
    whole = self._config.get("model_init")
    return f"{whole}:{name}" if whole else self._config.get(f"{name}_init")

  def _load_weights(self, params: Params) -> Params:
    params = dict(params)
    for name, model in self._models.items():
      if file := self._weights_of(name):
        load_kw = self._config.get(f"{name}_load", {})
        with _naming(name, "_init"):
          params[name] = model.family.load(params[name], file, dict(model.options), **load_kw)
    return params

  def _check(self, batch: Batch) -> None:
    """Refuses batches that the models cannot take, before anything is computed."""
    for name in self._models:
      _require_images(batch, name)
    for key, value in batch.items():
      if value.ndim == 4 and key != "image" and key not in self._models:
        raise UserError(
          f"config.input.pp leaves images under {key!r}, which no model reads{nearest(key, ['image', *self._models])}"
        )

  def _check_schedule(self, params: Params) -> None:
    """Refuses rules by which a teacher, and nothing else, would be trained."""
    names = [name for name, _ in trees.flatten_with_names(params)]
    for regex, arguments in masks.schedule_rules(self._config):
      owners = {name.partition("/")[0] for name in names if trees.first_match(name, [regex]) is not None}
      if arguments is not None and owners and owners <= set(self._teachers):
        raise UserError(f"config.schedule: {regex!r} would train the teacher {min(owners)}; teachers stay as they are")


def _model(config: ConfigDict, name: str, **more: Any) -> _Model:
  dtype = config.get(f"{name}_dtype")
  if dtype not in (None, *_DTYPES):
    raise UserError(f"config.{name}_dtype: no dtype {dtype!r}{nearest(str(dtype), _DTYPES)}")
  if dtype and name == "student":
    raise UserError("config.student_dtype: a student's parameters are float32; config.student.dtype_mm is what it uses")
  if name != "student" and f"{name}_init" not in config and not config.get("model_init"):
    raise UserError(f"config.{name}_init is missing: the teacher's weights, a name, file or URL (None: random ones)")
  if f"{name}_name" not in config:
    raise UserError(f"config.{name}_name is missing: the model's family, 'vit' say")
  options = input_config.as_dict(config.get(name, {}), f"config.{name}")
  defaults = {"num_classes": config.num_classes} | ({"dtype_mm": dtype} if dtype else {})
  with _naming(name):
    return _Model(name, models.get(config[f"{name}_name"]), {**defaults, **options, **more}, dtype)


def _checked_names(teachers: Any) -> tuple[str, ...]:
  if not isinstance(teachers, list | tuple) or not teachers:
    raise UserError(f"config.teachers must name one teacher or more, ['prof'] say, got {teachers!r}")
  for name in teachers:
    taken = name in _TAKEN or name in config_lib.KEYS
    if taken or not isinstance(name, str) or not name.isidentifier() or teachers.count(name) > 1:
      raise UserError(
        f"config.teachers: {name!r} cannot be a teacher's name; take a word of its own for each, 'prof' say"
      )
  return tuple(teachers)


def _require_images(batch: Batch, name: str) -> None:
  key = name if name in batch else "image"
  if key not in batch:
    or_own = f" (or {name!r}, for the {'student' if name == 'student' else 'teacher'} alone)"
    raise UserError(f"the pp string must leave 'image'{or_own}; it leaves: {', '.join(sorted(batch))}")
  if batch[key].ndim != 4:
    raise UserError(
      f"the pp string must leave images [batch, height, width, channels] under {key!r}, not {batch[key].shape}"
    )


def _outputs(logits: jax.Array) -> str:
  return f"{logits.shape[1]:,} classes" if logits.ndim == 2 else f"outputs of shape {logits.shape[1:]}"


@contextlib.contextmanager
def _naming(name: str, key: str = "") -> Iterator[None]:
  """A context in which a model's `UserError` says whose it is, and names the keys that it is described by.

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
