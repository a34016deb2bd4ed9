import base64
import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google.auth
import google.auth.credentials
import google.auth.exceptions
import jax
import numpy as np
import pytest

from core.checkpoint import download, pretrained, remote
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
def server():
  server = Server()
  yield server
  server.close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("VISION_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(download, "PAUSE_SECONDS", 0.01)
  return tmp_path / "cache"


def refused(location):
  with pytest.raises(UserError) as e:
    remote.fetch(location)
  assert "\n" not in str(e.value)
  return str(e.value)


def files_of(cache):
  """Names of what the cache holds, but for the locks."""
  return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")


# Once, whole, under its own name.


def test_a_local_path_is_its_own_file(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.setenv("BUILD_WORKING_DIRECTORY", str(tmp_path / "there"))
  assert remote.fetch("/a/b.npz") == Path("/a/b.npz")
  assert remote.fetch("~/b.npz") == tmp_path / "b.npz"
  assert remote.fetch("b.npz") == tmp_path / "there" / "b.npz"


def test_a_url_is_downloaded_once_and_then_needs_no_server(server, cache):
  path = remote.fetch(f"{server.url}/models/weights.npz")
  assert path.read_bytes() == CONTENT
  assert path.name == "weights.npz"
  assert files_of(cache) == ["weights.npz", "weights.npz.json"]
  server.status = 500
  assert remote.fetch(f"{server.url}/models/weights.npz") == path
  assert len(server.requests) == 1


def test_every_part_of_a_url_tells_copies_apart(server):
  urls = [f"{server.url}/{rest}" for rest in ("a/w.npz", "b/w.npz", "a/w.npz?v=1", "a/w.npz?v=2")]
  assert len({remote.fetch(url) for url in urls}) == 4
  assert [path for path, *_ in server.requests] == ["/a/w.npz", "/b/w.npz", "/a/w.npz?v=1", "/a/w.npz?v=2"]


def test_a_copy_that_was_cut_short_is_fetched_anew_and_one_put_there_by_hand_is_used(server):
  path = remote.fetch(f"{server.url}/w.npz")
  path.write_bytes(CONTENT[:1000])
  assert remote.fetch(f"{server.url}/w.npz").read_bytes() == CONTENT
  by_hand = remote.cached_path(f"{server.url}/v.npz")
  by_hand.parent.mkdir()
  by_hand.write_bytes(b"by hand")
  assert remote.fetch(f"{server.url}/v.npz").read_bytes() == b"by hand"


def test_processes_of_a_machine_take_turns_and_download_once(server):
  server.open.clear()
  program = f"from core.checkpoint import remote; print(len(remote.fetch('{server.url}/w.npz').read_bytes()))"
  with ThreadPoolExecutor() as pool:
    mine = pool.submit(remote.fetch, f"{server.url}/w.npz")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    other = subprocess.Popen([sys.executable, "-c", program], stdout=-1, stderr=-1, env=environment, text=True)
    line = other.stderr.readline()
    server.open.set()
    out, _ = other.communicate(timeout=60)
  assert line == f"waiting for another process, which is downloading {server.url}/w.npz\n"
  assert out == f"{len(CONTENT)}\n"
  assert mine.result().read_bytes() == CONTENT
  assert len(server.requests) == 1


def test_params_are_loaded_from_a_url_with_a_subtree_and_a_checksum(server, tmp_path):
  pretrained.save_params(tmp_path / "w.npz", {"img": {"cls": np.ones(3)}, "t": np.zeros(1)})
  server.content = (tmp_path / "w.npz").read_bytes()
  digest = hashlib.sha256(server.content).hexdigest()
  for spec in ("w.npz:img", f"w.npz#sha256={digest}:img", f"w.npz:img#sha256={digest}", "w.npz?version=2:img"):
    np.testing.assert_array_equal(pretrained.load_params(f"{server.url}/{spec}")["cls"], np.ones(3))
  server.content = b"not weights"
  with pytest.raises(
    UserError, match=rf"^{server.url}/v.npz: not an .npz file, .*; remove its copy /.*/v.npz to fetch"
  ):
    pretrained.load_params(f"{server.url}/v.npz")


# Broken off, and gone on with.


def test_a_connection_that_breaks_off_goes_on_from_there(server):
  server.cut = 100_000
  assert remote.fetch(f"{server.url}/w.npz").read_bytes() == CONTENT
  assert [(asked, sent) for _, asked, sent in server.requests] == [
    (None, 100_000),
    ("bytes=100000-", 100_000),
    ("bytes=200000-", 100_000),
  ]


def break_off(server):
  """Leaves the first 100,000 bytes behind, as a process that was killed does."""
  server.cut, server.length = 100_000, True
  server.ranges, before = False, server.ranges
  line = refused(f"{server.url}/w.npz")
  server.cut, server.ranges = None, before
  server.requests.clear()
  return line


def test_a_later_call_goes_on_where_an_earlier_one_ended(server, cache):
  line = break_off(server)
  assert line.startswith(f"{server.url}/w.npz: the connection broke off; download it by hand to {cache}/")
  assert files_of(cache) == ["w.npz.part", "w.npz.part.json"]
  assert remote.fetch(f"{server.url}/w.npz").read_bytes() == CONTENT
  assert [(asked, sent) for _, asked, sent in server.requests] == [("bytes=100000-", 200_000)]


def test_a_server_without_ranges_starts_again(server):
  server.ranges = False
  break_off(server)
  assert remote.fetch(f"{server.url}/w.npz").read_bytes() == CONTENT


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("content", [OTHER, OTHER[:200_000], OTHER[:50_000]])
def test_halves_of_two_versions_never_mix(server, content, if_range):
  break_off(server)
  server.if_range, server.content, server.headers = if_range, content, {"ETag": '"2"'}
  assert remote.fetch(f"{server.url}/w.npz").read_bytes() == content


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"1"'}])
def test_without_a_version_to_rely_on_nothing_is_gone_on_with(server, headers):
  server.headers = headers
  break_off(server)
  server.content = OTHER
  assert remote.fetch(f"{server.url}/w.npz").read_bytes() == OTHER
  assert [asked for _, asked, _ in server.requests] == [None]


def test_a_download_that_was_complete_but_not_yet_in_place_is_used(server, monkeypatch):
  def killed(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(remote, "_check_sums", killed)
    with pytest.raises(KeyboardInterrupt):
      remote.fetch(f"{server.url}/w.npz")
  assert remote.fetch(f"{server.url}/w.npz").read_bytes() == CONTENT
  assert len(server.requests) == 1


def test_a_body_of_unstated_length_is_whole_or_refused(server, cache):
  server.length = False
  assert remote.fetch(f"{server.url}/w.npz").read_bytes() == CONTENT
  server.cut = 1000
  assert "the connection broke off" in refused(f"{server.url}/v.npz")


# Checksums.


def as_google_states(**sums):
  return {"ETag": '"1"', "x-goog-hash": ",".join(f"{k}={base64.b64encode(v).decode()}" for k, v in sums.items())}


CRC_OF_DIGITS = bytes.fromhex("e3069283")  # The check value that RFC 3720 and catalogues of CRCs give for 123456789.


@pytest.mark.parametrize("sums", [dict(crc32c=CRC_OF_DIGITS), dict(md5=hashlib.md5(b"123456789").digest())])
def test_a_stated_checksum_is_compared(server, cache, sums):
  server.content, server.headers = b"123456789", as_google_states(**sums)
  assert remote.fetch(f"{server.url}/w.npz").read_bytes() == b"123456789"
  server.content = b"123456780"
  line = refused(f"{server.url}/v.npz")
  assert re.match(rf"{server.url}/v.npz: the file that came has the (crc32c|md5) [0-9a-f]+, not [0-9a-f]+$", line)
  assert files_of(cache) == ["w.npz", "w.npz.json"]


def test_hugging_face_states_the_sha256_of_a_large_file(server):
  server.headers = {"ETag": '"1"', "x-linked-etag": f'"{hashlib.sha256(CONTENT).hexdigest()}"'}
  assert remote.fetch(f"{server.url}/w.npz").read_bytes() == CONTENT
  server.content = OTHER
  assert "the file that came has the sha256" in refused(f"{server.url}/v.npz")


def test_a_checksum_of_the_user_holds_for_urls_and_paths(server, tmp_path):
  right, wrong = hashlib.sha256(CONTENT).hexdigest(), "0" * 64
  (tmp_path / "w.npz").write_bytes(CONTENT)
  assert remote.fetch(f"{server.url}/w.npz#sha256={right.upper()}").read_bytes() == CONTENT
  assert remote.fetch(f"{tmp_path}/w.npz#sha256={right}") == tmp_path / "w.npz"
  path = remote.cached_path(f"{server.url}/w.npz")
  assert refused(f"{server.url}/w.npz#sha256={wrong}") == (
    f"{server.url}/w.npz: its copy {path} has the sha256 {right}, not {wrong}; remove that to fetch it anew"
  )
  assert refused(f"{tmp_path}/w.npz#sha256={wrong}") == f"{tmp_path}/w.npz: it has the sha256 {right}, not {wrong}"
  assert refused("w.npz#sha256=12") == "w.npz: #sha256= takes 64 hexadecimal digits, got '12'"


# Refusals: one line, soon.


@pytest.mark.parametrize(
  "status, words, tries",
  [
    (404, "there is no such file (HTTP 404)", 1),
    (403, "access denied (HTTP 403)", 1),
    (418, "the server refused (HTTP 418)", 1),
    (503, "the server refused (HTTP 503)", 3),
  ],
)
def test_what_the_server_refuses_is_told_with_the_remedy(server, status, words, tries):
  server.status = status
  path = remote.cached_path(f"{server.url}/w.npz")
  assert refused(f"{server.url}/w.npz") == (
    f"{server.url}/w.npz: {words}; download it by hand to {path}, or give a local file"
  )
  assert len(server.requests) == tries


def test_without_a_network_the_line_comes_soon(server):
  server.close()
  began = time.monotonic()
  assert "w.npz: it cannot be reached (Connection refused); download it by hand to /" in refused(f"{server.url}/w.npz")
  assert time.monotonic() - began < 5


def test_a_silent_server_is_given_up(server, monkeypatch):
  monkeypatch.setattr(download, "SILENT_SECONDS", 0.1)
  server.open.clear()
  assert "w.npz: no answer within the time limit; download" in refused(f"{server.url}/w.npz")


@pytest.mark.parametrize("url, words", [("http://", "no proper URL"), ("s3://a/b", "s3:// is not read; give a local")])
def test_what_is_no_url_of_ours_is_refused(url, words):
  assert words in refused(url)


def test_a_full_disk_is_found_before_it_is_written_to(server, cache, monkeypatch):
  monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
  assert "it takes 300,000 bytes, and the disk of /" in refused(f"{server.url}/w.npz")
  assert files_of(cache) == []


def test_a_disk_that_fills_meanwhile_keeps_no_half(server, cache, monkeypatch):
  def disk_full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(download, "_record", disk_full)
  assert "w.npz.part cannot be written (No space left on device); download" in refused(f"{server.url}/w.npz")
  assert files_of(cache) == []


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path, monkeypatch):
  (tmp_path / "file").touch()
  monkeypatch.setenv("VISION_CACHE", str(tmp_path / "file"))
  line = refused(f"{server.url}/w.npz")
  assert line.startswith(f"cache folder {tmp_path}/file/")
  assert line.endswith("cannot be written (Not a directory); set VISION_CACHE to another")


def test_what_is_secret_in_a_url_is_neither_said_nor_stored(server, cache, capsys):
  host = server.url.removeprefix("http://")
  location = f"http://user:hunter2@{host}/w.npz?signature=hunter3"
  remote.fetch(location)
  server.status = 403
  line = refused(location.replace("w.npz", "v.npz"))
  assert line.startswith(f"http://{host}/v.npz: access denied")
  stored = b"".join(path.read_bytes() for path in cache.rglob("*.json")).decode()
  assert f"http://{host}/w.npz" in stored
  assert "hunter" not in line + stored + "".join(capsys.readouterr()) + "".join(map(str, cache.rglob("*")))


# What is said meanwhile.


def test_bytes_and_rate_are_said_on_stderr(server, capsys):
  remote.fetch(f"{server.url}/w.npz")
  out, err = capsys.readouterr()
  assert out == ""
  assert re.fullmatch(rf"downloading 0\.3 of 0\.3 MB, [\d,.]+ MB/s: {server.url}/w.npz\n", err)


def test_only_the_first_process_of_a_job_speaks(server, capsys, monkeypatch):
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  remote.fetch(f"{server.url}/w.npz")
  assert capsys.readouterr().err == ""


# Google Cloud Storage.


@pytest.fixture
def bucket(server, monkeypatch):
  monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
  monkeypatch.setattr(google.auth, "default", no_credentials)
  return server


def no_credentials(*_, **__):
  raise google.auth.exceptions.DefaultCredentialsError("none")


class Credentials(google.auth.credentials.Credentials):
  def __init__(self, token):
    super().__init__()
    self.token = token

  def refresh(self, request):
    raise google.auth.exceptions.RefreshError("hunter2 has expired")


def test_a_public_object_is_read_anonymously_and_checked(bucket):
  bucket.headers = as_google_states(md5=hashlib.md5(CONTENT).digest())
  bucket.cut = 200_000
  assert remote.fetch("gs://models/vit/a b.npz").read_bytes() == CONTENT
  paths = [urllib.parse.unquote(path) for path, *_ in bucket.requests]
  assert paths == ["/download/storage/v1/b/models/o/vit/a b.npz?alt=media"] * 2


def test_a_private_object_is_read_with_default_credentials_that_are_never_said(bucket, cache, capsys, monkeypatch):
  bucket.token = "hunter2"
  monkeypatch.setattr(google.auth, "default", lambda *_, **__: (Credentials("hunter2"), None))
  assert remote.fetch("gs://models/w.npz").read_bytes() == CONTENT
  stored = b"".join(path.read_bytes() for path in cache.rglob("*.json")).decode()
  assert "hunter" not in stored + "".join(capsys.readouterr())


@pytest.mark.parametrize(
  "default, words",
  [
    (no_credentials, "not public, or not there, and there are no Google credentials here (gcloud auth"),
    (lambda *_, **__: (Credentials(None), None), "not public, or not there, and Google refused the credentials ("),
    (lambda *_, **__: (Credentials("another"), None), "access denied (HTTP 401)"),
  ],
)
def test_an_object_that_credentials_do_not_open_is_refused_without_their_words(bucket, monkeypatch, default, words):
  bucket.token = "hunter2"
  monkeypatch.setattr(google.auth, "default", default)
  line = refused("gs://models/w.npz")
  assert line.startswith(f"gs://models/w.npz: {words}")
  assert "hunter" not in line
