"""Mixer's weights in timm's form (`MlpMixer`: mixer_b16_224 and its kin).

timm computes the exact GELU, even with the weights of the paper, which were trained with its tanh approximation: logits
differ in the third decimal. `Model(gelu="exact")` computes what timm does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from core.errors import UserError
from core.models.foreign import timm_config
from core.models.foreign.table import CONV, DENSE, Arrays, Format, Rule

_LINEAR = {"token_mixing": "mlp_tokens", "channel_mixing": "mlp_channels"}
_NORM = {"pre_head_layer_norm": "norm", "MixerBlock_{i}/LayerNorm_0": "blocks.{i}.norm1"}
_NORM |= {"MixerBlock_{i}/LayerNorm_1": "blocks.{i}.norm2"}

TIMM = [
  Rule("stem/kernel", "stem.proj.weight", CONV),
  Rule("stem/bias", "stem.proj.bias"),
  *(
    rule
    for ours, theirs in _LINEAR.items()
    for n in (0, 1)
    for rule in (
      Rule(f"MixerBlock_{{i}}/{ours}/Dense_{n}/kernel", f"blocks.{{i}}.{theirs}.fc{n + 1}.weight", DENSE),
      Rule(f"MixerBlock_{{i}}/{ours}/Dense_{n}/bias", f"blocks.{{i}}.{theirs}.fc{n + 1}.bias"),
    )
  ),
  *(Rule(f"{ours}/scale", f"{theirs}.weight") for ours, theirs in _NORM.items()),
  *(Rule(f"{ours}/bias", f"{theirs}.bias") for ours, theirs in _NORM.items()),
  Rule("head/kernel", "head.weight", DENSE, optional=True),
  Rule("head/bias", "head.bias", optional=True),
]

# timm's architectures by patch size, number of blocks and width, which their makers do not let one choose.
_ARCHITECTURES = {
  (patch, blocks, width): f"mixer_{name}{patch}_224"
  for name, blocks, width in (("s", 8, 512), ("b", 12, 768), ("l", 24, 1024))
  for patch in (32, 16)
}


def _writing(model: Any, image_size: tuple[int, int]) -> Sequence[Rule]:
  del image_size
  if model.options.gelu != "exact":
    raise UserError(
      "model: timm's Mixer computes the exact GELU; export with the option gelu='exact' (a model trained with the tanh "
      "approximation then gives logits that differ in the third decimal)"
    )
  return TIMM


def _config(model: Any, image_size: tuple[int, int]) -> dict[str, Any]:
  options = model.options
  rows, columns = options.patch_size
  architecture = _ARCHITECTURES.get((rows, options.num_blocks, options.hidden_dim)) if rows == columns else None
  if architecture is None:
    raise UserError(
      f"model: timm has no Mixer of {options.num_blocks} blocks of width {options.hidden_dim} and patches of "
      f"{rows}x{columns}; it has {', '.join(_ARCHITECTURES.values())}"
    )
  # timm cuts the product of ratio and width off to a whole number; half a unit more is cut off to the right one.
  ratios = [(size + 0.5) / options.hidden_dim for size in (options.tokens_mlp_dim, options.channels_mlp_dim)]
  is_usual = (options.tokens_mlp_dim, options.channels_mlp_dim) == (options.hidden_dim // 2, 4 * options.hidden_dim)
  model_args = {"img_size": list(image_size)} | ({} if is_usual else {"mlp_ratio": ratios})
  return timm_config.make(
    architecture, model, image_size, features=options.hidden_dim, first="stem.proj", head="head", **model_args
  )


def _is_timm(state_dict: Arrays) -> bool:
  return "blocks.0.mlp_tokens.fc1.weight" in state_dict


def _options(state_dict: Arrays, config: Mapping[str, Any]) -> dict[str, Any]:
  del state_dict
  facts = timm_config.facts(config, "mixer")
  if facts["pool"] not in (None, "avg"):
    raise UserError(f"config.json: global_pool is {facts['pool']!r}, and our Mixer takes the mean (avg)")
  gelus = {"gelu": "exact", "gelu_tanh": "tanh"}
  activation = facts.get("act_layer", "gelu")
  if activation not in gelus:
    raise UserError(
      f"config.json: model_args.act_layer is {activation!r}, which our Mixer lacks (it has {', '.join(gelus)})"
    )
  return {"gelu": gelus[activation], "image_sizes": facts["image_sizes"]}


FORMATS = {"timm": Format(_is_timm, lambda _: TIMM, _writing, _config, _options)}
