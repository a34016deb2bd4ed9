"""Conditions on examples: NumPy and TensorFlow judge alike, and as Python does with the same values."""

import numpy as np
import pytest

from core.data import filters
from core.data.columns import Columns, bytes_column
from core.errors import UserError
from core.recipe import predicate

ROWS = {
  "label": np.array([0, 1, 2, 3], np.int64),
  "size": np.array([250, 200, 10, 0], np.uint8),
  "score": np.array([0.1, 0.7, 0.25, -1.0], np.float32),
  "good": np.array([True, False, True, False]),
  "box": np.array([[0.0, 0.5], [0.5, 0.5], [1.0, 0.0], [0.2, 0.1]], np.float32),
  "lang": bytes_column(["en", "de", "en", "fr"]),
  "captions/text": bytes_column(["a", "", "two words", "größer"]),
  "tags": np.stack([bytes_column(["x", "y"]), bytes_column(["y", "z"])] * 2),
}

# Conditions, and the rows that meet them.
CONDITIONS = {
  "label < 2": [0, 1],
  "1 <= label < 3": [1, 2],
  "label in (0, 3)": [0, 3],
  "label not in [0, 3]": [1, 2],
  "label in ()": [],
  "-label > -2": [0, 1],
  "label - 3 in (-3, -1)": [0, 2],
  "size + 10 > 255": [0],
  "size - 20 < 0": [2, 3],
  "label // 2 == 1 and label % 2 == 1": [3],
  "label / 2 == 0.5": [1],
  "score >= 0.7": [1],
  "score == 0.1": [0],
  "score + label > 1.5": [1, 2, 3],
  "label > 0.5": [1, 2, 3],
  "good": [0, 2],
  "not good or label == 0": [0, 1, 3],
  "good == (label == 2)": [1, 2, 3],
  "good + label == 1": [0, 1],
  "lang == 'en'": [0, 2],
  "lang != 'en'": [1, 3],
  "lang in ('de', 'fr')": [1, 3],
  "len(example['captions/text']) > 0": [0, 2, 3],
  "len(example['captions/text']) == 6": [3],
  "box[0] > box[1]": [2, 3],
  "box[-1] == 0.5": [0, 1],
  "sum(box) == 1": [1, 2],
  "max(box) > 0.5": [2],
  "min(box) >= 0.1": [1, 3],
  "any(tags == 'x')": [0, 2],
  "all(box >= box[1])": [1, 2, 3],
  "len(box) == 2": [0, 1, 2, 3],
  "True": [0, 1, 2, 3],
}  # fmt: skip


def in_python(condition, row):
  """What Python says of a row, by its own numbers."""
  values = {key: value[row] for key, value in ROWS.items()}
  plain = {}
  for key, value in values.items():
    if isinstance(value, bytes):
      plain[key] = value.decode()
    elif isinstance(value, np.ndarray) and value.dtype == object:
      plain[key] = np.array([each.decode() for each in value])
    else:
      plain[key] = value.astype(np.int64) if isinstance(value, np.integer) else value
  scope = {key: value for key, value in plain.items() if key.isidentifier()}
  functions = {"len": len, "any": any, "all": all, "min": min, "max": max, "sum": sum}
  return bool(eval(condition, {"__builtins__": functions}, {**scope, "example": plain}))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_rows_are_chosen_as_python_chooses_them(condition):
  assert [row for row in range(4) if in_python(condition, row)] == CONDITIONS[condition]
  found = filters._meeting_rows(Columns("rows", ROWS, str), condition, "config.input.pre_filter_fn")
  assert np.flatnonzero(found).tolist() == CONDITIONS[condition]


def test_tensorflow_judges_an_example_as_numpy_does():
  import tensorflow as tf

  data = tf.data.Dataset.from_tensor_slices({
    key: tf.constant(value.tolist() if value.dtype == object else value) for key, value in ROWS.items()
  })  # fmt: skip
  judge = tf.autograph.experimental.do_not_convert(
    lambda example: {name: filters.meets(name, example, "config") for name in CONDITIONS}
  )
  judged = list(data.map(judge).as_numpy_iterator())
  assert {name: [row for row in range(4) if judged[row][name]] for name in CONDITIONS} == CONDITIONS


