"""ViTs of transformers: ViTModel, ViTForImageClassification, Dinov2Model (WithRegisters) and SigLIP's image tower.

Read are the names that `save_pretrained` writes, in all versions, and for ViT also those of a running model of version
5. Written is what computes the same: a ViT with a class token as ViT, or as DINOv2 where it has registers or SwiGLU and
no head; one with a MAP head and no classifier as SiglipVisionModel; a mean and a classifier as its classifying form.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.errors import UserError
from core.models.foreign import config_keys
from core.models.foreign.table import CONV, Arrays, Layout, Rule, constant, dropped
from core.models.foreign.transformer import dense, fused_projections, norm, output, projections
from core.models.layers import sincos2d

_BLOCK = "Transformer/encoderblock_{i}"
_ATTENTION = f"{_BLOCK}/MultiHeadDotProductAttention_0"
_GELUS = {"gelu": "exact", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh", "gelu_fast": "tanh"}

# What the weights tell or `options` compares; what our ViT has of what they do not; and whose names are these.
_READ = config_keys.words("""
  hidden_size num_hidden_layers num_attention_heads intermediate_size mlp_ratio hidden_act layer_norm_eps image_size
  patch_size num_channels qkv_bias pooler_output_size num_register_tokens use_swiglu_ffn layerscale_value use_mask_token
  vision_use_head out_features out_indices stage_names apply_layernorm reshape_hidden_states
