"""ImageNet-21k from its official archives, which TFDS has no builder for: Deng et al. 2009, Russakovsky et al. 2015.

Two releases, each one archive that holds an archive of JPEGs a class (`n01440764.tar`), named by WordNet's ids:

- `imagenet21k/fall11` from `fall11_whole.tar`: 21,841 classes, 14.2 million images. The published ViT, Mixer and BiT
  weights have 21,843 outputs: these classes, and two of which the archive has no images (n03931044, n09859684). Label i
  is the i-th of the 21,843 ids in ascending order, `imagenet21k_fall11_classes.txt`: timm's list for those weights is
  the same. Whether they were trained on exactly this archive's images is not published.
- `imagenet21k/winter21` from `winter21_whole.tar.gz`: the release of 2021 without most classes of persons, 19,167
  classes by its authors' count. Label i is the i-th id in ascending order of those in the archive, which is read once
  more to know them.

Another list of classes may lie beside the archive, a WordNet id a line: `fall11_classes.txt`, `winter21_classes.txt`.
Label i then is its i-th line, from 0 on, and classes that it does not name are left out (as in ImageNet-21k-P); with
one, winter-21 is read once only. Either way the dataset's folder holds the list: `label.labels.txt`.

The archives are read in sequence and never unpacked to disk. Images come in the order of a hash of their names, the
same every time, so that `full[:51200]` is a fair sample; to sort them, TFDS needs twice the archive's size in
`data_dir` for a while.
"""

import contextlib
import dataclasses
import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import tensorflow_datasets as tfds
from PIL import Image

from core import data_files
from core.data import class_names
from core.errors import UserError

_CLASS_ARCHIVE = re.compile(r"(?:.*/)?(n\d{8})\.tar")
_FALL11_CLASSES = data_files.find("core/data/builders/imagenet21k_fall11_classes.txt")
_JPEG_QUALITY = 95


@dataclasses.dataclass(kw_only=True)
class Config(tfds.core.BuilderConfig):
  """A release of ImageNet-21k.

  Attributes:
    archive: its file, in the folder of the files fetched by hand.
    classes_file: the list of its classes that ships with this builder, or None for the classes in the archive.
  """

  archive: str
  classes_file: Path | None = None


