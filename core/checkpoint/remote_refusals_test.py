"""What cannot be had is one line, soon, and without what is secret; and what is said while a file comes."""

import hashlib
import re
import urllib.parse

import google.auth
import google.auth.credentials
import google.auth.exceptions
import jax
import pytest

from core import masking
from core.checkpoint import download, remote
from core.testing.file_server import CONTENT, as_google_states, files_of, refused

pytest_plugins = ["core.testing.file_server"]


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


def test_without_a_network_the_line_comes_soon(server, monkeypatch):
  pauses = []

  async def at_once(seconds):
    pauses.append(seconds)

  monkeypatch.setattr(download.asyncio, "sleep", at_once)
  server.close()
  assert "w.npz: it cannot be reached (Connection refused); download it by hand to /" in refused(f"{server.url}/w.npz")
  assert len(pauses) < download.TRIES
  assert sum(pauses) < 5


def test_a_silent_server_is_given_up(server, monkeypatch):
  monkeypatch.setattr(download, "SILENT_SECONDS", 0.1)
  server.open.clear()
  assert "w.npz: no answer within the time limit; download" in refused(f"{server.url}/w.npz")


@pytest.mark.parametrize(
  "url, words",
  [
    ("http://", "no proper URL"),
    ("http://[::1", "http://...: no proper URL"),
    ("s3://a/b", "s3:// is not read; give a local"),
  ],
)
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


def test_a_url_that_was_written_down_masked_is_to_be_given_again(server):
  host = server.url.removeprefix("http://")
  for location in (f"http://user:hunter2@{host}/w.npz?token=hunter2", f"http://{host}/w.npz?hunter2"):
    shown = masking.masked(location)
    assert refused(shown) == f"{shown}: what is secret was masked where this was written down; give the URL again"
  assert server.requests == []


def test_a_password_that_breaks_its_url_is_not_said(server):
  for location in (
    "http://user:hunter2/hunter2@host/w.npz",
    "http://user:hunter2@[::1/w.npz",
    "http://u:hunter2@h:x/w",
  ):
    assert "hunter" not in refused(location)
    assert "hunter" not in refused(f"{location}#sha256=12")


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
