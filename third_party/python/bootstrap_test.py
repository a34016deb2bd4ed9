"""uv and Python 3.11 on a machine that has another Python: what is said, found, installed, and refused."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from third_party.python import bare_machine

SCRIPT = Path("third_party/python/bootstrap.sh").absolute()
PINS = Path("third_party/python/cpython.json").absolute()
UV = Path(os.environ["UV"]).absolute()


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
  return bare_machine.make(tmp_path_factory.mktemp("machine"), UV)


def bootstrap(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
  command = ["sh", str(SCRIPT), *map(str, arguments)]
  return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def version_and_prefix(python: str) -> list[str]:
  code = "import sys; print(*sys.version_info[:2], sys.base_prefix)"
  return subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_a_3_11_of_the_machine_is_found_behind_a_virtual_environment(tmp_path):
  subprocess.run([sys._base_executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
  found = bootstrap("find", PATH=f"{tmp_path}/venv/bin:/usr/bin:/bin")
  assert found.returncode == 0
  assert os.path.samefile(found.stdout.strip(), sys._base_executable)


def test_a_machine_with_another_python_has_no_3_11(machine):
  said = subprocess.run(
    ["python3", "-I", "-c", "import sys; print(sys.version_info[:2])"],
    env=machine.environment,
    capture_output=True,
    text=True,
  )
  assert said.stdout == "(3, 12)\n"
  found = bootstrap("find", **machine.environment)
  assert (found.returncode, found.stdout, found.stderr) == (1, "", "")


def test_uv_comes_by_pip_of_another_python(machine, tmp_path):
  result = bootstrap("uv", machine.uv_lock, tmp_path, **machine.environment)
  assert result.returncode == 0, result.stderr
  uv = tmp_path / "bin" / "uv"
  assert subprocess.check_output([uv, "--version"]) == subprocess.check_output([UV, "--version"])


def test_only_the_locked_uv_is_installed(machine, tmp_path):
  lock = tmp_path / "uv.lock"
  other = "setuptools==84.2.1 \\\n    --hash=sha256:" + "0" * 64 + "\n"
  lock.write_text(other + machine.uv_lock.read_text() + other)
  assert bootstrap("uv", lock, tmp_path / "right", **machine.environment).returncode == 0
  lock.write_text(re.sub("sha256:.{8}", "sha256:00000000", machine.uv_lock.read_text()))
  refused = bootstrap("uv", lock, tmp_path / "wrong", **machine.environment)
  assert refused.returncode != 0
  assert "HASH" in refused.stderr.upper()
  assert not (tmp_path / "wrong" / "bin" / "uv").exists()


@pytest.mark.parametrize("stub", [None, "exit 1", 'case "$*" in *pip*) exit 1;; esac; echo /usr/bin/false'])
def test_no_python_or_one_without_pip_is_one_line_that_says_what_to_install(tmp_path, stub):
  for command in ("sh", "dirname", "sed", "head", "cat", "ls"):
    (tmp_path / command).symlink_to(Path("/usr/bin") / command)
  if stub:
    (tmp_path / "python3").write_text(f"#!/bin/sh\n{stub}\n")
    (tmp_path / "python3").chmod(0o755)
  result = bootstrap("uv", PINS.with_name("uv.lock"), tmp_path / "uv", PATH=str(tmp_path))
  assert result.returncode == 1
  assert re.fullmatch(r"no Python 3\.8 or newer with pip .*apt-get install python3-pip.*\n", result.stderr)


def test_the_pinned_build_comes_from_the_mirror_and_runs_from_its_own_folder(machine, tmp_path):
  for _ in range(2):  # The second finds the first's.
    result = bootstrap("python", UV, machine.pins, tmp_path / "python", **machine.environment)
    assert result.returncode == 0, result.stderr
    python = result.stdout.strip()
    assert Path(python).is_relative_to(tmp_path / "python")
    major, minor, prefix = version_and_prefix(python)
    assert (major, minor) == ("3", "11")
    assert Path(prefix).is_relative_to(tmp_path / "python")


def test_a_build_that_a_link_on_path_leads_to_makes_environments_of_its_own_library(machine, tmp_path):
  installed = bootstrap("python", UV, machine.pins, tmp_path / "python", **machine.environment).stdout.strip()
  (tmp_path / "bin").mkdir()
  (tmp_path / "bin" / "python3.11").symlink_to(installed)  # As `uv python install` leaves it in ~/.local/bin.
  found = bootstrap("find", PATH=f"{tmp_path}/bin:/usr/bin:/bin").stdout.strip()
  assert os.path.samefile(found, installed)
  subprocess.run([found, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
  _, _, prefix = version_and_prefix(str(tmp_path / "venv" / "bin" / "python"))
  assert Path(prefix).is_relative_to(tmp_path / "python")


def test_another_archive_than_the_pinned_one_is_refused_and_leaves_nothing(machine, tmp_path):
  pins = tmp_path / "cpython.json"
  entries = json.loads(machine.pins.read_text())
  for entry in entries.values():
    entry["sha256"] = "0" * 64
  pins.write_text(json.dumps(entries))
  result = bootstrap("python", UV, pins, tmp_path / "python", **machine.environment)
  assert result.returncode != 0
  assert "0" * 64 in result.stderr
  assert not list((tmp_path / "python").glob("cpython-*"))


def test_a_mirror_that_lacks_the_build_is_refused_with_what_can_be_done(machine, tmp_path):
  empty = dict(machine.environment, UV_PYTHON_INSTALL_MIRROR=tmp_path.as_uri())
  result = bootstrap("python", UV, machine.pins, tmp_path / "python", **empty)
  assert result.returncode != 0
  assert "set UV_PYTHON_INSTALL_MIRROR, or put a Python 3.11 on PATH" in result.stderr.splitlines()[-1]


def test_the_build_is_named_as_it_is_pinned(machine):
  assert bootstrap("build", machine.pins).stdout == f"{bare_machine.VERSION}, build {bare_machine.BUILD}\n"
  (version,) = {f"3.11.{entry['patch']}, build {entry['build']}" for entry in json.loads(PINS.read_text()).values()}
  assert bootstrap("build", PINS).stdout == f"{version}\n"


def test_what_is_pinned_is_a_build_that_uv_itself_lists(tmp_path):
  command = [UV, "python", "list", "--offline", "--all-versions", "--all-arches", "--only-downloads"]
  command += ["--output-format=json", "cpython@3.11"]
  listed = subprocess.run(command, capture_output=True, text=True, check=True, env={"UV_CACHE_DIR": tmp_path})
  builds = {entry["key"]: entry["url"].split("/releases/download/")[1] for entry in json.loads(listed.stdout)}
  for key, entry in json.loads(PINS.read_text()).items():
    assert entry["url"].split("/releases/download/")[1] == builds[key]
    assert re.fullmatch("[0-9a-f]{64}", entry["sha256"])
