"""Resumable train state on disk: written in the background, whole or not at all, and checked before it is trusted.

    checkpoints/STEP/                 Orbax's files, and
    checkpoints/STEP/integrity.json   size and CRC-32 of every file, shape and dtype of every array
    checkpoints/STEP.damaged/         set aside: a file was missing, truncated or changed

Orbax copies the arrays off the devices and writes them in the background; when all processes are done, process 0 adds
`integrity.json` and the folder is renamed into place. A folder of any other name was being written when the run ended,
and does not count.
"""

import json
import os
import shutil
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from core import files, trees
from core.errors import UserError, first_few

LEFT_OUT = ocp.PLACEHOLDER  # Stands for an array that a partial `restore` does not read.

_SEAL = "integrity.json"
# Written by Orbax around the rename, and not needed to read the arrays.
_NOT_SEALED = (_SEAL, "_CHECKPOINT_METADATA", "commit_success.txt")


class Checkpoints:
  """The checkpoints of one run.

  Args:
    folder: where they lie; made when the first is written.
    keep_every: steps of which every multiple is kept for good; the newest two are always kept, so that there is one to
      fall back to.
    warn: called with one line when something is set aside or could not be written.
  """

  def __init__(self, folder: Path, *, keep_every: int | None = None, warn: Callable[[str], None] = print):
    self._folder = Path(folder).absolute()
    self._keep_every = keep_every
    self._warn = warn
    self._saving: int | None = None
    self._written = True
    self._contents: dict[str, Any] = {}
    self._writer = ocp.AsyncCheckpointer(
      # Floats barely compress, and trying costs the cores that training uses.
      ocp.PyTreeCheckpointHandler(use_compression=False),
      async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
    )

  def steps(self) -> list[int]:
    """Steps of the finished checkpoints, ascending."""
    return steps(self._folder)

  def path(self, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return self._folder / str(step)

  def newest_good(self) -> int | None:
    """The newest checkpoint whose every byte is as written; damaged ones are set aside with one warning each.

    All processes get the same answer: process 0 looks, the others hear.
    """
    step = -1
    if jax.process_index() == 0:
      self._remove_unfinished()
      step = next((step for step in reversed(self.steps()) if not self._set_aside_if_damaged(step)), -1)
    if jax.process_count() > 1:
      step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    return None if step < 0 else step

  def newest_line(self) -> str:
    """Words for a message: where the newest finished checkpoint is."""
    steps = self.steps()
    return f"the last good checkpoint is {self._folder / str(steps[-1])}" if steps else "there is no earlier checkpoint"

  def save(self, step: int, state: Any) -> float:
    """Starts writing `state`, which may be donated as soon as this returns; gives the seconds it held the caller up."""
    began = time.perf_counter()
    self.wait()
    self._saving, self._written = step, True
    self._contents = {"step": step, "arrays": _arrays(state)}
    try:
      self._check_room(state)
      self._writer.save(self._folder / str(step), args=ocp.args.PyTreeSave(state), force=True)
    except OSError as error:
      self._failed(error)
    return time.perf_counter() - began

  def wait(self) -> bool:
    """Waits for the checkpoint being written, if any; False (after a warning) where it could not be written."""
    try:
      self._writer.wait_until_finished()
    except Exception as error:  # Whatever the file system or TensorStore raised: the run can go on without it.
      self._failed(error)
    self._saving = None
    self._drop_old()
    return self._written

  def close(self) -> bool:
    """Waits for the last write and ends the writer's threads; False where the last checkpoint could not be written."""
    written = self.wait()
    self._writer.close()
    return written

  def _check_room(self, state: Any) -> None:
    """Finds a full disk while the disk is still in order; processes that share a job learn it from the write itself."""
    if jax.process_count() > 1:
      return
    self._folder.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(self._folder).free, sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    if free < needed:
      raise OSError(f"the disk has {free:,} bytes left and it takes {needed:,}")

  def _failed(self, error: Exception) -> None:
    # TensorStore tells the whole way down; what the system said comes last.
    reason = str(error).splitlines()[0].rsplit(": ", 1)[-1] if str(error) else type(error).__name__
    self._warn(f"warning: the checkpoint of step {self._saving} could not be written ({reason}); {self.newest_line()}")
    self._written = False

  def _seal(self) -> None:
    """Runs in the background once all processes' files are complete, just before Orbax renames the folder."""
    if jax.process_index() != 0:
      return
    (partial,) = self._folder.glob(f"{self._saving}.orbax-checkpoint-tmp*")
    with (partial / _SEAL).open("w") as file:
      json.dump(self._contents | {"files": _checksums(partial)}, file, indent=1)
      file.flush()
      os.fsync(file.fileno())

  def _drop_old(self) -> None:
    for step in self.steps()[:-2] if jax.process_index() == 0 else []:
      if not (self._keep_every and step % self._keep_every == 0):
        # Renamed first: a run killed half-way through the removal must not find half a checkpoint.
        going = (self._folder / str(step)).rename(self._folder / f"{step}.old")
        shutil.rmtree(going, ignore_errors=True)

  def _remove_unfinished(self) -> None:
    for path in self._folder.glob("*"):
      if not path.name.isdigit() and path.suffix != ".damaged":
        shutil.rmtree(path, ignore_errors=True)

  def _set_aside_if_damaged(self, step: int) -> bool:
    path = self._folder / str(step)
    fault = _fault(path)
    if fault is None:
      return False
    aside = path.with_name(f"{step}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    older = self.steps()
    use = f"using {self._folder / str(older[-1])}" if older else "there is no earlier one: starting afresh"
    self._warn(f"warning: checkpoint {path} is damaged ({fault}), set aside as {aside.name}; {use}")
    return True


def steps(folder: Path) -> list[int]:
  """Steps of the finished checkpoints in a run's `checkpoints` folder, ascending."""
  return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def find(where: str | os.PathLike, key: str) -> Path:
  """The sealed checkpoint that `where` names: `WORKDIR/checkpoints/STEP`, or a workdir, of which it is the newest.

  Every byte of it is checked; nothing is set aside, because it may be another run's.

  Args:
    where: the path, relative ones from where the person stands.
    key: what the path was given as, for messages.

  Raises:
    UserError: there is none, or it is damaged.
  """
  path = files.from_here(where)
  if not path.name.isdigit():
    path = path / "checkpoints" / str(max(steps(path / "checkpoints"), default="none"))
  if not path.name.isdigit() or not path.is_dir():
    there = ", ".join(map(str, steps(path.parent)))
    hint = f"; there are {there}" if there else "; name WORKDIR/checkpoints/STEP, or a workdir that has one"
    raise UserError(f"{key}: no checkpoint at {where}{hint}")
  if fault := _fault(path):
    raise UserError(f"{key}: the checkpoint {path} is damaged ({fault}); name another")
  return path


def restore(path: Path, like: Any) -> Any:
  """The state of the checkpoint at `path`, on the shardings of `like` whatever mesh it was saved from.

  Args:
    path: `Checkpoints.path(step)`, or what `find` gave.
    like: a tree of `jax.ShapeDtypeStruct` with shardings. A leaf that is `LEFT_OUT` is not read, and stays what it is.

  Raises:
    UserError: the checkpoint is of another model or shape; the first arrays that differ are named.
  """
  _check_arrays(path, like)

  def how(leaf: Any) -> Any:
    return leaf if leaf is LEFT_OUT else ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape)

  restore_args = jax.tree.map(how, like)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    return reader.restore(path, args=ocp.args.PyTreeRestore(item=like, restore_args=restore_args))


def _check_arrays(path: Path, like: Any) -> None:
  saved = json.loads((path / _SEAL).read_text())["arrays"]
  left_out = {name for name, leaf in trees.flatten_with_names(like) if leaf is LEFT_OUT}
  saved = {name: array for name, array in saved.items() if name not in left_out}
  wanted = _arrays(like)
  lines = [
    f"{name}: {_describe(saved.get(name))} in the checkpoint, {_describe(wanted.get(name))} in the model"
    for name in sorted({*saved, *wanted})
    if saved.get(name) != wanted.get(name)
  ]
  if lines:
    some = first_few(lines, joint="; ", rest=" (and {} more)")
    raise UserError(f"checkpoint {path} is of another model: {some}")


def _arrays(tree: Any) -> dict[str, list]:
  """`{name: [shape, dtype]}`, as the seal keeps it."""
  return {
    name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in trees.flatten_with_names(tree) if leaf is not LEFT_OUT
  }


def _describe(array: list | None) -> str:
  return "nothing" if array is None else f"{array[1]}{array[0]}"


def _checksums(path: Path) -> dict[str, list[int]]:
  """`{relative file: [bytes, CRC-32]}` of all files under `path` that the seal vouches for."""
  sealed = sorted(file for file in path.rglob("*") if file.is_file() and file.name not in _NOT_SEALED)
  with ThreadPoolExecutor() as pool:  # zlib and file reads release the interpreter's lock.
    return {str(file.relative_to(path)): crc for file, crc in zip(sealed, pool.map(_checksum, sealed))}


def _checksum(file: Path) -> list[int]:
  size, crc = 0, 0
  with file.open("rb") as stream:
    while block := stream.read(1 << 20):
      size, crc = size + len(block), zlib.crc32(block, crc)
  return [size, crc]


def _fault(path: Path) -> str | None:
  """What differs between the files under `path` and their seal, in a few words; None where all is well."""
  try:
    sealed = json.loads((path / _SEAL).read_text())["files"]
  except (OSError, ValueError, KeyError):
    return f"{_SEAL} is missing or unreadable"
  found = _checksums(path)
  for name, (size, crc) in sealed.items():
    if name not in found:
      return f"{name} is missing"
    if found[name][0] != size:
      return f"{name} has {found[name][0]:,} of {size:,} bytes"
    if found[name][1] != crc:
      return f"{name} has changed"
  return None
