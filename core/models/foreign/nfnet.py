"""NFNets' weights in timm's form (`NormFreeNet`: dm_nfnet_f0 to dm_nfnet_f6, which hold the authors' weights).

timm computes the exact GELU; the authors, its tanh approximation: `Model(gelu="exact")` computes what timm does. timm
also adds 1e-5 to the variance of a kernel where the authors hold fan-in times the variance above 1e-4. That differs by
a factor for each output, which is folded into the gain, so that either library's model computes the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from core.errors import UserError
from core.models.foreign import timm_config
from core.models.foreign.table import CONV, DENSE, Arrays, Format, Layout, Rule


def _gain_ratio(weight: Float[np.ndarray, "outputs inputs height width"]) -> Float[np.ndarray, "outputs"]:
  """Returns our gain divided by timm's, for the same convolution: see `core.models.nfnet.standardize`."""
  flat = np.float64(weight).reshape(len(weight), -1)
  variance = flat.var(axis=1)
  return np.sqrt(np.maximum(variance, 1e-4 / flat.shape[1]) / (variance + 1e-5))


def _conv_to_published(weight: np.ndarray, gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  return CONV.to_published(weight), np.float32(gain.reshape(-1) * _gain_ratio(weight))


def _conv_to_foreign(kernel: np.ndarray, gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  weight = CONV.to_foreign(kernel)
  return weight, np.float32(gain / _gain_ratio(weight)).reshape(-1, 1, 1, 1)


_STANDARDIZED = Layout(_conv_to_published, _conv_to_foreign)
_POINTWISE = Layout(lambda oihw: oihw[:, :, 0, 0].T, lambda kernel: kernel.T[:, :, None, None])


def _conv(ours: str, theirs: str, *, optional: bool = False) -> list[Rule]:
  return [
    Rule((f"{ours}/kernel", f"{ours}/gain"), (f"{theirs}.weight", f"{theirs}.gain"), _STANDARDIZED, optional),
    Rule(f"{ours}/bias", f"{theirs}.bias", optional=optional),
  ]


_BLOCK, _TIMM_BLOCK = "stage{s}_block{i}", "stages.{s}.{i}"
_BRANCH = {"conv0": "conv1", "conv1": "conv2", "conv1b": "conv2b", "conv2": "conv3"}

TIMM = [
  *(rule for n in range(4) for rule in _conv(f"stem_conv{n}", f"stem.conv{n + 1}")),
  *(rule for ours, theirs in _BRANCH.items() for rule in _conv(f"{_BLOCK}/{ours}", f"{_TIMM_BLOCK}.{theirs}")),
  *_conv(f"{_BLOCK}/conv_shortcut", f"{_TIMM_BLOCK}.downsample.conv", optional=True),
  *(
    rule
    for n in (0, 1)
    for rule in (
      Rule(f"{_BLOCK}/se/fc{n}/kernel", f"{_TIMM_BLOCK}.attn_last.fc{n + 1}.weight", _POINTWISE),
      Rule(f"{_BLOCK}/se/fc{n}/bias", f"{_TIMM_BLOCK}.attn_last.fc{n + 1}.bias"),
    )
  ),
  Rule(f"{_BLOCK}/skip_gain", f"{_TIMM_BLOCK}.skipinit_gain"),
  *_conv("final_conv", "final_conv"),
  Rule("head/kernel", "head.fc.weight", DENSE, optional=True),
  Rule("head/bias", "head.fc.bias", optional=True),
]


def _is_timm(state_dict: Arrays) -> bool:
  return "stem.conv1.gain" in state_dict and "stages.0.0.conv1.gain" in state_dict


def _reading(state_dict: Arrays) -> Sequence[Rule]:
  if not any(name.endswith(".skipinit_gain") for name in state_dict):
    raise UserError("model: of timm's models without normalization, only dm_nfnet_f0 to f6 compute what NFNets do")
  return TIMM


def _writing(model: Any, image_size: tuple[int, int]) -> Sequence[Rule]:
  del image_size  # Any will do.
  if model.options.activation == "gelu" and model.options.gelu != "exact":
    raise UserError(
      "model: timm's NFNets compute the exact GELU; export with the option gelu='exact' (a model trained with the tanh "
      "approximation then gives logits that differ in the third decimal)"
    )
  return TIMM


def _config(model: Any, image_size: tuple[int, int]) -> dict[str, Any]:
  options = model.options
  if len(options.depth) != 4:
    raise UserError(f"model: timm's NFNets have four stages, not {len(options.depth)}")
  sizes = {
    "width": options.width,
    "stem_width": [options.stem_width],
    "final_width": [options.final_width],
    "bottleneck times width": [width * options.bottleneck for width in options.width],
    "se_ratio times width": [width * options.se_ratio for width in options.width],
  }
  for option, values in sizes.items():
    if any(value % 8 for value in values):
      raise UserError(f"model: timm's NFNets have channels in multiples of 8, but {option} is {list(values)}")
  usual = {
    "channels": [256, 512, 1536, 1536],
    "stem_chs": 128,
    "num_features": 3072,
    "group_size": 128,
    "bottle_ratio": 0.5,
    "alpha": 0.2,
    "act_layer": "gelu",
    "attn_kwargs": {"rd_ratio": 0.5},
  }
  ours = {
    "channels": list(options.width),
    "stem_chs": options.stem_width,
    "num_features": options.final_width,
    "group_size": options.group_size,
    "bottle_ratio": options.bottleneck,
    "alpha": options.alpha,
    "act_layer": options.activation,
    "attn_kwargs": {"rd_ratio": options.se_ratio},
  }
  model_args = {key: value for key, value in ours.items() if value != usual[key]}
  architectures = {(n, 2 * n, 6 * n, 3 * n): f"dm_nfnet_f{n - 1}" for n in range(1, 8)}
  architecture = architectures.get(tuple(options.depth))
  if architecture is None:
    architecture, model_args["depths"] = "dm_nfnet_f0", list(options.depth)
  return timm_config.make(
    architecture,
    model,
    image_size,
    features=options.final_width,
    first="stem.conv1",
    head="head.fc",
    **model_args,
  )


def _options(state_dict: Arrays, config: Mapping[str, Any]) -> dict[str, Any]:
  del state_dict
  facts = timm_config.facts(config, "nfnet")
  if facts["pool"] not in (None, "avg"):
    raise UserError(f"config.json: global_pool is {facts['pool']!r}, and our NFNet takes the mean (avg)")
  activation = facts.get("act_layer", "gelu")
  if activation not in ("gelu", "silu", "relu"):
    raise UserError(f"config.json: model_args.act_layer is {activation!r}, which our NFNet lacks")
  alpha = {"alpha": facts["alpha"]} if "alpha" in facts else {}
  return alpha | {"activation": activation} | ({"gelu": "exact"} if activation == "gelu" else {})


FORMATS = {"timm": Format(_is_timm, _reading, _writing, _config, _options)}
