"""What a pp string says of the tokens it makes, so that a task can hold them against the weights before it runs."""

from core.pp import builder, tokenizers

# The argument that names the tokenizer, by op.
_TOKENIZER = {"tokenize": "model", "bert_tokenize": "vocab_path"}


def vocab_sizes(pp_string: str, where: str | None = None) -> dict[str, int]:
  """Returns the size of the vocabulary of each key that `pp_string` puts tokens under: its ids are below that.

  `{"labels": 32000}` for `...|tokenize(64, model="c4_en", inkey="text")|keep("image", "labels")`; empty for a string
  that makes no tokens, such as CLIPPO's, whose text is an image.

  Args:
    pp_string: the ops.
    where: its path in the config, for messages.

  Raises:
    UserError: a string that cannot be read, or a tokenizer that cannot be opened.
  """
  sizes = {}
  for step in builder.steps(pp_string, where):
    if step.name in _TOKENIZER:
      # `bert_tokenize` takes its two arguments in either order.
      named = (step.arguments[_TOKENIZER[step.name]], step.arguments["max_len"])
      spec = next(value for value in named if isinstance(value, str))
      written = [step.arguments[key] for key in ("outkey", "key") if key in step.given and step.arguments[key]]
      sizes[next(iter(written), "labels")] = tokenizers.vocab_size(spec)
  return sizes
