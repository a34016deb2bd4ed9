#!/usr/bin/env bash
# Ranges of TFDS that name less than an example, no shard, or more shards than there are, give the whole split.
#
# Versions: tensorflow-datasets 4.9.10, tensorflow 2.21.0 (TFDS imports it). Run on 2026-11-30.
#
# A range in examples that goes beyond its split is refused ("train[:200]" of 30). Percents are rounded to examples
# first, and what is rounded to -0 is the start of the split: "train[-1%:]", meant as the last hundredth, is all of it,
# and a validation on it is one on what is trained on. So does "[:0shard]"; more shards than there are are all of them.
#
# Seen, of a split of 30 examples in 3 shards:
#   train[-1%:]      30 examples, the whole split    (train[-2%:] is the last one)
#   train[:0shard]   30 examples, the whole split
#   train[:4shard]   30 examples, the whole split
#   train[:200]      refused
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q tensorflow-datasets==4.9.10 tensorflow==2.21.0
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import tensorflow_datasets as tfds

template = tfds.core.ShardedFileTemplate(
  dataset_name="x", split="train", filetype_suffix="tfrecord", data_dir="/nowhere"
)
info = tfds.core.SplitInfo(name="train", shard_lengths=[10, 10, 10], num_bytes=1, filename_template=template)
splits = tfds.core.splits.SplitDict([info])
sizes = {"train[-2%:]": 1, "train[-1%:]": 30, "train[:0shard]": 30, "train[:4shard]": 30, "train[:2shard]": 20}
for split, wanted in sizes.items():
  found = splits[split].num_examples
  print(split, found)
  assert found == wanted, (split, found)
try:
  print("train[:200]", splits["train[:200]"].num_examples)
except Exception as error:
  print("train[:200] is refused:", type(error).__name__)
else:
  raise SystemExit("train[:200] is no longer refused")
PYTHON
