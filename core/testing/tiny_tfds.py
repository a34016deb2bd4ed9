"""Writes small datasets in TFDS's own layout, for tests: TFRecord shards and the metadata beside them."""

import os
import pathlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from core.data.import_tensorflow import import_tfds
from core.import_tensorflow import import_tensorflow


def write(
  data_dir: str | os.PathLike, name: str, features: Any, splits: Mapping[str, Sequence[Sequence[dict]]]
) -> pathlib.Path:
  """Writes version 1.0.0 of the dataset `name` under `data_dir`.

  Args:
    data_dir: what `data.data_dir` or TFDS_DATA_DIR then names.
    name: of the dataset, `NAME` or `NAME/CONFIG`.
    features: a `tfds.features.FeaturesDict`.
    splits: for each split its shards, each a list of examples as `features` encodes them.

  Returns:
    The folder of the shards.
  """
  tf, tfds = import_tensorflow(), import_tfds()
  folder = pathlib.Path(data_dir) / name / "1.0.0"
  dataset = name.partition("/")[0]
  folder.mkdir(parents=True)
  infos = []
  for split, shards in splits.items():
    template = tfds.core.ShardedFileTemplate(
      data_dir=folder, dataset_name=dataset, split=split, filetype_suffix="tfrecord"
    )
    for number, shard in enumerate(shards):
      path = os.fspath(template.sharded_filepath(shard_index=number, num_shards=len(shards)))
      with tf.io.TFRecordWriter(path) as writer:
        for example in shard:
          writer.write(features.serialize_example(features.encode_example(example)))
    infos.append(
      tfds.core.SplitInfo(name=split, shard_lengths=[len(s) for s in shards], num_bytes=1, filename_template=template)
    )
  tfds.folder_dataset.write_metadata(data_dir=folder, features=features, split_infos=infos)
  return folder


def damage(file: pathlib.Path, records: Sequence[int]) -> None:
  """Flips a bit inside the bytes of some records of a TFRecord file, so that their checksums do not hold."""
  data, offset, number = bytearray(file.read_bytes()), 0, 0
  while offset < len(data):
    (length,) = struct.unpack_from("<Q", data, offset)
    if number in records:
      data[offset + 12 + length // 2] ^= 1
    offset, number = offset + length + 16, number + 1
  file.write_bytes(data)
