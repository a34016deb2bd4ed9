"""Configs: a Python file whose `get_config(arg)` returns the run's table of hyper-parameters, plus overrides.

    --config=projects/vit/configs/digits.py:runlocal,variant=Ti/16 --config.lr=3e-4 --config.input.batch_size=64

What stands behind the colon is the config's own short arguments (`parse_arg`); `--config.KEY=VALUE` then changes any
single entry. A config is a `ml_collections.ConfigDict` of plain values, so it can be saved as JSON and compared.
"""

import ast
import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from core import durations
from core.errors import UserError, nearest

# Every top-level key of a config, and the types its value may have.
KEYS: dict[str, tuple[type, ...]] = {
  "seed": (int,),  # Seeds the parameters, the order of the data, augmentation, dropout and mixup.
  "total": (int, float),  # Length of training, a duration: total_{steps,examples,epochs}.
  "num_classes": (int,),
  "loss": (str,),  # A function of core.tasks.losses, or of contrastive_losses.
  "loss_form": (str,),  # Of a contrastive loss: "plain", or one that saves memory, "chunked" or "ring".
  "input": (ConfigDict,),  # data, pp, batch_size, ...: see core.data.pipeline.
  "model_name": (str,),  # A module of core.models.
  "model": (ConfigDict,),  # Options of that model.
  "flexi": (ConfigDict,),  # Of a FlexiViT, seqhw=dict(v=, p=): patches a side, of which each step draws one; weights.
  "co_training": (ConfigDict,),  # A classifier trained beside a contrastive loss: labelled, num_classes, weight, ...
  "init_shapes": (list, tuple),  # Of the inputs of a model of images and texts, where batches do not hold them.
  "model_init": (str, ConfigDict),  # Weights to start from: a name, file or URL, :SUBTREE where wanted; or one a tower.
  "model_load": (ConfigDict,),  # Options of the model's `load`: dont_load, ...
  "teachers": (list, tuple),  # Names of models to distil into `student`; for each, and for it, `_OF_A_MODEL`.
  "distance": (str,),  # Of the student's outputs to a teacher's: core.tasks.distances.
  "distance_kw": (ConfigDict,),
  "resume": (str,),  # A checkpoint of another run to go on from: WORKDIR/checkpoints/STEP, or WORKDIR for its newest.
  "optax_name": (str,),
  "optax": (ConfigDict,),
  "init_head_bias": (int, float),  # Initial bias of the classifier.
  "lr": (int, float),
  "lr_mults": (list, tuple),  # [(regex, multiplier)].
  "wd": (int, float),  # Decoupled weight decay, not multiplied by lr.
  "wd_mults": (list, tuple),
  "grad_clip_norm": (int, float),
  "agc": (ConfigDict,),  # Adaptive gradient clipping: clipping, eps, exclude.
  "ema": (ConfigDict,),  # An average of the parameters: decay, rounding, ...: see core.optim.ema.
  "sam": (ConfigDict,),  # Sharpness-aware steps: rho, alpha, ...: see core.optim.sam.
  "grad_accum_steps": (int,),  # Splits each batch into this many parts, one after the other.
  "schedule": (ConfigDict, list, tuple),  # One schedule, or [(regex, schedule or None = frozen)].
  "mixup": (ConfigDict,),  # p: the Beta distribution's parameter.
  "evals": (ConfigDict,),
  "log_training": (int, float),  # A duration, as are the next two.
  "ckpt": (int, float),
  "keep_ckpt": (int, float),
  "mesh": (list, tuple, str),  # "auto", or [(axis name, size or -1 for the rest)]: see core.sharding.
  "sharding_strategy": (list, tuple),  # [(parameter regex, how)].
  "sharding_rules": (list, tuple),  # [(logical axis, mesh axes)].
  "profile_steps": (list, tuple),  # (first, last) step of a profiler trace.
}
# Of each model of a distillation, "student" and those that `teachers` names: student_name, student, student_init, ...
_OF_A_MODEL = {"_name": (str,), "": (ConfigDict,), "_init": (str,), "_load": (ConfigDict,), "_dtype": (str,)}
_DURATIONS = {"total", "log_training", "ckpt", "keep_ckpt"}


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
  """Reads a config's own arguments, `"runlocal,variant=B/16"`, each of the type of its default.

  Args:
    arg: what stood behind the colon of `--config=FILE.py:ARG`; a bare name sets a flag to True.
    **defaults: every argument that the config has, with its default value.

  Raises:
    UserError: an unknown argument or a value of the wrong type.
  """
  values = dict(defaults)
  for part in filter(None, (arg or "").split(",")):
    name, _, text = part.partition("=")
    if name not in defaults:
      raise UserError(f"config argument {name!r} is unknown{nearest(name, defaults)}")
    values[name] = _as_type(f"config argument {name}", text or "True", defaults[name])
  return ConfigDict(values)


def choose(name: str, value: str, table: Mapping[str, Any]) -> Any:
  """`table[value]` for a config's argument `name`.

  Raises:
    UserError: the table has no such entry.
  """
  if value not in table:
    raise UserError(f"config argument {name}={value!r} is unknown{nearest(value, table)}")
  return table[value]


