"""Flags are read as a person means them, or one line says what is wrong."""

import subprocess
import sys

import pytest

from core import command
from core.errors import UserError


@pytest.fixture
def program():
  made = command.Command("show --config=FILE.py [options]", configs=True)
  made.text("config", "a file", shown="FILE.py")
  made.whole("devices", "how many")
  made.choice("form", ("yaml", "json"), "which form", default="yaml")
  made.switch("dry_run", "do nothing")
  return made


def test_flags_overrides_and_defaults(program):
  flags, overrides = program.parse(["--config", "a.py", "--config.lr=3", "--config.a.b", "4", "--dry_run"])
  assert (flags.config, flags.devices, flags.form, flags.dry_run) == ("a.py", None, "yaml", True)
  assert overrides == [("lr", "3"), ("a.b", "4")]
  assert flags.given == {"config": "a.py", "form": "yaml", "dry_run": True}


def test_nothing_is_left_of_the_parse_before(program):
  program.parse(["--config=a.py", "--devices=2"])
  flags, overrides = program.parse([])
  assert (flags.config, flags.devices, overrides) == (None, None, [])


def test_a_flag_file_may_hold_everything(program, tmp_path):
  file = tmp_path / "flags"
  file.write_text("# of a run\n--devices=8\n--config.lr=0.1\n")
  flags, overrides = program.parse([f"--flagfile={file}", "--config.wd=1"])
  assert (flags.devices, overrides) == (8, [("lr", "0.1"), ("wd", "1")])


@pytest.fixture
def preparing():
  made = command.Command("prepare NAME ...", about="Prepares data.", words="names of datasets")
  made.whole("jobs", "at once")
  made.number("poll", "seconds", default=30.0)
  made.text("list", "what there is", bare="", shown="WORD")
  made.several("sizes", "of batches", default=[8], least=1)
  made.several("forms", "which", default=["a"], choices=("a", "b"))
  made.repeated("env", "for the trainer", shown="NAME=VALUE")
  return made


def test_words_are_told_from_the_values_of_flags(preparing):
  flags, _ = preparing.parse(["cifar10", "--jobs", "2", "dtd", "--", "--no-flag"])
  assert (flags.words, flags.jobs) == (["cifar10", "dtd", "--no-flag"], 2)


def test_lists_numbers_and_flags_that_are_repeated(preparing):
  flags, _ = preparing.parse(["--sizes=1,2", "--env=A=1,2", "--poll=0", "--env", "B=", "--forms=b,a"])
  assert (flags.sizes, flags.forms, flags.env, flags.poll) == ([1, 2], ["b", "a"], ["A=1,2", "B="], 0.0)
  flags, _ = preparing.parse([])
  assert (flags.sizes, flags.forms, flags.env, flags.poll, flags.list) == ([8], ["a"], [], 30.0, None)


@pytest.mark.parametrize("word, value", [("--list", ""), ("-list", ""), ("--list=a", "a"), ("list", None)])
def test_a_flag_may_stand_without_its_value(preparing, word, value):
  flags, _ = preparing.parse([word, "b"])
  assert flags.list == value


def test_a_flag_that_is_required_is_asked_for():
  made = command.Command("export")
  made.text("output", "where", required=True)
  made.choice("to", ("npz", "timm"), "which form", required=True)
  assert made.parse(["--output=a", "--to=npz"])[0].to == "npz"
  with pytest.raises(UserError, match=r"^--to=\.\.\. is missing; see --help$"):
    made.parse(["--output=a"])


@pytest.fixture
def launching():
  made = command.Commands("tpu_vm", about="Trains on a machine.")
  run = made.add("run", "does all of it")
  run.text("name", "of the machine", required=True)
  run.switch("spot", "cheap")
  made.add("delete", "deletes it").text("name", "of the machine", required=True)
  return made


def test_each_command_has_flags_of_its_own(launching):
  name, flags = launching.parse(["run", "--name=m", "--spot"])
  assert (name, flags.name, flags.spot) == ("run", "m", True)
  with pytest.raises(UserError, match="flag --spot is unknown"):
    launching.parse(["delete", "--name=m", "--spot"])


@pytest.mark.parametrize(
  "argv, lines",
  [
    ([], ["Trains on a machine.", "  run ", "  delete "]),
    (["--help"], ["usage: tpu_vm COMMAND", "  run "]),
    (["run", "--help"], ["usage: tpu_vm run [options]", "does all of it", "  --spot "]),
  ],
)
def test_the_help_of_commands(launching, argv, lines, capsys):
  with pytest.raises(SystemExit) as end:
    launching.parse(argv)
  shown = capsys.readouterr().out
  assert end.value.code == 0
  assert all(line in shown for line in lines)


