"""Files from elsewhere: `http(s)://`, `gs://` and `hf://` locations are downloaded once into a cache folder.

    $VISION_CACHE, else ~/.cache/vision
      0123456789abcdef/          from the whole URL
        weights.npz              complete, of the size and checksums that the server stated
        weights.npz.json         where it came from, its size and checksums
        weights.npz.part, .lock  see `download`; the processes of a machine take turns
        NAME/, NAME.json         a model of the hub (`hub`): its files, and their checksums and commit

A file that is there is used without asking the server again; remove its folder to have it fetched anew. Only a folder
to which nobody else writes is used (`cache`). Buckets are read anonymously, and with Google's default credentials where
that is refused. What is secret in a URL (user, password, query) and credentials are neither printed nor written down.
"""

import asyncio
import glob
import hashlib
import json
import os
import re
import shutil
import sys
import time
import urllib.parse
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax

from core import files, masking
from core.checkpoint import cache, download, hub
from core.errors import UserError
from core.live import Line


def fetch(location: str) -> Path:
  """Returns the local file of `location`: itself, or the copy in the cache, downloaded where it is not there yet.

  Args:
    location: a path; an `http(s)://` or `gs://BUCKET/NAME` URL; or `hf://ORG/NAME` of the hub, whose local form is a
      folder, or a file of it. With `#sha256=HEX` at its end a file must have that SHA-256, wherever it is from.

  Raises:
    UserError: it cannot be had, is neither a file nor a folder, or a checksum differs. That a path exists is left to
      its reader to find.
  """
  place, sha256 = _split_checksum(location)
  scheme, mark, _ = place.partition("://")
  if not mark or scheme == "file":
    path = Path(files.from_here(place))
    refuse_irregular(path)
    if sha256 and path.is_file():
      _check_sums(path, {"sha256": sha256}, f"{path}: it")
    return path
  if not _is_proper(place):
    raise UserError(f"{shown(place)}: no proper URL")
  if masking.is_masked(place):
    raise UserError(
      f"{masking.masked(place)}: what is secret was masked where this was written down; give the URL again"
    )
  if scheme not in ("http", "https", "gs", "hf"):
    raise UserError(f"{shown(place)}: {scheme}:// is not read; give a local path, http(s)://, gs:// or hf://")
  if scheme == "hf" and hub.parse(place) is None:
    raise UserError(f"{place}: no name of the hub; give hf://ORG/NAME, hf://ORG/NAME@REVISION or hf://ORG/NAME/FILE")
  is_model = hub.is_model(place)
  if is_model and sha256:
    raise UserError(f"{place}: #sha256= is of one file, and this is a model; pin it by hf://ORG/NAME@REVISION")
  path = cached_path(place)
  cache.check_private(path)
  if not cache.is_complete(path):
    with cache.lock(
      path, lambda: Line(_stderr()).say(f"waiting for another process, which is downloading {shown(place)}")
    ):
      if not cache.is_complete(path):  # Another process may have brought it meanwhile.
        _download_model(place, path) if is_model else _download_file(place, path)
  _check_sums(
    path,
    {"sha256": sha256} if sha256 else {},
    f"{shown(place)}: its copy {path}",
    "; remove that to fetch it anew",
  )
  return path


def cached_path(location: str) -> Path:
  """Returns where the cache keeps the file or model of a URL, be it there or not.

  Raises:
    UserError: VISION_CACHE is no folder of this machine.
  """
  name = re.sub(r"[^\w.+-]", "_", urllib.parse.urlsplit(location).path.rpartition("/")[2]).lstrip(".") or "file"
  return cache.folder() / hashlib.sha256(location.encode()).hexdigest()[:16] / name[-150:]


def shown(location: str) -> str:
  """Returns a URL without what may be secret in it."""
  if "://" not in location:
    return location
  if not _is_proper(location):
    return f"{location.partition('://')[0]}://..."
  url = urllib.parse.urlsplit(masking.masked_tree(location))
  return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"


def _is_proper(url: str) -> bool:
  try:
    urllib.parse.urlsplit(url)
    urllib.parse.urlsplit(masking.masked_tree(url))
  except ValueError:
    return False
  return True


def refuse_irregular(path: Path) -> None:
  """Refuses what is neither a file nor a folder and would be waited for, see `core.files.refuse_irregular`.

  Raises:
    UserError: a pipe, socket or device, or a link to one.
  """
  try:
    files.refuse_irregular(path)
  except OSError as error:
    raise UserError(f"{path}: {files.reason(error)}") from None


def _split_checksum(location: str) -> tuple[str, str | None]:
  place, mark, sha256 = location.partition("#sha256=")
  if mark and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
    raise UserError(f"{shown(place)}: #sha256= takes 64 hexadecimal digits, got {sha256!r}")
  return place, sha256.lower() or None


def _download_file(place: str, path: Path) -> None:
  """Brings one file into the cache.

  Raises:
    UserError: it cannot be had, and how to do without.
  """
  try:
    sums = _download_verified(place, path, lambda part, progress: _download(place, part, progress))
  except download.Failed as failed:
    raise UserError(f"{shown(place)}: {failed}; download it by hand to {path}, or give a local file") from None
  cache.record(path, {"location": shown(place)}, {"": sums})


