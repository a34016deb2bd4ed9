"""The families of models whose weights other libraries' files can hold."""

from collections.abc import Mapping

from core.errors import UserError
from core.models.foreign import bert, mixer, nfnet, resnet, siglip, vit
from core.models.foreign.table import Format

FORMATS: dict[str, Mapping[str, Format]] = {
  "bert": bert.FORMATS,
  "bit_paper": resnet.FORMATS,  # The name in published configs.
  "mixer": mixer.FORMATS,
  "nfnet": nfnet.FORMATS,
  "resnet": resnet.FORMATS,
  "text_transformer": siglip.TEXT_FORMATS,
  "two_towers": siglip.FORMATS,
  "vit": vit.FORMATS,
}


def get(family: str) -> Mapping[str, Format]:
  """Returns the formats of a family of models, by library.

  Raises:
    UserError: there is no mapping for that family.
  """
  if family not in FORMATS:
    known = ", ".join(sorted(FORMATS))
    raise UserError(f"model {family!r}: weights of other libraries are known for {known} only")
  return FORMATS[family]
