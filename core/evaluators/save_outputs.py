"""Writes what a model gives for each example of a dataset to one file, in the order of the split."""

import contextlib
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Int

from core import files
from core.errors import UserError
from core.evaluators import batches, features
from core.state import Batch, Predict, TrainState


class Evaluator:
  """An `.npz` file of named outputs, one row an example; the metric `examples` is how many there are.

  `_id` is each row's index in the split: 0, 1, 2, ... bfloat16 is written as float32. The file appears when it is
  whole, in place of that of the evaluation before. Memory holds a few batches at a time; until it is whole, the rows
  lie in a hidden folder beside the file, so that the disk needs room for them twice. The first process alone writes.

  Args:
    predict: `(params, batch) -> (output, intermediates)`.
    sharding: how a batch lies on the devices.
    data: the dataset, `{"name": ..., "split": ...}`.
    pp_fn: preprocessing that leaves what the prediction reads, and what is to be saved with it.
    batch_size: examples a step over all devices.
    outputs: regexes, each of which must match a whole name: `output` (`output/NAME` if the prediction gives a dict), an
      intermediate (`pre_logits`, `encoder/block05/.*`), or an entry of the batch that holds numbers (`batch/label`).
    outfile: name of the file.
    cache: see `core.evaluators.batches.open_batches`.
    output_dir: where it goes.
  """

  def __init__(
    self,
    predict: Predict,
    *,
    sharding: NamedSharding,
    data: Mapping[str, Any],
    pp_fn: str,
    batch_size: int,
    outputs: str | Sequence[str] = ("output",),
    outfile: str = "outputs.npz",
    cache: bool | str | None = None,
    output_dir: Path | None = None,
  ):
    if Path(outfile).name != outfile or not outfile.endswith(".npz"):
      raise UserError(f"evals.outfile must be the name of an .npz file, without a folder, got {outfile!r}")
    if output_dir is None:
      raise UserError("evals: save writes a file, and this program has no folder for those of evaluators")
    self._path = output_dir / outfile
    patterns = _compile((outputs,) if isinstance(outputs, str) else tuple(outputs))
    self._extractor = features.Extractor(
      lambda params, batch: _select(features.named_outputs(predict, params, batch), batch, patterns), sharding
    )
    self.data = batches.open_batches(data, pp_fn, batch_size=batch_size, sharding=sharding, cache=cache)

  def check(self, state: TrainState) -> None:
    """Refuses, by the shapes of one batch, what the first evaluation would; `state` may be shapes, too.

    Raises:
      UserError: the data cannot be read or do not fit the model, a regex matches nothing, or something that has not one
        row an example.
    """
    self._extractor.shapes(state.params, self.data)

  def run(self, state: TrainState, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """Writes the file for `state.params`; None, and no file, if `interrupted()` became true on the way."""
    size = self.data.num_examples
    writes = jax.process_index() == 0
    with contextlib.ExitStack() as closing:
      rows = closing.enter_context(_Rows(self._path, size)) if writes else None
      pieces = closing.enter_context(contextlib.closing(self._extractor.pieces(state.params, self.data)))
      for ids, outputs in pieces:
        if rows is not None:
          rows.write(ids, outputs)
        if interrupted():
          return None
      if rows is not None:
        rows.finish()
    return {"examples": float(size)}


class _Rows:
  """A context that collects rows in files and joins these to an `.npz`; it leaves nothing else behind."""

  def __init__(self, path: Path, size: int):
    self._path, self._size = path, size
    self._folder = path.with_name(f".{path.name}.rows")
    self._open: dict[str, tuple[Any, int]] = {}
    self._closing = contextlib.ExitStack()

  def __enter__(self) -> "_Rows":
    shutil.rmtree(self._folder, ignore_errors=True)  # Of a run that was killed.
    self._folder.mkdir(parents=True)
    return self

  def __exit__(self, *_: object) -> None:
    self._closing.close()
    shutil.rmtree(self._folder, ignore_errors=True)

  def write(self, ids: Int[np.ndarray, "rows"], outputs: features.Outputs) -> None:
    """Puts each row at its place; rows that follow each other at once."""
    cuts = np.flatnonzero(np.diff(ids) != 1) + 1
    for name, values in {"_id": ids.astype(np.int64), **outputs}.items():
      file, start = self._open.get(name) or self._start(name, values)
      row_bytes = values[:1].nbytes
      for first, run in zip(np.split(ids, cuts), np.split(values, cuts)):
        if len(run):
          # Not through a memory map: a disk that is full must be an error rather than the end of the process.
          file.seek(start + int(first[0]) * row_bytes)
          file.write(np.ascontiguousarray(run).data)

  def finish(self) -> None:
    """Makes the `.npz`."""
    self._closing.close()
    with files.replacing(self._path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
      for number, name in enumerate(self._open):
        with (
          (self._folder / str(number)).open("rb") as part,
          archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry,
        ):
          shutil.copyfileobj(part, entry, 1 << 20)

  def _start(self, name: str, values: np.ndarray) -> tuple[Any, int]:
    file = self._closing.enter_context((self._folder / str(len(self._open))).open("wb"))
    header = {
      "descr": np.lib.format.dtype_to_descr(values.dtype),
      "fortran_order": False,
      "shape": (self._size, *values.shape[1:]),
    }
    np.lib.format.write_array_header_1_0(file, header)
    self._open[name] = (file, file.tell())
    return self._open[name]


def _compile(patterns: Sequence[str]) -> list[re.Pattern]:
  found = []
  for pattern in patterns:
    try:
      found.append(re.compile(pattern))
    except re.error as error:
      raise UserError(f"evals.outputs: {pattern!r} is no regex ({error})") from None
  if not found:
    raise UserError("evals.outputs names nothing to save")
  return found


def _select(outputs: Mapping[str, Array], batch: Batch, patterns: Sequence[re.Pattern]) -> dict[str, Array]:
  """What the patterns match, in the order of the names."""
  named = {**outputs, **{f"batch/{key}": value for key, value in batch.items() if not key.startswith("_")}}
  for pattern in patterns:
    if not any(pattern.fullmatch(name) for name in named):
      raise UserError(
        f"evals.outputs: nothing is called {pattern.pattern!r}{features.near_name(pattern.pattern, named)}"
      )
  chosen = {name: x for name, x in named.items() if any(pattern.fullmatch(name) for pattern in patterns)}
  return {name: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for name, x in chosen.items()}
