"""Preprocessing strings of big_vision as they are written here: the same language, without its empty ops."""

from collections.abc import Mapping
from typing import Any

from core.errors import UserError, nearest
from core.pp import arguments, builder, registry  # noqa: F401 (the builder imports the ops, which register themselves)
from core.recipe import pp_string as grammar
from tools.port_config.rule import Unportable

# What takes a text: there the empty one is a text like others.
_OF_TEXT = ("tokenize", "bert_tokenize", "render_unifont")


def translated(text: str, port: Any) -> str:
  """Returns a pp string in our spelling.

  Raises:
    Unportable: it cannot be read, or has an op or an argument that there is none of here.
  """
  calls = _calls(text, port)
  for call in calls:
    _check(call)
  return "|".join(map(_spelled, calls))


def decoded(text: str, port: Any) -> str:
  """Returns the pp string of an evaluator that big_vision hands images which TFDS has decoded."""
  written = translated(text, port)
  return written if written.startswith("decode") else "|".join(filter(None, ("decode", written)))


def _calls(text: str, port: Any) -> list[grammar.Call]:
  try:
    calls = grammar.read(text)
  except ValueError as error:
    raise Unportable(str(error)) from None
  if calls and grammar.without_empty_ops(text) != text:
    port.tell_op("||")
  return [_as_here(call, port) for call in calls]


def _as_here(call: grammar.Call, port: Any) -> grammar.Call:
  """Returns an op with the arguments that make it what it is there."""
  keyless = call.name == "onehot" and len(call.args) == 1 and not {"key", "key_result"} & set(call.kwargs)
  if keyless and _is_of_imagenet21k(port):
    port.tell_op("onehot of imagenet21k")
    return call._replace(kwargs={**call.kwargs, "key": "label", "key_result": "labels"})
  return call._replace(kwargs={**call.kwargs, "empty": "keep"}) if call.name in _OF_TEXT else call


def _is_of_imagenet21k(port: Any) -> bool:
  """Tells whether the pp string that is being ported reads ImageNet-21k, of which our builder has `label`."""
  node: Any = port.config
  for key in port.path[:-1]:
    node = node[key]
  return isinstance(node.get("data"), Mapping) and node["data"].get("name") == "imagenet21k"


def _check(call: grammar.Call) -> None:
  """Refuses an op or an argument that there is none of; files that arguments name need not be there."""
  if call.name not in registry.OPS:
    raise Unportable(f"there is no pp op {call.name!r} here{nearest(call.name, registry.OPS)}")
  op = registry.OPS[call.name]
  try:
    arguments.bind(op.signature, op.annotations, call.args, call.kwargs, f"pp op {op.name}")
  except UserError as error:
    raise Unportable(str(error)) from None


def _spelled(call: grammar.Call) -> str:
  values = [*map(repr, call.args), *(f"{name}={value!r}" for name, value in call.kwargs.items())]
  return f"{call.name}({', '.join(values)})" if values else call.name
