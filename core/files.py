"""Paths as a person means them, on disk or in a bucket, and files that appear whole or not at all.

A path is pathlib's where it is local, and else an `etils.epath.Path`, which has the same methods: `gs://BUCKET/NAME`
(by gcsfs) and what epath speaks besides where its package is installed. What a bucket's library raises comes out of
here as an `OSError` of one line.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import pathlib
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from typing import IO

# Read by epath at the first use of a bucket. TensorFlow, which it would take otherwise, takes seconds to import.
os.environ.setdefault("EPATH_USE_TF", "false")

from etils import epath

from core.errors import UserError, naming
from core.masking import masked

_NO_PLACE = ("http", "https", "hf")  # Read by `core.checkpoint.remote`; nothing is written there.
_REWRITE_SECONDS = 30.0  # Between two uploads of a file that grows.


def from_here(path: str | os.PathLike) -> pathlib.Path | epath.Path:
  """Returns `path` as seen from the folder in which the person typed the command, which Bazel tells; `~` is their home.

  `file://` stands for a local path. Buckets' paths come back as they are.

  Raises:
    UserError: a scheme that nothing here writes to, or a path that no system has.
  """
  text = os.fspath(path)
  if fault := _impossible(text):
    raise UserError(f"path {masked(text)[:100]!r}{'...' * (len(text) > 100)}: {fault}")
  scheme, mark, rest = text.partition("://")
  if mark and scheme == "file":
    text = f"/{rest.lstrip('/')}"
  elif mark and "/" not in scheme:
    return _in_bucket(text, scheme)
  folder = os.environ.get("BUILD_WORKING_DIRECTORY", ".")
  return pathlib.Path(folder, os.path.expanduser(text)).absolute()


def local(path: str | os.PathLike, where: str) -> pathlib.Path:
  """Returns a path as `from_here` does, and refuses one in a bucket.

  Args:
    path: the path.
    where: what it is to a reader, `config.input.data.path` say, which begins the line.

  Raises:
    UserError: it is not on this machine, or no path at all.
  """
  with naming(where):
    found = from_here(path)
  if is_remote(found):
    raise UserError(f"{where}: {found} is not on this machine; give a local path")
  return pathlib.Path(found)


def is_remote(path: str | os.PathLike) -> bool:
  """Returns whether a path is in a bucket, where nothing is renamed at once and no file grows."""
  return "://" in os.fspath(path)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[IO[bytes]]:
  """Gives a binary file to write, which takes the place of `path` when it is complete and safe.

  What a process that was killed left half-written is removed by the next that writes the same file.

  Raises:
    OSError: it cannot be written, or a pipe, socket or device is there; nothing of it is left then.
  """
  path = epath.Path(path)
  # One writer a process and file; the dot keeps a half-written file out of `*.npz` and its like.
  part = path.with_name(f".{path.name}.{os.getpid()}.part")
  if is_remote(path):
    with tempfile.TemporaryFile() as file:
      yield file
      file.seek(0)
      with as_os_error(path):
        _upload(file, part, path)
    return
  refuse_irregular(path)
  remove_half_written(path.parent, [path.name])
  try:
    with open(part, "wb", opener=not_through_a_link) as file:
      with contextlib.suppress(OSError):  # A file system without locks.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # Tells that its writer lives.
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(part, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.unlink(part)
    raise


def remove_half_written(folder: str | os.PathLike, names: Collection[str]) -> None:
  """Removes what writers of `replacing` left when they were killed; on disk, what a living one writes stays.

  Args:
    folder: where the files lie. In one in a bucket nobody else may be writing.
    names: of the files.
  """
  with contextlib.suppress(OSError), as_os_error(folder):
    for path in inside(folder):
      match = re.fullmatch(r"\.(.+)\.\d+\.part", path.name)
      if match and match[1] in names and (is_remote(path) or _is_given_up(path)):
        path.unlink(missing_ok=True)


def _is_given_up(path: epath.Path) -> bool:
  """Returns whether no living process holds the file's lock; False where that cannot be known."""
  try:
    with open(path, "rb", opener=not_through_a_link) as file:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError:
    return False
  return True


