"""Writes what a model gives for each example of a dataset to one file, in the order of the split."""

import contextlib
import functools
import re
import shutil
import zipfile
from collections.abc import Callable, Sequence
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
from core.recipe.evaluators import Save
from core.recipe.evaluators_base import as_tuple
from core.recipe.types import Refused
from core.state import Batch, Predict, Variables


class Evaluator:
  """An `.npz` file of named outputs, one row an example; the metric `examples` is how many there are.

  `_id` is each row's index in the split: 0, 1, 2, ... bfloat16 is written as float32. The file appears when it is
  whole, in place of that of the evaluation before. Memory holds a few batches at a time. Until the file is whole, its
  rows lie in a hidden folder beside it, so that the disk needs room for them twice. The first process alone writes.

  Args:
    options: see there.
    predict: `(variables, batch) -> (output, intermediates)`.
    sharding: how a batch lies on the devices.
    where: the path of the options in the config, for messages.
    output_dir: where the file goes.

  Raises:
    UserError: there is no `output_dir`, or the data cannot be read.
  """

  def __init__(
    self, options: Save, predict: Predict, *, sharding: NamedSharding, where: str, output_dir: Path | None = None
  ):
    if output_dir is None:
      raise UserError(f"{where} writes a file, and this program has no folder for those of evaluators")
    self._path = output_dir / options.outfile
    fn = functools.partial(_selected_outputs, predict, as_tuple(options.outputs))
    self._extractor = features.Extractor(fn, sharding, where)
    self.data = batches.open_dataset(options, sharding, where)

  def check(self, variables: Variables) -> None:
    """Refuses, by the shapes of one batch, what the first evaluation would; `variables` may be shapes, too.

    Raises:
      UserError: the data cannot be read or do not fit the model, a regex matches nothing, or something that has not one
        row an example.
    """
    self._extractor.shapes(variables, self.data)

  def run(self, variables: Variables, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """Writes the file; None, and no file, if `interrupted()` became true on the way."""
    size = self.data.num_examples
    writes = jax.process_index() == 0
    with contextlib.ExitStack() as closing:
      rows = closing.enter_context(_Rows(self._path, size)) if writes else None
      pieces = closing.enter_context(contextlib.closing(self._extractor.pieces(variables, self.data)))
      for ids, outputs in pieces:
        if rows is not None:
          rows.write(ids, outputs)
        if interrupted():
          return None
      if rows is not None:
        rows.finish()
    return {"examples": float(size)}


class _Rows:
  """Collects rows in files and joins these to an `.npz`, as a context that leaves nothing else behind."""

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


def _selected_outputs(
  predict: Predict, patterns: Sequence[str], variables: Variables, batch: Batch
) -> dict[str, Array]:
  """Returns the outputs whose names a pattern matches, in the order of the names.

  Raises:
    Refused: a pattern matches none.
  """
  of_batch = {f"batch/{key}": value for key, value in batch.items() if not key.startswith("_")}
  named = {**features.named_outputs(predict, variables, batch), **of_batch}
  for pattern in patterns:
    if not any(re.fullmatch(pattern, name) for name in named):
      raise Refused(f"names {pattern!r}, which matches nothing{features.near_name(pattern, named)}", key="outputs")
  chosen = {name: x for name, x in named.items() if any(re.fullmatch(pattern, name) for pattern in patterns)}
  return {name: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for name, x in chosen.items()}
