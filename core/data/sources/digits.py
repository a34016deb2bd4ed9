"""The handwritten digits that ship with scikit-learn: 1,797 grey images of 8x8, enough to see a model learn.

E. Alpaydin, C. Kaynak 1998, "Optical recognition of handwritten digits" (UCI), its test set. Read from the package's
data file without importing the package, which would take seconds.
"""

import gzip
import importlib.util
import pathlib

import numpy as np

from core.data import order
from core.data import split as splits
from core.data.columns import Columns, describer, select
from core.errors import UserError

NUM_CLASSES = 10
_TEST_PER_CLASS = 36  # 360 of 1,797, a fifth.
_SPLIT_SEED = 0


def load(*, split: str, name: str = "digits") -> Columns:
  """`image` uint8 [n, 8, 8, 1] in 0..255 and `label` int64 [n]; splits `train` (1,437) and `test` (360, 36 a class).

  Raises:
    UserError: scikit-learn is not installed, or no such split.
  """
  image, label = _read()
  in_test = np.zeros(len(label), bool)
  for digit in range(NUM_CLASSES):
    members = np.flatnonzero(label == digit)
    in_test[members[order.permutation(len(members), _SPLIT_SEED, digit)[:_TEST_PER_CLASS]]] = True
  rows = {"train": np.flatnonzero(~in_test), "test": np.flatnonzero(in_test)}
  parts = splits.ranges(split, {key: len(found) for key, found in rows.items()}, "dataset digits")
  arrays = {key: {"image": image[found], "label": label[found]} for key, found in rows.items()}
  return Columns(
    f"digits {split}", select(arrays, parts), describer(parts, lambda part, row: f"row {rows[part][row]} of digits.csv")
  )


def _read() -> tuple[np.ndarray, np.ndarray]:
  spec = importlib.util.find_spec("sklearn")
  file = spec and pathlib.Path(spec.submodule_search_locations[0]) / "datasets/data/digits.csv.gz"
  if not file or not file.exists():
    raise UserError("dataset digits: it ships with scikit-learn, which is not installed; install scikit-learn")
  with gzip.open(file, "rt") as lines:
    table = np.loadtxt(lines, delimiter=",", dtype=np.float32)
  # Grey levels 0..16 become 0..255, the range that every image op expects.
  image = np.round(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
  return image, table[:, 64].astype(np.int64)
