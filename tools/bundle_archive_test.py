"""The bundle's archive is the same bytes for the same contents, whatever the machine did to the files meanwhile."""

import os
import random
import tarfile

import pytest

from tools import bundle_archive

CONTENTS = {
  "start": b"#!/bin/sh\n",
  "core/errors.py": b"x = 1\n",
  "projects/vit/configs/digits.py": b"",
  "a b.txt": b"c",
}


@pytest.fixture
def entries(tmp_path):
  for i, contents in enumerate(CONTENTS.values()):
    (tmp_path / str(i)).write_bytes(contents)
  return [(name, tmp_path / str(i)) for i, name in enumerate(CONTENTS)]


def test_order_times_and_modes_of_the_inputs_do_not_change_a_byte(entries, tmp_path):
  first, second = tmp_path / "first.tar.gz", tmp_path / "elsewhere" / "second.tar.gz"
  second.parent.mkdir()
  bundle_archive.write(first, "vit_bundle", entries)
  for seed in range(5):
    random.Random(seed).shuffle(entries)
    for _, path in entries:
      os.utime(path, (seed, 1_000_000_000 + seed))
      path.chmod(0o600 + seed)
    bundle_archive.write(second, "vit_bundle", entries)
    assert second.read_bytes() == first.read_bytes()


def test_another_content_is_another_archive(entries, tmp_path):
  first, second = tmp_path / "first.tar.gz", tmp_path / "second.tar.gz"
  bundle_archive.write(first, "vit_bundle", entries)
  entries[1][1].write_bytes(b"x = 2\n")
  bundle_archive.write(second, "vit_bundle", entries)
  assert second.read_bytes() != first.read_bytes()


def test_what_was_packed_comes_out_and_only_start_can_be_executed(entries, tmp_path):
  bundle_archive.write(tmp_path / "out.tar.gz", "vit_bundle", entries)
  with tarfile.open(tmp_path / "out.tar.gz") as archive:
    members = {member.name.removeprefix("vit_bundle/"): member for member in archive}
    assert {name: archive.extractfile(member).read() for name, member in members.items()} == CONTENTS
  assert {name for name, member in members.items() if member.mode & 0o111} == {"start"}
  assert {(member.mtime, member.uid, member.gid, member.uname) for member in members.values()} == {(0, 0, 0, "")}
