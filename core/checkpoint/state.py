"""Resumable train state on disk or in a bucket: written in the background, whole or not at all, checked before use.

    checkpoints/STEP/                 Orbax's files, and
    checkpoints/STEP/integrity.json   their seal (`core.checkpoint.seal`)
    checkpoints/STEP.damaged/         set aside: a file was missing, truncated or changed, or it is another step's

Orbax copies the arrays off the devices and writes them in the background; when all processes are done, process 0 adds
the seal and the folder is renamed into place. A bucket renames nothing: there a folder counts once it has its seal.

What was being written or removed when the run ended is removed by the next start. Of anything else in there that a run
did not write itself nothing is ever removed: a person's copies and notes stay.
"""

import contextlib
import dataclasses
import datetime
import gc
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from core import files, trees
from core.checkpoint import seal
from core.errors import UserError, first_few
from core.late import Late
from core.state import TrainState

LEFT_OUT = ...  # Orbax's PLACEHOLDER: stands for an array that a partial `restore` does not read.

_NEWEST = 2  # Always kept, so that there is one to fall back to.

_STEP = re.compile(r"0|[1-9][0-9]{0,9}")
_REMOVING = "being-removed"
_UNFINISHED = re.compile(rf"({_STEP.pattern})\.(orbax-checkpoint-tmp.*|{_REMOVING})")
# What Orbax puts into a folder; one in a bucket that has nothing else and no seal is unfinished.
_BY_ORBAX = re.compile(r"_.*|array_metadatas|d|manifest\.ocdbt|ocdbt\.process_.*|commit_success\.txt|\..*\.part")

ocp = Late("orbax.checkpoint")  # Takes as long to import as JAX, and a run needs it only after many steps.


