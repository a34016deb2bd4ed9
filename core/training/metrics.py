"""`metrics.jsonl`: one JSON object a logged step, on disk as soon as it is known, cut back on resume."""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from core import files, text_lines
from core.errors import UserError


class MetricsLog:
  """Appends to a run's `metrics.jsonl`.

  Keys under `time/` are measurements of the machine; all others repeat exactly when the run is repeated or resumed.

  Args:
    path: the file, on disk or in a bucket.
    resume_step: lines of later steps are dropped, because those steps are about to be taken again.
    writes: False for processes other than the first: they follow what is in the log but do not touch the file.

  Raises:
    UserError: it cannot be read or written.
  """

  def __init__(self, path: str | os.PathLike, *, resume_step: int = 0, writes: bool = True):
    try:
      kept = [line for line in read(path) if line["step"] <= resume_step]
      text = "".join(json.dumps(line) + "\n" for line in kept)
      self._file = files.GrowingFile(path, text) if writes else None
    except OSError as error:
      raise UserError(f"{os.fspath(path)}: cannot be read or written ({files.reason(error)})") from None
    self._values: dict[int, dict[str, Any]] = {}
    for line in kept:
      self._values.setdefault(line["step"], {}).update(line)

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Adds one line of numbers; NumPy scalars become plain ones, every float32 digit kept."""
    line = {"step": step, **{key: _number(value) for key, value in values.items()}}
    self._values.setdefault(step, {}).update(line)
    if self._file is not None:
      self._file.write(json.dumps(line) + "\n")

  def at(self, step: int) -> dict[str, Any]:
    """Returns all that has been logged of `step`, before a resume too."""
    return self._values.get(step, {})

  def flush(self) -> None:
    """Sends what a bucket does not have yet; call it before a checkpoint, which must not know more than the log."""
    if self._file is not None:
      self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    if self._file is not None:
      self._file.close()


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Returns the lines of a `metrics.jsonl`, none where there is no file, without what a killed run left half-written.

  Raises:
    OSError: it cannot be read.
  """
  lines = []
  for text in text_lines.of_bytes(files.read_bytes(path) or b""):
    try:
      line = json.loads(text.decode(errors="replace"))
    except ValueError:
      continue
    if isinstance(line, dict) and isinstance(line.get("step"), int):
      lines.append(line)
  return lines


def first_non_finite(values: Mapping[str, Any], keys: tuple[str, ...] = ("training_loss", "l2_grads")) -> str | None:
  """Returns the first of `keys` whose value is NaN or infinite, as `"training_loss is nan"`."""
  return next((f"{key} is {values[key]}" for key in keys if key in values and not math.isfinite(values[key])), None)


def _number(value: Any) -> Any:
  return np.asarray(value).item() if isinstance(value, np.ndarray | np.generic) else value
