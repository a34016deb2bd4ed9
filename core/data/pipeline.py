"""Batches for training and evaluation: order, mixing, preprocessing, batching.

The state of the training input is one integer, the step: `train_batches(..., start_step=k)` gives what a run that never
stopped gives from step k on. Data in memory whose preprocessing works on batches take a path of NumPy alone, and
TensorFlow is never imported; everything else, and `skip_errors`, runs in `tf.data`.
"""

import functools
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from core.data import order
from core.data.choice import Choice, kept_only
from core.data.columns import Columns
from core.data.source import Source, check_alike, of_component, open_source
from core.errors import UserError, multiples_near
from core.pp import builder
from core.recipe.input import Component, Input
from core.recipe.sources import AnySource

Batch = dict[str, np.ndarray]

_CACHE_BYTES = 256 << 20  # Preprocessed evaluation sets up to this size, a process, are kept.


class TrainInput:
  """An endless iterator of this process's part of every batch.

  Attributes:
    num_examples: records of an epoch; of a mixture, the sum over its components.
    batch_size: examples a step over all processes.
  """

  def __init__(self, batches: Any, num_examples: int, batch_size: int):
    self.num_examples, self.batch_size = num_examples, batch_size
    self._batches = batches
    self._finalizer = weakref.finalize(self, batches.close)  # Also at exit, while threads can still end.

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    return next(self._batches)

  @property
  def skipped(self) -> int:
    """How many examples could not be made and were skipped so far, with `skip_errors=True`."""
    return getattr(self._batches, "skipped", 0)

  def close(self) -> None:
    """Ends the threads of the pipeline."""
    self._finalizer()


def dataset_size(recipe: Input) -> int:
  """Returns the number of records of an epoch; of a mixture, the sum over its components.

  Raises:
    UserError: as `train_batches`.
  """
  return sum(len(of_component(component)) for component in recipe.components)


def train_batches(
  recipe: Input, *, seed: int, start_step: int, process_index: int = 0, process_count: int = 1
) -> TrainInput:
  """Returns the batches of an input from `start_step` on.

  Args:
    recipe: what the config's `input` says. Its sources are opened once, whoever asks first.
    seed: of the order and the augmentation.
    start_step: the first batch to give.
    process_index: which process this is; it gets the slots [i, i + 1) * batch_size / process_count of every batch.
    process_count: how many processes share a batch.

  Raises:
    UserError: whatever is wrong with the input or the data, before the first batch where it can be known.
  """
  _check_divides(recipe.batch_size, process_count, "config.input.batch_size")
  components = recipe.components
  sources = [of_component(component) for component in components]
  mixture = None
  if len(sources) > 1:
    mixture = order.Mixture.of(seed, [component.weight for component in components])
  lanes = order.lanes_for(recipe.batch_size, process_count)
  plan = order.ReadPlan(lanes, mixture, process_index, process_count)
  batched = [_batched_fn(source, each.pp, each.pp_key, each.keep_only) for source, each in zip(sources, components)]
  chooses = recipe.skip_errors or any(each.post_filter_fn for each in components)
  if all(batched) and not chooses:  # Only tf.data, which makes examples one by one, can leave out some.
    keys = [component.key for component in components]
    batches = _numpy_train_batches(plan, keys, sources, batched, seed, start_step)
  else:
    from core.data import tf_examples

    parts = [
      _tf_component(component, source, seed, number, lanes, recipe.skip_errors)
      for number, (component, source) in enumerate(zip(components, sources))
    ]
    batches = tf_examples.TrainStream(plan, parts, seed, start_step, recipe.skip_errors)
  return TrainInput(batches, sum(map(len, sources)), recipe.batch_size)