class Checkpoints:
  """The checkpoints of one run.

  Args:
    folder: where they lie; made when the first is written.
    keep_every: steps of which every multiple is kept for good; the newest two are always kept.
    warn: called with one line when something is set aside or could not be written.

  Attributes:
    failure: why the last checkpoint could not be written, in a line; None where it could.
  """

  def __init__(self, folder: str | os.PathLike, *, keep_every: int | None = None, warn: Callable[[str], None] = print):
    self._folder = epath.Path(files.from_here(folder))
    self._keep_every = keep_every
    self._warn = warn
    self._saving = -1
    self.failure: str | None = None
    self._arrays: dict[str, list] = {}
    self._writer: Any = None  # Made for the first that is written.

  def steps(self) -> list[int]:
    """Returns the steps of the finished checkpoints, ascending."""
    return steps(self._folder)

  def path(self, step: int) -> epath.Path:
    """Returns where the checkpoint of `step` lies."""
    return self._folder / str(step)

  def newest_good(self) -> int | None:
    """Returns the newest checkpoint whose every byte is as written; sets damaged ones aside with one warning each.

    All processes get the same answer: process 0 looks, the others hear.

    Raises:
      UserError: a file is in the folder's place, or a damaged checkpoint cannot be set aside.
    """
    step = -1
    if jax.process_index() == 0:
      if not files.is_remote(self._folder) and self._folder.exists() and not self._folder.is_dir():
        raise UserError(f"{self._folder} is a file, where checkpoints are to lie; move it away")
      self._remove_unfinished()
      named = [step for step, _ in _named(self._folder)]
      step = next((step for step in reversed(named) if not self._set_aside_if_damaged(step)), -1)
    if jax.process_count() > 1:
      step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    return None if step < 0 else step

  def newest_line(self) -> str:
    """Returns words for a message: where the newest finished checkpoint is."""
    try:
      steps = self.steps()
    except OSError as error:
      return f"{self._folder} cannot be read ({files.reason(error)})"
    return f"the last good checkpoint is {self.path(steps[-1])}" if steps else "there is no earlier checkpoint"

  def save(self, step: int, state: Any) -> float:
    """Starts writing `state`, which may be donated as soon as this returns; returns the seconds the caller waited."""
    began = time.perf_counter()
    self.wait()
    self._saving, self.failure = step, None
    self._arrays = _arrays(state)
    try:
      self._check_room(state)
      self._writer = self._writer or ocp.AsyncCheckpointer(
        # Floats barely compress, and trying costs the cores that training uses.
        ocp.PyTreeCheckpointHandler(use_compression=False),
        async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
      )
      self._writer.save(self.path(step), args=ocp.args.PyTreeSave(state))
    except Exception as error:  # Whatever the file system or a bucket's library raised: the run can go on without it.
      self._failed(error)
    return time.perf_counter() - began

  def wait(self) -> bool:
    """Waits for the checkpoint being written, if any; returns False, after a warning, where it could not be."""
    try:
      if self._writer is not None:
        self._writer.wait_until_finished()
    except Exception as error:  # As in `save`, and what TensorStore raises.
      self._failed(error)
    self._drop_old()
    return self.failure is None

  def finish(self, writes: Mapping[epath.Path, Callable[[], None]]) -> None:
    """Waits for the run's last checkpoint and writes its other files, each of them whether or not the rest fails.

    All processes of a job must call it with the same paths in the same order.

    Args:
      writes: for each path the function that writes it, and raises `UserError` or `OSError` where it cannot.

    Raises:
      OSError: something could not be written; says what, and what is where.
    """
    self.wait()
    failed = [self.failure] if self.failure else []
    written = []
    for path, write in writes.items():
      try:
        write()
      except (UserError, OSError) as error:
        failed.append(str(error) if isinstance(error, UserError) else f"{path}: {files.reason(error)}")
      else:
        written.append(str(path))
    if failed:
      there = f"the trained parameters are in {' and '.join(written)}; " if written else ""
      raise OSError(f"{'; '.join(failed)}; {there}{self.newest_line()}")

  def close(self) -> bool:
    """Waits for the last write and ends the writer's threads; returns False where the last could not be written."""
    self.wait()
    try:
      if self._writer is not None:
        self._writer.close()
    except Exception as error:  # A part of the checkpoint that was still being written; mostly as in `wait` before.
      if self.failure is None:
        self._failed(error)
    gc.collect()  # Parts of a write that failed would tell of themselves when the interpreter is half gone.
    return self.failure is None

  def _check_room(self, state: Any) -> None:
    """Finds a full disk while the disk is still in order; processes that share a job learn it from the write itself."""
    if jax.process_count() > 1 or files.is_remote(self._folder):
      return
    files.make_folder(self._folder)
    free, needed = shutil.disk_usage(self._folder).free, sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    if free < needed:
      raise OSError(f"the disk has {free:,} bytes left and it takes {needed:,}")

  def _failed(self, error: Exception) -> None:
    """Says that the checkpoint could not be written, and gives its room back."""
    with contextlib.suppress(OSError):
      for path in files.inside(self._folder) if jax.process_index() == 0 else ():
        if path.name.startswith(f"{self._saving}.orbax-checkpoint-tmp"):
          _remove_tree(path)
    # TensorStore tells the whole way down; what the system said comes last.
    reason = str(error).splitlines()[0].rsplit(": ", 1)[-1] if str(error) else type(error).__name__
    self.failure = f"the checkpoint of step {self._saving} could not be written ({reason[:150]})"
    self._warn(f"warning: {self.failure}; {self.newest_line()}")

  def _seal(self) -> None:
    """Runs in the background once all processes' files are complete, just before Orbax renames the folder."""
    if jax.process_index() != 0:
      return
    folder = self.path(self._saving)
    if not files.is_remote(folder):
      prefix = f"{self._saving}.orbax-checkpoint-tmp"
      (folder,) = (path for path in files.inside(self._folder) if path.name.startswith(prefix))
    seal.write(folder, self._saving, self._arrays)

  def _drop_old(self) -> None:
    if jax.process_index() != 0:
      return
    try:
      there = [_Info(step) for step in self.steps()]
      if len(there) <= _NEWEST:
        return
      policies = ocp.checkpoint_managers
      kept = [policies.LatestN(_NEWEST), *([policies.EveryNSteps(self._keep_every)] if self._keep_every else [])]
      kept = policies.AnyPreservationPolicy(kept).should_preserve(there, context=policies.PreservationContext())
      for info in (info for info, keep in zip(there, kept, strict=True) if not keep):
        _remove(self.path(info.step))
    except OSError as error:
      self._warn(f"warning: old checkpoints in {self._folder} could not be removed ({files.reason(error)})")

  def _remove_unfinished(self) -> None:
    for path in files.inside(self._folder):
      if _UNFINISHED.fullmatch(path.name) or (files.is_remote(path) and _is_unfinished_in_bucket(path)):
        _remove_tree(path)

  def _set_aside_if_damaged(self, step: int) -> bool:
    path = self.path(step)
    fault = seal.fault(path, step)
    if fault is None:
      return False
    try:
      aside = files.set_aside(path)
    except OSError as error:
      raise UserError(f"checkpoint {path} is damaged ({fault}) and cannot be moved: {files.reason(error)}") from None
    older = self.steps()
    use = f"using {self.path(older[-1])}" if older else "there is no earlier one: starting afresh"
    self._warn(f"warning: checkpoint {path} is damaged ({fault}), set aside as {aside.name}; {use}")
    return True


@dataclasses.dataclass(frozen=True)
class _Info:
  """What Orbax's policies look at."""

  step: int
  metrics: None = None
  time: datetime.datetime = datetime.datetime.min


def steps(folder: str | os.PathLike) -> list[int]:
  """Returns the steps of the finished checkpoints in a run's `checkpoints` folder, ascending; by name and seal."""
  return [step for step, path in _named(folder) if seal.step(path) == step]


