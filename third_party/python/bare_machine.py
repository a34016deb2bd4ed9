"""A machine without Python 3.11, as a test sees one: what is on its PATH, a mirror with one build of CPython, packages.

Nothing of it needs a network. The build is the interpreter that runs the test, packed as uv expects one; packages are
wheels that the test writes, uv among them.
"""

import dataclasses
import hashlib
import json
import os
import platform
import shutil
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

VERSION = platform.python_version()
BUILD = "20200202"
# Of the standard library: what no test needs.
_LEFT_OUT = {"__pycache__", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tkinter", "turtledemo"} | {
  "dist-packages",
  "site-packages",
}


@dataclasses.dataclass(frozen=True)
class BareMachine:
  """What a program there is given.

  Attributes:
    folder: where all of it lies.
    environment: variables of a shell there: PATH, the mirror, a package index of two packages.
    uv_lock: a lock of one of them, uv, and
    packages_lock: of the other, `tiny` of version 1.2.3.
    pins: the one build that the mirror has, in the form of cpython.json.
  """

  folder: Path
  environment: Mapping[str, str]
  uv_lock: Path
  packages_lock: Path
  pins: Path


def make(folder: Path, uv: Path) -> BareMachine:
  """Makes the machine in `folder`, which is there; `uv` is the program that its wheel will hold."""
  index, mirror = folder / "index", folder / "mirror"
  uv_lock, packages_lock = folder / "uv.lock", folder / "packages.lock"
  uv_lock.write_text(_write_wheel(index, "uv", "9.9.9", {"uv-9.9.9.data/scripts/uv": uv.read_bytes()}))
  packages_lock.write_text(_write_wheel(index, "tiny", "1.2.3", {"tiny.py": b"VERSION = '1.2.3'\n"}))
  pins = folder / "cpython.json"
  pins.write_text(json.dumps(_write_build(mirror), indent=2))
  environment = {
    "PATH": str(_write_path(folder / "bin")),
    "HOME": str(folder),
    "UV_CACHE_DIR": str(folder / "uv_cache"),
    "UV_PYTHON_INSTALL_MIRROR": mirror.as_uri(),
    "PIP_INDEX_URL": index.as_uri(),
    "UV_DEFAULT_INDEX": index.as_uri(),
  }
  return BareMachine(folder, environment, uv_lock, packages_lock, pins)


def _write_path(folder: Path) -> Path:
  """Links all commands of this machine into `folder` but its Pythons, for which one stands that says it is 3.12."""
  folder.mkdir()
  for source in ("/usr/local/bin", "/usr/bin", "/bin"):
    for command in Path(source).glob("*"):
      if not command.name.startswith(("pip", "py", "uv")) and not (folder / command.name).is_symlink():
        (folder / command.name).symlink_to(command)
  # It answers `-I -c CODE`, by which it is asked for its version, as Python 3.12 does, and runs all else as it can.
  (folder / "python3").write_text(f"""#!/bin/sh
if [ "$1 $2" = "-I -c" ]; then
  exec '{sys._base_executable}' -I -c "import sys; sys.version_info = (3, 12, 1, 'final', 0)
$3"
fi
exec '{sys._base_executable}' "$@"
""")
  (folder / "python3").chmod(0o755)
  return folder


def _write_build(mirror: Path) -> dict[str, dict[str, object]]:
  """Packs the interpreter that runs this into `mirror`, as one build, and returns the entry that pins it."""
  arch = platform.machine()
  name = f"cpython-{VERSION}+{BUILD}-{arch}-unknown-linux-gnu-install_only_stripped.tar.gz"
  archive = mirror / BUILD / name
  archive.parent.mkdir(parents=True)
  with tarfile.open(archive, "w:gz", compresslevel=1) as packed:
    packed.add(os.path.realpath(sys._base_executable), "python/bin/python3.11")
    packed.add(sysconfig.get_path("stdlib"), "python/lib/python3.11", filter=_needed)
    library = Path(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME"))
    if library.suffix != ".a" and library.exists():
      packed.add(library.resolve(), f"python/lib/{library.name}")
  major, minor, patch = map(int, VERSION.split("."))
  entry = {
    "name": "cpython",
    "arch": {"family": arch, "variant": None},
    "os": "linux",
    "libc": "gnu",
    "major": major,
    "minor": minor,
    "patch": patch,
    "prerelease": "",
    "url": f"https://github.com/astral-sh/python-build-standalone/releases/download/{BUILD}/{name.replace('+', '%2B')}",
    "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
    "variant": None,
    "build": BUILD,
  }
  return {f"cpython-{VERSION}-linux-{arch}-gnu": entry}


def _needed(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
  parts = member.name.split("/")
  left_out = _LEFT_OUT.intersection(parts) or any(part.startswith("config-") for part in parts)
  return None if left_out or member.issym() else member


def _write_wheel(index: Path, name: str, version: str, files: Mapping[str, bytes]) -> str:
  """Writes a wheel into a package index and returns its entry of a lock."""
  information = f"{name}-{version}.dist-info"
  wheel = index / name / f"{name}-{version}-py3-none-any.whl"
  wheel.parent.mkdir(parents=True)
  (wheel.parent / "index.html").write_text(f"<a href='{wheel.name}'>{wheel.name}</a>")
  with zipfile.ZipFile(wheel, "w") as archive:
    for path, contents in files.items():
      member = zipfile.ZipInfo(path)
      member.external_attr = 0o100755 << 16  # Else what is in `scripts` could not be executed.
      archive.writestr(member, contents)
    archive.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    records = [*files, f"{information}/METADATA", f"{information}/WHEEL", f"{information}/RECORD"]
    archive.writestr(f"{information}/RECORD", "".join(f"{path},,\n" for path in records))
  digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
  return f"{name}=={version} \\\n    --hash=sha256:{digest}\n"


def copy(machine: BareMachine, *, uv_lock: Path, pins: Path) -> None:
  """Puts the machine's uv and its one build in place of those that are pinned."""
  shutil.copy(machine.uv_lock, uv_lock)
  shutil.copy(machine.pins, pins)
