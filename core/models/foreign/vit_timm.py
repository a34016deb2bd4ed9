"""ViTs of timm's VisionTransformer, and of the repositories whose names are nearly the same.

DeiT (Touvron et al. 2021), DeiT III (2022), DINO (Caron et al. 2021), DINOv2 (Oquab et al. 2023, Darcet et al. 2024 for
registers), MoCo v3 (Chen et al. 2021): what they name differently is looked up in the state dict. Head sizes that only
their own code knows: MoCo v3's ViT-S has 12 heads, DINOv2's ViT-g has 24.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.errors import UserError
from core.models.foreign import timm_config
from core.models.foreign.table import CONV, Arrays, Rule, constant, dropped
from core.models.foreign.transformer import dense, fused_projections, norm, output
from core.models.layers import sincos2d

_BLOCK = "Transformer/encoderblock_{i}"
_POOLS = {"tok": "token", "gap": "avg", "map": "map", "none": ""}
_GELUS = {"gelu_tanh": "tanh", "gelu": "exact"}
# Heads of the pre-training (a DINOv2 mask token, MoCo v3's projector) and what is counted on the side.
_UNUSED = r"mask_token|(dino_|ibot_)?head\.(\d+|mlp|last_layer)\b.*"


def recognizes(state_dict: Arrays) -> bool:
  """Tells whether these are the names of a ViT of timm's or its relatives'."""
  return {"patch_embed.proj.weight", "blocks.0.norm1.weight", "blocks.0.attn.proj.weight"} <= set(state_dict)


def reading(state_dict: Arrays) -> list[Rule]:
  """Returns the rules for a state dict that `recognizes` knows."""

  def there(*names: str) -> str | None:
    return next((name for name in names if name in state_dict), None)

  rules = _rules(
    cls=there("cls_token") is not None,
    registers=there("reg_token", "register_tokens"),
    scale=(there("blocks.0.ls1.gamma", "blocks.0.gamma_1") or "").removeprefix("blocks.0.") or None,
    mlp=("w12", "w3") if there("blocks.0.mlp.w12.weight") else ("fc1", "fc2"),
    qkv_bias=there("blocks.0.attn.qkv.bias") is not None,
    final_norm="fc_norm" if there("fc_norm.weight") else "norm",
    map_head=there("attn_pool.latent") is not None,
  )
  # The tanh layer before the head that timm's first ViTs had.
  rules += dense("pre_logits", "pre_logits.fc", optional=True)
  return [*rules, Rule("pos_embedding", "pos_embed"), *dropped(state_dict, _UNUSED)]


def writing(model: Any, image_size: tuple[int, int]) -> list[Rule]:
  """Returns the rules for a ViT of ours.

  Raises:
    UserError: timm's VisionTransformer cannot compute the same.
  """
  options = model.options
  cannot = [
    f"{option}={getattr(options, option)!r}"
    for option, known in (("pool_type", tuple(_POOLS)), ("rep_size", (False, 0)), ("norm_eps", (1e-6,)))
    if getattr(options, option) not in known
  ]
  if options.pool_type == "none" and (model.num_classes or options.registers):
    cannot.append("pool_type='none' with a head or registers")
  if cannot:
    raise UserError(f"export: timm's VisionTransformer has nothing for {', '.join(cannot)}; try --to=npz or stablehlo")
  rules = _rules(
    cls=options.pool_type == "tok",
    registers="reg_token" if options.registers else None,
    scale=None,
    mlp=("fc1", "fc2"),
    qkv_bias=options.qkv_bias,
    final_norm="fc_norm" if options.fc_norm else "norm",
    map_head=options.pool_type == "map",
  )
  if options.posemb == "sincos2d":
    rows, columns = (size // patch for size, patch in zip(image_size, options.patch_size))
    return [*rules, Rule((), "pos_embed", constant(sincos2d(rows, columns, options.width)))]
  return [*rules, Rule("pos_embedding", "pos_embed")]


def config(model: Any, image_size: tuple[int, int]) -> dict[str, Any]:
  """Returns timm's `config.json` for a ViT of ours: `timm.create_model("local-dir:FOLDER", pretrained=True)`."""
  options = model.options
  mlp_dim = options.mlp_dim or 4 * options.width
  model_args = {
    "img_size": list(image_size),
    "patch_size": list(options.patch_size),
    "embed_dim": options.width,
    "depth": options.depth,
    "num_heads": options.num_heads,
    # timm rounds the product down, and the half keeps it from landing below.
    "mlp_ratio": ((2 * mlp_dim if options.swiglu else mlp_dim) + 0.5) / options.width,
    "qkv_bias": options.qkv_bias,
    "init_values": None,
    "class_token": options.pool_type == "tok",
    "global_pool": _POOLS[options.pool_type],
    "no_embed_class": True,
    "reg_tokens": options.registers,
    "fc_norm": options.fc_norm,
    # SwiGLU's layer can only be had through an architecture that has it; its activation stands in there.
    **({} if options.swiglu else {"act_layer": "gelu_tanh" if options.gelu == "tanh" else "gelu"}),
  }
  architecture = "vit_giant_patch14_reg4_dinov2" if options.swiglu else "vit_base_patch16_224"
  made = timm_config.make(
    architecture, model, image_size, features=options.width, first="patch_embed.proj", head="head", **model_args
  )
  return made | {"global_pool": _POOLS[options.pool_type]}


