"""Writes the archive of `//projects/<name>:bundle`: `bundle_archive OUT FOLDER @ENTRIES`, a `NAME=PATH` a line."""

import gzip
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path


def write(output: Path, folder: str, entries: Iterable[tuple[str, Path]]) -> None:
  """Packs files into `<folder>/<name>` of a `.tar.gz` whose bytes depend on names and contents alone.

  Order, times, owners, modes and the compressor's own time stamp are fixed. `start` can be executed.
  """
  with (
    output.open("wb") as raw,
    gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=0) as packed,
    tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
  ):
    for name, path in sorted(entries):
      member = tarfile.TarInfo(f"{folder}/{name}")  # uid, gid and mtime are 0, names of owners empty.
      member.size = path.stat().st_size
      member.mode = 0o755 if name == "start" else 0o644
      with path.open("rb") as contents:
        archive.addfile(member, contents)


def main() -> None:
  """Packs what Bazel's rule names, which calls this before any package is there."""
  output, folder, listing = sys.argv[1:]
  lines = Path(listing.removeprefix("@")).read_text("utf-8").split("\n")
  entries = {tuple(line.split("=", 1)) for line in filter(None, lines)}
  write(Path(output), folder, [(name, Path(path)) for name, path in entries])


if __name__ == "__main__":
  main()
