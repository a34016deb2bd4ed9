"""A bucket of Google Cloud Storage on loopback, for tests: the part of its JSON API that gcsfs and TensorStore call."""

import base64
import contextlib
import hashlib
import http.server
import json
import os
import re
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

from etils import epath


class Bucket:
  """Serves objects that it keeps in memory, whatever the bucket's name.

  Attributes:
    objects: `{"BUCKET/NAME": content}`.
    refuses: the HTTP status by which writes are refused, or None.
    environment: the variables that lead gcsfs and TensorStore here.
  """

  def __init__(self):
    self.objects: dict[str, bytes] = {}
    self.refuses: int | None = None
    self._generations: dict[str, int] = {}
    self._uploads: dict[str, list] = {}
    self._lock = threading.RLock()
    bucket = self

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"

      def _any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        with bucket._lock:
          bucket._answer(self, self.rfile.read(length))

      do_GET = do_POST = do_PUT = do_DELETE = _any

      def log_message(self, *_: Any) -> None:
        pass

    class Server(http.server.ThreadingHTTPServer):
      def handle_error(self, *_: Any) -> None:
        pass  # A client that has what it wanted breaks off its other requests.

    self._http = Server(("127.0.0.1", 0), Handler)
    self.url = f"http://127.0.0.1:{self._http.server_port}"
    self.environment = {
      "STORAGE_EMULATOR_HOST": self.url,
      "TENSORSTORE_GCS_HTTP_URL": self.url,
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
      # Where credentials are asked for: there are none.
      **dict.fromkeys(("GCE_METADATA_ROOT", "GCE_METADATA_HOST", "GCE_METADATA_IP"), self.url.removeprefix("http://")),
    }
    threading.Thread(target=self._http.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True).start()

  def close(self) -> None:
    """Stops to serve."""
    self._http.shutdown()
    self._http.server_close()

  def _answer(self, request: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
    url = urllib.parse.urlsplit(request.path)
    query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
    match = re.fullmatch(
      r"(/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/([^/]+))?(?:/(rewriteTo|moveTo)/(.*))?)?", url.path
    )
    if match is None:
      return _send(request, 404, {"error": {"code": 404, "message": f"no such address {url.path}"}})
    kind, bucket, name, verb, target = match.groups()
    name = urllib.parse.unquote(name or "")
    writes = request.command != "GET"
    if writes and self.refuses:
      return _send(request, self.refuses, {"error": {"code": self.refuses, "message": "Forbidden: hunter2"}})
    if kind == "/upload":
      return self._upload(request, bucket, query, body)
    if verb:
      return self._copy(request, f"{bucket}/{name}", target, verb)
    if name:
      return self._object(request, f"{bucket}/{name}", query)
    if url.path.endswith("/o"):
      return self._list(request, bucket, query)
    return _send(request, 200, {"kind": "storage#bucket", "name": bucket})

  def _object(self, request: http.server.BaseHTTPRequestHandler, key: str, query: dict[str, str]) -> None:
    if key not in self.objects:
      return _send(request, 404, {"error": {"code": 404, "message": f"No such object: {key}"}})
    if request.command == "DELETE":
      del self.objects[key]
      return _send(request, 204, None)
    if query.get("alt") != "media":
      return _send(request, 200, self._describe(key))
    content, status, headers = self.objects[key], 200, {"x-goog-generation": str(self._generations[key])}
    if asked := re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", "")):
      first = int(asked[1]) if asked[1] else max(0, len(content) - int(asked[2]))
      last = min(int(asked[2]), len(content) - 1) if asked[1] and asked[2] else len(content) - 1
      if first > last:
        return _send(request, 416, None)
      headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
      content, status = content[first : last + 1], 206
    return _send(request, status, content, headers)

  def _list(self, request: http.server.BaseHTTPRequestHandler, bucket: str, query: dict[str, str]) -> None:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
    items, prefixes = [], set()
    for key in sorted(self.objects):
      name = key.removeprefix(f"{bucket}/")
      if name == key or not name.startswith(prefix):
        continue
      below, slash, _ = name.removeprefix(prefix).partition(delimiter or "\0")
      if slash:
        prefixes.add(f"{prefix}{below}{slash}")
      elif (query.get("startOffset", "") <= name) and not (query.get("endOffset") and name >= query["endOffset"]):
        items.append(self._describe(key))
    _send(request, 200, {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

  def _copy(self, request: http.server.BaseHTTPRequestHandler, key: str, target: str, verb: str) -> None:
    if key not in self.objects:
      return _send(request, 404, {"error": {"code": 404, "message": f"No such object: {key}"}})
    bucket, name = key.partition("/")[0], re.sub(r"^(b/[^/]+/)?o/", "", target)
    bucket = target.split("/")[1] if target.startswith("b/") else bucket
    new = f"{bucket}/{urllib.parse.unquote(name)}"
    self._put(new, self.objects[key])
    if verb == "moveTo":
      del self.objects[key]
      return _send(request, 200, self._describe(new))
    return _send(request, 200, {"done": True, "resource": self._describe(new)})

  def _upload(
    self, request: http.server.BaseHTTPRequestHandler, bucket: str, query: dict[str, str], body: bytes
  ) -> None:
    if upload := query.get("upload_id"):
      return self._continue(request, upload, body)
    name = query.get("name", "")
    if query.get("uploadType") == "multipart":
      boundary = re.search(r'boundary="?([^";]+)', request.headers["Content-Type"])[1].encode()
      _, described, content = body.split(b"--" + boundary)[:3]
      name = json.loads(described.split(b"\n\n", 1)[1])["name"]
      body = content.split(b"\n\n", 1)[1].removesuffix(b"\n")
    key = f"{bucket}/{name}"
    if query.get("ifGenerationMatch") == "0" and key in self.objects:
      return _send(request, 412, {"error": {"code": 412, "message": "conditionNotMet"}})
    if query.get("uploadType") == "resumable":
      upload = str(len(self._uploads))
      self._uploads[upload] = [key, b""]
      return _send(request, 200, {}, {"Location": f"{self.url}{request.path.split('?')[0]}?upload_id={upload}"})
    self._put(key, body)
    return _send(request, 200, self._describe(key))

  def _continue(self, request: http.server.BaseHTTPRequestHandler, upload: str, body: bytes) -> None:
    key, before = self._uploads[upload]
    whole = before + body
    self._uploads[upload][1] = whole
    if request.headers.get("Content-Range", "*").endswith(("/*", "*")):
      return _send(request, 308, None, {"Range": f"bytes=0-{len(whole) - 1}"} if whole else {})
    self._put(key, whole)
    return _send(request, 200, self._describe(key))

  def _put(self, key: str, content: bytes) -> None:
    self.objects[key] = content
    self._generations[key] = self._generations.get(key, 0) + 1

  def _describe(self, key: str) -> dict[str, Any]:
    bucket, _, name = key.partition("/")
    content = self.objects[key]
    return {
      "kind": "storage#object",
      "bucket": bucket,
      "name": name,
      "size": str(len(content)),
      "generation": str(self._generations[key]),
      "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
      "updated": "2026-01-01T00:00:00.000Z",
      "timeCreated": "2026-01-01T00:00:00.000Z",
    }


@contextlib.contextmanager
def serving() -> Iterator[Bucket]:
  """Gives a bucket that is served meanwhile, and that `gs://` leads to, in this process and in those it starts."""
  bucket = Bucket()
  before = {name: os.environ.get(name) for name in bucket.environment}
  os.environ.update(bucket.environment)
  _forget_buckets()
  try:
    yield bucket
  finally:
    bucket.close()
    for name, value in before.items():
      os.environ.pop(name) if value is None else os.environ.update({name: value})
    _forget_buckets()


def _forget_buckets() -> None:
  """Makes epath and gcsfs ask anew where buckets are."""
  import gcsfs

  gcsfs.GCSFileSystem.clear_instance_cache()
  epath.backend.fsspec_backend._get_filesystem.cache_clear()


def _send(
  request: http.server.BaseHTTPRequestHandler, status: int, body: Any, headers: dict[str, str] | None = None
) -> None:
  content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
  request.send_response(status)
  for name, value in (headers or {}).items():
    request.send_header(name, value)
  request.send_header("Content-Length", str(len(content)))
  request.end_headers()
  request.wfile.write(content)
