"""A config as a Python file of our form: the table of hyper-parameters, with comments of what was translated."""

import json
import keyword
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tools.port_config.port import Port, counted
from tools.port_config.rule import IDLE, OTHER, REFUSED, RENAMED, Said

_WIDTH = 118
# The paragraphs of a config, as those of this repository have them: what a key begins with.
_PARAGRAPHS = (
  ("seed", "total_", "num_classes", "loss", "init_head_bias"),
  ("input",),
  ("model_name", "model", "student", "teachers", "TEACHER", "distance", "mixup", "flexi"),
  ("optax_name", "optax", "grad_clip_", "lr", "wd", "schedule", "sam"),
  ("mesh", "sharding_"),
  ("evals",),
  ("log_training_", "ckpt_", "keep_ckpt_", "resume"),
)
_NUMBERED = re.compile(r"(.*?)(\d+)")


# What comes first in a dict.
_FIRST = ("type", "source", "name", "split", "data", "decay_type", "variant", "batch_size", "shuffle_buffer_size", "pp")


class Code(str):
  """An expression that stands in the file as it is."""


def python(port: Port, config: Mapping[str, Any], *, title: str, command: str) -> str:
  """Returns the file.

  Args:
    port: what is told of the config.
    config: what `get_config` is to return.
    title: of what it was made, the first line of its docstring.
    command: by which it is run.
  """
  hoisted, config = _hoisted(_ordered(config))
  lines = [_docstring(port, title, command), "", "from core import config as config_lib", "", ""]
  lines += ["def get_config(arg=None):", "  config_lib.parse_arg(arg)", "  config = config_lib.ConfigDict()", ""]
  for keys in _paragraphs(config, port):
    if "evals" in keys:
      lines += [f"  {name} = {_value(text, 2, len(name) + 3)}" for name, text in hoisted.items()]
      lines += _comments(port, "evals")
      lines += ["  config.evals = {}" if not config["evals"] else _evals(config["evals"])]
      keys = [key for key in keys if key != "evals"]
    for key in keys:
      lines += [*_comments(port, key), f"  config.{key} = {_value(config[key], 2, len(key) + 10)}"]
    lines.append("")
  return "\n".join([*lines, "  return config", ""])


def _ordered(value: Any) -> Any:
  """Returns dicts whose most telling keys come first."""
  if not isinstance(value, Mapping):
    return value
  keys = sorted(value, key=lambda key: _FIRST.index(key) if key in _FIRST else len(_FIRST))
  return {key: _ordered(value[key]) for key in keys}


def _docstring(port: Port, title: str, command: str) -> str:
  """Returns the docstring: what the file was made of, how it is run, what was left out of it."""
  idle = [row.there for row, _ in counted(port.said) if row.verdict == IDLE and ": " not in row.there]
  refused = [f"{row.there} ({row.said})" for row in port.said if row.verdict == REFUSED]
  texts = [title, None]
  if idle:
    texts.append(f"Left out, for it has no effect here: {', '.join(dict.fromkeys(idle))}.")
  if refused:
    texts.append(f"Left out, for it could not be ported: {', '.join(dict.fromkeys(refused))}.")
  parts = [f"    {command}" if text is None else textwrap.fill(text, 116, break_long_words=False) for text in texts]
  text = "\n\n".join(parts).replace("\\", "\\\\").replace('"""', "'''")
  return f'"""{text}\n"""'


def _paragraphs(config: Mapping[str, Any], port: Port) -> Iterator[list[str]]:
  left = list(config)
  for begins in _PARAGRAPHS:
    names = [name for each in begins for name in (port.teachers if each == "TEACHER" else (each,))]
    keys = [key for name in names for key in left if key == name or (key.startswith(name) and name[-1:] == "_")
            or key.startswith(f"{name}_")]  # fmt: skip
    keys = list(dict.fromkeys(keys))
    left = [key for key in left if key not in keys]
    if keys:
      yield keys
  if left:
    yield left


def _comments(port: Port, key: str) -> list[str]:
  """Returns the comments above a key: what was translated, and what there means otherwise."""
  rows = [row for row, _ in counted(port.said) if _key_of(row) == key and row.said and row.verdict in (OTHER, RENAMED)]
  texts = dict.fromkeys(
    f"big_vision{' has' if row.there.startswith('no ') else ':'} {row.there}: {row.said}." for row in rows
  )
  return [
    line
    for text in texts
    for line in textwrap.wrap(text, 120, initial_indent="  # ", subsequent_indent="  # ", break_long_words=False)
  ]


def _key_of(row: Said) -> str:
  path = (row.here or row.there).removeprefix("no ")
  path = row.there if " " in path.partition(".")[0] or row.here == "onehot" else path
  return re.split(r"[.: =]", path)[0]


