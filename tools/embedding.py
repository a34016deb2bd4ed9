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
from jaxtyping import Float, UInt8

from core import command, files, sharding, text_lines
from core.data import feed, pipeline
from core.data.columns import bytes_column
from core.data.source import open_source
from core.errors import UserError, first_few, naming, nearest
from core.evaluators import features, text_embeddings
from core.live import Line
from core.pp import builder, decoding
from core.recipe import evaluators, sources
from core.state import Variables
from core.training import cli, progress, state_init
from tools import trained_model

_BATCH_SIZE = 64


def define_flags(made: command.Command) -> None:
  """Declares the flags that `Model` reads."""
  trained_model.define_flags(made)
  made.text("weights", "all that the config's model_init may be (default: what the config's model_init is)", shown="W")
  made.text("pp_img", "preprocessing of images, from their bytes (default: that of the evals)")
  made.text("pp_txt", "preprocessing of texts (default: that of the evals)")
  made.whole("batch_size", f"images, and texts, a step (default: {_BATCH_SIZE})", default=_BATCH_SIZE)
  cli.define_jax(made)


class Model:
  """A model of images and texts with its weights, and the preprocessing of both sides.

  Args:
    flags: of the command line, see `define_flags`.
    overrides: entries of the config to be changed.

  Raises:
    UserError: what the config, or a flag, has wrong.
  """

  def __init__(self, flags: Any, overrides: Sequence[tuple[str, str]]):
    if flags.weights and flags.workdir:
      raise UserError("give one of --weights=... and --workdir=...; see --help")
    self._flags = flags
    self._workdir = files.from_here(flags.workdir) if flags.workdir else None
    self.project, task, self.recipe = trained_model.read_recipe(flags, overrides, self._workdir)
    if not self._workdir and not flags.weights and not getattr(self.recipe, "model_init", None):
      raise UserError("--weights=... is missing; see --help")
    self._task = task(self.recipe)
    for side in text_embeddings.SIDES:
      if side not in self._task.predict:
        raise UserError(f"the model of {self.project} embeds no {side}s; lit, siglip and clippo have one that does")
    self._mesh = sharding.make_mesh(self.recipe.mesh)
    self._sharding = sharding.batch_sharding(self._mesh, self.recipe.sharding_rules)
    self._batch_size = -(-flags.batch_size // len(jax.devices())) * len(jax.devices())
    self._variables: Variables = {}

  def images(self, paths: Sequence[Path]) -> contextlib.AbstractContextManager[pipeline.EvalInput]:
    """Returns a context with the batches of image files.

    Raises:
      UserError: a file that is no image, when its batch is read.
    """
    return _listed(paths, lambda data: self._open(data, *self._pp_img(), len(paths), "--images"))

  def decoded(self, path: Path) -> UInt8[np.ndarray, "height width channels"]:
    """Returns an image file as the model's preprocessing decodes it, before it is resized and cropped.

    Raises:
      UserError: the file is no image.
    """
    pp, where = self._pp_img()
    found = [step.arguments for step in builder.steps(pp, where, upright=True) if "upright" in step.arguments]
    channels, upright = (found[0].get("channels", 3), found[0]["upright"]) if found else (3, True)
    with naming(str(path)):
      decode = builder.get_preprocess_fn(f"decode({channels}, upright={upright})")
      return decode({"image": path.read_bytes()})["image"].numpy()

  def dataset(self, name: str) -> pipeline.EvalInput:
    """Returns the batches of the data that the config's eval `name`, or its `input`, has.

    Raises:
      UserError: no such eval, or the data cannot be read.
    """
    if name == "input":
      data, where, (pp, pp_where) = _data_of(self.recipe.input), "config.input", self._pp_img()
    elif name in self.recipe.evals:
      options, where = self.recipe.evals[name], f"config.evals.{name}"
      data, own = _data_of(options), next((key for key in ("pp_img", "pp_fn") if getattr(options, key, None)), None)
      pp, pp_where = (getattr(options, own), f"{where}.{own}") if own else self._pp_img()
    else:
      raise UserError(f"--data: the config has no eval {name!r}{nearest(name, ['input', *self.recipe.evals])}")
    if data is None:
      raise UserError(f"--data={name}: it names no dataset by data=dict(name=..., split=...)")
    return self._open(data, pp, pp_where, len(open_source(data, f"{where}.data")), f"{where}.data")

  def texts(self, written: Sequence[str]) -> pipeline.EvalInput:
    """Returns the batches of texts.

    Raises:
      UserError: `pp_txt` refuses one.
    """
    column = bytes_column(written)
    data = sources.Arrays(columns={"text": column, "texts": column}, name="texts")
    return self._open(data, *self._pp_txt(), len(written), "--texts", key="labels")

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
    placement = state_init.place(self._task, self.recipe, on_devices, mesh=self._mesh)
    with placement.activations():
      if self._workdir:
        (found,) = trained_model.from_checkpoints(self._workdir, None, placement.shapes, average=False)
        self._variables = found.variables()
      elif self._flags.weights:
        (found,) = trained_model.from_files(self._flags.weights, placement)
        self._variables = found.variables()
      else:
        self._variables = placement.fresh_variables(on_devices)

  def scale(self) -> tuple[float, float | None]:
    """Returns the factor on cosine similarities that the model has learned, and the bias where it has one."""
    params = self._variables["params"]
    bias = None if "b" not in params else float(np.asarray(params["b"]).reshape(-1)[0])
    return (float(np.exp(np.asarray(params["t"]).reshape(-1)[0])) if "t" in params else 1.0), bias

  def embed(self, side: str, data: pipeline.EvalInput, *, stream: TextIO | None = None) -> Float[np.ndarray, "n dim"]:
    """Returns the embeddings of all examples, in their order.

    Args:
      side: "image" or "text".
      data: of `images`, `dataset` or `texts`.
      stream: where to show how far it is.
    """
    where = f"the model of {self.project}"
    embedder = text_embeddings.Embedder(self._task.predict[side], self._sharding, side, where)

    def embeddings(variables: Variables, batch: Mapping[str, Any]) -> dict[str, Any]:
      return {"z": embedder.of_batch(variables, batch)}

    extractor = features.Extractor(embeddings, self._sharding, where)
    found = np.zeros((0, 0), np.float32)
    done = 0
    held = sharding.activations(self._mesh, self.recipe.sharding_rules)
    shown = contextlib.closing(Shown(f"{side}s", data.num_examples, stream))
    with held, shown as shown, contextlib.closing(extractor.pieces(self._variables, data)) as pieces:
      for ids, rows in pieces:
        if not done:
          found = np.empty((data.num_examples, rows["z"].shape[1]), np.float32)
        found[ids] = rows["z"]
        done += len(ids)
        shown.tick(done)
    return found

  def canonicalizes(self) -> bool:
    """Tells whether the config's zero-shot evaluation makes prompts lower-case and drops their punctuation."""
    return all(each.canonicalize for each in self.recipe.evals.values() if isinstance(each, evaluators.Zeroshot))

  def _pp_img(self) -> tuple[str, str]:
    """Returns the preprocessing of an image from the bytes of its file, and where it stands.

    That of the config's evals begins with their data. Where these are arrays, a file is decoded and resized to their
    size first.
    """
    if self._flags.pp_img:
      return self._flags.pp_img, "--pp_img"
    name, pp = self._of_evals("pp_img")
    where = f"config.evals.{name}.pp_img"
    if "decode" in [call.name for call in builder.parse(pp, where)]:
      return pp, where
    source = open_source(_data_of(self.recipe.evals[name]), f"config.evals.{name}.data")
    shape = getattr(source, "arrays", {}).get("image", np.empty(0)).shape[1:]
    if len(shape) != 3:
      raise UserError(f"--pp_img=... is missing, and {where} takes no bytes of a file")
    height, width, channels = shape
    decoding = f"decode({channels})|resize(({height},{width}),antialias=True)"
    return "|".join(filter(None, [decoding, pp])), where

  def _pp_txt(self) -> tuple[str, str]:
    """Returns the preprocessing of a text under `text`, and where it stands."""
    if self._flags.pp_txt:
      return self._flags.pp_txt, "--pp_txt"
    name, pp = self._of_evals("pp_txt")
    return pp, f"config.evals.{name}.pp_txt"

  def _of_evals(self, key: str) -> tuple[str, str]:
    for name, each in self.recipe.evals.items():
      if getattr(each, key, None):
        return name, getattr(each, key)
    raise _NoPreprocessing(f"--{key}=... is missing, and no eval of the config has one")

  def _open(
    self, data: Any, pp: str, pp_where: str, count: int, where: str, *, key: str = "image"
  ) -> pipeline.EvalInput:
    """Returns the batches of a source, whose preprocessing leaves `key`."""
    size = text_embeddings.text_batch_size(count, self._batch_size, self._sharding)
    pp = text_embeddings.with_keep(pp, key)
    return pipeline.eval_batches(data, pp, batch_size=size, cache=False, where=where, pp_where=pp_where)

  def _open_one(self, data: Any) -> pipeline.EvalInput:
    return self._open(data, *self._pp_img(), 1, "--images")


def _data_of(options: Any) -> Any:
  """Returns the first source of an input or an evaluator; None where it names none."""
  return next(sources.sources_in(options), None)


class _NoPreprocessing(UserError):
  """Neither a flag nor the config says how a side is preprocessed."""


class Shown:
  """Tells on `stream` how far a long computation is: in a live line on a terminal, in the last line only elsewhere.

  Args:
    what: is computed, in the plural.
    total: how many of them.
    stream: where to show it; None is nowhere.
  """

  def __init__(self, what: str, total: int, stream: TextIO | None):
    self._what, self._total = what, total
    self._line = Line(stream)
    self._began = time.perf_counter()

  def tick(self, done: int) -> None:
    """Shows that `done` of the total are done."""
    rate = done / max(time.perf_counter() - self._began, 1e-9)
    line = f"{self._what} {done:,}/{self._total:,}  {rate:,.0f}/s"
    if done < self._total:
      self._line.draw(f"{line}  {progress.duration((self._total - done) / rate)} left")
    else:
      self._line.say(line)

  def close(self) -> None:
    """Takes the live line away."""
    self._line.close()


def find_images(spec: str) -> list[Path]:
  """Returns the image files of a folder and all below it, of a pattern like `photos/*.jpg`, or of several such, sorted.

  Raises:
    UserError: nothing is there, or a file that is no image by its name.
  """
  found: list[Path] = []
  for part in filter(None, (each.strip() for each in spec.split(","))):
    path = Path(files.from_here(part))
    if path.is_dir():
      here = sorted(p for p in path.rglob("*") if p.suffix.lower() in decoding.SUFFIXES and p.is_file())
    elif path.is_file():
      here = [path]
    else:
      here = sorted(map(Path, glob.glob(str(path), recursive=True)))
    if not here:
      raise UserError(f"no images: {part!r} is no file, no folder with images in it, and matches none")
    found += here
  if strange := [str(path) for path in found if path.suffix.lower() not in decoding.SUFFIXES]:
    raise UserError(f"{first_few(strange)}: no image by its name; make it one of {', '.join(decoding.SUFFIXES)}")
  if irregular := [str(path) for path in found if not path.is_file()]:  # Reading a pipe waits for its other end.
    raise UserError(f"{first_few(irregular)}: no regular file")
  if not found:
    raise UserError("no images are named")
  return found


def read_lines(spec: str, flag: str) -> list[str]:
  """Returns the lines of a UTF-8 text file, without empty ones.

  Raises:
    UserError: no such file, no text in it, or not UTF-8.
  """
  path = files.from_here(spec)
  if not path.is_file():
    raise UserError(f"--{flag}: no file {spec}")
  lines = text_lines.read_filled(path, f"--{flag}")
  if not lines:
    raise UserError(f"--{flag}: {spec} holds no text")
  return lines


@contextlib.contextmanager
def _listed(paths: Sequence[Path | None], open_data: Any) -> Iterator[pipeline.EvalInput]:
  """Gives what `open_data` makes of the data of image files; None stands for a grey one that is made up."""
  with tempfile.TemporaryDirectory() as place:
    grey = Path(place) / "grey.png"
    if None in paths:
      grey.write_bytes(_png(512))
    lines = Path(place) / "images.jsonl"
    lines.write_text("".join(f"{json.dumps({'image': str(path or grey)})}\n" for path in paths))
    yield open_data(sources.Jsonl(path=str(lines)))


def _png(size: int) -> bytes:
  from PIL import Image

  out = io.BytesIO()
  Image.new("RGB", (size, size), (128, 128, 128)).save(out, "PNG")
  return out.getvalue()


def similarities(
  zimg: Float[np.ndarray, "images dim"], ztxt: Float[np.ndarray, "texts dim"]
) -> Float[np.ndarray, "images texts"]:
  """Returns inner products in double precision."""
  return np.asarray(zimg, np.float64) @ np.asarray(ztxt, np.float64).T


def probabilities(
  similarity: Float[np.ndarray, "images texts"], scale: float, bias: float | None
) -> Float[np.ndarray, "images texts"]:
  """Returns how probable each text is: of all that are given (softmax), or alone where the model has a bias."""
  if bias is not None:
    return scipy.special.expit(scale * similarity + bias)
  return scipy.special.softmax(scale * similarity, axis=1)
