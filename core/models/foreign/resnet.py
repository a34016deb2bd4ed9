"""BiT's weights in the forms of timm (`ResNetV2`: resnetv2_50x1_bit and its kin) and transformers (`BitModel`)."""

from collections.abc import Mapping, Sequence
from typing import Any

from core.errors import UserError
from core.models.foreign import config_keys, timm_config
from core.models.foreign.table import CONV, DENSE, Arrays, Format, Layout, Rule

# Our scales and biases are [1, 1, 1, channels]; the heads of timm's are 1x1 convolutions.
_CHANNELS = Layout(lambda vector: vector.reshape(1, 1, 1, -1), lambda array: array.reshape(-1))
_CONV_HEAD = Layout(lambda oihw: oihw[:, :, 0, 0].T, lambda kernel: kernel.T[:, :, None, None])


def _rules(root: str, unit: str, norm: str, head: str, head_layout: Layout) -> list[Rule]:
  """Returns the table of a library whose units have conv1 to conv3 and norm1 to norm3."""
  ours = "block{b+1}/unit{u+1:02}"
  norms = {"norm-pre-head": norm, **{f"{ours}/gn{n}": f"{unit}.norm{n}" for n in (1, 2, 3)}}
  return [
    Rule("root_block/conv_root/kernel", f"{root}.weight", CONV),
    *(Rule(f"{ours}/conv{n}/kernel", f"{unit}.conv{n}.weight", CONV) for n in (1, 2, 3)),
    Rule(f"{ours}/conv_proj/kernel", f"{unit}.downsample.conv.weight", CONV, optional=True),
    *(Rule(f"{ours}/scale", f"{theirs}.weight", _CHANNELS) for ours, theirs in norms.items()),
    *(Rule(f"{ours}/bias", f"{theirs}.bias", _CHANNELS) for ours, theirs in norms.items()),
    Rule("head/kernel", f"{head}.weight", head_layout, optional=True),
    Rule("head/bias", f"{head}.bias", optional=True),
  ]


def _hf_rules(prefix: str) -> list[Rule]:
  unit = f"{prefix}encoder.stages.{{b}}.layers.{{u}}"
  return _rules(f"{prefix}embedder.convolution", unit, f"{prefix}norm", "classifier.1", DENSE)


TIMM = _rules("stem.conv", "stages.{b}.blocks.{u}", "norm", "head.fc", _CONV_HEAD)
HF = _hf_rules("bit.")
HF_WITHOUT_HEAD = _hf_rules("")

# timm's architectures by depth and width, which their makers do not let one choose.
_ARCHITECTURES = {
  (depth, width): f"resnetv2_{depth}x{width}_bit"
  for depth, width in ((50, 1), (50, 3), (101, 1), (101, 3), (152, 2), (152, 4))
}


def _timm_config(model: Any, image_size: tuple[int, int]) -> dict[str, Any]:
  options = model.options
  _require_zeros(options)
  if (options.depth, options.width) not in _ARCHITECTURES:
    raise UserError(
      f"model: timm has no BiT of depth {options.depth} and width {options.width:g}; "
      f"it has {', '.join(_ARCHITECTURES.values())}"
    )
  architecture = _ARCHITECTURES[options.depth, options.width]
  return timm_config.make(
    architecture, model, image_size, features=_channels(model)[-1], first="stem.conv", head="head.fc"
  )


def _hf_config(model: Any, image_size: tuple[int, int]) -> dict[str, Any]:
  del image_size  # Any will do.
  _require_zeros(model.options)
  labels = {str(i): f"LABEL_{i}" for i in range(model.num_classes or 0)}
  return {
    "architectures": ["BitForImageClassification" if model.num_classes else "BitModel"],
    "model_type": "bit",
    "layer_type": "preactivation",
    "embedding_size": round(64 * model.options.width),
    "hidden_sizes": _channels(model),
    "depths": list(model.options.units),
    "width_factor": 1,
    "num_groups": 32,
    "hidden_act": "relu",
    "global_padding": None,
    "embedding_dynamic_padding": False,
    "id2label": labels,
    "label2id": {label: int(i) for i, label in labels.items()},
  }


def _require_zeros(options: Any) -> None:
  """Refuses a model whose root pools otherwise than that of both libraries."""
  if options.root_padding != "zero":
    raise UserError(
      f"model.root_padding is {options.root_padding!r}; the BiTs of timm and transformers pool with zeros around, "
      "and would give other outputs"
    )


def _channels(model: Any) -> list[int]:
  """Returns the channels of the output of each block."""
  return [round(256 * model.options.width) * 2**i for i in range(len(model.options.units))]


def _hf_reading(state_dict: Arrays) -> Sequence[Rule]:
  return HF if "bit.embedder.convolution.weight" in state_dict else HF_WITHOUT_HEAD


def _is_timm(state_dict: Arrays) -> bool:
  return "stem.conv.weight" in state_dict and "stages.0.blocks.0.downsample.conv.weight" in state_dict


def _is_hf(state_dict: Arrays) -> bool:
  return any(f"{prefix}embedder.convolution.weight" in state_dict for prefix in ("bit.", ""))


def _timm_options(state_dict: Arrays, config: Mapping[str, Any]) -> dict[str, Any]:
  del state_dict
  facts = timm_config.facts(config, "resnet")
  for key, value, ours in (("global_pool", facts["pool"], "avg"), ("act_layer", facts.get("act_layer"), "relu")):
    if value not in (None, ours):
      raise UserError(f"config.json: {key} is {value!r}, which our ResNet does not compute (it does {ours!r})")
  return {}


_HF_READ = ("num_channels", "embedding_size", "hidden_sizes", "depths", "out_features", "out_indices", "stage_names")
_HF_EQUAL = {
  "layer_type": ("preactivation",),
  "hidden_act": ("relu",),
  "global_padding": (None, "valid", "VALID"),
  "embedding_dynamic_padding": (False,),
  "num_groups": (32,),
  "output_stride": (32,),
  "width_factor": (1,),
}


def _hf_options(state_dict: Arrays, config: Mapping[str, Any]) -> dict[str, Any]:
  del state_dict
  config_keys.check(config, read=_HF_READ, equal=_HF_EQUAL, model_types=("bit",))
  return {}


FORMATS = {
  "timm": Format(_is_timm, lambda _: TIMM, lambda *_: TIMM, _timm_config, _timm_options),
  "hf": Format(
    _is_hf, _hf_reading, lambda model, _: HF if model.num_classes else HF_WITHOUT_HEAD, _hf_config, _hf_options
  ),
}
