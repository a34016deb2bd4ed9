"""The options of every model that a config can name: `model_name="vit"` reads `config.model` into a `ViT`."""

from core.recipe.models.load import Load, LoadOneTower, LoadTwoTowers
from core.recipe.models.towers import IMAGE_MODELS, TEXT_MODELS, OneTower, TwoTowers
from core.recipe.models.vit import FlexiViT

MODELS: dict[str, type] = {
  **IMAGE_MODELS,
  **TEXT_MODELS,
  "flexi_vit": FlexiViT,
  "proj.flexi.vit": FlexiViT,  # Here and below: names in published configs.
  "two_towers": TwoTowers,
  "proj.image_text.two_towers": TwoTowers,
  "one_tower": OneTower,
  "proj.clippo.one_tower": OneTower,
}

# What `model_load` may be, by the model's name.
_LOADS = {TwoTowers: LoadTwoTowers, OneTower: LoadOneTower}
LOADS: dict[str, type] = {name: _LOADS.get(kind, Load) for name, kind in MODELS.items()}
