"""The main program of every test target: `pytest FILE`. A file without any test fails, by pytest's exit code 5."""

import os
import sys

import pytest

# Nothing but this file's own folder of the sandbox can be written to.
os.environ["HOME"] = os.environ["TEST_TMPDIR"]
# Packages of the lock bring pytest plugins along; the tests use none.
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"

options = ["--rootdir=.", "--config-file=pyproject.toml", "--import-mode=importlib"]
options += [f"--basetemp={os.environ['TEST_TMPDIR']}/pytest"]
if chosen := os.environ.get("TESTBRIDGE_TEST_ONLY"):  # bazel test --test_filter=NAME
  options += ["-k", chosen]

if __name__ == "__main__":
  sys.exit(pytest.main([*options, *sys.argv[1:]]))