def tf_type(value):
  """The name of the type that TensorFlow gives a column."""
  return "string" if value.dtype == object else value.dtype.name


def test_a_nested_entry_is_named_by_its_path():
  import tensorflow as tf

  example = {"captions": {"text": tf.constant(["one", "two"])}, "label": tf.constant(3)}
  assert bool(filters.meets("any(example['captions']['text'] == 'two')", example, "config"))
  assert bool(filters.meets("len(captions['text']) == 2", example, "config"))


@pytest.mark.parametrize(
  "condition, line",
  [
    ("labl < 3", r"there is no entry 'labl' \(did you mean 'label'\?\)"),
    ("label", "it gives no truth value"),
    ("label and good", "and takes truth values"),
    ("lang < 'en'", "texts have no order here"),
    ("lang == 3", "it compares text with a number"),
    ("lang + 1 == 2", "it computes with text"),
    ("label[0] == 1", r"\[0\] is asked of a single value"),
    ("len(label) == 1", r"len\(\) is asked of a single value"),
    ("len('text') == 1", r"len\(\) is asked of a literal"),
    ("'text'[0] == 't'", r"\[0\] is asked of a literal"),
    ("label['x'] == 1", "'x' is asked of what holds no entries"),
    ("box > 0", r"gives more than one truth value an example; any\(\) or all\(\) makes it one"),
  ],
)
def test_what_does_not_fit_the_examples_is_one_line(condition, line):
  import tensorflow as tf

  example = {key: tf.constant(np.asarray(value[0]).tolist(), tf_type(value)) for key, value in ROWS.items()}
  for judge in (
    lambda: filters.filtered(Columns("rows", ROWS, str), condition, "config.input.pre_filter_fn"),
    lambda: filters.meets(condition, example, "config.input.pre_filter_fn"),
  ):
    with pytest.raises(UserError, match=rf"^config\.input\.pre_filter_fn: .*{line}"):
      judge()


@pytest.mark.parametrize(
  "condition, line",
  [
    ("", "no expression"),
    ("label <", "no expression"),
    ("x = 3", "no expression"),
    ("__import__('os')", "cannot hold"),
    ("label.real", "cannot hold"),
    ("lambda: 1", "cannot hold"),
    ("[each for each in box]", "cannot hold"),
    ("label if good else 1", "cannot hold"),
    ("label ** 2 == 1", "cannot hold"),
    ("len(box, 1) == 1", "cannot hold"),
    ("box[label] == 1", "no name and no number"),
    ("box[0:1] == 1", "no name and no number"),
    ("label in box", "a list of literals"),
    ("label in (score, 1)", "a list of literals"),
    ("example", "is the whole example"),
    ("example[0]", "entries by name"),
    ("label == None", "cannot hold"),
    ("(" * 5_000 + "label" + ")" * 5_000, "is the most"),
    ("-" * 900 + "label", "nested too deeply"),
  ],
)
def test_what_is_no_condition_is_refused(condition, line):
  with pytest.raises(ValueError, match=line):
    predicate.read(condition)


def test_rows_that_remain_are_called_what_they_were_and_none_at_all_is_refused():
  source = Columns("rows", ROWS, lambda row: f"row {row}", files=("lang",))
  found = filters.filtered(source, "label > 1", "config.input.pre_filter_fn")
  assert (len(found), found.describe(0)) == (2, "row 2")
  with pytest.raises(UserError, match=r"^config\.input\.pre_filter_fn: none of the 4 examples meets it$"):
    filters.filtered(source, "label > 3", "config.input.pre_filter_fn")
  with pytest.raises(UserError, match="'lang' is the bytes of a file"):
    filters.filtered(source, "lang == 'en'", "config.input.pre_filter_fn")
