"""One file over HTTP, whole or not at all, picked up where an interrupted download left it.

    NAME.part         what has come so far
    NAME.part.json    the size, version and checksums that the server stated for it

Halves of two versions never mix: a download goes on only if the server says that the file is still of the recorded
version (RFC 9110, section 13.1.5, `If-Range`), and what it answers is compared with the record.

aiohttp streams the body itself: fsspec's files hide whether a server kept to the range that was asked for. What comes
by https comes by https to the end: a redirect to http, where anybody on the way could change it, is refused.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import dataclasses
import json
import os
import re
import shutil
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from core.checkpoint import cache
from core.late import Late

aiohttp = Late("aiohttp")

CONNECT_SECONDS = 5.0  # Name lookup included.
SILENT_SECONDS = 30.0  # Without a byte, a connection counts as broken.
TRIES = 3  # In a row that bring nothing.
PAUSE_SECONDS = 0.5  # Before the second try; doubles.

_BLOCK = 1 << 22
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_DIGITS = {"crc32c": 8, "md5": 32, "sha256": 64}  # Hexadecimal ones, of a checksum.


class Failed(Exception):
  """A download that cannot be had, with the reason in a few words and HTTP's status, where it came to one."""

  def __init__(self, reason: str, status: int | None = None):
    super().__init__(reason)
    self.status = status


class _Broken(Exception):
  """An attempt that may do better the next time."""


@dataclasses.dataclass(frozen=True)
class Facts:
  """What a server states of a file.

  Attributes:
    size: in bytes, None where it does not say.
    version: a value that changes with the content, None where there is none to rely on.
    sums: `{algorithm: hex digest}` of "crc32c", "md5", "sha256".
  """

  size: int | None
  version: str | None
  sums: Mapping[str, str]


async def download(
  url: str, part: Path, *, headers: Mapping[str, str], report: Callable[[int, int | None], None]
) -> Facts:
  """Brings `url` whole into `part`.

  Args:
    url: `http(s)://`; redirects are followed.
    part: where it goes; what an earlier call left there is used if it is of the same version.
    headers: to send, credentials for one.
    report: called with (bytes there, bytes in all or None) as they come.

  Raises:
    Failed: refused by the server, not reachable, broken off again and again, or the disk is full.
  """
  timeout = aiohttp.ClientTimeout(
    total=None, connect=CONNECT_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS
  )
  fruitless = 0
  redirects = aiohttp.TraceConfig()
  redirects.on_request_redirect.append(_refuse_downgrade)
  options = dict(timeout=timeout, trace_configs=[redirects], read_bufsize=_BLOCK)
  # trust_env: proxies of the environment.
  async with aiohttp.ClientSession(trust_env=True, **options) as session:
    while True:
      before = _size(part)
      try:
        return await _attempt(session, url, part, headers, report)
      except (aiohttp.ClientError, ConnectionError, TimeoutError, _Broken) as error:
        fruitless = 1 if _size(part) > before else fruitless + 1
        if fruitless == TRIES or _is_final(error):
          raise Failed(_words(error), getattr(error, "status", None)) from None
      except OSError as error:
        _forget(part)  # A full disk hurts more than a lost half.
        raise Failed(f"{part} cannot be written ({error.strerror or type(error).__name__})") from None
      except ValueError:  # aiohttp's own, of an answer that it cannot take apart.
        raise Failed("the server answers with what is no HTTP") from None
      await asyncio.sleep(PAUSE_SECONDS * 2 ** (fruitless - 1))


async def _refuse_downgrade(session: Any, context: Any, redirect: aiohttp.TraceRequestRedirectParams) -> None:
  """Refuses, before anything is asked of it, a place without TLS that one with TLS names.

  Raises:
    Failed: it does.
  """
  to = redirect.response.headers.get("Location") or redirect.response.headers.get("URI") or ""
  try:
    scheme = urllib.parse.urlsplit(urllib.parse.urljoin(str(redirect.response.url), to)).scheme
  except ValueError:  # aiohttp has a word for it.
    return
  if redirect.response.url.scheme == "https" and scheme != "https":
    raise Failed("the server redirects from https to http, which anybody on the way can change")


async def _attempt(
  session: aiohttp.ClientSession,
  url: str,
  part: Path,
  headers: Mapping[str, str],
  report: Callable[[int, int | None], None],
) -> Facts:
  known = _recorded(part)
  there = _size(part) if known else 0
  if known and there == known.size:
    return known
  asked = {"Accept-Encoding": "identity", **headers}
  if there:
    asked |= {"Range": f"bytes={there}-", "If-Range": known.version}
  async with session.get(url, headers=asked) as response:
    if there and response.status in (200, 206, 412, 416) and not _goes_on(response, there, known):
      _forget(part)
      if response.status != 200:
        return await _attempt(session, url, part, headers, report)
      there = 0
    if response.status == 206 and not there:
      raise Failed("the server answers with a part of the file (HTTP 206), and the whole was asked for", 206)
    if response.status not in (200, 206):
      raise (_Broken if response.status in _TRY_AGAIN else Failed)(*_refusal(response))
    facts = known if there else _facts(response)
    _check_room(part, there, facts.size)
    with open(part, "ab" if there else "wb", opener=cache.private) as file:
      if not there:
        _record(part, facts)
      await _stream(response, file, there, facts.size, report)
  if facts.size is not None and _size(part) != facts.size:
    raise _Broken(f"{_size(part):,} of {facts.size:,} bytes came")
  return facts


