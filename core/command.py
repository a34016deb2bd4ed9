"""The command line of every program: each flag is declared once, for parsing, help, flag files and logging.

    from core import command, signals

    if __name__ == "__main__":
      signals.listen()  # Before imports that take long.

    COMMAND = Command("evaluate --config=FILE.py[:ARGS] --weights=W[,W...] [options]", configs=True)
    COMMAND.text("weights", "files or published names", required=True)

    def main(argv):
      flags, overrides = COMMAND.parse(argv)
      ...flags.weights...

    if __name__ == "__main__":
      command.run(main)

Flags are absl's: `--flag value` and `--flag=value` both do, `--flagfile=FILE` reads more of them from a file, a line
each, and `--verbosity=0` shows what the libraries log. Errors are one line and exit status 2.
"""

import copy
import logging
import os
import re
import reprlib
import sys
import textwrap
import traceback
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

from core import flag_parsers, signals
from core.errors import EXIT_USER_ERROR, UserError, nearest
from core.masking import masked

_WIDTH = 110
_COLUMN = 24  # Where the help of a flag begins.
_QUIET = -3  # absl's verbosity below which all is silent but what is fatal.
_LONGEST = 80  # Characters of what a person typed, in an error line.
_HELP = {"-h", "--help", "-help"}


class Command:
  """The flags of a program.

  Args:
    usage: the first line of the help: the program's name and its most important flags.
    about: what the program does, for the help.
    configs: whether it takes `--config.KEY=VALUE`, which change single entries of a config.
    words: what words that are no flags are to this program, "names of datasets"; None: it takes none.
  """

  def __init__(self, usage: str, *, about: str = "", configs: bool = False, words: str | None = None):
    self._usage, self._about, self._configs, self._words = usage, about, configs, words
    self._values = flags.FlagValues()
    self._values.set_gnu_getopt(True)
    self._meanings: dict[str, tuple[str, str]] = {}
    self._required: list[str] = []
    self._bare: dict[str, str] = {}
    flags.DEFINE(
      flag_parsers.Whole(-3), "verbosity", None, "", flag_values=self._values, serializer=flags.ArgumentSerializer()
    )

  def text(
    self,
    name: str,
    meaning: str,
    *,
    default: str | None = None,
    shown: str = "...",
    required: bool = False,
    bare: str | None = None,
  ) -> None:
    """Declares a flag that takes text.

    Args:
      name: without the dashes.
      meaning: for the help.
      default: its value where it is not given.
      shown: what stands for the value in the help, "FILE".
      required: whether it must be given.
      bare: its value where the flag stands without one; None: it needs one.
    """
    self._define(flags.ArgumentParser(), name, default, meaning, shown, required=required)
    if bare is not None:
      self._bare[name] = bare

  def whole(
    self,
    name: str,
    meaning: str,
    *,
    default: int | None = None,
    least: int = 1,
    shown: str = "N",
    required: bool = False,
  ) -> None:
    """Declares a flag that takes a whole number from `least` on; see `text`."""
    self._define(flag_parsers.Whole(least), name, default, meaning, shown, required=required)

  def number(self, name: str, meaning: str, *, default: float | None = None, shown: str = "X") -> None:
    """Declares a flag that takes a number that is not negative; see `text`."""
    self._define(flag_parsers.Number(), name, default, meaning, shown)

  def choice(
    self, name: str, choices: Sequence[str], meaning: str, *, default: str | None = None, required: bool = False
  ) -> None:
    """Declares a flag that takes one of `choices`; see `text`."""
    self._define(flag_parsers.Choice(choices), name, default, meaning, "|".join(choices), required=required)

  def several(
    self,
    name: str,
    meaning: str,
    *,
    default: Sequence[Any],
    choices: Sequence[str] | None = None,
    least: int | None = None,
    shown: str = "A,B",
  ) -> None:
    """Declares a flag that takes a list, joined by commas; see `text`.

    Args:
      name, meaning, default, shown: see `text`.
      choices: what each may be; anything if None.
      least: each is a whole number from here on; they are text if None.
    """
    each = (
      flag_parsers.Choice(choices)
      if choices
      else flags.ArgumentParser()
      if least is None
      else flag_parsers.Whole(least)
    )
    self._define(flag_parsers.Listed(each), name, list(default), meaning, shown)

  def repeated(self, name: str, meaning: str, *, shown: str = "...") -> None:
    """Declares a flag that may be given several times; its value is the list of what was given."""
    flag = flags.MultiFlag(flags.ArgumentParser(), flags.ArgumentSerializer(), name, [], "")
    flags.DEFINE_flag(flag, flag_values=self._values)
    self._meanings[name] = (shown, meaning)

  def switch(self, name: str, meaning: str) -> None:
    """Declares a flag without a value, which is False where it is not given."""
    flags.DEFINE_boolean(name, False, meaning, flag_values=self._values)
    self._meanings[name] = ("", meaning)

  def parse(self, argv: Sequence[str]) -> tuple[Any, list[tuple[str, str]]]:
    """Returns the flags as attributes, and the entries of a config to change, `[("lr", "0.1"), ...]`.

    Words that are no flags are the attribute `words`. `--help` prints the help and ends the program.

    Raises:
      UserError: an unknown flag, a value that it cannot have, none where it needs one, or a word where none is taken.
    """
    values = copy.deepcopy(self._values)  # Each parse begins with the defaults.
    try:
      argv, overrides = self._without_overrides(values.read_flags_from_files(list(argv)))
      if _HELP & set(argv):
        print(self.help())
        sys.exit(0)
      _, *words = values(["program", *map(self._with_value, argv)], known_only=True)
    except UnicodeDecodeError:
      raise UserError("flag --flagfile must be a text file in UTF-8, a flag a line; a byte of it is none") from None
    except (flags.Error, ValueError) as error:
      raise UserError(_line(str(error))) from None
    words = self._without_unknown(words)
    if words and self._words is None:
      raise UserError(f"argument {_shown(words[0])} is not a flag; flags begin with --")
    found = {name: values[name].value for name in values}
    for name in self._required:
      if found[name] is None:
        raise UserError(f"--{name}=... is missing; see --help")
    if found["verbosity"] is not None:
      quiet(found["verbosity"])
    return _Flags(found, words), overrides

  def help(self) -> str:
    """Returns the usage, what the program does, and a paragraph a flag."""
    rows = []
    for name, (shown, meaning) in self._meanings.items():
      value = "" if not shown else f"[={shown}]" if name in self._bare else f"={shown}"
      rows.append((f"--{name}{value}", meaning))
      if name == "config" and self._configs:
        rows.append(("--config.KEY=VALUE", "change one entry, e.g. --config.lr=3e-4 --config.input.batch_size=64"))
    rows += [("--flagfile=FILE", "more flags, one a line"), ("--verbosity=N", "0 shows what the libraries log")]
    about = ["", self._about.strip()] if self._about else []
    words = [f"  words that are no flags: {self._words}"] if self._words else []
    return "\n".join([f"usage: {self._usage}", *about, "", *words, *(_paragraph(*row) for row in rows)])

  def _define(
    self, parser: flags.ArgumentParser, name: str, default: Any, meaning: str, shown: str, *, required: bool = False
  ) -> None:
    flags.DEFINE(parser, name, default, meaning, flag_values=self._values, serializer=flags.ArgumentSerializer())
    self._meanings[name] = (shown, meaning)
    if required:
      self._required.append(name)

  def _with_value(self, word: str) -> str:
    """Returns a flag that stands without its value with the one that this means."""
    name = word.lstrip("-")
    return f"--{name}={self._bare[name]}" if name in self._bare and word != name else word

  def _without_unknown(self, left: Sequence[str]) -> list[str]:
    """Returns what absl left as words; a flag among them is unknown, unless it stands behind `--`."""
    end = left.index("--") if "--" in left else len(left)
    for word in left[:end]:
      if word.startswith("-") and word.strip("-"):
        raise UserError(self._unknown(word.lstrip("-").partition("=")[0]))
    return [*left[:end], *left[end + 1 :]]

  def _unknown(self, name: str) -> str:
    if not self._configs and re.match(r"config\.", name):
      return f"flag --{_cut(name)} is unknown: this program changes no config"
    known = [*self._meanings, "flagfile", "verbosity", *(["config.KEY"] if self._configs else [])]
    return f"flag --{_cut(name)} is unknown{nearest(name[:_LONGEST], known)}"

  def _without_overrides(self, argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    if not self._configs:
      return list(argv), []
    kept, overrides, rest = [], [], list(argv)
    while rest:
      word = rest.pop(0)
      name, equals, value = word.partition("=")
      if not re.match(r"--?config\.", name):
        kept.append(word)
        continue
      if not equals:
        if not rest:
          raise UserError(f"flag {_cut(name)} needs a value: {_cut(name)}=...")
        value = rest.pop(0)
      overrides.append((name.partition(".")[2], value))
    return kept, overrides


class Commands:
  """The commands of a program that has several, each with flags of its own: `tpu_vm create --name=NAME`.

  Args:
    program: its name.
    about: what it does, for the help.
  """

  def __init__(self, program: str, *, about: str = ""):
    self._program, self._about = program, about
    self._commands: dict[str, tuple[str, Command]] = {}

  def add(self, name: str, meaning: str) -> Command:
    """Returns a new command, whose flags are to be declared."""
    made = Command(f"{self._program} {name} [options]", about=meaning)
    self._commands[name] = (meaning, made)
    return made

  def parse(self, argv: Sequence[str]) -> tuple[str, Any]:
    """Returns the command's name and its flags. `--help` prints the help and ends the program.

    Raises:
      UserError: no command stands first, or its flags are wrong.
    """
    name, *rest = argv or ["--help"]
    if name in _HELP:
      print(self.help())
      sys.exit(0)
    if name not in self._commands:
      raise UserError(f"the first word must be a command, got {_shown(name)}{nearest(name, self._commands)}")
    flags_of, _ = self._commands[name][1].parse(rest)
    return name, flags_of

  def help(self) -> str:
    """Returns what the program does and a line a command."""
    rows = (_paragraph(name, meaning) for name, (meaning, _) in self._commands.items())
    usage = f"usage: {self._program} COMMAND [options]; {self._program} COMMAND --help shows the options"
    return "\n".join([usage, "", *([self._about.strip(), ""] if self._about else []), *rows])


class _Flags:
  """Values of flags as attributes; `given` are those that are not None, for a command line to repeat."""

  def __init__(self, values: dict[str, Any], words: Sequence[str]):
    self.__dict__.update(values)
    self.words = list(words)
    self.given = {name: value for name, value in values.items() if value is not None and value is not False}


def run(
  main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None, *, interrupted: str | None = None
) -> None:
  """Runs a program and exits with the status that it returns; a `UserError` is one line and status 2.

  Ctrl-C and SIGTERM are one line too, and a status of their own, see `core.signals`.

  Args:
    main: takes the arguments.
    argv: arguments without the program's name; those of the process by default.
    interrupted: the line of a program that a signal ends; by default which signal it was.
  """

  def program(words: Sequence[str]) -> int:
    sys.excepthook = say_traceback
    quiet()
    try:
      with signals.raising(interrupted):
        status = main(words[1:])
    except UserError as error:
      say(f"error: {error}")
      status = EXIT_USER_ERROR
    except (Exception, KeyboardInterrupt) as error:
      if (number := signals.cause(error)) is None:
        raise
      signals.say_last(number)
      status = signals.STATUS[number]
    sys.stdout.flush()
    signals.end_in_time(status)
    return status

  def leave_as_they_are(words: Sequence[str]) -> Sequence[str]:
    """Has absl itself parse nothing: libraries declare flags in its global table that are none of the program's."""
    flags.FLAGS.mark_as_parsed()
    return words

  app.run(program, argv=[sys.argv[0], *(sys.argv[1:] if argv is None else argv)], flags_parser=leave_as_they_are)


def say(line: str) -> None:
  """Prints a line for a person on stderr, where it does not mix with a program's output; a URL's secrets are masked."""
  print(masked(line), file=sys.stderr, flush=True)


def say_traceback(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
  """Prints a traceback as Python does, `sys.excepthook`; the message of an error may hold a URL with a password."""
  say("".join(traceback.format_exception(kind, error, trace)).rstrip())


def quiet(verbosity: int = _QUIET) -> None:
  """Keeps the libraries' own chatter off the screen; errors still show.

  Args:
    verbosity: absl's, 0 for information.
  """
  if verbosity >= 0:
    logging.getLogger("absl").setLevel(logging.INFO)
    return
  os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
  logging.getLogger("jax").setLevel(logging.ERROR)
  # A checkpoint that fails is said in one line by us; Orbax and asyncio would log a traceback for each array.
  for name in ("absl", "orbax", "asyncio"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
  warnings.filterwarnings("ignore", module="(tensorflow|tensorflow_datasets|orbax|flax|keras)")


def _line(message: str) -> str:
  """Returns absl's words of a wrong value as one of our lines."""
  if match := re.fullmatch(r"flag --(\w+)=(.*): .*boolean.*", message, flags=re.DOTALL):
    return f"flag --{match[1]} takes no value, got {_shown(match[2])}"
  if match := re.fullmatch(r"flag --(\w+)=(.*): (.*)", message, flags=re.DOTALL):
    return f"flag --{match[1]} must be {match[3]}, got {_shown(match[2])}"
  if match := re.fullmatch(r"Missing value for flag -+(\w+)", message):
    return f"flag --{match[1]} needs a value: --{match[1]}=..."
  first = _cut((message.splitlines() or [""])[0])
  return f"flag --flagfile: {first.removeprefix('ERROR:: ')}" if "flagfile" in first else first


def _shown(text: str) -> str:
  """Returns the repr of what a person typed, cut to a length that a line has room for."""
  short = reprlib.Repr()
  short.maxstring = _LONGEST
  return short.repr(masked(text))


def _cut(text: str) -> str:
  text = masked(text)
  return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _paragraph(flag: str, meaning: str) -> str:
  lines = textwrap.wrap(meaning, _WIDTH - _COLUMN - 2)
  indent = "\n" + " " * (_COLUMN + 2)
  head = f"  {flag:<{_COLUMN}}" if len(flag) < _COLUMN else f"  {flag}{indent}"
  return head + indent.join(lines)
