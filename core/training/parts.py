"""What a run does beside its steps: small parts, each called after every step, which a project can add to or leave out.

parts.usual(run)    -> a context with [Logging, Evaluating, Stopping, Saving, Ticking, Profiling]
loop.train(run, [*usual, MyPart()])
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import jax

from core.cluster.preemption import Preemption
from core.state import TrainState, Variables
from core.training import metrics
from core.training.plan import EMA
from core.training.prepare import Run
from core.training.profiling import Trace


class NonFiniteLoss(Exception):
  """The loss or its gradient became NaN or infinite; the newest checkpoint is from before."""


@dataclasses.dataclass
class Now:
  """Where a run stands; before its first step, too.

  Attributes:
    step: updates made.
    state: after them.
    metrics: of the last step, on the devices; None before the first.
    evaluated: whether the evaluations due after this step have run.
    stopping: whether this step is the last because the run was asked to stop.
    results: of the newest evaluations, `{"val/prec@1": ...}`; not of those before the first step, if there is one.
  """

  step: int
  state: TrainState
  metrics: Mapping[str, jax.Array] | None = None
  evaluated: bool = True
  stopping: bool = False
  results: dict[str, float] = dataclasses.field(default_factory=dict)


class Part(Protocol):
  """Something a run does beside its steps."""

  def after(self, now: Now) -> None:
    """Acts after a step, and once before the first; may set what is later read of `now`."""


@contextlib.contextmanager
def usual(run: Run) -> Iterator[list[Part]]:
  """Gives the parts of every run, in their order; signals and a profile are settled when it is left."""
  with contextlib.ExitStack() as closing:
    preemption = closing.enter_context(Preemption())
    trace = closing.enter_context(Trace(run.recipe.profile_steps, run.workdir / "profile"))
    logging = Logging(run)
    yield [
      logging,
      Evaluating(run, settle=logging.settle, interrupted=preemption.requested),
      Stopping(preemption),
      Saving(run, settle=logging.settle),
      Ticking(run),
      trace,
    ]


class Logging:
  """Fetches the metrics of steps that are over, refuses those that are not finite, and logs those that are due."""

  def __init__(self, run: Run):
    self._run = run
    self._pending: dict[int, Mapping[str, jax.Array]] = {}

  def after(self, now: Now) -> None:
    """Notes the step's metrics, and logs those of the step before if they are due: the device goes on meanwhile."""
    if now.metrics is None:
      return
    self._pending[now.step] = now.metrics
    if self._run.plan.logs(now.step - 1):
      self.settle(now.step - 1)

  def settle(self, through: int) -> None:
    """Fetches and logs the metrics of all steps up to `through`.

    Raises:
      NonFiniteLoss: a loss or a gradient is not finite.
    """
    run = self._run
    fetched = jax.device_get({step: self._pending.pop(step) for step in sorted(self._pending) if step <= through})
    for step, values in fetched.items():
      if fault := metrics.first_non_finite(values):
        run.saved.wait()
        raise NonFiniteLoss(f"{fault} at step {step:,}; {run.saved.newest_line()}")
      if run.plan.logs(step):
        timings = run.progress.log(step, float(values["training_loss"]))
        run.log.write(step, {**values, **self._rates(step), **timings})
        run.progress.skipped(run.data.skipped)

  def _rates(self, step: int) -> dict[str, float]:
    """Returns the learning rate at which `step` was taken, one for each schedule."""
    lr = self._run.recipe.lr
    return {f"lr{i or ''}": lr * float(schedule(step - 1)) for i, schedule in enumerate(self._run.placement.schedules)}


class Evaluating:
  """Runs the evaluations that are due, of the parameters and of their average, and logs what they find.

  Args:
    run: the run.
    settle: logs the metrics of training up to a step, which stand before those of its evaluations.
    interrupted: tells whether to leave off, the run being to stop.
  """

  def __init__(self, run: Run, *, settle: Callable[[int], None], interrupted: Callable[[], bool]):
    self._run, self._settle, self._interrupted = run, settle, interrupted

  def after(self, now: Now) -> None:
    """Runs those due at this step that are not in the log yet."""
    if self._run.plan.evaluates_any(now.step):
      self._settle(now.step)
      now.evaluated = self._evaluate(now)

  def _evaluate(self, now: Now) -> bool:
    run, average = self._run, None
    for name, evaluator in run.evaluators.items():
      if not run.plan.evaluates(name, now.step):
        continue
      seconds_key = f"time/{name}_seconds"
      found = run.log.line(now.step, seconds_key)
      if found is None:
        began = time.perf_counter()
        variables = now.state.variables
        if run.recipe.ema and name.endswith(EMA):
          variables = average = average or averaged(run, now.state)
        values = evaluator.run(variables, interrupted=self._interrupted)
        if values is None:
          return False
        found = {f"{run.plan.prefixes[name]}{key}": value for key, value in values.items()}
        seconds = time.perf_counter() - began
        run.log.write(now.step, {**found, seconds_key: seconds})
        run.progress.evaluated(now.step, found, seconds)
      if now.step or not run.plan.total:
        now.results.update((key, value) for key, value in found.items() if key not in ("step", seconds_key))
    return True


def averaged(run: Run, state: TrainState) -> Variables:
  """Returns the variables with the parameters' average in the place of the parameters."""
  return {**state.variables, "params": run.average(state.opt_state, state.params)}


class Stopping:
  """Ends the run after a step in which it was asked to stop; all processes after the same one."""

  def __init__(self, preemption: Preemption):
    self._preemption = preemption

  def after(self, now: Now) -> None:
    """Notes whether the run stops here."""
    now.stopping = not now.evaluated if now.metrics is None else self._preemption.agreed(now.step)


class Saving:
  """Saves checkpoints when they are due, and before the run stops.

  Args:
    run: the run.
    settle: logs the metrics of training up to a step: a resumed run goes on with its log from there.
  """

  def __init__(self, run: Run, *, settle: Callable[[int], None]):
    self._run, self._settle = run, settle

  def after(self, now: Now) -> None:
    """Starts to write the state, if it is due."""
    if now.metrics is not None and (now.stopping or self._run.plan.saves(now.step)):
      self._settle(now.step)
      if self._run.lock is not None:
        self._run.lock.check()  # A process that was stopped for long may have lost the workdir meanwhile.
      self._run.log.flush()
      self._run.progress.paused(self._run.saved.save(now.step, now.state))


class Ticking:
  """Shows how far the run is."""

  def __init__(self, run: Run):
    self._progress = run.progress

  def after(self, now: Now) -> None:
    """Redraws the live line."""
    if now.metrics is not None and not now.stopping:
      self._progress.tick(now.step)
