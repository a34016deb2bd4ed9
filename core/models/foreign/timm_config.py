"""timm's `config.json`: what `timm.create_model("local-dir:FOLDER")` builds a model from.

An architecture's name stands for all that its maker in timm says, and `model_args` for what is said otherwise. What of
it the weights do not tell is in timm.json, beside this file, which `core/models/witness/generate_timm_table.py`
makes; so are the architectures whose weights have the names and shapes of ours and compute otherwise.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

from core import data_files
from core.errors import UserError
from core.models.foreign import config_keys

# Arguments that shapes or names of the weights tell, and those for training alone.
_TOLD = config_keys.words("""
  num_classes in_chans img_size patch_size embed_dim depth mlp_ratio class_token reg_tokens no_embed_class pos_embed
  qkv_bias proj_bias qk_norm scale_attn_norm scale_mlp_norm init_values pre_norm final_norm fc_norm
  num_blocks layers channels width_factor depths stem_chs num_features bottle_ratio group_size attn_kwargs
  drop_rate pos_drop_rate patch_drop_rate proj_drop_rate attn_drop_rate drop_path_rate weight_init fix_init nlhb
  dynamic_img_size dynamic_img_pad strict_img_size zero_init_last zero_init_fc device dtype
""")
_READ = ("num_heads", "act_layer", "global_pool", "alpha")
_EQUAL = {
  "norm_layer": (None, "", "layernorm"),
  "embed_norm_layer": (None, ""),
  "block_fn": (None, ""),
  "attn_layer": (None, "", "se"),
  "mlp_layer": (None, ""),
  "embed_layer": (None, ""),
  "pool_include_prefix": (False, None),
  "output_stride": (32,),
  "stem_type": ("fixed", "deep_quad"),
  "preact": (True,),
  "basic": (False,),
  "avg_down": (False,),
  "attn_gain": (2.0,),
  "ch_div": (8,),
  "reg": (False,),
  "extra_conv": (True,),
  "gamma_in_act": (False,),
  "same_padding": (True,),
  "std_conv_eps": (1e-5,),
  "skipinit": (True,),
}


def facts(config: Mapping[str, Any], family: str) -> dict[str, Any]:
  """Returns what a configuration says of its model that the weights do not tell.

  Args:
    config: the contents of the file, or `{}`.
    family: "vit", "mixer", "resnet" or "nfnet".

  Returns:
    `num_heads`, `gelu`, `act_layer`, `pool`, `alpha`, as far as they are known, and `image_sizes`.

  Raises:
    UserError: the architecture or an argument is not one that our model computes.
  """
  architecture, arguments = config.get("architecture"), config.get("model_args") or {}
  found = {} if architecture is None else _of_architecture(architecture, family)
  for key, value in arguments.items():
    if key in _EQUAL and value not in _EQUAL[key]:
      raise UserError(f"config.json: model_args.{key} is {value!r}, which our {family} does not compute")
    if key not in _TOLD and key not in _READ and key not in _EQUAL:
      config_keys.refuse_unknown(f"model_args.{key}", value)
  of_weights = config.get("pretrained_cfg") or {}
  pool = arguments.get("global_pool", of_weights.get("global_pool", found.get("pool")))
  found |= {key: arguments[key] for key in ("num_heads", "act_layer", "alpha") if arguments.get(key) is not None}
  input_size = of_weights.get("input_size") or (None, None, None)
  return found | {"pool": pool, "image_sizes": config_keys.image_sizes(arguments.get("img_size"), input_size[1:])}


def _of_architecture(name: str, family: str) -> dict[str, Any]:
  table = _architectures()
  name = str(name).partition(".")[0]  # A tag of weights may follow.
  if reason := table["refused"].get(name):
    raise UserError(f"config.json: timm's {name} has {reason}, which our {family} does not compute")
  if name not in table["read"][family]:
    raise UserError(
      f"config.json: {name!r} is no {family} of timm {table['timm']} whose weights are read; if it computes as one "
      "does, take the architecture out of the file"
    )
  return dict(table["read"][family][name])


@functools.cache
def _architectures() -> dict[str, Any]:
  """Returns timm.json by names: `{"timm": version, "read": {family: {name: facts}}, "refused": {name: reason}}`."""
  held = json.loads(data_files.find("core/models/foreign/timm.json").read_text())
  by_name = {
    family: {name: group["facts"] for group in groups for name in group["names"]}
    for family, groups in held["read"].items()
  }
  refused = {name: reason for reason, names in held["refused"].items() for name in names}
  return {"timm": held["timm"], "read": by_name, "refused": refused}


def make(
  architecture: str, model: Any, image_size: tuple[int, int], *, features: int, first: str, head: str, **model_args: Any
) -> dict[str, Any]:
  """Returns the contents of the file for one of our models, whose images have values in [-1, 1].

  Args:
    architecture: a name that timm registers.
    model: of which `num_classes` is read.
    image_size: (height, width) in pixels.
    features: width of what the head reads.
    first, head: timm's names of the first layer and of the head.
    model_args: arguments that make the architecture this model.
  """
  num_classes = model.num_classes or 0
  pretrained_cfg = {
    "num_classes": num_classes,
    "input_size": [3, *image_size],
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "first_conv": first,
    "classifier": head,
  }
  return {
    "architecture": architecture,
    "num_classes": num_classes,
    "num_features": features,
    "model_args": {"num_classes": num_classes, **model_args},
    "pretrained_cfg": pretrained_cfg,
  }
