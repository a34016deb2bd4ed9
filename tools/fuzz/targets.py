"""What is fuzzed: each reader of files and texts that people hand in, with files that it reads to begin with."""

import ast
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from core import data_files, text_lines
from tools.fuzz import inputs


@dataclasses.dataclass(frozen=True)
class Target:
  """A reader and what it is given.

  Attributes:
    drawn: the inputs.
    call: reads one. It may raise a `UserError`, and nothing else.
    seeds: inputs that it reads.
    changed: draws inputs like some others; None where `drawn` alone does.
  """

  drawn: st.SearchStrategy[Any]
  call: Callable[[Any], Any]
  seeds: tuple[Any, ...] = ()
  changed: Callable[[list[Any]], st.SearchStrategy[Any]] | None = None


def _of_file(path: Path, seeds: list[bytes], read: Callable[[Path], Any], drawn: Any = None) -> Target:
  """Returns the target of a reader of one file, which stands at `path`."""

  def call(content: bytes) -> None:
    path.write_bytes(content)
    read(path)

  drawn = inputs.changed_bytes(seeds) if drawn is None else drawn
  return Target(drawn, call, tuple(seeds), inputs.changed_bytes)


def _changed_files(named: list[tuple[str, bytes]]) -> st.SearchStrategy[tuple[str, bytes]]:
  return st.sampled_from(named).flatmap(lambda each: st.tuples(st.just(each[0]), inputs.changed_bytes([each[1]])))


def _json_lines(values: list[Any]) -> bytes:
  return b"\n".join(json.dumps(value).encode() for value in values)


def npz(folder: Path) -> Target:
  """`.npz` files of parameters."""
  from core.checkpoint import pretrained

  params = {"a": {"kernel": np.ones((2, 3), np.float32), "bias": np.zeros(3, np.float16)}, "n": np.arange(4)}
  pretrained.save_params(folder / "seed.npz", params)
  pretrained.save_variables(folder / "more.npz", {"params": params, "batch_stats": {"mean": np.ones(2)}})
  seeds = [(folder / name).read_bytes() for name in ("seed.npz", "more.npz")]
  return _of_file(folder / "x.npz", seeds, lambda path: pretrained.load_variables(str(path)))


def safetensors(folder: Path) -> Target:
  """`.safetensors` files."""
  from safetensors.numpy import save

  from core.checkpoint import state_dict

  seed = save({"a.weight": np.ones((2, 3), np.float32), "a.bias": np.zeros(3, np.float16)})
  return _of_file(folder / "x.safetensors", [seed], state_dict.read)


def torch(folder: Path) -> Target:
  """What `torch.save` writes, of both forms."""
  from core.checkpoint import state_dict

  seeds = [data_files.find(f"core/checkpoint/witness/{name}.pth").read_bytes() for name in ("legacy", "zip")]
  return _of_file(folder / "x.pth", seeds, state_dict.read)


def tf_checkpoint(folder: Path) -> Target:
  """TensorFlow's checkpoints, of two data files and their index."""
  from core.checkpoint import tf_checkpoint

  names = ("index", "data-00000-of-00002", "data-00001-of-00002")
  seeds = {name: data_files.find(f"core/checkpoint/witness/tf.ckpt.{name}").read_bytes() for name in names}

  def call(drawn: tuple[str, bytes]) -> None:
    for name, content in (seeds | dict([drawn])).items():
      (folder / f"x.ckpt.{name}").write_bytes(content)
    tf_checkpoint.read(str(folder / "x.ckpt"))

  drawn = st.one_of(*(st.tuples(st.just(name), inputs.changed_bytes([seeds[name]])) for name in names))
  return Target(drawn, call, tuple(seeds.items()), _changed_files)


def big_vision(folder: Path) -> Target:
  """Checkpoints of big_vision: what describes an array, or a chunk of it."""
  import tensorstore

  from core.checkpoint import pretrained

  leaf = folder / "checkpoint.bv-000000001" / "params~w"
  described = {"shape": [3, 2], "chunks": [2, 2], "compressor": {"id": "zstd", "level": 1}}
  spec = {"driver": "zarr", "kvstore": f"file://{leaf}/", "metadata": described, "dtype": "float32"}
  tensorstore.open(spec, create=True).result().write(np.ones((3, 2), np.float32)).result()
  seeds = {path.name: path.read_bytes() for path in sorted(leaf.iterdir())}

  def call(drawn: tuple[str, bytes]) -> None:
    for name, content in (seeds | dict([drawn])).items():
      (leaf / name).write_bytes(content)
    pretrained.load_params(str(leaf.parent))

  drawn = st.one_of(*(st.tuples(st.just(name), inputs.changed_bytes([seeds[name]])) for name in seeds))
  return Target(drawn, call, tuple(seeds.items()))


