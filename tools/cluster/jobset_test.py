"""The JobSet manifest, against what its controller, Kubernetes and GKE ask for.

Where an expected value comes from:
  JobSet: the API reference of jobset.x-k8s.io/v1alpha2 (JobSetSpec, FailurePolicy, Network).
  Kubernetes: the documentation of Job ("Pod failure policy", "Indexed completion") and of EnvVar and Container.
  GKE: "Deploy TPU Multislices in GKE" and "Cloud Storage FUSE CSI driver" of its documentation.
The container's command is run here.
"""

import math
import os
import subprocess
import tarfile

import pytest
import yaml

from core import data_files

MANIFEST = yaml.safe_load(data_files.find("tools/cluster/jobset.yaml").read_text())
SPEC = MANIFEST["spec"]
(SLICE,) = SPEC["replicatedJobs"]
JOB = SLICE["template"]["spec"]
POD = JOB["template"]["spec"]
(CONTAINER,) = POD["containers"]


def test_every_field_is_one_that_the_controllers_know():
  assert (MANIFEST["apiVersion"], MANIFEST["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  assert MANIFEST.keys() == {"apiVersion", "kind", "metadata", "spec"}
  assert SPEC.keys() <= {
    *("replicatedJobs", "network", "successPolicy", "failurePolicy", "startupPolicy", "suspend", "coordinator"),
    *("managedBy", "ttlSecondsAfterFinished"),
  }
  assert SPEC["network"].keys() <= {"enableDNSHostnames", "subdomain", "publishNotReadyAddresses"}
  assert SLICE.keys() <= {"name", "template", "replicas", "groupName", "dependsOn"}
  assert SPEC["failurePolicy"].keys() <= {"maxRestarts", "restartStrategy", "rules"}
  for rule in SPEC["failurePolicy"]["rules"]:
    assert rule.keys() <= {"name", "action", "onJobFailureReasons", "targetReplicatedJobs"}
    assert rule["action"] in {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"}
  assert JOB.keys() <= {"parallelism", "completions", "backoffLimit", "podFailurePolicy", "template"}
  assert POD.keys() <= {
    *("restartPolicy", "terminationGracePeriodSeconds", "serviceAccountName", "nodeSelector", "containers", "volumes"),
  }


def test_the_hosts_and_chips_are_those_of_the_topology():
  assert POD["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5-lite-podslice"
  chips = math.prod(map(int, POD["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
  of_a_host = CONTAINER["resources"]["limits"]["google.com/tpu"]
  assert JOB["parallelism"] == JOB["completions"] == chips // of_a_host
  assert CONTAINER["resources"]["requests"] == CONTAINER["resources"]["limits"]  # Kubernetes: of extended resources.
  annotations = MANIFEST["metadata"]["annotations"]
  assert annotations["alpha.jobset.sigs.k8s.io/exclusive-topology"] == "cloud.google.com/gke-nodepool"


def test_mistakes_fail_the_whole_job_at_once_and_interruptions_restart_it():
  (rule,) = JOB["podFailurePolicy"]["rules"]
  assert rule["action"] == "FailJob"
  assert rule["onExitCodes"] == {"containerName": CONTAINER["name"], "operator": "In", "values": [1, 2, 3]}
  assert POD["restartPolicy"] == "Never"  # Kubernetes refuses a podFailurePolicy with any other.
  (rule,) = SPEC["failurePolicy"]["rules"]
  assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
  assert SPEC["failurePolicy"]["maxRestarts"] > 0
  assert JOB["backoffLimit"] == 0


def test_the_bucket_is_mounted_where_the_bundle_and_the_results_are_looked_for():
  assert JOB["template"]["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"
  mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
  volumes = {volume["name"]: volume for volume in POD["volumes"]}
  assert mounts.keys() == volumes.keys()
  assert volumes["bucket"]["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
  options = volumes["bucket"]["csi"]["volumeAttributes"]["mountOptions"].split(",")
  assert {"implicit-dirs", "metadata-cache:ttl-secs:0"} <= set(options)
  assert all(option == option.strip() for option in options)
  (workdir,) = [word for word in CONTAINER["args"] if word.startswith("--workdir=")]
  assert workdir.startswith(f"--workdir={mounts['bucket']}/")
  variables = {variable["name"]: variable["value"] for variable in CONTAINER["env"]}
  assert variables["BUNDLE"].startswith(f"{mounts['bucket']}/")
  assert CONTAINER["workingDir"] == mounts["train"]


@pytest.mark.parametrize("status", [0, 2, 75])
def test_the_container_unpacks_the_bundle_and_becomes_the_trainer(tmp_path, status):
  (tmp_path / "vit_bundle").mkdir()
  start = tmp_path / "vit_bundle" / "start"
  start.write_text(f'#!/bin/sh\necho $$ >pid\nprintf "%s\\n" "$@" >arguments\nexit {status}\n')
  start.chmod(0o755)
  with tarfile.open(tmp_path / "vit_bundle.tar.gz", "w:gz") as archive:
    archive.add(start, "vit_bundle/start")
  (tmp_path / "there").mkdir()
  arguments = [*CONTAINER["args"], "--config.sharding_strategy=[('.*', 'fsdp()')]"]
  env = {"BUNDLE": str(tmp_path / "vit_bundle.tar.gz"), "PATH": os.environ["PATH"]}
  process = subprocess.Popen([*CONTAINER["command"], *arguments], cwd=tmp_path / "there", env=env)
  assert process.wait() == status
  assert (tmp_path / "there" / "arguments").read_text().splitlines() == arguments
  assert int((tmp_path / "there" / "pid").read_text()) == process.pid
