"""What of the cache folder can be trusted: that it is the person's own, and that its files are still what came.

    0123456789abcdef/
      weights.npz
      weights.npz.json    size and checksums of what came, and the file's times when it was last compared with them
      weights.npz.lock    held by the process that brings it

The numbers of a run are those of its weights. So the cache is used only if nobody else, but root, can write to it. A
file whose times changed is compared with its checksum before it is used.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from core import files
from core.errors import UserError

_BLOCK = 1 << 22
_ALGORITHMS = ("sha256", "crc32c", "md5")  # The strongest first.
_NAME = re.compile(r"[\w-][\w.-]*")  # Of a file in a model's folder.
_WRITERS = stat.S_IWGRP | stat.S_IWOTH


def folder() -> Path:
  """Returns the cache folder, be it there or not: $VISION_CACHE, else ~/.cache/vision.

  Raises:
    UserError: VISION_CACHE is no folder of this machine.
  """
  place = files.from_here(os.environ.get("VISION_CACHE") or "~/.cache/vision")
  if files.is_remote(place):
    raise UserError(f"cache folder {place}: must be local; set VISION_CACHE to a path")
  return Path(place)


def check_private(path: Path) -> None:
  """Refuses a cached file, or the place for one, where another user could have put or changed it.

  Of a symbolic link only the link counts: where it leads is the choice of who made it.

  Args:
    path: in a folder of its own in the cache folder; nothing of it need be there.

  Raises:
    UserError: names what is not private, and what would be right.
  """
  root = path.parent.parent
  for each in (*reversed(root.resolve().parents), root, root.resolve(), path.parent, path, _record_path(path)):
    try:
      found = each.lstat()
    except (FileNotFoundError, NotADirectoryError):
      continue
    is_above = each in root.resolve().parents
    if is_above and not (found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX):
      continue  # Whose folder this is, others may well say; in a sticky one, /tmp say, names belong to their makers.
    if found.st_uid not in (os.getuid(), 0) and not is_above:
      raise UserError(
        f"cache {each}: it belongs to another user ({found.st_uid}); set VISION_CACHE to a folder of yours"
      )
    if is_above or (found.st_mode & _WRITERS and not stat.S_ISLNK(found.st_mode)):
      remedy = "" if is_above else f"chmod -R go-w {root}, or "
      mode = stat.S_IMODE(found.st_mode)
      raise UserError(f"cache {each}: others can write to it (mode {mode:o}); {remedy}set VISION_CACHE to another")


@contextlib.contextmanager
def lock(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
  """Holds the lock of a cached file, so that one process of this machine brings it and the others wait.

  Args:
    path: the file, whose folder is made where it is not there.
    waiting: called before it waits for another.

  Raises:
    UserError: the folder cannot be written to, or is not private.
  """
  try:
    root = path.parent.parent
    root.parent.mkdir(parents=True, exist_ok=True)
    if not root.exists():
      root.mkdir(mode=0o700, exist_ok=True)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    check_private(path)
    with open(path.with_name(f"{path.name}.lock"), "wb", opener=private) as held:
      try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        waiting()
        fcntl.flock(held, fcntl.LOCK_EX)
      yield
  except OSError as error:
    reason = error.strerror or type(error).__name__
    raise UserError(f"cache folder {path.parent}: cannot be written ({reason}); set VISION_CACHE to another") from None


def private(path: str, flags: int) -> int:
  """Opens a file that its owner alone reads and writes, for `open(opener=private)`; as `files.not_through_a_link`."""
  opened = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
  os.fchmod(opened, 0o600)  # One that was there keeps its mode otherwise.
  return opened


def record(path: Path, facts: Mapping[str, Any], sums: Mapping[str, Mapping[str, str]]) -> None:
  """Writes down what came, beside it.

  Args:
    path: of the cached file, or of the folder of a model.
    facts: to be kept with it, for people.
    sums: `{algorithm: hex digest}` of each file by its name in the folder; "" is the file itself.
  """
  seen = {name: {"sums": dict(of_file), **_times(_inside(path, name))} for name, of_file in sums.items()}
  with files.replacing(_record_path(path)) as file:
    os.fchmod(file.fileno(), 0o600)
    file.write(json.dumps({**facts, "files": seen}, indent=1).encode())


def is_complete(path: Path) -> bool:
  """Returns whether the cache has a file or model as it came; one put there by hand has no record, and counts.

  A file whose times are not those of its record is compared with its checksum.
  """
  try:
    text = _record_path(path).read_text()
  except FileNotFoundError:
    return path.exists()
  except (OSError, ValueError):
    return False
  try:
    held = json.loads(text)
    stated = _stated(held)
    changed = [name for name, of_file in stated.items() if not _is_as_seen(_inside(path, name), of_file)]
    if not all(_is_as_stated(_inside(path, name), stated[name]) for name in changed):
      return False
  except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError):
    return False  # What else may stand there is none of ours, and the file is brought anew.
  if changed:
    with contextlib.suppress(OSError):  # A cache that is only read.
      record(path, held, {name: of_file["sums"] or sha256(_inside(path, name)) for name, of_file in stated.items()})
  return True


def digest(path: Path, algorithm: str) -> str:
  """Returns the checksum of a file in hex: "sha256", "md5" or "crc32c"."""
  if algorithm == "crc32c":
    import google_crc32c

    made = google_crc32c.Checksum()
  else:
    made = hashlib.new(algorithm, usedforsecurity=False)
  with path.open("rb") as file:
    while block := file.read(_BLOCK):
      made.update(block)
  return made.digest().hex()


def sha256(path: Path) -> dict[str, str]:
  """Returns the SHA-256 of a file as `record` takes it."""
  return {"sha256": digest(path, "sha256")}


def strongest(sums: Mapping[str, str]) -> str | None:
  """Returns the algorithm of the strongest of some checksums; None of none."""
  return next((each for each in _ALGORITHMS if each in sums), None)


def _stated(held: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Returns what a record states of each file.

  Raises:
    ValueError, LookupError, TypeError: it is none.
  """
  if "files" not in held:  # Of an older form, as are sizes alone of the files of a model.
    return {"": {"size": held["size"], "sums": {each: held[each] for each in _ALGORITHMS if each in held}}}
  found = {}
  for name, of_file in held["files"].items():
    if name and not _NAME.fullmatch(name):
      raise ValueError(name)
    found[name] = {"size": of_file, "sums": {}} if isinstance(of_file, int) else of_file
  if not found:
    raise ValueError("no files")
  return found


def _is_as_seen(path: Path, stated: Mapping[str, Any]) -> bool:
  times = _times(path)
  return stated["size"] == times["size"] and stated.get("times") == times["times"]


def _is_as_stated(path: Path, stated: Mapping[str, Any]) -> bool:
  if path.stat().st_size != stated["size"]:
    return False
  algorithm = strongest(stated["sums"])
  return algorithm is None or digest(path, algorithm) == stated["sums"][algorithm]


def _times(path: Path) -> dict[str, Any]:
  """Returns what changes whenever a file is written to: nobody sets the second time, that of its last change."""
  found = path.stat()
  if not stat.S_ISREG(found.st_mode):
    raise ValueError(f"{path} is no file")
  return {"size": found.st_size, "times": [found.st_ino, found.st_mtime_ns, found.st_ctime_ns]}


def _inside(path: Path, name: str) -> Path:
  return path / name if name else path


def _record_path(path: Path) -> Path:
  return path.with_name(f"{path.name}.json")
