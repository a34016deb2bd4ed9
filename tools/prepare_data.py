"""Downloads and prepares TFDS datasets by name, for the `name` of a config's `data`.

./bazelw run //tools:prepare_data -- cifar10 cifar100 --data_dir=~/tensorflow_datasets
"""

import argparse
import os
import sys
from pathlib import Path

from core.data.import_tensorflow import import_tensorflow
from core.errors import UserError, nearest


def main() -> None:
  parser = argparse.ArgumentParser(prog="prepare_data", description="Download and prepare TFDS datasets by name.")
  parser.add_argument("names", nargs="+", help="cifar10, imagenet2012, oxford_iiit_pet, ...")
  parser.add_argument("--data_dir", default=os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
  parser.add_argument("--manual_dir", help="files that must be fetched by hand, like ImageNet's archives")
  arguments = parser.parse_args()
  data_dir = Path(os.environ.get("BUILD_WORKING_DIRECTORY", "."), Path(arguments.data_dir).expanduser()).absolute()
  status = 0
  for name in arguments.names:
    try:
      prepare(name, data_dir, arguments.manual_dir)
    except UserError as error:
      print(f"error: {error}", file=sys.stderr)
      status = 2
  sys.exit(status)


def prepare(name: str, data_dir: Path, manual_dir: str | None = None) -> None:
  """Prepares one dataset unless it is there already, and prints its splits.

  Raises:
    UserError: TFDS has no such dataset, or it could not be downloaded or prepared.
  """
  import_tensorflow()
  import tensorflow_datasets as tfds

  known = tfds.list_builders(with_community_datasets=False)
  if name.split("/")[0].split(":")[0] not in known:
    raise UserError(f"TFDS has no dataset {name!r}{nearest(name, known)}")
  builder = tfds.builder(name, data_dir=data_dir)
  manual = os.path.expanduser(manual_dir) if manual_dir else None
  try:
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual))
  except Exception as error:  # Whatever the download met: network, checksums, disk, files to be fetched by hand.
    reason = " ".join(str(error).split())[:400]
    raise UserError(f"{name} could not be prepared in {data_dir}: {reason}") from error
  splits = ", ".join(f"{split} {info.num_examples:,}" for split, info in builder.info.splits.items())
  print(f"{name} is ready in {builder.data_path}: {splits}")


if __name__ == "__main__":
  main()
