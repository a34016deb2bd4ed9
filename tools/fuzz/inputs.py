"""Inputs that are nearly right: files of the tests with bytes changed, JSON with values changed, text of a grammar."""

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

# Numbers at which formats and programs change their minds.
_EDGES = (0, 1, 127, 128, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
_LARGEST = 1 << 20  # Bytes of an input.


@st.composite
def changed_bytes(draw: Any, seeds: Sequence[bytes]) -> bytes:
  """Draws one of some files with up to six changes: bytes set, cut off, left out, repeated or put in, numbers set."""
  data = bytearray(draw(st.sampled_from(seeds)))
  for _ in range(draw(st.integers(0, 6))):
    at, length = draw(st.integers(0, len(data))), draw(st.integers(1, 64))
    match draw(st.sampled_from(("set", "cut", "leave out", "repeat", "put in", "number"))):
      case "set":
        data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
      case "cut":
        del data[at:]
      case "leave out":
        del data[at : at + length]
      case "repeat":
        data[at:at] = data[at : at + length] * draw(st.integers(1, 8))
      case "put in":
        data[at:at] = draw(st.binary(max_size=16))
      case "number":
        size, order = draw(st.sampled_from((1, 2, 4, 8))), draw(st.sampled_from(("little", "big")))
        data[at : at + size] = (draw(st.sampled_from(_EDGES)) % 256**size).to_bytes(size, order)
  return bytes(data[:_LARGEST])


_SCALARS = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(),
  st.sampled_from(_EDGES),
  st.floats(),
  st.text(max_size=20),
  st.sampled_from(("", "²", "..", "/", "\x00", "a" * 300)),
)
JSON = st.recursive(
  _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
"""Any JSON."""


@st.composite
def changed_json(draw: Any, seeds: Sequence[Any]) -> bytes:
  """Draws one of some JSON values with up to three of those within it replaced, left out or added, as text."""
  value = json.loads(json.dumps(draw(st.sampled_from(seeds))))
  for _ in range(draw(st.integers(0, 3))):
    value = _changed(draw, value)
  return json.dumps(value).encode(errors="surrogatepass")


def _changed(draw: Any, value: Any) -> Any:
  keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
  if not keys or draw(st.integers(0, 3)) == 0:
    return draw(JSON)
  key = draw(st.sampled_from(keys))
  match draw(st.sampled_from(("within", "within", "leave out", "add"))):
    case "within":
      value[key] = _changed(draw, value[key])
    case "leave out":
      del value[key]
    case "add" if isinstance(value, dict):
      value[draw(st.text(max_size=8))] = draw(JSON)
    case "add":
      value.insert(key, draw(JSON))
  return value


def lines_of(each: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
  """Draws files of up to six lines."""
  return st.lists(each, max_size=6).map(b"\n".join)


_LITERALS = st.one_of(
  _SCALARS.map(repr), st.lists(_SCALARS, max_size=4).map(repr), st.sampled_from(("-1", "1e400", "(224, 224)", "10**9"))
)


@st.composite
def pp_strings(draw: Any, ops: Sequence[str]) -> str:
  """Draws chains of ops with any arguments, and sometimes with a character that does not belong there."""
  calls = []
  for _ in range(draw(st.integers(1, 4))):
    given = draw(st.lists(_LITERALS, max_size=3))
    named = draw(
      st.dictionaries(st.sampled_from(("key", "key_result", "size", "method", "length")), _LITERALS, max_size=2)
    )
    calls.append(
      f"{draw(st.sampled_from(ops))}({', '.join([*given, *(f'{key}={each}' for key, each in named.items())])})"
    )
  text = "|".join(calls)
  if draw(st.booleans()):
    at = draw(st.integers(0, len(text)))
    text = text[:at] + draw(st.text(max_size=3)) + text[at + draw(st.integers(0, 3)) :]
  return text


@st.composite
def overrides(draw: Any, keys: Sequence[str]) -> tuple[str, str]:
  """Draws an entry of a config to change and what to: any literal, or text."""
  key = draw(st.sampled_from(keys))
  if draw(st.integers(0, 4)) == 0:
    key = f"{key}.{draw(st.text(max_size=5))}"
  return key, draw(_LITERALS | st.text(max_size=30))