class Imagenet21k(tfds.core.GeneratorBasedBuilder):
  """Builds the split `full`: `image`, `label`, `file_name`.

  Args:
    classes: WordNet ids in the order of their labels, instead of the release's own.
  """

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = (
    Config(name="fall11", archive="fall11_whole.tar", classes_file=_FALL11_CLASSES),
    Config(name="winter21", archive="winter21_whole.tar.gz"),
  )
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "manual_dir should contain fall11_whole.tar (fall11) or winter21_whole.tar.gz (winter21), from "
    "https://image-net.org/download-images, which wants a registration."
  )

  def __init__(self, *, classes: Sequence[str] | None = None, **kwargs):
    self._given = tuple(classes) if classes is not None else None
    super().__init__(**kwargs)

  @classmethod
  def manual_files(cls, config: str | None) -> tuple[str, ...]:
    """Returns the files that must lie in manual_dir to prepare a config."""
    return (cls.builder_configs[config or cls.BUILDER_CONFIGS[0].name].archive,)

  @classmethod
  def options(cls, config: str | None, manual_dir: Path) -> dict[str, Sequence[str]]:
    """Returns the arguments of this builder that files in manual_dir stand for: another list of classes.

    Raises:
      UserError: a list without names, or with one twice.
    """
    name = f"{config or cls.BUILDER_CONFIGS[0].name}_classes.txt"
    return {"classes": class_names.read(name, manual_dir, "imagenet21k")} if (manual_dir / name).is_file() else {}

  def _info(self) -> tfds.core.DatasetInfo:
    names = self._given
    if names is None and self.builder_config.classes_file:
      names = self.builder_config.classes_file.read_text().split()
    features = tfds.features.FeaturesDict(
      {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(names=names),
        "file_name": tfds.features.Text(),
      }
    )
    return tfds.core.DatasetInfo(
      builder=self,
      features=features,
      supervised_keys=("image", "label"),
      description="ImageNet-21k, from the archive of its official release.",
      homepage="https://image-net.org/",
      metadata=tfds.core.MetadataDict(),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    archive = os.path.join(dl_manager.manual_dir, self.builder_config.archive)
    label = self.info.features["label"]
    if label.num_classes is None:
      label.names = class_ids(archive)
    return {"full": self._generate_examples(archive)}

  def _generate_examples(self, archive: str):
    classes = set(self.info.features["label"].names)
    seen, left_out, corrupt, made_anew = set(), set(), [], 0
    for wordnet_id, images in class_archives(archive):
      if wordnet_id not in classes:
        left_out.add(wordnet_id)
        if self._given is None:
          raise UserError(f"{archive} holds the class {wordnet_id}, which is none of the {len(classes)} of its release")
        continue
      seen.add(wordnet_id)
      for name, content in images:
        jpeg = as_jpeg(content)
        if jpeg is None:
          corrupt.append(name)
          continue
        made_anew += jpeg is not content
        yield name, {"image": jpeg, "label": wordnet_id, "file_name": name}
    if not seen:
      raise UserError(f"{archive} holds none of the {len(classes)} classes, as archives named like n01440764.tar")
    # Known when all is read; TFDS writes it to the dataset's folder after that, as metadata.json.
    self.info.metadata.update(
      archive=self.builder_config.archive,
      classes="given" if self._given is not None else "of the release",
      classes_without_images=sorted(classes - seen),
      classes_left_out=sorted(left_out),
      corrupt_images_skipped=corrupt,
      images_made_jpeg_anew=made_anew,
    )


def class_ids(archive: str) -> list[str]:
  """Returns the WordNet ids of an archive's classes in ascending order, by one reading of it."""
  return sorted(wordnet_id for wordnet_id, _ in class_archives(archive))


def class_archives(archive: str) -> Iterator[tuple[str, Iterator[tuple[str, bytes]]]]:
  """Yields the classes of an archive in the order in which they lie there: (WordNet id, its images).

  Raises:
    UserError: it cannot be read as one, or is cut short.
  """
  # "|": in sequence, without seeking, compressed or not.
  with _readable(archive), tarfile.open(archive, "r|*") as whole:
    for member in whole:
      match = _CLASS_ARCHIVE.fullmatch(member.name)
      if match and member.isfile():
        yield match[1], _images(archive, match[1], whole.extractfile(member))


def _images(archive: str, wordnet_id: str, file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
  """Yields name (`n01440764/n01440764_18.JPEG`) and content of each file of a class's archive."""
  with _readable(f"{archive} at {wordnet_id}.tar"), tarfile.open(fileobj=file, mode="r|") as images:
    for member in images:
      if member.isfile():
        yield f"{wordnet_id}/{os.path.basename(member.name)}", images.extractfile(member).read()


@contextlib.contextmanager
def _readable(what: str) -> Iterator[None]:
  try:
    yield
  except (tarfile.TarError, EOFError, OSError) as error:
    raise UserError(f"{what} cannot be read, is it whole? ({str(error) or type(error).__name__})") from error


def as_jpeg(content: bytes) -> bytes | None:
  """Returns the image as a JPEG of grey or RGB pixels, made anew if it is none; None if it cannot be decoded."""
  try:
    with Image.open(io.BytesIO(content)) as image:
      keep = image.format == "JPEG" and image.mode in ("RGB", "L")
      if keep:
        image.draft(image.mode, (image.width // 8, image.height // 8))  # Eight times smaller: a cheap trial.
      image.load()
      if keep:
        return content
      file = io.BytesIO()
      image.convert("RGB").save(file, "JPEG", quality=_JPEG_QUALITY)
      return file.getvalue()
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # What Pillow raises at damage.
    return None
