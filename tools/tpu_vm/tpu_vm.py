"""Trains on a TPU VM: makes it, copies a project's bundle, starts it on all workers, shows its log, and resumes it.

    ./bazelw build --config=tpu //projects/vit:bundle
    ./bazelw run //tools:tpu_vm -- run --name=vit --zone=europe-west4-b --accelerator=v5litepod-16 --spot --queued \\
      --bundle=vit --workdir=gs://BUCKET/runs/s16 --env=TFDS_DATA_DIR=gs://BUCKET/tfds -- --config=s16_i1k

`run` does it all, also after a preemption; it may be ended and called again at any time, the training goes on. The
other commands are its steps. With --dry_run each prints what it would run, and runs nothing. What stands behind `--` is
the trainer's. Exit status of `run`: the trainer's; 2 where the machine could not be had.
"""

import argparse
import os
import re
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from core.errors import UserError
from core.files import from_here
from tools.tpu_vm import launcher, worker
from tools.tpu_vm.commands import Machine
from tools.tpu_vm.gcloud import Gcloud

_COMMANDS = {
  "run": "create the machine if it is missing, copy, start and show the log, until the training is done",
  "create": "create the machine and wait until it is ready",
  "copy": "copy the bundle to all workers",
  "start": "start the trainer on all workers, where it does not run",
  "log": "show a worker's log until its trainer ends",
  "status": "say how the machine and each worker's trainer do",
  "stop": "let the trainers save a checkpoint and end",
  "delete": "delete the machine",
}


def main(argv: Sequence[str]) -> int:
  """Runs a command; returns the exit status."""
  argv, trainer = _split(argv)
  flags = _parser().parse_args(argv)
  if trainer and flags.command not in ("run", "start"):
    raise UserError(f"`{flags.command}` takes no flags of a trainer: {' '.join(trainer)}")
  of_machine = Machine.__dataclass_fields__.keys() & vars(flags).keys()
  machine = Machine(**{name: getattr(flags, name) for name in of_machine})
  timing = {name: getattr(flags, name) for name in ("poll", "wait", "grace") if hasattr(flags, name)}
  say = lambda line: print(line, file=sys.stderr, flush=True)
  show = lambda line: print(line, flush=True)
  vm = launcher.Launcher(Gcloud(dry_run=flags.dry_run), machine, **timing, say=say, show=show)
  try:
    return _do(flags, vm, trainer, say)
  except launcher.MachineGone as gone:
    raise UserError(f"{machine.name} is {gone}; create it first, or let `run` do so") from None


def _do(flags: argparse.Namespace, vm: launcher.Launcher, trainer: Sequence[str], say: Callable[[str], None]) -> int:
  tell = lambda *lines: None if flags.dry_run else print(*lines, sep="\n")
  match flags.command:
    case "run":
      return launcher.run(vm, _job(flags, trainer), delete=flags.delete, say=say)
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
  """The archive of a project, as Bazel made it, or a file.

  Raises:
    UserError: there is none, or it is not for TPUs.
  """
  path = from_here(name)
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


def _job(flags: argparse.Namespace, trainer: Sequence[str]) -> launcher.Job:
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
  """What is ours, and what stands behind `--`."""
  argv = list(argv)
  at = argv.index("--") if "--" in argv else len(argv)
  return argv[:at], argv[at + 1 :]


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="tpu_vm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
  for name, text in _COMMANDS.items():
    command = subparsers.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.add_argument("--name", required=True, help="of the machine")
    command.add_argument("--zone", required=True)
    command.add_argument("--project", default="", help="of Google Cloud (default: gcloud's own setting)")
    command.add_argument("--queued", action="store_true", help="it is a queued resource, which waits for capacity")
    command.add_argument("--dry_run", action="store_true", help="print the gcloud commands, run none")
    command.add_argument("--poll", type=float, default=30.0, metavar="SECONDS", help="between two looks (30)")
    if name in ("run", "create"):
      command.add_argument("--accelerator", default="", help="v5litepod-16, say; or else")
      command.add_argument("--topology", default="", help="v4:2x2x4, say")
      command.add_argument("--version", default="", help="runtime version (default: one for this kind of TPU)")
      command.add_argument("--spot", action="store_true", help="cheap, and taken away at any time")
      command.add_argument("--wait", type=float, default=86_400.0, metavar="SECONDS", help="for the machine (a day)")
    if name not in ("create", "delete"):
      command.add_argument("--batch_size", default="", help="workers reached at once, N or all (needs gcloud alpha)")
    if name in ("run", "copy", "start"):
      command.add_argument("--bundle", required=True, help="name of a project, or FILE.tar.gz")
    if name in ("run", "start"):
      command.add_argument("--workdir", required=True, help="gs://BUCKET/FOLDER, or a path that all workers share")
      command.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for the trainer")
      command.add_argument("--setup", default="", metavar="COMMAND", help="run on each worker before the trainer")
    if name in ("run", "stop"):
      command.add_argument("--grace", type=float, default=300.0, metavar="SECONDS", help="for workers to end (300)")
    if name == "run":
      command.add_argument("--delete", action="store_true", help="delete the machine when the training is done")
    if name == "log":
      command.add_argument("--worker", default="0", help="whose log (0)")
  return parser


if __name__ == "__main__":
  try:
    sys.exit(main(sys.argv[1:]))
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    print("left; what runs on the workers goes on", file=sys.stderr)
    sys.exit(130)
