"""A bundle and Bazel on a machine that has no Python 3.11: each installs the one build that is pinned, and says so."""

import os
import pwd
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from third_party.python import bare_machine

UV = Path(os.environ["UV"]).absolute()
BUNDLE = Path(os.environ["BUNDLE"]).absolute()
SAID = f"Python 3.11 is not on PATH: installing uv's CPython {bare_machine.VERSION}, build {bare_machine.BUILD} (once)"
# What both are told to run: which Python, which package, and where the Python is from.
PROGRAM = "import sys, tiny; print(sys.version_info[:2], tiny.VERSION, sys.base_prefix)\n"


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
  return bare_machine.make(tmp_path_factory.mktemp("machine"), UV)


def start(command, environment, cwd) -> subprocess.Popen:
  return subprocess.Popen(command, env=environment, cwd=cwd, stdout=-1, stderr=-1, text=True)


@pytest.fixture
def bundle(machine, tmp_path):
  """vit's bundle, unpacked there: its pins are the machine's, and its trainer is `PROGRAM`."""
  with tarfile.open(BUNDLE) as archive:
    archive.extractall(tmp_path / "elsewhere", filter="data")
  (unpacked,) = (tmp_path / "elsewhere").iterdir()
  pins = unpacked / "third_party" / "python"
  bare_machine.copy(machine, uv_lock=pins / "uv.lock", pins=pins / "cpython.json")
  shutil.copy(machine.packages_lock, unpacked / "projects" / "vit" / "requirements.lock")
  (unpacked / "projects" / "vit" / "train.py").write_text(PROGRAM)
  return unpacked


def test_a_bundle_starts_with_the_pinned_build_even_twice_at_once(machine, bundle):
  for process in [start(["./start"], machine.environment, bundle) for _ in range(2)]:
    output, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert said.splitlines()[0] == SAID
    version, package, prefix = output.rsplit(" ", 2)
    assert (version, package) == ("(3, 11)", "1.2.3")
    assert Path(prefix.strip()).is_relative_to(bundle)
  assert not list(bundle.glob(".installing-*"))
  again = start(["./start"], machine.environment, bundle)
  assert again.communicate(timeout=120) == (output, "")


def test_a_bundle_takes_the_3_11_that_is_on_path_and_says_nothing_of_another(machine, bundle):
  path = bundle / "bin"
  path.mkdir()
  (path / "python3.11").symlink_to(sys._base_executable)
  environment = dict(machine.environment, PATH=f"{path}:{machine.environment['PATH']}")
  output, said = (process := start(["./start"], environment, bundle)).communicate(timeout=120)
  assert process.returncode == 0, said
  version, package, prefix = output.rsplit(" ", 2)
  assert (version, package) == ("(3, 11)", "1.2.3")
  assert os.path.samefile(Path(prefix.strip(), "lib"), Path(sys.base_prefix, "lib"))
  assert SAID not in said
  assert not list(bundle.glob(".python-*"))


def test_a_bundle_that_cannot_have_it_says_so_and_leaves_nothing(machine, bundle, tmp_path):
  environment = dict(machine.environment, UV_PYTHON_INSTALL_MIRROR=tmp_path.as_uri())
  output, said = (process := start(["./start"], environment, bundle)).communicate(timeout=120)
  assert (process.returncode, output) == (2, "")
  assert "set UV_PYTHON_INSTALL_MIRROR, or put a Python 3.11 on PATH" in said
  assert not [path for path in bundle.glob(".*") if not path.name.startswith(".python-")]


RULES = ("lock.bzl", "bootstrap.sh", "python.sh")
WORKSPACE = """
load("//third_party/python:lock.bzl", "python_build", "python_interpreter", "python_lock", "python_uv")
python_interpreter(name = "python3")
python_build(name = "cpython", pins = "//third_party/python:cpython.json")
python_uv(name = "uv", lock = "//third_party/python:uv.lock")
python_lock(name = "pins", lock = "//:requirements.lock")
"""


@pytest.fixture
def workspace(machine, tmp_path):
  """A workspace with this one's launcher and rules, whose pins are the machine's."""
  folder = tmp_path / "workspace"
  for file in ("bazelw", ".bazelversion", "tools/bazel", *(f"third_party/python/{name}" for name in RULES)):
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, folder / file)
  pins = folder / "third_party" / "python"
  bare_machine.copy(machine, uv_lock=pins / "uv.lock", pins=pins / "cpython.json")
  shutil.copy(machine.packages_lock, folder / "requirements.lock")
  (folder / "WORKSPACE").write_text(WORKSPACE)
  (folder / "BUILD").touch()
  (pins / "BUILD").write_text('exports_files(glob(["*"]))\n')
  return folder


def test_bazels_targets_run_on_the_pinned_build(machine, workspace, tmp_path):
  bazel = ["./bazelw", "--batch", "--nohome_rc", f"--output_user_root={tmp_path}/bazel"]
  environment = dict(machine.environment, HOME=pwd.getpwuid(os.getuid()).pw_dir)
  output, said = (process := start([*bazel, "query", "@pins//:all"], environment, workspace)).communicate(timeout=300)
  assert process.returncode == 0, said
  assert output == "@pins//:pins\n"
  assert said.count(SAID) == 1
  (external,) = (tmp_path / "bazel").glob("*/external/pins")
  # As every target is started (python.sh), with the packages of its lock on the path that Bazel gives it.
  runfiles = tmp_path / "a.runfiles"
  runfiles.symlink_to(external / "site-packages")
  environment["PYTHONPATH"] = str(runfiles)
  run = start([external.parent / "python3" / "python", "-c", PROGRAM], environment, workspace)
  output, said = run.communicate(timeout=60)
  assert run.returncode == 0, said
  version, package, prefix = output.rsplit(" ", 2)
  assert (version, package) == ("(3, 11)", "1.2.3")
  assert Path(prefix.strip()).is_relative_to(external.parent / "cpython")
