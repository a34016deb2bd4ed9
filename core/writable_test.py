"""What becomes of a trial to write into a folder."""

import os
import sys
import time

import pytest
from etils import epath

from core import files, writable
from core.errors import UserError
from core.testing import bucket


@pytest.fixture
def served():
  with bucket.serving() as served:
    yield served


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path):
  """A folder on disk, and one in a bucket."""
  if request.param == "disk":
    return epath.Path(tmp_path)
  request.getfixturevalue("served")
  return files.from_here("gs://models/run")


def refused(call, *args):
  with pytest.raises(UserError) as e:
    call(*args)
  assert "\n" not in str(e.value)
  assert len(str(e.value)) <= 300
  return str(e.value)


def test_a_folder_is_made_and_left_empty(place):
  writable.check(place / "run", "--workdir")
  assert files.below(place) == []


def test_what_cannot_be_written_is_refused_with_the_reason(tmp_path, served):
  (tmp_path / "file").touch()
  assert refused(writable.check, tmp_path / "file" / "run", "--workdir") == (
    f"--workdir {tmp_path}/file/run cannot be written: Not a directory"
  )
  assert refused(writable.check, "/proc/run", "--workdir").startswith("--workdir /proc/run cannot be written: ")
  served.refuses = 403
  line = refused(writable.check, "gs://models/run", "--workdir")
  assert line.startswith("--workdir gs://models/run cannot be written: Forbidden")
  assert served.objects == {}


def test_a_scheme_whose_package_is_not_installed_is_refused():
  assert refused(writable.check, "s3://bucket/run", "--workdir") == (
    "--workdir s3://bucket/run cannot be written: Install s3fs to access S3"
  )


def test_a_bucket_that_never_answers_is_given_up(served, monkeypatch):
  monkeypatch.setattr(writable, "_TRIAL_SECONDS", 1.0)
  monkeypatch.setattr(epath.Path("gs://models/run").__class__, "open", lambda *_: time.sleep(4))
  assert refused(writable.check, "gs://models/run", "--workdir").endswith("cannot be written: no answer in 1 s")


def test_tensorflow_is_not_imported_for_a_bucket(served):
  writable.check("gs://models/run", "--workdir")
  assert "tensorflow" not in sys.modules


def test_what_a_trial_could_not_remove_the_next_one_does(tmp_path, monkeypatch):
  def unlink(path):
    raise InterruptedError(4, "Interrupted system call")

  with monkeypatch.context() as patched:
    patched.setattr(os, "unlink", unlink)
    assert refused(writable.check, tmp_path, "workdir") == (
      f"workdir {tmp_path} cannot be written: Interrupted system call"
    )
  assert files.inside(tmp_path) == [tmp_path / ".writable"]
  writable.check(tmp_path, "workdir")
  assert files.inside(tmp_path) == []


def test_a_link_in_the_place_of_the_trial_is_not_followed(tmp_path):
  (tmp_path / "mine").write_bytes(b"mine")
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / ".writable").symlink_to(tmp_path / "mine")
  assert "cannot be written" in refused(writable.check, tmp_path / "run", "workdir")
  assert (tmp_path / "mine").read_bytes() == b"mine"
  assert (tmp_path / "run" / ".writable").is_symlink()
