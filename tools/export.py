"""Writes a model of a config, with weights of any kind that can be read, in a form for elsewhere.

./bazelw run //tools:export -- --config=projects/vit/configs/digits.py --weights=runs/a/params.npz --to=hf --output=vit
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import contextlib
import dataclasses
import functools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax import export as jax_export

from core import command, files, trees
from core.checkpoint import pretrained
from core.errors import UserError
from core.models import grids, weights
from core.models import registry as models
from core.models.foreign import registry as foreign
from core.models.foreign import table
from core.recipe import load
from core.recipe.models.registry import MODELS
from core.recipe.models.text_transformer import TextTransformer
from core.recipe.models.towers import OneTower, TwoTowers
from core.recipe.parse import parse
from core.recipe.types import OneOf, Text, Whole
from core.training import cli
from tools import export_big_vision, export_images, export_texts, trained_model

_FORMS = {
  "npz": "a file in the layout in which weights are published, for this repository",
  "big_vision": "a file that big_vision reads as one of its checkpoints, for its model_init",
  "timm": 'a folder for timm.create_model("local-dir:PATH", pretrained=True)',
  "hf": 'a folder for transformers\' from_pretrained("PATH")',
  "stablehlo": "a folder with the compiled model and its weights in one file, which runs where only JAX is",
}
_OF_TEXTS = ("bert", "text_transformer")
_COMMAND = command.Command(
  f"export --config=FILE.py[:ARGS] --weights=W --to={'|'.join(_FORMS)} --output=PATH [options]", configs=True
)
_COMMAND.text(
  "config",
  "a config: of its entries model_name, model and num_classes are read",
  shown="FILE.py:ARGS",
  required=True,
)
_COMMAND.text(
  "weights",
  "a file, folder, URL or published name, all that the config's model_init may be",
  shown="W",
  required=True,
)
_COMMAND.choice("to", tuple(_FORMS), "; ".join(f"{name}: {text}" for name, text in _FORMS.items()), required=True)
_COMMAND.text("output", "the file or folder", shown="PATH", required=True)
_COMMAND.text(
  "image_size",
  "side of the images in pixels, or HEIGHTxWIDTH (default: that which config.input.pp leaves)",
  shown="N",
)
_COMMAND.text(
  "pp_img",
  "preprocessing of images from their files, which timm and transformers are to do (default: that of the first eval, "
  "else config.input.pp)",
)
_COMMAND.text(
  "pp_txt",
  "preprocessing of texts, whose tokenizer is written for transformers (default: that of the first eval that has one, "
  "else config.input.pp)",
)
_COMMAND.whole(
  "text_length",
  "tokens of a text, for models that have a text tower (default: that of the model's max_len, or of the tokenizer in "
  "config.input.pp)",
)

# Read with JAX alone: what lies in the folder of a StableHLO export. JAX writes and reads it by flatbuffers, which it
# does not install.
_RUN = '''\
"""Runs the model in model.stablehlo, parameters and all. Needs `pip install jax flatbuffers`, JAX from 0.8.3 on.

    python run.py            runs the images of example.npz and compares with what they should give
    python run.py IN OUT     runs those of IN, a .npy file of float32 [batch, {height}, {width}, 3], into OUT

