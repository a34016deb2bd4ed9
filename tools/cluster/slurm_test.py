"""The SLURM script, against a stand-in for srun and scontrol, first on the PATH: two nodes are two folders here."""

import os
import re
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from core import data_files

SCRIPT = data_files.find("tools/cluster/train.sbatch")

# Runs a step's tasks at once, with what srun tells each, and ends with the highest of their statuses (srun(1), "RETURN
# VALUE"). A SIGTERM goes to all processes of the step (sbatch(1), --signal).
_SRUN = """#!/bin/bash
echo "${*//$'\\n'/ }" >>"$SIM/steps"
tasks=$SLURM_NTASKS
while [[ $1 == --* ]]; do
  if [[ $1 == --ntasks=* ]]; then tasks=${1#*=}; fi
  shift
done
set -m
for ((number = 0; number < tasks; number++)); do
  node=$((number * SLURM_JOB_NUM_NODES / tasks))
  mkdir -p "$SIM/node$node"
  SLURM_PROCID=$number SLURM_STEP_NUM_TASKS=$tasks LOCAL="$SIM/node$node$LOCAL" "$@" &
  groups+=($!)
done
echo "${groups[*]}" >"$SIM/groups"
highest=0
for group in "${groups[@]}"; do
  wait "$group"
  status=$?
  if ((status > highest)); then highest=$status; fi
done
exit $highest
"""
_TRAINER = """#!/bin/bash
if [ "$1" = --help ]; then echo >>"$SIM/installed"; exit; fi
printf '%s\\n' "$@" >"$SIM/arguments-$SLURM_PROCID"
status=$(cat "$SIM/status-$SLURM_PROCID")
if [ "$status" = waits ]; then
  trap 'sleep 0.3; exit 75' TERM
  touch "$SIM/waits-$SLURM_PROCID"
  for ((looks = 0; looks < 3000; looks++)); do sleep 0.02; done
fi
if [ "$status" = killed ]; then kill -9 $$; fi
exit "$status"
"""


@pytest.fixture
def sim(tmp_path) -> Path:
  (tmp_path / "bin").mkdir()
  (tmp_path / "vit_bundle").mkdir()
  for path, text in {
    "bin/srun": _SRUN,
    "bin/scontrol": '#!/bin/sh\necho "$@" >"$SIM/scontrol"\n',
    "vit_bundle/start": _TRAINER,
  }.items():
    (tmp_path / path).write_text(text)
    (tmp_path / path).chmod(0o755)
  with tarfile.open(tmp_path / "vit_bundle.tar.gz", "w:gz") as archive:
    archive.add(tmp_path / "vit_bundle/start", "vit_bundle/start")
  return tmp_path


def submit(sim: Path, *arguments: str, statuses: tuple[object, ...], **env: str) -> subprocess.Popen:
  for number, status in enumerate(statuses):
    (sim / f"status-{number}").write_text(str(status))
  told = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": str(len(statuses))}
  ours = {"BUNDLE": "vit_bundle.tar.gz", "WORKDIR": "/shared/a run", "SIM": str(sim)}
  path = f"{sim}/bin:{os.environ['PATH']}"
  return subprocess.Popen(["bash", SCRIPT, *arguments], cwd=sim, env={**told, **ours, **env, "PATH": path}, stderr=-1)


def wait_for(holds: Callable[[], bool]) -> None:
  until = time.monotonic() + 60
  while not holds():
    assert time.monotonic() < until
    time.sleep(0.02)


def tell_all_to_stop(sim: Path) -> None:
  for group in (sim / "groups").read_text().split():
    os.killpg(int(group), signal.SIGTERM)


def test_bash_can_read_it():
  subprocess.run(["bash", "-n", SCRIPT], check=True)


def test_each_task_gets_its_arguments_whole_and_each_node_is_made_ready_once(sim):
  given = ["--config=s16_i1k", "--config.sharding_strategy=[('.*', 'fsdp()')]", "--config.x=a  b"]
  assert submit(sim, *given, statuses=(0, 0, 0, 0)).wait() == 0
  for number in range(4):
    assert (sim / f"arguments-{number}").read_text().splitlines() == ["--workdir=/shared/a run", *given]
  assert len((sim / "installed").read_text().splitlines()) == 2
  assert [path.name for path in sim.glob("node*/var/tmp/*")] == []  # Nothing stays on the nodes.
  assert not (sim / "scontrol").exists()


