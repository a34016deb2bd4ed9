"""The grammar of pp strings: what is read, and that whatever else is refused in one line, without a trace or a wait."""

import pytest

from core.errors import UserError
from core.recipe import pp_string
from core.recipe.parse import parse

BROKEN = {
  "an unclosed quote": "keep('image",
  "an unclosed bracket": "resize(224",
  "a bracket too many": "resize(224))",
  "brackets that only meet ours": "a)|(b",
  "a comment": "a # b|c",
  "a comment on a line of its own": "a|\n# b\nc",
  "a quote over two lines": "keep('a\nb')",
  "NUL": "a\0b",
  "half a character": "a('\ud800')",
  "another operator": "a + b",
  "a comparison": "a < b",
  "a semicolon": "a;b",
  "an assignment": "a = 1",
  "a walrus": "(a := b)",
  "a walrus in an argument": "a(b := 1)",
  "an f-string": "keep(f'{image}')",
  "an f-string with a backslash": "keep(f'{chr(10)}\\n')",
  "a lambda": "a(lambda: 1)",
  "a comprehension": "a([x for x in b])",
  "a generator": "a(x for x in b)",
  "a name": "a(b)",
  "a call": "a(b())",
  "stars": "a(*[1, 2])",
  "two stars": "a(**{'b': 1})",
  "an argument twice": "a(b=1, b=2)",
  "a position after a name": "a(b=1, 2)",
  "an attribute": "a.b",
  "an item": "a[0]",
  "text": "'a'",
  "a number": "3",
  "a list": "[a, b]",
  "two in a row": "a b",
  "a right-hand group": "a|(b|c)",
  "arithmetic": "a(2 * 112)",
  "a long number": "a(" + "9" * 5_000 + ")",
  "many brackets": "a(" + "[" * 3_000 + "]" * 3_000 + ")",
  "many parentheses": "(" * 300 + "a" + ")" * 300,
  "many signs": "a(" + "-" * 9_000 + "1)",
  "many nots": "not " * 2_000 + "a",
  "many calls": "a" + "()" * 4_000,
  "many attributes": "a" + ".b" * 4_000,
  "many powers": "a(2" + "**2" * 3_000 + ")",
  "many ops": "|".join(["a"] * 4_999),
  "many conditions": "a if b else " * 500 + "c",
  "a long string": "a|" * 50_000 + "a",
  "no text": 5,
  "bytes": b"a|b",
  "None": None,
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_string_is_refused_in_one_line(what):
  with pytest.raises(ValueError, match=r"^pp ") as error:
    pp_string.read(BROKEN[what])
  assert "\n" not in str(error.value)
  assert len(str(error.value)) <= 300
  with pytest.raises(UserError) as error:
    parse(pp_string.PpString, BROKEN[what], "config.input.pp")
  assert str(error.value).startswith("config.input.pp must be ops joined by |, got ")
  assert "\n" not in str(error.value)
  assert len(str(error.value)) <= 300


@pytest.mark.parametrize(
  "text, calls",
  [
    ("", []),
    (" \n", []),
    ("a", [("a", (), {})]),
    ("a(1, 'b|c#d)', e=(None, [True])) |\n b ", [("a", (1, "b|c#d)"), {"e": (None, [True])}), ("b", (), {})]),
    ("a('ä')|a(b'x', -1.5, {'k': {1}})", [("a", ("ä",), {}), ("a", (b"x", -1.5, {"k": {1}}), {})]),
  ],
)
def test_calls_are_read(text, calls):
  assert pp_string.read(text) == calls
  assert parse(pp_string.PpString, text) == text


@pytest.mark.parametrize(
  "text, chain",
  [
    ("a||b", "a|b"),
    ("|a|", "a"),
    ("a | |\n|b('||')| ", "a|b('||')"),
    ("|||", ""),
    (" |\n", ""),
    ("||a('é|', b=[1])||\n||b(')|')|", "a('é|', b=[1])|b(')|')"),
  ],
)
def test_nothing_between_two_bars_is_no_op(text, chain):
  assert pp_string.read(text) == pp_string.read(chain)


def test_a_chain_may_be_long():
  assert len(pp_string.read("|".join(["a"] * 500))) == 500
