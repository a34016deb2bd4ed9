"""A folder of images in one folder a class: `photos/cat/1.jpg`, or with splits `photos/train/cat/1.jpg`."""

import errno
import functools
import os
import pathlib
import sys
from collections.abc import Iterator

import numpy as np

from core.data import class_names, order, paths
from core.data import split as splits
from core.data.columns import Columns, bytes_column, describer, select
from core.errors import UserError, first_few
from core.pp import decoding
from core.recipe import sources
from core.recipe import split as grammar

_OTHER_IMAGES = (".heic", ".heif", ".jp2", ".jxl", ".ppm", ".pgm", ".tga", ".psd", ".svg", ".ico", ".dng")
_SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")  # No one calls a class so.
_ORDER_SEED = 0


def read(data: sources.Folder, where: str) -> Columns:
  """Returns `image`, the paths of the files, and `label`, int64 [n]; `.classes` holds the names of the classes.

  Which files: those with the suffixes of what `decode` reads, in a class's folder or below it. Images of other formats
  are refused. Other files are skipped, and a line on stderr names the first of them; what begins with a dot is not even
  named.

  Which label: the place of the class's name in `classes`, by default the names of the class folders, those of the
  split `train` where there are splits, sorted: whole numbers by their values, then others by their letters.

  Which order: class by class in an order of its own, then all classes spread evenly, each in proportion to its size.
  So `train[:90%]` holds nine tenths of every class, and adding `train[90%:]` gives all. The order follows from the
  names of the files alone.

  Raises:
    UserError: no such folder or split, a class without images or one that `train` has not, an image of another
      format.
  """
  root = paths.existing_folder(data.path, f"{where}.path")
  try:
    return _columns(data, root, where)
  except OSError as error:
    raise UserError(f"{where}.path: {error.filename or root} cannot be read ({error.strerror})") from None


def _columns(data: sources.Folder, root: pathlib.Path, where: str) -> Columns:
  roots = _splits(root, f"{where}.path")
  # The names of splits are known before their files are: what another split holds need not be in order.
  named = {part.name for part in grammar.read(data.split)}
  wanted = {root: None for part, root in roots.items() if part in named or ("all" in named and "all" not in roots)}
  names = _class_names(data.classes, roots, root, where)

  found = {root: _table(root, names, f"{where}.path") for root in wanted}
  tables = {part: found[root] for part, root in roots.items() if root in found}
  shards = {part: [len(tables[part]["label"]) if part in tables else 0] for part in roots}
  ranges = splits.of_source(shards, f"{where}.split")
  parts = ranges(data.split)

  def noun(part: str, row: int) -> str:
    return tables[part]["image"][row].decode()

  def pieces(split: str) -> list[tuple[str, int, int]]:
    return [(str(roots[part]), low, high) for part, low, high in ranges(split)]

  arrays, describe = select(tables, parts), describer(parts, noun)
  return Columns(f"{data.path} {data.split}", arrays, describe, ("image",), names, pieces)


def _splits(root: pathlib.Path, where: str) -> dict[str, pathlib.Path]:
  """Returns the folders of class folders, one a split, by name."""
  top = _folders(root)
  if not top:
    raise UserError(
      f"{where}: {root} holds no folders; images of a class lie in a folder of its name: {root}/cat/1.jpg"
    )
  of_classes = [folder for folder in top if _folders(folder) and not _images(folder, where, deep=False)]
  of_images = [folder for folder in top if _images(folder, where, deep=False)]
  both = [folder for folder in of_images if any(_images(each, where) for each in _folders(folder))]
  if both and (len(both) == len(top) or any(folder.name.lower() in _SPLITS for folder in both)):
    strays = _images(both[0], where, deep=False)
    raise UserError(
      f"{where}: {strays[0]} lies beside folders of images; if {both[0].name} is a split, put it into one of them, "
      f"like {_folders(both[0])[0] / strays[0].name}; if it is a class, put its images into one folder"
    )
  if of_classes and of_images:
    raise UserError(
      f"{where}: {root}: {of_images[0].name} holds images, {of_classes[0].name} holds folders; let all be classes, "
      "with images in them, or all splits, with class folders in them"
    )
  return {folder.name: folder for folder in top} if of_classes else {"train": root, "all": root}


