"""What can befall a run: writes that fail, and signals at each stage of its life.

A life is a start of a project's trainer in this process, or in a fork of it that has imported all and computed nothing.
"""

import contextlib
import dataclasses
import errno
import importlib
import json
import os
import re
import resource
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from core import signals
from core.testing import trainer

# A run of seconds: three evaluations, four checkpoints, dropout and shuffling.
STEPS = 12
TINY = (
  "--config=digits",
  "--config.model.depth=1",
  "--config.model.width=16",
  "--config.model.mlp_dim=32",
  "--config.model.num_heads=2",
  "--config.model.dropout=0.1",
  "--config.input.batch_size=32",
  f"--config.total_steps={STEPS}",
  "--config.ckpt_steps=3",
  "--config.log_training_steps=1",
  "--config.evals.test.log_steps=4",
)

ERRORS = (errno.ENOSPC, errno.EACCES, errno.EINTR)

# What is called at each stage of a life; the signal comes when it is, at a step after the others.
STAGES = {
  "read": ("core.data.pipeline", "train_batches"),
  "compile": ("core.training.compiled_steps", "CompiledSteps.wait"),
  "step": ("core.cluster.processes", "report_step"),
  "evaluation": ("core.evaluators.classification", "Evaluator.run"),
  "checkpoint": ("core.checkpoint.seal", "write"),
  "final save": ("core.checkpoint.pretrained", "save_variables"),
  "end": ("core.training.workdir_lock", "WorkdirLock.release"),
}
_WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
_ROOM = 1024  # Bytes that a file may have where there is no more space.


@dataclasses.dataclass
class Fault:
  """One write that fails, the first that fits.

  Attributes:
    event: "open" to write, "fsync", "os.mkdir", "os.rename", "os.remove", "os.rmdir", or "room": from this folder's
      making on no file can grow, the next checkpoint's ends it.
    path: a regular expression for the whole path in the folder, numbers of processes and files as `N`.
    error: the `errno` that it fails with.
  """

  event: str
  path: str
  error: int = errno.ENOSPC


class FailingFiles:
  """A folder in which planned writes fail; C++ is reached by `room` alone.

  Args:
    folder: the folder.
    faults: what fails; taken from the list as it does.
  """

  def __init__(self, folder: Path, faults: list[Fault]):
    self._folder, self.faults = str(folder), faults
    self.seen: list[tuple[str, str]] = []

  def write(self, event: str, path: str) -> None:
    """Notes a write, and has it fail where that is planned."""
    if not path.startswith(self._folder):
      return
    name = re.sub(r"(?<=\.)\d+(?=\.part)|(?<=process_)\d+|[0-9a-f]{32}", "N", path[len(self._folder) :].lstrip("/"))
    if (event, name) not in self.seen:
      self.seen.append((event, name))
    if event == "os.mkdir" and re.fullmatch(r"checkpoints/\d+\.orbax-checkpoint-tmp", name):
      _grant(resource.RLIM_INFINITY)
    for fault in self.faults:
      if re.fullmatch(fault.path, name) and event == ("os.mkdir" if fault.event == "room" else fault.event):
        self.faults.remove(fault)
        if fault.event != "room":
          raise OSError(fault.error, os.strerror(fault.error), path)
        _grant(_ROOM)
        return


def as_regex(path: str) -> str:
  """Returns a pattern for a path that was seen, at any step."""
  return re.sub(r"(?<=checkpoints/)\d+", r"\\d+", re.escape(path))


_failing: list[FailingFiles] = []
_hooked: list[Callable] = []


@contextlib.contextmanager
def failing(folder: Path, faults: Sequence[Fault]) -> Iterator[FailingFiles]:
  """Has writes in a folder fail as planned; gives what notes all of them."""
  if not _hooked:  # Such a hook stays for good.
    _hooked.append(_audit)
    sys.addaudithook(_audit)
  fsync, ignored = os.fsync, signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  _failing.append(FailingFiles(folder, list(faults)))
  os.fsync = _fsync(fsync)
  try:
    yield _failing[-1]
  finally:
    _failing.pop()
    os.fsync = fsync
    _grant(resource.RLIM_INFINITY)
    signal.signal(signal.SIGXFSZ, ignored)


