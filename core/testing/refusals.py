"""Wrong configs and flags, as a person would type them to a project's trainer: each is refused in one line."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from core.training import cli

_LONGEST = len("error: ") + 300


def make_test(project: Path, task: cli.TaskChoice, cases: Iterable[tuple[str | Sequence[str], str]]) -> Callable:
  """Returns the test to be assigned to `test_...` in a project's test file: one case for each mistake.

  Args:
    project: the project's folder.
    task: what its trainer hands to `cli.main`.
    cases: the flags that are wrong, without the dashes, one or several; and how the line begins after `error: `, the
      whole path of what is wrong among it.
  """
  cases = [((flags,) if isinstance(flags, str) else tuple(flags), line) for flags, line in cases]

  @pytest.mark.parametrize("flags, line", cases, ids=[" ".join(flags)[:80] for flags, _ in cases])
  def test_mistake(flags: tuple[str, ...], line: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    workdir = tmp_path / "run"
    arguments = [f"--workdir={workdir}", *(f"--{flag}" for flag in flags)]
    with pytest.raises(SystemExit) as exit_:
      cli.main(task, project=project, default="digits", argv=arguments)
    written = capfd.readouterr()
    assert exit_.value.code == 2, written.err
    (said,) = written.err.splitlines()
    assert said.startswith(f"error: {line}"), said
    assert len(said) <= _LONGEST
    assert not written.out
    # What was refused has not claimed the workdir: mend the mistake and start again.
    assert not list(workdir.glob("*"))

  return test_mistake