def _named(folder: str | os.PathLike) -> list[tuple[int, epath.Path]]:
  """Returns the folders that are named as checkpoints are, with that step, ascending."""
  found = [(int(path.name), path) for path in files.inside(folder) if _STEP.fullmatch(path.name)]
  return sorted((step, path) for step, path in found if step < 2**31 and (files.is_remote(path) or path.is_dir()))


def _candidates(folder: str | os.PathLike) -> list[int]:
  """Returns the steps of finished checkpoints and of those with a damaged seal, ascending; copies of others not."""
  return [step for step, path in _named(folder) if seal.step(path) in (None, step)]


def _is_unfinished_in_bucket(path: epath.Path) -> bool:
  if not _STEP.fullmatch(path.name) or files.read_bytes(path / seal.NAME) is not None:
    return False
  return all(_BY_ORBAX.fullmatch(inner.name) for inner in files.inside(path))


def find(where: str | os.PathLike, key: str) -> epath.Path:
  """Returns the sealed checkpoint that `where` names: `WORKDIR/checkpoints/STEP`, or the newest of a workdir.

  Every byte of it is checked; nothing is set aside, because it may be another run's.

  Args:
    where: the path, relative ones from where the person stands.
    key: what the path was given as, for messages.

  Raises:
    UserError: there is none, or it is damaged.
  """
  path = epath.Path(files.from_here(where))
  try:
    if not _STEP.fullmatch(path.name):
      path = path / "checkpoints" / str(max(_candidates(path / "checkpoints"), default="none"))
    if not _STEP.fullmatch(path.name) or not path.is_dir():
      there = first_few(list(map(str, _candidates(path.parent))))
      hint = f"; there are {there}" if there else "; name WORKDIR/checkpoints/STEP, or a workdir that has one"
      raise UserError(f"{key}: no checkpoint at {where}{hint}")
  except OSError as error:
    raise UserError(f"{key}: {where} cannot be read ({files.reason(error)})") from None
  if fault := seal.fault(path, int(path.name)):
    raise UserError(f"{key}: the checkpoint {path} is damaged ({fault}); name another")
  return path


def restore(path: str | os.PathLike, like: Any) -> Any:
  """Returns the state of the checkpoint at `path`, on the shardings of `like` whatever mesh it was saved from.

  Args:
    path: `Checkpoints.path(step)`, or what `find` gave.
    like: a tree of `jax.ShapeDtypeStruct` with shardings. A leaf that is `LEFT_OUT` is not read, and stays what it is.

  Raises:
    UserError: the checkpoint is of another model or shape; the first arrays that differ are named.
  """
  path = epath.Path(files.from_here(path))
  _check_arrays(path, like)
  # Checkpoints of before there were collections hold none, not even an empty dict.
  without = isinstance(like, TrainState) and not like.collections
  item = like.replace(collections=LEFT_OUT) if without else like

  def restored_as(leaf: Any) -> Any:
    return leaf if leaf is LEFT_OUT else ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape)

  restore_args = jax.tree.map(restored_as, item)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    restored = reader.restore(path, args=ocp.args.PyTreeRestore(item=item, restore_args=restore_args))
  return restored.replace(collections={}) if without else restored


def _check_arrays(path: epath.Path, like: Any) -> None:
  saved = seal.arrays(path)
  if not isinstance(saved, dict):
    raise UserError(f"{path}: no checkpoint of ours ({seal.NAME} is missing or unreadable)")
  left_out = {name for name, leaf in trees.flatten_with_names(like) if leaf is LEFT_OUT}
  saved = {name: array for name, array in saved.items() if name not in left_out}
  wanted = _arrays(like)
  lines = [
    f"{name}: {_describe(saved.get(name))} in the checkpoint, {_describe(wanted.get(name))} in the model"
    for name in sorted({*saved, *wanted}, key=lambda name: (not name.startswith("params/"), name))
    if saved.get(name) != wanted.get(name)
  ]
  if lines:
    some = first_few(lines, joint="; ", rest=" (and {} more)", shown=1)
    raise UserError(f"checkpoint {path} is of another model: {some}")


def _arrays(tree: Any) -> dict[str, list]:
  """Returns `{name: [shape, dtype]}`, as the seal keeps it."""
  return {
    name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in trees.flatten_with_names(tree) if leaf is not LEFT_OUT
  }


def _describe(array: list | None) -> str:
  return "nothing" if array is None else f"{array[1]}{array[0]}"


def _remove(path: epath.Path) -> None:
  """Removes a finished checkpoint so that a run killed half-way through does not find half of one."""
  if files.is_remote(path):
    with files.as_os_error(path):
      (path / seal.NAME).unlink(missing_ok=True)  # Without it the folder does not count.
  else:
    path = path.rename(path.with_name(f"{path.name}.{_REMOVING}"))
  _remove_tree(path)


def _remove_tree(path: epath.Path) -> None:
  with contextlib.suppress(OSError), files.as_os_error(path):
    path.rmtree(missing_ok=True)