def _audit(event: str, args: tuple) -> None:
  if not _failing:
    return
  if event in _WRITES:
    _failing[-1].write(event, os.fspath(args[0]) if isinstance(args[0], str | os.PathLike) else "")
  elif event == "open" and isinstance(args[0], str) and args[2] & (os.O_WRONLY | os.O_RDWR):
    _failing[-1].write(event, args[0])


def _fsync(fsync: Callable[[Any], None]) -> Callable[[Any], None]:
  def checked(descriptor: Any) -> None:
    number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
    _failing[-1].write("fsync", os.readlink(f"/proc/self/fd/{number}"))
    fsync(descriptor)

  return checked


def _grant(size: int) -> None:
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def at_stage(stage: str, act: Callable[[], None], step: int = 3) -> None:
  """Has `act` called, once, when this process comes to a stage of its run; to that of a step at `step`."""
  module, path = STAGES[stage]
  owner, (*within, name) = importlib.import_module(module), path.split(".")
  for part in within:
    owner = getattr(owner, part)
  real, acted = getattr(owner, name), []

  def acting(*args: Any, **kwargs: Any) -> Any:
    if not acted and (stage != "step" or args[0] >= step):
      acted.append(True)
      act()
    return real(*args, **kwargs)

  setattr(owner, name, acting)


@dataclasses.dataclass(frozen=True)
class Life:
  """One start of a trainer.

  Attributes:
    workdir: of the run.
    stage: at which it gets a signal.
    signal: which one; 0 is none.
    twice: whether a second follows, that ends it at once.
    fault: of a write, as `Fault` has it.
    seen: a file to be made, which holds what was written, as JSON: `[[event, path], ...]`.
  """

  workdir: str
  stage: str = "step"
  signal: int = 0
  twice: bool = False
  fault: tuple[str, str, int] | None = None
  seen: str | None = None


def lives(module: str, options: Sequence[str], each: Sequence[Life]) -> list[tuple[int, str]]:
  """Starts a trainer again and again, one after the other; returns exit status and output of each.

  Args:
    module: the trainer, `projects.vit.train`.
    options: its flags.
    each: what befalls it.
  """
  described = json.dumps([module, options, [dataclasses.astuple(life) for life in each]])
  process = trainer.start_code("from core.testing import faults; faults.fork_lives()", described)
  output, _ = process.communicate()
  if process.returncode:
    raise RuntimeError(output)
  return [tuple(end) for end in json.loads(output.splitlines()[-1])]


def fork_lives() -> None:
  """Does what `lives` asks for, in a process that computes nothing itself and can be forked, therefore."""
  module, options, each = json.loads(sys.argv[1])
  importlib.import_module(module)
  ends = []
  for life in each:
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
      os.dup2(writer, 1)
      os.dup2(writer, 2)
      os.close(writer)
      return _live(module, options, Life(*life))
    os.close(writer)
    with open(reader, errors="replace") as output:
      said = output.read()
    ends.append([os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), said])
  print(json.dumps(ends))
  return None


def _live(module: str, options: Sequence[str], life: Life) -> None:
  """Runs the trainer in this process, a fork, which ends as a trainer's does."""
  signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell has what it starts in the background ignore it.
  signals.listen()

  def send() -> None:
    os.kill(os.getpid(), life.signal)
    if life.twice:
      time.sleep(0.2)
      os.kill(os.getpid(), life.signal)
      time.sleep(30)

  if life.signal:
    at_stage(life.stage, send)
  sys.argv = [module, *options, f"--workdir={life.workdir}"]
  del sys.modules[module]
  with failing(Path(life.workdir), [Fault(*life.fault)] if life.fault else []) as writes:
    try:
      runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
      if life.seen:
        Path(life.seen).write_text(json.dumps(writes.seen))