""")
_EQUAL = {"pooler_act": ("tanh", None)}
_MODEL_TYPES = {
  "vit": ("vit",),
  "dinov2": ("dinov2", "dinov2_with_registers"),
  "siglip": ("siglip", "siglip_vision_model"),
}

# Names within a block of ViT: as saved, and as in a running model of version 5.
_SAVED = {
  "block": "encoder.layer.{i}",
  "projections": tuple(f"attention.attention.{name}" for name in ("query", "key", "value")),
  "output": "attention.output.dense",
  "mlp": ("intermediate.dense", "output.dense"),
}
_RUNNING = {
  "block": "layers.{i}",
  "projections": tuple(f"attention.{name}_proj" for name in "qkv"),
  "output": "attention.o_proj",
  "mlp": ("mlp.fc1", "mlp.fc2"),
}

# Their position of the class token is added to the class token when the weights are loaded (`core.models.vit.load`).
_WITH_CLASS_POSITION = Layout(
  lambda positions: positions, lambda positions: np.concatenate([np.zeros_like(positions[:, :1]), positions], axis=1)
)
_PATCHES = "patch_embeddings.projection.weight"
_WITHOUT_BATCH_AXIS = Layout(lambda positions: positions[None], lambda positions: positions[0])


def kind_of(state_dict: Arrays) -> str | None:
  """Returns which of "vit", "dinov2", "siglip" the names are of, or None."""
  names = {name.removeprefix(prefix) for name in state_dict for prefix in _prefixes(name)}
  for kind, known in (
    ("siglip", "embeddings.position_embedding.weight"),
    ("dinov2", "encoder.layer.0.layer_scale1.lambda1"),
    ("vit", "embeddings.position_embeddings"),
  ):
    if known in names:
      return kind
  return None


def recognizes(state_dict: Arrays) -> bool:
  """Tells whether these are the names of a ViT of transformers."""
  return kind_of(state_dict) is not None


def reading(state_dict: Arrays) -> list[Rule]:
  """Returns the rules for a state dict that `recognizes` knows."""
  prefix = next((prefix for name in state_dict for prefix in _prefixes(name) if prefix), "")

  def there(name: str) -> bool:
    return f"{prefix}{name}" in state_dict

  kind = kind_of(state_dict)
  patches = f"{prefix}embeddings." + ("patch_embedding.weight" if kind == "siglip" else _PATCHES)
  if np.ndim(state_dict.get(patches, np.zeros((1, 1, 1, 1)))) != 4:
    of_what = {2: "NaFlex: patches of any grid (Siglip2)", 5: "videos (Vivit)"}
    ndim = np.ndim(state_dict[patches])
    raise UserError(
      f"{patches}: {list(np.shape(state_dict[patches]))}, as of {of_what.get(ndim, 'another model')}; "
      "our ViT reads whole images"
    )
  if kind == "siglip":
    # SiglipForImageClassification has a MAP head in its file, and classifies the mean of the patches.
    classifies = "classifier.weight" in state_dict
    rules = _siglip(prefix, map_head=there("head.probe") and not classifies, learned=True)
    unused = re.escape(f"{prefix}head.") + ".*|" if classifies else ""
    return [*rules, *dropped(state_dict, unused + r"text_model\..*|logit_(scale|bias)|.*\.position_ids")]
  if kind == "dinov2":
    rules = _dinov2(
      prefix,
      registers=there("embeddings.register_tokens"),
      swiglu=there("encoder.layer.0.mlp.weights_in.weight"),
      qkv_bias=there("encoder.layer.0.attention.attention.query.bias"),
    )
  else:
    names = _SAVED if there("encoder.layer.0.layernorm_before.weight") else _RUNNING
    query = f"{names['block']}.{names['projections'][0]}".format(i=0)
    rules = _vit(prefix, names, qkv_bias=there(f"{query}.bias"))
  positions = Rule("pos_embedding", f"{prefix}embeddings.position_embeddings")
  return [*rules, positions, *dropped(state_dict, r".*\.mask_token")]


def writing(model: Any, image_size: tuple[int, int]) -> list[Rule]:
  """Returns the rules for a ViT of ours.

  Raises:
    UserError: no model of transformers computes the same.
  """
  options = model.options
  learned = options.posemb == "learn"
  rows, columns = (size // patch for size, patch in zip(image_size, options.patch_size))
  fixed = None if learned else sincos2d(rows, columns, options.width)
  kind = _kind_for(model)
  if kind != "vit" and (image_size[0] != image_size[1] or options.patch_size[0] != options.patch_size[1]):
    raise UserError(f"export: transformers' {kind} models have square images and patches; try --to=timm")
  if kind == "siglip":
    return _siglip("vision_model.", map_head=options.pool_type == "map", learned=learned, fixed=fixed)
  if kind == "dinov2":
    rules = _dinov2("", registers=options.registers > 0, swiglu=options.swiglu, qkv_bias=options.qkv_bias)
    rules.append(Rule((), "embeddings.mask_token", constant(np.zeros((1, options.width), np.float32))))
  else:
    rules = _vit("vit." if model.num_classes else "", _SAVED, qkv_bias=options.qkv_bias)
  name = ("vit." if model.num_classes else "") + "embeddings.position_embeddings"
  if learned:
    return [*rules, Rule("pos_embedding", name, _WITH_CLASS_POSITION)]
  return [*rules, Rule((), name, constant(_WITH_CLASS_POSITION.to_foreign(fixed)))]


def _one_if_square(size: Sequence[int]) -> int | list[int]:
  return size[0] if size[0] == size[1] else list(size)


def config(model: Any, image_size: tuple[int, int]) -> dict[str, Any]:
  """Returns transformers' `config.json` for a ViT of ours, which `from_pretrained(FOLDER)` reads."""
  options = model.options
  kind = _kind_for(model)
  mlp_dim = options.mlp_dim or 4 * options.width
  sizes = {
    "hidden_size": options.width,
    "num_hidden_layers": options.depth,
    "num_attention_heads": options.num_heads,
    "image_size": _one_if_square(image_size),
    "patch_size": _one_if_square(options.patch_size),
    "num_channels": 3,
    "hidden_act": "gelu_pytorch_tanh" if options.gelu == "tanh" else "gelu",
    "layer_norm_eps": options.norm_eps,
    "dtype": "float32",
  }
  labels = {}
  if model.num_classes:
    names = [f"LABEL_{i}" for i in range(model.num_classes)]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
  if kind == "dinov2":
    registers = {"num_register_tokens": options.registers} if options.registers else {}
    return (
      sizes
      | registers
      | {
        "architectures": ["Dinov2WithRegistersModel" if options.registers else "Dinov2Model"],
        "model_type": "dinov2_with_registers" if options.registers else "dinov2",
        "mlp_ratio": _dinov2_mlp_ratio(model),
        "use_swiglu_ffn": options.swiglu,
        "qkv_bias": options.qkv_bias,
      }
    )
  sizes["intermediate_size"] = mlp_dim
  if kind == "vit":
    rep_size = {"pooler_output_size": int(options.rep_size) if options.rep_size is not True else options.width}
    return (
      sizes
      | labels
      | (rep_size if options.rep_size else {})
      | {
        "architectures": ["ViTForImageClassification" if model.num_classes else "ViTModel"],
        "model_type": "vit",
        "qkv_bias": options.qkv_bias,
      }
    )
  if not model.num_classes:
    return sizes | {"architectures": ["SiglipVisionModel"], "model_type": "siglip_vision_model"}
  return labels | {
    "architectures": ["SiglipForImageClassification"],
    "model_type": "siglip",
    "vision_config": sizes | {"model_type": "siglip_vision_model", "vision_use_head": False},
    "dtype": "float32",
  }


