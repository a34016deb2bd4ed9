"""What a person sees of a run: a few lines at its start, a live line as it trains, where the results are at its end."""

import re
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from core.live import Line


class Progress:
  """Prints a run's progress: a line that redraws itself on a terminal, plain lines elsewhere.

  Args:
    total_steps: length of the run.
    start_step: steps already taken.
    batch_size: examples a step.
    steps_per_epoch: may be fractional.
    stream: where to print; None prints nothing (processes other than the first).
  """

  def __init__(
    self, *, total_steps: int, start_step: int, batch_size: int, steps_per_epoch: float, stream: TextIO | None
  ):
    self._total, self._batch, self._per_epoch = total_steps, batch_size, steps_per_epoch
    self._line = Line(stream)
    self._step = start_step
    self._mark = (time.perf_counter(), start_step)
    self._rate = 0.0
    self._measured = 0
    self._skipped = 0
    self._loss: float | None = None
    self._last_eval = ""

  def say(self, text: str) -> None:
    """Prints one line for good, in the place of the live line."""
    self._line.say(text)

  def wait(self, text: str) -> None:
    """Says on a terminal what is going on, until the next line takes its place."""
    self._line.draw(f"{text} ...")

  def tick(self, step: int) -> None:
    """Shows how far the run is; to be called after every step."""
    self._step = step
    self._line.draw(self._how_far)

  def close(self) -> None:
    """Takes the live line away."""
    self._line.close()

  def log(self, step: int, loss: float) -> dict[str, float]:
    """Call at every logged step; returns the timings to log beside the metrics."""
    now = time.perf_counter()
    since, from_step = self._mark
    seconds = (now - since) / max(step - from_step, 1)
    self._rate, self._mark, self._loss = seconds, (now, step), loss
    self._measured += 1
    self._step = step
    if not self._line.live:
      self.say(self._so_far())
    return {"time/step_seconds": seconds, "time/images_per_second": self._batch / seconds}

  def evaluated(self, step: int, results: Mapping[str, float], seconds: float) -> None:
    """Prints an evaluation's results; its time does not count as training."""
    self.paused(seconds)
    text = "  ".join(f"{name} {format_metric(name, value)}" for name, value in results.items())
    self._last_eval = "".join(
      f"  {name} {format_metric(name, value)}" for name, value in results.items() if not name.endswith("loss")
    )
    self.say(f"step {step:,}: {text}  ({seconds:.1f} s)")

  def skipped(self, count: int) -> None:
    """Says how many examples could not be read so far, each time there are more."""
    if count > self._skipped:
      self._skipped = count
      self.say(f"skipped {count:,} examples that could not be read")

  def paused(self, seconds: float) -> None:
    """Time that is not training (a checkpoint's copy, say) and must not count in images/s."""
    since, from_step = self._mark
    self._mark = (since + seconds, from_step)

  def _how_far(self) -> str:
    return f"{self._so_far()}{self._last_eval}"

  def _so_far(self) -> str:
    step = self._step
    parts = [f"step {step:,}/{self._total:,}"]
    if self._loss is not None:
      parts.append(f"loss {self._loss:.4f}")
    if self._rate:
      parts.append(f"{self._batch / self._rate:,.0f} images/s")
    parts.append(f"epoch {step / self._per_epoch:.1f}")
    if self._measured > 1:  # The first measure holds what happens once, and would say many times the true time.
      parts.append(f"{duration((self._total - step) * self._rate)} left")
    return "  ".join(parts)


def format_metric(name: str, value: Any) -> str:
  """Accuracies as percent, all else with four digits."""
  is_accuracy = "prec@" in name or "recall@" in name or "acc" in name or re.search(r"_\d+(shot|nn)$", name)
  return f"{value:.2%}" if is_accuracy else f"{value:.4g}"


def duration(seconds: float) -> str:
  """`75 -> "1:15"`, `3_700 -> "1:01:40"`."""
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def table(rows: Mapping[str, str]) -> str:
  """Lines `  key    value` with the values aligned."""
  width = max(map(len, rows), default=0)
  return "\n".join(f"  {key:<{width}}  {value}" for key, value in rows.items())


def default_stream(is_first_process: bool) -> TextIO | None:
  """Standard output for the first process, nothing for the others."""
  return sys.stdout if is_first_process else None
