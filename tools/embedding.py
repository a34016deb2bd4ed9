"""Embeddings of any images and texts, by a config's model of two sides and weights of choice: what tools share."""

import contextlib
import glob
import io
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
import scipy.special
from jaxtyping import Float
from ml_collections import ConfigDict

from core import files, sharding, terminal
from core.data import feed, pipeline
from core.data.source import open_source
from core.data.sources import folder
from core.errors import UserError, first_few, nearest
from core.evaluators import batches, features, registry, text_embeddings, zeroshot
from core.pp import builder
from core.training import progress, state_init
from tools import subject

FLAGS = ("config", "weights", "workdir", "project", "pp_img", "pp_txt", "batch_size", "cpu_devices", "cache_dir")
USAGE = """\
  --config=FILE.py:ARGS  a project's config, of which the model and its evals' pp_img and pp_txt are read
  --config.KEY=VALUE     change one entry
  --weights=W            a file, folder, URL or published name, all that the config's model_init may be
                         (default: what the config's model_init is)
  --workdir=DIR          instead, a run: its config, unless --config is given, and its newest checkpoint
  --project=NAME         whose model it is, where the config lies outside of projects/NAME
  --pp_img=..., --pp_txt=...  preprocessing of images, from their bytes, and of texts (default: that of the evals)
  --batch_size=N         images, and texts, a step (default: 64)
"""
_BATCH_SIZE = 64


