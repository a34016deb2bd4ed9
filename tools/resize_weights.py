"""Any ViT's weights for patches and images of another size, as a file of the published layout.

./bazelw run //tools:resize_weights -- --weights=howto-i21k-B/16 --patch_size=32 --image_size=384 --output=b32.npz
"""

import math
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from core import command, files, trees
from core.checkpoint import pretrained
from core.errors import UserError
from core.models import patch_resize, vit_layouts, weights

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

  named = vit_layouts.current(weights.read_file("vit", flags.weights), {})
  grid = (image[0] // patch[0], image[1] // patch[1])
  resized = resize(named, patch, grid, centers=flags.positions == "centers", source=flags.weights)
  pretrained.save_params(output, trees.from_names(resized))
  for name in ("embedding/kernel", "pos_embedding"):
    if name in named:
      print(f"{name}: {_shape(named[name])} -> {_shape(resized[name])}")
  print(f"written to {output}")
  return 0


def resize(
  named: dict[str, np.ndarray], patch_size: tuple[int, int], grid: tuple[int, int], *, centers: bool, source: str
) -> dict[str, np.ndarray]:
  """Returns a ViT's parameters by name, for patches of that size, `grid` = (rows, columns) of them an image.

  Args:
    named: under the published names, as `core.models.weights.read_file` gives them.
    patch_size: pixels (height, width).
    grid: rows and columns.
    centers: resize the position embedding by FlexiViT's rule (`core.models.patch_resize.resize_grid`).
    source: begins the line of an error.

  Raises:
    UserError: these are not the weights of a ViT, or positions that cannot be resized.
  """
  kernel = named.get("embedding/kernel")
  if kernel is None or kernel.ndim != 4:
    raise UserError(f"{source}: no weights of a ViT: they have no embedding/kernel [height, width, channels, width]")
  resized = {**named, "embedding/kernel": patch_resize.resample_patch_embedding(kernel, patch_size)}
  if "pos_embedding" in named:
    resized["pos_embedding"] = _resize_positions(named["pos_embedding"], grid, centers)
  return resized


def _resize_positions(
  positions: Float[np.ndarray, "1 tokens dim"], grid: tuple[int, int], centers: bool
) -> Float[np.ndarray, "1 new_tokens dim"]:
  side = math.isqrt(positions.shape[1])
  if not centers and grid[0] == grid[1]:
    return weights.resample_posemb(positions, np.empty((1, grid[0] * grid[1], 0)))
  if side**2 != positions.shape[1]:
    raise UserError(f"pos_embedding: {positions.shape[1]} positions are no square grid, and only those can be resized")
  if not centers:
    raise UserError(f"--positions=corners makes square grids only, not {grid[0]}x{grid[1]}; try --positions=centers")
  return patch_resize.resize_grid(positions, (side, side), grid)


def _pair(name: str, text: str) -> tuple[int, int]:
  match = re.fullmatch(r"([1-9]\d{0,5})(?:x([1-9]\d{0,5}))?", text, flags=re.ASCII)
  if not match:
    raise UserError(f"--{name}={text} must be a number of pixels or HEIGHTxWIDTH")
  return int(match[1]), int(match[2] or match[1])


def _shape(array: np.ndarray) -> str:
  return "x".join(map(str, array.shape))


if __name__ == "__main__":
  command.run(main)