def tfrecord(folder: Path) -> Target:
  """A TFRecord file of a dataset that TFDS has prepared."""
  from core.data import pipeline
  from core.recipe import sources
  from core.testing import tiny_tfds

  tfds = tiny_tfds.import_tfds()
  features = tfds.features.FeaturesDict({"label": tfds.features.ClassLabel(num_classes=3)})
  tiny_tfds.write(folder, "tiny", features, {"train": [[{"label": n % 3} for n in range(4)]]})
  (file,) = folder.rglob("*tfrecord*")

  def read(path: Path) -> None:
    data = sources.Tfds(name="tiny", split="train", data_dir=str(folder))
    list(pipeline.eval_batches(data, "keep('label')", batch_size=2))

  return _of_file(file, [file.read_bytes()], read)


def jsonl(folder: Path) -> Target:
  """Datasets of a line an example."""
  from core.data.sources import jsonl
  from core.recipe import sources

  rows = [{"label": 3, "text": "a", "box": [1, 2.5]}, {"label": 1, "text": "ü", "box": [0, 1]}]
  lines = inputs.lines_of(inputs.changed_json(rows)) | inputs.changed_bytes([_json_lines(rows)])

  def read(path: Path) -> None:
    jsonl.read(sources.Jsonl(path=str(path)), "config.input.data")

  return _of_file(folder / "x.jsonl", [_json_lines(rows)], read, lines)


def _tokenizer(name: str) -> Callable[[Path], Target]:
  def target(folder: Path) -> Target:
    from core.pp import tokenizers

    seed = data_files.find(f"core/pp/vocabularies/{name}").read_bytes()
    numbers = iter(range(10**9))  # A vocabulary is read once a path.

    def call(content: bytes) -> None:
      path = folder / f"{next(numbers)}{Path(name).suffix}"
      path.write_bytes(content)
      try:
        tokenizers.load(str(path)).encode([b"a photo of the digit 7"])
      finally:
        path.unlink()

    return Target(inputs.changed_bytes([seed]), call, (seed,), inputs.changed_bytes)

  return target


def hex_font(folder: Path) -> Target:
  """Unifont's `.hex` files."""
  from core.pp.render import hex_font

  seed = b"\n".join(data_files.find("core/pp/fonts/ascii.hex").read_bytes().split(b"\n")[:8])
  return _of_file(folder / "x.hex", [seed], lambda path: hex_font.HexFont(hex_font.read(path), 16).draw(65))


def metrics(folder: Path) -> Target:
  """`metrics.jsonl` of a run that goes on."""
  from core.training import metrics

  rows = [{"step": 1, "training_loss": 2.5, "time/wall": 1.0}, {"step": 2, "val/prec@1": 0.5}]
  lines = inputs.lines_of(inputs.changed_json(rows)) | inputs.changed_bytes([_json_lines(rows)])

  def read(path: Path) -> None:
    log = metrics.MetricsLog(path, resume_step=2)
    log.write(3, {"training_loss": 1.0})
    log.line(2, "val/prec@1")
    log.close()
    for damaged in folder.glob("*.damaged*"):  # A name that is taken is looked for, among all of them.
      damaged.unlink()

  return _of_file(folder / "metrics.jsonl", [_json_lines(rows)], read, lines)


def run_json(folder: Path) -> Target:
  """`config.json` and `run.json` of a workdir."""
  from core.training import provenance

  config = {"lr": 0.1, "input": {"pp": "keep('image')", "batch_size": 8}}
  seeds = {"config.json": config, "run.json": [{"project": "vit", "start_step": 0, "command": ["train"]}]}

  def call(drawn: tuple[str, bytes]) -> None:
    for name, content in seeds.items():
      (folder / name).write_text(json.dumps(content))
    (folder / drawn[0]).write_bytes(drawn[1])
    provenance.check_workdir(folder, config)

  each = [(name, json.dumps(content).encode()) for name, content in seeds.items()]
  drawn = [st.tuples(st.just(name), inputs.changed_json([content])) for name, content in seeds.items()]
  drawn += [st.tuples(st.just(name), inputs.changed_bytes([content])) for name, content in each]
  return Target(st.one_of(*drawn), call, tuple(each), _changed_files)


