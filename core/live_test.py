"""What a person sees of a live line, on the screen of a pseudo-terminal; and that nothing of it reaches a file."""

import io
import os
import pty
import re
import subprocess
import sys

import pytest

from core.live import Line

START = """
import os, sys, time
from core.live import Line
line = Line(sys.stdout)
"""


def in_terminal(code, columns=60, **env):
  """What a program writes to a terminal as wide as that."""
  ours, theirs = pty.openpty()
  env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "COLUMNS": str(columns), **env}
  process = subprocess.Popen([sys.executable, "-c", START + code], stdout=theirs, stderr=theirs, stdin=theirs, env=env)
  os.close(theirs)
  written = b""
  try:
    while block := os.read(ours, 4096):
      written += block
  except OSError:  # Linux says so that the other end is closed.
    pass
  process.wait()
  os.close(ours)
  return written.decode()


def screen(written):
  """The lines that stay to be seen: of a terminal, as much as is needed here."""
  lines, row, column = [""], 0, 0
  for token in re.findall(r"\x1b\[[\d;?]*[A-Za-z]|.|\n|\r", written):
    if token == "\r":
      column = 0
    elif token == "\n":
      row += 1
      if row == len(lines):
        lines.append("")
    elif token.startswith("\x1b"):
      number, kind = re.fullmatch(r"\x1b\[([\d;?]*)(.)", token).groups()
      assert kind in "KAm", f"{token!r} is more than a line needs"
      if kind == "A":
        row -= int(number or 1)
      elif kind == "K":
        lines[row] = "" if number == "2" else lines[row][:column]
    else:
      lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + 1 :]
      column += 1
  return "\n".join(line.rstrip() for line in lines).rstrip().split("\n")


def test_a_line_is_drawn_in_place_and_what_is_said_stays():
  written = in_terminal("""
for step in range(5):
  line.draw(f"step {step}")
  time.sleep(0.25)
line.say("step 4: fine")
line.draw("step 5")
line.close()
""")
  assert "step 1" in written
  assert screen(written) == ["step 4: fine"]


def test_what_others_print_comes_to_stand_above():
  written = in_terminal("""
line.draw("going on")
print("from another place")
print("a warning [brackets] and numbers 1 2 " + 30 * "x", file=sys.stderr)
time.sleep(0.5)
line.draw("still going on")
time.sleep(0.5)
sys.stdout.write("no newline")
line.close()
""")
  warning = "a warning [brackets] and numbers 1 2 " + 30 * "x"
  assert screen(written) == ["from another place", warning, "no newline"]
  assert "still going on" in written


def test_it_is_cut_to_the_width_and_words_are_asked_for_at_most_five_times_a_second():
  written = in_terminal(
    """
asked = []
def words():
  asked.append(0)
  return "0123456789" * 9
began = time.monotonic()
while time.monotonic() - began < 1.1:
  line.draw(words)
  time.sleep(0.001)
line.close()
print(len(asked), time.monotonic() - began)
""",
    columns=20,
  )
  assert "0123456789012345678" in written
  assert "01234567890123456789012" not in written
  count, seconds = screen(written)[0].split()
  assert 3 <= int(count) <= 5 * float(seconds) + 3  # One at once, and one as it ends.


@pytest.mark.parametrize("end", ["raise ValueError('broken')", "raise KeyboardInterrupt", "sys.exit('broken')"])
def test_however_a_program_ends_the_terminal_is_in_order(end):
  written = in_terminal(f"""
import contextlib
with contextlib.closing(line):
  line.draw("going on")
  {end}
""")
  lines = screen(written)
  assert "going on" not in lines
  assert re.search("broken|KeyboardInterrupt", lines[-1])
  assert "\x1b[?25l" not in written  # The cursor is never hidden: a program that is killed could not show it again.


def test_the_newest_of_two_lines_is_shown():
  written = in_terminal("""
other = Line(sys.stderr)
line.draw("one")
other.draw("two")
time.sleep(0.3)
line.draw("three")
line.say("one is done")
other.say("two is done")
""")
  assert screen(written) == ["one is done", "two is done"]


def test_a_terminal_that_cannot_draw_shows_what_is_said_only():
  assert in_terminal("line.draw('going on')\nline.say('done')", TERM="dumb") == "done\r\n"


def test_elsewhere_only_what_is_said_is_written_and_rich_is_not_imported():
  stream = io.StringIO()
  line = Line(stream)
  line.draw("going on")
  line.say("done")
  line.close()
  assert (stream.getvalue(), line.live) == ("done\n", False)
  code = f"{START}line.draw('x'); line.say('x'); line.close(); sys.exit('rich' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False).returncode == 0


def test_nowhere_nothing_is_written(capfd):
  line = Line(None)
  line.draw("going on")
  line.say("done")
  assert capfd.readouterr() == ("", "")


def test_drawing_costs_no_step_its_time():
  written = in_terminal("""
line.draw("0")
began = time.thread_time()
for step in range(100_000):
  line.draw(time.ctime)
seconds = time.thread_time() - began
line.say(f"{seconds / 100_000 * 1e6:.3f}")
""")
  assert float(screen(written)[0]) < 20  # Microseconds a call.
