"""The words after gcloud. Google Cloud SDK 528 parses each of these forms; what it takes was read off its help."""

from dataclasses import replace
from pathlib import Path

import pytest

from tools.tpu_vm import commands
from tools.tpu_vm.commands import Machine

MACHINE = Machine("m", "z", accelerator="v4-8")


@pytest.mark.parametrize(
  "machine, words",
  [
    (MACHINE, "compute tpus tpu-vm create m --accelerator-type=v4-8 --version=tpu-ubuntu2204-base"),
    (
      replace(MACHINE, accelerator="v6e-8", version="mine"),
      "compute tpus tpu-vm create m --accelerator-type=v6e-8 --version=mine",
    ),
    (
      replace(MACHINE, accelerator="", topology="v4:2x2x4"),
      "compute tpus tpu-vm create m --type=v4 --topology=2x2x4 --version=tpu-ubuntu2204-base",
    ),
    (  # The released commands take a topology only of kinds up to v4.
      replace(MACHINE, accelerator="", topology="v5e:4x4", queued=True, spot=True),
      "alpha compute tpus queued-resources create m --node-id=m --type=v5litepod --topology=4x4"
      " --runtime-version=v2-alpha-tpuv5-lite --async --spot",
    ),
  ],
)
def test_what_is_to_be_made(machine, words):
  assert commands.create(machine) == ["--quiet", *words.split(), "--zone=z"]


def test_a_project_is_named_only_where_it_was_given():
  assert commands.describe(MACHINE)[-1] == "--zone=z"
  assert commands.describe(replace(MACHINE, project="p"))[-2:] == ["--zone=z", "--project=p"]


@pytest.mark.parametrize("function", [commands.ssh, lambda machine, what: commands.copy(machine, Path(what))])
def test_many_workers_at_once_need_alpha(function):
  assert function(MACHINE, "x")[1] == "compute"
  words = function(replace(MACHINE, batch_size="all"), "x")
  assert words[1] == "alpha"
  assert "--batch-size=all" in words
