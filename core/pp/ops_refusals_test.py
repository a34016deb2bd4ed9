"""What ops refuse: every wrong argument and wrong data, in one line, and in the same line on both paths."""

import inspect

import numpy as np
import pytest
import tensorflow as tf

from core.errors import UserError
from core.pp import builder, registry
from core.pp.op_examples import CASES, examples, run_tf

# What stands in a pp string for a value of every type, and what no op can use for much.
WRONG = ("None", "True", "1e999", "-1", "0", "0.5", "2", "10**40", "1e300", "''", "'x'", "'\\ud800'", "'\\0'", "b'x'")
WRONG += ("[]", "()", "[1, 2, 3]", "[[1]]", "(None, 1)", "{}", "{'a': 1}", "{1}", "...", "1+2j", "['a', 'b']")
WRONG = tuple("1" + "0" * 40 if value == "10**40" else value for value in WRONG)

OWN = {name: op for name, op in registry.OPS.items() if name in CASES}  # Other tests may have added some.
ARGUMENTS = [(name, argument) for name, op in OWN.items() for argument in op.signature.parameters]


def line_of(make):
  """The line by which something is refused; None where it is not."""
  try:
    make()
  except UserError as error:
    line = str(error)
    assert "\n" not in line
    assert len(line) <= 300
    return line
  return None


def example_of(data, rows=slice(0, 1)):
  return {key: example_of(value, rows) if isinstance(value, dict) else value[rows] for key, value in data.items()}


def traced(pp, data):
  """Traces a pp string on the tensors of one example."""
  spec = tf.data.Dataset.from_tensor_slices(data).element_spec
  tf.function(builder.get_preprocess_fn(pp, "config.input.pp"), autograph=False).get_concrete_function(spec)


def with_argument(name, argument, value):
  """The op's first example with one more, or another, argument."""
  (call,) = builder.parse(next(pp for pp in CASES[name] if "|" not in pp))
  parameters = OWN[name].signature.parameters
  if parameters[argument].kind is inspect.Parameter.VAR_POSITIONAL:
    return f"{name}({value})"
  bound = OWN[name].signature.bind(*call.args, **call.kwargs).arguments
  given = {key: repr(each) for key, each in bound.items() if key in parameters} | {argument: value}
  return f"{name}({', '.join(f'{key}={each}' for key, each in given.items())})"


def test_every_argument_of_every_op_has_a_type():
  assert not [(name, each) for name, each in ARGUMENTS if each not in OWN[name].annotations]


@pytest.mark.parametrize("name, argument", ARGUMENTS)
def test_an_argument_is_refused_by_name_or_right(name, argument):
  """Of all the values at most a few are right for an argument; the rest are refused before anything runs."""
  taken = []
  for value in WRONG:
    pp = with_argument(name, argument, value)
    line = line_of(lambda pp=pp: builder.steps(pp, "config.input.pp"))
    assert line == line_of(lambda pp=pp: builder.get_batched_fn(pp, "config.input.pp"))
    assert line == line_of(lambda pp=pp: builder.get_preprocess_fn(pp, "config.input.pp"))
    if line is None:
      taken.append(value)
    else:
      assert line.startswith(f"config.input.pp: pp op {name}: ")
  assert len(taken) <= 8, taken
  kinds = ("1e999", "1e300", "b'x'", "[[1]]", "(None, 1)", "{}", "{'a': 1}", "{1}", "...", "1+2j", "'\\ud800'")
  own = {("canonicalize", "keep"): "'\\ud800'", ("pad_to_shape", "shape"): "(None, 1)"}.get((name, argument))
  assert not {*kinds[2:]} & {*taken} - {own}
  assert not {"1e999", "1e300", "1" + "0" * 40} & {*taken}


def test_the_line_says_what_would_be_right():
  line = line_of(lambda: builder.steps("resize(-1)", "config.input.pp"))
  sides = "a whole number in [1, 16384]"
  assert line == f"config.input.pp: pp op resize: size must be {sides} or ({sides}, {sides}), got -1"
  line = line_of(lambda: builder.steps("onehot(0)"))
  assert line == "pp op onehot: depth must be a whole number in [1, 16777216], got 0"


def replacements():
  """What stands under a key in the place of the right value: other ranks, types, sizes."""
  texts = np.array([b"a", b"b"], object)
  return {
    "a number": np.zeros(2, np.float32),
    "a whole number": np.zeros(2, np.int64),
    "a truth": np.zeros(2, bool),
    "a row": np.zeros((2, 3), np.float32),
    "a matrix": np.zeros((2, 3, 4), np.uint8),
    "an image": np.zeros((2, 3, 4, 5), np.uint8),
    "an image without pixels": np.zeros((2, 0, 4, 3), np.uint8),
    "an image of truths": np.zeros((2, 3, 4, 1), bool),
    "a video": np.zeros((2, 3, 4, 5, 6), np.uint8),
    "a text": texts,
    "texts": np.stack([texts, texts], 1),
    "no texts": np.zeros((2, 0), object),
    "a complex number": np.zeros(2, np.complex64),
    "a dict": {"b": np.zeros(2)},
  }


