"""A target sees the packages of its lock and nothing else of the machine, the user or the caller.

The witness is the machine's own interpreter, which does import what is planted for it.
"""

import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

RUNFILES = Path(os.environ["RUNFILES_DIR"])
PYTHON = Path(os.environ["PYTHON"]).absolute()  # What Bazel starts every target with.
MACHINE = sys._base_executable
PINS = RUNFILES / "core_pins" / "site-packages"


def run(python: str | Path, code: str, **environment: str) -> subprocess.CompletedProcess:
  command = [str(python), "-c", code]
  return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)


def packages() -> dict[str, str]:
  """`{name: version}` of the lock."""
  lines = Path("core/requirements.lock").read_text().splitlines()
  entries = [re.match(r"([\w.-]+)==(\S+)(?: ; (.*?))? \\", line) for line in lines]
  return {re.sub(r"[-_.]+", "-", e[1]).lower(): e[2] for e in entries if e and "python_full_version >=" not in e[0]}


def test_the_path_is_the_runfiles_and_the_standard_library():
  standard = Path(sysconfig.get_paths()["stdlib"])
  version = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
  allowed = {standard, standard / "lib-dynload", standard.parent / version, Path(sysconfig.get_paths()["purelib"])}
  assert [p for p in map(Path, sys.path) if not p.is_relative_to(RUNFILES) and p not in allowed] == []


def test_the_interpreters_own_site_packages_are_empty():
  folder = Path(sysconfig.get_paths()["purelib"])
  assert folder.is_relative_to(sys.prefix)
  assert not folder.exists()


def test_every_distribution_is_one_of_the_lock():
  locked = packages()
  found = {d.name: d for d in importlib.metadata.distributions()}
  assert len(found) > 50
  for name, distribution in found.items():
    assert distribution.version == locked[re.sub(r"[-_.]+", "-", name).lower()]
    assert Path(distribution.locate_file("")).is_relative_to(PINS)


@pytest.mark.parametrize("module", ["jax", "flax", "numpy", "pytest"])
def test_a_package_comes_from_the_lock(module):
  assert Path(__import__(module).__file__).is_relative_to(PINS)


def test_what_the_machine_has_installed_is_not_importable():
  # pip, with which uv was installed: the machine has it and no lock of ours does.
  assert "pip" not in packages()
  assert run(MACHINE, "import pip").returncode == 0
  for python in (PYTHON, sys.executable):
    assert "No module named 'pip'" in run(python, "import pip").stderr


@pytest.fixture
def home(tmp_path):
  """A home with `planted` in its user site-packages, as `pip install --user` leaves it."""
  base = run(MACHINE, "import site; print(site.getusersitepackages())", HOME=str(tmp_path)).stdout.strip()
  Path(base).mkdir(parents=True)
  (Path(base) / "planted.py").write_text("print('leaked')\n")
  return tmp_path


def test_the_users_site_packages_are_not_importable(home):
  assert run(MACHINE, "import planted", HOME=str(home)).stdout == "leaked\n"
  for python in (PYTHON, sys.executable):
    assert "No module named 'planted'" in run(python, "import planted", HOME=str(home)).stderr


@pytest.mark.parametrize("name", ["planted", "sitecustomize"])
def test_the_callers_pythonpath_is_dropped_and_bazels_is_kept(tmp_path, name):
  (tmp_path / f"{name}.py").write_text("print('leaked')\n")
  path = f"{PINS}:{tmp_path}"
  assert "leaked\n" in run(MACHINE, f"import {name}", PYTHONPATH=path).stdout
  result = run(PYTHON, f"import jax, {name}", PYTHONPATH=path, PYTHONHOME="/nowhere")
  assert f"No module named '{name}'" in result.stderr
  assert "leaked" not in result.stdout


def test_a_child_process_is_as_hermetic_as_its_parent():
  child = subprocess.run(
    [sys.executable, "-P", "-c", "import sys; print(*sys.path, sep='\\n')"], capture_output=True, text=True, check=True
  )
  assert set(child.stdout.split("\n")[:-1]) <= set(sys.path)
