"""The models that a config can name: `model_name="vit"`. Each is a module with `Model` and `load`."""

from types import ModuleType

from core.errors import UserError
from core.models import flexi_vit, one_tower, towers, two_towers

MODELS = {
  **towers.IMAGE,
  **towers.TEXT,
  "flexi_vit": flexi_vit,
  "proj.flexi.vit": flexi_vit,  # Here and below: names in published configs.
  "two_towers": two_towers,
  "proj.image_text.two_towers": two_towers,
  "one_tower": one_tower,
  "proj.clippo.one_tower": one_tower,
}


def get(name: str) -> ModuleType:
  """The module of the model `name`.

  Raises:
    UserError: no such model; lists those there are.
  """
  if name not in MODELS:
    raise UserError(f"config: model_name {name!r} is unknown (there are: {', '.join(sorted(MODELS))})")
  return MODELS[name]
