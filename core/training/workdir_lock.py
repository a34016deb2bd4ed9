"""A workdir is one job's at a time: `lock.json` in it names the process that holds it, and lives no longer than that.

    {"host": .., "process": .., "started": .., "token": .., "beats": ..}

Whether the holder lives is known for certain where it runs on this machine, by its process number and the time that
process started. Of another machine's holder the heartbeats are watched: one that stays silent for a minute is dead. No
clocks are compared.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from etils import epath

from core import files
from core.errors import UserError

BEAT_SECONDS = 10.0
SILENT_SECONDS = 60.0  # Without a heartbeat a holder on another machine counts as dead.

_NAME = "lock.json"
_SETTLE_SECONDS = 1.0  # In a bucket without exclusive creation the last of two writers wins; both look again.


@dataclasses.dataclass(frozen=True)
class Holder:
  """A process that holds a workdir.

  Attributes:
    host: the machine's name.
    machine: which boot of which machine, and which space of process numbers on it.
    process: its number.
    started: when it started, in the kernel's clock ticks; None where the system does not tell.
    token: tells two holders apart.
    since: when it took the workdir, for a reader.
    beats: how many signs of life it has given.
  """

  host: str
  machine: str
  process: int
  started: int | None
  token: str
  since: str
  beats: int = 0

  @classmethod
  def myself(cls) -> "Holder":
    """Returns this process as a holder."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    process = os.getpid()
    return cls(socket.gethostname(), _machine(), process, _started(process), uuid.uuid4().hex, since)

  @property
  def is_here(self) -> bool:
    """Whether its process number means something to this process."""
    return self.machine == _machine()

  @property
  def is_dead(self) -> bool:
    """Whether it is known to have ended: on this machine, no process has its number and start."""
    return self.is_here and _started(self.process) != self.started


class WorkdirLock:
  """The hold of this process on a workdir; `check` tells when another job has taken it over."""

  def __init__(self, workdir: epath.Path, holder: Holder):
    self._workdir, self._holder = workdir, holder
    self._lost: Holder | None = None
    self._end = threading.Event()
    self._thread = threading.Thread(target=self._beat, daemon=True, name="workdir lock")
    self._thread.start()

  def check(self) -> None:
    """Refuses to go on where the lock was taken over, as after this machine slept for longer than a minute.

    Raises:
      UserError: names the job that has the workdir now.
    """
    if self._lost is not None:
      raise UserError(f"workdir {self._workdir} was taken over by {_named(self._lost)}; this job stops")

  def release(self) -> None:
    """Ends the heartbeat and removes the lock, if it is still this process's."""
    self._end.set()
    self._thread.join()
    with contextlib.suppress(OSError):
      _exchange(self._workdir, lambda found: None if self._is_mine(found) else found)

  def _beat(self) -> None:
    while not self._end.wait(BEAT_SECONDS):
      with contextlib.suppress(OSError):  # A file server that is away for a moment: the next beat will do.
        mine = dataclasses.replace(self._holder, beats=self._holder.beats + 1)
        found = _exchange(self._workdir, lambda found, mine=mine: mine if self._is_mine(found) else found)
        if found is not None and not self._is_mine(found):
          self._lost = found
          return
        self._holder = mine

  def _is_mine(self, found: Holder | None) -> bool:
    return found is not None and found.token == self._holder.token


@contextlib.contextmanager
def held(workdir: str | os.PathLike, *, first: bool = True) -> Iterator[WorkdirLock | None]:
  """Holds a workdir for this job while the context lasts.

  Args:
    workdir: the folder, which is there.
    first: whether this is the first process of its job; the others do nothing, and get None.

  Raises:
    UserError: another job holds it, or the lock cannot be written.
  """
  if not first:
    yield None
    return
  path = epath.Path(workdir)
  try:
    lock = WorkdirLock(path, _acquire(path))
  except OSError as error:
    raise UserError(f"workdir {path} cannot be written: {files.reason(error)}") from None
  try:
    yield lock
  finally:
    lock.release()


