"""Embeds the images of a config's input by its locked tower, once, for runs that train the text tower alone.

./bazelw run //projects/lit:precompute -- --config=digits --output=runs/digits.npz
./bazelw run //projects/lit:train -- --config=digits:embedded=runs/digits.npz

As LiT's image tower is locked, it makes the same of an image in every epoch (Zhai et al. 2022); what is given up is to
see each image augmented in many ways.
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float

from core import command, files, sharding, trees
from core.data import feed, pipeline
from core.errors import UserError
from core.evaluators import batches, features, retrieval, text_embeddings
from core.optim import masks
from core.recipe import load
from core.recipe import tasks as recipes
from core.recipe.parse import parse
from core.state import Batch, Params, Variables
from core.tasks.contrastive import Contrastive
from core.training import cli, state_init
from projects.lit.train import choose_task

_MOST_IMAGES = 1_024  # A step.


def _command() -> command.Command:
  made = command.Command("precompute --config=FILE.py[:ARGS] --output=FILE.npz [--config.KEY=VALUE ...]", configs=True)
  made.text(
    "config",
    "a config of this project, whose schedule freezes img/.*; images are made as its evals make them",
    shown="FILE.py:ARGS",
  )
  made.text(
    "output", "zimg, the embeddings, and captions, all of each image, in the order of the split", shown="FILE.npz"
  )
  cli.define_jax(made)
  return made


def main(argv: Sequence[str]) -> int:
  """Writes the embeddings that the arguments ask for.

  Raises:
    UserError: a mistake in the arguments, the config or the data.
  """
  flags, overrides = _command().parse(argv)
  if not flags.config or not flags.output:
    raise UserError("give --config=FILE.py and --output=FILE.npz; see --help")
  output = files.from_here(flags.output)
  if output.suffix != ".npz":
    raise UserError(f"--output={flags.output} must end in .npz")
  if output.exists():
    raise UserError(f"--output: {output} is there already; nothing is overwritten")
  config = load.read(cli.config_spec(flags.config, Path(__file__).parent), overrides)
  if choose_task(config) is not Contrastive:
    raise UserError(f"--config={flags.config} is no config of two towers, one of which is locked")
  recipe = parse(Contrastive.Recipe, config)
  cli.start_jax(flags, output)
  captions = retrieval.read_captions(_data(recipe), where="config.input")
  zimg = embed_images(recipe, _tell)
  output.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(output) as file:
    np.savez(file, zimg=zimg, captions=_as_column(captions))
  print(
    f"written to {output}: {len(zimg):,} images, {zimg.shape[1]} numbers each, with up to {_most(captions)} captions"
  )
  return 0


def _tell(done: int, of: int) -> None:
  print(f"embedded {done:,} of {of:,} images", file=sys.stderr)


def _data(recipe: recipes.Contrastive) -> object:
  """Returns the source of the input.

  Raises:
    UserError: the input is a mixture.
  """
  source, *others = recipe.input.components
  if others:
    raise UserError("config.input.data: is a mixture; embeddings are made of one source at a time")
  return source.data


def embed_images(recipe: recipes.Contrastive, progress: Callable[[int, int], None]) -> Float[np.ndarray, "images dim"]:
  """Returns the embeddings of all images of the input's source, of unit length, in the order of the split.

  Args:
    recipe: of a model with a locked image tower.
    progress: called with how many images are done, of how many, a few times.

  Raises:
    UserError: the image tower is not locked, or whatever is wrong with the recipe or the data.
  """
  task = Contrastive(recipe)
  where = sharding.batch_sharding(mesh := sharding.make_mesh())
  # One example tells the shapes.
  few = dataclasses.replace(recipe.input, batch_size=mesh.size, shuffle_buffer_size=1)
  with contextlib.closing(pipeline.train_batches(few, seed=0, start_step=0)) as one:
    batch = feed.put(next(one), where)
  placement = state_init.place(task, recipe, batch, mesh=mesh)
  _check_locked(recipe, placement.shapes.params)
  data = batches.open_batches(
    _data(recipe),
    text_embeddings.with_keep(_pp_img(recipe), "image"),
    batch_size=min(recipe.input.batch_size, _MOST_IMAGES),
    sharding=where,
    cache=False,
    where="config.input",
  )
  variables = placement.fresh_variables(batch)

  def embed(variables: Variables, batch: Batch) -> dict[str, Float[Array, "batch dim"]]:
    return {"zimg": task.predict["image"](variables, batch)[0]}

  extractor = features.Extractor(embed, where, "config.input")
  width = extractor.shapes(variables, data)["zimg"].shape[1]
  found, done, told = np.empty((data.num_examples, width), np.float32), 0, 0
  with contextlib.closing(extractor.pieces(variables, data)) as pieces:
    for ids, rows in pieces:
      found[ids] = rows["zimg"]
      done += len(ids)
      if done * 10 // len(found) > told:
        told = done * 10 // len(found)
        progress(done, len(found))
  return found


def _check_locked(recipe: recipes.Contrastive, params: Params) -> None:
  trained = trees.flatten_with_names({"img": masks.trainable_by(recipe, params).get("img", {})})
  for name, is_trained in trained:
    if is_trained:
      raise UserError(
        f"config.schedule trains {name}: only what a locked tower, ('img/.*', None), makes stays the same"
      )


def _pp_img(recipe: recipes.Contrastive) -> str:
  found = next((each.pp_img for each in recipe.evals.values() if getattr(each, "pp_img", None) is not None), None)
  if found is None:
    raise UserError("config.evals: none has a pp_img, which tells how images are made without augmentation")
  return found


def _most(captions: Sequence[Sequence[str]]) -> int:
  return max(map(len, captions))


def _as_column(captions: Sequence[Sequence[str]]) -> np.ndarray:
  """Returns UTF-8 bytes [images, most]; shorter lists end in empty ones, which the pp op `choice` passes over."""
  most = _most(captions)
  return np.array([[text.encode() for text in each] + [b""] * (most - len(each)) for each in captions])


if __name__ == "__main__":
  command.run(main)
