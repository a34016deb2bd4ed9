import hashlib
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from core.checkpoint import pretrained, remote
from core.errors import UserError
from core.testing.file_server import CONTENT, OTHER, as_google_states, files_of, refused

pytest_plugins = ["core.testing.file_server"]


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
  line = f"{server.url}/w.npz: its copy {path} has the sha256 {right}, not {wrong}; remove that to fetch it anew"
  assert refused(f"{server.url}/w.npz#sha256={wrong}") == str(UserError(line))  # Cut where the path is long.
  assert refused(f"{tmp_path}/w.npz#sha256={wrong}") == f"{tmp_path}/w.npz: it has the sha256 {right}, not {wrong}"
  assert refused("w.npz#sha256=12") == "w.npz: #sha256= takes 64 hexadecimal digits, got '12'"
