"""Files from elsewhere: `http(s)://` and `gs://` locations are downloaded once into a cache folder.

    $VISION_CACHE, else ~/.cache/vision
      0123456789abcdef/          from the whole URL
        weights.npz              complete, of the size and checksums that the server stated
        weights.npz.json         where it came from, its size and checksums
        weights.npz.part, .lock  see `download`; the processes of a machine take turns

A file that is there is used without asking the server again; remove its folder to have it fetched anew. Buckets are
read anonymously, and with Google's default credentials where that is refused. What is secret in a URL (user, password,
query) and credentials are neither printed nor written down.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import re
import sys
import time
import urllib.parse
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from core import files, terminal
from core.checkpoint import download
from core.errors import UserError

_BLOCK = 1 << 22


def fetch(location: str) -> Path:
  """The local file of `location`: itself, or the copy in the cache, which is downloaded where it is not there yet.

  Args:
    location: a path, or an `http(s)://` or `gs://BUCKET/NAME` URL. With `#sha256=HEX` at its end the file must have
      that SHA-256, wherever it is from.

  Raises:
    UserError: it cannot be had, or a checksum differs. That a path exists is left to its reader to find.
  """
  place, sha256 = _split_checksum(location)
  if "://" not in place:
    path = files.from_here(place)
    if sha256 and path.is_file():
      _check_sums(path, {"sha256": sha256}, f"{path}: it")
    return path
  scheme = place.partition("://")[0]
  if scheme not in ("http", "https", "gs"):
    raise UserError(f"{shown(place)}: {scheme}:// is not read; give a local path, http(s):// or gs://")
  path = cached_path(place)
  stated = {"sha256": sha256} if sha256 else {}
  if not _is_complete(path):
    with _turn(path, place):
      if not _is_complete(path):  # Another process may have brought it meanwhile.
        _bring(place, path)
  _check_sums(path, stated, f"{shown(place)}: its copy {path}", "; remove that to fetch it anew")
  return path


def cached_path(location: str) -> Path:
  """Where the cache keeps the file of a URL, be it there or not."""
  folder = files.from_here(os.environ.get("VISION_CACHE") or "~/.cache/vision")
  name = re.sub(r"[^\w.+-]", "_", urllib.parse.urlsplit(location).path.rpartition("/")[2]) or "file"
  return folder / hashlib.sha256(location.encode()).hexdigest()[:16] / name[-150:]


def shown(location: str) -> str:
  """A URL without what may be secret in it."""
  if "://" not in location:
    return location
  url = urllib.parse.urlsplit(location)
  return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"


def _split_checksum(location: str) -> tuple[str, str | None]:
  place, mark, sha256 = location.partition("#sha256=")
  if mark and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
    raise UserError(f"{shown(place)}: #sha256= takes 64 hexadecimal digits, got {sha256!r}")
  return place, sha256.lower() or None


def _bring(place: str, path: Path) -> None:
  part = path.with_name(f"{path.name}.part")
  progress = _Progress(shown(place))
  try:
    facts = _download(place, part, progress)
  except download.Failed as failed:
    raise UserError(f"{shown(place)}: {failed}; download it by hand to {path}, or give a local file") from None
  finally:
    progress.end()
  try:
    _check_sums(part, facts.sums, f"{shown(place)}: the file that came")
  except UserError:
    _remove(part)
    raise
  record = {"location": shown(place), "size": part.stat().st_size, **facts.sums}
  with files.replacing(path.with_name(f"{path.name}.json")) as file:
    file.write(json.dumps(record, indent=1).encode())
  with part.open("rb") as file:
    os.fsync(file.fileno())
  part.replace(path)
  _remove(part)


def _download(place: str, part: Path, progress: "_Progress") -> download.Facts:
  if not place.startswith("gs://"):
    return _run(download.download(place, part, headers={}, report=progress))
  url, headers = _google(place, "anon")
  try:
    return _run(download.download(url, part, headers=headers, report=progress))
  except download.Failed as failed:
    if failed.status not in (401, 403):
      raise
  url, headers = _google(place, "google_default")
  return _run(download.download(url, part, headers=headers, report=progress))


def _google(place: str, token: str) -> tuple[str, dict[str, str]]:
  """The URL and headers by which an object of Google Cloud Storage is read."""
  import google.auth.exceptions
  from gcsfs.core import GCSFileSystem  # It takes seconds to import.

  headers: dict[str, str] = {}
  try:
    bucket = GCSFileSystem(token=token, skip_instance_cache=True)
    bucket.credentials.apply(headers)
  except google.auth.exceptions.DefaultCredentialsError:
    raise download.Failed(
      "not public, or not there, and there are no Google credentials here (gcloud auth application-default login)"
    ) from None
  except Exception as error:  # Whatever stands in the way of a token; its words could hold one.
    raise download.Failed(
      f"not public, or not there, and Google refused the credentials ({type(error).__name__})"
    ) from None
  return bucket.url(place), headers


def _run(coroutine: Coroutine[Any, Any, download.Facts]) -> download.Facts:
  """Runs a coroutine to its end, also where an event loop is running already (a notebook); Ctrl-C ends it."""
  import fsspec.asyn

  future = asyncio.run_coroutine_threadsafe(coroutine, fsspec.asyn.get_loop())
  try:
    return future.result()
  except BaseException:
    future.cancel()
    raise


@contextlib.contextmanager
def _turn(path: Path, place: str) -> Iterator[None]:
  """Holds the lock of a cached file, so that one process of this machine brings it and the others wait."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        _say(f"waiting for another process, which is downloading {shown(place)}")
        fcntl.flock(lock, fcntl.LOCK_EX)
      yield
  except OSError as error:
    reason = error.strerror or type(error).__name__
    raise UserError(f"cache folder {path.parent}: cannot be written ({reason}); set VISION_CACHE to another") from None


