"""The handwritten digits that ship with scikit-learn: 1,797 grey images of 8x8, enough to see a model learn.

E. Alpaydin, C. Kaynak 1998, "Optical recognition of handwritten digits" (UCI), its test set. Read from the package's
data file without importing the package, which would take seconds.
"""

import gzip
import importlib.util
import pathlib

import numpy as np
from jaxtyping import Int64, UInt8

from core.data import order
from core.data import split as splits
from core.data.columns import Columns, describer, select
from core.errors import UserError
from core.recipe import sources

NUM_CLASSES = 10
_TEST_PER_CLASS = 36  # 360 of 1,797, a fifth.
_SPLIT_SEED = 0


def load(**options) -> Columns:
  """Returns the columns that `read` gives for the arguments of `core.recipe.sources.Digits`."""
  return read(sources.Digits(**options), "digits")


def read(data: sources.Digits, where: str) -> Columns:
  """Returns `image`, uint8 [n, 8, 8, 1] in 0..255, and `label`, int64 [n]; the split `test` has 36 images a class.

  Raises:
    UserError: scikit-learn is not installed, or no such split.
  """
  image, label = _table(where)
  in_test = np.zeros(len(label), bool)
  for digit in range(NUM_CLASSES):
    members = np.flatnonzero(label == digit)
    in_test[members[order.permutation(len(members), _SPLIT_SEED, digit)[:_TEST_PER_CLASS]]] = True
  rows = {"train": np.flatnonzero(~in_test), "test": np.flatnonzero(in_test)}
  pieces = splits.of_source({key: [len(found)] for key, found in rows.items()}, f"{where}.split")
  parts = pieces(data.split)
  arrays = {key: {"image": image[found], "label": label[found]} for key, found in rows.items()}

  def noun(part: str, row: int) -> str:
    return f"row {rows[part][row]} of digits.csv"

  return Columns(f"digits {data.split}", select(arrays, parts), describer(parts, noun), pieces=pieces)


def _table(where: str) -> tuple[UInt8[np.ndarray, "n 8 8 1"], Int64[np.ndarray, "n"]]:
  spec = importlib.util.find_spec("sklearn")
  file = spec and pathlib.Path(spec.submodule_search_locations[0]) / "datasets/data/digits.csv.gz"
  if not file or not file.exists():
    raise UserError(f"{where}: the digits ship with scikit-learn, which is not installed; install scikit-learn")
  with gzip.open(file, "rt") as lines:
    table = np.loadtxt(lines, delimiter=",", dtype=np.float32)
  # Grey levels 0..16 become 0..255, the range that every image op expects.
  image = np.round(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
  return image, table[:, 64].astype(np.int64)
