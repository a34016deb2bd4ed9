"""A hub of models on loopback, for tests: the part of Hugging Face's HTTP interface that names and brings files."""

import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from typing import Any


class Hub:
  """Serves models from memory.

  Attributes:
    models: `{"ORG/NAME": {revision: {file: content}}}`; the newest revision is "main".
    status: the HTTP status of every answer, 200 for what there is.
    error_code: the header by which the hub tells why it refuses.
    failing: a file that is answered by 503, or None.
    requests: the paths that were asked for.
    tokens: what came as `Authorization`.
    url: for `HF_ENDPOINT`.
  """

  def __init__(self):
    self.models: dict[str, dict[str, dict[str, bytes]]] = {}
    self.status, self.error_code = 200, None
    self.failing: str | None = None
    self.requests: list[str] = []
    self.tokens: set[str | None] = set()
    hub = self

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"

      def do_GET(self) -> None:
        hub._answer(self)

      def log_message(self, *_: Any) -> None:
        pass

    self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self.url = f"http://127.0.0.1:{self._http.server_port}"
    threading.Thread(target=self._http.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True).start()

  def close(self) -> None:
    """Stops to serve."""
    self._http.shutdown()
    self._http.server_close()

  def commit_of(self, model: str, revision: str) -> str:
    """Returns the commit that a revision stands for: a digest of its files."""
    files = self.models[model][revision]
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()

  def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
    path = request.path.partition("?")[0]
    self.requests.append(path)
    self.tokens.add(request.headers.get("Authorization"))
    status, content, headers = self._find(path) if self.status == 200 else (self.status, b"{}", {})
    if status != 200 and self.error_code:
      headers = headers | {"X-Error-Code": self.error_code}
    request.send_response(status)
    for name, value in headers.items():
      request.send_header(name, value)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    with contextlib.suppress(ConnectionError):
      request.wfile.write(content)

  def _find(self, path: str) -> tuple[int, bytes, dict[str, str]]:
    asked = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path)
    brought = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
    model, revision = (asked or brought).groups()[:2] if asked or brought else ("", None)
    if model not in self.models:
      return 404, b"{}", {"X-Error-Code": "RepoNotFound"}
    names = {self.commit_of(model, name): name for name in self.models[model]}
    revision = names.get(revision or "main", revision or "main")
    if revision not in self.models[model]:
      return 404, b"{}", {"X-Error-Code": "RevisionNotFound"}
    files = self.models[model][revision]
    if asked:
      siblings = [{"rfilename": name} for name in files]
      answer = {"id": model, "modelId": model, "sha": self.commit_of(model, revision), "siblings": siblings}
      return 200, json.dumps(answer).encode(), {"Content-Type": "application/json"}
    if brought[3] == self.failing:
      return 503, b"", {}
    if brought[3] not in files:
      return 404, b"{}", {"X-Error-Code": "EntryNotFound"}
    content = files[brought[3]]
    return 200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'}


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
  """Gives a hub that is served meanwhile."""
  hub = Hub()
  try:
    yield hub
  finally:
    hub.close()