def _hoisted(config: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
  """Returns the long texts that evaluations share under names of their own, and the config that has these names."""
  seen: dict[str, int] = {}
  for entry in config.get("evals", {}).values():
    for value in entry.values():
      if isinstance(value, str) and len(value) > 40:
        seen[value] = seen.get(value, 0) + 1
  shared = [text for text, times in seen.items() if times > 1]
  names = {text: f"pp_{number}" if len(shared) > 1 else "pp" for number, text in enumerate(shared, 1)}
  if "evals" not in config:
    return {}, dict(config)
  evals = {
    name: {
      key: Code(names[value]) if isinstance(value, str) and value in names else value for key, value in entry.items()
    }
    for name, entry in config["evals"].items()
  }
  return {name: text for text, name in names.items()}, {**config, "evals": evals}


def _evals(evals: Mapping[str, Any]) -> str:
  """Returns the statements that fill `config.evals`; evaluations that differ in a number alone are one loop."""
  families: dict[str, list[tuple[str, str]]] = {}
  for name, entry in evals.items():
    stem, number = _numbered(name)
    families.setdefault(f"{stem}|{_template(entry, number)}" if number else name, []).append((name, number))
  single = {members[0][0]: evals[members[0][0]] for members in families.values() if len(members) < 3}
  single |= {name: evals[name] for members in families.values() if len(members) == 2 for name, _ in members}
  lines = [f"  config.evals = {_value({name: evals[name] for name in evals if name in single}, 2, 15)}"]
  loops: dict[tuple[str, ...], list[str]] = {}
  for members in families.values():
    if len(members) > 2:
      loops.setdefault(tuple(number for _, number in members), []).append(members[0][0])
  for numbers, names in loops.items():
    lines.append(f"  for n in ({', '.join(str(int(number)) for number in numbers)}):")
    for name in names:
      stem, number = _numbered(name)
      of_n = _with_n(evals[name], number)
      padded = f":0{len(number)}d" if any(each.startswith("0") for each in numbers) else ""
      target = f'config.evals[f"{stem}{{n{padded}}}"]'
      lines.append(f"    {target} = {_value(of_n, 4, len(target) + 3)}")
  return "\n".join(lines)


def _numbered(name: str) -> tuple[str, str]:
  found = _NUMBERED.fullmatch(name)
  return (found[1], found[2]) if found else (name, "")


def _template(entry: Mapping[str, Any], number: str) -> str:
  return json.dumps(_with_n(entry, number), sort_keys=True, default=str)


def _with_n(entry: Mapping[str, Any], number: str) -> dict[str, Any]:
  """Returns an entry whose prediction has `n` in the place of its number."""

  def replaced(text: Any) -> Any:
    ending = f"_{int(number)}"
    return Code(f'f"{text.removesuffix(ending)}_{{n}}"') if isinstance(text, str) and text.endswith(ending) else text

  pred = entry.get("pred")
  if isinstance(pred, Mapping):
    return {**entry, "pred": {side: replaced(each) for side, each in pred.items()}}
  return {**entry, "pred": replaced(pred)} if pred is not None else dict(entry)


def _value(value: Any, indent: int, column: int) -> str:
  """Returns an expression, over several lines where one is too short.

  Args:
    value: dicts, lists, scalars.
    indent: spaces before the statement, or the entry, that it is in.
    column: how many letters stand before it in its line, besides the indent.
  """
  flat = _flat(value)
  if indent + column + len(flat) <= _WIDTH:
    return flat
  inner = " " * (indent + 2)
  if isinstance(value, Mapping):
    named = _are_names(value)
    opening, closing = ("dict(", ")") if named else ("{", "}")
    items = []
    for key, each in value.items():
      head = f"{key}=" if named else f"{_flat(key)}: "
      items.append(f"{inner}{head}{_value(each, indent + 2, len(head) + 1)},")
    return "\n".join([opening, *items, f"{' ' * indent}{closing}"])
  if isinstance(value, list | tuple):
    opening, closing = "[]" if isinstance(value, list) else "()"
    items = [f"{inner}{_value(each, indent + 2, 1)}," for each in value]
    return "\n".join([opening, *items, f"{' ' * indent}{closing}"])
  if isinstance(value, str) and not isinstance(value, Code):
    return _text_in_lines(value, indent)
  return flat


def _text_in_lines(text: str, indent: int) -> str:
  """Returns a long text in brackets, broken before the bars of a pp string."""
  parts, line = [], ""
  for op in re.split(r"(?=\|)", text):
    for number, piece in enumerate(_short(op, _WIDTH - 8 - indent)):
      is_long = number == 0 and len(piece) < len(op)
      if line and (is_long or indent + len(line) + len(piece) > _WIDTH - 6):
        parts, line = [*parts, line], ""
      line += piece
  lines = [f"{' ' * (indent + 2)}{_flat(part)}" for part in [*parts, line]]
  return "\n".join(["(", *lines, f"{' ' * indent})"])


def _short(op: str, width: int) -> list[str]:
  """Returns an op in pieces, each short enough for a line where it has arguments to be broken between."""
  return [op] if len(op) <= width else re.split(r"(?<=, )", op)


def _flat(value: Any) -> str:
  if isinstance(value, Code):
    return str(value)
  if isinstance(value, str):
    return repr(value) if '"' in value and "'" not in value else json.dumps(value, ensure_ascii=False)
  if isinstance(value, Mapping):
    if _are_names(value):
      return f"dict({', '.join(f'{key}={_flat(each)}' for key, each in value.items())})"
    return f"{{{', '.join(f'{_flat(key)}: {_flat(each)}' for key, each in value.items())}}}"
  if isinstance(value, tuple):
    return f"({', '.join(map(_flat, value))}{',' if len(value) == 1 else ''})"
  if isinstance(value, list):
    return f"[{', '.join(map(_flat, value))}]"
  if isinstance(value, int) and not isinstance(value, bool):
    return f"{value:_}" if abs(value) > 9_999 else str(value)
  return repr(value)


def _are_names(value: Mapping[str, Any]) -> bool:
  return bool(value) and all(
    isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key) for key in value
  )


def table(said: Sequence[Said]) -> str:
  """Returns what became of each key, a paragraph a verdict."""
  lines = []
  for row, times in counted(said):
    often = f" ({times} times)" if times > 1 else ""
    where = f" -> {row.here}" if row.here else ""
    lines.append((row.verdict, f"  {row.there}{where}{often}{f': {row.said}' if row.said else ''}"))
  found = []
  for verdict in dict.fromkeys(verdict for verdict, _ in lines):
    found += [
      verdict,
      *(textwrap.fill(line, 120, subsequent_indent=" " * 6) for each, line in lines if each == verdict),
      "",
    ]
  return "\n".join(found)
