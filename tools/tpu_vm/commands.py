"""Words after `gcloud` for all that is done with a TPU VM: pure functions of the machine that is meant."""

import re
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError, nearest

# Runtime versions that suit each kind of TPU (Google Cloud's documentation, "TPU software versions", for JAX).
_VERSIONS = {
  "v2": "tpu-ubuntu2204-base",
  "v3": "tpu-ubuntu2204-base",
  "v4": "tpu-ubuntu2204-base",
  "v5e": "v2-alpha-tpuv5-lite",
  "v5p": "v2-alpha-tpuv5",
  "v6e": "v2-alpha-tpuv6e",
}
_NAMES = {"v5e": "v5litepod"}  # Those that gcloud calls otherwise.
_WITH_TOPOLOGY = ("v2", "v3", "v4")  # For the other kinds only `gcloud alpha` takes a topology.
# A machine that is taken away closes no connection: ssh itself must notice, here within a minute.
_ALIVE = ("-oServerAliveInterval=15", "-oServerAliveCountMax=4")


@dataclass(frozen=True)
class Machine:
  """A TPU VM, there or to be made.

  Attributes:
    name: of the node, and of the queued resource that holds it.
    zone: where.
    project: of Google Cloud; gcloud's own setting where it is empty.
    accelerator: the accelerator type, `v5litepod-16`; or else
    topology: kind and shape, `v4:2x2x4`.
    version: the runtime version; that of the kind where it is empty.
    spot: cheap, and taken away at any time.
    queued: asked for as a queued resource, which waits for capacity.
    batch_size: workers that are reached at once, a number or `all`; one where it is empty.
  """

  name: str
  zone: str
  project: str = ""
  accelerator: str = ""
  topology: str = ""
  version: str = ""
  spot: bool = False
  queued: bool = False
  batch_size: str = ""


def create(machine: Machine) -> list[str]:
  """Returns what makes the node, or hands in the request for it.

  Raises:
    UserError: what is to be made is not said, or not in a form that is known.
  """
  kind, words = _shape(machine)
  if not (version := machine.version or _VERSIONS.get(kind, "")):
    raise UserError("--version is missing: this accelerator's runtime version is not known here")
  resource = "queued-resources" if machine.queued else "tpu-vm"
  track = "" if machine.accelerator or kind in _WITH_TOPOLOGY else "alpha"
  if machine.queued:
    words = [f"--node-id={machine.name}", *words, f"--runtime-version={version}", "--async"]
  else:
    words = [*words, f"--version={version}"]
  return _command(machine, resource, "create", machine.name, *words, *["--spot"] * machine.spot, track=track)


def describe(machine: Machine) -> list[str]:
  """Returns what prints the node's state."""
  return _command(machine, "tpu-vm", "describe", machine.name, "--format=value(state)")


def describe_queued(machine: Machine) -> list[str]:
  """Returns what prints the queued resource's state, a tab, and why it failed."""
  shown = "--format=value(state.state,state.failedData.error.message)"
  return _command(machine, "queued-resources", "describe", machine.name, shown)


def delete(machine: Machine) -> list[str]:
  """Returns what deletes the node, with its request where it was queued."""
  if machine.queued:
    return _command(machine, "queued-resources", "delete", machine.name, "--force")
  return _command(machine, "tpu-vm", "delete", machine.name)


def copy(machine: Machine, file: Path) -> list[str]:
  """Returns what copies a file into the home folder on each worker."""
  words = (str(file), f"{machine.name}:{file.name}", "--worker=all", *(f"--scp-flag={flag}" for flag in _ALIVE))
  return _command(machine, "tpu-vm", "scp", *words, *_batches(machine), track=_track(machine))


def ssh(machine: Machine, command: str, worker: str = "all") -> list[str]:
  """Returns what runs a shell's command on `worker`, or on each in turn."""
  words = (machine.name, f"--worker={worker}", f"--command={command}", *(f"--ssh-flag={flag}" for flag in _ALIVE))
  return _command(machine, "tpu-vm", "ssh", *words, *_batches(machine), track=_track(machine))


def _command(machine: Machine, resource: str, verb: str, *words: str, track: str = "") -> list[str]:
  where = [f"--zone={machine.zone}", *([f"--project={machine.project}"] if machine.project else [])]
  return ["--quiet", *([track] if track else []), "compute", "tpus", resource, verb, *words, *where]


def _track(machine: Machine) -> str:
  return "alpha" if machine.batch_size else ""  # Only `gcloud alpha` reaches several workers at once.


def _batches(machine: Machine) -> list[str]:
  return [f"--batch-size={machine.batch_size}"] if machine.batch_size else []


def _shape(machine: Machine) -> tuple[str, list[str]]:
  """Returns the kind of TPU, and the words that ask for it."""
  if bool(machine.accelerator) == bool(machine.topology):
    raise UserError("say what to create: --accelerator=v5litepod-16, say, or --topology=v4:2x2x4")
  if machine.accelerator:
    name = machine.accelerator.rpartition("-")[0]
    return {"v5litepod": "v5e"}.get(name, name), [f"--accelerator-type={machine.accelerator}"]
  kind, _, shape = machine.topology.partition(":")
  if kind not in _VERSIONS:
    raise UserError(f"--topology: no kind of TPU is called {kind!r}{nearest(kind, _VERSIONS)}")
  if not re.fullmatch(r"\d+(x\d+){1,2}", shape):
    raise UserError(f"--topology={machine.topology}: the shape must be like 4x4 or 2x2x4, after {kind}:")
  return kind, [f"--type={_NAMES.get(kind, kind)}", f"--topology={shape}"]