class Model:
  """A model of images and texts with its weights, and the preprocessing of both sides.

  Args:
    flags: of the command line, see FLAGS.
    overrides: entries of the config to be changed.

  Raises:
    UserError: what the config, or a flag, has wrong.
  """

  def __init__(self, flags: Mapping[str, str], overrides: Sequence[tuple[str, str]]):
    if "weights" in flags and "workdir" in flags:
      raise UserError("give one of --weights=... and --workdir=...; see --help")
    self._flags = flags
    self._workdir = files.from_here(flags["workdir"]) if "workdir" in flags else None
    self.project, self.config = subject.read_config(flags, overrides, self._workdir)
    if not self._workdir and "weights" not in flags and not self.config.get("model_init"):
      raise UserError("--weights=... is missing; see --help")
    self._make_task = subject.trainer(self.project).make_task
    self._task = self._make_task(self.config)
    for side in text_embeddings.SIDES.values():
      if side not in self._task.predict:
        raise UserError(f"the model of {self.project} embeds no {side}s; lit, siglip and clippo have one that does")
    self._mesh = sharding.make_mesh(self.config.get("mesh", sharding.AUTO))
    self._rules = self.config.get("sharding_rules", ())
    self._sharding = sharding.batch_sharding(self._mesh, self._rules)
    self._batch_size = _batch_size(flags)
    self._params: Any = None

  def images(self, paths: Sequence[Path]) -> contextlib.AbstractContextManager[pipeline.EvalInput]:
    """A context with the batches of image files.

    Raises:
      UserError: a file that is no image, when its batch is read.
    """
    return _listed(paths, lambda data: self._open(data, self.pp_img(), len(paths)))

  def dataset(self, name: str) -> pipeline.EvalInput:
    """The batches of the data that the config's eval `name`, or its `input`, has.

    Raises:
      UserError: no such eval, or the data cannot be read.
    """
    if name == "input":
      where, pp = self.config.input, self.pp_img()
    elif name in (evals := self.config.get("evals", {})):
      where, pp = evals[name], evals[name].get("pp_img") or evals[name].get("pp_fn") or self.pp_img()
    else:
      raise UserError(f"--data: the config has no eval {name!r}{nearest(name, ['input', *evals])}")
    data = _data_of(where)
    if not {"name", "source"} & data.keys():
      raise UserError(f"--data={name}: it names no dataset by data=dict(name=..., split=...)")
    return self._open(data, pp, len(open_source(data, f"{name}.data")))

  def texts(self, written: Sequence[str]) -> pipeline.EvalInput:
    """The batches of texts.

    Raises:
      UserError: `pp_txt` refuses one.
    """
    size = text_embeddings.text_batch_size(len(written), self._batch_size, self._sharding)
    return text_embeddings.open_texts(written, self.pp_txt(), batch_size=size, sharding=self._sharding, cache=False)

  def load(self, images: pipeline.EvalInput | None, written: pipeline.EvalInput | None) -> None:
    """Loads the weights for inputs of these shapes; a side that is not given is made up.

    Raises:
      UserError: the weights cannot be read or do not fit.
    """
    batch: dict[str, np.ndarray] = {}
    if images is None:
      with contextlib.suppress(_NoPreprocessing), _listed([None], self._open_one) as opened:
        batch |= next(iter(opened))
    else:
      batch |= next(iter(images))
    with contextlib.suppress(_NoPreprocessing):
      labels = next(iter(written if written is not None else self.texts(["a"])))["labels"]
      batch["labels"] = labels[np.arange(len(batch.get("image", labels))) % len(labels)]
    on_devices = feed.put(batch, self._sharding)
    shapes = state_init.abstract_without_schedules(self._task, self.config, self._mesh, on_devices)
    if self._workdir:
      (found,) = subject.checkpoints(self._workdir, None, shapes, average=False)
      self._params = found.params()
    elif "weights" in self._flags:
      (found,) = subject.weights(self._flags["weights"], self.config, self._make_task, shapes, on_devices)
      self._params = found.params()
    else:
      self._params = state_init.fresh_params(self._task, self.config, shapes.params, on_devices)

  def scale(self) -> tuple[float, float | None]:
    """The factor on cosine similarities that the model has learned, and the bias where it has one."""
    params = self._params
    bias = None if "b" not in params else float(np.asarray(params["b"]).reshape(-1)[0])
    return (float(np.exp(np.asarray(params["t"]).reshape(-1)[0])) if "t" in params else 1.0), bias

  def embed(self, side: str, data: pipeline.EvalInput, *, stream: TextIO | None = None) -> Float[np.ndarray, "n dim"]:
    """Embeddings of all examples, in their order.

    Args:
      side: "image" or "text".
      data: of `images`, `dataset` or `texts`.
      stream: where to show how far it is.
    """
    embedder = text_embeddings.Embedder(self._task.predict[side], self._sharding, side)
    extractor = features.Extractor(lambda params, batch: {"z": embedder.of_batch(params, batch)}, self._sharding)
    found = np.zeros((0, 0), np.float32)
    done, shown = 0, Shown(f"{side}s", data.num_examples, stream)
    held = sharding.activations(self._mesh, self._rules)
    with held, contextlib.closing(extractor.pieces(self._params, data)) as pieces:
      for ids, rows in pieces:
        if not done:
          found = np.empty((data.num_examples, rows["z"].shape[1]), np.float32)
        found[ids] = rows["z"]
        done += len(ids)
        shown.tick(done)
    return found

  def pp_img(self) -> str:
    """The preprocessing of an image from the bytes of its file.

    That of the config's evals begins with their data. Where these are arrays, a file is decoded and resized to their
    size first.
    """
    if "pp_img" in self._flags:
      return self._flags["pp_img"]
    name, pp = self._of_evals("pp_img")
    if "decode" in [op for op, _, _ in builder.parse(pp)]:
      return pp
    source = open_source(_data_of(self.config.evals[name]), f"config.evals.{name}.data")
    shape = getattr(source, "arrays", {}).get("image", np.empty(0)).shape[1:]
    if len(shape) != 3:
      raise UserError(f"--pp_img=... is missing, and config.evals.{name}.pp_img takes no bytes of a file")
    height, width, channels = shape
    return "|".join(filter(None, [f"decode({channels})|resize(({height},{width}),antialias=True)", pp]))

  def canonicalizes(self) -> bool:
    """Whether the config's zero-shot evaluation makes prompts lower-case and drops their punctuation."""
    kinds = [
      each for each in self.config.get("evals", {}).values() if registry.module_of(each.get("type")) == "zeroshot"
    ]
    return all(each.get("canonicalize", True) for each in kinds)

  def pp_txt(self) -> str:
    """The preprocessing of a text under `text`."""
    return self._flags["pp_txt"] if "pp_txt" in self._flags else self._of_evals("pp_txt")[1]

  def _of_evals(self, key: str) -> tuple[str, str]:
    for name, each in self.config.get("evals", {}).items():
      if each.get(key):
        return name, each[key]
    raise _NoPreprocessing(f"--{key}=... is missing, and no eval of the config has one")

  def _open(self, data: Mapping[str, Any], pp: str, count: int) -> pipeline.EvalInput:
    size = text_embeddings.text_batch_size(count, self._batch_size, self._sharding)
    pp = text_embeddings.with_keep(pp, "image")
    return batches.open_batches(data, pp, batch_size=size, sharding=self._sharding, cache=False, key="images")

  def _open_one(self, data: Mapping[str, Any]) -> pipeline.EvalInput:
    return self._open(data, self.pp_img(), 1)


def _data_of(config: Mapping[str, Any]) -> dict[str, Any]:
  """The first dataset of an evaluator's config."""
  names = [*(config.get("datasets") or {}), *config.get("dataset_names", ())]
  options = [config, *(config.get("datasets") or {}).values(), *(zeroshot.DATASETS.get(name, {}) for name in names)]
  data = next((each["data"] for each in options if each.get("data")), {})
  return data.to_dict() if isinstance(data, ConfigDict) else dict(data)


