"""Trains on a TPU VM: makes it, copies a project's bundle, starts it on all workers, shows its log, and resumes it.

    ./bazelw build --config=tpu //projects/vit:bundle
    ./bazelw run //tools:tpu_vm -- run --name=vit --zone=europe-west4-b --accelerator=v5litepod-16 --spot --queued \\
      --bundle=vit --workdir=gs://BUCKET/runs/s16 --env=TFDS_DATA_DIR=gs://BUCKET/tfds -- --config=s16_i1k

`run` does it all, also after a preemption; it may be ended and called again at any time, the training goes on. The
other commands are its steps. With --dry_run each prints what it would run, and runs nothing. What stands behind `--` is
the trainer's. Exit status of `run`: the trainer's; 2 where the machine could not be had.
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import os
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core import command
from core.errors import UserError
from core.files import from_here
from tools.tpu_vm import launcher, worker
from tools.tpu_vm.commands import Machine
from tools.tpu_vm.gcloud import Gcloud

_MEANINGS = {
  "run": "create the machine if it is missing, copy, start and show the log, until the training is done",
  "create": "create the machine and wait until it is ready",
  "copy": "copy the bundle to all workers",
  "start": "start the trainer on all workers, where it does not run",
  "log": "show a worker's log until its trainer ends",
  "status": "say how the machine and each worker's trainer do",
  "stop": "let the trainers save a checkpoint and end",
  "delete": "delete the machine",
}


def _commands() -> command.Commands:
  """Returns the commands with their flags; all name a machine, each has what it needs besides."""
  made = command.Commands("tpu_vm", about=__doc__)
  for name, meaning in _MEANINGS.items():
    of_command = made.add(name, meaning)
    _define_machine(of_command, created=name in ("run", "create"), reached=name not in ("create", "delete"))
    if name in ("run", "copy", "start"):
      of_command.text("bundle", "name of a project, or FILE.tar.gz", shown="NAME", required=True)
    if name in ("run", "start"):
      where = "gs://BUCKET/FOLDER, or a path that all workers share"
      of_command.text("workdir", where, shown="DIR", required=True)
      of_command.repeated("env", "for the trainer; may be given several times", shown="NAME=VALUE")
      of_command.text("setup", "run on each worker before the trainer", default="", shown="COMMAND")
    if name in ("run", "stop"):
      of_command.number("grace", "seconds for workers to end (300)", default=300.0)
    if name == "run":
      of_command.switch("delete", "delete the machine when the training is done")
    if name == "log":
      of_command.text("worker", "whose log (0)", default="0", shown="N")
  return made


def _define_machine(made: command.Command, *, created: bool, reached: bool) -> None:
  """Declares the flags that say which machine is meant.

  Args:
    made: the command.
    created: whether it creates the machine.
    reached: whether it reaches its workers.
  """
  made.text("name", "of the machine", required=True)
  made.text("zone", "where it is", required=True)
  made.text("project", "of Google Cloud (default: gcloud's own setting)", default="")
  made.switch("queued", "it is a queued resource, which waits for capacity")
  made.switch("dry_run", "print the gcloud commands, run none")
  made.number("poll", "seconds between two looks (30)", default=30.0)
  if created:
    made.text("accelerator", "v5litepod-16, say; or else", default="")
    made.text("topology", "v4:2x2x4, say", default="")
    made.text("version", "runtime version (default: one for this kind of TPU)", default="")
    made.switch("spot", "cheap, and taken away at any time")
    made.number("wait", "seconds for the machine (a day)", default=86_400.0)
  if reached:
    made.text("batch_size", "workers reached at once, N or all (needs gcloud alpha)", default="", shown="N")


def main(argv: Sequence[str]) -> int:
  """Runs a command; returns the exit status."""
  argv, trainer = _split(argv)
  name, flags = _commands().parse(argv)
  if trainer and name not in ("run", "start"):
    raise UserError(f"`{name}` takes no flags of a trainer: {' '.join(trainer)}")
  of_machine = Machine.__dataclass_fields__.keys() & vars(flags).keys()
  machine = Machine(**{key: getattr(flags, key) for key in of_machine})
  timing = {key: getattr(flags, key) for key in ("poll", "wait", "grace") if hasattr(flags, key)}
  vm = launcher.Launcher(Gcloud(dry_run=flags.dry_run), machine, **timing, say=command.say, show=_show)
  try:
    return _do(name, flags, vm, trainer)
  except launcher.MachineGone as gone:
    raise UserError(f"{machine.name} is {gone}; create it first, or let `run` do so") from None


def _show(line: str) -> None:
  """Prints a line of the trainer's log."""
  print(line, flush=True)


def _do(name: str, flags: Any, vm: launcher.Launcher, trainer: Sequence[str]) -> int:
  def tell(*lines: object) -> None:
    if not flags.dry_run:
      print(*lines, sep="\n")

  match name:
    case "run":
      return launcher.run(vm, _job(flags, trainer), delete=flags.delete, say=command.say)
    case "create":
      vm.make_ready(patient=False)
    case "copy":
      vm.copy(launcher.Job(find_bundle(flags.bundle), ""))
    case "start":
      tell(*vm.start(_job(flags, trainer)))
    case "log":
      vm.follow(flags.worker)
    case "status":
      state = vm.state()
      tell(f"{flags.name} {state}")
      if state == launcher.READY:
        tell(*vm.ask_workers(worker.report()))
    case "stop":
      vm.ask_workers(worker.stop())
      states = vm.wait_until_ended()
      tell(*states)
      return int(any(state.word == "running" for state in states))
    case "delete":
      vm.delete()
  return 0


def find_bundle(name: str) -> Path:
  """Returns the archive of a project, as Bazel made it, or a file.

  Raises:
    UserError: there is none, or it is not for TPUs.
  """
  path = Path(from_here(name))
  if not name.endswith(".tar.gz"):
    root = Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", "."))
    path = root / "bazel-bin" / "projects" / name / f"{name}_bundle.tar.gz"
  build = f"./bazelw build --config=tpu //projects/{name if path.parent.name == name else 'NAME'}:bundle"
  try:
    with tarfile.open(path) as archive:
      names = archive.getnames()
  except FileNotFoundError:
    raise UserError(f"no bundle {path}; make it: {build}") from None
  except (tarfile.TarError, EOFError, OSError) as error:
    raise UserError(f"{path} is no bundle ({error}); make it: {build}") from None
  if f"{_folder(path)}/start" not in names:
    raise UserError(f"{path} is no bundle, it has no {_folder(path)}/start; make it: {build}")
  if not any(name.endswith("/requirements.tpu.lock") for name in names):
    raise UserError(f"{path} is not for TPUs; make it: {build}")
  return path


def _folder(bundle: Path) -> str:
  return bundle.name.removesuffix(".tar.gz")


def _job(flags: Any, trainer: Sequence[str]) -> launcher.Job:
  bundle, env = find_bundle(flags.bundle), {}
  if any(re.match(r"--workdir\b", word) for word in trainer):
    raise UserError("give --workdir before the --")
  for entry in flags.env:
    name, equals, value = entry.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
      raise UserError(f"--env={entry}: give NAME=VALUE")
    env[name] = value
  start = worker.start(_folder(bundle), trainer, workdir=flags.workdir, env=env, setup=flags.setup)
  return launcher.Job(bundle, start)


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Returns what is ours, and what stands behind `--`."""
  argv = list(argv)
  at = argv.index("--") if "--" in argv else len(argv)
  return argv[:at], argv[at + 1 :]


if __name__ == "__main__":
  command.run(main, interrupted="left; what runs on the workers goes on")