def keys_read(pp):
  """The keys without which a pp string is refused."""
  data = examples(2)
  return [key for key in data if not key.startswith("_") and line_of(lambda k=key: traced(pp, without(data, k)))]


def without(data, key):
  return {name: value for name, value in data.items() if name != key}


@pytest.mark.parametrize("pp", [pp for strings in CASES.values() for pp in strings])
def test_data_that_do_not_fit_are_refused_alike_on_both_paths(pp):
  data = examples(2)
  batched = builder.get_batched_fn(pp, "config.input.pp")
  for key in keys_read(pp):
    for what, value in {**replacements(), "missing": None}.items():
      wrong = without(data, key) if value is None else {**data, key: value}
      line = line_of(lambda wrong=wrong: traced(pp, wrong))
      if line is not None:
        assert line.startswith("config.input.pp: pp op "), (key, what)
      if batched is not None:
        assert line_of(lambda wrong=wrong: batched(wrong)) == line or is_by_value(pp, wrong, line), (key, what)


def is_by_value(pp, data, line):
  """Whether tracing takes data that the values then break: both paths refuse, NumPy in the words of TensorFlow's op."""
  if line is not None:
    return False
  refused = line_of(lambda: builder.get_batched_fn(pp)(data))
  with pytest.raises(tf.errors.OpError) as error:
    run_tf(pp, data)
  return refused.split(": ")[1] in error.value.message


@pytest.mark.parametrize("pp", [pp for strings in CASES.values() for pp in strings])
def test_a_batch_of_no_examples_is_taken(pp):
  """As a component of a mixture gives where a batch has none of it."""
  batched = builder.get_batched_fn(pp)
  if batched is not None:
    one, none = (batched(example_of(examples(2), rows)) for rows in (slice(0, 1), slice(0, 0)))
    for key, value in one.items():
      if not isinstance(value, dict):
        assert none[key].shape == (0, *value.shape[1:])
        assert none[key].dtype == value.dtype


@pytest.mark.parametrize(
  "pp, words",
  [
    ("value_range(key='img')", "pp op value_range: no key 'img'; the example has: _epoch, _id"),
    ("keep('labels')", "pp op keep: no key 'labels'"),
    ("decode|randaug(key='floats')", "pp op decode: no key"),
    ("randaug(key='floats')", "pp op randaug: wants a uint8 image"),
    ("random_crop(17)", "pp op random_crop: the crop is 17 x 17 and the image is smaller: 16 x 22"),
    ("resize(8, key='label')", "pp op resize: an image is"),
    ("vgg_value_range(key='grey')", "mean and std are of 3 channels"),
    ("squeeze_last_dim", "the last dimension must be 1"),
    ("pad(16, 'reflect')", "pp op pad: mode 'reflect' has no 16 pixels to repeat"),
    ("pad(1, value=256)", "pp op pad: value 256.0 is none of uint8"),
    ("reshape((5, 5))", "pp op reshape: new_shape .* does not hold the 1056 entries of uint8"),
    ("onehot(3, 'floats')", "'floats' holds float32 .*; labels are integers"),
    ("choice(key=['image', 'floats'])", "'image', 'floats' hold different numbers of entries"),
    ("copy('label', 'captions/text')|flatten", "two values would be called 'captions/text"),
    ("drop('_seed')|flip_lr", None),
  ],
)
def test_examples_that_do_not_fit_are_refused_while_tracing(pp, words):
  data = examples(1)
  if words is None:  # The pipeline's keys cannot be dropped.
    assert "_seed" in run_tf(pp, data)[0]
    return
  if pp.startswith("decode"):
    del data["image"]
  with pytest.raises(UserError, match=words):
    run_tf(pp, data)
  if batched := builder.get_batched_fn(pp):
    with pytest.raises(UserError, match=words):
      batched(data)


def test_a_strangers_op_goes_on_working_with_and_without_types(monkeypatch):
  monkeypatch.setattr(registry, "OPS", dict(registry.OPS))

  @registry.key_op(key="x")
  def untyped(by=1, table=None):
    return registry.both(lambda value: value + by + (table or {}).get("a", 0))

  @registry.key_op(key="x")
  def oddly_typed(by: "NoSuchType" = 1, fn: np.ndarray = None):
    return registry.both(lambda value: value + by)

  @registry.key_op(key="x")
  def typed(by: int = 1, *, scale: float = 1.0):
    return registry.both(lambda value: value * scale + by)

  data = {"x": np.arange(2)}
  assert builder.get_batched_fn("untyped(2, {'a': 5})|oddly_typed(3)|typed(1, scale=2)")(data)["x"].tolist() == [21, 23]
  assert line_of(lambda: builder.steps("typed('a')")) == "pp op typed: by must be a whole number, got 'a'"
  assert line_of(lambda: builder.steps("typed(scale=True)")) == "pp op typed: scale must be a number, got True"
  line = line_of(lambda: builder.get_batched_fn("untyped('a')")(data))
  assert line.startswith("pp op untyped does not fit the data (")
