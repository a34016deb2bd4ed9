import contextlib
import fcntl
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from core import files
from core.errors import UserError
from core.testing import bucket


@pytest.fixture
def served():
  with bucket.serving() as served:
    yield served


def refused(call, *args):
  with pytest.raises(UserError) as e:
    call(*args)
  assert "\n" not in str(e.value)
  assert len(str(e.value)) <= 300
  return str(e.value)


# Paths.


def test_paths_are_seen_from_where_the_command_was_typed(tmp_path, monkeypatch):
  monkeypatch.setenv("BUILD_WORKING_DIRECTORY", str(tmp_path))
  monkeypatch.setenv("HOME", "/home/me")
  assert files.from_here("a/b.npz") == tmp_path / "a" / "b.npz"
  assert files.from_here("~/b.npz") == Path("/home/me/b.npz")
  assert files.from_here("/a/b.npz") == Path("/a/b.npz")
  assert files.from_here(Path("b.npz")) == tmp_path / "b.npz"
  assert files.from_here("~nobody-of-this-name/b.npz") == tmp_path / "~nobody-of-this-name" / "b.npz"


def test_a_bucket_keeps_its_name_and_file_is_local():
  path = files.from_here("gs://bucket/run") / "checkpoints"
  assert os.fspath(path) == "gs://bucket/run/checkpoints"
  assert files.is_remote(path)
  assert files.from_here("file:///tmp/run") == Path("/tmp/run")
  assert not files.is_remote(files.from_here("file:///tmp/run"))


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.mknod(path, stat.S_IFSOCK)], ids=["pipe", "socket"])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path, make):
  make(tmp_path / "x")
  (tmp_path / "link").symlink_to("x")
  for path in (tmp_path / "x", tmp_path / "link", Path("/dev/zero")):
    with pytest.raises(OSError, match="no regular file") as error:
      files.read_bytes(path)
    assert files.reason(error.value) == "no regular file"
  for path in (tmp_path, tmp_path / "gone", "gs://bucket/x", "a\0b"):
    files.refuse_irregular(path)
  with pytest.raises(OSError, match="no regular file"), files.replacing(tmp_path / "x"):
    pass
  make(tmp_path / ".y.1.part")  # In the place of what a killed writer left.
  with files.replacing(tmp_path / "y") as file:
    file.write(b"1")
  assert (tmp_path / "y").read_bytes() == b"1"


def test_what_must_be_local_is_refused_elsewhere(tmp_path):
  assert files.local(tmp_path / "a", "config.input.data.path") == tmp_path / "a"
  assert refused(files.local, "gs://bucket/a", "config.input.data.path") == (
    "config.input.data.path: gs://bucket/a is not on this machine; give a local path"
  )


@pytest.mark.parametrize("scheme", ["https", "hf", "memory", "gss", "a b"])
def test_other_schemes_make_no_local_folder_of_their_name(scheme, tmp_path, monkeypatch):
  monkeypatch.setenv("BUILD_WORKING_DIRECTORY", str(tmp_path))
  assert refused(files.from_here, f"{scheme}://a/b").startswith(f"{scheme}://a/b: {scheme}:// is no place for files")
  assert os.listdir(tmp_path) == []


def test_what_names_nothing_is_refused():
  assert "names no bucket" in refused(files.from_here, "gs://")
  for name in ("a\0b", "a\nb"):
    assert refused(files.from_here, name) == f"path {name!r}: holds a line break or another control character"
  assert refused(files.from_here, "x" * 5000) == f"path '{'x' * 100}'...: too long (5,000 characters)"


# Whole or not at all.


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path):
  """A folder on disk, and one in a bucket."""
  return epath.Path(tmp_path) if request.param == "disk" else _place_in_bucket(request)


def _place_in_bucket(request):
  request.getfixturevalue("served")
  return files.from_here("gs://models/run")


def test_a_file_is_there_when_it_is_complete(place):
  path = place / "x.bin"
  with files.replacing(path) as file:
    file.write(b"first")
    assert files.read_bytes(path) is None
  with files.replacing(path) as file:
    file.write(b"second")
    file.seek(0)
    file.write(b"S")
    assert files.read_bytes(path) == b"first"
  assert files.read_bytes(path) == b"Second"
  assert files.below(place) == [path]


def test_a_file_that_is_given_up_leaves_the_older_one_and_no_other(place):
  path = place / "x.bin"
  with files.replacing(path) as file:
    file.write(b"first")
  with contextlib.suppress(KeyboardInterrupt), files.replacing(path) as file:
    file.write(b"second")
    raise KeyboardInterrupt
  assert files.read_bytes(path) == b"first"
  assert files.below(place) == [path]


