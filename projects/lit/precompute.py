"""Embeds the images of a config's input by its locked tower, once, for runs that train the text tower alone.

./bazelw run //projects/lit:precompute -- --config=digits --output=runs/digits.npz
./bazelw run //projects/lit:train -- --config=digits:embedded=runs/digits.npz

As LiT's image tower is locked, it makes the same of an image in every epoch (Zhai et al. 2022); what is given up is to
see each image augmented in many ways.
"""

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from core import config as config_lib
from core import files, sharding, trees
from core.data import feed, pipeline
from core.errors import UserError
from core.evaluators import batches, features, retrieval, text_embeddings
from core.optim import masks
from core.training import cli, state_init
from projects.lit.train import make_task

_USAGE = """\
usage: precompute --config=FILE.py[:ARGS] --output=FILE.npz [--config.KEY=VALUE ...]

  --config=FILE.py:ARGS  a config of this project, whose schedule freezes img/.*; images are made as its evals make them
  --output=FILE.npz      zimg, the embeddings, and captions, all of each image, in the order of the split
  --cpu_devices=N        pretend that this machine's CPU is N devices
"""
_FLAGS = ("config", "output", "cpu_devices", "cache_dir", "help")


def main(argv: Sequence[str]) -> int:
  flags, overrides = cli.parse(argv, _FLAGS)
  if "help" in flags or not flags:
    print(_USAGE)
    return 0
  if not {"config", "output"} <= flags.keys():
    raise UserError("give --config=FILE.py and --output=FILE.npz; see --help")
  output = files.from_here(flags["output"])
  if output.suffix != ".npz":
    raise UserError(f"--output={flags['output']} must end in .npz")
  if output.exists():
    raise UserError(f"--output: {output} is there already; nothing is overwritten")
  config = config_lib.load(cli.config_spec(flags["config"], Path(__file__).parent), overrides)
  if "num_classes" in config:
    raise UserError(f"--config={flags['config']} is no config of two towers, one of which is locked")
  cli.start_jax(flags, output)
  captions = retrieval.read_captions(config.input.data.to_dict())
  zimg = embed_images(config, lambda done, of: print(f"embedded {done:,} of {of:,} images", file=sys.stderr))
  output.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(output) as file:
    np.savez(file, zimg=zimg, captions=_as_column(captions))
  print(
    f"written to {output}: {len(zimg):,} images, {zimg.shape[1]} numbers each, with up to {_most(captions)} captions"
  )
  return 0


def embed_images(config: ConfigDict, progress: Callable[[int, int], None]) -> Float[np.ndarray, "images dim"]:
  """The embeddings of all images of `config.input.data`, of unit length, in the order of the split.

  Args:
    config: of a model with a locked image tower.
    progress: called with how many images are done, of how many, a few times.

  Raises:
    UserError: the image tower is not locked, or whatever is wrong with the config or the data.
  """
  task = make_task(config)
  where = sharding.batch_sharding(mesh := sharding.make_mesh())
  # One example tells the shapes.
  few = config.input.to_dict() | dict(batch_size=mesh.size, shuffle_buffer_size=1)
  with contextlib.closing(pipeline.train_batches(few, seed=0, start_step=0)) as one:
    batch = feed.put(next(one), where)
  shapes = state_init.abstract_without_schedules(task, config, mesh, batch)
  _check_locked(config, shapes.params)
  data = batches.open_batches(
    config.input.data.to_dict(),
    text_embeddings.with_keep(_pp_img(config), "image"),
    batch_size=min(config.input.batch_size, 1_024),
    sharding=where,
    cache=False,
  )
  params = state_init.fresh_params(task, config, shapes.params, batch)
  extractor = features.Extractor(lambda params, batch: {"zimg": task.predict["image"](params, batch)[0]}, where)
  found, done, told = np.empty((data.num_examples, extractor.shapes(params, data)["zimg"].shape[1]), np.float32), 0, 0
  with contextlib.closing(extractor.pieces(params, data)) as pieces:
    for ids, rows in pieces:
      found[ids] = rows["zimg"]
      done += len(ids)
      if done * 10 // len(found) > told:
        told = done * 10 // len(found)
        progress(done, len(found))
  return found


def _check_locked(config: ConfigDict, params: Any) -> None:
  rules = masks.schedule_rules(config)
  for name, _ in trees.flatten_with_names({"img": params.get("img", {})}):
    rule = trees.first_match(name, [regex for regex, _ in rules])
    if rule is None or rules[rule][1] is not None:
      raise UserError(
        f"config.schedule trains {name}: only what a locked tower, ('img/.*', None), makes stays the same"
      )


def _pp_img(config: ConfigDict) -> str:
  found = next((each.pp_img for each in config.get("evals", {}).values() if "pp_img" in each), None)
  if found is None:
    raise UserError("config.evals: none has a pp_img, which tells how images are made without augmentation")
  return found


def _most(captions: Sequence[Sequence[str]]) -> int:
  return max(map(len, captions))


def _as_column(captions: Sequence[Sequence[str]]) -> np.ndarray:
  """UTF-8 bytes [images, most], the shorter lists filled up with empty ones, which the pp op `choice` passes over."""
  most = _most(captions)
  return np.array([[text.encode() for text in each] + [b""] * (most - len(each)) for each in captions])


if __name__ == "__main__":
  cli.exit_with(lambda: main(sys.argv[1:]))