def load(spec: str, overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
  """The config of `spec = "FILE.py[:arg]"` with `overrides = [("lr", "0.1"), ...]` applied, checked and locked.

  Raises:
    UserError: no such file, no `get_config` in it, or an entry that `validate` refuses.
  """
  file, _, arg = spec.partition(":")
  if not Path(file).is_file():
    raise UserError(f"config: no file {file!r}")
  module_spec = importlib.util.spec_from_file_location(Path(file).stem, file)
  if module_spec is None or module_spec.loader is None:
    raise UserError(f"config: {file!r} is not a Python file")
  module = importlib.util.module_from_spec(module_spec)
  module_spec.loader.exec_module(module)
  if not hasattr(module, "get_config"):
    raise UserError(f"config: {file!r} has no function get_config(arg)")
  return _finished(ConfigDict(module.get_config(arg or None)), overrides)


def from_json(path: Path, overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
  """The config that a run left in its `config.json`, with `overrides` applied, checked and locked.

  Raises:
    UserError: no such file, or no config in it.
  """
  try:
    return _finished(ConfigDict(json.loads(path.read_text())), overrides)
  except (OSError, ValueError) as error:
    raise UserError(f"{path} is no config of a run ({str(error).splitlines()[0]})") from None


def _finished(config: ConfigDict, overrides: Iterable[tuple[str, str]]) -> ConfigDict:
  config.unlock()
  for key, text in overrides:
    _override(config, key, text)
  validate(config)
  return config.lock()


def validate(config: ConfigDict) -> None:
  """Refuses unknown top-level keys and values of the wrong type; what is inside is checked by whom it is for."""
  models = ("student", *config.teachers) if config.get("teachers") else ()
  keys = {f"{name}{end}": types for name in models for end, types in _OF_A_MODEL.items()} | KEYS
  known = [f"{key}_{unit}" for key in _DURATIONS for unit in durations.UNITS] + [k for k in keys if k not in _DURATIONS]
  for key, value in config.items():
    if key not in known:
      raise UserError(f"config.{key} is not a key of a config{nearest(key, known)}")
    types = keys[key if key in keys else key.rpartition("_")[0]]
    # A bool is an int to Python, but never what is meant by one here.
    if value is not None and (isinstance(value, bool) or not isinstance(value, types)):
      raise UserError(f"config.{key} must be {_type_names(types)}, got {value!r}")


def to_json(config: ConfigDict) -> str:
  """The config as indented JSON, keys sorted: what a workdir keeps to know its config again."""
  return json.dumps(json.loads(config.to_json()), indent=2, sort_keys=True)


def differences(a: Any, b: Any, prefix: str = "config") -> list[str]:
  """Lines `"config.lr: 0.1 there, 0.2 here"` for all that differs between two configs read from JSON."""
  if isinstance(a, dict) and isinstance(b, dict):
    missing = object()
    lines = []
    for key in sorted({*a, *b}):
      left, right = a.get(key, missing), b.get(key, missing)
      if left is missing or right is missing:
        here = "only there" if right is missing else "only here"
        lines.append(f"{prefix}.{key}: {here}")
      else:
        lines.extend(differences(left, right, f"{prefix}.{key}"))
    return lines
  return [] if a == b else [f"{prefix}: {a!r} there, {b!r} here"]


def _override(config: ConfigDict, key: str, text: str) -> None:
  *folders, last = key.split(".")
  node = config
  for depth, folder in enumerate(folders):
    where = ".".join(["config", *folders[: depth + 1]])
    if folder not in node:
      if depth == 0 and folder not in KEYS:
        raise UserError(f"{where} is not a key of a config{nearest(folder, {*KEYS, *config})}")
      node[folder] = ConfigDict()
    node = node[folder]
    if not isinstance(node, ConfigDict):
      raise UserError(f"{where} is {node!r}: it has no entry {last!r} to set")
  types = KEYS.get(key, ())
  if str in types and len(types) > 1:  # "auto" or a list, say: `validate` sees to it.
    node[last] = _literal(text)
    return
  if last in node:
    node[last] = _as_type(f"config.{key}", text, node[last])
    return
  stem, _, unit = last.rpartition("_")
  if unit in durations.UNITS:  # The same duration in another unit takes the place of the old one.
    for other in durations.UNITS:
      if f"{stem}_{other}" in node:
        del node[f"{stem}_{other}"]
  node[last] = _literal(text)


def _literal(text: str) -> Any:
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def _as_type(where: str, text: str, old: Any) -> Any:
  """`text` as a value of the type of `old`; an int where a float stood is a float."""
  value = text if isinstance(old, str) else _literal(text)
  if old is None or value is None:
    return value
  if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if isinstance(old, list | tuple) and isinstance(value, list | tuple):
    return type(old)(value)
  if isinstance(old, ConfigDict) and isinstance(value, dict):
    return ConfigDict(value)
  if type(value) is not type(old):
    example = f" like {old!r}" if isinstance(old, int | float | str) else ""
    raise UserError(f"{where} must be {_type_names((type(old),))}{example}, got {text!r}")
  return value


def _type_names(types: Iterable[type]) -> str:
  words = {int: "an integer", float: "a number", str: "a string", bool: "True or False", ConfigDict: "a dict"}
  names = [words.get(t, f"a {t.__name__}") for t in types]
  return " or ".join(n for n in names if not (n == "an integer" and "a number" in names))
