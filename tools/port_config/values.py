"""What the rules make of values: a function each, of what stands in big_vision's config and of the port of it."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tools.port_config.rule import DROP, Unportable

TOWERS = "proj.image_text.two_towers"

_BIT_FILE = re.compile(r"([LMS])(-.*)?")


def given(value: Any, port: Any) -> Any:
  """Returns what is given; None and the empty text are as if the key was not there."""
  return DROP if value is None or value == "" else value


def only(*accepted: Any) -> Callable[[Any, Any], Any]:
  """Returns the function that writes nothing for some values, and refuses all others."""

  def check(value: Any, port: Any) -> Any:
    if value not in accepted:
      raise Unportable(f"only {' or '.join(map(repr, accepted))} can be carried over, got {value!r}")
    return DROP

  return check


def classes(value: Any, port: Any) -> Any:
  """Returns the number of classes; a model without a head gets one class, and a contrastive model has none."""
  return DROP if port.contrastive else value or 1


def loss(value: Any, port: Any) -> Any:
  """Returns the loss of a classifier; what compares images and texts, or models, has its own."""
  return DROP if port.distilled else _contrastive_loss(port) if port.contrastive else value


def absent_loss(port: Any, names: Mapping[str, str]) -> Any:
  """Returns the loss of a trainer that is given none."""
  return DROP if port.distilled else _contrastive_loss(port) if port.contrastive else "sigmoid_xent"


def _contrastive_loss(port: Any) -> str:
  return "sigmoid" if port.project == "siglip" else "softmax"


def head_bias(value: Any, port: Any) -> Any:
  """Returns the initial bias of classes, which big_vision's distillation of a FlexiViT does not read."""
  if value is None or port.contrastive or (port.distilled and port.project == "flexivit"):
    return DROP
  return value


def weights(value: Any, port: Any) -> Any:
  """Returns weights by the names that they have here: those of BiT, `M-imagenet2012`, say their size."""
  if not value:
    return DROP
  if isinstance(value, Mapping):
    return {part: found for part, each in value.items() if (found := weights(each, port)) is not DROP}
  found = _BIT_FILE.fullmatch(value)
  if found is None:
    return value
  options = port.config.get(port.path[-1].removesuffix("_init") if port.path[-1] != "model_init" else "model", {})
  ending = {"-imagenet2012": "-ILSVRC2012", None: ""}.get(found[2], found[2])
  return f"BiT-{found[1]}-R{options.get('depth', 50)}x{options.get('width', 1):g}{ending}"


def root_padding(port: Any, names: Mapping[str, str]) -> Any:
  """Returns what the root of a `bit_paper` pools beyond the image in big_vision; BiT's own weights expect zeros."""
  key = port.path[-1]
  init = port.config.get("model_init" if key == "model" else f"{key}_init")
  return DROP if isinstance(init, str) and _BIT_FILE.fullmatch(init) else "-inf"


def transformation(value: Any, port: Any) -> str:
  """Returns optax's name of a transformation of gradients."""
  name = value.removeprefix("big_vision.")
  return "identity" if name == "sgd" else name


_OF_SCHEDULE = {
  "cosine": (),
  "linear": ("end", "linear_end", "power"),
  "polynomial": ("end", "linear_end", "power"),
  "rsqrt": ("timescale", "shift"),
  "stair": ("steps", "stair", "mults"),
}
_OF_ALL_SCHEDULES = ("decay_type", "warmup", "cooldown", "scale_with_batchsize", "mult")
_IN_UNITS = re.compile(r"(\w+)_(steps|epochs|examples|percent)")


def schedule(value: Any, port: Any) -> Any:
  """Returns a schedule, or a list of them by regex, of which None freezes what it matches."""
  if isinstance(value, list | tuple):
    return [(regex, None if each is None else schedule(each, port)) for regex, each in value]
  kind = value.get("decay_type", "stair")
  known = (*_OF_ALL_SCHEDULES, *_OF_SCHEDULE.get(kind, ()))
  found = {}
  for key, each in value.items():
    unit = _IN_UNITS.fullmatch(key)
    if (unit[1] if unit else key) not in known:
      port.tell_idle(key, f"the schedule {kind} does not read it")
    elif key in ("timescale", "shift"):
      found[f"{key}_steps"] = each
      port.tell_renamed(key, f"{key}_steps")
    else:
      found[key] = each
  return found


