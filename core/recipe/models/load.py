"""How weights are loaded into a model: `config.model_load`."""

import dataclasses
from typing import Annotated, Any, ClassVar

from core.recipe.types import Check, Regex


def _as_tuple(patterns: Any) -> tuple[str, ...]:
  return (patterns,) if isinstance(patterns, str) else patterns


# One regular expression or several.
Regexes = Annotated[Regex | tuple[Regex, ...], Check("a list of regular expressions", _as_tuple)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
  """How weights are loaded into a model.

  Attributes:
    dont_load: regexes over names of parameters, `["head/.*"]` for one. What they match keeps its fresh value.
  """

  TITLE: ClassVar[str] = "a model's loading"

  dont_load: Regexes = ()


EVERYTHING = Load()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadOneTower(Load):
  """How weights are loaded into one tower.

  Attributes:
    img_load_kw: how they are loaded into the tower's own model.
  """

  TITLE: ClassVar[str] = "a tower's loading"

  img_load_kw: Load = EVERYTHING


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadTwoTowers(LoadOneTower):
  """How weights are loaded into two towers.

  Attributes:
    img_load_kw: how they are loaded into the image tower's own model.
    txt_load_kw: how they are loaded into the text tower's own model.
  """

  TITLE: ClassVar[str] = "the loading of two towers"

  txt_load_kw: Load = EVERYTHING
