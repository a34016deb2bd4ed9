"""Examples made by `tf.data`: records of any source -> parsed, preprocessed, batched NumPy arrays."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped

from core.data import stream, tfrecord
from core.data.choice import Choice
from core.data.columns import Columns
from core.data.order import ReadPlan, StreamOrder, example_seeds, rows
from core.data.source import Source, check_alike
from core.data.tfrecord import Records
from core.errors import UserError
from core.import_tensorflow import import_tensorflow
from core.pp import builder

# With skip_errors, how far the pipeline may run ahead without one good example before the run stops.
_MAX_BAD_BATCHES = 1000


@dataclasses.dataclass(frozen=True)
class Place:
  """Where the config says how some examples are made, for messages.

  Attributes:
    key: the path of the part, `config.input`, `config.input.NAME` or `config.evals.NAME`.
    data: the path of its data.
    pp: the path of its preprocessing string.
  """

  key: str
  data: str
  pp: str


@dataclasses.dataclass(frozen=True)
class Component:
  """One source of examples in a tf.data pipeline.

  Attributes:
    place: where the config has it.
    source: its records.
    order: how its records stream, or None for a source in memory or read in file order.
    example: `tf.function` (row, record, seed, epoch) -> the preprocessed example; it needs the row or the record.
      Traced once, for the check of its shapes and for the pipeline.
    choice: which of the examples are taken.
  """

  place: Place
  source: Source
  order: StreamOrder | None
  example: Callable[..., dict[str, Any]]
  choice: Choice = Choice()

  @property
  def eagerly(self) -> Callable[..., dict[str, Any]]:
    """`example` op by op: for what is wrong with one, in the words of the op that refuses it."""
    return self.example.python_function


def component(
  place: Place,
  source: Source,
  pp: str,
  *,
  order: StreamOrder | None = None,
  in_memory: bool = True,
  skip_errors: bool = False,
  choice: Choice = Choice(),
) -> Component:
  """Returns a component; `specs` traces its preprocessing.

  Args:
    place: where the config has it.
    source: its records.
    pp: its preprocessing string.
    order: see `Component`.
    in_memory: hold a `Records` source whole, as serialized records; its rows then are numbers, not records.
    skip_errors: leave out what is damaged.
    choice: which of the examples are taken.

  Raises:
    UserError: what the pp string refuses, or a damaged file of a source to be held in memory.
  """
  tf = import_tensorflow()
  if isinstance(source, Columns):
    parse = _column_reader(source)
  elif in_memory:
    held = tf.constant(_load(source, skip_errors, place.data))

    def parse(row, record):
      return source.parse(held[row])
  else:

    def parse(row, record):
      return source.parse(record)

  fn = builder.get_preprocess_fn(pp, place.pp, upright=isinstance(source, Columns) and bool(source.files))

  def example(row, record, seed, epoch):
    # A record that is read in sequence has no number here; it is told by what it holds.
    name = row if order is None else tf.strings.to_hash_bucket_fast(record, 2**63 - 1)
    made = fn({**parse(row, record), "_seed": seed, "_id": name, "_epoch": epoch})
    return choice.of({name: value for name, value in made.items() if not name.startswith("_")}, place.pp)

  inputs = [tf.TensorSpec([], kind) for kind in (tf.int64, tf.string, tf.int64, tf.int64)]
  traced = tf.function(example, input_signature=inputs, autograph=False)
  return Component(place, source, order, traced, choice)


def _column_reader(source: Columns) -> Callable[..., dict[str, Any]]:
  """Returns the function of a row that gives its columns, with the bytes of files in the place of their paths."""
  tf = import_tensorflow()
  held = {key: tf.constant(array) for key, array in source.arrays.items()}

  def read(row, record):
    raw = {key: array[row] for key, array in held.items()}
    return raw | {key: tf.io.read_file(raw[key]) for key in source.files}

  return read


def _load(source: Records, pad_damaged: bool, where: str) -> Shaped[np.ndarray, "records"]:
  """Returns all serialized records, in file order."""
  tf = import_tensorflow()
  segments = source.range(0, len(source))
  try:
    records = tfrecord.read(segments, pad_damaged=pad_damaged, passes=source.passes)
    return np.concatenate(list(records.batch(1024).as_numpy_iterator()))
  except tf.errors.OpError as error:
    raise UserError(f"{where}: {tfrecord.first_damage(segments, source.passes) or tfrecord.reason(error)}") from None


def specs(components: Sequence[Component]) -> dict[str, Any]:
  """Returns the type and shape of each key of an example, which all components must share.

  Raises:
    UserError: components of different keys, types or shapes, entries of entries, or what tracing the preprocessing
      refuses.
  """
  tf = import_tensorflow()
  found = []
  for part in components:
    try:
      traced = part.example.get_concrete_function()
    except (ValueError, TypeError, tf.errors.OpError) as error:
      raise UserError(f"{part.place.pp} does not fit the data: {tfrecord.reason(error)}") from error
    outputs = {key: x for key, x in traced.structured_outputs.items() if not key.startswith("_")}
    if nested := [key for key, x in outputs.items() if isinstance(x, dict)]:
      line = f"leaves {nested[0]!r}, which holds entries of its own; flatten, or keep what is needed"
      raise UserError(f"{part.place.pp} {line}")
    for key, value in outputs.items():
      if isinstance(value, tf.RaggedTensor):
        raise UserError(f"{part.place.pp} leaves {key!r} ragged; pad_to_shape gives all examples one shape")
    found.append(
      {k: (x.dtype.name, x.shape.as_list() if x.shape.rank is not None else None) for k, x in outputs.items()}
    )
  check_alike({part.place.key: spec for part, spec in zip(components, found)})
  return found[0]


class TrainStream:
  """The local batches from a step on, made by tf.data; `close()` ends its threads."""

  def __init__(self, plan: ReadPlan, components: Sequence[Component], seed: int, start_step: int, skip_errors: bool):
    self._plan, self._components, self._seed = plan, components, seed
    self._skip_errors = skip_errors
    self._chooses = any(part.choice.condition for part in components)
    self.step, self.skipped = start_step, 0
    specs(components)
    self._iterator: Iterator | None = self._batches(start_step).as_numpy_iterator()

  def __next__(self) -> dict[str, np.ndarray]:
    tf = import_tensorflow()
    try:
      batch = next(self._iterator)
    except StopIteration:
      raise UserError(self._explain_end()) from None
    except tf.errors.OpError as error:
      raise UserError(self._explain(error)) from error
    # Where examples are chosen, a place may hold a good example of a later one.
    places = batch.pop("_place") if self._chooses else self._ordinals(self.step)
    self.skipped += int((batch.pop("_ordinal") != places).sum())
    self.step += 1
    return batch

  def close(self) -> None:
    """Ends the threads."""
    # Background threads may wait for Python's lock; releasing the iterator waits for them without holding it.
    self._iterator = None

  def _ordinals(self, step: int) -> Int64[np.ndarray, "local"]:
    """Returns the numbers of a step's examples, counted over this process from step 0."""
    return step * self._plan.local_batch + np.arange(self._plan.local_batch)

  def _host_step(self, step: int) -> dict[str, np.ndarray]:
    """Returns what the graph needs to know of this process's examples of one step."""
    slots = self._plan.slots(step)
    row, epoch = np.zeros_like(slots.position), np.zeros_like(slots.position)
    for number, part in enumerate(self._components):
      here = slots.component == number
      epoch[here] = slots.index[here] // len(part.source)
      if part.order is None:
        row[here] = rows(len(part.source), self._seed, number, slots.index[here])
    seed = example_seeds(self._seed, slots.position)
    component = slots.component.astype(np.int32)
    return {"_ordinal": self._ordinals(step), "seed": seed, "component": component, "row": row, "epoch": epoch}

  def _raw(self, start_step: int) -> Any:
    """Returns the `tf.data.Dataset` of (what to make, serialized record or an empty string), an example an element."""
    tf = import_tensorflow()

    def host_steps():
      step = start_step
      while step - self.step < _MAX_BAD_BATCHES:
        yield self._host_step(step)
        step += 1

    spec = {key: tf.TensorSpec(array.shape, array.dtype) for key, array in self._host_step(start_step).items()}
    info = tf.data.Dataset.from_generator(host_steps, output_signature=spec).unbatch()
    if all(part.order is None for part in self._components):
      return info.map(lambda info: (info, b""))
    orders = [part.order and (part.source, part.order) for part in self._components]
    return tf.data.Dataset.zip(info, stream.records(self._plan, orders, start_step, pad_damaged=self._skip_errors))

  def _example(self, info: dict[str, Any], record: Any) -> dict[str, Any]:
    tf = import_tensorflow()
    branches = [functools.partial(self._branch, part, info, record) for part in self._components]
    made = branches[0]() if len(branches) == 1 else tf.switch_case(info["component"], branches)
    return {**made, "_ordinal": info["_ordinal"]}

  def _branch(self, part: Component, info: dict[str, Any], record: Any) -> dict[str, Any]:
    made = part.example(info["row"], record, info["seed"], info["epoch"])
    # All branches must have the same entries.
    return {"_meets": import_tensorflow().constant(True), **made} if self._chooses else made

  def _batches(self, start_step: int) -> Any:
    tf = import_tensorflow()
    size = self._plan.local_batch
    example = tf.autograph.experimental.do_not_convert(self._example)
    made = self._raw(start_step).map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    if self._skip_errors:
      made = _fill_gaps(made.ignore_errors(), start_step * size, "_ordinal")
    if self._chooses:
      made = made.enumerate(start_step * size).map(lambda place, example: {**example, "_place": place})
      made = _fill_gaps(made.filter(lambda example: example["_meets"]), start_step * size, "_place")
      made = made.map(lambda example: {key: value for key, value in example.items() if key != "_meets"})
    return _options(made.batch(size, drop_remainder=True).prefetch(2))

  def _explain_end(self) -> str:
    """Says why there is no next batch: none of the examples far ahead can be used."""
    conditions = [part.choice.where for part in self._components if part.choice.condition]
    ahead = f"{_MAX_BAD_BATCHES} batches from step {self.step} on"
    if conditions and not self._skip_errors:
      return f"{conditions[0]}: no example of {ahead} meets it"
    return f"{self._components[0].place.data}: no good example in {ahead}"

  def _explain(self, error: Exception) -> str:
    """Names the example, or the file, that stopped the pipeline at this step, by making the step again one by one."""
    tf = import_tensorflow()
    slots, shapes = self._plan.slots(self.step), {}
    try:
      raw = list(self._raw(self.step).take(self._plan.local_batch))
    except tf.errors.OpError:
      raw = []
      for lane, index, number in zip(slots.lane, slots.lane_index, slots.component):
        part = self._components[number]
        damage = part.order and tfrecord.first_damage(stream.windows_of(part.source, part.order, int(lane), int(index)))
        if damage:
          rest = "skip_errors=True counts and skips the rest of such a file"
          return f"{part.place.data}: {damage}; at step {self.step}. {rest}"
    for slot, (info, record) in enumerate(raw):
      part = self._components[slots.component[slot]]
      name = _name(part, info, slots, slot)
      try:
        made = part.eagerly(info["row"], record, info["seed"], info["epoch"])
      except (tf.errors.OpError, UserError) as reason:
        return (
          f"{part.place.data}: {name} cannot be made an example, at step {self.step} ({tfrecord.reason(reason)}); "
          "skip_errors=True counts and skips such records"
        )
      for key, value in made.items():
        other, shape = shapes.setdefault(key, (name, tuple(value.shape)))
        if shape != tuple(value.shape):
          return (
            f"{part.place.data}: {key!r} has shape {shape} for {other} and {tuple(value.shape)} for {name}, at step "
            f"{self.step}; {part.place.pp} must give all examples one shape, by resize or crop"
          )
    return f"{self._components[0].place.data}: step {self.step}: {tfrecord.reason(error)}"


