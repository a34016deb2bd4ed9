"""The one reader of text files that hold a thing a line: names, captions, pieces of a vocabulary, JSON objects.

A line ends at a line feed, with or without a carriage return before it, and nowhere else: `str.splitlines` also cuts at
U+2028, form feeds and seven more characters, which are text. The byte order mark that editors on Windows put before
UTF-8 is none.
"""

import codecs
import os
from collections.abc import Iterator

from etils import epath

from core import files
from core.errors import UserError


def read(path: str | os.PathLike, where: str) -> Iterator[str]:
  """Yields the lines of a UTF-8 file, without their ends.

  Args:
    path: the file.
    where: what it is to a reader, which begins an error's line.

  Raises:
    UserError: it cannot be read or is no regular file, or a line is not UTF-8, by its number.
  """
  for number, line in enumerate(_raw(path, where), 1):
    try:
      yield _without_end(_without_mark(line) if number == 1 else line).decode()
    except UnicodeDecodeError:
      raise UserError(f"{where}: {path} line {number} is not UTF-8 text") from None


def read_filled(path: str | os.PathLike, where: str) -> list[str]:
  """Returns the lines of a UTF-8 file that hold more than white space, without that at both their ends.

  Raises:
    UserError: as `read`.
  """
  return [line.strip() for line in read(path, where) if line.strip()]


def of_bytes(content: bytes) -> list[bytes]:
  """Returns the lines of a file's content, without their ends."""
  lines = _without_mark(content).split(b"\n")
  return [_without_end(line) for line in (lines if lines[-1] else lines[:-1])]


def _raw(path: str | os.PathLike, where: str) -> Iterator[bytes]:
  try:
    files.refuse_irregular(path)
    with files.as_os_error(path), epath.Path(path).open("rb") as stream:
      yield from stream
  except OSError as error:
    raise UserError(f"{where}: {path} cannot be read ({files.reason(error)})") from None


def _without_mark(content: bytes) -> bytes:
  return content.removeprefix(codecs.BOM_UTF8)


def _without_end(line: bytes) -> bytes:
  return line.removesuffix(b"\n").removesuffix(b"\r")
