"""Pages of docs/ that a program writes."""

import os
from pathlib import Path

from core import files


def write(name: str, page: str) -> None:
  """Writes a page of docs/ in the checkout, by default that in which this stands, and says where."""
  path = Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", "."), "docs", name)
  with files.replacing(path) as file:
    file.write(page.encode())
  print(f"written to {path}")
