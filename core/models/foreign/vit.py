"""ViT's weights in the forms of timm and its relatives, and of transformers; and what a file tells of its model."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from core.models.foreign import table, vit_hf, vit_timm
from core.models.foreign.table import Arrays, Format

FORMATS = {
  "timm": Format(vit_timm.recognizes, vit_timm.reading, vit_timm.writing, vit_timm.config, vit_timm.options),
  "hf": Format(vit_hf.recognizes, vit_hf.reading, vit_hf.writing, vit_hf.config, vit_hf.options),
}


def options_of(state_dict: Arrays, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
  """Returns the options of our ViT that a state dict of another library needs, as far as they can be known.

  Args:
    state_dict: arrays, or anything with a `shape` and NumPy's functions, under the other library's names.
    config: the `config.json` that came with it.

  Raises:
    UserError: it is of no ViT that is known.
  """
  form = table.recognize(FORMATS, state_dict, source="the state dict")
  published = table.to_published(form.reading(state_dict), state_dict, source="the state dict")
  of_grid = ("first", "image_sizes")
  found = structure(published) | form.options(state_dict, config or {})
  return {option: value for option, value in found.items() if option not in of_grid}


def structure(published: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the options that the published names and shapes of a ViT's parameters tell, stacked blocks or not.

  Pooling that has no parameters is told as "gap".
  """
  shape = {name: np.shape(array) for name, array in published.items()}
  by_kind: dict[str, list[str]] = {}
  for name in shape:
    _, block, rest = name.partition("Transformer/encoderblock")
    if block:
      by_kind.setdefault(rest.partition("/")[2], []).append(name)
  found: dict[str, Any] = {"pool_type": "map" if "MAPHead_0/probe" in shape else "tok" if "cls" in shape else "gap"}
  if "embedding/kernel" in shape:
    found |= {"width": shape["embedding/kernel"][-1], "patch_size": shape["embedding/kernel"][:2]}
  if norms := by_kind.get("LayerNorm_0/scale"):
    found["depth"] = len(norms) if len(shape[norms[0]]) == 1 else shape[norms[0]][0]
  first, second = (by_kind.get(f"MlpBlock_0/Dense_{n}/kernel") for n in (0, 1))
  if first and second:
    found["mlp_dim"] = shape[second[0]][-2]
    found["swiglu"] = shape[first[0]][-1] == 2 * found["mlp_dim"]
  return found | {
    "qkv_bias": "MultiHeadDotProductAttention_0/query/bias" in by_kind,
    "registers": shape["registers"][1] if "registers" in shape else 0,
    "fc_norm": "fc_norm/scale" in shape,
    "rep_size": shape["pre_logits/kernel"][-1] if "pre_logits/kernel" in shape else False,
    "posemb": "learn" if "pos_embedding" in shape else "sincos2d",
    "num_classes": shape["head/kernel"][-1] if "head/kernel" in shape else None,
  }
