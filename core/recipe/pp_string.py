"""The grammar of pp strings: `decode|resize(224)|flip_lr|value_range(-1,1)|keep("image","labels")`.

A pp string is a chain of ops joined by `|`, each a name with or without arguments, which are Python literals. White
space and line ends between them mean nothing. Nothing between two `|`, or beside one at an end, is no op: configs put
strings together, `f"decode|{augment}|resize(224)"` with an `augment` that may be empty. What the ops are is the matter
of `core.pp`.
"""

import ast
import io
import tokenize
from typing import Annotated, Any, NamedTuple

from core.recipe import words
from core.recipe.types import Check

_LONGEST = 10_000  # Characters. Python's parser takes deep nesting badly, and all nesting costs characters.
_READABLE = "ops are joined by |, as in decode|resize(224)"
_OPENING, _CLOSING = "([{", ")]}"


class Call(NamedTuple):
  """An op as it is written: its name and its arguments, literals."""

  name: str
  args: tuple[Any, ...]
  kwargs: dict[str, Any]


def read(pp_string: str) -> list[Call]:
  """Returns the calls that a pp string spells.

  Raises:
    ValueError: it is no chain of calls, or an argument is no literal. One line, which begins with "pp op NAME:" where
      the op is known and with "pp string" where it is not.
  """
  if not isinstance(pp_string, str):
    raise ValueError(f"pp string must be text, got {words.shown(pp_string)}")
  if len(pp_string) > _LONGEST:
    raise ValueError(f"pp string has {len(pp_string)} characters; {_LONGEST} is the most")
  try:
    chain = without_empty_ops(pp_string)
    return [_call(node) for node in _chain(ast.parse(f"({chain}\n)", mode="eval").body)] if chain.strip() else []
  except (SyntaxError, UnicodeError, RecursionError, MemoryError, tokenize.TokenError):
    raise ValueError(f"pp string cannot be read ({_READABLE}): {words.shown(pp_string)}") from None


def without_empty_ops(pp_string: str) -> str:
  """Returns the string with a space in the place of every `|` that joins nothing.

  Raises:
    ValueError: what Python's parser takes in silence: a comment, which hides what follows; brackets that open later.
    SyntaxError, tokenize.TokenError: it has no tokens of Python.
  """
  text = f"({pp_string}\n)"
  lines = [list(line) for line in text.split("\n")]
  depth = closed = 0
  bar: Any = (0, 0)  # Where the last bar stands while no op follows it; the bracket around it all is as good as one.
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type == tokenize.COMMENT:
      raise ValueError(f"pp string holds a comment, {words.shown(token.string)}; # ends no line here")
    if token.type == tokenize.OP:
      depth += (token.string in _OPENING) - (token.string in _CLOSING)
      closed += depth == 0 and token.string == ")"
    row, column = token.start[0] - 1, token.start[1]
    ends = depth == 0 and token.string == ")"
    if bar and (ends or (depth == 1 and token.string == "|")):
      place = bar if ends else (row, column)
      if place != (0, 0):
        lines[place[0]][place[1]] = " "
    elif depth == 1 and token.string == "|":
      bar = row, column
    elif token.type != tokenize.NL and (row, column) != (0, 0):
      bar = None
  if closed > 1:  # The bracket that stands around it closes once.
    raise ValueError(f"pp string closes a bracket that it does not open: {words.shown(pp_string)}")
  return "\n".join("".join(line) for line in lines)[1:-2]


def _chain(node: ast.expr) -> list[ast.expr]:
  """Returns the operands of `a|b|c`, Python's `or` of bits, which its parser nests to the left."""
  later = []
  while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
    later.append(node.right)
    node = node.left
  return [node, *reversed(later)]


def _call(node: ast.expr) -> Call:
  call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
  if not isinstance(call.func, ast.Name):
    raise ValueError(f"pp string: {_shown(node)} is not an op; ops read name or name(arguments), joined by |")
  name = call.func.id
  kwargs: dict[str, Any] = {}
  for keyword in call.keywords:
    if keyword.arg is None:
      raise ValueError(f"pp op {name}: ** is not allowed; name the arguments one by one")
    if keyword.arg in kwargs:
      raise ValueError(f"pp op {name}: {keyword.arg} is given twice")
    kwargs[keyword.arg] = _literal(name, keyword.value)
  return Call(name, tuple(_literal(name, arg) for arg in call.args), kwargs)


def _literal(name: str, node: ast.expr) -> Any:
  try:
    return ast.literal_eval(node)
  except (ValueError, TypeError, SyntaxError):
    raise ValueError(
      f"pp op {name}: {_shown(node)} is not a literal (number, string in quotes, tuple, list, ...)"
    ) from None


def _shown(node: ast.expr) -> str:
  """Returns the text of an expression, quoted and cut."""
  try:
    return words.shown(ast.unparse(node))
  except (ValueError, RecursionError):  # f-strings with backslashes, and what is nested deeply.
    return "an expression"


def _check(pp_string: str) -> str:
  read(pp_string)
  return pp_string


# The type of `pp`, `pp_fn`, ... in a config. Which ops there are, and what they take, is known where they are built.
PpString = Annotated[str, Check("ops joined by |", _check)]
