"""A ported config in small, for a test: three steps of tiny models on images of 32 px, of stand-ins for data sets."""

import re
from collections.abc import Mapping
from typing import Any

from core.recipe import pp_string as grammar
from core.testing import generated_tfds

STEPS = 3
_PIXELS = 32
_SIZED = (
  ("resize", "resize_small", "resize_long", "central_crop", "inception_crop", "random_crop")
  + ("decode_jpeg_and_inception_crop", "render_unifont")
)  # fmt: skip
# By what a family's options are called; what a variant fills in is given one by one.
_TINY = {
  "vit": dict(variant="mu/16"),
  "flexi_vit": dict(variant="mu", patch_size=(16, 16), posemb_size=(2, 2)),
  "mixer": dict(patch_size=(16, 16), hidden_dim=16, num_blocks=1, tokens_mlp_dim=8, channels_mlp_dim=16),
  "bit": dict(depth=(1, 1), width=0.5),
  "bit_paper": dict(depth=(1, 1), width=0.5),
  "bert": dict(width=16, depth=1, mlp_dim=16, num_heads=2, vocab_size=2_000, max_len=8),
}
_SIZES = (2, 4)  # Patches along a side of 32 px.


def shrunken(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a config that trains `STEPS` steps; of evaluations of one kind it has the first."""
  small = {key: each for key, each in config.items() if not key.endswith("_init") and not key.startswith("total_")}
  for name in config.get("teachers", ()):
    small[f"{name}_init"] = None
  for key in ("model", "student", *config.get("teachers", ())):
    if f"{key}_name" in config:
      small[key] = _tiny(config[f"{key}_name"], config.get(key, {}))
  if "flexi" in config:
    small["flexi"] = dict(seqhw=dict(v=_SIZES))
  if "sharding_strategy" in small:  # A tiny model's parameters are too small to be split.
    small["sharding_strategy"] = [(regex, "replicate") for regex, _ in small["sharding_strategy"]]
  small |= dict(total_steps=STEPS, log_training_steps=1, ckpt_steps=STEPS - 1)
  small.pop("keep_ckpt_steps", None)
  small["schedule"] = _short(config.get("schedule", {}))
  small["evals"] = {name: _evaluation(each) for name, each in _of_each_kind(config.get("evals", {})).items()}
  small["input"] = _input(config, small)
  if small["input"]["data"].get("source") == "digits":
    small["num_classes"] = 10
  return small


def evaluating(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a small config that takes no step and evaluates once, of a config that does."""
  zeros = dict(source="zeros", spec=dict(image=dict(shape=(_PIXELS, _PIXELS, 3), dtype="float32")))
  small = shrunken(config)
  return {**small, "total_steps": 0, "input": dict(data=zeros, batch_size=8)}


def datasets_of(config: Mapping[str, Any]) -> set[str]:
  """Returns the data sets of TFDS that a small config reads, which a test must write."""
  found: set[str] = set()

  def visit(node: Any) -> None:
    if isinstance(node, Mapping):
      if "split" in node and "name" in node:
        found.add(node["name"])
      for key, each in node.items():
        found.update(name for name, *_ in each.values()) if key == "datasets" else visit(each)

  visit(config)
  return found


def write_data(folder: Any, config: Mapping[str, Any]) -> None:
  """Writes stand-ins for the data sets of a small config into a folder, those that are not there."""
  for name in sorted(datasets_of(config)):
    if not (folder / name.partition("/")[0]).exists():
      generated_tfds.write(folder, name, splits={**generated_tfds.SPLITS, "val": 20})


def _tiny(family: str, options: Mapping[str, Any]) -> dict[str, Any]:
  if family in ("one_tower", "two_towers"):
    size = 16 if isinstance(options.get("out_dim", 0), int) else (None, 32)
    towers = {side: _tiny(options.get(f"{side}_model", "vit"), options.get(side, {})) for side in ("image", "text")
              if side in options or side == "image"}  # fmt: skip
    return {**options, **towers, "out_dim": size}
  sizes = ("variant", "config", "patch_size", "depth", "width", "seqhw")
  kept = {key: each for key, each in options.items() if key not in sizes}
  return {**kept, **_TINY[family]}


def _short(schedule: Any) -> Any:
  if isinstance(schedule, tuple | list):
    return [(regex, None if each is None else _short(each)) for regex, each in schedule]
  return {key: 1 if key.endswith("_steps") else each for key, each in schedule.items()}


def _input(config: Mapping[str, Any], small: Mapping[str, Any]) -> dict[str, Any]:
  given = config["input"]
  if given["data"].get("source") == "zeros":  # A config that only evaluates: it trains on what it evaluates.
    entries = [each for each in small["evals"].values() if each["type"] == "classification"]
    if not entries:
      return {**given, "batch_size": 8, "data": dict(source="digits", split="train"), "pp": _PP_OF_DIGITS}
    return dict(data=entries[0]["data"], pp=entries[0]["pp_fn"], batch_size=8)
  return {**given, "batch_size": 8, "data": _data(given["data"]), "pp": _pp(given["pp"])}


_PP_OF_DIGITS = "resize(32)|value_range(-1,1,0,16)|onehot(10, key='label', key_result='labels')|keep('image', 'labels')"


def _of_each_kind(evals: Mapping[str, Any]) -> dict[str, Any]:
  kinds: dict[str, str] = {}
  for name, entry in evals.items():
    kinds.setdefault(f"{entry['type']} {re.sub('[0-9]+', '', str(entry.get('pred')))} {sorted(entry)}", name)
  return {name: evals[name] for name in kinds.values()}


def _evaluation(entry: Mapping[str, Any]) -> dict[str, Any]:
  found = {key: _pp(each) if key.startswith("pp_") else each for key, each in entry.items()}
  for key in list(found):
    if key.startswith("log_"):
      del found[key]
      found["log_steps"] = STEPS
  if "data" in found:
    found["data"] = _data(found["data"])
  if entry["type"] == "fewshot":
    found |= dict(datasets={"pets": ("oxford_iiit_pet", "train", "test")}, shots=1, num_seeds=1)
  if "pred" in found:
    pred = found["pred"]
    found["pred"] = {key: _size(each) for key, each in pred.items()} if isinstance(pred, Mapping) else _size(pred)
  return found


def _size(prediction: str) -> str:
  return re.sub(r"_\d+$", f"_{_SIZES[0]}", prediction)


def _data(data: Mapping[str, Any]) -> dict[str, Any]:
  if "split" not in data:
    return dict(data)
  return {**data, "name": data["name"].partition(":")[0], "split": data["split"].partition("[")[0]}


def _pp(text: str) -> str:
  calls = []
  for call in grammar.read(text):
    args, kwargs = call.args, dict(call.kwargs)
    if call.name in _SIZED and args and isinstance(args[0], int):
      args = (_PIXELS, *args[1:])
    if call.name == "render_unifont":
      kwargs |= dict(image_size=_PIXELS, font="ascii")
    if call.name == "bert_tokenize":
      kwargs |= dict(vocab_path="digit_words", max_len=8)
    shown = [*map(repr, args), *(f"{key}={each!r}" for key, each in kwargs.items())]
    calls.append(f"{call.name}({', '.join(shown)})")
  return "|".join(calls)
