"""A project's bundle, unpacked outside the repository, makes its own environment and trains. Run for each project."""

import hashlib
import json
import os
import pwd
import random
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import bundle_archive

BUNDLE = Path(os.environ["BUNDLE"]).absolute()
ARGS = os.environ["BUNDLE_ARGS"].split()
# What the person's own shell would have, as far as installing needs it: the network's settings, and a home with caches.
KEPT = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "PIP_", "UV_", "PATH", "JAX_PLATFORMS")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name.startswith(KEPT)}
ENVIRONMENT["HOME"] = pwd.getpwuid(os.getuid()).pw_dir


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Iterator[Path]:
  folder = tmp_path_factory.mktemp("elsewhere")
  with tarfile.open(BUNDLE) as archive:
    archive.extractall(folder, filter="data")
  (root,) = folder.iterdir()
  yield root
  shutil.rmtree(folder)  # An environment is gigabytes, if mostly links.


def test_packing_the_contents_again_in_any_order_gives_the_same_bytes(unpacked, tmp_path):
  entries = [(str(path.relative_to(unpacked)), path) for path in unpacked.rglob("*") if path.is_file()]
  for seed in (0, 1):
    random.Random(seed).shuffle(entries)
    bundle_archive.write(tmp_path / f"{seed}.tar.gz", unpacked.name, entries)
    again = hashlib.sha256((tmp_path / f"{seed}.tar.gz").read_bytes())
    assert again.hexdigest() == hashlib.sha256(BUNDLE.read_bytes()).hexdigest()


def test_it_holds_sources_configs_and_one_lock_but_no_test(unpacked):
  names = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*")}
  assert {"start", "core/errors.py", "core/training/loop.py", "third_party/python/uv.lock"} <= names
  assert len([name for name in names if name.startswith("projects/") and name.endswith(".lock")]) == 1
  assert any("/configs/" in name for name in names)
  assert not [name for name in names if name.endswith("_test.py") or "/testdata/" in name]


def test_two_that_start_at_once_train_alike_in_one_environment_which_the_next_start_reuses(unpacked, tmp_path):
  def start(*arguments: str) -> subprocess.Popen:
    command = [str(unpacked / "start"), *arguments]
    return subprocess.Popen(command, cwd=unpacked, env=ENVIRONMENT, stdout=-1, stderr=subprocess.STDOUT, text=True)

  def metrics(workdir: str) -> list[dict[str, float]]:
    """All that was measured but times."""
    records = map(json.loads, (tmp_path / workdir / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in record.items() if not key.startswith("time/")} for record in records]

  for process in [start(*ARGS, f"--workdir={tmp_path / workdir}") for workdir in ("a", "b")]:
    output, _ = process.communicate()
    assert process.returncode == 0, output
  assert metrics("a") == metrics("b") != []
  assert len(list(unpacked.glob(".environment-*"))) == 1
  assert not list(unpacked.glob(".installing-*"))

  again = start("--help")
  output, _ = again.communicate()
  assert again.returncode == 0, output
  assert "Installing" not in output
