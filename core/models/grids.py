"""Grids of patches: which positions of a file are of which row and column, and for which a model was made.

The shape of a position embedding, [1, positions, width], tells their number alone, and 576 positions are 24x24 or
18x32. A model's grid is noted where its parameters are made, a file's comes from what stands beside its weights. Files
of old say nothing; they are of square grids, as all published ones are, unless they have just the model's number.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core import trees
from core.errors import UserError

Grid = tuple[int, int]  # Rows, columns.

# A Mixer's first parameter that is bound to the grid, and the parameter of a ViT.
MIXED, EMBEDDED = "MixerBlock_0/token_mixing/Dense_0/kernel", "pos_embedding"

_MADE: dict[int, set[Grid]] = {}


def note(rows: int, columns: int) -> None:
  """Notes, while a model's parameters are made, that so many positions are of this grid in this process."""
  _MADE.setdefault(rows * columns, set()).add((rows, columns))


def of_model(positions: int) -> Grid | None:
  """Returns the grid for which a model of so many positions was made in this process.

  A model that was never made, of which a caller knows the shapes by other means, has a square one; None if it cannot.

  Raises:
    UserError: models of different grids of so many positions were made, and none of them is meant by its number.
  """
  made = sorted(_MADE.get(positions, ()))
  if len(made) > 1:
    raise UserError(f"pos_embedding: the model's {positions} positions may be {_or(made)}: `load` takes its grid")
  return made[0] if made else square(positions)


def square(positions: int) -> Grid | None:
  """Returns the square grid of so many positions; None if there is none."""
  side = math.isqrt(positions)
  return (side, side) if side and side**2 == positions else None


def of_image(image_size: Sequence[int], patch_size: Sequence[int]) -> Grid:
  """Returns the grid of patches in an image of (height, width) pixels."""
  rows, columns = (pixels // patch for pixels, patch in zip(image_size, patch_size))
  return rows, columns


def noted(params: trees.PyTree) -> dict[str, list[int]]:
  """Returns the grids of a ViT's position embeddings and of a Mixer's weights, by name: what their file is to tell.

  A grid that was never noted, or one of several of the same number, is left out.
  """
  named = dict(trees.flatten_with_names(params))
  found = {}
  for name, array in named.items():
    # A text's tokens, whose positions are no grid, have no patches beside them.
    for last, axis, patches in ((EMBEDDED, 1, "embedding/kernel"), (MIXED, 0, "stem/kernel")):
      is_one = name.endswith(last) and np.ndim(named.get(name.removesuffix(last) + patches)) == 4
      if is_one and len(made := _MADE.get(np.shape(array)[axis], set())) == 1:
        found[name] = list(*made)
  return found


def are_those_of(told: Mapping[str, Grid], params: trees.PyTree) -> bool:
  """Tells whether a file of a model's own names and shapes is of its grids; one that tells nothing is of square ones.

  Args:
    told: grids that the file's note tells, by name.
    params: the model's parameters.
  """
  return all(told.get(name, square(math.prod(grid))) == tuple(grid) for name, grid in noted(params).items())


def of_file(
  positions: int, *, first: Sequence[int], told: Sequence[Grid] = (), model: Grid | None = None, exact: bool = False
) -> tuple[int, Grid]:
  """Returns how many positions of a file belong to tokens before the patches, and the grid of the others.

  Args:
    positions: the file's, all of them.
    first: how many those tokens' may be: (0, 1) with a class token that may have a position or none.
    told: grids that the file's own metadata may mean, the likeliest first.
    model: the grid that they are wanted for, if it is known.
    exact: the file is of the layout in which no other token has a position.

  Raises:
    UserError: it may be of several grids, which are named, or of none.
  """
  wanted = model and math.prod(model)
  for grid in told:
    if (rest := positions - math.prod(grid)) in first:
      return rest, grid
  if told:
    raise UserError(
      f"pos_embedding: {positions} positions are not those of a grid of {_or(told)}, which is what is told of the file"
    )
  if exact and model and wanted == positions and square(positions) is None:
    return 0, model
  found = {(n, grid) for n in first if (grid := square(positions - n))}
  found |= {(n, model) for n in first if model and positions - n == wanted}
  if len(found) == 1:
    return found.pop()
  told_grids = sorted({grid for _, grid in found})
  if not found:
    of_model = f"the model's grid is {_shown(model)}" if model else "the model's grid is not known"
    raise UserError(
      f"pos_embedding: {positions} positions are no square grid, and the file does not tell theirs; {of_model}"
    )
  raise UserError(
    f"pos_embedding: {positions} positions may be {_or(told_grids)} patches, and the file does not tell; "
    f"tools:resize_weights --grid={_shown(told_grids[0])} writes a file that does"
  )


def facts(of_file: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what stands beside a file's weights of its grid, as `split` takes it.

  Args:
    of_file: its `grids`; or its `image_sizes`, each (height, width) in pixels; and `first`, as for `of_file`.
    named: its parameters, under today's names.
  """
  found = {"first": tuple(of_file["first"])} if "first" in of_file else {}
  patch = np.shape(named.get("embedding/kernel"))
  sizes = of_file.get("image_sizes", ()) if len(patch) == 4 else ()
  return found | {"told": [*of_file.get("grids", ()), *(of_image(size, patch) for size in sizes)]}


def split(
  named: Mapping[str, Any], *, first: Sequence[int] | None = None, **known: Any
) -> tuple[dict[str, Any], Grid | None]:
  """Returns parameters whose position embedding is the patches' alone, and its grid.

  What the class token and the registers before the patches have of it is added to them: their sum is what the encoder
  sees.

  Args:
    named: a ViT's parameters, under today's names.
    first: see `of_file`; by default none, or that of a class token.
    known: see `of_file`.

  Raises:
    UserError: as `of_file`.
  """
  positions = named.get("pos_embedding")
  if np.ndim(positions) not in (2, 3):
    return dict(named), None
  told = known.pop("told", ())
  if np.ndim(positions) == 3 and len(positions) > 1:  # Rows and columns apart, as NaFlex keeps them.
    told = (positions.shape[:2],)
  positions = positions.reshape(1, -1, positions.shape[-1])
  first = first if first is not None else ((0, 1) if "cls" in named else (0,))
  count, grid = of_file(positions.shape[1], first=first, told=told, **known)
  named = {**named, "pos_embedding": positions[:, count:]}
  start = 0
  for name in ("cls", "registers"):
    if name in named and start < count:
      tokens = np.asarray(named[name], np.float32)
      own = np.asarray(positions[:, start : min(count, start + tokens.shape[1])], np.float32)
      start += own.shape[1]
      named[name] = np.concatenate([tokens[:, : own.shape[1]] + own, tokens[:, own.shape[1] :]], axis=1)
  return named, grid


def _shown(grid: Sequence[int]) -> str:
  return "x".join(map(str, grid))


def _or(grids: Sequence[Grid]) -> str:
  return " or ".join(map(_shown, grids))
