"""What stands for a module is used like it, and imports it no sooner."""

import subprocess
import sys

import pytest

from core.late import Late


def test_a_module_is_imported_at_its_first_use():
  code = """
import sys
from core.late import Late
colors = Late("colorsys")
assert "colorsys" not in sys.modules
assert colors.rgb_to_hsv(1, 1, 1) == (0.0, 0.0, 1)
assert "colorsys" in sys.modules
"""
  subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_a_module_or_a_name_that_is_not_there_is_an_error_as_ever():
  with pytest.raises(ModuleNotFoundError, match="no_such_module"):
    _ = Late("no_such_module").name
  with pytest.raises(AttributeError, match="no_such_name"):
    _ = Late("colorsys").no_such_name