async def _stream(
  response: aiohttp.ClientResponse,
  file: IO[bytes],
  there: int,
  size: int | None,
  report: Callable[[int, int | None], None],
) -> None:
  report(there, size)
  async for block in response.content.iter_chunked(_BLOCK):
    file.write(block)
    there += len(block)
    report(there, size)


def _goes_on(response: aiohttp.ClientResponse, there: int, known: Facts) -> bool:
  """Returns whether the answer is the rest of what is there, of the same version."""
  match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
  same = match and (int(match[1]), int(match[2])) == (there, known.size)
  return bool(same) and response.status == 206 and _version(response) == known.version


def _facts(response: aiohttp.ClientResponse) -> Facts:
  length = response.headers.get("Content-Length", "")
  plain = response.headers.get("Content-Encoding", "identity") == "identity"
  size = int(length) if plain and re.fullmatch(r"[0-9]{1,18}", length) else None
  return Facts(size, _version(response) if size is not None else None, _sums(response))


def _version(response: aiohttp.ClientResponse) -> str | None:
  etag = response.headers.get("ETag", "")
  # A weak one, W/"...", promises no equal bytes.
  version = etag if etag.startswith('"') else None if etag else response.headers.get("Last-Modified")
  return version if version and re.fullmatch(r"[ -~]{1,1000}", version) else None  # It is sent back as it came.


def _sums(response: aiohttp.ClientResponse) -> dict[str, str]:
  """Checksums of the whole file, as Google Cloud Storage and Hugging Face state them."""
  sums = {}
  for value in response.headers.getall("x-goog-hash", []):
    for algorithm, digest in re.findall(r"(crc32c|md5)=([A-Za-z0-9+/=]+)", value):
      with contextlib.suppress(binascii.Error):
        sums[algorithm] = base64.b64decode(digest).hex()
  for each in (*response.history, response):
    if match := re.fullmatch(r'"([0-9a-f]{64})"', each.headers.get("x-linked-etag", "")):
      sums["sha256"] = match[1]
  return {algorithm: digest for algorithm, digest in sums.items() if len(digest) == _DIGITS[algorithm]}


def _recorded(part: Path) -> Facts | None:
  """Returns what is known of the version that `part` holds the beginning of; None where it cannot be gone on with."""
  try:
    facts = Facts(**json.loads(_record_path(part).read_text()))
    of_kinds = isinstance(facts.size, int) and isinstance(facts.version, str) and isinstance(facts.sums, dict)
    is_ours = of_kinds and all(re.fullmatch(rf"[0-9a-f]{{{_DIGITS[key]}}}", sum_) for key, sum_ in facts.sums.items())
  except (OSError, ValueError, TypeError, LookupError, RecursionError):
    return None
  return facts if is_ours and re.fullmatch(r"[ -~]+", facts.version) and 0 < _size(part) <= facts.size else None


def _record(part: Path, facts: Facts) -> None:
  with open(_record_path(part), "w", opener=cache.private) as file:
    file.write(json.dumps(dataclasses.asdict(facts)))


def _record_path(part: Path) -> Path:
  return part.with_name(f"{part.name}.json")


def _forget(part: Path) -> None:
  part.unlink(missing_ok=True)
  _record_path(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
  return path.stat().st_size if path.exists() else 0


def _check_room(part: Path, there: int, size: int | None) -> None:
  needed, free = (size or 0) - there, shutil.disk_usage(part.parent).free
  if needed > free:
    raise Failed(f"it takes {needed:,} bytes, and the disk of {part.parent} has {free:,} left")


def _refusal(response: aiohttp.ClientResponse) -> tuple[str, int]:
  words = {401: "access denied", 403: "access denied", 404: "there is no such file", 410: "there is no such file"}
  return f"{words.get(response.status, 'the server refused')} (HTTP {response.status})", response.status


def _is_final(error: Exception) -> bool:
  return isinstance(
    error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError | aiohttp.ClientSSLError | aiohttp.TooManyRedirects
  )


def _words(error: Exception) -> str:
  """Returns the reason in a few words. aiohttp's own may hold the URL, and that a password."""
  match error:
    case _Broken():
      return str(error.args[0])
    case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError():
      return "no proper URL"
    case aiohttp.TooManyRedirects():
      return "it redirects in a circle"
    case aiohttp.ClientConnectorCertificateError():
      return "the server's certificate is not trusted"
    case aiohttp.ClientSSLError():
      return "the server makes no secure connection"
    case aiohttp.ClientConnectorError():
      number, words = error.os_error.errno, error.os_error.strerror  # asyncio's words hold addresses.
      return f"it cannot be reached ({os.strerror(number) if number and number > 0 else words or 'no connection'})"
    case aiohttp.ClientHttpProxyError():
      return f"the proxy refused (HTTP {error.status})"
    case TimeoutError():
      return "no answer within the time limit"
  return "the connection broke off"