Images are {values}. The file was written by JAX {jax}; 0.8.3 to 0.10.2 were seen to read it.
"""

import sys
from pathlib import Path

import numpy as np
from jax import export

model = export.deserialize(Path(__file__).with_name("model.stablehlo").read_bytes())
if len(sys.argv) == 3:
  np.save(sys.argv[2], np.asarray(model.call(np.load(sys.argv[1]))))
else:
  example = np.load(Path(__file__).with_name("example.npz"))
  difference = np.abs(np.asarray(model.call(example["image"])) - example["output"]).max()
  print(f"largest difference from the outputs in example.npz: {{difference:.1e}}")
'''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
  """What an export reads of a config.

  Attributes:
    model_name: the model's family.
    model: the options of that model.
    num_classes: the number of classes. None or 0 leaves the head away.
  """

  model_name: Text
  model: Annotated[Any, OneOf("model_name", MODELS, beside=True)]
  num_classes: Whole | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
  """What a model is run on.

  Attributes:
    image_size: (height, width) of its images in pixels; None for a model of texts alone.
    images: gives what is done to an image file before, if other programs can do it, else raises `UserError`; None for
      a model of texts alone.
    texts: gives the files of its tokenizer by name, likewise; None for a model without texts.
  """

  image_size: tuple[int, int] | None
  images: Callable[[], export_images.Preprocessing] | None
  texts: Callable[[], dict[str, bytes]] | None = None


def main(argv: Sequence[str]) -> int:
  """Writes the model in the form that is asked for; returns the exit status."""
  flags, overrides = _COMMAND.parse(argv or ["--help"])
  output = files.from_here(flags.output)
  if output.is_file() or (output.is_dir() and any(output.iterdir())):
    raise UserError(f"--output: {output} is there already; nothing is overwritten")
  config = load.read(_config_spec(flags.config), overrides)
  known = [field.name for field in dataclasses.fields(Exported)]
  exported = parse(Exported, {key: value for key, value in config.items() if key in known})
  pp, where = _preprocessing(config)
  of_texts = exported.model_name in _OF_TEXTS
  image_size = None if of_texts else _image_size(flags.image_size, pp, where)
  family, options = models.get(exported.model_name), _with_text_length(exported.model, flags.text_length, pp, where)
  embeds = isinstance(options, TwoTowers | OneTower)
  model = family.make(None if embeds else exported.num_classes or None, options)
  example = _example(model, image_size).values()
  shapes = jax.eval_shape(model.init, jax.random.key(0), *example)["params"]
  params = family.load(shapes, flags.weights, options)
  seen = (flags.pp_img, "--pp_img") if flags.pp_img else _seen(config, "pp_img", "pp_fn") or (pp, where)
  read = (flags.pp_txt, "--pp_txt") if flags.pp_txt else _seen(config, "pp_txt") or (pp, where)
  inputs = Inputs(
    image_size=image_size,
    images=None if of_texts else functools.partial(export_images.read, *seen, image_size),
    texts=functools.partial(export_texts.files, *read) if of_texts or hasattr(model, "txt") else None,
  )
  WRITERS[flags.to](output, family.__name__.rpartition(".")[2], model, params, inputs)
  print(f"written to {output}")
  return 0


def write_npz(output: Path, family: str, model: Any, params: Any, inputs: Inputs) -> None:
  """Writes the published layout, without `scan`'s stacking, which other readers do not know."""
  del family, model, inputs
  if output.suffix != ".npz":
    raise UserError(f"--output={output} must end in .npz")
  pretrained.save_params(output, trees.from_names(_flat(params)), grids=grids.noted(params))


def write_folder(library: str) -> Callable[..., None]:
  """Returns a writer of the folder that a library loads: the model, its preprocessing, and an example."""

  def write(output: Path, family: str, model: Any, params: Any, inputs: Inputs) -> None:
    forms = foreign.get(family)
    if library not in forms:
      raise UserError(f"--to={library}: {family} has no form there (it has: {', '.join(forms)})")
    form, size = forms[library], inputs.image_size
    state_dict = table.to_foreign(form.writing(model, size), _flat(params), source=f"--to={library}")
    config = form.config(model, size)
    images = inputs.images() if inputs.images else None
    more, notes = _tokenizer(inputs)
    if library == "timm":
      config["pretrained_cfg"] |= export_images.timm(images, "--to=timm")
    elif images:
      more |= {"preprocessor_config.json": _json(export_images.transformers(images, config["model_type"]))}
    with _new_folder(output) as folder:
      # Other values than this are refused by transformers.
      safetensors.numpy.save_file(state_dict, folder / "model.safetensors", metadata={"format": "pt"})
      for name, content in ({"config.json": _json(config)} | more).items():
        (folder / name).write_bytes(content)
      # The library computes in the precision of the weights.
      _write_example(folder, _in_float32(model), params, size)
    for note in (*(images.notes if images else ()), *notes):
      print(f"note: {note}")

  return write


