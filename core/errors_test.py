import pytest

from core import errors


def test_a_close_name_is_suggested():
  assert errors.nearest("resise", ["resize", "flip_lr"]) == " (did you mean 'resize'?)"


def test_without_a_close_name_all_are_listed():
  assert errors.nearest("xyz", ["b", "a"]) == " (known: a, b)"


def test_the_first_few_of_many_are_named_and_the_rest_counted():
  assert errors.first_few(["a", "b", "c"]) == "a, b, c"
  assert errors.first_few(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
  assert errors.first_few(["a", "b"], joint="; ", rest=" (and {} more)", shown=1) == "a (and 1 more)"


def test_the_nearest_multiples_are_positive():
  assert errors.multiples_near(12, of=8) == "8 or 16"
  assert errors.multiples_near(3, of=8) == errors.multiples_near(0, of=8) == "8"


@pytest.mark.parametrize(
  "given, line",
  [
    ({"splt": "train"}, "data.splt is no key of the source x (did you mean 'split'?)"),
    ({"split": "train", "log_step": 1}, "data.log_step is no key of the source x (did you mean 'log_steps'?)"),
    ({"size": 3}, "data.split is missing; the source x needs it"),
    ({"split": "train", "rng": 0}, "data.rng is no key of the source x (known: log_steps, size, split)"),
  ],
)
def test_arguments_are_checked_against_what_a_function_takes(given, line):
  def load(rng, *, split, size=1):
    return rng, split, size

  with pytest.raises(errors.UserError) as refused:
    errors.check_arguments(load, given, where="data", of="the source x", supplied=("rng",), elsewhere=("log_steps",))
  assert str(refused.value) == line
  errors.check_arguments(load, {"split": "train"}, where="data", of="the source x", supplied=("rng",))


def test_a_line_is_one_and_of_at_most_300_characters():
  assert str(errors.UserError("a: b\n  c")) == "a: b c"
  whole = "x" * 290
  assert str(errors.UserError(whole)) == whole
  long = str(errors.UserError(f"config.a: no file {'x' * 5_000}: give the name of one"))
  assert long.startswith("config.a: no file xxx")
  assert long.endswith("xxx: give the name of one")
  assert len(long) <= 300
  assert len(str(errors.UserError("ab " * 1_000))) <= 300


def test_the_key_of_a_line_that_names_none_is_put_before_it():
  with pytest.raises(errors.UserError, match=r"^config\.model_init: no file$"), errors.naming("config.model_init"):
    raise errors.UserError("no file")
  with pytest.raises(errors.UserError, match=r"^config\.seed: no$"), errors.naming("config.model_init"):
    raise errors.UserError("config.seed: no")


def test_what_a_file_holds_does_not_steer_the_terminal_that_shows_a_line():
  """ESC and BEL move and rename, U+202E turns the direction of text, and half a surrogate cannot be written."""
  line = str(errors.UserError("key 'a\x1b[2J\x07\u202eb\ud800 ä ✓ \u3000' is unknown"))
  assert line == "key 'a\\x1b[2J\\x07\\u202eb\\ud800 ä ✓ \u3000' is unknown"


def test_a_name_where_there_are_none_is_told_so():
  assert errors.nearest("a", []) == " (there are none)"
