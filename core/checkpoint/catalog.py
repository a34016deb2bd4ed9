"""The short names of published weights, and where each lies: `model_init="howto-i21k-B/16"`.

The names are those their users know. They stand in `catalog.json` by family, and `:img` after a location is the subtree
that belongs to the family. Names of BiT (Kolesnikov et al. 2020) follow a pattern instead:

    BiT-M-R50x1                     {S, M, L} x R{50x1, 50x3, 101x1, 101x3, 152x2, 152x4}: pre-trained
    BiT-M-R50x1-ILSVRC2012          fine-tuned on ImageNet-1k
    BiT-M-R50x1-run0-caltech101     fine-tuned on a task of VTAB-1k, run 0, 1 or 2; the task as the file spells it

`timm/NAME` is timm's model of that name on the Hugging Face hub, `hf://timm/NAME` (`core.checkpoint.hub`).

That a name stands here says that its authors named such a file, not that the file can still be had.
"""

import difflib
import functools
import json
import os
import re

from core import data_files, files
from core.checkpoint import big_vision, hub, pretrained
from core.errors import UserError, first_few

# What else loads into a family's models.
_ALSO = {
  "vit": ("flexivit",),
  "resnet": ("distill_teachers",),
  "two_towers": ("lit",),
  "one_tower": ("clippo",),
}

# Families whose files hold towers, which other families' models take by subtree.
_TOWERS = ("two_towers", "lit", "clippo")

_BIT_SIZES = ("R50x1", "R50x3", "R101x1", "R101x3", "R152x2", "R152x4")
_BIT_NAMES = tuple(f"BiT-{data}-{size}{end}" for data in "SML" for size in _BIT_SIZES for end in ("", "-ILSVRC2012"))
_BIT_ON_VTAB = re.compile(rf"(BiT-[SML]-({'|'.join(_BIT_SIZES)}))-run[012]-[a-z0-9_-]+")
_BIT_WITHOUT_SIZE = re.compile(r"([SML])(-ILSVRC2012|-run[012]-[a-z0-9_-]+|)")

_WEIGHTS = (".npz", ".safetensors", ".bin", ".pth", ".pt", ".tar", ".ckpt")  # Extensions by which a name is a path.


def locate(family: str, name: str) -> str:
  """Returns the location of the weights `name` of a model family; a path or URL comes back as it is.

  Args:
    family: "vit", "mixer", "resnet", "two_towers", "lit", ... A family without published weights has no names.
    name: a short name; that of any file of towers with a subtree after a colon ("mixed_L16L:img"); a model of timm
      ("timm/vit_base_patch16_224.augreg_in21k"); or a path or URL.

  Raises:
    UserError: neither a known name nor a file; the nearest names are given.
  """
  if name in (known := _locations(family)):
    return known[name]
  if family == "resnet" and _BIT_ON_VTAB.fullmatch(name):
    return _bit_location(name)
  if name.startswith("timm/") and hub.is_model(f"{hub.SCHEME}{name}") and not _is_path(name):
    return f"{hub.SCHEME}{name}"
  base, colon, subtree = name.rpartition(":")
  for each in (family, *_TOWERS) if colon else ():
    if (location := _locations(each).get(base, ":")).endswith(".npz"):
      return f"{location}:{subtree}"
  if known and not _is_path(name):
    raise UserError(f"weights {name!r}: neither a file nor a published name of {family}{_nearest(name, family)}")
  return name


def names(family: str) -> list[str]:
  """Returns the short names that `locate` knows for a family, but for BiT's of VTAB, which follow a pattern."""
  return list(_locations(family))


def bit_name(name: str, depth: int, width: int) -> str:
  """Returns the full name of a BiT that is named without its size, as configs of BiT models do: the model tells it.

  `bit_name("M-ILSVRC2012", 50, 1)` is "BiT-M-R50x1-ILSVRC2012"; any other name comes back as it is.
  """
  match = _BIT_WITHOUT_SIZE.fullmatch(name)
  return f"BiT-{match[1]}-R{depth}x{width}{match[2]}" if match else name


@functools.cache
def _catalog() -> dict[str, dict[str, str]]:
  return json.loads(data_files.find("core/checkpoint/catalog.json").read_text())


@functools.cache
def _locations(family: str) -> dict[str, str]:
  found = {}
  for each in (family, *_ALSO.get(family, ())):
    found |= _catalog().get(each, {})
  if family == "text_transformer":
    found = {name: f"{location}:txt" for name, location in _catalog()["two_towers"].items()}
  return found | ({name: _bit_location(name) for name in _BIT_NAMES} if family == "resnet" else {})


def _bit_location(name: str) -> str:
  return f"gs://bit_models/{name}.npz"


def _is_path(name: str) -> bool:
  if big_vision.split(name):
    return True
  path = pretrained.split(name)[0].partition("#")[0]
  return "://" in path or path.endswith(_WEIGHTS) or os.path.exists(files.from_here(path))


def _nearest(name: str, family: str) -> str:
  if family == "resnet" and (full := bit_name(name, 50, 1)) != name:
    return f" (the size of the model belongs to the name: {full!r})"
  base = name.partition(":")[0]
  if others := [other for other, entries in _catalog().items() if base in entries]:
    tower = f"; '{base}:img' is its image tower" if others[0] in _TOWERS else ""
    return f" ({base!r} is one of {others[0]}{tower})"
  lower = {each.lower(): each for each in names(family)}
  if close := difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6):
    return f" (did you mean {' or '.join(repr(lower[each]) for each in close)}?)"
  return f" (known: {first_few(names(family))} of core/checkpoint/catalog.json)"
