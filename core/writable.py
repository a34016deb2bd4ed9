"""Whether a folder can be written to: found before hours of work are to go there."""

import contextlib
import os
import threading
import uuid
from collections.abc import Callable
from typing import Any

from core import files
from core.errors import UserError

_TRIAL = ".writable"
_TRIAL_SECONDS = 60.0  # A bucket that does not answer for so long counts as not writable.


def check(path: str | os.PathLike, where: str) -> None:
  """Tries to write into the folder `path`, which is made where it is not there; the trial's file is removed again.

  On disk it has one name, for all processes of a job at once: where it could not be removed, the next trial does it.

  Args:
    path: a folder.
    where: what it is to a reader, `--workdir` say, which begins the line.

  Raises:
    UserError: it cannot be written to, or a bucket does not answer within a minute.
  """
  folder = files.from_here(path)
  try:
    files.make_folder(folder)
    if files.is_remote(folder):
      _within(_TRIAL_SECONDS, lambda: _try_bucket(folder / f"{_TRIAL}.{uuid.uuid4().hex}"))
    else:
      _try_disk(os.path.join(folder, _TRIAL))
  except OSError as error:
    raise UserError(f"{where} {folder} cannot be written: {files.reason(error)}") from None


def _try_disk(trial: str) -> None:
  with open(trial, "wb", opener=files.not_through_a_link) as file:
    try:
      file.write(b"a trial")
      file.flush()
      os.fsync(file.fileno())
    finally:
      with contextlib.suppress(FileNotFoundError):  # Another process has removed it.
        os.unlink(trial)


def _try_bucket(trial: Any) -> None:
  with files.replacing(trial) as file:
    file.write(b"a trial")
  with files.as_os_error(trial):
    if trial.read_bytes() != b"a trial":
      raise OSError("what is written does not come back")
    trial.unlink()


def _within(seconds: float, call: Callable[[], Any]) -> None:
  """Runs `call`, for at most so many seconds: libraries of buckets try again and again.

  Raises:
    OSError: of `call`, or that it takes longer.
  """
  raised: list[BaseException] = []

  def run() -> None:
    try:
      call()
    except BaseException as error:
      raised.append(error)

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  thread.join(seconds)
  if thread.is_alive():
    raise OSError(f"no answer in {seconds:.0f} s")
  if raised:
    raise raised[0]