def strategy(value: Any, port: Any) -> Any:
  """Returns how parameters are split: there the names of a train state begin with `params/` and `opt/`."""
  rules = []
  for regex, how in value:
    if regex.startswith("opt/"):
      port.tell_idle(regex, "the state of the optimizer lies as its parameters do")
      continue
    rules.append((regex.removeprefix("params/"), how))
  every = [regex for regex, how in rules]
  return rules[: every.index(".*") + 1] if ".*" in every else rules


def fully_sharded(value: Any, port: Any) -> Any:
  """Returns the rule of the trainers that had two words for it."""
  return [(".*", "fsdp(axis='data')")] if value == "fully_sharded" else DROP


def data_parallel(port: Any, names: Mapping[str, str]) -> Any:
  """Returns the mesh of a config that names none: all devices share the batch."""
  return [("data", -1)]


def sam(value: Any, port: Any) -> Any:
  """Returns `config.sam` of what GSAM's trainer is given.

  There the radius is a line in the learning rate, through (lr_min, rho_min) and (lr_max, rho_max). Here it goes from
  rho_max at the peak of the schedule to rho_min at its lowest point after the peak: the line at these two.
  """
  most, least = value["rho_max"], value["rho_min"]
  peak, low = _range_of_rate(port)

  def at(rate: float) -> float:
    if value["lr_max"] == value["lr_min"]:
      return most
    radius = least + (most - least) * (rate - value["lr_min"]) / (value["lr_max"] - value["lr_min"])
    return float(f"{radius:.12g}")

  found = dict(rho_max=at(peak), rho_min=at(low), alpha=value["alpha"], perturbation="per_device")
  if not 0 <= found["rho_min"] <= found["rho_max"]:
    raise Unportable(f"the radius would go from {at(peak):g} to {at(low):g} over the schedule; set config.sam yourself")
  if value.get("adaptive_perturbation"):
    found["adaptive_perturbation"] = True
  if not value.get("minimize_fp", True):
    found["decompose_against"] = "clean"
  return found


def _range_of_rate(port: Any) -> tuple[float, float]:
  """Returns the learning rate at the peak of the schedule, and at its lowest point after that."""
  of = port.config.get("schedule", {})
  if isinstance(of, list | tuple):
    raise Unportable("GSAM has one schedule for all parameters, not a list")
  peak = port.config["lr"] * of.get("mult", 1.0)
  kind = of.get("decay_type", "stair")
  if any(key.startswith("cooldown_") and each for key, each in of.items()) or kind == "cosine":
    return peak, 0.0
  if kind in ("linear", "polynomial"):
    return peak, peak * of.get("end", of.get("linear_end", 0.0))
  if kind == "stair" and not of.get("mults"):
    return peak, peak
  raise Unportable(f"the radius over the schedule {kind} is not known here; set config.sam yourself")


def source(value: Any, port: Any) -> Any:
  """Returns where data are: of TFDS, of JSONL, or zeros of some shapes."""
  if not isinstance(value.get("name"), str):  # A mixture; what has no weight is not read there either.
    return {name: weight for name, weight in value.items() if weight}
  value = dict(value)
  name = value.pop("name")
  if name == "bv:dummy":
    spec = {
      key: dict(shape=tuple(each.get("shape", ())), dtype=str(each.get("dtype", "float32")))
      for key, each in value["spec"].items()
    }
    return dict(source="zeros", spec=spec)
  if name == "bv:jsonl":
    unknown = [key for key in ("download_keys", "start", "stop") if value.get(key)]
    if unknown:
      raise Unportable(f"{', '.join(unknown)} of bv:jsonl has no counterpart here")
    return dict(source="jsonl", path=value["fname"], files=tuple(value.get("fopen_keys", ("image",))))
  if name.startswith("bv:"):
    raise Unportable(f"there is no source {name!r} here")
  kept = {key: each for key, each in value.items() if key in ("split", "data_dir", "skip_decode") and each is not None}
  for key in value:
    if key not in ("split", "data_dir", "skip_decode"):
      port.tell_idle(key, "the source reads all that TFDS has prepared")
  return dict(name=name, **kept)