def options(state_dict: Arrays, config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns GELU, heads and LayerNorm epsilon, as far as they can be known: see `table.Format.options`."""
  kind = kind_of(state_dict)
  check_towers(config)
  config = config.get("vision_config", config)
  config_keys.check(config, read=_READ, equal=_EQUAL, model_types=_MODEL_TYPES[kind])
  sizes = config_keys.image_sizes(config.get("image_size"))
  found = {"first": (0,) if kind == "siglip" else (1,), "image_sizes": sizes}
  if "num_attention_heads" in config:
    found["num_heads"] = config["num_attention_heads"]
  if "layer_norm_eps" in config:
    found["norm_eps"] = config["layer_norm_eps"]
  gelu = config.get("hidden_act", "gelu_pytorch_tanh" if kind == "siglip" else "gelu")
  if gelu not in _GELUS:
    raise UserError(
      f"config.json: hidden_act {gelu!r} is an activation that our ViT lacks (it has {', '.join(_GELUS)})"
    )
  gated = any(name.endswith("mlp.weights_in.weight") for name in state_dict)
  return found if gated else found | {"gelu": _GELUS[gelu]}


def check_towers(config: Mapping[str, Any]) -> None:
  """Refuses what the configuration of two towers says beside them.

  Raises:
    UserError: names it.
  """
  if "vision_config" in config or "text_config" in config:
    towers = ("text_config", "vision_config", "projection_dim")
    config_keys.check(config, read=towers, model_types=("siglip",))


def _prefixes(name: str) -> list[str]:
  """Returns what may stand before a name, in models with a head or a second tower."""
  return [
    "",
    *(prefix for prefix in ("vit.", "dinov2.", "dinov2_with_registers.", "vision_model.") if name.startswith(prefix)),
  ]


def _kind_for(model: Any) -> str:
  """Returns what kind of transformers' models computes the same as `model`.

  Raises:
    UserError: none does.
  """
  options = model.options
  plain = not (options.registers or options.swiglu or options.fc_norm)
  bare = not model.num_classes and not options.rep_size
  if options.pool_type == "tok" and plain and not (model.num_classes and options.rep_size):
    return "vit"
  if options.pool_type == "tok" and bare and _dinov2_mlp_ratio(model) is not None:
    return "dinov2"
  pools_as_siglip = bare if options.pool_type == "map" else options.pool_type == "gap" and model.num_classes
  if pools_as_siglip and plain and not options.rep_size and options.qkv_bias:
    return "siglip"
  told = {"pool_type": options.pool_type, "num_classes": model.num_classes}
  told |= {name: getattr(options, name) for name in ("rep_size", "registers", "swiglu", "fc_norm", "qkv_bias")}
  raise UserError(
    "export: transformers has no model that computes the same as ViT with "
    f"{', '.join(f'{option}={value!r}' for option, value in told.items())}; try --to=timm, npz or stablehlo"
  )


def _dinov2_mlp_ratio(model: Any) -> int | None:
  """Returns the whole number by which Dinov2Config gives the size of the MLP, or None if there is none."""
  options = model.options
  mlp_dim = options.mlp_dim or 4 * options.width
  for ratio in range(1, 17):
    hidden = ratio * options.width
    if mlp_dim == ((hidden * 2 // 3 + 7) // 8 * 8 if options.swiglu else hidden):
      return ratio
  return None


def _vit(prefix: str, names: dict[str, Any], *, qkv_bias: bool) -> list[Rule]:
  block = f"{prefix}{names['block']}"
  return [
    *_embeddings(prefix),
    *norm(f"{_BLOCK}/LayerNorm_0", f"{block}.layernorm_before"),
    *projections(_ATTENTION, tuple(f"{block}.{name}" for name in names["projections"]), bias=qkv_bias),
    *output(_ATTENTION, f"{block}.{names['output']}"),
    *norm(f"{_BLOCK}/LayerNorm_1", f"{block}.layernorm_after"),
    *dense(f"{_BLOCK}/MlpBlock_0/Dense_0", f"{block}.{names['mlp'][0]}"),
    *dense(f"{_BLOCK}/MlpBlock_0/Dense_1", f"{block}.{names['mlp'][1]}"),
    *norm("Transformer/encoder_norm", f"{prefix}layernorm"),
    *dense("pre_logits", f"{prefix}pooler.dense", optional=True),
    *dense("head", "classifier", optional=True),
  ]


def _dinov2(prefix: str, *, registers: bool, swiglu: bool, qkv_bias: bool) -> list[Rule]:
  block = f"{prefix}encoder.layer.{{i}}"
  mlp = ("weights_in", "weights_out") if swiglu else ("fc1", "fc2")
  return [
    *_embeddings(prefix),
    *([Rule("registers", f"{prefix}embeddings.register_tokens")] if registers else []),
    *norm(f"{_BLOCK}/LayerNorm_0", f"{block}.norm1"),
    *projections(_ATTENTION, tuple(f"{block}.{name}" for name in _SAVED["projections"]), bias=qkv_bias),
    *output(_ATTENTION, f"{block}.attention.output.dense", scale=f"{block}.layer_scale1.lambda1"),
    *norm(f"{_BLOCK}/LayerNorm_1", f"{block}.norm2"),
    *dense(f"{_BLOCK}/MlpBlock_0/Dense_0", f"{block}.mlp.{mlp[0]}"),
    *dense(f"{_BLOCK}/MlpBlock_0/Dense_1", f"{block}.mlp.{mlp[1]}", scale=f"{block}.layer_scale2.lambda1"),
    *norm("Transformer/encoder_norm", f"{prefix}layernorm"),
  ]


def _embeddings(prefix: str) -> list[Rule]:
  return [
    Rule("embedding/kernel", f"{prefix}embeddings.{_PATCHES}", CONV),
    Rule("embedding/bias", f"{prefix}embeddings.patch_embeddings.projection.bias"),
    Rule("cls", f"{prefix}embeddings.cls_token"),
  ]


def _siglip(prefix: str, *, map_head: bool, learned: bool, fixed: np.ndarray | None = None) -> list[Rule]:
  block = f"{prefix}encoder.layers.{{i}}"
  positions = f"{prefix}embeddings.position_embedding.weight"
  return [
    Rule("embedding/kernel", f"{prefix}embeddings.patch_embedding.weight", CONV),
    Rule("embedding/bias", f"{prefix}embeddings.patch_embedding.bias"),
    Rule("pos_embedding", positions, _WITHOUT_BATCH_AXIS) if learned else Rule((), positions, constant(fixed[0])),
    *norm(f"{_BLOCK}/LayerNorm_0", f"{block}.layer_norm1"),
    *projections(_ATTENTION, tuple(f"{block}.self_attn.{name}_proj" for name in "qkv")),
    *output(_ATTENTION, f"{block}.self_attn.out_proj"),
    *norm(f"{_BLOCK}/LayerNorm_1", f"{block}.layer_norm2"),
    *dense(f"{_BLOCK}/MlpBlock_0/Dense_0", f"{block}.mlp.fc1"),
    *dense(f"{_BLOCK}/MlpBlock_0/Dense_1", f"{block}.mlp.fc2"),
    *norm("Transformer/encoder_norm", f"{prefix}post_layernorm"),
    *(_siglip_head(prefix) if map_head else []),
    *dense("head", "classifier", optional=True),
  ]


def _siglip_head(prefix: str) -> list[Rule]:
  ours, theirs = "MAPHead_0", f"{prefix}head"
  attention = f"{ours}/MultiHeadDotProductAttention_0"
  return [
    Rule(f"{ours}/probe", f"{theirs}.probe"),
    *fused_projections(attention, f"{theirs}.attention.in_proj_weight", f"{theirs}.attention.in_proj_bias"),
    *output(attention, f"{theirs}.attention.out_proj"),
    *norm(f"{ours}/LayerNorm_0", f"{theirs}.layernorm"),
    *dense(f"{ours}/MlpBlock_0/Dense_0", f"{theirs}.mlp.fc1"),
    *dense(f"{ours}/MlpBlock_0/Dense_1", f"{theirs}.mlp.fc2"),
  ]
