"""Opens the source that a config's `data` names."""

import importlib
from collections.abc import Mapping
from typing import Any

from core.data.columns import Columns
from core.data.tfrecord import Records
from core.errors import UserError, check_arguments, nearest

SOURCES = ("arrays", "digit_captions", "digits", "folder", "fractals", "jsonl", "tfds")

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
  check_arguments(load, arguments, where=f"config: {where}", of=f"the source {name}")
  return load(**arguments)
