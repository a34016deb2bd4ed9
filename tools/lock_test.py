"""Every lock belongs to its `.in`, is complete in versions and hashes, and names no registry."""

import re
from pathlib import Path

import pytest

from tools import lock

ROOT = Path.cwd()  # A test's working folder is the root of its own copy of the repository.
LOCKS = [pytest.param(sources, path, id=str(path)) for _, sources, path in lock.locks(ROOT)]


def canonical(name: str) -> str:
  return re.sub(r"[-_.]+", "-", name).lower()


def wanted(path: Path) -> set[str]:
  """Packages that a requirements.in asks for, those of the files it includes among them."""
  names = set()
  for line in (line.partition("#")[0].strip() for line in path.read_text().splitlines()):
    if line.startswith("-r "):
      names |= wanted(path.parent / line.removeprefix("-r ").strip())
    elif line:
      names.add(canonical(re.match(r"[\w.-]+", line)[0]))
  return names


def locked(path: Path) -> dict[str, list[str]]:
  """`{"jax==0.10.2": [hash, ...]}`, one entry a locked package, platform markers dropped."""
  packages: dict[str, list[str]] = {}
  for line in path.read_text().splitlines():
    if found := re.fullmatch(r" +--hash=(sha256:[0-9a-f]{64})( \\)?", line):
      packages[package].append(found[1])
    elif not line.startswith("#"):
      package = re.fullmatch(r"(\S+==\S+)( ; .*)? \\", line)[1]
      packages.setdefault(package, [])
  return packages


@pytest.mark.parametrize("sources, path", LOCKS)
def test_what_is_asked_for_is_locked(sources, path):
  names = {canonical(package.partition("==")[0]) for package in locked(path)}
  assert set().union(*(wanted(source) for source in sources)) <= names


@pytest.mark.parametrize("sources, path", LOCKS)
def test_every_package_has_a_version_and_hashes(sources, path):
  packages = locked(path)
  assert packages
  assert all(packages.values())


@pytest.mark.parametrize("sources, path", LOCKS)
def test_no_lock_names_a_registry(sources, path):
  assert not re.findall(r"https?:|index-url|find-links", path.read_text())


@pytest.mark.parametrize("flavour", lock.FLAVOURS)
def test_a_flavour_only_adds_to_the_versions_of_the_plain_lock(flavour):
  for plain in ROOT.glob("projects/*/requirements.lock"):
    assert set(locked(plain)) < set(locked(plain.with_name(f"requirements.{flavour}.lock")))
