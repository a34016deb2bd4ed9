"""The layouts of ViT files through the years, brought to that of today's model.

Weights are flat dicts here, as in `weights`. A file of today comes back as it is.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from core import trees
from core.models import weights

_POSITIONS = {"Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding"}
_MAP_HEAD = ("probe", "MlpBlock_0", "MultiHeadDotProductAttention_0", "LayerNorm_0")


def current(loaded: dict[str, Any], init: dict[str, Any]) -> dict[str, Any]:
  """Returns `loaded` under today's names and in today's shapes.

  In older files

  - all of a module's children are counted together (before flax.linen), `LayerNorm_0, MultiHeadDotProductAttention_1,
    LayerNorm_2`;
  - the position embedding stands in the encoder, or in a module of its own there;
  - the parameters of the MAP head stand at the root (during the development of ViT-G, Zhai et al. 2022).

  And in those of NaFlex (SigLIP 2, Tschannen et al. 2025), which cuts patches beforehand, the patch embedding is a
  matrix [patch_height * patch_width * channels, width]. Positions stay as they are: `core.models.grids` knows whose
  they are.

  Args:
    loaded: the file's parameters.
    init: the model's; only shapes are read.
  """
  named = dict(trees.flatten_with_names(weights.renumber_modules(trees.from_names(loaded))))
  named = {_current_name(name, inlined="probe" in named): array for name, array in named.items()}
  if "embedding/kernel" in named:
    named["embedding/kernel"] = _as_convolution(named["embedding/kernel"], init)
  return named


def is_older(loaded: dict[str, Any]) -> bool:
  """Tells whether the position embedding has a name from when class tokens had positions, too."""
  return not _POSITIONS.isdisjoint(loaded)


def _current_name(name: str, inlined: bool) -> str:
  if name in _POSITIONS:
    return "pos_embedding"
  return f"MAPHead_0/{name}" if inlined and name.split("/")[0] in _MAP_HEAD else name


def _as_convolution(
  kernel: Float[np.ndarray, "*patch width"], init: dict[str, Any]
) -> Float[np.ndarray, "*patch width"]:
  """Returns [side, side, channels, width] of [side * side * channels, width], pixels in the order of an image."""
  if kernel.ndim != 2 or "embedding/kernel" not in init:
    return kernel
  channels = init["embedding/kernel"].shape[2]
  side = math.isqrt(len(kernel) // channels)
  return kernel.reshape(side, side, channels, -1) if side * side * channels == len(kernel) else kernel
