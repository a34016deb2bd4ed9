from core import errors


def test_a_close_name_is_suggested():
  assert errors.nearest("resise", ["resize", "flip_lr"]) == " (did you mean 'resize'?)"


def test_without_a_close_name_all_are_listed():
  assert errors.nearest("xyz", ["b", "a"]) == " (known: a, b)"