def set_aside(path: str | os.PathLike) -> epath.Path:
  """Renames what is damaged to NAME.damaged, or to NAME.damaged-2 where there is one, and returns where it is.

  Raises:
    OSError: it cannot be renamed.
  """
  path = epath.Path(path)
  there = {other.name for other in inside(path.parent)}
  names = (f"{path.name}.damaged" + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
  aside = path.with_name(next(name for name in names if name not in there))
  with as_os_error(path):
    path.rename(aside)
  return aside


def make_folder(path: str | os.PathLike) -> None:
  """Makes a folder and those above it where they are not there; a bucket needs none.

  Raises:
    OSError: it cannot be made, or a file is in its place.
  """
  if not is_remote(path):
    os.makedirs(path, exist_ok=True)


def refuse_irregular(path: str | os.PathLike) -> None:
  """Refuses what is neither a file nor a folder: a pipe is waited for until somebody fills it, a device may never end.

  That nothing is there is left to its reader to find.

  Raises:
    OSError: a pipe, socket or device, or a link to one.
  """
  try:
    mode = stat.S_IFREG if is_remote(path) else os.stat(path).st_mode
  except (OSError, ValueError):
    return
  if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
    raise OSError(errno.EINVAL, "no regular file", os.fspath(path))


def read_bytes(path: str | os.PathLike) -> bytes | None:
  """Returns the content of a file, or None where there is none.

  Raises:
    OSError: it cannot be read, or is no regular file.
  """
  refuse_irregular(path)
  try:
    with as_os_error(path):
      return epath.Path(path).read_bytes()
  except FileNotFoundError:
    return None


def inside(folder: str | os.PathLike) -> list[epath.Path]:
  """Returns the files and folders right in `folder`, in order; none where it is no folder.

  Raises:
    OSError: it cannot be read.
  """
  try:
    with as_os_error(folder):
      return sorted(path for path in epath.Path(folder).iterdir() if path.name)
  except (FileNotFoundError, NotADirectoryError):
    return []


def below(folder: str | os.PathLike) -> list[epath.Path]:
  """Returns all files under `folder`, in order."""
  root = epath.Path(folder)
  with as_os_error(root):
    if not is_remote(root):
      return sorted(epath.Path(top) / name for top, _, names in os.walk(root) for name in names)
    scheme = os.fspath(root).partition("://")[0]
    found = []
    for top, _, names in root.walk():
      top = top if is_remote(top) else epath.Path(f"{scheme}://{os.fspath(top).lstrip('/')}")
      found += [top / name for name in names if name]
    return sorted(found)


class GrowingFile:
  """A text file that lines are added to, each on disk at once; in a bucket the file is sent anew from time to time.

  Lines that cannot be written now are kept and written with the next ones.

  Args:
    path: the file.
    text: what it holds at first, in place of what is there.
    warn: is called with one line when lines cannot be written.

  Raises:
    OSError: it cannot be made.
  """

  def __init__(self, path: str | os.PathLike, text: str = "", *, warn: Callable[[str], None] | None = None):
    self._path = epath.Path(path)
    self._warn = warn or _say
    self._text, self._sent_at = text, time.monotonic()
    self._pending = ""
    with replacing(self._path) as file:
      file.write(text.encode())
    # Unbuffered, so that what could not be written is here and nowhere else.
    self._file = None if is_remote(path) else open(self._path, "ab", buffering=0)  # noqa: SIM115 (`close` closes it)

  def write(self, line: str) -> None:
    """Adds a line, which ends in a newline."""
    self._pending += line
    if self._file is not None or time.monotonic() - self._sent_at > _REWRITE_SECONDS:
      self.flush()

  def flush(self) -> bool:
    """Writes what is not written yet; returns False, after a warning, where that fails."""
    try:
      self._append() if self._file is not None else self._send()
    except OSError as error:
      self._warn(f"warning: {self._path} could not be written ({reason(error)})")
      return False
    return True

  def close(self) -> None:
    """Writes the rest and closes the file."""
    self.flush()
    if self._file is not None:
      self._file.close()

  def _append(self) -> None:
    pending = self._pending.encode()
    while pending:
      pending = pending[self._file.write(pending) :]
      self._pending = pending.decode(errors="replace")

  def _send(self) -> None:
    if not self._pending:
      return
    self._sent_at = time.monotonic()
    with replacing(self._path) as file:
      file.write((self._text + self._pending).encode())
    self._text, self._pending = self._text + self._pending, ""


@contextlib.contextmanager
def as_os_error(path: str | os.PathLike) -> Iterator[None]:
  """Turns whatever a bucket's library raises into an `OSError` of one line; what concerns a local file stays as it is.

  Raises:
    OSError: instead.
  """
  try:
    yield
  except OSError:
    raise
  except Exception as error:
    if not is_remote(path):
      raise
    raise OSError(_one_line(error)) from None


def reason(error: BaseException) -> str:
  """Returns the words of an error that a reader wants: the system's own where there are any, in one short line."""
  return getattr(error, "strerror", None) or _one_line(error)


def not_through_a_link(path: str, flags: int) -> int:
  """Opens a file as `open` does, but through no symbolic link and waiting for no pipe: another user may have put it."""
  return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def _one_line(error: BaseException) -> str:
  line = masked(" ".join(str(error).split()))
  return (line if len(line) <= 150 else f"{line[:147]}...") or type(error).__name__


def _impossible(text: str) -> str | None:
  """Returns why no file has such a path, or None; lines of errors must be able to hold it as well."""
  if any(ord(character) < 32 for character in text):
    return "holds a line break or another control character"
  if len(text) > 4_000 or any(len(name.encode(errors="surrogateescape")) > 255 for name in text.split("/")):
    return f"too long ({len(text):,} characters)"
  return None


def _in_bucket(text: str, scheme: str) -> epath.Path:
  try:
    path = None if scheme in _NO_PLACE else epath.Path(text)
  except KeyError:
    path = None
  if path is None or not os.fspath(path).startswith(f"{scheme}://"):
    raise UserError(f"{text}: {scheme}:// is no place for files here; give a local path, or gs://BUCKET/NAME")
  if not os.fspath(path).removeprefix(f"{scheme}://").strip("/"):
    raise UserError(f"{text}: names no bucket; give {scheme}://BUCKET/NAME")
  return path


def _upload(file: IO[bytes], part: epath.Path, path: epath.Path) -> None:
  """Sends a file under another name first: half of it must not stand under its own when the connection breaks."""
  try:
    with part.open("wb") as target:
      shutil.copyfileobj(file, target, 1 << 22)
    part.replace(path)
  except BaseException:
    with contextlib.suppress(Exception):
      part.unlink(missing_ok=True)
    raise


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)