def _is_complete(path: Path) -> bool:
  """Whether the cached file is there, of the size it came with. One put there by hand has no record."""
  try:
    record = json.loads(path.with_name(f"{path.name}.json").read_text())
  except (OSError, ValueError):
    record = {}
  return path.is_file() and record.get("size", path.stat().st_size) == path.stat().st_size


def _check_sums(path: Path, stated: Mapping[str, str], what: str, remedy: str = "") -> None:
  """Compares the strongest of the stated checksums.

  Raises:
    UserError: it differs.
  """
  algorithm = next((each for each in ("sha256", "crc32c", "md5") if each in stated), None)
  if algorithm and (found := _digest(path, algorithm)) != stated[algorithm]:
    raise UserError(f"{what} has the {algorithm} {found}, not {stated[algorithm]}{remedy}")


def _digest(path: Path, algorithm: str) -> str:
  if algorithm == "crc32c":
    import google_crc32c

    digest = google_crc32c.Checksum()
  else:
    digest = hashlib.new(algorithm, usedforsecurity=False)
  with path.open("rb") as file:
    while block := file.read(_BLOCK):
      digest.update(block)
  return digest.digest().hex()


def _remove(part: Path) -> None:
  for path in (part, part.with_name(f"{part.name}.json")):
    path.unlink(missing_ok=True)


def _say(line: str, end: str = "\n") -> None:
  # A job of one process may not have started JAX yet, and asking would.
  if not jax.distributed.is_initialized() or jax.process_index() == 0:
    print(line, end=end, file=sys.stderr, flush=True)


class _Progress:
  """Says on stderr how far a download is: a line that redraws itself on a terminal, a line now and then elsewhere."""

  def __init__(self, name: str):
    self._name = name
    self._live = sys.stderr.isatty()
    self._began: tuple[float, int] | None = None  # Time and bytes of the first report.
    self._said = 0.0
    self._latest = (0, 0)

  def __call__(self, there: int, size: int | None) -> None:
    now = time.monotonic()
    if self._began is None:
      self._began, self._said = (now, there), 0.0 if self._live else now
    self._latest = (there, size or 0)
    if now - self._said > (0.2 if self._live else 10):
      self._said = now
      self._draw(self._line(now))

  def end(self) -> None:
    """Leaves the last state as a line."""
    if self._began is not None:
      self._draw(self._line(time.monotonic()), end="\n")

  def _draw(self, line: str, end: str = "") -> None:
    if self._live:
      _say(terminal.redrawn(line), end)
    else:
      _say(line)

  def _line(self, now: float) -> str:
    (there, size), (then, before) = self._latest, self._began or (now, 0)
    rate = (there - before) / max(now - then, 1e-3)
    whole = f" of {size / 1e6:,.1f}" if size else ""
    return f"downloading {there / 1e6:,.1f}{whole} MB, {rate / 1e6:,.1f} MB/s: {self._name}"
