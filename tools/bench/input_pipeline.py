"""Images/s of the training input at 224 px against a bare `tf.data` map of the same TF ops, in one run.

    ./bazelw run //tools/bench:input_pipeline

The bare map reads the same records in file order, decodes and preprocesses them, and batches. What ours adds is the
order (windows, lanes), the seeds of every example, and that its output is the same every time.
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import io
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core import command
from core.data import pipeline
from core.data.import_tensorflow import import_tfds
from core.data.source import open_source
from core.import_tensorflow import import_tensorflow
from core.pp import builder
from core.recipe import sources
from core.recipe.input import Input
from core.testing import generated_tfds

PP = (
  "decode_jpeg_and_inception_crop(224)|flip_lr|randaug(2,10)|value_range(-1,1)"
  "|onehot(1000,key='label',key_result='labels')|keep('image','labels')"
)
BATCH = 64


_COMMAND = command.Command("input_pipeline [options]", about=__doc__)
_COMMAND.whole("images", "of the data set", default=8_192)
_COMMAND.whole("rounds", "how often each is measured", default=7)
_COMMAND.whole("batches", "a round, of 64 images", default=12)


def main(argv: Sequence[str]) -> int:
  """Prints the rates; returns the exit status."""
  flags, _ = _COMMAND.parse(argv)
  with tempfile.TemporaryDirectory() as folder:
    write_photographs(Path(folder), flags.images)
    data = sources.Tfds(name="photographs", split="train", data_dir=folder)
    variants = {
      "bare": bare(data),
      "streamed": ours(data, shuffle_buffer_size=flags.images // 2),
      "in_memory": ours(data, shuffle_buffer_size=flags.images),
    }
    rates = measure(variants, flags.rounds, flags.batches)
  result = {name: round(statistics.median(each), 1) for name, each in rates.items()}
  ratios = {
    f"{name}_to_bare": round(statistics.median(a / b for a, b in zip(rates[name], rates["bare"])), 3)
    for name in ("streamed", "in_memory")
  }
  print(json.dumps({"images_per_second": result, **ratios, "pp": PP, "rounds": flags.rounds}, indent=2))
  return 0


def write_photographs(folder: Path, count: int) -> None:
  """Writes a TFDS dataset of JPEGs of the size of ImageNet's (500x375, about 100 kB) with detail at every scale."""
  from PIL import Image

  f = import_tfds().features
  rng = np.random.default_rng(0)
  files = []
  for _ in range(16):
    pixels = sum(
      np.kron(rng.normal(size=(375 // s + 1, 500 // s + 1, 3)), np.ones((s, s, 1)))[:375, :500] * s**0.7
      for s in (1, 4, 16, 64)
    )
    file = io.BytesIO()
    Image.fromarray(np.uint8(np.clip(pixels * 8 + 128, 0, 255))).save(file, "JPEG", quality=85)
    files.append(file.getvalue())
  features = f.FeaturesDict({"image": f.Image(encoding_format="jpeg"), "label": f.ClassLabel(num_classes=1_000)})

  def example(features: Any, rng: np.random.Generator) -> dict[str, Any]:
    return {"image": io.BytesIO(files[rng.integers(16)]), "label": int(rng.integers(1_000))}

  generated_tfds.write(folder, "photographs", features, {"train": count}, make_example=example)


def bare(data: sources.Tfds) -> Iterator:
  """Returns the batches of the least that could do the work: read, parse, the same ops, batch."""
  tf = import_tensorflow()
  records = open_source(data, "data")
  preprocess = builder.get_preprocess_fn(PP)

  def seeded(index: Any, record: Any) -> dict[str, Any]:
    return preprocess({**records.parse(record), "_seed": index})

  dataset = tf.data.TFRecordDataset(list(records.files)).repeat().enumerate()
  dataset = dataset.map(seeded, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
  dataset = dataset.map(lambda x: {"image": x["image"], "labels": x["labels"]}).batch(BATCH).prefetch(2)
  return dataset.as_numpy_iterator()


def ours(data: sources.Tfds, shuffle_buffer_size: int) -> Iterator:
  """Returns the batches of a config's training input."""
  options = dict(batch_size=BATCH, pp=PP, shuffle_buffer_size=shuffle_buffer_size)
  return pipeline.train_batches(Input(data=data, **options), seed=0, start_step=0)


def measure(variants: dict[str, Iterator], rounds: int, batches: int) -> dict[str, list[float]]:
  """Returns the images/s of each variant in each round.

  The variants take turns, so that what the machine does meets them all.
  A variant's threads fill its buffers while others are measured, so each turn first drains what was prepared.
  """
  rates: dict[str, list[float]] = {name: [] for name in variants}
  for number in range(rounds + 1):
    for name, iterator in variants.items():
      for _ in range(6):
        next(iterator)
      began = time.perf_counter()
      for _ in range(batches):
        next(iterator)
      if number:  # The first round warms up.
        rates[name].append(BATCH * batches / (time.perf_counter() - began))
  return rates


if __name__ == "__main__":
  command.run(main)
