"""A prepared TensorFlow dataset: TFRecord files that `tfds` wrote, opened without the code that wrote them."""

import os

from core.data.import_tensorflow import import_tfds
from core.data.tfrecord import Records
from core.errors import UserError, nearest
from core.files import from_here


def load(*, name: str, split: str, data_dir: str | None = None, skip_decode: tuple[str, ...] = ("image",)) -> Records:
  """The records of a split.

  Args:
    name: as `tfds.builder` takes it: `cifar10`, `imagenet2012:5.1.0`, `dataset/config`.
    split: in TFDS's notation: `train`, `train[:98%]`, `train+validation`.
    data_dir: where the prepared datasets lie; default: the environment variable TFDS_DATA_DIR, or TFDS's own.
    skip_decode: image features that stay encoded bytes, for the pp op `decode`.

  Raises:
    UserError: no such dataset, not prepared, no such split, or a split without examples; files missing or of another
      format than TFRecord.
  """
  tfds = import_tfds()
  where = f"dataset {name!r}"
  data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  data_dir = data_dir if "://" in data_dir else str(from_here(data_dir))
  builder = _builder(tfds, name, data_dir)
  if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
    raise UserError(f"{where}: its files are {builder.info.file_format.value}; prepare it with file_format=tfrecord")
  try:
    info = builder.info.splits[split]
    instructions = [i for i in info.file_instructions if i.take]
  except (ValueError, KeyError, AssertionError) as error:
    raise UserError(f"{where}: split {split!r}: {str(error).splitlines()[0]}") from None
  if not instructions:
    raise UserError(f"{where}: split {split!r} holds no examples")
  files = tuple(os.fspath(i.filename) for i in instructions)
  gone = next((file for file in files if "://" not in file and not os.path.exists(file)), None)
  if gone:
    raise UserError(f"{where}: the file {gone} is missing; {_prepare(name)}")

  features = builder.info.features
  images = {key for key, feature in features.items() if isinstance(feature, tfds.features.Image)}
  label = dict(features.items()).get("label")
  names = label.names if isinstance(label, tfds.features.ClassLabel) and label.num_classes else ()
  decoders = {key: tfds.decode.SkipDecoding() for key in skip_decode if key in images}
  return Records(
    name=f"{name} {split}",
    files=files,
    skips=tuple(i.skip for i in instructions),
    takes=tuple(i.examples_in_shard - i.skip if i.take == -1 else i.take for i in instructions),
    parse=lambda record: features.deserialize_example(record, decoders=decoders),
    classes=tuple(names),
  )


def _prepare(name: str) -> str:
  return f"prepare it with: ./bazelw run //tools:prepare_data -- {name}"


def _builder(tfds, name: str, data_dir: str):
  try:
    return tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
  except Exception as error:  # The loader's own kinds vary with what is wrong: name, version, JSON of the folder.
    known = set(tfds.list_builders(with_community_datasets=False))
    base = name.split(":")[0].split("/")[0]
    folder = os.path.join(data_dir, base)
    if os.path.isdir(folder):
      there = ", ".join(sorted(os.listdir(folder)))
      reason = str(error).splitlines()[0].split(". ")[0]
      raise UserError(f"dataset {name!r} cannot be opened; {folder} holds {there} ({reason})") from None
    if base in known:
      raise UserError(f"dataset {name!r} is not prepared in {data_dir}; {_prepare(name)}") from None
    raise UserError(f"dataset {base!r} is unknown to TFDS and not in {data_dir}{nearest(base, known)}") from None
