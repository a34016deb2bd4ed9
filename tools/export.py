"""Writes a model of a config, with weights of any kind that can be read, in a form for elsewhere.

./bazelw run //tools:export -- --config=projects/vit/configs/digits.py --weights=runs/a/params.npz --to=hf --output=vit
"""

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax import export as jax_export
from ml_collections import ConfigDict

from core import config as config_lib
from core import files, trees
from core.checkpoint import pretrained
from core.data import input_config
from core.errors import UserError, nearest
from core.models import one_tower, text_transformer, towers, two_towers, weights
from core.models import registry as models
from core.models.foreign import registry as foreign
from core.models.foreign import table
from core.training import cli
from tools import subject

_USAGE = """\
usage: export --config=FILE.py[:ARGS] --weights=W --to=npz|timm|hf|stablehlo --output=PATH [options]

  --config=FILE.py:ARGS  a config: of its entries model_name, model and num_classes are read
  --config.KEY=VALUE     change one of them, e.g. --config.model.pool_type=tok --config.num_classes=0
  --weights=W            a file, folder, URL or published name, all that the config's model_init may be
  --to=npz               a file in the published layout, for this repository and big_vision
  --to=timm              a folder for timm.create_model("local-dir:PATH", pretrained=True)
  --to=hf                a folder for transformers' from_pretrained("PATH")
  --to=stablehlo         a folder with the compiled model and its weights in one file, which runs where only JAX is
  --image_size=N         side of the images in pixels, or HEIGHTxWIDTH
                         (default: that of the last crop or resize in config.input.pp)
  --text_length=N        tokens of a text, for models that have a text tower
                         (default: that of the model's max_len, or of the tokenizer in config.input.pp)
"""
_FLAGS = ("config", "weights", "to", "output", "image_size", "text_length", "help")

