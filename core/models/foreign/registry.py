"""The families of models whose weights other libraries' files can hold."""

from collections.abc import Mapping

from core.errors import UserError
from core.models.foreign import mixer, nfnet, resnet, vit
from core.models.foreign.table import Format

FORMATS: dict[str, Mapping[str, Format]] = {
  "bit_paper": resnet.FORMATS,  # The name in published configs.
  "mixer": mixer.FORMATS,
  "nfnet": nfnet.FORMATS,
  "resnet": resnet.FORMATS,
  "vit": vit.FORMATS,
}


def get(family: str) -> Mapping[str, Format]:
  """The formats of a family of models, by library.

  Raises:
    UserError: there is no mapping for that family.
  """
  if family not in FORMATS:
    known = ", ".join(sorted(FORMATS))
    raise UserError(f"model {family!r}: weights of other libraries are known for {known} only")
  return FORMATS[family]
