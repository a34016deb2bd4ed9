"""What is secret in a URL, masked wherever it is written down or printed: user, password, and what a query holds.

    https://user:password@host/w.npz?X-Amz-Signature=0123&v=2    becomes
    https://***@host/w.npz?X-Amz-Signature=***&v=2

Servers call their secrets as they like (`sig`, `token`, `X-Goog-Signature`), so that every value is masked but those of
the few keys that tell one file from another. A masked text comes back as it is.
"""

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"

# Keys of a query, in lower case, whose values say which file it is, and open nothing.
_OPEN = ("v", "version", "rev", "revision", "ref", "generation", "alt", "download", "dl", "raw", "format", "sha256")
_OPEN += ("file", "filename", "name", "path")
_OPEN_VALUE = re.compile(r"[\w./:-]{0,100}")
# The part of a file that is loaded stands behind its URL, `w.npz?token=abc:img`, and so do the marks of a sentence.
_BEHIND = r"((?::[a-z]{1,8}(?:/\w{1,20})?)?[:,.;)]*)"
_OF_QUERY = re.compile(rf"([?&#])(?:([^=&#?]*)=)?([^&#]*?){_BEHIND}(?=[&#]|$)")
_OF_PATH = re.compile(rf"([;#])(?:([^=;#]*)=)?([^;#]*?){_BEHIND}(?=[;#]|$)")
_BEGINS = re.compile(r"[A-Za-z][\w+.-]*://")
# What a port ends at: the authority's end (RFC 3986, section 3.2), marks at the URL's, or a list's next one.
_PORT = r"\d+(?:[/?#]|[^\w\s]*(?:$|[\s\"'])|,[A-Za-z][\w+.-]*://)"
_IS_MASKED = re.compile(r"://\*\*\*|[?&;#=]\*\*\*")


def masked(text: str) -> str:
  """Returns a text with what is secret in the URLs in it masked."""
  return _masked(text, r"\s") if "://" in text else text


def masked_tree(value: Any) -> Any:
  """Returns a config, as JSON has it, with every text in it `masked`; one that is a URL may hold spaces."""
  match value:
    case str():
      return _masked(value, r"\n") if _BEGINS.match(value) else masked(value)
    case Mapping():
      return {key: masked_tree(each) for key, each in value.items()}
    case list():
      return [masked_tree(each) for each in value]
  return value


def is_masked(url: str) -> bool:
  """Returns whether a URL lacks what was secret in it."""
  return _IS_MASKED.search(url) is not None


def _masked(text: str, space: str) -> str:
  user = rf"[^{space}/?#]*@"  # As RFC 3986 has it, section 3.2.1.
  raw = rf"[^{space}/?#@:\[]*:(?!{_PORT})[^{space}]*@"  # The password holds a slash, say, which it must not.
  cut = rf"[^{space}/?#@:\[]+:(?!\d*(?!\w))[^{space}/?#]*"  # No host has such a port: the rest of it is cut off.
  text = re.sub(rf"(?<=://)(?:{user}|{raw})", f"{MASK}@", text)
  text = re.sub(rf"(?<=://){cut}", MASK, text)
  return re.sub(rf"([\"']?)(\b[A-Za-z][\w+.-]*://[^{space}?;#]*)([?;#][^{space}]*)", _without_parameters, text)


def _without_parameters(match: re.Match[str]) -> str:
  quote, before, parameters = match.groups()
  behind = ""
  if quote:  # A URL ends at the quote that it began with.
    parameters, end, behind = parameters.partition(quote)
    behind = end + masked(behind)
  of_path, mark, query = parameters.partition("?")
  # An @ is of a password that holds a `#`, say, which it must not: then nothing here is a word.
  shown = _OF_PATH.sub(_without_value if "@" in parameters else _without_value_of_path, of_path)
  return quote + before + shown + _OF_QUERY.sub(_without_value, mark + query) + behind


def _without_value_of_path(match: re.Match[str]) -> str:
  """Keeps words: they go on behind a semicolon, and what a `#` names is part of a page."""
  return match[0] if match[2] is None else _without_value(match)


def _without_value(match: re.Match[str]) -> str:
  mark, key, value, behind = match.groups()
  if key is None:
    return f"{mark}{MASK}{behind}" if value else match[0]
  if key.lower() in _OPEN and _OPEN_VALUE.fullmatch(value):
    return match[0]
  return f"{mark}{key}={MASK}{behind}" if value else f"{mark}{MASK}{behind}"  # Base64 ends in `=`: it is no key then.
