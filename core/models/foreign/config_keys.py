"""What `config.json` of other libraries may say: each key is read, or without effect, or refused by name.

A file's names and shapes do not tell all that its model computes. What they do not tell stands in `config.json`, and a
key that nobody here knows may be such a thing.
"""

from collections.abc import Collection, Mapping
from typing import Any

from core.errors import UserError


def words(text: str) -> frozenset[str]:
  """Returns the words of a text."""
  return frozenset(text.split())


# Of every configuration of transformers, through its versions: names, training, and the generation of text.
_WITHOUT_EFFECT = words("""
  architectures attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id cls_token_id
  cross_attention_hidden_size chunk_size_feed_forward decoder_start_token_id directionality diversity_penalty
  do_sample dtype early_stopping encoder_no_repeat_ngram_size encoder_stride eos_token_id
  exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing
  id2label initializer_factor initializer_range label2id length_penalty max_length min_length model_type
  no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences output_attentions
  output_hidden_states output_scores prefix problem_type remove_invalid_values repetition_penalty return_dict
  return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
  tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript transformers_version
  typical_p use_bfloat16 use_cache attention_dropout attention_probs_dropout_prob classifier_dropout drop_path_rate
  hidden_dropout_prob
""")


def check(
  config: Mapping[str, Any],
  *,
  read: Collection[str] = (),
  equal: Mapping[str, tuple[Any, ...]] | None = None,
  model_types: Collection[str] = (),
) -> None:
  """Refuses what a configuration of transformers says that our model does not compute.

  Args:
    config: of one model or tower.
    read: keys that the caller compares itself, or that the shapes of the weights tell.
    equal: by key the values that our model computes.
    model_types: those that it computes; none for any.

  Raises:
    UserError: names the key, its value, and what would be right.
  """
  kind = config.get("model_type")
  if model_types and kind is not None and kind not in model_types:
    raise UserError(
      f"config.json: model_type is {kind!r}, which computes otherwise than {' or '.join(map(repr, model_types))}"
    )
  for key, value in config.items():
    if equal and key in equal:
      if value not in equal[key]:
        known = " or ".join(repr(each) for each in equal[key] if each is not None)
        raise UserError(f"config.json: {key} is {value!r}, which our model does not compute (it does {known})")
    elif key not in read and key not in _WITHOUT_EFFECT and not key.startswith("_"):
      refuse_unknown(key, value)


def refuse_unknown(key: str, value: Any) -> None:
  """Refuses a key that is not known, unless its value turns off whatever it is.

  Raises:
    UserError: names it.
  """
  if value not in (None, False, "", 0) and value != [] and value != {}:
    raise UserError(
      f"config.json: {key}={value!r} is not known here and may change what the model computes; "
      "if it does not, take it out of the file"
    )


def image_sizes(*sizes: Any) -> list[tuple[int, int]]:
  """Returns those of the sizes that are one, a number of pixels or (height, width), as pairs."""
  pairs = [(size, size) if isinstance(size, int) else size for size in sizes]
  return [tuple(pair) for pair in pairs if isinstance(pair, list | tuple) and [*map(type, pair)] == [int, int]]
