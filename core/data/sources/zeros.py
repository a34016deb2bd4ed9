"""Examples of zeros, which take no memory: the shapes of an input without its data."""

import numpy as np

from core.data import split as splits
from core.data.columns import Columns, describer, select
from core.recipe import sources


def read(data: sources.Zeros, where: str) -> Columns:
  """Returns an array of zeros [examples, *shape] for each entry of `spec`.

  Raises:
    UserError: no such split.
  """
  pieces = splits.of_source({"all": [data.examples]}, f"{where}.split")
  parts = pieces(data.split)
  zeros = {key: np.zeros((), entry.dtype) for key, entry in data.spec.items()}
  table = {key: np.broadcast_to(zeros[key], (data.examples, *entry.shape)) for key, entry in data.spec.items()}

  def noun(_: str, row: int) -> str:
    return f"row {row} of {data.name}"

  return Columns(f"{data.name} {data.split}", select({"all": table}, parts), describer(parts, noun), pieces=pieces)
