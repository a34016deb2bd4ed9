"""Prepares one dataset: checks that it can be, downloads and builds it in a folder of its own, puts it in place."""

import contextlib
import dataclasses
import fcntl
import io
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from core import files
from core.data.builders import manual_files
from core.data.import_tensorflow import import_tfds
from core.errors import UserError, first_few, nearest
from core.masking import masked

_PREPARING = ".preparing"  # In data_dir: what is being prepared, and the locks.
_REPORT_SECONDS = 0.5
_PROBE_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class Dataset:
  """One dataset to prepare.

  Attributes:
    name: as the person wrote it: `cifar10`, `imagenet_v2/matched-frequency`, `cifar10:3.0.2`.
    data_dir: where datasets lie.
    manual_dir: where files fetched by hand lie.
  """

  name: str
  data_dir: Path
  manual_dir: Path

  @property
  def base(self) -> str:
    """The name without config and version."""
    return self.name.partition(":")[0].partition("/")[0]

  @property
  def config(self) -> str | None:
    """The config's name, if one is given."""
    return self.name.partition(":")[0].partition("/")[2] or None

  @property
  def staging(self) -> Path:
    """Where it lies until it is whole."""
    return self.data_dir / _PREPARING / self.name.replace("/", "-").replace(":", "-")


def check(dataset: Dataset) -> str | None:
  """Says what is there of a dataset that is ready; None if it can be prepared.

  Raises:
    UserError: there is no such dataset, config or version; files to be fetched by hand are missing, by name.
  """
  tfds = import_tfds()
  known = known_names()
  if dataset.base not in known:
    raise UserError(f"TFDS has no dataset {dataset.base!r}{nearest(dataset.base, known)}")
  cls = tfds.builder_cls(dataset.base)
  configs = list(cls.builder_configs)
  if dataset.config and configs and dataset.config not in configs:
    raise UserError(f"{dataset.base} has no config {dataset.config!r}{nearest(dataset.config, configs)}")
  builder = _builder(dataset, dataset.data_dir)
  if builder.data_path.exists() and not (gone := _missing_files(builder)):
    return _contents(builder)
  if builder.data_path.exists():
    print(f"{dataset.name}: {builder.data_path} lacks {first_few(gone)}; it is prepared anew", file=sys.stderr)
  if line := manual_files.missing(cls, builder.builder_config and builder.builder_config.name, dataset.manual_dir):
    raise UserError(line)
  return None


def prepare(dataset: Dataset, report: Callable[[str], None]) -> str:
  """Prepares one dataset, in a folder of its own that takes its place when it is whole; says what is there then.

  Args:
    dataset: which one.
    report: takes a short line on what is being done, as often as there is news.

  Raises:
    UserError: it could not be downloaded or prepared; nothing is left of it but whole downloaded files.
  """
  tfds = import_tfds()
  downloads = dataset.data_dir / "downloads"
  with _alone(dataset, report):
    final = _builder(dataset, dataset.data_dir)
    if final.data_path.exists() and not _missing_files(final):
      return _contents(final)  # By another process, for which this one waited.
    try:
      builder = _builder(dataset, dataset.staging)
      _report_progress(report, dataset)
      _give_up_at_once_without_network(builder)
      config = tfds.download.DownloadConfig(
        manual_dir=dataset.manual_dir if dataset.manual_dir.is_dir() else None,
        extract_dir=dataset.staging / "extracted",
      )
      builder.download_and_prepare(download_dir=downloads, download_config=config, file_format="tfrecord")
    except Exception as error:
      raise UserError(_reason(error, dataset)) from error
    _put_in_place(Path(builder.data_path), dataset)
    return _contents(_builder(dataset, dataset.data_dir))


@contextlib.contextmanager
def _alone(dataset: Dataset, report: Callable[[str], None]) -> Iterator[None]:
  """Holds the lock on a dataset's name, with an empty staging folder; removes all that is half-made, before and after.

  The system drops a lock with its process, so what lies there while this one holds it belongs to nobody.
  """
  dataset.staging.parent.mkdir(parents=True, exist_ok=True)
  with _opened_lock(dataset) as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      report("waits for another preparation of it to end")
      fcntl.flock(lock, fcntl.LOCK_EX)
    _clean(dataset)
    try:
      yield
    finally:
      _clean(dataset)


def _opened_lock(dataset: Dataset) -> IO[str]:
  path = dataset.staging.parent / f"{dataset.base}.lock"
  try:
    return open(path, "w", opener=files.not_through_a_link)
  except OSError as error:
    raise UserError(f"{path} cannot be written: {files.reason(error)}") from None


def discard(dataset: Dataset) -> None:
  """Removes what a process that died left of a dataset, unless another one is at it by now."""
  if not dataset.staging.parent.is_dir():
    return  # It died before it had begun.
  with _opened_lock(dataset) as lock, contextlib.suppress(BlockingIOError):
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _clean(dataset)


def _clean(dataset: Dataset) -> None:
  shutil.rmtree(dataset.staging, ignore_errors=True)
  for partial in (dataset.data_dir / "downloads" / dataset.base).glob("**/*.tmp.*"):
    shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(staged: Path, dataset: Dataset) -> None:
  """Renames a whole dataset to its place, in that of a damaged one if there is one."""
  place = dataset.data_dir / staged.relative_to(dataset.staging)
  place.parent.mkdir(parents=True, exist_ok=True)
  # Beside the versions or configs: which config is meant where none is named.
  notes = dataset.staging / dataset.base / ".config"
  if notes.is_dir():
    shutil.copytree(notes, dataset.data_dir / dataset.base / ".config", dirs_exist_ok=True)
  if place.exists():
    place.rename(dataset.staging / "damaged")
  staged.rename(place)


