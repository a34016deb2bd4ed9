"""Which files a dataset wants to be fetched by hand, as TFDS's builders say in prose only."""

from pathlib import Path
from typing import Any

from core.errors import cut, first_few

_LONGEST_PROSE = 120  # Characters of what TFDS says: a line has room for the files as well.
_TRAIN, _VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_IMAGENET_PI = tuple(
  f"{folder}/{split}.csv" for folder in ("labels", "confidences") for split in ("train", "validation")
)

# Read off the builders of TFDS 4.9: names in manual_dir; `{config}` is the config's.
_FILES = {
  "celeb_a_hq": ("data{config}x{config}.tar",),
  "chexpert": ("train", "valid", "train.csv", "valid.csv"),
  "gref": (
    "coco_train2014",
    "google_refexp_train_201511_coco_aligned_catg.json",
    "google_refexp_val_201511_coco_aligned_catg.json",
  ),
  "imagenet2012": (_TRAIN, _VAL),
  "imagenet2012_corrupted": (_VAL,),
  "imagenet2012_fewshot": (_TRAIN, _VAL),
  "imagenet2012_multilabel": (_VAL,),
  "imagenet2012_real": (_VAL,),
  "imagenet2012_subset": (_TRAIN, _VAL),
  "imagenet_lt": (_TRAIN, _VAL),
  "imagenet_pi": (_TRAIN, _VAL, *_IMAGENET_PI),
  "ref_coco": ("refcoco.json", "coco_train2014"),
  "resisc45": ("NWPU-RESISC45",),
  "segment_anything": ("segment_anything_links.txt",),
}


def required(builder_cls: Any, config: str | None) -> tuple[str, ...] | None:
  """Returns the names of the files and folders that must lie in manual_dir; None where only the builder's prose tells.

  Args:
    builder_cls: a `tfds.core.DatasetBuilder` class.
    config: the name of its config, or None for the default one.
  """
  if hasattr(builder_cls, "manual_files"):
    return builder_cls.manual_files(config)
  if builder_cls.name in _FILES:
    first = builder_cls.BUILDER_CONFIGS[0].name if builder_cls.BUILDER_CONFIGS else ""
    return tuple(name.format(config=config or first) for name in _FILES[builder_cls.name])
  return None if builder_cls.MANUAL_DOWNLOAD_INSTRUCTIONS else ()


def missing(builder_cls: Any, config: str | None, manual_dir: Path) -> str | None:
  """Says which files are missing and where they must lie, in one line; None if nothing is known to be missing."""
  names = required(builder_cls, config)
  prose = cut(" ".join((builder_cls.MANUAL_DOWNLOAD_INSTRUCTIONS or "").split()), _LONGEST_PROSE)
  if names is None:
    if manual_dir.is_dir() and any(manual_dir.iterdir()):
      return None  # The builder will say if what is there is not what it wants.
    return f"needs files fetched by hand in {manual_dir}, where there are none; TFDS says: {prose}"
  gone = [name for name in names if not (manual_dir / name).exists()]
  return f"missing in {manual_dir}: {', '.join(gone)}; {prose}" if gone else None


def by_hand(builder_cls: Any, manual_dir: Path, url: str) -> str:
  """Says how to do without the network: what TFDS takes from manual_dir instead of a download; else an empty string.

  Args:
    builder_cls: a `tfds.core.DatasetBuilder` class.
    manual_dir: where it would lie.
    url: the download that failed; another one may have led there, then all that TFDS would take are named.
  """
  names = {each: info.filename for each, info in (builder_cls.url_infos or {}).items() if info.filename}
  wanted = {url: names[url]} if url in names else names
  lines = [f"{each} as {name}" for each, name in wanted.items() if not (manual_dir / name).exists()]
  return f"; or fetch by hand into {manual_dir}: {first_few(lines)}" if lines else ""
