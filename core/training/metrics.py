"""`metrics.jsonl`: one JSON object a logged step, on disk as soon as it is known, cut back on resume."""

import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from core import files
from core.errors import UserError


class MetricsLog:
  """Appends to a run's `metrics.jsonl`.

  Keys under `time/` are measurements of the machine; all others repeat exactly when the run is repeated or resumed.

  Args:
    path: the file, on disk or in a bucket.
    resume_step: lines of later steps are dropped, because those steps are about to be taken again.
    writes: False for processes other than the first: they follow what is in the log but do not touch the file.
    warn: called with one line where something in the file is no line of a run; the file is set aside then.

  Raises:
    UserError: it cannot be read or written.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    *,
    resume_step: int = 0,
    writes: bool = True,
    warn: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
  ):
    try:
      lines, damaged = _read(path)
      if damaged and writes:
        aside = files.set_aside(path)
        warn(f"warning: {os.fspath(path)}: {damaged:,} lines are damaged and left out; set aside as {aside.name}")
      kept = [line for line in lines if line["step"] <= resume_step]
      text = "".join(json.dumps(line) + "\n" for line in kept)
      self._file = files.GrowingFile(path, text) if writes else None
    except OSError as error:
      raise UserError(f"{os.fspath(path)}: cannot be read or written ({files.reason(error)})") from None
    self._lines: dict[int, list[dict[str, Any]]] = {}
    for line in kept:
      self._lines.setdefault(line["step"], []).append(line)

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Adds one line of numbers; NumPy scalars become plain ones, every float32 digit kept."""
    line = {"step": step, **{key: _number(value) for key, value in values.items()}}
    self._lines.setdefault(step, []).append(line)
    if self._file is not None:
      self._file.write(json.dumps(line) + "\n")

  def line(self, step: int, key: str) -> dict[str, Any] | None:
    """Returns the last line of `step` that holds `key`, also one from before a resume; None where there is none."""
    return next((line for line in reversed(self._lines.get(step, [])) if key in line), None)

  def flush(self) -> None:
    """Sends what a bucket does not have yet; call it before a checkpoint, which must not know more than the log."""
    if self._file is not None:
      self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    if self._file is not None:
      self._file.close()


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Returns the lines of a `metrics.jsonl`, none where there is no file, without those that are none.

  Raises:
    OSError: it cannot be read.
  """
  return _read(path)[0]


def _read(path: str | os.PathLike) -> tuple[list[dict[str, Any]], int]:
  """Returns the lines, and how many are damaged; what a killed run left half-written at the end is not counted."""
  *whole, rest = (files.read_bytes(path) or b"").split(b"\n")
  found = [_parse(line) for line in whole]
  lines = [line for line in [*found, _parse(rest)] if line is not None]
  return lines, found.count(None)


def _parse(text: bytes) -> dict[str, Any] | None:
  try:
    line = json.loads(text)
  except (ValueError, RecursionError):
    return None
  return line if isinstance(line, dict) and type(line.get("step")) is int else None


def first_non_finite(values: Mapping[str, Any], keys: tuple[str, ...] = ("training_loss", "l2_grads")) -> str | None:
  """Returns the first of `keys` whose value is NaN or infinite, as `"training_loss is nan"`."""
  return next((f"{key} is {values[key]}" for key in keys if key in values and not math.isfinite(values[key])), None)


def _number(value: Any) -> Any:
  return np.asarray(value).item() if isinstance(value, np.ndarray | np.generic) else value