def test_what_a_killed_writer_left_goes_with_the_next_write_and_a_living_one_s_stays(tmp_path):
  path = tmp_path / "x.npz"
  killed = """
import os, signal, sys
from core import files
with files.replacing(sys.argv[1]) as file:
  file.write(b"half")
  file.flush()
  os.kill(os.getpid(), signal.SIGKILL)
"""
  subprocess.run([sys.executable, "-c", killed, path], env={**os.environ, "PYTHONPATH": ":".join(sys.path)})
  (left,) = tmp_path.iterdir()
  assert left.name.startswith(".x.npz.")
  others = [".y.npz.7.part", ".x.npz.z.part", "x.npz.7.part", ".x.npz.8.part"]
  for name in others:
    (tmp_path / name).touch()
  with open(tmp_path / ".x.npz.8.part") as living:
    fcntl.flock(living, fcntl.LOCK_EX)
    with files.replacing(path) as file:
      file.write(b"whole")
  assert sorted(other.name for other in tmp_path.iterdir()) == sorted([*others, "x.npz"])
  files.remove_half_written(tmp_path, ["x.npz", "y.npz"])
  assert sorted(other.name for other in tmp_path.iterdir()) == sorted([*others[1:3], "x.npz"])


def test_what_a_killed_writer_left_in_a_bucket_is_removed_by_name(served):
  for name in (".x.npz.7.part", ".y.npz.7.part", "x.npz"):
    (files.from_here("gs://models/run") / name).write_bytes(b"1")
  files.remove_half_written(files.from_here("gs://models/run"), ["x.npz"])
  assert sorted(served.objects) == ["models/run/.y.npz.7.part", "models/run/x.npz"]


def test_a_file_that_a_link_stands_for_is_not_written_through_a_half_written_name(tmp_path):
  (tmp_path / "precious").write_bytes(b"mine")
  (tmp_path / f".x.{os.getpid()}.part").symlink_to(tmp_path / "precious")
  with pytest.raises(OSError), files.replacing(tmp_path / "x") as file:
    file.write(b"other")
  assert (tmp_path / "precious").read_bytes() == b"mine"


def test_what_is_set_aside_gets_a_name_that_is_free(place):
  for name in ("x.json", "x.json.damaged"):
    files.make_folder(place)
    with files.replacing(place / name) as file:
      file.write(name.encode())
  assert files.set_aside(place / "x.json") == place / "x.json.damaged-2"
  assert files.read_bytes(place / "x.json.damaged-2") == b"x.json"
  assert files.read_bytes(place / "x.json.damaged") == b"x.json.damaged"
  assert files.read_bytes(place / "x.json") is None


def test_a_bucket_that_refuses_is_an_os_error_of_one_line_and_keeps_the_older_file(served):
  path = files.from_here("gs://models/x.bin")
  with files.replacing(path) as file:
    file.write(b"first" * 2_000_000)
  served.refuses = 403
  with pytest.raises(OSError, match="Forbidden") as e, files.replacing(path) as file:
    file.write(b"second")
  assert "\n" not in files.reason(e.value)
  assert served.objects == {"models/x.bin": b"first" * 2_000_000}


def test_files_below_a_folder_are_found_at_any_depth(place):
  for name in ("b", "a/c", "a/d/e"):
    files.make_folder((place / name).parent)
    with files.replacing(place / name) as file:
      file.write(b"x")
  assert files.below(place) == [place / "a" / "c", place / "a" / "d" / "e", place / "b"]
  assert files.below(place / "no") == []
  assert files.inside(place) == [place / "a", place / "b"]
  assert files.inside(place / "no") == []


# Files that grow.


def test_lines_on_disk_are_there_at_once(tmp_path):
  grown = files.GrowingFile(tmp_path / "log", "old\n")
  grown.write("new\n")
  assert (tmp_path / "log").read_text() == "old\nnew\n"
  grown.close()


def test_lines_that_a_full_disk_does_not_take_come_with_the_next(tmp_path):
  lines = []
  grown = files.GrowingFile(tmp_path / "log", warn=lines.append)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    grown.write("0123456789abc\n")
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, ignored)
  assert (tmp_path / "log").read_text() == "0123456789"
  grown.write("next\n")
  grown.close()
  assert (tmp_path / "log").read_text() == "0123456789abc\nnext\n"
  assert lines == [f"warning: {tmp_path}/log could not be written (File too large)"]


def test_lines_in_a_bucket_are_there_when_they_are_flushed_or_after_a_while(served, monkeypatch):
  grown = files.GrowingFile(files.from_here("gs://models/log"), "old\n")
  grown.write("new\n")
  assert served.objects["models/log"] == b"old\n"
  assert grown.flush()
  assert served.objects["models/log"] == b"old\nnew\n"
  monkeypatch.setattr(files, "_REWRITE_SECONDS", 0.0)
  grown.write("newer\n")
  assert served.objects["models/log"] == b"old\nnew\nnewer\n"


def test_a_bucket_that_is_away_for_a_while_loses_no_line(served):
  lines = []
  grown = files.GrowingFile(files.from_here("gs://models/log"), warn=lines.append)
  served.refuses = 403
  grown.write("a\n")
  assert not grown.flush()
  served.refuses = None
  grown.write("b\n")
  grown.close()
  assert served.objects["models/log"] == b"a\nb\n"
  (line,) = lines
  assert line.startswith("warning: gs://models/log could not be written (Forbidden")
