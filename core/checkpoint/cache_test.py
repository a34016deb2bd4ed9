"""The cache is used where it is the person's own, and a file in it while it is what came."""

import contextlib
import json
import os
import stat
from pathlib import Path

import pytest

from core.checkpoint import remote
from core.errors import UserError
from core.testing.file_server import CONTENT, OTHER, refused

pytest_plugins = ["core.testing.file_server"]


# Whose it is.


def test_what_is_brought_is_for_its_owner_alone(server, cache):
  umask = os.umask(0)
  try:
    path = remote.fetch(f"{server.url}/w.npz")
  finally:
    os.umask(umask)
  assert {oct(each.stat().st_mode & 0o777) for each in (cache, path.parent)} == {"0o700"}
  written = [path, *(path.with_name(f"w.npz{end}") for end in (".json", ".lock"))]
  assert {oct(each.stat().st_mode & 0o777) for each in written} == {"0o600"}
  assert remote.fetch(f"{server.url}/w.npz") == path


@pytest.mark.parametrize("mode", [0o020, 0o002])
@pytest.mark.parametrize("which", ["folder", "folder of the file", "file", "record"])
def test_a_cache_that_others_can_write_to_is_refused(server, cache, which, mode):
  path = remote.fetch(f"{server.url}/w.npz")
  place = {"folder": cache, "folder of the file": path.parent, "file": path, "record": path.with_name("w.npz.json")}
  place[which].chmod(place[which].stat().st_mode | mode)
  line = refused(f"{server.url}/w.npz")
  assert line.startswith(f"cache {place[which]}"[:100])
  assert "others can write to it (mode " in line
  assert "chmod -R go-w /" in line
  assert len(server.requests) == 1
  for each in (cache, path.parent, path, path.with_name("w.npz.json")):
    each.chmod(each.stat().st_mode & ~0o022)  # As the line says.
  assert remote.fetch(f"{server.url}/w.npz").read_bytes() == CONTENT


def test_a_cache_folder_that_others_can_write_to_is_refused_before_anything_comes(server, cache):
  cache.mkdir()
  cache.chmod(0o777)
  assert "others can write to it (mode 777)" in refused(f"{server.url}/w.npz")
  assert server.requests == []
  assert list(cache.iterdir()) == []


def test_a_folder_above_that_all_can_write_to_must_be_sticky(server, tmp_path, monkeypatch):
  (tmp_path / "shared").mkdir()
  (tmp_path / "shared").chmod(0o777)
  monkeypatch.setenv("VISION_CACHE", str(tmp_path / "shared" / "cache"))
  assert "shared: others can write to it (mode 777); set VISION_CACHE to another" in refused(f"{server.url}/w.npz")
  (tmp_path / "shared").chmod(0o1777)
  assert remote.fetch(f"{server.url}/w.npz").read_bytes() == CONTENT


def test_a_cache_of_another_user_is_refused(server, cache, monkeypatch):
  remote.fetch(f"{server.url}/w.npz")
  lstat = Path.lstat

  def of_another(path):  # A sandbox has no other user to whom a file could be given.
    found = list(lstat(path))
    found[stat.ST_UID] = 12_345 if path == cache else found[stat.ST_UID]
    return os.stat_result(found)

  monkeypatch.setattr(Path, "lstat", of_another)
  line = refused(f"{server.url}/w.npz")
  assert "it belongs to another user (" in line
  assert line.endswith("set VISION_CACHE to a folder of yours")


@pytest.mark.parametrize("name", ["w.npz.part", "w.npz.part.json", "w.npz.lock", ".w.npz.json.PID.part"])
def test_a_link_in_the_place_of_a_file_to_write_is_not_followed(server, cache, tmp_path, name):
  victim = tmp_path / "victim"
  victim.write_text("of the person")
  folder = remote.cached_path(f"{server.url}/w.npz").parent
  folder.mkdir(parents=True, mode=0o700)
  (folder / name.replace("PID", str(os.getpid()))).symlink_to(victim)
  with contextlib.suppress(UserError):
    remote.fetch(f"{server.url}/w.npz")
  assert victim.read_text() == "of the person"


def test_the_cache_may_be_a_link_to_a_folder_of_ones_own(server, cache, tmp_path):
  (tmp_path / "large_disk").mkdir(mode=0o700)
  cache.symlink_to(tmp_path / "large_disk")
  assert remote.fetch(f"{server.url}/w.npz").read_bytes() == CONTENT
  (tmp_path / "large_disk").chmod(0o777)
  assert "others can write to it (mode 777)" in refused(f"{server.url}/w.npz")


