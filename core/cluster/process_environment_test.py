"""A process finds its place in its job from the variables that each kind of cluster sets, as documented."""

import pytest

from core.cluster import process_environment
from core.cluster.process_environment import ProcessInfo
from core.errors import UserError

FLAGS = {"coordinator": "host0:1234", "processes": "4", "process_id": "3"}
NAMED = {"JAX_COORDINATOR_ADDRESS": "host0:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
GKE = {"TPU_WORKER_HOSTNAMES": "vit-0.svc,vit-1.svc,vit-2.svc,vit-3.svc", "TPU_WORKER_ID": "3"}
SLICES = {
  "MEGASCALE_NUM_SLICES": "2",
  "MEGASCALE_SLICE_ID": "1",
  "MEGASCALE_COORDINATOR_ADDRESS": "vit-slice-0-0.svc:8080",
}
SRUN = {
  "SLURM_JOB_ID": "1001",
  "SLURM_NTASKS": "4",
  "SLURM_STEP_NUM_TASKS": "4",
  "SLURM_PROCID": "3",
  "SLURM_LOCALID": "1",
  "SLURM_STEP_NODELIST": "gpu[07-08]",
  "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
OPEN_MPI = {
  "OMPI_COMM_WORLD_SIZE": "4",
  "OMPI_COMM_WORLD_RANK": "3",
  "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
  "OMPI_COMM_WORLD_LOCAL_RANK": "0",
  "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
TPU_VM = {
  "agent-worker-number": "3",
  "worker-network-endpoints": "a:0:10.0.0.2,b:1:10.0.0.3,c:2:10.0.0.4,d:3:10.0.0.5",
  "tpu-env": "ACCELERATOR_TYPE: 'v4-32'\nWORKER_ID: '3'\n",
}
TPU_VM_SLICES = TPU_VM | {
  "worker-network-endpoints": "10.0.1.2,10.0.1.3,10.0.1.4,10.0.1.5",
  "tpu-env": "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\nMEGASCALE_COORDINATOR_ADDRESS: '10.0.0.2:8080'\n",
}


@pytest.mark.parametrize(
  "flags, env, metadata, place",
  [
    (FLAGS, SRUN, None, ProcessInfo("host0:1234", 4, 3)),
    ({}, NAMED | SRUN, None, ProcessInfo("host0:1234", 4, 3)),
    ({"processes": "auto"}, GKE, None, ProcessInfo("vit-0.svc:8482", 4, 3)),
    ({}, GKE | SLICES, None, ProcessInfo("vit-slice-0-0.svc:8482", 8, 7)),
    ({}, {}, TPU_VM, ProcessInfo("10.0.0.2:8482", 4, 3)),
    ({}, {}, TPU_VM_SLICES, ProcessInfo("10.0.0.2:8482", 8, 7)),
    ({}, SRUN, None, ProcessInfo("gpu07:62441", 4, 3, local_device=1)),
    ({}, SRUN | {"CUDA_VISIBLE_DEVICES": "1"}, None, ProcessInfo("gpu07:62441", 4, 3)),
    ({}, SRUN | {"CUDA_VISIBLE_DEVICES": "0,1"}, None, ProcessInfo("gpu07:62441", 4, 3, local_device=1)),
    ({}, SRUN | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_LOCALID": "0"}, None, ProcessInfo("gpu07:62441", 4, 3)),
    ({}, SRUN | {"JAX_COORDINATOR_ADDRESS": "gpu07-ib:9"}, None, ProcessInfo("gpu07-ib:9", 4, 3, local_device=1)),
    ({}, OPEN_MPI, None, ProcessInfo("10.96.0.1:62624", 4, 3)),
    ({}, OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "", "JAX_COORDINATOR_ADDRESS": "h:1"}, None, ProcessInfo("h:1", 4, 3)),
  ],
)
def test_each_way_of_starting_gives_the_place(flags, env, metadata, place):
  assert process_environment.detect(flags, env, metadata and metadata.get) == place


@pytest.mark.parametrize(
  "flags, env, metadata",
  [
    ({}, {}, None),
    ({"processes": "1"}, SRUN, None),
    ({"processes": "1"}, GKE, TPU_VM),
    ({}, {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
    ({}, {}, TPU_VM | {"worker-network-endpoints": "a:0:10.0.0.2", "agent-worker-number": "0"}),
    ({}, {}, {}),  # A machine with TPUs whose metadata say nothing.
    ({}, SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, None),
    ({}, {k: v for k, v in SRUN.items() if "STEP" not in k}, None),  # A script of sbatch, before its srun.
    ({}, OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, None),
  ],
)
def test_one_process_is_alone(flags, env, metadata):
  assert process_environment.detect(flags, env, None if metadata is None else metadata.get) is None


@pytest.mark.parametrize(
  "host, nodes",
  [
    ("node1", "node1"),
    ("node1", "node1,node2"),
    ("a01", "a[01-03,07],b2"),
    ("rack-2-n3", "rack-2-n[3,5]"),
    ("x", "x,y[1-2]"),
  ],
)
def test_the_first_node_of_slurm_is_the_coordinator(host, nodes):
  assert process_environment.detect({}, SRUN | {"SLURM_STEP_NODELIST": nodes}).coordinator == f"{host}:62441"


@pytest.mark.parametrize(
  "flags, env, words",
  [
    ({"coordinator": "h:1"}, {}, "flag --coordinator needs --process_id and --processes beside it"),
    ({"processes": "4"}, {}, "flag --processes needs --coordinator and --process_id beside it"),
    (FLAGS | {"process_id": "4"}, {}, "--process_id=4 is out of range: 4 processes are 0 to 3"),
    (FLAGS | {"process_id": "one"}, {}, "flag --process_id must be a whole number, got 'one'"),
    (FLAGS | {"coordinator": "host0"}, {}, "--coordinator must be HOST:PORT, where process 0 listens, got 'host0'"),
    ({}, {"JAX_NUM_PROCESSES": "4"}, "JAX_COORDINATOR_ADDRESS must be HOST:PORT"),
    ({}, NAMED | {"JAX_PROCESS_ID": ""}, "JAX_PROCESS_ID must be a whole number, got ''"),
    ({}, GKE | {"TPU_WORKER_ID": "7"}, "TPU_WORKER_ID=7 is out of range: 4 processes are 0 to 3"),
    ({}, OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": ""}, "mpirun -x JAX_COORDINATOR_ADDRESS must be HOST:PORT"),
  ],
)
def test_what_is_missing_or_wrong_is_named(flags, env, words):
  with pytest.raises(UserError) as error:
    process_environment.detect(flags, env)
  assert words in str(error.value)


def test_a_machine_without_tpus_has_no_metadata_to_ask(tmp_path, monkeypatch):
  monkeypatch.setattr(process_environment, "Path", lambda path: tmp_path / path.strip("/"))
  assert process_environment.tpu_vm({}) is None
  (tmp_path / "dev").mkdir()
  (tmp_path / "dev" / "accel0").touch()
  assert process_environment.tpu_vm({}) is not None
  assert process_environment.tpu_vm({"JAX_PLATFORMS": "cpu"}) is None