def _tf_component(
  component: Component, source: Source, seed: int, number: int, lanes: order.Lanes, skip_errors: bool
) -> Any:
  from core.data import tf_examples

  in_memory = isinstance(source, Columns) or component.cache_raw or len(source) <= component.shuffle_buffer_size
  # Half of the buffer drains while the other half fills.
  window = max(1, component.shuffle_buffer_size // (2 * lanes.count))
  stream = None if in_memory else order.StreamOrder(seed, number, lanes, source.takes, window)
  place = tf_examples.Place(component.key, f"{component.key}.data", component.pp_key)
  choice = Choice(component.post_filter_fn, component.post_filter_fn_key, component.keep_only)
  how = dict(order=stream, in_memory=in_memory, skip_errors=skip_errors, choice=choice)
  return tf_examples.component(place, source, component.pp, **how)


def _batched_fn(
  source: Source, pp: str, where: str, keep_only: Sequence[str] | None = None
) -> Callable[[Batch], Batch] | None:
  """Returns the preprocessing of a batch of rows without TensorFlow, or None where there is none."""
  fn = builder.get_batched_fn(pp, where)
  if fn is None or not isinstance(source, Columns) or source.files:
    return None

  def preprocessed(data: Batch) -> Batch:
    made = {key: np.asarray(value) for key, value in fn(data).items() if not key.startswith("_")}
    return kept_only(made, keep_only, where)

  return preprocessed


def _numpy_train_batches(
  plan: order.ReadPlan, keys: Sequence[str], sources: Sequence[Columns], fns: Sequence, seed: int, start_step: int
) -> Iterator[Batch]:
  def make(number: int, index: Int64[np.ndarray, "n"], seeds: Int64[np.ndarray, "n"]) -> Batch:
    taken = order.rows(len(sources[number]), seed, number, index)
    own = {"_seed": seeds, "_id": taken, "_epoch": index // len(sources[number])}
    return fns[number]({**sources[number].take(taken), **own})

  samples = {key: make(number, np.zeros(1, np.int64), np.zeros(1, np.int64)) for number, key in enumerate(keys)}
  check_alike({key: {k: (x.dtype.name, list(x.shape[1:])) for k, x in made.items()} for key, made in samples.items()})

  def batches():
    for step in itertools.count(start_step):
      slots = plan.slots(step)
      seeds = order.example_seeds(seed, slots.position)
      if plan.mixture is None:
        yield make(0, slots.index, seeds)
        continue
      batch = {key: np.empty((plan.local_batch, *x.shape[1:]), x.dtype) for key, x in samples[keys[0]].items()}
      for number in range(len(sources)):
        here = slots.component == number
        for key, value in make(number, slots.index[here], seeds[here]).items():
          batch[key][here] = value
      yield batch

  return batches()


def _check_divides(batch_size: int, process_count: int, key: str) -> None:
  if batch_size % process_count:
    sizes = multiples_near(batch_size, of=process_count)
    raise UserError(f"{key} {batch_size} cannot be divided among {process_count} processes; {sizes} can")


class EvalInput:
  """This process's batches of an evaluation set: iterate it as often as needed, `len()` of them every time.

  Every batch has `_mask` (float32, 1 for an example, 0 for padding) and `_id` (int64, the example's index in the split,
  -1 for padding). Padding repeats an example. Over all processes every example comes exactly once, in file order within
  a process, and every process has the same number of batches.

  Attributes:
    num_examples: of the whole split.
    batch_size: examples a batch over all processes.
  """

  def __init__(
    self, make: Callable[[int, int, int], Iterator[Batch]], size: int, batch_size: int, process: tuple[int, int], cache
  ):
    index, count = process
    self.num_examples, self.batch_size = size, batch_size
    self._make, self._cache = make, cache
    self._local, self._length = batch_size // count, -(-size // batch_size)
    self._first = index * self._length * self._local
    self._kept: list[Batch] | None = None

  def __len__(self) -> int:
    return self._length

  def __iter__(self) -> Iterator[Batch]:
    if self._kept is not None:
      yield from self._kept
      return
    limit = {None: _CACHE_BYTES, True: float("inf"), False: -1}[self._cache]
    kept, size = [], 0
    for batch in self._fresh():
      yield batch
      size += sum(map(_bytes, batch.values()))
      kept = [*kept, batch] if size <= limit else []
    if size <= limit:
      self._kept = kept

  def _fresh(self) -> Iterator[Batch]:
    # A process without examples of its own makes the last one, to know the shapes of its padding.
    low = min(self._first, self.num_examples - 1)
    high = min(max(low + 1, self._first + self._length * self._local), self.num_examples)
    made, batch = self._make(low, high, self._local), {}
    for number in range(self._length):
      batch = next(made, None) or {key: value[-1:] for key, value in batch.items()}
      size = len(next(iter(batch.values())))
      if size < self._local:
        batch = {key: np.concatenate([x, np.repeat(x[-1:], self._local - size, axis=0)]) for key, x in batch.items()}
      row = self._first + number * self._local + np.arange(self._local)
      real = row < self.num_examples
      yield {**batch, "_mask": real.astype(np.float32), "_id": np.where(real, row, -1)}


def _bytes(array: np.ndarray) -> int:
  return sum(map(len, array.flat)) if array.dtype == object else array.nbytes


def eval_batches(
  data: AnySource,
  pp_fn: str,
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
  cache: bool | None = None,
  where: str = "data",
  pp_where: str | None = None,
) -> EvalInput:
  """Returns the batches of an evaluation set, see `EvalInput`.

  Args:
    data: the arguments of its source, as `core.recipe.sources` has them.
    pp_fn: the preprocessing string. Random ops draw the same in every evaluation.
    batch_size: over all processes.
    process_index: which process this is.
    process_count: how many processes share the set.
    cache: keep the preprocessed batches for the next evaluation; None: if they are small (256 MiB a process).
    where: the path of `data` in the config, `config.evals.val.data`, for messages.
    pp_where: that of `pp_fn`; None: `pp_fn` beside the data.

  Raises:
    UserError: whatever is wrong with the arguments or the data.
  """
  beside = where.rpartition(".")[0]
  prefix = f"{beside}." if beside else ""
  pp_where = pp_where or f"{prefix}pp_fn"
  _check_divides(batch_size, process_count, f"{prefix}batch_size")
  source = open_source(data, where)
  fn = _batched_fn(source, pp_fn, pp_where)
  if fn:
    fn(_rows(source, 0, 1))  # What the preprocessing refuses, it refuses now.

    def make(low: int, high: int, size: int) -> Iterator[Batch]:
      return (fn(_rows(source, n, min(n + size, high))) for n in range(low, high, size))
  else:
    from core.data import tf_examples

    place = tf_examples.Place(beside or where, where, pp_where)
    part = tf_examples.component(place, source, pp_fn, in_memory=isinstance(source, Columns))
    tf_examples.specs([part])
    make = functools.partial(tf_examples.eval_batches, part)
  return EvalInput(make, len(source), batch_size, (process_index, process_count), cache)


def _rows(source: Columns, low: int, high: int) -> Batch:
  """Returns the records [low, high) with their seeds, and their places in the place of names."""
  row = np.arange(low, high)
  return {**source.take(row), "_seed": order.example_seeds(0, row), "_id": row, "_epoch": np.zeros_like(row)}
