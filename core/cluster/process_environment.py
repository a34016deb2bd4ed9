"""Which of a job's processes this is: as the flags say, or as TPU VMs, GKE, SLURM and Open MPI tell their tasks.

| started by | read from |
|---|---|
| flags | `--coordinator --processes --process_id` |
| anything | `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`, `JAX_PROCESS_ID` |
| GKE | `TPU_WORKER_HOSTNAMES`, `TPU_WORKER_ID`; of several slices `MEGASCALE_*` |
| TPU VM | the same facts from the machine's metadata server |
| SLURM | `SLURM_STEP_NUM_TASKS`, `SLURM_PROCID`, `SLURM_STEP_NODELIST`: a task of `srun` |
| Open MPI | `OMPI_COMM_WORLD_SIZE`, `OMPI_COMM_WORLD_RANK`, `OMPI_MCA_orte_hnp_uri` |

`JAX_COORDINATOR_ADDRESS` alone replaces the address that one of the others gives.
"""

import dataclasses
import re
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from core.errors import UserError

FLAGS = ("coordinator", "process_id", "processes")

_TPU_PORT = 8482
_SERVER = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
  """One process among those of a job.

  Attributes:
    coordinator: HOST:PORT where process 0 listens.
    count: how many processes there are.
    index: which one this is, from 0.
    local_device: the one GPU of this host that is this process's; None where it has all devices.
  """

  coordinator: str
  count: int
  index: int
  local_device: int | None = None