def test_a_command_that_there_is_not_is_one_line(launching):
  with pytest.raises(UserError, match=r"^the first word must be a command, got 'rnu' \(did you mean 'run'\?\)$"):
    launching.parse(["rnu"])


def test_the_help_has_every_flag(program, capsys):
  with pytest.raises(SystemExit) as end:
    program.parse(["--config=a.py", "--help"])
  assert end.value.code == 0
  shown = capsys.readouterr().out
  for flag in ("--config=FILE.py", "--config.KEY=VALUE", "--devices=N", "--form=yaml|json", "--dry_run", "--flagfile"):
    assert f"  {flag}" in shown


@pytest.mark.parametrize(
  "argv, line",
  [
    (["--confg=a"], "flag --confg is unknown (did you mean 'config'?)"),
    (["--devices=0"], "flag --devices must be a whole number above 0, got '0'"),
    (["--devices=1.5"], "flag --devices must be a whole number above 0, got '1.5'"),
    (["--devices=\u0663"], "flag --devices must be a whole number above 0"),
    (["--devices"], "flag --devices needs a value: --devices=..."),
    (["--config.lr"], "flag --config.lr needs a value: --config.lr=..."),
    (["--form=toml"], "flag --form must be one of yaml, json, got 'toml'"),
    (["--dry_run=maybe"], "flag --dry_run takes no value, got 'maybe'"),
    (["a.py"], "argument 'a.py' is not a flag; flags begin with --"),
    (["--flagfile=/nowhere"], "flag --flagfile: "),
  ],
)
def test_a_mistake_is_one_line(program, argv, line):
  with pytest.raises(UserError) as error:
    program.parse(argv)
  assert str(error.value).startswith(line)
  assert "\n" not in str(error.value)


def test_a_file_of_flags_that_is_no_text_is_refused_by_its_flag(program, tmp_path):
  (tmp_path / "flags").write_bytes(b"\xff\xfe")
  with pytest.raises(UserError, match=r"^flag --flagfile must be a text file in UTF-8, a flag a line"):
    program.parse([f"--flagfile={tmp_path / 'flags'}"])


@pytest.mark.parametrize(
  "argv, line",
  [
    (["--poll=-1"], "flag --poll must be a number that is not negative, got '-1'"),
    (["--poll=nan"], "flag --poll must be a number that is not negative, got 'nan'"),
    (["--poll=1\n2: 3"], "flag --poll must be a number that is not negative, got '1\\n2: 3'"),
    (["--sizes=1,x"], "flag --sizes must be a whole number above 0, or several of such joined by commas, got '1,x'"),
    (["--forms=c"], "flag --forms must be one of a, b, or several of such joined by commas, got 'c'"),
    (["--jobs=" + "9" * 999], "flag --jobs must be a whole number above 0"),
    (["--config.lr=1"], "flag --config.lr is unknown: this program changes no config"),
    (["--" + "x" * 9_999], "flag --xxx"),
  ],
)
def test_a_mistake_in_a_program_of_words_is_one_line(preparing, argv, line):
  with pytest.raises(UserError) as error:
    preparing.parse(argv)
  assert str(error.value).startswith(line)
  assert "\n" not in str(error.value)
  assert len(str(error.value)) <= 300


@pytest.mark.parametrize(
  "body, status", [("return 3", 3), ("raise UserError('no')", 2), ("return 0", 0), ("raise KeyboardInterrupt", 130)]
)
def test_a_program_exits_with_its_status(body, status):
  code = f"""
from core import command
from core.errors import UserError
def main(argv):
  assert argv == ["--a"]
  {body}
command.run(main)
"""
  done = subprocess.run(
    [sys.executable, "-c", code, "--a"], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True
  )
  assert done.returncode == status
  assert done.stderr.decode().strip() == {2: "error: no", 130: "interrupted"}.get(status, "")


def test_a_traceback_does_not_tell_the_password_of_a_url():
  code = """
from core import command
def main(argv):
  raise ValueError(f"cannot read {argv[0]}")
command.run(main)
"""
  words = [sys.executable, "-c", code, "https://user:hunter2@host/w.npz?sig=hunter2"]
  done = subprocess.run(words, env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True)
  assert done.returncode == 1
  assert done.stderr.startswith("Traceback (most recent call last):")
  assert done.stderr.endswith("ValueError: cannot read https://***@host/w.npz?sig=***\n")