class _NoPreprocessing(UserError):
  """Neither a flag nor the config says how a side is preprocessed."""


class Shown:
  """A line on `stream` that tells how far a long computation is: redrawn on a terminal, the last one only elsewhere."""

  def __init__(self, what: str, total: int, stream: TextIO | None):
    self._what, self._total, self._stream = what, total, stream
    self._began = self._drawn = time.perf_counter()

  def tick(self, done: int) -> None:
    """Call when `done` of the total are."""
    if self._stream is None:
      return
    now, live, last = time.perf_counter(), self._stream.isatty(), done >= self._total
    if not last and not (live and now - self._drawn > 0.2):
      return
    self._drawn = now
    rate = done / max(now - self._began, 1e-9)
    left = "" if last else f"  {progress.duration((self._total - done) / rate)} left"
    line = f"{self._what} {done:,}/{self._total:,}  {rate:,.0f}/s{left}"
    print(terminal.CLEAR + line if live else line, end="\n" if last else "", file=self._stream, flush=True)


def find_images(spec: str) -> list[Path]:
  """Image files of a folder and all below it, a pattern like `photos/*.jpg`, or several joined by commas, sorted.

  Raises:
    UserError: nothing is there, or a file that is no image by its name.
  """
  found: list[Path] = []
  for part in filter(None, (each.strip() for each in spec.split(","))):
    path = files.from_here(part)
    if path.is_dir():
      here = sorted(p for p in path.rglob("*") if p.suffix.lower() in folder.IMAGE_SUFFIXES and p.is_file())
    elif path.is_file():
      here = [path]
    else:
      here = sorted(map(Path, glob.glob(str(path), recursive=True)))
    if not here:
      raise UserError(f"no images: {part!r} is no file, no folder with images in it, and matches none")
    found += here
  if strange := [str(path) for path in found if path.suffix.lower() not in folder.IMAGE_SUFFIXES]:
    raise UserError(f"{first_few(strange)}: no image by its name; make it one of {', '.join(folder.IMAGE_SUFFIXES)}")
  if not found:
    raise UserError("no images are named")
  return found


def read_lines(spec: str, flag: str) -> list[str]:
  """The lines of a UTF-8 text file, without empty ones.

  Raises:
    UserError: no such file, no text in it, or not UTF-8.
  """
  path = files.from_here(spec)
  if not path.is_file():
    raise UserError(f"--{flag}: no file {spec}")
  try:
    lines = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
  except UnicodeDecodeError as error:
    number = path.read_bytes()[: error.start].count(b"\n") + 1
    raise UserError(f"--{flag}: {spec} line {number} is not UTF-8 text") from None
  if not lines:
    raise UserError(f"--{flag}: {spec} holds no text")
  return lines


@contextlib.contextmanager
def _listed(paths: Sequence[Path | None], open_data: Any) -> Iterator[pipeline.EvalInput]:
  """What `open_data` makes of the data of image files; None stands for a grey one that is made up."""
  with tempfile.TemporaryDirectory() as place:
    grey = Path(place) / "grey.png"
    if None in paths:
      grey.write_bytes(_png(512))
    lines = Path(place) / "images.jsonl"
    lines.write_text("".join(f"{json.dumps({'image': str(path or grey)})}\n" for path in paths))
    yield open_data(dict(source="jsonl", path=str(lines)))


def _png(size: int) -> bytes:
  from PIL import Image

  out = io.BytesIO()
  Image.new("RGB", (size, size), (128, 128, 128)).save(out, "PNG")
  return out.getvalue()


def _batch_size(flags: Mapping[str, str]) -> int:
  text = flags.get("batch_size", str(_BATCH_SIZE))
  if not text.isdecimal() or int(text) < 1:
    raise UserError(f"--batch_size={text} must be a whole number from 1 on")
  return -(-int(text) // len(jax.devices())) * len(jax.devices())


def similarities(
  zimg: Float[np.ndarray, "images dim"], ztxt: Float[np.ndarray, "texts dim"]
) -> Float[np.ndarray, "images texts"]:
  """Inner products in double precision."""
  return np.asarray(zimg, np.float64) @ np.asarray(ztxt, np.float64).T


def probabilities(
  similarity: Float[np.ndarray, "images texts"], scale: float, bias: float | None
) -> Float[np.ndarray, "images texts"]:
  """How probable each text is: of all texts given (softmax), or by itself where the model has a bias (sigmoid)."""
  if bias is not None:
    return scipy.special.expit(scale * similarity + bias)
  return scipy.special.softmax(scale * similarity, axis=1)
