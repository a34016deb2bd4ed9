"""What a pp string says of the tokens it makes, so that a task can hold them against the weights before it runs."""

from core.pp import builder, registry, tokenizers

# The argument that names the tokenizer, by op.
_TOKENIZER = {"tokenize": "model", "bert_tokenize": "vocab_path"}


def vocab_sizes(pp_string: str) -> dict[str, int]:
  """The size of the vocabulary of each key that `pp_string` puts tokens under: its ids are below that.

  `{"labels": 32000}` for `...|tokenize(64, model="c4_en", inkey="text")|keep("image", "labels")`; empty for a string
  that makes no tokens, such as CLIPPO's, whose text is an image.

  Raises:
    UserError: a string that cannot be read, or a tokenizer that cannot be opened.
  """
  builder.steps(pp_string)  # Refuses what is wrong with it.
  sizes = {}
  for name, args, kwargs in builder.parse(pp_string):
    if name in _TOKENIZER:
      bound = registry.OPS[name].signature.bind(*args, **kwargs)
      bound.apply_defaults()
      given = bound.arguments
      # `bert_tokenize` takes its two arguments in either order.
      spec = next(value for value in (given[_TOKENIZER[name]], given["max_len"]) if isinstance(value, str))
      sizes[kwargs.get("outkey") or kwargs.get("key") or "labels"] = tokenizers.vocab_size(spec)
  return sizes
