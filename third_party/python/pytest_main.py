"""The main program of every test target: `pytest FILE`. A file without any test fails, by pytest's exit code 5."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

# Nothing but this file's own folder of the sandbox can be written to.
os.environ["HOME"] = os.environ["TEST_TMPDIR"]
# Packages of the lock bring pytest plugins along; the tests use none.
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"

options = ["--rootdir=.", "--config-file=pyproject.toml", "--import-mode=importlib"]
# Not the sandbox's own folder, whose path is so long that an error line with it is cut.
temporary = tempfile.TemporaryDirectory(prefix="t", dir="/tmp", ignore_cleanup_errors=True)
options += [f"--basetemp={temporary.name}/pytest"]
if chosen := os.environ.get("TESTBRIDGE_TEST_ONLY"):  # bazel test --test_filter=NAME
  options += ["-k", chosen]


class Shard:
  """Every n-th test, where Bazel runs a target's tests in n parts (shard_count)."""

  def pytest_collection_modifyitems(self, items: list) -> None:
    items[:] = items[int(os.environ["TEST_SHARD_INDEX"]) :: int(os.environ["TEST_TOTAL_SHARDS"])]
    Path(os.environ["TEST_SHARD_STATUS_FILE"]).touch()  # By this Bazel knows that the tests were divided.


if __name__ == "__main__":
  plugins = [Shard()] if "TEST_TOTAL_SHARDS" in os.environ else []
  with temporary:
    status = pytest.main([*options, *sys.argv[1:]], plugins=plugins)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)  # Threads of what a test made fail, a checkpoint say, would be waited for, for minutes.
