"""The models of one kind of input: what a config's `model_name`, or the `image_model` of two towers, may be."""

from collections.abc import Mapping
from types import ModuleType

from core.models import bert, bit, mixer, nfnet, resnet, text_transformer, vit
from core.recipe.models.options import ModelOptions
from core.recipe.models.towers import IMAGE_MODELS, TEXT_MODELS

_MODULES = {module.Options: module for module in (vit, mixer, resnet, bit, nfnet, text_transformer, bert)}


def _by_name(kinds: Mapping[str, type]) -> dict[str, ModuleType]:
  return {name: _MODULES[kind] for name, kind in kinds.items()}


IMAGE = _by_name(IMAGE_MODELS)
TEXT = _by_name(TEXT_MODELS)


def of(options: ModelOptions) -> ModuleType:
  """Returns the module of the model that has such options."""
  return _MODULES[type(options)]
