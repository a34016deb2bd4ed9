"""SigLIP in the form of transformers (SiglipModel; SigLIP 2 of fixed resolution has the same): two towers, or one.

The image tower alone is ViT's (`vit_hf`). Both libraries store the logarithm of the temperature.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.errors import UserError
from core.models.foreign import config_keys, vit_hf
from core.models.foreign.table import Arrays, Format, Layout, Rule, constant, dropped
from core.models.foreign.transformer import dense, norm, output, projections
from core.models.layers import sincos1d
from core.recipe.models.text_transformer import TextTransformer
from core.recipe.models.vit import ViT

_GELUS = {"gelu": "exact", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh", "gelu_fast": "tanh"}
_TEXT, _IMAGE = "text_model.", "vision_model."
_BLOCK = "Encoder_0/encoderblock_{j}"  # Not {i}: the towers' depths may differ.
_TEXT_READ = config_keys.words("""
  vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads max_position_embeddings hidden_act
  layer_norm_eps projection_size pad_token_id
""")
_WITHOUT_BATCH_AXIS = Layout(lambda positions: positions[None], lambda positions: positions[0])
_USUAL_LENGTH = 64  # Tokens of a text, where neither the model nor its config tells.


def _recognizes(state_dict: Arrays) -> bool:
  """Tells whether both towers and the temperature are there."""
  return "logit_scale" in state_dict and _recognizes_text(state_dict)


def _recognizes_text(state_dict: Arrays) -> bool:
  names = ("embeddings.token_embedding.weight", "final_layer_norm.weight", "head.weight")
  return any(all(f"{prefix}{name}" in state_dict for name in names) for prefix in ("", _TEXT))


def _text(prefix: str, positions: Rule, *, in_two_towers: str = "") -> list[Rule]:
  """Returns the rules for the text tower; `in_two_towers` stands before our names there."""
  block = f"{prefix}encoder.layers.{{j}}"

  def ours(name: str) -> str:
    return f"{in_two_towers}{name}"

  attention = ours(f"{_BLOCK}/MultiHeadDotProductAttention_0")
  return [
    Rule(ours("Embed_0/embedding"), f"{prefix}embeddings.token_embedding.weight"),
    positions,
    *norm(ours(f"{_BLOCK}/LayerNorm_0"), f"{block}.layer_norm1"),
    *projections(attention, tuple(f"{block}.self_attn.{name}_proj" for name in "qkv")),
    *output(attention, f"{block}.self_attn.out_proj"),
    *norm(ours(f"{_BLOCK}/LayerNorm_1"), f"{block}.layer_norm2"),
    *dense(ours(f"{_BLOCK}/MlpBlock_0/Dense_0"), f"{block}.mlp.fc1"),
    *dense(ours(f"{_BLOCK}/MlpBlock_0/Dense_1"), f"{block}.mlp.fc2"),
    *norm(ours("Encoder_0/encoder_norm"), f"{prefix}final_layer_norm"),
    *dense(ours("head"), f"{prefix}head"),
  ]


def _learned_positions(prefix: str, in_two_towers: str = "") -> Rule:
  ours = f"{in_two_towers}pos_embedding"
  return Rule(ours, f"{prefix}embeddings.position_embedding.weight", _WITHOUT_BATCH_AXIS)


def _reading_text(state_dict: Arrays) -> Sequence[Rule]:
  prefix = _TEXT if any(name.startswith(_TEXT) for name in state_dict) else ""
  surplus = dropped(state_dict, r"vision_model\..*|logit_(scale|bias)|.*\.position_ids")
  return [*_text(prefix, _learned_positions(prefix)), *surplus]


def _writing_text(model: Any, image_size: tuple[int, int]) -> Sequence[Rule]:
  del image_size
  return _text(_TEXT, _text_positions(model))


def _text_positions(model: Any, in_two_towers: str = "") -> Rule:
  """Returns the rule for positions of a text tower that can be written.

  Raises:
    UserError: transformers has no text tower that computes the same.
  """
  options = model.options
  plain = options.pool_type == "last" and model.num_classes and options.head_bias
  if not plain:
    told = f"pool_type={options.pool_type!r}, num_classes={model.num_classes!r}, head_bias={options.head_bias!r}"
    raise UserError(
      f"export: transformers' SiglipTextModel pools the last token and has a head with a bias; not {told}"
    )
  if options.posemb == "learn":
    return _learned_positions(_TEXT, in_two_towers)
  return Rule((), f"{_TEXT}embeddings.position_embedding.weight", constant(sincos1d(_length(model), options.width)[0]))


def _length(model: Any) -> int:
  return model.options.max_len or _USUAL_LENGTH


def _text_config(model: Any) -> dict[str, Any]:
  options = model.options
  return {
    "model_type": "siglip_text_model",
    "vocab_size": options.vocab_size,
    "hidden_size": options.width,
    "intermediate_size": options.mlp_dim or 4 * options.width,
    "num_hidden_layers": options.depth,
    "num_attention_heads": options.num_heads,
    "max_position_embeddings": _length(model),
    "hidden_act": "gelu_pytorch_tanh" if options.gelu == "tanh" else "gelu",
    "layer_norm_eps": options.norm_eps,
    "projection_size": model.num_classes,
  }


def _config_text(model: Any, image_size: tuple[int, int]) -> dict[str, Any]:
  del image_size
  return _text_config(model) | {"architectures": ["SiglipTextModel"], "dtype": "float32"}


def _options_text(state_dict: Arrays, config: Mapping[str, Any]) -> dict[str, Any]:
  del state_dict
  vit_hf.check_towers(config)
  config = config.get("text_config", config)
  config_keys.check(config, read=_TEXT_READ, model_types=("siglip", "siglip_text_model"))
  gelu = config.get("hidden_act", "gelu_pytorch_tanh")
  if gelu not in _GELUS:
    raise UserError(f"config.json: hidden_act {gelu!r} is an activation that our text transformer lacks")
  known = {"num_attention_heads": "num_heads", "layer_norm_eps": "norm_eps"}
  return {ours: config[theirs] for theirs, ours in known.items() if theirs in config} | {"gelu": _GELUS[gelu]}


# Two towers.


def _both(text: Sequence[Rule], image: Sequence[Rule]) -> list[Rule]:
  """Returns the rules for two towers; `image` are those for a ViT alone."""
  return [
    *(_inside("img", rule) for rule in image),
    *text,
    Rule("t", "logit_scale"),
    Rule("b", "logit_bias", optional=True),
  ]


def _inside(tower: str, rule: Rule) -> Rule:
  ours = tuple(f"{tower}/{name}" for name in rule.names("ours"))
  return Rule(ours, rule.theirs, rule.layout, rule.optional)


def _reading(state_dict: Arrays) -> Sequence[Rule]:
  vision = {name: array for name, array in state_dict.items() if name.startswith(_IMAGE)}
  text = _text(_TEXT, _learned_positions(_TEXT, "txt/"), in_two_towers="txt/")
  return [*_both(text, vit_hf.reading(vision)), *dropped(state_dict, r"text_model\..*\.position_ids")]


def _writing(model: Any, image_size: tuple[int, int]) -> Sequence[Rule]:
  image = _image_tower(model)
  text = _text(_TEXT, _text_positions(model.txt, "txt/"), in_two_towers="txt/")
  # A model without a bias computes what one with a bias of 0 does.
  bias = [] if model.options.bias_init is not None else [Rule((), "logit_bias", constant(np.zeros(1, np.float32)))]
  return [*_both(text, vit_hf.writing(image, image_size)), *bias]


def _config(model: Any, image_size: tuple[int, int]) -> dict[str, Any]:
  vision = vit_hf.config(_image_tower(model), image_size)
  return {
    "architectures": ["SiglipModel"],
    "model_type": "siglip",
    "text_config": _text_config(model.txt),
    "vision_config": {name: value for name, value in vision.items() if name not in ("architectures", "dtype")},
    "dtype": "float32",
  }


def _image_tower(model: Any) -> Any:
  """Returns the image tower, if transformers' SiglipModel has its like.

  Raises:
    UserError: it does not.
  """
  image, text = model.img, model.txt
  if not (isinstance(image.options, ViT) and isinstance(text.options, TextTransformer)):
    raise UserError("export: transformers' SiglipModel is a ViT and a text_transformer; these are other towers")
  if image.options.pool_type != "map" or image.num_classes:
    raise UserError(
      "export: the image tower of transformers' SiglipModel has pool_type='map' and no head (out_dim=(None, WIDTH)); "
      f"not pool_type={image.options.pool_type!r} and a head of {image.num_classes or 0}"
    )
  if text.num_classes != image.options.width:
    raise UserError(
      f"export: embeddings of {image.options.width} numbers of images and {text.num_classes} of texts (out_dim)"
    )
  return image


TEXT_FORMATS = {"hf": Format(_recognizes_text, _reading_text, _writing_text, _config_text, _options_text)}
FORMATS = {"hf": Format(_recognizes, _reading, _writing, _config)}
