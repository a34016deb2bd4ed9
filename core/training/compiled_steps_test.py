"""The forms of a step: each compiled once, when it is needed or before, and never again."""

import threading
import time
import types
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from core.errors import UserError
from core.training import compiled_steps


class Program:
  """Stands in for a lowered step: counts what is compiled, and may take its time."""

  def __init__(self, form, log, gate=None):
    self._form, self._log, self._gate = form, log, gate

  def compile(self):
    if self._gate:
      assert self._gate.wait(60)
    self._log.append(self._form)
    return self._form


def updates(form, log, *, total=20, start=0, gates=None):
  made = compiled_steps.CompiledSteps(lambda f: Program(f, log, (gates or {}).get(f)), form, start=start, total=total)
  made.wait()
  return made


def test_each_form_is_compiled_once_and_serves_its_steps():
  log = []
  forms = updates(lambda step: step % 3, log)
  assert [forms.for_step(step)[0] for step in range(1, 21)] == [step % 3 for step in range(1, 21)]
  assert Counter(log) == {0: 1, 1: 1, 2: 1}


def test_the_first_form_is_there_before_training_and_the_others_come_meanwhile(monkeypatch):
  log, gate = [], threading.Event()
  forms = updates(lambda step: "rare" if step == 5 else "usual", log, gates={"rare": gate})
  assert log == ["usual"]
  assert forms.for_step(4) == ("usual", 0.0)

  def clock():  # It is read when the waiting begins, and when it is over.
    gate.set()
    return next(readings)

  readings = iter((10.0, 12.5))
  monkeypatch.setattr(compiled_steps, "time", types.SimpleNamespace(perf_counter=clock))
  assert forms.for_step(5) == ("rare", 2.5)
  assert forms.for_step(5) == ("rare", 0.0)


def test_a_resumed_run_begins_with_the_form_of_its_own_first_step():
  log = []
  updates(lambda step: step, log, start=6, total=6)
  assert log == [7]  # As all is done, no other is needed.
  updates(lambda step: step, log, start=5, total=6)
  assert log == [7, 6]


def test_forms_far_ahead_are_compiled_when_they_come():
  log = []
  forms = updates(lambda step: step > 5_000, log, total=10_000)
  assert log == [False]
  assert forms.for_step(5_001)[0] is True
  assert log == [False, True]


def test_what_tracing_refuses_is_raised_where_the_form_is_needed():
  def lower(form):
    if form == "bad":
      raise UserError("this size does not fit")
    return Program(form, [])

  forms = compiled_steps.CompiledSteps(lower, lambda step: "bad" if step == 2 else "good", start=0, total=2)
  assert forms.for_step(1)[0] == "good"
  with pytest.raises(UserError, match="does not fit"):
    forms.for_step(2)
  with pytest.raises(UserError, match="does not fit"):
    compiled_steps.CompiledSteps(lower, lambda step: "bad", start=0, total=2).wait()


def test_what_has_not_begun_is_left_when_the_run_ends():
  log, gate = [], threading.Event()
  forms = updates(lambda step: step, log, gates={step: gate for step in range(2, 100)}, total=100)
  forms.close()
  gate.set()
  time.sleep(0.1)
  assert len(log) < 50


def test_a_real_step_is_compiled_beside_the_one_that_runs_and_takes_no_other_shapes():
  double = jax.jit(lambda x, form: x * form, static_argnums=1)
  shape = jax.ShapeDtypeStruct((4,), jnp.float32)
  forms = compiled_steps.CompiledSteps(
    lambda form: double.lower(shape, form), lambda step: step % 2 + 2, start=0, total=4
  )
  assert [float(forms.for_step(step)[0](jnp.ones(4))[0]) for step in (1, 2)] == [3.0, 2.0]
  with pytest.raises(TypeError):
    forms.for_step(1)[0](jnp.ones(5))