def detect(
  flags: Mapping[str, str], env: Mapping[str, str], metadata: Callable[[str], str | None] | None = None
) -> ProcessInfo | None:
  """Returns this process's place in its job; None where it is alone.

  Args:
    flags: of `FLAGS`, those given; `--processes=1` is alone whatever the environment says, `auto` is the default.
    env: the environment variables.
    metadata: an attribute of this TPU VM by name; None where there is no such machine, see `tpu_vm`.

  Raises:
    UserError: something is missing or is no whole number, or the index is not below the count.
  """
  if flags.get("processes") == "1" and "coordinator" not in flags:
    return None
  if given := [name for name in FLAGS if name in flags and flags[name] != "auto"]:
    if missing := [f"--{name}" for name in FLAGS if name not in given]:
      raise UserError(f"flag --{given[0]} needs {' and '.join(missing)} beside it")
    return _checked("--coordinator", flags["coordinator"], ("--processes", flags), ("--process_id", flags))
  if "JAX_NUM_PROCESSES" in env or "JAX_PROCESS_ID" in env:
    return _checked("JAX_COORDINATOR_ADDRESS", _address(env), ("JAX_NUM_PROCESSES", env), ("JAX_PROCESS_ID", env))
  if "TPU_WORKER_HOSTNAMES" in env:
    return _of_slices(env, env["TPU_WORKER_HOSTNAMES"].split(","), ("TPU_WORKER_ID", env), env)
  if metadata is not None and (endpoints := metadata("worker-network-endpoints")):
    # A worker is its address, or on older machines name:number:address.
    hosts = [worker.split(":")[-1] for worker in endpoints.split(",")]
    settings = dict(re.findall(r"^(\w+)\s*:\s*'?([^'\n]*)'?\s*$", metadata("tpu-env") or "", flags=re.MULTILINE))
    index = {"agent-worker-number": metadata("agent-worker-number") or ""}
    return _of_slices(env, hosts, ("agent-worker-number", index), settings)
  if _many(env, "SLURM_STEP_NUM_TASKS"):
    host = re.sub(r"\[(\w+).*", r"\1", re.split(r",(?![^\[]*\])", env.get("SLURM_STEP_NODELIST", ""))[0])
    port = _ephemeral(env.get("SLURM_JOB_ID", "0"))
    address = _address(env, f"{host}:{port}" if host else "")
    size = re.match(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    local = _local_device(env, size[0] if size else "1", env.get("SLURM_LOCALID"))
    return _checked("SLURM_STEP_NODELIST", address, ("SLURM_STEP_NUM_TASKS", env), ("SLURM_PROCID", env), local)
  if _many(env, "OMPI_COMM_WORLD_SIZE"):
    # Open MPI 4: 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911, where mpirun is. Later ones do not say.
    uri = re.match(r"(\d+)\..*?tcp://([^,:]+)", env.get("OMPI_MCA_orte_hnp_uri", ""))
    address = _address(env, f"{uri[2]}:{_ephemeral(str(int(uri[1]) // 2**12))}" if uri else "")
    local = _local_device(env, env.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1"), env.get("OMPI_COMM_WORLD_LOCAL_RANK"))
    size, rank = ("OMPI_COMM_WORLD_SIZE", env), ("OMPI_COMM_WORLD_RANK", env)
    return _checked("mpirun -x JAX_COORDINATOR_ADDRESS", address, size, rank, local)
  return None


def tpu_vm(env: Mapping[str, str]) -> Callable[[str], str | None] | None:
  """Returns a function that asks the metadata server of this TPU VM for an attribute; None on another machine."""
  chips = [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]
  if not chips or "TPU_SKIP_MDS_QUERY" in env or "tpu" not in env.get("JAX_PLATFORMS", "tpu"):
    return None

  def attribute(name: str) -> str | None:
    request = urllib.request.Request(_SERVER + name, headers={"Metadata-Flavor": "Google"})
    try:
      with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode().strip()
    except OSError:  # Another cloud's machine, or none such attribute.
      return None

  return attribute


def _of_slices(
  env: Mapping[str, str], hosts: list[str], worker: tuple[str, Mapping], settings: Mapping[str, str]
) -> ProcessInfo | None:
  """Returns the place of worker `worker` of a slice of `hosts`; slices are numbered one after the other."""
  slices = int(settings.get("MEGASCALE_NUM_SLICES") or 1)
  if len(hosts) * slices == 1:
    return None
  first = (settings.get("MEGASCALE_COORDINATOR_ADDRESS") if slices > 1 else "") or hosts[0]
  address = _address(env, f"{first.split(':')[0]}:{_TPU_PORT}")
  index = _whole(*worker) + int(settings.get("MEGASCALE_SLICE_ID") or 0) * len(hosts)
  return _in_range(ProcessInfo(address, len(hosts) * slices, index), worker[0])


def _address(env: Mapping[str, str], found: str = "") -> str:
  return env.get("JAX_COORDINATOR_ADDRESS", found)


def _many(env: Mapping[str, str], name: str) -> bool:
  return env.get(name, "1") != "1"


def _ephemeral(job: str) -> int:
  """Returns a port that jobs on the same host are unlikely to share."""
  return 61_440 + int(job) % 4_096


def _local_device(env: Mapping[str, str], on_this_host: str, index: str | None) -> int | None:
  """Returns the process's own GPU where several share a host, unless the launcher already shows it only its own."""
  shown = [env[name] for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES") if name in env]
  if on_this_host == "1" or index is None or any("," not in devices for devices in shown):
    return None
  return int(index)


def _checked(
  where: str, address: str, count: tuple[str, Mapping], index: tuple[str, Mapping], local_device: int | None = None
) -> ProcessInfo | None:
  if not re.fullmatch(r".+:\d+", address):
    raise UserError(f"{where} must be HOST:PORT, where process 0 listens, got {address!r}")
  place = ProcessInfo(address, _whole(*count), _whole(*index), local_device)
  return None if place.count == 1 and place.index == 0 else _in_range(place, index[0])


def _in_range(place: ProcessInfo, name: str) -> ProcessInfo:
  if place.index >= place.count:
    raise UserError(f"{name}={place.index} is out of range: {place.count} processes are 0 to {place.count - 1}")
  return place


def _whole(name: str, values: Mapping[str, str]) -> int:
  value = values.get(name.removeprefix("--"), "")
  if not value.isdigit():
    kind = "flag " if name.startswith("--") else ""
    raise UserError(f"{kind}{name} must be a whole number, got {value!r}")
  return int(value)
