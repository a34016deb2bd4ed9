"""`config.json` and `run.json`: enough to say later what ran, and to refuse a workdir that belongs to another run.

Others may read both: what is secret in the URLs of a config, or of the command line, is masked in them. A run goes on
with its workdir when the same URL is given again, or one with a newer signature.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from etils import epath

from core import files, writable
from core.errors import UserError, first_few
from core.masking import masked, masked_tree
from core.recipe import load
from core.recipe.parse import parse
from core.recipe.write import to_config

FILES = ("config.json", "run.json")

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow", "tensorflow-datasets")


class _Damaged(UserError):
  """A file of a workdir holds something else than a run writes."""

  def __init__(self, words: str):
    super().__init__(f"{words}; choose another workdir")
    self.words = words


def check_workdir(workdir: str | os.PathLike, config: Mapping[str, Any], kind: type | None = None) -> None:
  """Makes the folder if need be, and refuses one that is another run's; it is claimed by `record_run`.

  Args:
    workdir: a folder on disk or in a bucket.
    config: of the run that wants it, as `core.recipe.write.to_config` gives it.
    kind: the recipe that it was read into. A key that the folder's config lacks then has its default there: it may be
      younger than the folder.

  Raises:
    UserError: the folder cannot be written, or it was made by another config; nothing in it is changed.
  """
  path = epath.Path(files.from_here(workdir))
  writable.check(path, "workdir")
  there = _read(path, "config.json", dict)
  if there is None:
    _read(path, "run.json", list)  # Another program's, that is.
  lines = [] if there is None else load.differences(*map(masked_tree, (_completed(there, kind), dict(config))))
  if lines:
    some = first_few(lines, joint="; ", rest=" (and {} more)")
    raise UserError(f"workdir {path} was made by another config ({some}); choose another")


def _completed(config: Mapping[str, Any], kind: type | None) -> Mapping[str, Any]:
  """Returns a config with the defaults of what it lacks; as it is where it is none of that kind."""
  if kind is None:
    return config
  try:
    return to_config(parse(kind, config))
  except UserError:
    return config


def record_run(workdir: str | os.PathLike, config: Mapping[str, Any], *, project: str, start_step: int) -> None:
  """Writes `config.json`, and adds this start to `run.json`: project, command line, commit, lock, versions, devices.

  A damaged `run.json` is set aside with a warning.

  Raises:
    UserError: they cannot be read or written.
  """
  path = epath.Path(files.from_here(workdir))
  try:
    starts = _starts(path)
    starts.append({"project": project, "start_step": start_step, **describe()})
    for name, text in (
      ("config.json", json.dumps(masked_tree(config), indent=2, sort_keys=True)),
      ("run.json", json.dumps(starts, indent=2)),
    ):
      with files.replacing(path / name) as stream:
        stream.write(f"{text}\n".encode())
  except OSError as error:
    raise UserError(f"workdir {path} cannot be written: {files.reason(error)}") from None


def _starts(workdir: epath.Path) -> list[dict[str, Any]]:
  """Returns what `run.json` holds; a damaged one is set aside with a warning.

  Raises:
    UserError: it cannot be read.
    OSError: it cannot be set aside.
  """
  try:
    return _read(workdir, "run.json", list) or []
  except _Damaged as error:
    aside = files.set_aside(workdir / "run.json")
    print(f"warning: {error.words}; set aside as {aside.name}", file=sys.stderr, flush=True)
    return []


def _read(workdir: epath.Path, name: str, kind: type) -> Any:
  """Returns what a JSON file of a workdir holds, or None where it is not there.

  Args:
    workdir: the folder.
    name: of the file.
    kind: what a run writes into it: a dict, or a list of them.

  Raises:
    _Damaged: it holds something else.
    UserError: it cannot be read.
  """
  try:
    content = files.read_bytes(workdir / name)
    held = None if content is None else json.loads(content)
  except OSError as error:
    raise UserError(f"workdir {workdir}: {name} cannot be read ({files.reason(error)})") from None
  except (ValueError, RecursionError):
    raise _Damaged(f"workdir {workdir}: {name} is not JSON") from None
  right = isinstance(held, kind) and (kind is dict or all(isinstance(each, dict) for each in held))
  if content is not None and not right:
    raise _Damaged(f"workdir {workdir}: {name} is not what a run writes")
  return held


def project_of(workdir: str | os.PathLike) -> str | None:
  """Returns whose run a workdir is; None where its `run.json` does not tell.

  Raises:
    UserError: `run.json` cannot be read.
  """
  try:
    starts = _read(epath.Path(files.from_here(workdir)), "run.json", list)
  except _Damaged:
    return None
  project = starts[-1].get("project") if starts else None
  return project if isinstance(project, str) else None


def describe() -> dict[str, Any]:
  """Returns what runs here: command line, commit, lock, versions and devices."""
  devices = jax.devices()
  return {
    "command": [Path(sys.argv[0]).name, *map(masked, sys.argv[1:])],
    "commit": _commit(),
    "lock_sha256": _lock_digest(),
    "python": platform.python_version(),
    "versions": versions(),
    "devices": {"count": len(devices), "kind": devices[0].device_kind, "processes": jax.process_count()},
    "host": platform.platform(),
  }


def versions() -> dict[str, str | None]:
  """Returns those of the packages that decide what is computed; None where one is not installed."""
  return {name: _version(name) for name in _PACKAGES}


def sources(project: Path) -> dict[str, str]:
  """Returns a digest of each source of core and of `project`'s folder, `{"core/config.py": "8d1f"}`; not of tests."""
  root = Path(__file__).resolve().parents[2]
  found = sorted({*root.glob("core/**/*.py"), *project.resolve().glob("**/*.py")})
  return {
    os.path.relpath(file, root): hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    for file in found
    if not file.stem.endswith("_test")
  }


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _commit() -> str | None:
  """Returns the commit of the checkout the run was started from, with `+changes` where files differ from it."""
  folder = os.environ.get("BUILD_WORKSPACE_DIRECTORY", str(Path(__file__).resolve().parent))

  def git(*args: str) -> str:
    return subprocess.run(["git", "-C", folder, *args], capture_output=True, text=True, check=True).stdout.strip()

  try:
    return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
  except (OSError, subprocess.CalledProcessError):
    return None


def _lock_digest() -> str | None:
  """Returns the SHA-256 of the lock that the program's packages were installed from."""
  folder = Path(getattr(sys.modules["__main__"], "__file__", None) or ".").parent
  flavour = {"gpu": "requirements.cuda.lock", "tpu": "requirements.tpu.lock"}.get(jax.default_backend())
  for lock in filter(None, (flavour, "requirements.lock")):
    if (folder / lock).is_file():
      return hashlib.sha256((folder / lock).read_bytes()).hexdigest()
  return None
