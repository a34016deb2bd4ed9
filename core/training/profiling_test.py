import types

import jax.numpy as jnp

from core import files
from core.training import profiling


def trace(folder, steps=(2, 3), to=4, **options):
  with profiling.Trace(steps, folder, **options) as traced:
    for step in range(to + 1):
      traced.after(types.SimpleNamespace(step=step, state=jnp.ones(3) + step))


def test_the_steps_are_traced_into_the_folder(tmp_path):
  trace(tmp_path / "profile")
  assert any(path.name.endswith(".xplane.pb") for path in files.below(tmp_path / "profile"))


def test_a_run_that_ends_within_them_keeps_what_it_has(tmp_path):
  trace(tmp_path / "profile", steps=(2, 9))
  assert files.below(tmp_path / "profile")


def test_without_steps_there_is_no_trace(tmp_path):
  trace(tmp_path / "profile", steps=None)
  assert files.below(tmp_path) == []


def test_a_trace_that_cannot_be_written_is_a_warning(tmp_path):
  (tmp_path / "file").touch()
  lines = []
  trace(tmp_path / "file" / "profile", warn=lines.append)
  (line,) = lines
  assert line.startswith("warning: ")
  assert "profile" in line
  assert "\n" not in line
  trace(tmp_path / "profile")
  assert files.below(tmp_path / "profile")
