"""The models of one kind of input: what a config's `model_name`, or the `image_model` of two towers, may be."""

from types import ModuleType

from core.errors import UserError, nearest
from core.models import bert, bit, mixer, nfnet, resnet, text_transformer, vit

IMAGE = {
  "vit": vit,
  "mixer": mixer,
  "resnet": resnet,
  "bit_paper": resnet,  # The name in published configs.
  "bit": bit,
  "nfnet": nfnet,
}
TEXT = {
  "text_transformer": text_transformer,
  "proj.image_text.text_transformer": text_transformer,  # Here and below: names in published configs.
  "bert": bert,
  "proj.flaxformer.bert": bert,
}


def get(kind: str, name: str) -> ModuleType:
  """The module of the tower `name` of a kind of input, "image" or "text".

  Raises:
    UserError: no such model; gives the nearest.
  """
  known = {"image": IMAGE, "text": TEXT}[kind]
  if name not in known:
    raise UserError(f"config: model.{kind}_model {name!r} is unknown{nearest(str(name), known)}")
  return known[name]
