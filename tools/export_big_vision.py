"""Writes a model's weights as big_vision's own checkpoints are read: `params/NAME` in one `.npz` file.

Its `load_params("FILE.npz")` gives the parameters, `FILE.npz:img` a tower, and `load_checkpoint_np` a tree that holds
them under `params`. Blocks that `scan` stacks stay stacked: its ViT reads either form, its text transformer its own.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

from core import trees
from core.checkpoint import pretrained
from core.errors import UserError, first_few
from core.models import grids
from core.recipe.models.bert import Bert
from core.recipe.models.mixer import Mixer
from core.recipe.models.nfnet import NFNet
from core.recipe.models.options import ModelOptions
from core.recipe.models.text_transformer import TextTransformer
from core.recipe.models.towers import OneTower, TwoTowers
from core.recipe.models.vit import ViT

# What its models compute, whatever a config says; all else that differs shows in the parameters' names or is no matter.
_FIXED: dict[type, dict[str, Any]] = {
  ViT: dict(gelu="tanh", norm_eps=1e-6, swiglu=False, qkv_bias=True, registers=0, fc_norm=False),
  TextTransformer: dict(gelu="tanh", norm_eps=1e-6, posemb="learn", head_bias=True),
  Bert: dict(gelu="tanh", norm_eps=1e-12),
  Mixer: dict(gelu="tanh"),
}


def write(output: Path, family: str, model: Any, params: Any, inputs: Any) -> None:
  """Writes the file.

  Raises:
    UserError: big_vision has no such model.
  """
  del family, inputs
  if output.suffix != ".npz":
    raise UserError(f"--output={output} must end in .npz")
  for where, options in _parts("model", model.options):
    _check(where, options)
  # An image's positions alone, which have the patches' kernel beside them.
  for name, array in (named := dict(trees.flatten_with_names(params))).items():
    tower = name.removesuffix("pos_embedding")
    if name != tower and f"{tower}embedding/kernel" in named and math.isqrt(array.shape[1]) ** 2 + 1 == array.shape[1]:
      raise UserError(
        f"--to=big_vision: {name} has {array.shape[1]} positions, of which its reader takes the first for a class "
        "token's; give another --image_size"
      )
  pretrained.save_params(output, {"params": params}, grids=grids.noted(params))


def _parts(where: str, options: ModelOptions) -> list[tuple[str, ModelOptions]]:
  """Returns the options of a model's towers, or of a model that has none, with their paths in the config."""
  if isinstance(options, TwoTowers):
    return [(f"{where}.image", options.image), (f"{where}.text", options.text)]
  return [(f"{where}.image", options.image)] if isinstance(options, OneTower) else [(where, options)]


def _check(where: str, options: ModelOptions) -> None:
  """Refuses what big_vision has no model for.

  Raises:
    UserError: names the options that it has otherwise.
  """
  if isinstance(options, NFNet):
    raise UserError("--to=big_vision: it has no nfnet; try --to=npz")
  fixed = next((fixed for kind, fixed in _FIXED.items() if isinstance(options, kind)), {})
  names = {field.name for field in dataclasses.fields(options)}
  differ = [
    f"{where}.{key}={getattr(options, key)!r}, there {value!r}"
    for key, value in fixed.items()
    if key in names and getattr(options, key) != value
  ]
  if differ:
    raise UserError(f"--to=big_vision: it computes otherwise: {first_few(differ, joint='; ')}")
