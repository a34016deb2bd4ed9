"""A file of lines is cut at line feeds alone, and its byte order mark is no text."""

import pytest

from core import text_lines
from core.errors import UserError

# All that `str.splitlines` cuts at besides line feeds and CR LF.
NO_ENDS = "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
MARK = b"\xef\xbb\xbf"


@pytest.fixture
def write(tmp_path):
  def written(content, name="file.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path

  return written


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", MARK])
@pytest.mark.parametrize("inner", NO_ENDS)
def test_a_line_ends_at_a_line_feed_alone(write, end, mark, inner):
  lines = [f"a{inner}b", "", "ä"]
  content = mark + end.join(lines).encode()
  for last in (b"", end.encode()):
    assert list(text_lines.read(write(content + last), "x")) == lines
    assert text_lines.of_bytes(content + last) == [line.encode() for line in lines]


def test_an_empty_file_has_no_line(write):
  assert list(text_lines.read(write(b""), "x")) == text_lines.of_bytes(b"") == []
  assert list(text_lines.read(write(MARK), "x")) in ([], [""])
  assert text_lines.read_filled(write(MARK + b"\n \n"), "x") == []


def test_a_mark_within_the_text_stays(write):
  assert list(text_lines.read(write("a\n\ufeffb"), "x")) == ["a", "\ufeffb"]


def test_what_cannot_be_read_is_refused_by_its_line(write, tmp_path):
  path = write(b"a\nb\xff\n")
  with pytest.raises(UserError) as error:
    list(text_lines.read(path, "--labels"))
  assert str(error.value) == f"--labels: {path} line 2 is not UTF-8 text"
  with pytest.raises(UserError, match=r"--labels: .* cannot be read"):
    list(text_lines.read(tmp_path / "none", "--labels"))
