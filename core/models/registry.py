"""The models that a config can name: `model_name="vit"`. Each is a module with `Model`, `make` and `load`."""

from types import ModuleType

from core.errors import UserError, nearest
from core.models import flexi_vit, one_tower, towers, two_towers
from core.recipe.models import registry

_OF_SEVERAL = {module.Options: module for module in (flexi_vit, two_towers, one_tower)}
_TOWERS = {**towers.IMAGE, **towers.TEXT}
MODELS = {name: _TOWERS.get(name) or _OF_SEVERAL[kind] for name, kind in registry.MODELS.items()}


def get(name: str) -> ModuleType:
  """Returns the module of the model `name`.

  Raises:
    UserError: there is no such model; gives the nearest.
  """
  if name not in MODELS:
    raise UserError(f"config.model_name: there is no {name!r}{nearest(str(name), MODELS)}")
  return MODELS[name]
