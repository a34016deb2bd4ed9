"""Modules that are imported when they are first used: they take long, and many programs never need them."""

import importlib
from typing import Any


class Late:
  """Stands for a module, and imports it at the first use: `aiohttp = Late("aiohttp")`.

  Args:
    name: of the module.
  """

  def __init__(self, name: str):
    self._name = name

  def __getattr__(self, name: str) -> Any:
    return getattr(importlib.import_module(self._name), name)
