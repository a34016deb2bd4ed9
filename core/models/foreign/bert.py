"""BERT's weights in the form of transformers (BertModel and its kin), and of the original release in TensorFlow."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.errors import UserError, first_few
from core.models.foreign import config_keys, table
from core.models.foreign.table import DENSE, Arrays, Format, Rule, constant, dropped
from core.models.foreign.transformer import dense

_GELUS = {"gelu": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
_PREFIX = "bert."
_ENCODER = "BertEncoder_0"
_BLOCK = f"{_ENCODER}/encoder_block/layer_sequence/layers_{{i}}"

_EMBEDDINGS = {"token": "word_embeddings", "position": "position_embeddings", "segment": "token_type_embeddings"}
# Linear layers and LayerNorms of a block: ours, transformers', and with slashes those of the release.
_LINEAR = {
  "attention_block/attention_layer/query": "attention.self.query",
  "attention_block/attention_layer/key": "attention.self.key",
  "attention_block/attention_layer/value": "attention.self.value",
  "attention_block/dense_layer": "attention.output.dense",
  "mlp_block/mlp/dense_layer": "intermediate.dense",
  "mlp_block/dense_layer": "output.dense",
}
_NORMS = {"attention_block/layer_norm": "attention.output.LayerNorm", "mlp_block/layer_norm": "output.LayerNorm"}
# Of the pre-training's heads, of a classifier, and of the optimizer, none of which the encoder needs.
_SURPLUS_HF = r"(.*\.)?(pooler|cls|classifier|qa_outputs)\..*|.*\.position_ids"
_SURPLUS_RELEASE = (
  r"bert/pooler/.*|cls/.*|global_step|.*/(adam_[mv]|AdamWeightDecayOptimizer(_\d)?)|output_(weights|bias)"
)


# What the weights tell or `_options` compares; and what our BERT has of what they do not.
_READ = config_keys.words("""
  vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act max_position_embeddings
  layer_norm_eps pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type
  classifier_dropout summary_type
""")
_EQUAL = {
  "position_embedding_type": ("absolute", None),
  "is_decoder": (False, None),
  "add_cross_attention": (False, None),
  "pad_token_id": (0, None),
  "type_vocab_size": (2,),
}


def from_release(variables: Arrays, *, source: str) -> dict[str, np.ndarray]:
  """Returns the encoder of the original release, a TensorFlow checkpoint, under our names.

  Args:
    variables: as `core.checkpoint.tf_checkpoint.read` gives them.
    source: begins the line of an error.

  Raises:
    UserError: not the variables of a BERT.
  """
  if "bert/embeddings/word_embeddings" not in variables:
    names = first_few(sorted(variables), rest=" and {} more names")
    raise UserError(f"{source}: not a checkpoint of BERT's release; it holds {names}")
  return table.to_published([*_release(), *dropped(variables, _SURPLUS_RELEASE)], variables, source=source)


def _release() -> list[Rule]:
  path = "bert/encoder/layer_{i}"
  return [
    *(Rule(_embedding(kind), f"bert/embeddings/{name}") for kind, name in _EMBEDDINGS.items()),
    *_release_norm(f"{_ENCODER}/layer_norm", "bert/embeddings/LayerNorm"),
    *(
      r
      for ours, theirs in _LINEAR.items()
      for r in _release_dense(f"{_BLOCK}/{ours}", f"{path}/{theirs.replace('.', '/')}")
    ),
    *(
      r
      for ours, theirs in _NORMS.items()
      for r in _release_norm(f"{_BLOCK}/{ours}", f"{path}/{theirs.replace('.', '/')}")
    ),
  ]


def _release_dense(ours: str, theirs: str) -> list[Rule]:
  return [Rule(f"{ours}/{name}", f"{theirs}/{name}") for name in ("kernel", "bias")]


def _release_norm(ours: str, theirs: str) -> list[Rule]:
  return [Rule(f"{ours}/scale", f"{theirs}/gamma"), Rule(f"{ours}/bias", f"{theirs}/beta")]


def _embedding(kind: str) -> str:
  return f"{_ENCODER}/embedder/embedders_{kind}_ids/embedding"


def _hf(prefix: str, norm: tuple[str, str]) -> list[Rule]:
  """Returns the rules for transformers' names; `norm` is what it calls scale and bias there."""
  path = f"{prefix}encoder.layer.{{i}}"

  def norms(ours: str, theirs: str) -> list[Rule]:
    return [Rule(f"{ours}/{name}", f"{theirs}.{other}") for name, other in zip(("scale", "bias"), norm)]

  return [
    *(Rule(_embedding(kind), f"{prefix}embeddings.{name}.weight") for kind, name in _EMBEDDINGS.items()),
    *norms(f"{_ENCODER}/layer_norm", f"{prefix}embeddings.LayerNorm"),
    *(rule for ours, theirs in _LINEAR.items() for rule in dense(f"{_BLOCK}/{ours}", f"{path}.{theirs}", DENSE)),
    *(rule for ours, theirs in _NORMS.items() for rule in norms(f"{_BLOCK}/{ours}", f"{path}.{theirs}")),
  ]


