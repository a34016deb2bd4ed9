"""Where the data files of this repository lie: class names, vocabularies, a catalog, small weights.

A data file is named by its path from the repository's root. A program of Bazel finds it among its runfiles; a bundle, a
checkout and an installed package have it beside the sources.
"""

import functools
import os
from pathlib import Path

from runfiles import Runfiles

_WORKSPACE = "vision"
_ROOT = Path(__file__).parents[1]


def find(path: str) -> Path:
  """Returns where a data file, or a folder of them, lies.

  Args:
    path: from the repository's root, `core/checkpoint/catalog.json`.

  Raises:
    FileNotFoundError: it is not there. A target of Bazel has what its `data` and that of its `deps` name.
  """
  own = _runfiles()
  places = [Path(place) for place in (own and own.Rlocation(f"{_WORKSPACE}/{path}"), _ROOT / path) if place]
  for place in places:
    if place.exists():
      return place
  raise FileNotFoundError(f"no data file {path} in {places[0].parent}; a target of Bazel names it in its data")


@functools.cache
def _runfiles() -> Runfiles | None:
  """Returns the runfiles that this module is one of; None where Bazel did not start this program.

  A program that Bazel did start hands its variables down to others: to a bundle, or to another checkout. Those have
  data files of their own.
  """
  try:
    found = Runfiles.Create()
  except OSError:  # The manifest of a program that is gone.
    return None
  this = found and found.Rlocation(f"{_WORKSPACE}/core/data_files.py")
  return found if this and os.path.exists(this) and os.path.samefile(this, __file__) else None
