"""Examples made by `tf.data`: records of any source -> parsed, preprocessed, batched NumPy arrays."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from core.data import input_config, stream, tfrecord
from core.data.columns import Columns
from core.data.import_tensorflow import import_tensorflow
from core.data.order import ReadPlan, StreamOrder, example_seeds, rows
from core.data.source import Source
from core.data.tfrecord import Records
from core.errors import UserError
from core.pp import builder

# With skip_errors, how far the pipeline may run ahead without one good example before the run stops.
_MAX_BAD_BATCHES = 1000


@dataclasses.dataclass(frozen=True)
class Component:
  """One source of examples in a tf.data pipeline.

  Attributes:
    key: the config's key, for messages.
    order: how its records stream, or None for a source in memory or read in file order.
    example: `tf.function` (row, record, seed) -> the preprocessed example; it needs the row or the record. Traced once,
      for the check of its shapes and for the pipeline.
  """

  key: str
  source: Source
  order: StreamOrder | None
  example: Callable[..., dict[str, Any]]

  @property
  def eagerly(self) -> Callable[..., dict[str, Any]]:
    """As `example`, op by op: for what is wrong with one, in the words of the op that refuses it."""
    return self.example.python_function


def component(
  key: str,
  source: Source,
  pp: str,
  *,
  order: StreamOrder | None = None,
  in_memory: bool = True,
  skip_errors: bool = False,
) -> Component:
  """A component whose examples are checked to be preprocessable, by tracing.

  Args:
    in_memory: hold a `Records` source whole, as serialized records; its rows then are numbers, not records.

  Raises:
    UserError: what the pp string refuses, or a damaged file of a source to be held in memory.
  """
  tf = import_tensorflow()
  if isinstance(source, Columns):
    parse = _column_reader(source)
  elif in_memory:
    held = tf.constant(_load(source, skip_errors))
    parse = lambda row, record: source.parse(held[row])
  else:
    parse = lambda row, record: source.parse(record)
  fn = builder.get_preprocess_fn(pp)

  def example(row, record, seed):
    made = fn({**parse(row, record), "_seed": seed})
    return {name: value for name, value in made.items() if not name.startswith("_")}

  inputs = [tf.TensorSpec([], kind) for kind in (tf.int64, tf.string, tf.int64)]
  return Component(key, source, order, tf.function(example, input_signature=inputs, autograph=False))


def _column_reader(source: Columns) -> Callable[..., dict[str, Any]]:
  tf = import_tensorflow()
  held = {key: tf.constant(array) for key, array in source.arrays.items()}

  def read(row, record):
    raw = {key: array[row] for key, array in held.items()}
    return raw | {key: tf.io.read_file(raw[key]) for key in source.files}

  return read


def _load(source: Records, pad_damaged: bool) -> np.ndarray:
  """All serialized records, in file order."""
  tf = import_tensorflow()
  where = source.range(0, len(source))
  try:
    return np.concatenate(list(tfrecord.read(where, pad_damaged=pad_damaged).batch(1024).as_numpy_iterator()))
  except tf.errors.OpError as error:
    raise UserError(f"data: {tfrecord.first_damage(where) or tfrecord.reason(error)}") from None


def specs(components: Sequence[Component]) -> dict[str, Any]:
  """`TensorSpec`s of an example, which all components must share.

  Raises:
    UserError: components of different keys, types or shapes, or what tracing the preprocessing refuses.
  """
  tf = import_tensorflow()
  found = []
  for part in components:
    try:
      traced = part.example.get_concrete_function()
    except (ValueError, TypeError, tf.errors.OpError) as error:
      raise UserError(f"config: {part.key}.pp does not fit the data: {tfrecord.reason(error)}") from error
    outputs = traced.structured_outputs
    found.append(
      {k: (x.dtype.name, x.shape.as_list() if x.shape.rank is not None else None) for k, x in outputs.items()}
    )
  input_config.check_alike({part.key: spec for part, spec in zip(components, found)})
  return found[0]


class TrainStream:
  """The local batches from a step on, made by tf.data; `close()` ends its threads."""

  def __init__(self, plan: ReadPlan, components: Sequence[Component], seed: int, start_step: int, skip_errors: bool):
    self._plan, self._components, self._seed = plan, components, seed
    self._skip_errors = skip_errors
    self.step, self.skipped = start_step, 0
    specs(components)
    self._iterator: Iterator | None = self._batches(start_step).as_numpy_iterator()

  def __next__(self) -> dict[str, np.ndarray]:
    tf = import_tensorflow()
    try:
      batch = next(self._iterator)
    except StopIteration:
      raise UserError(f"data: no good example in {_MAX_BAD_BATCHES} batches from step {self.step} on") from None
    except tf.errors.OpError as error:
      raise UserError(self._explain(error)) from error
    self.skipped += int((batch.pop("_ordinal") != self._ordinals(self.step)).sum())
    self.step += 1
    return batch

  def close(self) -> None:
    # Background threads may wait for Python's lock; releasing the iterator waits for them without holding it.
    self._iterator = None

  def _ordinals(self, step: int) -> np.ndarray:
    """The numbers of a step's examples, counted over this process from step 0."""
    return step * self._plan.local_batch + np.arange(self._plan.local_batch)

  def _host_step(self, step: int) -> dict[str, np.ndarray]:
    """What the graph needs to know of this process's examples of one step."""
    slots = self._plan.slots(step)
    row = np.zeros_like(slots.position)
    for number, part in enumerate(self._components):
      here = slots.component == number
      if part.order is None:
        row[here] = rows(len(part.source), self._seed, number, slots.index[here])
    seed = example_seeds(self._seed, slots.position)
    return {"_ordinal": self._ordinals(step), "seed": seed, "component": slots.component.astype(np.int32), "row": row}

  def _raw(self, start_step: int) -> Any:
    """The `tf.data.Dataset` of (what to make, serialized record or an empty string), one example an element."""
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
    branches = [functools.partial(part.example, info["row"], record, info["seed"]) for part in self._components]
    made = branches[0]() if len(branches) == 1 else tf.switch_case(info["component"], branches)
    return {**made, "_ordinal": info["_ordinal"]}

  def _batches(self, start_step: int) -> Any:
    tf = import_tensorflow()
    size = self._plan.local_batch
    example = tf.autograph.experimental.do_not_convert(self._example)
    made = self._raw(start_step).map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    if self._skip_errors:
      made = _fill_gaps(made.ignore_errors(), start_step * size)
    return _options(made.batch(size, drop_remainder=True).prefetch(2))

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
          return f"data: {damage}; at step {self.step}. skip_errors=True counts and skips the rest of such a file"
    for slot, (info, record) in enumerate(raw):
      part = self._components[slots.component[slot]]
      name = _name(part, info, slots, slot)
      try:
        made = part.eagerly(info["row"], record, info["seed"])
      except tf.errors.OpError as reason:
        return (
          f"data: {name} cannot be made an example, at step {self.step} ({tfrecord.reason(reason)}); "
          "skip_errors=True counts and skips such records"
        )
      for key, value in made.items():
        other, shape = shapes.setdefault(key, (name, tuple(value.shape)))
        if shape != tuple(value.shape):
          return (
            f"data: {key!r} has shape {shape} for {other} and {tuple(value.shape)} for {name}, at step {self.step}; "
            f"{part.key}.pp must give all examples one shape, by resize or crop"
          )
    return f"data: step {self.step}: {tfrecord.reason(error)}"