def zeros_of_shapes(port: Any, names: Mapping[str, str]) -> Any:
  """Returns the input of a config that only evaluates: zeros of the shapes that its model is made for."""
  if "data" in port.out.get("input", {}):
    return DROP
  shapes = port.config.get("init_shapes") or [(1, 224, 224, 3)]
  return dict(source="zeros", spec={"image": dict(shape=tuple(shapes[0][1:]))})


def batch_of_evaluation(port: Any, names: Mapping[str, str]) -> Any:
  """Returns the batch of a config that only evaluates."""
  return port.config.get("batch_size_eval") or port.config.get("batch_size") or 256


def no_steps(port: Any, names: Mapping[str, str]) -> Any:
  """Returns 0 where no length is given, of a config that only evaluates."""
  return DROP if any(key.startswith("total_") for key in port.out) else 0


def model(value: Any, port: Any) -> Any:
  """Returns the options of a model, which its name beside them tells."""
  return port.options(port.config[f"{port.path[-1]}_name"], value or {})


def optimizer_arguments(value: Any, port: Any) -> Any:
  """Returns the arguments of a transformation of gradients; a type of numbers by its name."""
  return {key: _dtype(each) if "dtype" in key and each is not None else each for key, each in (value or {}).items()}


def _dtype(value: Any) -> str:
  return value if isinstance(value, str) else np.dtype(value).name


def family(value: Any, port: Any) -> str:
  """Returns what a model is called here.

  Raises:
    Unportable: there is no such model.
  """
  return port.family(value)


def pairs(value: Any, port: Any) -> Any:
  """Returns a list of pairs, which JSON holds as lists; None as if the key was not there."""
  return DROP if value is None else [tuple(map(_tuples, each)) for each in value]


def _tuples(value: Any) -> Any:
  return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def has_bias(config: Mapping[str, Any]) -> bool:
  """Tells whether a model of images and texts has a bias, which the sigmoid loss alone trains."""
  return config.get("model", {}).get("bias_init") is not None


def ckpt(port: Any, names: Mapping[str, str]) -> Any:
  """Returns how often a checkpoint is written where nothing says so; one that takes no step writes none."""
  return DROP if any(key.startswith("ckpt_") for key in port.out) or port.out.get("total_steps") == 0 else 1_000


def of_evaluation(value: Any) -> Callable[[Any, Mapping[str, str]], Any]:
  """Returns the function that gives a value to a config that only evaluates."""
  return lambda port, names: value if port.out.get("total_steps") == 0 else DROP


def file_order(port: Any, names: Mapping[str, str]) -> Any:
  """Returns the smallest buffer; a config that takes no step has no use for one."""
  section = port.get(port.path[:-1])
  is_mixture = all(isinstance(each, int | float) for each in (section or {}).get("data", {}).values())
  return DROP if section is None or is_mixture or port.out.get("total_steps") == 0 else 1


def condition(value: Any, port: Any) -> Any:
  """Returns a condition on examples in words.

  Raises:
    Unportable: it is a function.
  """
  if value is None:
    return DROP
  if isinstance(value, str) and not value.startswith("<"):  # As `config.json` holds a function, `<function ...>`.
    return value
  raise Unportable("a function of Python cannot be carried over; write it as a condition, 'label < 100' say")


def unless_input(value: Any, port: Any) -> Any:
  """Returns a batch size of the older layout, or of evaluations; one beside `input` has no effect."""
  return DROP if "batch_size" in port.config.get("input", {}) else given(value, port)
