"""What a config's `data` may say: one dataclass for the arguments of each source of `core/data/sources`."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from core.recipe.split import Split
from core.recipe.types import Check, FilePath, OneOf, Refused, Text, Whole

_TFDS_NAME = re.compile(
  r"(?:[\w-]+:)?[a-zA-Z]\w*(?:/[\w+.-]+)?(?::(?:[0-9]+|\*)(?:\.(?:[0-9]+|\*)){2})?(?:/(?:\w+=[^,\0]+,?)+)?"
)

# Pairs of digits that the training split of digit_captions does not show: each digit is in two, and in all others.
HELD_OUT = tuple((digit, (digit + 3) % 10) for digit in range(10))

_MOST_FRACTAL_BYTES = 64 << 30


def _as_column(value: Any) -> Any:
  if not isinstance(value, tuple) and not getattr(value, "ndim", 0):
    raise ValueError("it has one entry an example")
  return value


def _as_tfds_name(name: str) -> str:
  if not _TFDS_NAME.fullmatch(name):
    raise ValueError("write it as cifar10, imagenet2012:5.1.0 or imagenet_v2/matched-frequency")
  return name


Column = Annotated[Any, Check("a column, an array or a list", _as_column)]
Digit = Annotated[int, Meta(ge=0, le=9)]
# What memory or patience could not hold is no number of examples.
Examples = Annotated[int, Meta(ge=2, le=1_000_000)]
Many = Annotated[int, Meta(ge=1, le=1_000_000)]
Classes = tuple[Text, ...] | FilePath


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrays:
  """NumPy arrays: the columns of an `.npz` file, or arrays that a program hands in.

  Keys such as `image` and `label` are one split, named `all`; the keys `train/image`, `train/label`, `test/image`, ...
  are the splits `train` and `test`.

  Attributes:
    path: the .npz file. Give this or `columns`.
    columns: the arrays by key. Each has one entry an example; text and bytes are object arrays of bytes.
    split: `all`, a split of the file, or a part of one: `all[:90%]`.
    name: what messages call `columns`.
  """

  TITLE: ClassVar[str] = "the source arrays"

  path: FilePath | None = None
  columns: dict[str, Column] | None = None
  split: Split = "all"
  name: Text = "arrays"

  def __post_init__(self):
    if (self.path is None) == (self.columns is None):
      raise Refused("give one of path (an .npz file) and columns (a dict of arrays)")
    if self.columns == {}:
      raise Refused("holds no column", key="columns")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitCaptions:
  """Pictures of one or two handwritten digits with captions: image and text to train on where nothing is prepared.

  Attributes:
    split: `train`; `test`, with other handwritings; `test_templates`, the same images with captions of other templates;
      `test_combinations`, pairs that are held out; or a part of one: `train[:10%]`.
    digits: how many digits an image shows: 1, 2, or both in turn, (1, 2).
    examples: the number of images of `train` with one and with two digits. With only one kind there are half of them.
    held_out: pairs of digits, 0 to 9, that only `test_combinations` shows, in either order.
    name: unused. Every source may be named.
  """

  TITLE: ClassVar[str] = "the source digit_captions"

  split: Split
  digits: Literal[1, 2] | tuple[Literal[1, 2], ...] = (1, 2)
  examples: Examples = 12_000
  held_out: tuple[tuple[Digit, Digit], ...] = HELD_OUT
  name: Text = "digit_captions"

  def __post_init__(self):
    if self.digits == ():
      raise Refused("must be 1, 2 or (1, 2), got ()", key="digits")
    pairs = {tuple(pair) for pair in self.held_out}
    if len(pairs | {(second, first) for first, second in pairs}) == 100:
      raise Refused("leaves no pair to train on", key="held_out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits:
  """The 1,797 handwritten digits that ship with scikit-learn, grey images of 8 x 8 pixels.

  Attributes:
    split: `train` (1,437), `test` (360), or a part of one: `train[:90%]`.
    name: "digits". It chooses this source where no other is named.
  """

  TITLE: ClassVar[str] = "the source digits"

  split: Split
  name: Text = "digits"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
  """Images in one folder a class, `photos/cat/1.jpg`, or with splits `photos/train/cat/1.jpg`.

  Attributes:
    path: the folder. Where its folders hold folders, they are the splits; where they hold images, they are the classes,
      and the whole is the split `train`, or `all`.
    split: `train`, `val`, `train[:90%]`, ...
    classes: the names of the classes in the order of their labels. A list; a text file with a name a line; or a JSONL
      file with a "label" in every line. A relative path starts at the folder. None: the names of the class folders,
      sorted, whole numbers by their values.
    name: unused. Every source may be named.
  """

  TITLE: ClassVar[str] = "the source folder"

  path: FilePath
  split: Split = "train"
  classes: Classes | None = None
  name: Text = "folder"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fractals:
  """Images of fractals, made from a formula: data to pre-train on where there are none.

  Attributes:
    split: `train`, of `per_class` images a class; `test`, of a tenth as many other ones; or a part: `train[:90%]`.
    classes: the number of classes. Class 3 is the same however many there are.
    per_class: images of each class in `train`.
    size: height and width in pixels, from 8 to 512.
    seed: of everything. Another seed gives other classes.
    name: unused. Every source may be named.
  """

  TITLE: ClassVar[str] = "the source fractals"

  split: Split
  classes: Many = 100
  per_class: Many = 500
  size: Annotated[int, Meta(ge=8, le=512)] = 32
  seed: Whole = 0
  name: Text = "fractals"

  def __post_init__(self):
    size = self.classes * self.per_class * self.size**2 * 3
    if size > _MOST_FRACTAL_BYTES:
      raise Refused(f"classes, per_class and size make {size >> 30} GiB of images; make them less")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jsonl:
  """A JSONL file: one example a line, images as paths to files.

  Attributes:
    path: the file. Every line is an object with the keys of the first; values are numbers, text, or equally long lists.
    split: `all`, or a part of it: `all[:90%]`.
    files: keys that hold paths, absolute or relative to the file's folder. The example gets the bytes of the file that
      a path names. None: `image`, where it is text.
    classes: turns names of classes under `label_key` into labels. The names in the order of their labels: a list; a
      text file with a name a line; or a JSONL file, the names under `label_key` sorted, whole numbers by their values.
      Evaluation takes the classes of training.
    label_key: the key of those names.
    name: unused. Every source may be named.
  """

  TITLE: ClassVar[str] = "the source jsonl"

  path: FilePath
  split: Split = "all"
  files: tuple[Text, ...] | None = None
  classes: Classes | None = None
  label_key: Text = "label"
  name: Text = "jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tfds:
  """A dataset that TFDS has prepared as TFRecord files.

  Attributes:
    name: the dataset, as TFDS names it: `cifar10`, `imagenet2012:5.1.0`, `imagenet_v2/matched-frequency`.
    split: in TFDS's notation: `train`, `train[:98%]`, `train+validation`, `all`.
    data_dir: the folder of prepared datasets. None: the environment variable TFDS_DATA_DIR, or TFDS's own folder.
    skip_decode: image features that stay encoded bytes, for the pp op `decode`.
  """

  TITLE: ClassVar[str] = "the source tfds"

  name: Annotated[Text, Check("a dataset of TFDS", _as_tfds_name)]
  split: Split
  data_dir: FilePath | None = None
  skip_decode: tuple[Text, ...] = ("image",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZerosEntry:
  """An entry of an example of zeros.

  Attributes:
    shape: its dimensions. () is one number.
    dtype: its type.
  """

  TITLE: ClassVar[str] = "an entry of the source zeros"

  shape: tuple[Many, ...] = ()
  dtype: Literal["bool", "uint8", "int32", "int64", "float32"] = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Zeros:
  """Examples of zeros, for a run that only evaluates and needs but the shapes of its input.

  Attributes:
    spec: the entries of an example by name, {"image": dict(shape=(224, 224, 3))} say.
    examples: how many there are.
    split: "all", or a part of it: `all[:50%]`.
    name: what messages call them.
  """

  TITLE: ClassVar[str] = "the source zeros"

  spec: dict[str, ZerosEntry]
  examples: Many = 1_000
  split: Split = "all"
  name: Text = "zeros"

  def __post_init__(self):
    if not self.spec:
      raise Refused("holds no entry", key="spec")


SOURCES: dict[str, type] = {
  "arrays": Arrays,
  "digit_captions": DigitCaptions,
  "digits": Digits,
  "folder": Folder,
  "fractals": Fractals,
  "jsonl": Jsonl,
  "tfds": Tfds,
  "zeros": Zeros,
}


def default(data: Mapping[str, Any]) -> str:
  """Returns the source that data without `source` are of: digits by that name, else TFDS."""
  return "digits" if data.get("name") == "digits" else "tfds"


AnySource = Arrays | DigitCaptions | Digits | Folder | Fractals | Jsonl | Tfds | Zeros

# The type of a field `data`: read as the dataclass that its `source` names.
Source = Annotated[Any, OneOf("source", SOURCES, default=default)]


def sources_in(options: Any) -> Iterator[Any]:
  """Yields the sources that stand anywhere in an input's or an evaluator's dataclass, in the order of its fields."""
  if isinstance(options, tuple(SOURCES.values())):
    yield options
  elif dataclasses.is_dataclass(options):
    for field in dataclasses.fields(options):
      yield from sources_in(getattr(options, field.name))
  elif isinstance(options, dict | tuple):
    for each in options.values() if isinstance(options, dict) else options:
      yield from sources_in(each)