def _acquire(workdir: epath.Path) -> Holder:
  """Waits until the workdir is free or its holder has proved to be dead, and takes it.

  Raises:
    UserError: the holder lives.
  """
  mine = Holder.myself()
  seen: Holder | None = None
  began = 0.0
  while True:
    silent = seen is not None and time.monotonic() - began > SILENT_SECONDS

    def decide(found: Holder | None, seen: Holder | None = seen, silent: bool = silent) -> Holder | None:
      free = found is None or found.is_dead or (silent and found == seen)
      return mine if free else found

    found = _exchange(workdir, decide)
    if found == mine:
      return mine
    assert found is not None  # `decide` gives nothing only where it was given nothing.
    if found.is_here or (seen is not None and found != seen):
      raise UserError(f"workdir {workdir} is in use by {_named(found)}; stop that job, or choose another workdir")
    if seen is None:
      seen, began = found, time.monotonic()
      line = f"workdir {workdir} was taken by {_named(found)}: waiting up to {SILENT_SECONDS:.0f} s for a sign of life"
      print(line, file=sys.stderr, flush=True)
    time.sleep(min(1.0, SILENT_SECONDS / 10))


def _named(holder: Holder) -> str:
  return f"process {holder.process} on {holder.host} (since {holder.since})"


def _exchange(workdir: epath.Path, decide: Callable[[Holder | None], Holder | None]) -> Holder | None:
  """Puts in the place of the lock what `decide` makes of it, with nobody in between, and returns what is there then."""
  if files.is_remote(workdir):
    return _exchange_in_bucket(workdir / _NAME, decide)
  with _alone(Path(workdir, _NAME)) as descriptor:
    found = _parse(os.read(descriptor, 1 << 16))
    left = decide(found)
    if left is None:
      os.unlink(Path(workdir, _NAME))
    elif left != found:
      content = _written(left)
      os.pwrite(descriptor, content, 0)  # In this order the file is never empty for those whom no lock holds off.
      os.ftruncate(descriptor, len(content))
      os.fsync(descriptor)
    return left


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[int]:
  """Gives the open file, which is made if need be; other processes that want it wait meanwhile."""
  while True:
    files.refuse_irregular(path)
    # In a folder that others write to, one of them may have put a link of this name there.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
      with contextlib.suppress(OSError):  # A file system without locks: two that start at the same moment may meet.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
      if _is_at(descriptor, path):
        yield descriptor
        return
    finally:
      os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
  """Returns whether an open file still has its name: whoever held it before may have removed it."""
  try:
    return os.path.samestat(os.fstat(descriptor), path.stat())
  except FileNotFoundError:
    return False


def _exchange_in_bucket(path: epath.Path, decide: Callable[[Holder | None], Holder | None]) -> Holder | None:
  """As `_exchange`. A bucket creates an object once only, which keeps two that start at once apart."""
  found = _parse(files.read_bytes(path))
  left = decide(found)
  if left == found:
    return left
  with files.as_os_error(path):
    if left is None:
      path.unlink(missing_ok=True)
      return None
    if found is not None and found.token == left.token:  # A heartbeat.
      path.write_bytes(_written(left))
      return left
    if found is not None:
      path.unlink(missing_ok=True)
    _create(path, _written(left))
  time.sleep(_SETTLE_SECONDS)
  return _parse(files.read_bytes(path)) or left


def _create(path: epath.Path, content: bytes) -> None:
  """Writes an object that is not there; where another process was faster, that one's stays."""
  import fsspec

  try:
    store, name = fsspec.url_to_fs(os.fspath(path))
    store.pipe_file(name, content, mode="create")
  except FileExistsError:
    return
  except (ValueError, TypeError, NotImplementedError):  # A store of epath's alone, or one that cannot do that.
    if not path.exists():
      path.write_bytes(content)


def _written(holder: Holder) -> bytes:
  return json.dumps(dataclasses.asdict(holder)).encode()


def _parse(content: bytes | None) -> Holder | None:
  """Returns the holder that a lock names; None of an empty or foreign file, which holds nobody off."""
  try:
    holder = Holder(**json.loads(content or b""))
  except (ValueError, TypeError, RecursionError):
    return None
  texts = (holder.host, holder.machine, holder.token, holder.since)
  numbers = (holder.process, holder.started or 0, holder.beats)
  return holder if all(type(x) is str for x in texts) and all(type(x) is int for x in numbers) else None


def _machine() -> str:
  """Returns what two processes share exactly if they see each other's process numbers."""
  parts = [socket.gethostname()]
  with contextlib.suppress(OSError):
    parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
  return " ".join(parts)


def _started(process: int) -> int | None:
  """Returns when a process started, in clock ticks; -1 where none that runs has this number, None where none tells."""
  try:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
  except OSError:
    return -1 if os.path.exists("/proc/self/stat") or not _answers(process) else None
  return -1 if fields[0] in "ZX" else int(fields[19])


def _answers(process: int) -> bool:
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except OSError:
    return True
  return True
