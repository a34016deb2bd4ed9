"""A small run, as a person starts it: what it reaches, what it says, what it leaves alone."""

from collections.abc import Callable
from pathlib import Path

from core.testing import trainer

_INTRODUCTION = ["model", "device", "data", "train", "run", "compiled"]


def make_test(
  project: str, *overrides: str, config: str | None = None, accuracy: float, metric: str = "test/prec@1"
) -> Callable:
  """Returns the test to be assigned to `test_...` in a project's test file: one whole run of a config on the digits.

  Args:
    project: its name, `"vit"`.
    *overrides: flags that change the config, `"--config.total_epochs=40"`.
    config: one of its configs; the default one, which is then not named, if None.
    accuracy: what `metric` must reach at the end, in [0, 1].
    metric: of which evaluation.
  """

  def test_default_run(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    code = "import atexit, runpy, sys; atexit.register(lambda: print('tensorflow' in sys.modules, flush=True)); "
    code += f"runpy.run_module('projects.{project}.train', run_name='__main__', alter_sys=True)"
    arguments = (*([f"--config={config}"] if config else []), *overrides, f"--workdir={workdir}")
    process = trainer.start_code(code, *arguments, env={"XLA_FLAGS": ""})  # As a person has it: compiled to be fast.
    lines = [line.rstrip() for line in process.stdout]
    assert process.wait(timeout=60) == 0, lines
    imports_tensorflow = lines.pop()
    assert imports_tensorflow == "False"
    assert lines[-1] == f"done: results in {workdir}"
    reached = [line[metric] for line in trainer.repeatable_metrics(workdir) if metric in line]
    assert reached[-1] >= accuracy
    # What will run on what, in under ten lines, and no library's warnings among them.
    introduction = lines[: next(i for i, line in enumerate(lines) if line.startswith("step 1/"))]
    assert len(introduction) < 10
    assert [line.split()[0] for line in introduction] == [project, *_INTRODUCTION]
    assert all(line.startswith(("step ", "done: ")) for line in lines[len(introduction) :])

  return test_default_run