# Whether it is what came.


def test_a_file_of_the_right_size_and_date_with_another_content_is_fetched_anew(server):
  path = remote.fetch(f"{server.url}/w.npz")
  times = path.stat()
  path.write_bytes(OTHER)
  os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
  assert (path.stat().st_size, path.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
  assert remote.fetch(f"{server.url}/w.npz").read_bytes() == CONTENT
  assert len(server.requests) == 2


def test_a_file_whose_date_alone_changed_is_compared_once_and_used(server, monkeypatch):
  path = remote.fetch(f"{server.url}/w.npz")
  os.utime(path)
  server.status = 500
  assert remote.fetch(f"{server.url}/w.npz") == path
  monkeypatch.setattr(remote.cache, "digest", None)  # Not called again.
  assert remote.fetch(f"{server.url}/w.npz") == path


@pytest.mark.parametrize("sums", [{}, {"md5": "MD5"}, {"crc32c": "CRC"}])
def test_records_of_an_older_form_are_read(server, sums):
  path = remote.fetch(f"{server.url}/w.npz")
  stated = {algorithm: remote.cache.digest(path, algorithm) for algorithm in sums}
  record = path.with_name("w.npz.json")
  record.write_text(json.dumps({"location": "there", "size": len(CONTENT), **stated}))
  server.status = 500
  assert remote.fetch(f"{server.url}/w.npz") == path
  assert json.loads(record.read_text())["location"] == "there"
  path.write_bytes(OTHER)
  assert "the server refused (HTTP 500)" in refused(f"{server.url}/w.npz")


ODD = [
  *("", "{", "[]", "null", "3", '"a"', "{}", '{"size": "a"}', '{"size": null}', '{"size": [1]}', "[" * 100_000),
  *('{"files": {}}', '{"files": []}', '{"files": {"": 3}}', '{"files": {"": "a"}}', '{"files": {"": null}}'),
  *('{"files": {"../w.npz": 300000}}', '{"files": {"/etc/hostname": 3}}', '{"files": {"": {"size": 300000}}}'),
  *('{"files": {"": {"size": 300000, "sums": "sha256"}}}', '{"files": {"": {"size": 300000, "sums": {"md5": 3}}}}'),
  *('{"size": 1e999}', f'{{"size": {"9" * 5_000}}}', '{"files": {"a\\u0000b": {"size": 1, "sums": {}}}}'),
]


@pytest.mark.parametrize("record", [*ODD, b"\xff\xfe"], ids=lambda record: str(record)[:40])
def test_a_record_that_is_none_has_the_file_fetched_anew(server, record):
  path = remote.fetch(f"{server.url}/w.npz")
  path.with_name("w.npz.json").write_bytes(record if isinstance(record, bytes) else record.encode())
  assert remote.fetch(f"{server.url}/w.npz").read_bytes() == CONTENT
  assert len(server.requests) == 2
  assert remote.fetch(f"{server.url}/w.npz").read_bytes() == CONTENT
  assert len(server.requests) == 2


PARTS = [
  *('{"size": "a", "version": "1", "sums": {}}', '{"size": 300000, "version": 1, "sums": {}}'),
  *('{"size": 300000, "version": "\\"1\\"", "sums": []}', '{"size": 300000, "version": "\\"1\\"", "sums": {"md5": 3}}'),
  *('{"size": 300000, "version": "\\"1\\"", "sums": {"sha1": "00"}}', '{"size": 300000, "version": "\\n", "sums": {}}'),
  *('{"size": 300000, "version": "\\ud800", "sums": {}}', '{"size": 10, "version": "1"}', *ODD),
]


@pytest.mark.parametrize("record", PARTS, ids=lambda record: record[:60])
def test_a_record_of_a_half_that_is_none_is_not_gone_on_with(server, record):
  path = remote.cached_path(f"{server.url}/w.npz")
  path.parent.mkdir(parents=True, mode=0o700)
  path.with_name("w.npz.part").write_bytes(OTHER[:1000])
  path.with_name("w.npz.part.json").write_text(record)
  assert remote.fetch(f"{server.url}/w.npz").read_bytes() == CONTENT
  assert [asked for _, asked, _ in server.requests] == [None]
