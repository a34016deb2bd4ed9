"""The data of an evaluator: every example of a split once, and sums over them."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax
import jax
import numpy as np
from jax.sharding import NamedSharding

from core import sharding as sharding_lib
from core.data import feed, pipeline
from core.errors import UserError
from core.recipe.evaluators_base import Evaluation
from core.recipe.types import Refused
from core.state import Batch, Variables

# What published configs call the choices. Raw data are read anew, be it from the memory that the system has free.
_CACHE = {"final_data": True, "none": False, "pipeline": None, "raw_data": None}


@contextlib.contextmanager
def refused_at(where: str) -> Iterator[None]:
  """Turns what is refused within the context into a line that begins with a path of the config.

  Programs that several evaluators share do not know whose they are: they raise `Refused`, whoever runs them knows.

  Args:
    where: the evaluator's path, `config.evals.NAME`.

  Raises:
    UserError: `Refused`, or a `UserError` without a path, was raised within; the parameters do not fit the batches; or
      the memory of the host does not hold a batch.
  """
  try:
    yield
  except Refused as error:
    path = f"{where}.{error.key} " if error.key else f"{where}: "
    raise UserError(f"{path}{error}") from error
  except UserError as error:  # What a model refuses, it refuses without knowing for whom.
    if str(error).startswith("config."):
      raise
    raise UserError(f"{where}: {error}") from error
  except flax.errors.ScopeParamShapeError as error:
    raise UserError(f"{where}: the model does not fit what the preprocessing leaves: {error}") from error
  except MemoryError as error:
    raise UserError(f"{where}.batch_size: memory does not hold a batch ({error})") from error


def open_batches(
  data: Any,
  pp_fn: str,
  *,
  batch_size: int,
  sharding: NamedSharding,
  cache: bool | str | None = None,
  where: str,
  key: str = "data",
  pp_key: str = "pp_fn",
) -> pipeline.EvalInput:
  """Returns this process's batches of a dataset, see `core.data.pipeline.EvalInput`.

  Args:
    data: the dataset, a dataclass of `core.recipe.sources`.
    pp_fn: the preprocessing string.
    batch_size: examples a step over all devices; the last batch is padded.
    sharding: how a batch is to lie on the devices.
    cache: see `core.recipe.evaluators_base.Evaluation`.
    where: the path of the evaluator in the config, for messages.
    key: of the dataset among the evaluator's options, for messages.
    pp_key: of the preprocessing, for messages.

  Raises:
    UserError: whatever is wrong with these arguments or the data.
  """
  sharding_lib.check_batch_size(batch_size, sharding, f"{where}.batch_size")
  cache = _CACHE[cache] if isinstance(cache, str) else cache
  process = dict(process_index=jax.process_index(), process_count=jax.process_count())
  paths = dict(where=f"{where}.{key}", pp_where=f"{where}.{pp_key}")
  opened = pipeline.eval_batches(data, pp_fn, batch_size=batch_size, cache=cache, **paths, **process)
  if not opened.num_examples:
    raise UserError(f"{where}.{key} has no example")
  return opened


def open_dataset(options: Any, sharding: NamedSharding, where: str) -> pipeline.EvalInput:
  """Returns this process's batches of an evaluator's one dataset.

  Args:
    options: an `Evaluation` and `OneDataset` of `core.recipe.evaluators_base`.
    sharding: how a batch is to lie on the devices.
    where: the path of `options` in the config, for messages.

  Raises:
    UserError: as `open_batches`.
  """
  return open_batches(options.data, options.pp_fn, **common(options, sharding, where))


def common(options: Evaluation, sharding: NamedSharding, where: str) -> dict[str, Any]:
  """Returns the arguments of `open_batches` that all datasets of an evaluator share."""
  return dict(batch_size=options.batch_size, sharding=sharding, cache=options.cache, where=where)


def require(batch: Batch, *keys: str) -> None:
  """Refuses batches that lack one of `keys`.

  Raises:
    Refused: it names the key, and those that there are.
  """
  for key in keys:
    if key not in batch:
      kept = ", ".join(name for name in batch if not name.startswith("_"))
      raise Refused(f"the preprocessing must leave {key!r}; it leaves: {kept}")


class Totals:
  """Sums over a dataset of what a function sums over a batch; each example counts exactly once.

  Args:
    fn: `(variables, batch) -> a tree of arrays`, traced by JAX. It must leave out the examples whose `_mask` is 0.
    data: this process's batches.
    sharding: how a batch lies on the devices.
    where: the path of the evaluator in the config, for messages.
  """

  def __init__(
    self, fn: Callable[[Variables, Batch], Any], data: pipeline.EvalInput, sharding: NamedSharding, where: str
  ):
    self._data, self._sharding, self._where = data, sharding, where
    self._fn = jax.jit(fn, out_shardings=sharding_lib.replicated(sharding.mesh))

  def check(self, variables: Variables) -> None:
    """Refuses, by the shapes of one batch, what the first run would; `variables` may be shapes, too.

    Raises:
      UserError: the data cannot be read, or `fn` refuses them.
    """
    with feed.to_devices(self._data, self._sharding) as batches, refused_at(self._where):
      jax.eval_shape(self._fn, variables, next(batches))

  def run(self, variables: Variables, interrupted: Callable[[], bool] = lambda: False) -> Any:
    """Returns the sums, as float64 arrays of the host; None if `interrupted()` became true on the way.

    Raises:
      UserError: as `check`.
    """
    sums = []
    with feed.to_devices(self._data, self._sharding) as batches, refused_at(self._where):
      for batch in batches:
        sums.append(self._fn(variables, batch))
        # One batch computes and one waits for its turn; more would fill the devices.
        jax.block_until_ready(sums[-2:-1])
        if interrupted():
          return None
    # Summed in double precision on the host, in the order of the batches: exact counts, and the same total every time.
    return jax.tree.map(lambda *each: np.sum(np.asarray(each, np.float64), axis=0), *jax.device_get(sums))