def _tokenizer(inputs: Inputs) -> tuple[dict[str, bytes], list[str]]:
  """Returns the files of a tokenizer, and a note in place of those that cannot be written."""
  try:
    return (inputs.texts() if inputs.texts else {}), []
  except UserError as error:
    return {}, [f"there are no tokenizer's files beside the model: {error}"]


def write_stablehlo(output: Path, family: str, model: Any, params: Any, inputs: Inputs) -> None:
  """Writes one file that JAX runs by itself on CPU, CUDA and TPU, for any batch size; and how to run it.

  Raises:
    UserError: the parameters exceed what the format holds, 2 GiB; a model of more than images.
  """
  if family in ("two_towers", "one_tower", *_OF_TEXTS):
    raise UserError(f"--to=stablehlo: takes models of images alone, and {family} is of texts; try --to=npz")
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  if size > 2**31 - 2**20:
    raise UserError(f"--to=stablehlo: the parameters take {size / 2**30:.1f} GiB, and the format holds less than 2")
  exported = stablehlo(model, params, inputs.image_size)
  height, width = inputs.image_size
  with _new_folder(output) as folder:
    (folder / "model.stablehlo").write_bytes(exported.serialize())
    (folder / "run.py").write_text(
      _RUN.format(height=height, width=width, values=_values_of(inputs), jax=jax.__version__)
    )
    _write_example(folder, model, params, inputs.image_size)


def _values_of(inputs: Inputs) -> str:
  """Returns words for the numbers that the images of a model are made of."""
  try:
    images = inputs.images()
  except UserError:
    return "preprocessed as in the model's training"
  if images.value_range:
    return "RGB, black being {:g} and white {:g}".format(*images.value_range)
  return f"RGB in [0, 1], less {list(images.mean)}, divided by {list(images.std)}"


def stablehlo(model: Any, params: Any, image_size: tuple[int, int]) -> jax_export.Exported:
  """Returns the function from images [batch, height, width, 3] in [-1, 1] to outputs, with its parameters inside."""
  (batch,) = jax_export.symbolic_shape("batch")
  image = jax.ShapeDtypeStruct((batch, *image_size, 3), jnp.float32)
  run = jax.jit(lambda image: model.apply({"params": params}, image)[0])
  return jax_export.export(run, platforms=("cpu", "cuda", "tpu"))(image)


WRITERS: dict[str, Callable[..., None]] = {
  "npz": write_npz,
  "big_vision": export_big_vision.write,
  "timm": write_folder("timm"),
  "hf": write_folder("hf"),
  "stablehlo": write_stablehlo,
}


def _config_spec(spec: str) -> str:
  return cli.config_spec(spec, Path(__file__).parents[1] / "projects" / (trained_model.project_of(spec) or "vit"))


def _preprocessing(config: dict[str, Any]) -> tuple[str, str]:
  """Returns the pp string of the training images, of a mixture that of its first part, and where it stands."""
  inputs = config.get("input")
  parts = {"config.input": inputs}
  if isinstance(inputs, dict):
    parts |= {f"config.input.{name}": part for name, part in inputs.items()}
  for where, part in parts.items():
    if isinstance(part, dict) and isinstance(part.get("pp"), str):
      return part["pp"], f"{where}.pp"
  return "", "config.input.pp"


def _seen(config: dict[str, Any], *keys: str) -> tuple[str, str] | None:
  """Returns the first pp string that a config's evals have under one of the keys, and where it stands; else None."""
  evals = config.get("evals")
  for name, options in evals.items() if isinstance(evals, dict) else ():
    for key in keys:
      if isinstance(options, dict) and isinstance(options.get(key), str):
        return options[key], f"config.evals.{name}.{key}"
  return None


