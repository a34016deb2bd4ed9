"""`metrics.jsonl`: one JSON object a logged step, on disk as soon as it is known, cut back on resume."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from core import files


class MetricsLog:
  """Appends to a run's `metrics.jsonl`.

  Keys under `time/` are measurements of the machine; all others repeat exactly when the run is repeated or resumed.

  Args:
    path: the file.
    resume_step: lines of later steps are dropped, because those steps are about to be taken again.
    writes: False for processes other than the first: they follow what is in the log but do not touch the file.
  """

  def __init__(self, path: Path, *, resume_step: int = 0, writes: bool = True):
    kept = [line for line in read(path) if line["step"] <= resume_step] if path.exists() else []
    self._values: dict[int, dict[str, Any]] = {}
    for line in kept:
      self._values.setdefault(line["step"], {}).update(line)
    self._file = None
    if writes:
      with files.replacing(path) as file:
        file.write("".join(json.dumps(line) + "\n" for line in kept).encode())
      self._file = path.open("a", buffering=1)

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Adds one line of numbers; NumPy scalars become plain ones, every float32 digit kept."""
    line = {"step": step, **{key: _number(value) for key, value in values.items()}}
    self._values.setdefault(step, {}).update(line)
    if self._file is not None:
      self._file.write(json.dumps(line) + "\n")

  def at(self, step: int) -> dict[str, Any]:
    """All that has been logged of `step`, before a resume too."""
    return self._values.get(step, {})

  def close(self) -> None:
    """Closes the file."""
    if self._file is not None:
      self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
  """The lines of a `metrics.jsonl`; a last line that a killed run left half-written is passed over."""
  lines = []
  for text in path.read_text().splitlines():
    try:
      lines.append(json.loads(text))
    except ValueError:
      continue
  return lines


def first_non_finite(values: Mapping[str, Any], keys: tuple[str, ...] = ("training_loss", "l2_grads")) -> str | None:
  """The first of `keys` whose value is NaN or infinite, as `"training_loss is nan"`."""
  return next((f"{key} is {values[key]}" for key in keys if key in values and not math.isfinite(values[key])), None)


def _number(value: Any) -> Any:
  return np.asarray(value).item() if isinstance(value, np.ndarray | np.generic) else value
