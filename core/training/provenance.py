"""`config.json` and `run.json`: enough to say later what ran, and to refuse a workdir that belongs to another run."""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from core import config as config_lib
from core import files
from core.errors import UserError, first_few

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow", "tensorflow-datasets")


def check_workdir(workdir: Path, config: ConfigDict) -> None:
  """Makes the folder if need be, and refuses one that is another run's; it is claimed by `record_run`.

  Raises:
    UserError: the folder cannot be written, or it was made by another config; nothing in it is changed.
  """
  path = workdir / "config.json"
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    there = json.loads(path.read_text()) if path.exists() else None
  except OSError as error:
    raise UserError(f"workdir {workdir} cannot be written: {error.strerror}") from error
  except ValueError as error:
    raise UserError(f"workdir {workdir}: config.json is not JSON; choose another workdir") from error
  if not os.access(workdir, os.W_OK):
    raise UserError(f"workdir {workdir} cannot be written: Permission denied")
  lines = [] if there is None else config_lib.differences(there, json.loads(config_lib.to_json(config)))
  if lines:
    some = first_few(lines, joint="; ", rest=" (and {} more)")
    raise UserError(f"workdir {workdir} was made by another config ({some}); choose another")


def record_run(workdir: Path, config: ConfigDict, *, project: str, start_step: int) -> None:
  """Writes `config.json`, and adds this start to `run.json`: project, command line, commit, lock, versions, devices."""
  path = workdir / "run.json"
  starts = json.loads(path.read_text()) if path.exists() else []
  starts.append({"project": project, "start_step": start_step, **describe()})
  for file, text in ((workdir / "config.json", config_lib.to_json(config)), (path, json.dumps(starts, indent=2))):
    with files.replacing(file) as stream:
      stream.write(f"{text}\n".encode())


def describe() -> dict[str, Any]:
  """What runs here: command line, commit, lock, versions and devices."""
  devices = jax.devices()
  return {
    "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    "commit": _commit(),
    "lock_sha256": _lock_digest(),
    "python": platform.python_version(),
    "versions": versions(),
    "devices": {"count": len(devices), "kind": devices[0].device_kind, "processes": jax.process_count()},
    "host": platform.platform(),
  }


def versions() -> dict[str, str | None]:
  """Those of the packages that decide what is computed; None where one is not installed."""
  return {name: _version(name) for name in _PACKAGES}


def sources(project: Path) -> dict[str, str]:
  """A digest of each source file of core and of `project`'s folder, `{"core/config.py": "8d1f03..."}`; not of tests."""
  root = Path(__file__).resolve().parents[2]
  files = sorted({*root.glob("core/**/*.py"), *project.resolve().glob("**/*.py")})
  return {
    os.path.relpath(file, root): hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    for file in files
    if not file.stem.endswith("_test")
  }


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _commit() -> str | None:
  """The commit of the checkout the run was started from, with `+changes` where files differ from it."""
  folder = os.environ.get("BUILD_WORKSPACE_DIRECTORY", str(Path(__file__).resolve().parent))

  def git(*args: str) -> str:
    return subprocess.run(["git", "-C", folder, *args], capture_output=True, text=True, check=True).stdout.strip()

  try:
    return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
  except (OSError, subprocess.CalledProcessError):
    return None


def _lock_digest() -> str | None:
  """SHA-256 of the lock that the program's packages were installed from."""
  folder = Path(getattr(sys.modules["__main__"], "__file__", None) or ".").parent
  flavour = {"gpu": "requirements.cuda.lock", "tpu": "requirements.tpu.lock"}.get(jax.default_backend())
  for lock in filter(None, (flavour, "requirements.lock")):
    if (folder / lock).is_file():
      return hashlib.sha256((folder / lock).read_bytes()).hexdigest()
  return None
