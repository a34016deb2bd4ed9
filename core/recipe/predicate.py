"""The grammar of conditions on examples: `label < 100 and len(image) > 0`.

A condition is a Python expression of the entries of one example, by their names: `label`, or `example["captions/text"]`
where the name is no word; `example["captions"]["text"]` is an entry of an entry, and `bbox[0]` one of a list. It has
comparisons, `in` a list of literals, `and`, `or`, `not`, `+ - * / // %`, and the functions of `FUNCTIONS`. It gives one
truth value. Nothing else can be written, so that a config states the whole of it, and whoever resumes a run asks the
same.
"""

import ast
from typing import Annotated, Any

from core.recipe import words
from core.recipe.types import Check

EXAMPLE = "example"  # The name of the whole example.
# Of an array: how many entries it has, or characters of a text; whether one or all are true; the least, most and sum.
FUNCTIONS = ("len", "any", "all", "min", "max", "sum")

_DEEPEST = 50
_LONGEST = 1_000  # Characters. Python's parser takes deep nesting badly, and all nesting costs characters.
_COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn)
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)
_LITERALS = (bool, int, float, str)


def read(text: str) -> ast.expr:
  """Returns the syntax tree of a condition, in which there is nothing but what the grammar has.

  Raises:
    ValueError: it is none; one line.
  """
  if len(text) > _LONGEST:
    raise ValueError(f"it has {len(text)} characters; {_LONGEST} is the most")
  try:
    tree = ast.parse(text.strip(), mode="eval").body
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    raise ValueError("it is no expression, as label < 100 is") from None
  if _depth(tree) > _DEEPEST:
    raise ValueError("it is nested too deeply")
  _check(tree)
  return tree


def _depth(tree: ast.expr) -> int:
  depth, level = 0, [tree]
  while level:
    depth, level = depth + 1, [child for node in level for child in ast.iter_child_nodes(node)]
  return depth


def entries(text: str) -> frozenset[str]:
  """Returns the names of the entries of an example that a condition asks for."""
  found = set()
  for node in ast.walk(read(text)):
    if isinstance(node, ast.Name) and node.id not in (EXAMPLE, *FUNCTIONS):
      found.add(node.id)
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == EXAMPLE:
      found.add(ast.literal_eval(node.slice))
  return frozenset(found)


def _check(node: ast.expr) -> None:
  match node:
    case ast.BoolOp(values=parts):
      _check_all(parts)
    case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=part):
      _check(part)
    case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _ARITHMETIC):
      _check_all([left, right])
    case ast.Compare(left=left, ops=ops, comparators=parts) if all(isinstance(op, _COMPARISONS) for op in ops):
      _check(left)
      for op, part in zip(ops, parts):
        _check_choices(part) if isinstance(op, ast.In | ast.NotIn) else _check(part)
    case ast.Call(func=ast.Name(id=name), args=[part], keywords=[]) if name in FUNCTIONS:
      _check(part)
    case ast.Subscript(value=part, slice=index):
      _check_index(part, index)
    case ast.Name(id=name):
      if name == EXAMPLE:
        raise ValueError(f"{EXAMPLE} is the whole example; {EXAMPLE}['label'] is an entry")
    case ast.Constant(value=value) if type(value) in _LITERALS:
      pass
    case _:
      raise ValueError(f"it has {words.shown(ast.unparse(node))}, which a condition cannot hold")


def _check_all(nodes: list[ast.expr]) -> None:
  for node in nodes:
    _check(node)


def _check_choices(node: ast.expr) -> None:
  if not isinstance(node, ast.Tuple | ast.List | ast.Set):
    raise ValueError(f"in takes a list of literals, not {words.shown(ast.unparse(node))}")
  for each in node.elts:
    inner = each.operand if isinstance(each, ast.UnaryOp) and isinstance(each.op, ast.USub) else each
    if not isinstance(inner, ast.Constant) or type(inner.value) not in _LITERALS:
      raise ValueError(f"in takes a list of literals, and {words.shown(ast.unparse(each))} is none")


def _check_index(part: ast.expr, index: ast.expr) -> None:
  key = index.operand if isinstance(index, ast.UnaryOp) and isinstance(index.op, ast.USub) else index
  if not isinstance(key, ast.Constant) or type(key.value) not in (int, str):
    raise ValueError(f"{words.shown(ast.unparse(index))} is no name and no number of an entry")
  if isinstance(part, ast.Name) and part.id == EXAMPLE:
    if not isinstance(key.value, str):
      raise ValueError(f"{EXAMPLE} has entries by name, {EXAMPLE}['label'] say")
  else:
    _check(part)


def _as_predicate(text: str) -> Any:
  read(text)
  return text


# The type of `pre_filter_fn` and `post_filter_fn`. Which entries there are is known where the data are opened.
Predicate = Annotated[str, Check("a condition on an example, as 'label < 100'", _as_predicate)]