def _class_names(
  classes: tuple[str, ...] | str | None, roots: dict[str, pathlib.Path], root: pathlib.Path, where: str
) -> tuple[str, ...]:
  if classes is not None:
    return class_names.read(classes, root, f"{where}.classes")
  first = roots.get("train")
  folders = _folders(first) if first else {f.name for each in roots.values() for f in _folders(each)}
  return class_names.in_order({folder if isinstance(folder, str) else folder.name for folder in folders})


def _table(folder: pathlib.Path, classes: tuple[str, ...], where: str) -> dict[str, np.ndarray]:
  """Returns paths and labels of one split, in the order that `read` tells."""
  if stray := _images(folder, where, deep=False):
    beside = folder / classes[0] / stray[0].name
    raise UserError(f"{where}: {stray[0]} lies in no class's folder; put it into one, like {beside}")
  folders = _folders(folder)
  places = [f"{where}: the folder {each}" for each in folders]
  labels = class_names.labels([each.name for each in folders], classes, places)
  files_of, places, found = [], [], []
  for label, each in zip(labels, folders):
    files = _images(each, where)
    if not files:
      suffixes = ", ".join(decoding.SUFFIXES)
      raise UserError(f"{where}: the class folder {each} holds no images ({suffixes}); remove it or fill it")
    files = [files[row] for row in order.permutation(len(files), _ORDER_SEED, int(label))]
    files_of += map(str, files)
    places.append((np.arange(len(files)) + 0.5) / len(files))
    found.append(np.full(len(files), label))
  rows = np.argsort(np.concatenate(places), kind="stable") if places else np.zeros(0, np.int64)
  return {"image": bytes_column(files_of)[rows], "label": np.concatenate(found or [np.zeros(0, np.int64)])[rows]}


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns the folders in a folder, sorted by name."""
  with os.scandir(folder) as entries:
    names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
  return [folder / name for name in names]


def _images(folder: pathlib.Path, where: str, deep: bool = True) -> list[pathlib.Path]:
  """Returns the images in a folder and, if `deep`, below it, sorted by path.

  Raises:
    UserError: an image there that cannot be read.
  """
  found, others = [], []
  for entry in _entries(folder, deep):
    if not entry.name.lower().endswith(decoding.SUFFIXES):
      others.append(entry.path)
    elif not entry.is_file():  # Reading a pipe waits for its other end.
      raise UserError(f"{where}: {entry.path}: no regular file; remove it")
    else:
      found.append(entry.path)
  others.sort()
  if unreadable := [path for path in others if path.lower().endswith(_OTHER_IMAGES)]:
    suffixes = ", ".join(decoding.SUFFIXES)
    raise UserError(f"{where}: {first_few(unreadable)}: no format that is read; make it one of {suffixes}")
  if others and deep:
    _tell(f"{folder}: skipped, as by name no image: {first_few(others)}")
  return sorted(map(pathlib.Path, found))


def _entries(folder: str | os.PathLike, deep: bool, above: tuple[str, ...] = ()) -> Iterator[os.DirEntry]:
  """Yields what lies in a folder and, if `deep`, below it and is no folder; nothing that begins with a dot."""
  own = os.path.realpath(folder)
  if own in above:
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(folder))
  with os.scandir(folder) as entries:
    for entry in entries:
      if entry.name.startswith("."):
        continue
      if not entry.is_dir():
        yield entry
      elif deep:
        yield from _entries(entry.path, deep, (*above, own))


@functools.cache
def _tell(line: str) -> None:
  """Prints a line once, however often the folder is read."""
  print(line, file=sys.stderr, flush=True)
