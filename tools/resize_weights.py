"""Any ViT's weights for patches and images of another size, as a file of the published layout.

./bazelw run //tools:resize_weights -- --weights=howto-i21k-B/16 --patch_size=32 --image_size=384 --output=b32.npz
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from core import command, files, trees
from core.checkpoint import pretrained
from core.errors import UserError, naming
from core.models import grids, patch_resize, vit_layouts, weights

_POSITIONS = ("corners", "centers")

_COMMAND = command.Command("resize_weights --weights=W --patch_size=P --image_size=N --output=FILE.npz [options]")
_COMMAND.text(
  "weights",
  "a file, URL or published name of any ViT, all that a config's model_init may be",
  shown="W",
  required=True,
)
_COMMAND.text(
  "patch_size",
  "pixels of a patch, or HEIGHTxWIDTH; the patch embedding is resized by FlexiViT's pseudo-inverse: patches of an "
  "image resized alike keep their tokens",
  shown="P",
  required=True,
)
_COMMAND.text("image_size", "pixels of an image, or HEIGHTxWIDTH, a multiple of the patches", shown="N", required=True)
_COMMAND.text("output", "where the weights go", shown="FILE.npz", required=True)
_COMMAND.text(
  "grid",
  "rows and columns of the patches for which the weights were made, ROWSxCOLUMNS, where the file does not tell: a "
  "square one if need be",
  shown="G",
)
_COMMAND.choice(
  "positions",
  _POSITIONS,
  "how the position embedding is resized: with the corners kept, as ViTs are fine-tuned at another resolution (the "
  "default), or by the centers of the patches, as a FlexiViT does in its forward pass: the file is then the plain ViT "
  "that this FlexiViT is at that size",
  default=_POSITIONS[0],
)


def main(argv: Sequence[str]) -> int:
  """Writes the resized weights and prints what changed; returns the exit status."""
  flags, _ = _COMMAND.parse(argv or ["--help"])
  patch, image = (_pair(name, getattr(flags, name)) for name in ("patch_size", "image_size"))
  if image[0] % patch[0] or image[1] % patch[1]:
    raise UserError(f"--image_size={flags.image_size} is no multiple of --patch_size={flags.patch_size}")
  output = files.from_here(flags.output)
  if output.suffix != ".npz":
    raise UserError(f"--output={output} must end in .npz")
  if output.exists():
    raise UserError(f"--output: {output} is there already; nothing is overwritten")

  loaded, of_file = weights.read_file_and_options("vit", flags.weights)
  new = grids.of_image(image, patch)
  named, old = _by_patches(loaded, of_file, new, flags)
  resized = resize(named, patch, old, new, centers=flags.positions == "centers", source=flags.weights)
  pretrained.save_params(output, trees.from_names(resized), grids={} if old is None else {"pos_embedding": new})
  for name in ("embedding/kernel", "pos_embedding"):
    if name in named:
      print(f"{name}: {_shape(named[name])} -> {_shape(resized[name])}")
  print(f"written to {output}")
  return 0


def _by_patches(
  loaded: dict[str, np.ndarray], of_file: dict[str, Any], new: grids.Grid, flags: Any
) -> tuple[dict[str, np.ndarray], grids.Grid | None]:
  """Returns the parameters under today's names, with the positions of the patches alone; and their grid."""
  named = vit_layouts.current(loaded, {})
  facts = grids.facts(of_file, named)
  if flags.grid:
    facts["told"] = [_pair("grid", flags.grid)]
  with naming(flags.weights):
    return grids.split(named, model=new, **facts)


def resize(
  named: dict[str, np.ndarray],
  patch_size: tuple[int, int],
  old: grids.Grid | None,
  new: grids.Grid,
  *,
  centers: bool,
  source: str,
) -> dict[str, np.ndarray]:
  """Returns a ViT's parameters by name, for patches of that size and another grid.

  Args:
    named: under today's names, positions those of the patches alone.
    patch_size: pixels (height, width).
    old: rows and columns of the file's grid; None without a position embedding.
    new: rows and columns wanted.
    centers: resize the position embedding by FlexiViT's rule (`core.models.patch_resize.resize_grid`).
    source: begins the line of an error.

  Raises:
    UserError: these are not the weights of a ViT.
  """
  kernel = named.get("embedding/kernel")
  if kernel is None or kernel.ndim != 4:
    raise UserError(f"{source}: no weights of a ViT: they have no embedding/kernel [height, width, channels, width]")
  resized = {**named, "embedding/kernel": patch_resize.resample_patch_embedding(kernel, patch_size)}
  if old is not None:
    resizing = patch_resize.resize_grid if centers else patch_resize.resize_grid_by_corners
    resized["pos_embedding"] = resizing(named["pos_embedding"], old, new)
  return resized


def _pair(name: str, text: str) -> tuple[int, int]:
  match = re.fullmatch(r"([1-9]\d{0,5})(?:x([1-9]\d{0,5}))?", text, flags=re.ASCII)
  if not match:
    raise UserError(f"--{name}={text} must be a number of pixels or HEIGHTxWIDTH")
  return int(match[1]), int(match[2] or match[1])


def _shape(array: np.ndarray) -> str:
  return "x".join(map(str, array.shape))


if __name__ == "__main__":
  command.run(main)
