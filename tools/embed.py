"""Writes the embeddings of images and texts, by any weights of a model of two sides, to one file.

./bazelw run //tools:embed -- --config=projects/siglip/configs/digits.py --weights=params.npz --images=DIR \
  --texts=captions.txt --output=x.npz
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from core import command, files
from core.errors import UserError, nearest
from core.training import cli
from tools import embedding

_COMMAND = command.Command(
  "embed --config=FILE.py[:ARGS] --weights=W [--images=WHICH | --data=EVAL] [--texts=FILE] --output=PATH [options]",
  configs=True,
)
embedding.define_flags(_COMMAND)
_COMMAND.text(
  "images",
  'a folder, with all below it; a pattern like "photos/*.jpg" in quotes; or files joined by commas',
  shown="WHICH",
)
_COMMAND.text("data", "instead, the images of the data of one of the config's evals, or of its input", shown="EVAL")
_COMMAND.text("texts", "a text file, a text a line", shown="FILE")
_COMMAND.text(
  "output",
  "PATH.npz: zimg, image_id, ztxt, text_id; or PATH.parquet: rows of side, id and embedding. An image's id is its path "
  "(its index in the split, with --data); a text's id is the text",
  shown="PATH",
  required=True,
)


def main(argv: Sequence[str]) -> int:
  """Embeds, and writes the file; returns the exit status."""
  flags, overrides = _COMMAND.parse(argv or ["--help"])
  if flags.images and flags.data:
    raise UserError("give one of --images=... and --data=...; see --help")
  if not (flags.images or flags.data or flags.texts):
    raise UserError("nothing to embed: give --images=... or --data=..., --texts=..., or both; see --help")
  output = files.from_here(flags.output)
  if output.suffix not in WRITERS:
    raise UserError(f"--output={flags.output} must end in {' or '.join(WRITERS)}{nearest(output.suffix, WRITERS)}")
  if output.exists():
    raise UserError(f"--output: {output} is there already; nothing is overwritten")
  cli.start_jax(flags, output)
  paths = embedding.find_images(flags.images) if flags.images else None
  written = embedding.read_lines(flags.texts, "texts") if flags.texts else None
  model = embedding.Model(flags, overrides)

  rows: list[Rows] = []
  if paths is not None:
    with model.images(paths) as data:
      rows = _embed(model, data, list(map(str, paths)), written)
  else:
    data = model.dataset(flags.data) if flags.data else None
    ids = [str(number) for number in range(data.num_examples)] if data is not None else []
    rows = _embed(model, data, ids, written)
  output.parent.mkdir(parents=True, exist_ok=True)
  WRITERS[output.suffix](output, rows)
  print(f"written to {output}: " + ", ".join(f"{len(ids):,} {side}s of {z.shape[1]} numbers" for side, ids, z in rows))
  return 0


Rows = tuple[str, list[str], Float[np.ndarray, "n dim"]]  # The side, the ids and the embeddings.


def _embed(model: embedding.Model, images: Any, ids: list[str], written: Sequence[str] | None) -> list[Rows]:
  opened = model.texts(written) if written is not None else None
  model.load(images, opened)
  rows: list[Rows] = []
  if images is not None:
    rows.append(("image", ids, model.embed("image", images, stream=sys.stderr)))
  if opened is not None:
    rows.append(("text", list(written), model.embed("text", opened, stream=sys.stderr)))
  return rows


def write_npz(output: Path, rows: Sequence[Rows]) -> None:
  """Writes `zimg`, float32 [images, dim], and `image_id`; `ztxt` and `text_id`."""
  arrays: dict[str, np.ndarray] = {}
  for side, ids, z in rows:
    arrays |= {"zimg" if side == "image" else "ztxt": z, f"{side}_id": np.array(ids)}
  with files.replacing(output) as file:
    np.savez(file, **arrays)


def write_parquet(output: Path, rows: Sequence[Rows]) -> None:
  """Writes the columns `side` ("image" or "text"), `id`, and `embedding`, a list of float32."""
  import pyarrow as pa
  import pyarrow.parquet

  tables = [
    pa.table(
      {
        "side": pa.array([side] * len(ids)),
        "id": pa.array(ids),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(z.reshape(-1)), z.shape[1]),
      }
    )
    for side, ids, z in rows
  ]
  with files.replacing(output) as file:
    pyarrow.parquet.write_table(pa.concat_tables(tables), file)


WRITERS: Mapping[str, Callable[[Path, Sequence[Rows]], None]] = {".npz": write_npz, ".parquet": write_parquet}


if __name__ == "__main__":
  command.run(main)
