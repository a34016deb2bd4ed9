"""Quick compilation, for tests of programs that run once or a few times: XLA would take nearly all of their time."""

from collections.abc import Iterator
from typing import Any

import jax
import pytest


def quick(*, scope: str = "module", autouse: bool = True) -> Any:
  """Returns a fixture, to be assigned to a name of a test file, in which XLA optimizes little.

  Args:
    scope: of `pytest.fixture`.
    autouse: likewise; if False the tests that name it have it alone.
  """

  @pytest.fixture(scope=scope, autouse=autouse)
  def fixture() -> Iterator[None]:
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)

  return fixture