def _name(part: Component, info: dict[str, Any], slots: Any, slot: int) -> str:
  if part.order is None:
    return part.source.describe(int(info["row"]))
  return part.source.describe_in_piece(*part.order.record(int(slots.lane[slot]), int(slots.lane_index[slot])))


def _fill_gaps(examples: Any, first: int) -> Any:
  """Puts the next good example in the place of every one missing from the row of `_ordinal`s, which starts at `first`.

  The next and not the last one, so that a run resumed within a gap fills it alike.
  """
  tf = import_tensorflow()

  def step(expected, example):
    return example["_ordinal"] + 1, (example, example["_ordinal"] + 1 - expected)

  counted = examples.scan(np.int64(first), step)
  return counted.flat_map(lambda example, count: tf.data.Dataset.from_tensors(example).repeat(count))


def _options(dataset: Any) -> Any:
  options = import_tensorflow().data.Options()
  options.deterministic = True
  options.threading.max_intra_op_parallelism = 1  # Examples run beside each other; one alone need not.
  return dataset.with_options(options)


def eval_batches(part: Component, low: int, high: int, size: int) -> Iterator[dict[str, np.ndarray]]:
  """The examples [low, high) of a component in file order, in batches of `size`, the last one as small as it comes.

  Raises:
    UserError: an example that cannot be made, by name.
  """
  tf = import_tensorflow()
  row = np.arange(low, high)
  info = tf.data.Dataset.from_tensor_slices((row, example_seeds(0, row)))
  records = info.map(lambda row, seed: b"")
  if isinstance(part.source, Records):
    records = tfrecord.read(part.source.range(low, high))
  raw = tf.data.Dataset.zip(info, records).map(lambda info, record: (info[0], record, info[1]))
  made = raw.map(part.example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
  try:
    yield from _options(made.batch(size).prefetch(2)).as_numpy_iterator()
  except tf.errors.OpError as error:
    raise UserError(_explain_eval(part, raw, low, error)) from error


def _explain_eval(part: Component, raw: Any, low: int, error: Exception) -> str:
  tf = import_tensorflow()
  row, shapes = low, {}
  try:
    for row, record, seed in raw:
      name = part.source.describe(int(row))
      for key, value in part.eagerly(row, record, seed).items():
        other, shape = shapes.setdefault(key, (name, tuple(value.shape)))
        if shape != tuple(value.shape):
          return (
            f"data: {key!r} has shape {shape} for {other} and {tuple(value.shape)} for {name}; {part.key} must resize"
          )
  except tf.errors.OpError as reason:
    if isinstance(part.source, Records) and (damage := tfrecord.first_damage(part.source.range(low, len(part.source)))):
      return f"data: {damage}"
    return f"data: {part.source.describe(int(row))} cannot be made an example ({tfrecord.reason(reason)})"
  return f"data: {part.source.name}: {tfrecord.reason(error)}"