def _recognizes(state_dict: Arrays) -> bool:
  name = "embeddings.token_type_embeddings.weight"
  return name in state_dict or f"{_PREFIX}{name}" in state_dict


def _reading(state_dict: Arrays) -> Sequence[Rule]:
  prefix = _PREFIX if any(name.startswith(_PREFIX) for name in state_dict) else ""
  # Files from before version 1 of transformers keep TensorFlow's words.
  older = f"{prefix}embeddings.LayerNorm.gamma" in state_dict
  rules = _hf(prefix, ("gamma", "beta") if older else ("weight", "bias"))
  return [*rules, *dropped(state_dict, _SURPLUS_HF)]


def _writing(model: Any, image_size: tuple[int, int]) -> Sequence[Rule]:
  del image_size
  if model.num_classes:
    # What computes from the first token's hidden state is a pooler without its tanh, which transformers lacks.
    raise UserError("model: transformers' BertModel has no linear head on its first token; export with num_classes=0")
  pooler = {"weight": np.eye(model.options.width, dtype=np.float32), "bias": np.zeros(model.options.width, np.float32)}
  rules = _hf("", ("weight", "bias"))
  return [*rules, *(Rule((), f"pooler.dense.{name}", constant(value)) for name, value in pooler.items())]


def _config(model: Any, image_size: tuple[int, int]) -> dict[str, Any]:
  del image_size
  options = model.options
  return {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": options.vocab_size,
    "hidden_size": options.width,
    "num_hidden_layers": options.depth,
    "num_attention_heads": options.num_heads,
    "intermediate_size": options.mlp_dim,
    "hidden_act": "gelu" if options.gelu == "exact" else "gelu_new",
    "max_position_embeddings": options.max_len,
    "type_vocab_size": 2,
    "layer_norm_eps": options.norm_eps,
    "pad_token_id": 0,
    "dtype": "float32",
  }


def _options(state_dict: Arrays, config: Mapping[str, Any]) -> dict[str, Any]:
  del state_dict
  gelu = config.get("hidden_act", "gelu")
  if gelu not in _GELUS:
    raise UserError(
      f"config.json: hidden_act {gelu!r} is an activation that our BERT lacks (it has {', '.join(_GELUS)})"
    )
  for name in () if "model_type" in config else config.get("architectures") or ():
    if not str(name).startswith("Bert"):  # Of a file from before model_type.
      raise UserError(f"config.json: {name!r} in architectures computes otherwise than BERT, whose names it has")
  config_keys.check(config, read=_READ, equal=_EQUAL, model_types=("bert",))
  known = {"num_attention_heads": "num_heads", "layer_norm_eps": "norm_eps"}
  return {ours: config[theirs] for theirs, ours in known.items() if theirs in config} | {"gelu": _GELUS[gelu]}


FORMATS = {"hf": Format(_recognizes, _reading, _writing, _config, _options)}
