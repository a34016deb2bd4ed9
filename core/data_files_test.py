"""Data files are found wherever a program runs from, and always those of its own copy of the sources."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core import data_files

DATA = "pyproject.toml"
CODE = f"from core import data_files; print(data_files.find({DATA!r}))"
VARIABLES = ("RUNFILES_DIR", "RUNFILES_MANIFEST_FILE")


def tree(root: Path, words: str) -> Path:
  """Writes a copy of the module, and a data file beside it."""
  (root / "core").mkdir(parents=True)
  shutil.copy(data_files.__file__, root / "core")
  (root / DATA).write_text(words)
  return root


def found_in(root: Path, **environment: str) -> str:
  """Returns what the data file says that a program whose sources lie in `root` finds."""
  kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
  packages = [path for path in sys.path if "site-packages" in path]
  kept["PYTHONPATH"] = os.pathsep.join([str(root), *packages])
  command = [sys._base_executable, "-P", "-c", CODE]
  done = subprocess.run(command, env=kept | environment, cwd="/", capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return Path(done.stdout.strip()).read_text()


def test_this_program_finds_the_file_that_lies_with_its_own_sources():
  found = data_files.find(DATA)
  assert "ruff" in found.read_text()
  assert os.path.samefile(found.parent, Path(data_files.__file__).parents[1])


def test_without_bazel_it_lies_beside_the_sources(tmp_path):
  assert found_in(tree(tmp_path / "bundle", "bundle")) == "bundle"


def test_a_folder_of_runfiles_is_taken_by_a_program_that_lies_in_it(tmp_path):
  tree(tmp_path / "a.runfiles" / "vision", "runfiles")
  assert found_in(tmp_path / "a.runfiles" / "vision", RUNFILES_DIR=str(tmp_path / "a.runfiles")) == "runfiles"


def test_a_manifest_says_where_runfiles_are(tmp_path):
  root = tree(tmp_path / "sources", "beside")
  (tmp_path / "elsewhere.lock").write_text("by the manifest")
  manifest = tmp_path / "MANIFEST"
  lines = {"core/data_files.py": root / "core" / "data_files.py", DATA: tmp_path / "elsewhere.lock"}
  manifest.write_text("".join(f"vision/{name} {place}\n" for name, place in lines.items()))
  assert found_in(root, RUNFILES_MANIFEST_FILE=str(manifest)) == "by the manifest"


@pytest.mark.parametrize("variable", VARIABLES)
def test_what_another_programs_runfiles_hold_is_not_taken(tmp_path, variable):
  tree(tmp_path / "a.runfiles" / "vision", "another program")
  manifest = tmp_path / "MANIFEST"
  inside = tmp_path / "a.runfiles" / "vision"
  manifest.write_text("".join(f"vision/{name} {inside / name}\n" for name in ("core/data_files.py", DATA)))
  handed_down = str(manifest if variable == "RUNFILES_MANIFEST_FILE" else tmp_path / "a.runfiles")
  assert found_in(tree(tmp_path / "bundle", "bundle"), **{variable: handed_down}) == "bundle"


def test_the_manifest_of_a_program_that_is_gone_does_no_harm(tmp_path):
  assert found_in(tree(tmp_path / "bundle", "bundle"), RUNFILES_MANIFEST_FILE="/gone/MANIFEST") == "bundle"


def test_a_file_that_is_not_there_is_named():
  with pytest.raises(FileNotFoundError, match=r"no data file core/no_such\.json in .*/core; .*data"):
    data_files.find("core/no_such.json")
