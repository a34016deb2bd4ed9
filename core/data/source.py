"""Opens the source that a config's `data` names."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from core.data.columns import Columns
from core.data.tfrecord import Records
from core.errors import UserError, nearest

SOURCES = ("arrays", "digits", "jsonl", "tfds")

Source = Columns | Records


def open_source(data: Mapping[str, Any], where: str) -> Source:
  """The source of `data`: the one it names by `source`, else `digits` for that name, else `tfds`.

  Args:
    data: `dict(name="cifar10", split="train")`, `dict(source="jsonl", path="train.jsonl")`, ...: the arguments of the
      source's `load`.
    where: the config's key, for messages.

  Raises:
    UserError: an unknown source or key, a missing one, or whatever the source refuses.
  """
  if not isinstance(data, Mapping):
    raise UserError(f"config: {where} must be a dict like dict(name='cifar10', split='train'), got {data!r}")
  arguments = dict(data)
  name = arguments.pop("source", None) or ("digits" if arguments.get("name") == "digits" else "tfds")
  if name not in SOURCES:
    raise UserError(f"config: {where}.source {name!r} is unknown{nearest(str(name), SOURCES)}")
  load = importlib.import_module(f"core.data.sources.{name}").load
  known = inspect.signature(load).parameters
  for key in arguments:
    if key not in known:
      raise UserError(f"config: {where}.{key} is no key of the source {name}{nearest(key, known)}")
  for key, parameter in known.items():
    if parameter.default is parameter.empty and key not in arguments:
      raise UserError(f"config: {where}.{key} is missing; the source {name} needs it")
  return load(**arguments)