def _name(part: Component, info: dict[str, Any], slots: Any, slot: int) -> str:
  """Returns what to call the example of a slot."""
  if part.order is None:
    return part.source.describe(int(info["row"]))
  return part.source.describe_in_piece(*part.order.record(int(slots.lane[slot]), int(slots.lane_index[slot])))


def _fill_gaps(examples: Any, first: int, key: str) -> Any:
  """Puts the next example in the place of every one that is missing from the row of `key`s, which starts at `first`.

  The next and not the last one, so that a run resumed within a gap fills it alike.
  """
  tf = import_tensorflow()

  def step(expected, example):
    return example[key] + 1, (example, example[key] + 1 - expected)

  counted = examples.scan(np.int64(first), step)
  return counted.flat_map(lambda example, count: tf.data.Dataset.from_tensors(example).repeat(count))


def _options(dataset: Any) -> Any:
  """Returns the dataset with the options of all: the same order always, and one thread an example."""
  options = import_tensorflow().data.Options()
  options.deterministic = True
  options.threading.max_intra_op_parallelism = 1  # Examples run beside each other; one alone need not.
  return dataset.with_options(options)


def eval_batches(part: Component, low: int, high: int, size: int) -> Iterator[dict[str, np.ndarray]]:
  """Yields the examples [low, high) of a component in file order, in batches of `size`, the last as small as it comes.

  Raises:
    UserError: an example that cannot be made, by name.
  """
  tf = import_tensorflow()
  row = np.arange(low, high)
  info = tf.data.Dataset.from_tensor_slices((row, example_seeds(0, row)))
  records = info.map(lambda row, seed: b"")
  if isinstance(part.source, Records):
    records = tfrecord.read(part.source.range(low, high), passes=part.source.passes)
  raw = tf.data.Dataset.zip(info, records).map(lambda info, record: (info[0], record, info[1], np.int64(0)))
  made = raw.map(part.example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
  try:
    yield from _options(made.batch(size).prefetch(2)).as_numpy_iterator()
  except tf.errors.OpError as error:
    raise UserError(_explain_eval(part, raw, low, error)) from error


def _explain_eval(part: Component, raw: Any, low: int, error: Exception) -> str:
  """Names the example, or the file, that stopped an evaluation."""
  tf, where = import_tensorflow(), part.place.data
  row, shapes = low, {}
  try:
    for row, record, seed, epoch in raw:
      name = part.source.describe(int(row))
      for key, value in part.eagerly(row, record, seed, epoch).items():
        other, shape = shapes.setdefault(key, (name, tuple(value.shape)))
        if shape != tuple(value.shape):
          shapes_differ = f"{key!r} has shape {shape} for {other} and {tuple(value.shape)} for {name}"
          return f"{where}: {shapes_differ}; {part.place.pp} must give all examples one shape, by resize or crop"
  except (tf.errors.OpError, UserError) as reason:
    if isinstance(part.source, Records) and (damage := tfrecord.first_damage(part.source.range(low, len(part.source)))):
      return f"{where}: {damage}"
    return f"{where}: {part.source.describe(int(row))} cannot be made an example ({tfrecord.reason(reason)})"
  return f"{where}: {part.source.name}: {tfrecord.reason(error)}"