@pytest.mark.parametrize("statuses", [(75, 75), (0, 4), ("killed", 4)])
def test_an_interrupted_job_goes_back_into_the_queue(sim, statuses):
  assert submit(sim, statuses=statuses).wait() == 0
  assert (sim / "scontrol").read_text() == "requeue 7\n"


@pytest.mark.parametrize("statuses, status", [((2, 4), 2), ((75, 3), 3), (("killed", 2), 2), ((4, 1), 1)])
def test_what_starting_again_would_not_mend_is_the_jobs_status(sim, statuses, status):
  assert submit(sim, statuses=statuses).wait() == status
  assert not (sim / "scontrol").exists()


def test_restarts_have_an_end(sim):
  job = submit(sim, statuses=(75, 75), SLURM_RESTART_COUNT="3", MAX_RESTARTS="3")
  assert job.wait() == 75
  assert job.stderr.read() == b"error: restarted 3 times; raise MAX_RESTARTS, or see above why\n"
  assert not (sim / "scontrol").exists()


def test_the_signal_before_the_time_limit_lets_the_trainer_save(sim):
  job = submit(sim, statuses=("waits", "waits"))
  wait_for(lambda: len(list(sim.glob("waits-*"))) == 2)
  tell_all_to_stop(sim)
  assert job.wait() == 0
  assert (sim / "scontrol").read_text() == "requeue 7\n"


def test_what_is_missing_is_said(sim):
  job = submit(sim, statuses=(0, 0), WORKDIR="")
  assert job.wait() == 1
  assert b"WORKDIR: where the results lie" in job.stderr.read()


def test_a_damaged_bundle_starts_nothing(sim):
  (sim / "vit_bundle.tar.gz").write_text("")
  assert submit(sim, statuses=(0, 0)).wait() != 0
  assert len((sim / "steps").read_text().splitlines()) == 1


def test_the_folder_on_a_node_is_the_jobs_own_alone(sim):
  """What an earlier start left is gone, and so is what lay there for all to write."""
  for node in (0, 1):
    left = sim / f"node{node}/var/tmp/train-7/older_bundle"
    left.mkdir(parents=True)
    left.parent.chmod(0o777)
    (left / "start").write_text('#!/bin/bash\ntouch "$SIM/older_ran"\n')
    (left / "start").chmod(0o755)
  job = submit(sim, statuses=("waits", "waits"))
  wait_for(lambda: len(list(sim.glob("waits-*"))) == 2)
  for node in (0, 1):
    (folder,) = (sim / f"node{node}/var/tmp").iterdir()
    assert (folder.name, oct(folder.stat().st_mode & 0o7777)) == ("train-7", "0o700")
    assert [path.name for path in folder.iterdir()] == ["vit_bundle"]
  tell_all_to_stop(sim)
  assert job.wait() == 0
  assert not (sim / "older_ran").exists()


def test_a_link_in_the_place_of_that_folder_leads_nowhere(sim):
  (sim / "elsewhere").mkdir()
  (sim / "elsewhere" / "of_the_person").touch()
  (sim / "node1/var/tmp").mkdir(parents=True)
  (sim / "node1/var/tmp/train-7").symlink_to(sim / "elsewhere")
  assert submit(sim, statuses=(0, 0)).wait() == 0
  assert [path.name for path in (sim / "elsewhere").iterdir()] == ["of_the_person"]


def test_a_folder_that_cannot_be_taken_away_is_refused_and_nothing_runs(sim):
  """`rm` stands for a sticky /var/tmp, in which only its maker removes a folder."""
  (sim / "bin/rm").write_text("#!/bin/sh\nexit 1\n")
  (sim / "bin/rm").chmod(0o755)
  (sim / "node1/var/tmp/train-7").mkdir(parents=True)
  job = submit(sim, statuses=(0, 0))
  assert job.wait() == 2
  assert b"/node1/var/tmp/train-7 on " in (said := job.stderr.read())
  assert b"is not this job's; set LOCAL to another folder of the nodes" in said
  assert list(sim.glob("arguments-*")) == []


def test_slurm_is_asked_for_what_the_trainer_needs():
  options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SCRIPT.read_text(), re.MULTILINE))
  assert options["signal"] == "TERM@120"  # Without B:, to the steps and not to the batch shell (sbatch(1)).
  assert options["open-mode"] == "append"
  assert "requeue" in options
