"""Shapes of a config's batches without its data: the preprocessing, traced on what is known of an example."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from core.data.columns import Columns
from core.data.source import Source, open_source
from core.data.tfrecord import Records
from core.errors import UserError
from core.pp import builder, registry
from core.recipe import sources
from core.recipe.input import Input
from core.recipe.recipe import Recipe

_NARROW = {"int64": "int32", "uint64": "uint32", "float64": "float32"}  # As core.data.feed makes them.
# An op that names a tokenizer, which may have to be fetched; one of this repository's own gives the same shapes.
_TOKENIZERS = {"tokenize": ("model", "digit_captions"), "bert_tokenize": ("vocab_path", "digit_words")}

Shapes = dict[str, jax.ShapeDtypeStruct]


def batch_shapes(recipe: Recipe, given: str | None = None) -> Shapes:
  """Returns the batches of `recipe.input`, as shapes.

  Args:
    recipe: of a run.
    given: `"image:float32[224,224,3],labels:int32[64]"`: the shapes of an example, which are then not looked for.

  Raises:
    UserError: preprocessing that does not fit the data or leaves a size open, or data of which nothing is known.
  """
  found = parse_shapes(given) if given else _traced(recipe.input)
  return {
    key: jax.ShapeDtypeStruct((recipe.input.batch_size, *shape), np.dtype(_NARROW.get(dtype, dtype)))
    for key, (dtype, shape) in found.items()
  }


def parse_shapes(text: str) -> dict[str, tuple[str, list[int]]]:
  """Returns the value of --example: `{"image": ("float32", [224, 224, 3])}`.

  Raises:
    UserError: it cannot be read.
  """
  parts = re.findall(r"(\w+):(\w+)\[([\d,]*)\](?:,|$)", text)
  if ",".join(f"{key}:{dtype}[{sizes}]" for key, dtype, sizes in parts) != text.rstrip(","):
    raise UserError(f"--example must read like image:float32[224,224,3],labels:int32[64], got {text!r}")
  return {key: (dtype, [int(n) for n in sizes.split(",") if n]) for key, dtype, sizes in parts}


def _traced(inputs: Input) -> dict[str, tuple[str, list[int]]]:
  from core.data import tf_examples

  parts = []
  for each in inputs.components:
    source = _source(each.data, f"{each.key}.data")
    place = tf_examples.Place(each.key, f"{each.key}.data", each.pp_key)
    pp = _shipped_tokenizers(each.pp)
    parts.append(tf_examples.component(place, source, pp, in_memory=isinstance(source, Columns)))
  found = {key: spec for key, spec in tf_examples.specs(parts).items() if spec[0] not in ("string", "object")}
  for key, (_, shape) in found.items():
    if shape is None or None in shape:
      raise UserError(
        f"config.input.pp leaves {key!r} of shape {shape}: a batch needs one size, resize(224) makes it; "
        "or give the shapes by --example"
      )
  return found


def _source(data: Any, where: str) -> Source:
  """Returns a source; of a TFDS dataset what its builder declares, which is known without the data."""
  if isinstance(data, sources.Tfds):
    declared = _declared(data.name, data.skip_decode)
    if declared is not None:
      return declared
  try:
    return open_source(data, where)
  except UserError as error:
    raise UserError(f"{error}; without the data, give the shapes by --example") from None


def _declared(name: str, skip_decode: Sequence[str]) -> Records | None:
  """Returns a TFDS dataset without its records; None if TFDS does not know it, who prepared it may."""
  from core.data.import_tensorflow import import_tfds

  tfds = import_tfds()
  try:
    features = tfds.builder(name).info.features
  except Exception:  # Its kind varies.
    return None
  images = {key for key, feature in features.items() if isinstance(feature, tfds.features.Image)}
  decoders = {key: tfds.decode.SkipDecoding() for key in skip_decode if key in images}
  return Records(name, (), (), (), parse=lambda record: features.deserialize_example(record, decoders=decoders))


def _shipped_tokenizers(pp: str) -> str:
  """Returns `pp` with tokenizers of this repository, which need not be fetched and make arrays of the same shape."""
  texts = []
  for name, args, kwargs in builder.parse(pp):
    if name in _TOKENIZERS:
      key, shipped = _TOKENIZERS[name]
      bound = registry.OPS[name].signature.bind(*args, **kwargs).arguments
      # `bert_tokenize` takes its two arguments in either order.
      at = next(each for each in (key, "max_len") if isinstance(bound.get(each, ""), str))
      args, kwargs = [], {**bound, at: shipped, **({"pad_value": 0} if name == "tokenize" else {})}
    texts.append(f"{name}({', '.join([*map(repr, args), *(f'{k}={v!r}' for k, v in kwargs.items())])})")
  return "|".join(texts)
