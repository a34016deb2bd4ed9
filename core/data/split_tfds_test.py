"""Splits are read as TFDS 4.9.10 reads them, and what it refuses is refused; the witness is TFDS itself."""

import itertools

import pytest

from core.data import split
from core.data.import_tensorflow import import_tfds
from core.errors import UserError

SHARDS = {"train": [11, 7, 12], "test": [5], "mini-val": [3, 4]}
BOUNDS = (
  ("", "0", "3", "1_0", "30", "-4", "-30"),
  ("", "0%", "10%", "12.5%", ".5%", "1_0.5%", "99.9%", "100%", "-20%", "-12.5%", "50"),
  ("", "1shard", "3shard", "-1shard", "-2shard", "-3shard", "2"),
)
NAMES = ["train", "test", "mini-val", "all", "train+test", "train + mini-val", "train[:2]+train[1:3]", "train+test[:1]"]
SINGLE = [f"train[{shard}shard]" for shard in range(-3, 3)]
RANGES = [f"train[{low}:{high}]" for unit in BOUNDS for low, high in itertools.product(unit, unit) if low or high]
WRONG = [
  *("", "+", "train+", "train[", "train[]", "train[:]", "train[1]", "train[10%]", "train[1:2:3]", "train[1.5:]"),
  *("train[1__0:]", "train[:1_]", "train[:101%]", "train[-100.1%:]", "train[:1.2.3%]", "train[:31]", "train[-31:]"),
  *("train[:1shards]", "train[:5]test", "trian", "all[:50%]", "all[:1]", "train[ :5]", " train", "train[:1.5shard]"),
  *("test[:6]+train", "train[:30]+test[-6:]", "train[3-5]", "train[:x]", "train[+3:]", "mini-val[:8]", "train[:-]"),
]
# What TFDS takes and what no one can mean: more than there is, or all where none is asked for.
STRICTER = ["train[-1%:]", "test[-9%:]", "train[:4shard]", "train[-4shard:]", "train[:0shard]"]
STRICTER += ["train[:50%]+train[-1%:]", "train[10:3]", "train[4:3]", "train[50%:10%]", "train[10%:2shard]"]


@pytest.fixture(scope="module")
def theirs():
  tfds = import_tfds()

  def info(name, lengths):
    template = tfds.core.ShardedFileTemplate(data_dir="/x", dataset_name="x", split=name, filetype_suffix="tfrecord")
    return tfds.core.SplitInfo(name=name, shard_lengths=lengths, num_bytes=1, filename_template=template)

  found = tfds.core.SplitDict([info(name, lengths) for name, lengths in SHARDS.items()])

  def records(text):
    # Of a range that ends before it begins TFDS reads the rest of a file, as a negative count stands for all.
    for part in tfds.core.ReadInstruction.from_spec(text).to_absolute(found):
      if part.to is not None and (part.from_ or 0) >= part.to:
        return []
    made = found[text].file_instructions
    ends = [i.examples_in_shard if i.take < 0 else i.skip + i.take for i in made]
    return [(i.filename, row) for i, end in zip(made, ends) for row in range(i.skip, end)]

  return records


def ours(text):
  """The records of a split, each by its file and place there."""
  places = {}
  for name, lengths in SHARDS.items():
    files = [f"/x/x-{name}.tfrecord-{n:05}-of-{len(lengths):05}" for n in range(len(lengths))]
    places[name] = [(file, row) for file, length in zip(files, lengths) for row in range(length)]
  return [place for name, low, high in split.ranges(text, SHARDS, "x") for place in places[name][low:high]]


@pytest.mark.parametrize("text", [*NAMES, *SINGLE, *RANGES])
def test_a_split_holds_what_tfds_reads(theirs, text):
  try:
    wanted = theirs(text)
  except ValueError:
    wanted = []
  if wanted:
    assert ours(text) == wanted
  else:
    with pytest.raises(UserError):
      ours(text)


@pytest.mark.parametrize("text", WRONG)
def test_what_tfds_refuses_is_refused(theirs, text):
  with pytest.raises((ValueError, NotImplementedError)):
    theirs(text)
  with pytest.raises(UserError, match=r"^x: "):
    ours(text)


@pytest.mark.parametrize("text", STRICTER)
def test_what_nobody_means_is_refused_though_tfds_reads_it(text):
  with pytest.raises(UserError, match=r"^x: "):
    ours(text)
