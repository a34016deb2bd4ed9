"""A prepared TensorFlow dataset: TFRecord files that `tfds` wrote, opened without the code that wrote them."""

import glob
import os
from typing import Any

from core import files
from core.data import split as splits
from core.data.import_tensorflow import import_tfds
from core.data.tfrecord import Records
from core.errors import UserError, first_few, naming, nearest
from core.recipe import sources


def read(data: sources.Tfds, where: str) -> Records:
  """Returns the records of a split.

  Raises:
    UserError: no such dataset, not prepared, no such split, or a split without examples; files missing or of another
      format than TFRecord.
  """
  tfds = import_tfds()
  data_dir = data.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  data_dir = data_dir if "://" in data_dir else _absolute(data_dir, f"{where}.data_dir")
  builder = _builder(tfds, data.name, data_dir, f"{where}.name")
  if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
    written = builder.info.file_format.value
    raise UserError(f"{where}.name: the files of {data.name!r} are {written}; prepare it with file_format=tfrecord")
  pieces = splits.of_source({key: info.shard_lengths for key, info in builder.info.splits.items()}, f"{where}.split")
  instructions = _instructions(builder, pieces(data.split), data, where)
  names = tuple(os.fspath(i.filename) for i in instructions)
  gone = next((file for file in names if "://" not in file and not os.path.isfile(file)), None)
  if gone:
    fault = "no regular file" if os.path.exists(gone) else "missing"
    raise UserError(f"{where}.name: the file {gone} is {fault}; {_prepare(data.name)}")

  features = builder.info.features
  images = {key for key, feature in features.items() if isinstance(feature, tfds.features.Image)}
  for key in data.skip_decode:
    if key not in images and data.skip_decode != sources.Tfds.skip_decode:
      raise UserError(f"{where}.skip_decode: {key!r} is no image of {data.name}{nearest(key, images)}")
  label = dict(features.items()).get("label")
  classes = label.names if isinstance(label, tfds.features.ClassLabel) and label.num_classes else ()
  decoders = {key: tfds.decode.SkipDecoding() for key in data.skip_decode if key in images}
  return Records(
    name=f"{data.name} {data.split}",
    files=names,
    skips=tuple(i.skip for i in instructions),
    takes=tuple(i.examples_in_shard - i.skip if i.take == -1 else i.take for i in instructions),
    parse=lambda record: features.deserialize_example(record, decoders=decoders),
    classes=tuple(classes),
    pieces=pieces,
  )


def _absolute(path: str, where: str) -> str:
  try:
    with naming(where):
      return str(files.from_here(path))
  except RuntimeError as error:  # No such person's home.
    raise UserError(f"{where}: {path}: {error}") from None


def _instructions(builder, parts: list[tuple[str, int, int]], data: sources.Tfds, where: str) -> list[Any]:
  """Returns what TFDS says is to be read for the ranges of a split: files, and the records in each."""
  try:
    info = builder.info.splits["+".join(f"{name}[{low}:{high}]" for name, low, high in parts if low < high)]
    found = [i for i in info.file_instructions if i.take]
  except Exception as error:  # TFDS's own kinds vary with what is wrong.
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    raise UserError(f"{where}.split: {data.split!r} of {data.name}: {reason}") from None
  if not found:
    raise UserError(f"{where}.split: {data.split!r} holds no examples")
  return found


def _prepare(name: str) -> str:
  return f"prepare it with: ./bazelw run //tools:prepare_data -- {name}"


def _builder(tfds, name: str, data_dir: str, where: str):
  base = name.split(":")[0].split("/")[0]
  folder = os.path.join(data_dir, base)
  try:
    for file in glob.iglob(f"{glob.escape(folder)}/**/*.json", recursive=True) if base else ():  # Of a bucket, none.
      files.refuse_irregular(file)
    return tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
  except Exception as error:  # The loader's own kinds vary with what is wrong: name, version, JSON of the folder.
    known = set(tfds.list_builders(with_community_datasets=False))
    if os.path.isdir(folder):
      there = first_few(sorted(os.listdir(folder)))
      reason = next(iter(str(error).splitlines()), type(error).__name__).split(". ")[0]
      line = f"dataset {name!r} cannot be opened; {folder} holds {there} ({reason})"
    elif base in known:
      line = f"dataset {name!r} is not prepared in {data_dir}; {_prepare(name)}"
    else:
      line = f"dataset {base!r} is unknown to TFDS and not in {data_dir}{nearest(base, known)}"
    raise UserError(f"{where}: {line}") from None