def _builder(dataset: Dataset, data_dir: Path) -> Any:
  tfds = import_tfds()
  cls = tfds.builder_cls(dataset.base)
  options = cls.options(dataset.config, dataset.manual_dir) if hasattr(cls, "options") else {}
  try:
    return tfds.builder(dataset.name, data_dir=data_dir, **options)
  except Exception as error:  # No such version; packages that this dataset alone needs; damaged metadata.
    raise UserError(_reason(error, dataset)) from error


def _give_up_at_once_without_network(builder: Any) -> None:
  """Has TFDS try a download once where no server answers; it would ten times, over minutes.

  Without a network there may be nothing to ask for: downloads are kept, and files may lie in manual_dir.
  """
  import requests
  from tensorflow_datasets.core.download import downloader

  hosts = {url.split("/")[2]: url for url in builder.url_infos or () if url.startswith("http")}
  for url in hosts.values():
    try:
      requests.head(url, timeout=_PROBE_SECONDS)
    except requests.exceptions.RequestException:
      continue
    return
  downloader.MAX_RETRIES = 0


def known_names() -> list[str]:
  """Returns the names of all datasets that there are builders of, without their configs."""
  return sorted(import_tfds().list_builders(with_community_datasets=False))


def _missing_files(builder: Any) -> list[str]:
  """Returns the files of a prepared dataset that its metadata tell of and that are not there, or are no files."""
  files = [Path(file) for split in builder.info.splits.values() for file in split.filepaths]
  return [file.name for file in files if not file.is_file()] if files else ["dataset_info.json"]


def _contents(builder: Any) -> str:
  splits = ", ".join(f"{name} {split.num_examples:,}" for name, split in builder.info.splits.items())
  skipped = (builder.info.metadata or {}).get("corrupt_images_skipped")
  note = f"; skipped {len(skipped):,} corrupt images, listed in metadata.json there" if skipped else ""
  return f"{splits} ({_size(builder.info.dataset_size)}) in {builder.data_path}{note}"


def _reason(error: BaseException, dataset: Dataset) -> str:
  """Returns one line on why a dataset could not be prepared."""
  import requests

  chain = []
  while error is not None and error not in chain:
    chain.append(error)
    error = error.__cause__ or error.__context__
  for each in chain:
    if isinstance(each, UserError):
      return str(each)
    if isinstance(each, requests.exceptions.ConnectionError | requests.exceptions.Timeout):
      url = each.request.url if each.request is not None else "the server"
      by_hand = manual_files.by_hand(import_tfds().builder_cls(dataset.base), dataset.manual_dir, url)
      return f"no network: {url} cannot be reached{by_hand}"
  text = masked(" ".join(str(chain[0]).split())) or type(chain[0]).__name__
  return f"{type(chain[0]).__name__}: {text}" if len(text) <= 400 else f"{text[:397]}..."


# Progress: what TFDS shows in bars becomes lines that a process can send to another.


def _report_progress(report: Callable[[str], None], dataset: Dataset) -> None:
  """Has TFDS's bars report what they count, with the bytes that lie on the disk so far."""
  from tensorflow_datasets.core.utils import tqdm_utils
  from tqdm import tqdm

  last = 0.0
  partial = dataset.data_dir / "downloads" / dataset.base

  class Bar(tqdm):
    def __init__(self, *args, **kwargs):
      super().__init__(*args, **{**kwargs, "file": io.StringIO(), "leave": False})

    def display(self, *args, **kwargs):
      nonlocal last
      if time.monotonic() - last > _REPORT_SECONDS and (line := _line_of(self, partial, dataset.staging)):
        last = time.monotonic()
        report(line)

  class Bars:
    """Stands in the place of the module that TFDS takes its bars from."""

  Bars.tqdm = Bar
  tqdm_utils.tqdm_lib = Bars


def _line_of(bar: Any, downloads: Path, staging: Path) -> str | None:
  of = f" of {bar.total:,.0f}" if bar.total else ""
  step, _, rest = (bar.desc or "").strip(": .").partition(" ")
  if step == "Dl" and rest.startswith("Completed"):
    return f"downloading: {bar.n:,}{of} files, {_size(_bytes_in(downloads))}"
  if step == "Extraction" and bar.total:
    return f"unpacking: {bar.n:,}{of} files, {_size(_bytes_in(staging))}"
  if step == "Generating" and "examples" in rest:
    return f"{rest.partition(' ')[0]}: {bar.n:,}{of} examples, {_size(_bytes_in(staging))}"
  if step == "Shuffling":
    return f"putting in order: {bar.n:,}{of} examples, {_size(_bytes_in(staging))}"
  return None


def _bytes_in(folder: Path) -> int:
  total = 0
  for place, _, names in os.walk(folder):
    for name in names:
      with contextlib.suppress(OSError):  # Gone between the two.
        total += os.path.getsize(os.path.join(place, name))
  return total


def _size(count: float) -> str:
  for unit in ("bytes", "kB", "MB", "GB"):
    if count < 1000:
      return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
    count /= 1000
  return f"{count:,.1f} TB"
