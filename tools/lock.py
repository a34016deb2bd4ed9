"""Locks what core, projects and tools import: `./bazelw run //tools:lock [-- [--check] [--upgrade] [vit core ...]]`.

Each `requirements.in` gives a `requirements.lock`, and for a project one more for each accelerator flavour, with exact
versions and hashes. Versions that are locked stay as they are unless the `.in` changes or `--upgrade` is given.
"""

import argparse  # And not core.command: what makes the locks runs where nothing that they lock is there yet.
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

FLAVOURS = ("cuda", "tpu")
PYTHON = "3.11"


def locks(root: Path) -> Iterator[tuple[str, list[Path], Path]]:
  """Yields every lock of the repository: whose it is, the files it is made from, and its own path."""
  pins = Path("third_party/python")
  yield "uv", [pins / "uv.in"], pins / "uv.lock"
  yield "core", [Path("core/requirements.in")], Path("core/requirements.lock")
  for path in sorted(root.glob("projects/*/requirements.in")):
    folder = path.parent.relative_to(root)
    wanted = folder / "requirements.in"
    yield folder.name, [wanted], folder / "requirements.lock"
    for flavour in FLAVOURS:
      yield folder.name, [wanted, pins / f"{flavour}.in"], folder / f"requirements.{flavour}.lock"
  for path in sorted(root.glob("tools/*/requirements.in")):
    folder = path.parent.relative_to(root)
    yield folder.name, [folder / "requirements.in"], folder / "requirements.lock"


def compile_lock(uv: str, root: Path, sources: list[Path], lock: Path, output: Path, upgrade: bool) -> None:
  """Resolves `sources` for Python 3.11 on every platform and writes exact versions and hashes to `output`.

  A flavour takes the versions of the plain lock beside it, so that all flavours of a project agree.
  """
  plain = lock.with_name("requirements.lock")
  command = [uv, "pip", "compile", "--quiet", "--universal", "--generate-hashes", "--python-version", PYTHON]
  command += ["--custom-compile-command", "./bazelw run //tools:lock", "--no-annotate"]
  command += ["--constraints", str(plain)] * (plain != lock and len(sources) > 1) + ["--upgrade"] * upgrade
  subprocess.run(command + ["--output-file", str(output), *map(str, sources)], cwd=root, check=True)


def main() -> int:
  """Writes or checks the locks that the command line names; returns the exit status."""
  parser = argparse.ArgumentParser(prog="lock", description=__doc__.split("\n")[0])
  parser.add_argument("names", nargs="*", help="projects (or core, uv) to lock; all by default")
  parser.add_argument("--check", action="store_true", help="write nothing; fail where a lock is not what its .in asks")
  parser.add_argument("--upgrade", action="store_true", help="take the newest versions that the .in allow")
  parser.add_argument("--uv", required=True, help=argparse.SUPPRESS)
  flags = parser.parse_args()

  uv = os.path.abspath(flags.uv)
  root = Path(os.environ["BUILD_WORKSPACE_DIRECTORY"])
  known = list(dict.fromkeys(name for name, _, _ in locks(root)))
  if unknown := sorted(set(flags.names) - set(known)):
    print(f"error: no requirements.in of {', '.join(unknown)} (known: {', '.join(known)})", file=sys.stderr)
    return 2

  stale = []
  for name, sources, lock in locks(root):
    if flags.names and name not in flags.names:
      continue
    with tempfile.TemporaryDirectory() as folder:
      output = Path(folder) / lock.name
      if (root / lock).exists():
        shutil.copy(root / lock, output)
      compile_lock(uv, root, sources, lock, output, flags.upgrade)
      changed = not (root / lock).exists() or output.read_bytes() != (root / lock).read_bytes()
      if changed and not flags.check:
        shutil.copyfile(output, root / lock)
    stale += [lock] * changed
    print(f"{lock}: {('stale' if flags.check else 'written') if changed else 'unchanged'}")
  return 1 if flags.check and stale else 0


if __name__ == "__main__":
  try:
    sys.exit(main())
  except subprocess.CalledProcessError as failure:
    sys.exit(failure.returncode)
