"""What a project's bundle holds, and that it is the same to the last bit wherever it is made. Run for each project."""

import hashlib
import os
import random
import tarfile
from pathlib import Path

import pytest

from tools import bundle_archive

BUNDLE = Path(os.environ["BUNDLE"]).absolute()


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp("elsewhere")
  with tarfile.open(BUNDLE) as archive:
    archive.extractall(folder, filter="data")
  (root,) = folder.iterdir()
  return root


def test_packing_the_contents_again_in_any_order_gives_the_same_bytes(unpacked, tmp_path):
  entries = [(str(path.relative_to(unpacked)), path) for path in unpacked.rglob("*") if path.is_file()]
  for seed in (0, 1):
    random.Random(seed).shuffle(entries)
    bundle_archive.write(tmp_path / f"{seed}.tar.gz", unpacked.name, entries)
    again = hashlib.sha256((tmp_path / f"{seed}.tar.gz").read_bytes())
    assert again.hexdigest() == hashlib.sha256(BUNDLE.read_bytes()).hexdigest()


def test_it_holds_sources_configs_and_one_lock_but_no_test(unpacked):
  names = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*")}
  assert {"start", "core/errors.py", "core/training/loop.py"} <= names
  assert {f"third_party/python/{name}" for name in ("bootstrap.sh", "cpython.json", "uv.lock")} <= names
  assert len([name for name in names if name.startswith("projects/") and name.endswith(".lock")]) == 1
  assert any("/configs/" in name for name in names)
  assert not [name for name in names if name.endswith("_test.py") or "/testdata/" in name]