# Read with JAX alone: what lies in the folder of a StableHLO export.
_RUN = '''\
"""Runs the model in model.stablehlo, parameters and all. Needs `pip install jax` and nothing else.

    python run.py            runs the images of example.npz and compares with what they should give
    python run.py IN OUT     runs those of IN, a .npy file of float32 [batch, {height}, {width}, 3] in [-1, 1], into OUT
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


def main(argv: Sequence[str]) -> int:
  flags, overrides = cli.parse(argv, _FLAGS)
  if "help" in flags or not flags:
    print(_USAGE)
    return 0
  for flag in ("config", "weights", "to", "output"):
    if flag not in flags:
      raise UserError(f"--{flag}=... is missing; see --help")
  if flags["to"] not in WRITERS:
    raise UserError(f"--to={flags['to']} is unknown{nearest(flags['to'], WRITERS)}")
  output = files.from_here(flags["output"])
  if output.is_file() or (output.is_dir() and any(output.iterdir())):
    raise UserError(f"--output: {output} is there already; nothing is overwritten")
  config = config_lib.load(_config_spec(flags["config"]), overrides)
  image_size = _image_size(flags.get("image_size"), config)
  family = models.get(config.get("model_name"))
  options = input_config.as_dict(config.get("model", {}), "config.model")
  if family in (two_towers, one_tower):
    options |= _texts_of(options, flags.get("text_length"), config) if family is two_towers else {}
    model = family.Model(**options)
  else:
    model = family.Model(num_classes=config.get("num_classes") or None, **options)
  inputs = _example(model, image_size).values()
  shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
  params = family.load(shapes, flags["weights"], options)
  WRITERS[flags["to"]](output, family.__name__.rpartition(".")[2], model, params, image_size)
  print(f"written to {output}")
  return 0


def write_npz(output: Path, family: str, model: Any, params: Any, image_size: tuple[int, int]) -> None:
  """The published layout, without `scan`'s stacking, which other readers do not know."""
  del family, model, image_size
  if output.suffix != ".npz":
    raise UserError(f"--output={output} must end in .npz")
  pretrained.save_params(output, trees.from_names(_flat(params)))


def write_folder(library: str) -> Callable[..., None]:
  """A writer of the folder that a library loads: config.json, model.safetensors, and an example."""

  def write(output: Path, family: str, model: Any, params: Any, image_size: tuple[int, int]) -> None:
    forms = foreign.get(family)
    if library not in forms:
      raise UserError(f"--to={library}: {family} has no form there (it has: {', '.join(forms)})")
    state_dict = table.to_foreign(forms[library].writing(model, image_size), _flat(params), source=f"--to={library}")
    config = forms[library].config(model, image_size)
    with _new_folder(output) as folder:
      # Other values than this are refused by transformers.
      safetensors.numpy.save_file(state_dict, folder / "model.safetensors", metadata={"format": "pt"})
      (folder / "config.json").write_text(f"{json.dumps(config, indent=2)}\n")
      # The library computes in the precision of the weights.
      exact = _in_float32(model)
      _write_example(folder, exact, params, image_size)

  return write


def write_stablehlo(output: Path, family: str, model: Any, params: Any, image_size: tuple[int, int]) -> None:
  """One file that JAX runs by itself on CPU, CUDA and TPU, for any batch size; and how to run it.

  Raises:
    UserError: the parameters exceed what the format holds, 2 GiB; a model of more than images.
  """
  if family in ("two_towers", "one_tower"):
    raise UserError(f"--to=stablehlo: takes models of images alone, and {family} is of texts too; try --to=npz")
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  if size > 2**31 - 2**20:
    raise UserError(f"--to=stablehlo: the parameters take {size / 2**30:.1f} GiB, and the format holds less than 2")
  exported = stablehlo(model, params, image_size)
  with _new_folder(output) as folder:
    (folder / "model.stablehlo").write_bytes(exported.serialize())
    (folder / "run.py").write_text(_RUN.format(height=image_size[0], width=image_size[1]))
    _write_example(folder, model, params, image_size)


def stablehlo(model: Any, params: Any, image_size: tuple[int, int]) -> jax_export.Exported:
  """The function from images [batch, height, width, 3] in [-1, 1] to outputs, with its parameters inside."""
  (batch,) = jax_export.symbolic_shape("batch")
  image = jax.ShapeDtypeStruct((batch, *image_size, 3), jnp.float32)
  run = jax.jit(lambda image: model.apply({"params": params}, image)[0])
  return jax_export.export(run, platforms=("cpu", "cuda", "tpu"))(image)


WRITERS: dict[str, Callable[..., None]] = {
  "npz": write_npz,
  "timm": write_folder("timm"),
  "hf": write_folder("hf"),
  "stablehlo": write_stablehlo,
}


def _config_spec(spec: str) -> str:
  return cli.config_spec(spec, Path(__file__).parents[1] / "projects" / (subject.project_of(spec) or "vit"))


def _image_size(text: str | None, config: ConfigDict) -> tuple[int, int]:
  """(height, width) in pixels, as given or as the config's training images have it."""
  if text is None:
    sizes = re.findall(r"(?:crop|resize)\w*\((\d+)\)", config.get("input", {}).get("pp", ""))
    if not sizes:
      raise UserError("--image_size=... is missing, and config.input.pp neither crops nor resizes to a size")
    text = sizes[-1]
  height, x, width = text.partition("x")
  if not height.isdecimal() or (x and not width.isdecimal()):
    raise UserError(f"--image_size={text} must be a number of pixels or HEIGHTxWIDTH")
  return int(height), int(width or height)


def _flat(params: Any) -> dict[str, np.ndarray]:
  return weights.match_scan(dict(trees.flatten_with_names(params)), {})


def _in_float32(model: Any) -> Any:
  """`model` and its towers, computing in float32."""
  changes = {tower: _in_float32(getattr(model, tower)) for tower in ("img", "txt") if hasattr(model, tower)}
  return model.clone(**changes, **({"dtype_mm": "float32"} if hasattr(model, "dtype_mm") else {}))


def _texts_of(options: dict[str, Any], stated: str | None, config: ConfigDict) -> dict[str, Any]:
  """The options of two towers' texts, with their length where the text tower's parameters tell it."""
  text = dict(options.get("text") or {})
  if towers.get("text", options.get("text_model", "text_transformer")) is not text_transformer:
    return {}
  if stated is None and not text.get("max_len"):
    lengths = re.findall(r"tokenize\((?:max_len=)?(\d+)", config.get("input", {}).get("pp", ""))
    if not lengths:
      raise UserError("--text_length=... is missing, and config.input.pp tokenizes to no length")
    stated = lengths[-1]
  if stated is not None and not (stated.isdecimal() and int(stated)):
    raise UserError(f"--text_length={stated} must be a number of tokens")
  return {"text": text | ({"max_len": int(stated)} if stated else {})}


def _example(model: Any, image_size: tuple[int, int]) -> dict[str, np.ndarray]:
  """Inputs of a model, made up: images, and for one of texts token ids too."""
  rng = np.random.default_rng(0)
  image = rng.uniform(-1, 1, (2, *image_size, 3)).astype(np.float32)
  if not hasattr(model, "txt"):
    return {"image": image}
  length = min(model.txt.max_len, 64)  # BERT has positions for more than anyone needs here.
  return {"image": image, "text": rng.integers(1, model.txt.vocab_size, (3, length)).astype(np.int32)}


def _write_example(folder: Path, model: Any, params: Any, image_size: tuple[int, int]) -> None:
  """Inputs and what they give, by which whoever has the folder can tell that it works."""
  inputs = _example(model, image_size)

  def run(params: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    if "text" not in inputs:
      return {"output": model.apply({"params": params}, **inputs)[0]}
    zimg, ztxt, out = model.apply({"params": params}, **inputs)
    return {"logits": zimg @ ztxt.T * out["t"] + out.get("b", 0.0)}

  outputs = jax.jit(run)(params, inputs)
  np.savez(folder / "example.npz", **inputs, **{name: np.asarray(x, np.float32) for name, x in outputs.items()})


class _new_folder:
  """A folder to fill, which takes the place of `path` when all has been written, and is gone if it has not."""

  def __init__(self, path: Path):
    self._path = path

  def __enter__(self) -> Path:
    self._path.parent.mkdir(parents=True, exist_ok=True)
    self._part = Path(tempfile.mkdtemp(prefix=f".{self._path.name}.", dir=self._path.parent))
    return self._part

  def __exit__(self, kind: Any, *_: Any) -> None:
    if kind is None:
      self._part.chmod(0o755)
      os.replace(self._part, self._path)
    else:
      shutil.rmtree(self._part, ignore_errors=True)


if __name__ == "__main__":
  cli.exit_with(lambda: main(sys.argv[1:]))