def _image_size(text: str | None, pp: str, where: str) -> tuple[int, int]:
  """Returns (height, width) in pixels, as given or as the config's training images have it."""
  if text is None:
    size = export_images.size_of(pp, where)
    if size is None:
      raise UserError(f"--image_size=... is missing, and {where} leaves images of no certain size")
    return size
  match = re.fullmatch(r"([1-9]\d{0,5})(?:x([1-9]\d{0,5}))?", text, flags=re.ASCII)
  if not match:
    raise UserError(f"--image_size={text} must be a number of pixels or HEIGHTxWIDTH")
  return int(match[1]), int(match[2] or match[1])


def _json(content: dict[str, Any]) -> bytes:
  return f"{json.dumps(content, indent=2)}\n".encode()


def _flat(params: Any) -> dict[str, np.ndarray]:
  return weights.match_scan(dict(trees.flatten_with_names(params)), {})


def _in_float32(model: Any) -> Any:
  """Returns `model`, and so its towers, computing in float32."""
  changes = {tower: _in_float32(getattr(model, tower)) for tower in ("img", "txt") if hasattr(model, tower)}
  if hasattr(model.options, "dtype_mm"):
    changes["options"] = dataclasses.replace(model.options, dtype_mm="float32")
  return model.clone(**changes)


def _with_text_length(options: Any, stated: int | None, pp: str, where: str) -> Any:
  """Returns the options with the length of the texts, where a text tower's parameters depend on it."""
  alone = isinstance(options, TextTransformer)
  text = options if alone else getattr(options, "text", None)
  if not isinstance(text, TextTransformer):
    return options
  if stated is None and not text.max_len:
    stated = export_images.text_length_of(pp, where)
    if stated is None:
      raise UserError(f"--text_length=... is missing, and {where} tokenizes to no length")
  if not stated:
    return options
  text = dataclasses.replace(text, max_len=stated)
  return text if alone else dataclasses.replace(options, text=text)


def _example(model: Any, image_size: tuple[int, int] | None) -> dict[str, np.ndarray]:
  """Returns inputs of a model, made up: images where it has a size of them, token ids where it is of texts."""
  rng = np.random.default_rng(0)
  inputs = {}
  if image_size:
    inputs["image"] = rng.uniform(-1, 1, (2, *image_size, 3)).astype(np.float32)
  if not image_size or hasattr(model, "txt"):
    text = getattr(model, "txt", model).options
    length = min(text.max_len, 64)  # BERT has positions for more than anyone needs here.
    inputs["text"] = rng.integers(1, text.vocab_size, (3, length)).astype(np.int32)
  return inputs


def _write_example(folder: Path, model: Any, params: Any, image_size: tuple[int, int] | None) -> None:
  """Writes inputs and what they give, by which whoever has the folder can tell that it works."""
  inputs = _example(model, image_size)

  def run(params: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    if len(inputs) == 1:
      return {"output": model.apply({"params": params}, *inputs.values())[0]}
    zimg, ztxt, out = model.apply({"params": params}, **inputs)
    return {"logits": zimg @ ztxt.T * out["t"] + out.get("b", 0.0)}

  outputs = jax.jit(run)(params, inputs)
  np.savez(folder / "example.npz", **inputs, **{name: np.asarray(x, np.float32) for name, x in outputs.items()})


@contextlib.contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
  """Gives a folder to fill, which takes the place of `path` when all has been written, and is gone if it has not."""
  path.parent.mkdir(parents=True, exist_ok=True)
  part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
  try:
    yield part
    part.chmod(0o755)
    os.replace(part, path)
  finally:
    shutil.rmtree(part, ignore_errors=True)


if __name__ == "__main__":
  command.run(main)
