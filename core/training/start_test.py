"""What a trainer's start leaves to later."""

import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def imported():
  code = "import sys, core.tasks.classification, core.training.cli; print(*sys.modules)"
  process = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True)
  return set(process.stdout.decode().split())


@pytest.mark.parametrize("module", ["orbax", "aiohttp", "huggingface_hub", "tensorflow", "sklearn", "PIL"])
def test_it_begins_without_what_it_may_never_need(imported, module):
  assert "jax" in imported
  assert module not in imported