def _download_model(place: str, path: Path) -> None:
  """Brings the weights and the config of a model of the hub into the cache.

  Raises:
    UserError: it cannot be had, and how to do without.
  """
  name = hub.parse(place)
  try:
    commit, there = hub.look_up(name)
    # A try that was broken off is gone on with if the hub still has the same commit.
    folder = path.with_name(f"{path.name}.{commit[:12]}.part")
    folder.mkdir(mode=0o700, exist_ok=True)

    def bring(file: str) -> Mapping[str, str]:
      url, headers = hub.url_of(name, file, commit)

      def get(part: Path, progress: _Progress) -> download.Facts:
        return _run(download.download(url, part, headers=headers, report=progress))

      if (folder / file).is_file():
        return cache.sha256(folder / file)
      return _download_verified(f"{place}/{file}", folder / file, get)

    weights = hub.weights_among(there)
    sums = {weights: bring(weights)}
    others = _shards(folder / weights) if weights.endswith(".index.json") else []
    others += [hub.CONFIG] if hub.CONFIG in there else []
    sums |= {file: bring(file) for file in others}
  except download.Failed as failed:
    raise UserError(f"{place}: {failed}; put its files by hand into {path}, or give a local folder") from None
  shutil.rmtree(path, ignore_errors=True)
  folder.replace(path)
  for older in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
    shutil.rmtree(older, ignore_errors=True)
  cache.record(path, {"location": place, "commit": commit}, sums)


def _shards(index: Path) -> list[str]:
  """Returns the files that an index of shards names.

  Raises:
    download.Failed: it names none, or ones outside the model.
  """
  try:
    found = sorted(set(json.loads(index.read_text())["weight_map"].values()))
  except (ValueError, LookupError, TypeError, AttributeError):
    found = []
  if not found or not all(isinstance(file, str) and re.fullmatch(r"[\w-][\w.-]*", file) for file in found):
    raise download.Failed(f"its {index.name} names no shards")
  return found


def _download_verified(place: str, path: Path, get: Callable[[Path, "_Progress"], download.Facts]) -> Mapping[str, str]:
  """Puts what `get` brings in the place of `path` if it has the checksums that the server stated; returns its SHA-256.

  Raises:
    download.Failed: of `get`.
    UserError: a checksum differs.
  """
  part = path.with_name(f"{path.name}.part")
  progress = _Progress(shown(place))
  try:
    facts = get(part, progress)
  finally:
    progress.end()
  try:
    _check_sums(part, facts.sums, f"{shown(place)}: the file that came")
  except UserError:
    _remove(part)
    raise
  sums = {"sha256": facts.sums["sha256"]} if "sha256" in facts.sums else cache.sha256(part)
  with part.open("rb") as file:
    os.fsync(file.fileno())
  part.replace(path)
  _remove(part)
  return sums


def _download(place: str, part: Path, progress: "_Progress") -> download.Facts:
  if (name := hub.parse(place)) is not None:
    url, headers = hub.url_of(name, name.file, name.revision)
    return _run(download.download(url, part, headers=headers, report=progress))
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
  """Returns the URL and headers by which an object of Google Cloud Storage is read."""
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


def _check_sums(path: Path, stated: Mapping[str, str], what: str, remedy: str = "") -> None:
  """Compares the strongest of the stated checksums.

  Raises:
    UserError: it differs.
  """
  algorithm = cache.strongest(stated)
  if algorithm and (found := cache.digest(path, algorithm)) != stated[algorithm]:
    raise UserError(f"{what} has the {algorithm} {found}, not {stated[algorithm]}{remedy}")


def _remove(part: Path) -> None:
  for path in (part, part.with_name(f"{part.name}.json")):
    path.unlink(missing_ok=True)


def _stderr() -> TextIO | None:
  """Returns where the first process tells what happens; None in the others."""
  # A job of one process may not have started JAX yet, and asking would.
  return sys.stderr if not jax.distributed.is_initialized() or jax.process_index() == 0 else None


class _Progress:
  """Tells on stderr how far a download is: in a live line on a terminal, in a line now and then elsewhere."""

  def __init__(self, name: str):
    self._name = name
    self._line = Line(_stderr())
    self._began: tuple[float, int] | None = None  # Time and bytes of the first report.
    self._said = 0.0
    self._latest = (0, 0)

  def __call__(self, there: int, size: int | None) -> None:
    now = time.monotonic()
    if self._began is None:
      self._began, self._said = (now, there), now
    self._latest = (there, size or 0)
    if self._line.live:
      self._line.draw(self._words)
    elif now - self._said > 10:
      self._said = now
      self._line.say(self._words())

  def end(self) -> None:
    """Leaves the last state as a line."""
    if self._began is not None:
      self._line.say(self._words())

  def _words(self) -> str:
    now = time.monotonic()
    (there, size), (then, before) = self._latest, self._began or (now, 0)
    rate = (there - before) / max(now - then, 1e-3)
    whole = f" of {size / 1e6:,.1f}" if size else ""
    return f"downloading {there / 1e6:,.1f}{whole} MB, {rate / 1e6:,.1f} MB/s: {self._name}"