def options(state_dict: Arrays, config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what can be known of GELU, heads and positions: see `table.Format.options`.

  Raises:
    UserError: timm computes from these weights what our ViT does not.
  """
  facts = timm_config.facts(config, "vit")
  found = {"num_heads": facts["num_heads"]} if "num_heads" in facts else {}
  pool, cls = facts["pool"], "cls_token" in state_dict
  if pool not in (None, *_POOLS.values()):
    raise UserError(f"config.json: global_pool is {pool!r}, which our ViT lacks (it has token, avg and map)")
  if pool == "avg" and cls:
    raise UserError("config.json: global_pool is 'avg' beside a class token: our ViT has none under pool_type='gap'")
  # A register or class token has a position if the patches' are not all; DINOv2's own files, where only the latter has.
  registers = np.shape(state_dict["reg_token"])[1] if "reg_token" in state_dict else 0
  found |= {"first": (0, cls + registers), "image_sizes": facts["image_sizes"]}
  if gated(state_dict):  # SwiGLU has no GELU.
    if facts.get("act_layer", "silu") not in ("silu", "swish"):
      raise UserError(f"config.json: model_args.act_layer is {facts['act_layer']!r}; our gated MLPs compute silu")
    return found
  if (activation := facts.get("act_layer")) is not None:
    if activation not in _GELUS:
      raise UserError(
        f"config.json: model_args.act_layer is {activation!r}, which our ViT lacks (it has {', '.join(_GELUS)})"
      )
    return found | {"gelu": _GELUS[activation]}
  # Those of the MAP head (SigLIP's) compute either.
  gelu = facts.get("gelu", None if "attn_pool.latent" in state_dict else "exact")
  return found | ({"gelu": gelu} if gelu else {})


def gated(state_dict: Arrays) -> bool:
  """Tells whether the MLPs are SwiGLU's: twice as much goes out of the first layer as into the second."""
  if "blocks.0.mlp.w12.weight" in state_dict:
    return True
  first, second = (np.shape(state_dict[f"blocks.0.mlp.{name}.weight"]) for name in ("fc1", "fc2"))
  return first[0] == 2 * second[1]


def _rules(
  *,
  cls: bool,
  registers: str | None,
  scale: str | None,
  mlp: Sequence[str],
  qkv_bias: bool,
  final_norm: str,
  map_head: bool,
) -> list[Rule]:
  """Returns the rules for a ViT of these parts.

  `scale` is the name within a block of the LayerScale behind the attention; that behind the MLP is its `2`.
  """
  scales = [scale and "blocks.{i}." + scale.replace("1", number) for number in "12"]
  attention = f"{_BLOCK}/MultiHeadDotProductAttention_0"
  return [
    Rule("embedding/kernel", "patch_embed.proj.weight", CONV),
    Rule("embedding/bias", "patch_embed.proj.bias"),
    *([Rule("cls", "cls_token")] if cls else []),
    *([Rule("registers", registers)] if registers else []),
    *norm(f"{_BLOCK}/LayerNorm_0", "blocks.{i}.norm1"),
    *fused_projections(attention, "blocks.{i}.attn.qkv.weight", "blocks.{i}.attn.qkv.bias" if qkv_bias else None),
    *output(attention, "blocks.{i}.attn.proj", scale=scales[0]),
    *norm(f"{_BLOCK}/LayerNorm_1", "blocks.{i}.norm2"),
    *dense(f"{_BLOCK}/MlpBlock_0/Dense_0", f"blocks.{{i}}.mlp.{mlp[0]}"),
    *dense(f"{_BLOCK}/MlpBlock_0/Dense_1", f"blocks.{{i}}.mlp.{mlp[1]}", scale=scales[1]),
    *norm("fc_norm" if final_norm == "fc_norm" else "Transformer/encoder_norm", final_norm),
    *(_map_head() if map_head else []),
    *dense("head", "head", optional=True),
  ]


def _map_head() -> list[Rule]:
  attention = "MAPHead_0/MultiHeadDotProductAttention_0"
  return [
    Rule("MAPHead_0/probe", "attn_pool.latent"),
    *fused_projections(attention, "attn_pool.q.weight", "attn_pool.q.bias", ("query",)),
    *fused_projections(attention, "attn_pool.kv.weight", "attn_pool.kv.bias", ("key", "value")),
    *output(attention, "attn_pool.proj"),
    *norm("MAPHead_0/LayerNorm_0", "attn_pool.norm"),
    *dense("MAPHead_0/MlpBlock_0/Dense_0", "attn_pool.mlp.fc1"),
    *dense("MAPHead_0/MlpBlock_0/Dense_1", "attn_pool.mlp.fc2"),
  ]
