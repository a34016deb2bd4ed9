"""The models that a config can name: `model_name="vit"`. Each is a module with `Model` and `load`."""

from types import ModuleType

from core.errors import UserError
from core.models import bit, mixer, nfnet, resnet, vit

MODELS = {
  "vit": vit,
  "mixer": mixer,
  "resnet": resnet,
  "bit_paper": resnet,  # The name in published configs.
  "bit": bit,
  "nfnet": nfnet,
}


def get(name: str) -> ModuleType:
  """The module of the model `name`.

  Raises:
    UserError: no such model; lists those there are.
  """
  if name not in MODELS:
    raise UserError(f"config: model_name {name!r} is unknown (there are: {', '.join(sorted(MODELS))})")
  return MODELS[name]