def integrity(folder: Path) -> Target:
  """`integrity.json`, the seal of a checkpoint."""
  from core.checkpoint import seal

  (folder / "array").write_bytes(b"numbers")
  seal.write(folder, 3, {"params/a": [[2], "float32"]})
  seed = (folder / seal.NAME).read_bytes()

  def read(path: Path) -> None:
    seal.fault(folder, 3)
    seal.arrays(folder)

  drawn = inputs.changed_json([json.loads(seed)]) | inputs.changed_bytes([seed])
  return _of_file(folder / seal.NAME, [seed], read, drawn)


def cache_record(folder: Path) -> Target:
  """The record beside a file of the cache."""
  from core.checkpoint import cache

  path = folder / "x.npz"
  path.write_bytes(b"weights")
  cache.record(path, {"location": "https://host/x.npz"}, {"": cache.sha256(path)})
  seed = (folder / "x.npz.json").read_bytes()
  drawn = inputs.changed_json([json.loads(seed)]) | inputs.changed_bytes([seed])
  return _of_file(folder / "x.npz.json", [seed], lambda _: cache.is_complete(path), drawn)


def url(folder: Path) -> Target:
  """URLs, which are shown without their secrets."""
  from core import masking

  def call(drawn: tuple[str, str, str]) -> None:
    secret, before, behind = drawn
    for location in (f"https://user:{secret}@host/w.npz", f"https://host/w.npz?sig={secret}&v=1"):
      once = masking.masked(f"{before}{location}{behind}")
      assert "hunter2" not in once, once
      assert masking.masked(once) == once, once

  # A space ends a URL in a sentence, and so does a quote that it began with.
  word = st.text(
    st.characters(codec="utf-8", exclude_characters="\"' \n\r\t", exclude_categories=["Z", "C"]), max_size=6
  )
  secret = st.tuples(word, word).map(lambda parts: f"{parts[0]}hunter2{parts[1]}")
  # `user:80/...` is a host with its port and a path, in `user:@b/...` b is the host (RFC 3986, section 3.2), and what
  # stands behind `&` is another key.
  secret = secret.filter(lambda text: not re.match(r"\d+/|[^/?#]*@[^/?#]*[/?#]", text) and "&" not in text)
  around = st.sampled_from(("", "'", '"', "weights ", "--weights=", "a,"))
  behind = st.sampled_from(("", ": no such file", ", or give another", "'", '"', ":img"))
  return Target(st.tuples(secret, around, behind), call, (("hunter2", "", ""),))


def pp_string(folder: Path) -> Target:
  """Preprocessing strings."""
  from core.pp import builder, registry

  return Target(inputs.pp_strings(sorted(registry.OPS)), builder.get_preprocess_fn, ("decode|resize(8)",))


def config(folder: Path) -> Target:
  """`--config.KEY=VALUE` on a config."""
  from core.recipe import load, tasks
  from core.recipe.parse import parse

  plain = load.read(str(data_files.find("projects/vit/configs/digits.py")))
  keys = [*plain, *(f"{key}.{inner}" for key, held in plain.items() if isinstance(held, dict) for inner in held)]
  keys += [
    "evals.test.type",
    "evals.test.log_epochs",
    "input.data.split",
    "sam.rho",
    "ema.decay",
    "mesh",
    "agc.clipping",
  ]

  def call(changes: list[tuple[str, str]]) -> None:
    parse(tasks.Classification, load.overridden(plain, changes))

  return Target(st.lists(inputs.overrides(keys), max_size=3), call, ([("lr", "0.1")],))


def witnesses(file: Path) -> list[Any]:
  """Returns the inputs in a file, a line each as Python writes it; none where it is not there."""
  return [ast.literal_eval(line) for line in text_lines.read(file, file.name)] if file.exists() else []


def write_witnesses(file: Path, drawn: list[Any]) -> None:
  """Writes what `witnesses` reads."""
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text("".join(f"{each!a}\n" for each in drawn))


TARGETS: dict[str, Callable[[Path], Target]] = {
  "pp_string": pp_string,
  "config": config,
  "npz": npz,
  "safetensors": safetensors,
  "torch": torch,
  "tf_checkpoint": tf_checkpoint,
  "big_vision": big_vision,
  "tfrecord": tfrecord,
  "jsonl": jsonl,
  "wordpiece": _tokenizer("digit_words.txt"),
  "sentencepiece": _tokenizer("digit_captions.model"),
  "hex_font": hex_font,
  "metrics": metrics,
  "run_json": run_json,
  "integrity": integrity,
  "cache_record": cache_record,
  "url": url,
}
"""By name; each is made in a folder of its own."""
