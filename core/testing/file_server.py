"""A web server on loopback with one file and the manners that a test gives it, and a cache folder of the test's own.

A test module has its fixtures by `pytest_plugins = ["core.testing.file_server"]`.
"""

import base64
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from core.checkpoint import download, remote
from core.errors import UserError

CONTENT = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)


class Server:
  """Serves one file whatever the path, with the manners that a test gives it.

  Attributes:
    content: of the file.
    headers: sent besides; `ETag` is the version.
    ranges: answer `Range` with a part.
    if_range: know `If-Range`; without it a part is sent even if the version is another.
    length: state `Content-Length`; without it the body is sent in chunks.
    cut: close the connection after so many bytes of a body.
    status: answer that, without the file.
    open: answers wait until it is set.
    token: ask for `Authorization: Bearer TOKEN`.
    requests: (path, range asked for or None, bytes sent) of each.
  """

  def __init__(self):
    self.content, self.headers = CONTENT, {"ETag": '"1"'}
    self.ranges = self.if_range = self.length = True
    self.cut, self.status, self.token = None, 200, None
    self.open = threading.Event()
    self.open.set()
    self.requests = []
    server = self

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"

      def do_GET(self):
        server._answer(self)

      def log_message(self, *_):
        pass

    self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self.url = f"http://127.0.0.1:{self._http.server_port}"
    threading.Thread(target=self._http.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True).start()

  def _answer(self, request):
    asked, body, status = request.headers.get("Range"), self.content, self.status
    self.open.wait(60)
    if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
      status = 401
    same = not self.if_range or request.headers.get("If-Range") == self.headers.get("ETag")
    headers = dict(self.headers)
    if status != 200:
      body, headers = b"", {}
    elif asked and self.ranges and same:
      start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
      status, body = 206, body[start:]
      headers["Content-Range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
    sent = body if self.cut is None else body[: self.cut]
    self.requests.append((request.path, asked, len(sent)))
    request.send_response(status)
    for name, value in headers.items():
      request.send_header(name, value)
    if self.length:
      request.send_header("Content-Length", str(len(body)))
      request.end_headers()
      request.wfile.write(sent)
    else:
      request.send_header("Transfer-Encoding", "chunked")
      request.end_headers()
      request.wfile.write(b"%x\r\n%b\r\n" % (len(sent), sent) + (b"0\r\n\r\n" if len(sent) == len(body) else b""))
    request.close_connection = True

  def close(self):
    self.open.set()
    self._http.shutdown()
    self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
  """Gives a server that is closed at the end of the test."""
  server = Server()
  yield server
  server.close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
  """Gives the cache folder, which is empty; no proxy stands between, and tries follow each other fast."""
  for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("VISION_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(download, "PAUSE_SECONDS", 0.01)
  return tmp_path / "cache"


def refused(location: str) -> str:
  """Returns the one line with which `remote.fetch` refuses a location."""
  with pytest.raises(UserError) as error:
    remote.fetch(location)
  line = str(error.value)
  assert "\n" not in line
  assert len(line) <= 300
  return line


def files_of(cache: Path) -> list[str]:
  """Returns the names of what the cache holds, but for the locks."""
  return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")


def as_google_states(**sums: bytes) -> dict[str, str]:
  """Returns headers with checksums as Google Cloud Storage states them."""
  return {"ETag": '"1"', "x-goog-hash": ",".join(f"{k}={base64.b64encode(v).decode()}" for k, v in sums.items())}
