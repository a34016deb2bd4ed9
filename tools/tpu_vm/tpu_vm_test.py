"""The launcher against a stand-in for gcloud, first on the PATH: it keeps a node's state, records every command, and
runs what ssh would run in local shells, a home folder a worker."""

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tools.tpu_vm import launcher, tpu_vm, worker

# Answers from `answers.json` ({"VERB": [[status, output, errors], ...]}) come first, each once; null is none.
_GCLOUD = """#!{python} -ES
import json, os, shutil, subprocess, sys
from pathlib import Path
here = Path(__file__).parent.parent
words = sys.argv[1:]
with (here / "commands.jsonl").open("a") as record:
  record.write(json.dumps(words) + "\\n")
flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
at = words.index("tpus")
resource, verb, name = words[at + 1 : at + 4]
answers = json.loads((here / "answers.json").read_text())
waiting = answers.get(f"{{resource}} {{verb}}")
answer = waiting.pop(0) if waiting else None
if waiting is not None:
  (here / "answers.json").write_text(json.dumps(answers))
if answer:
  status, output, errors = answer
  print(output, end="")
  sys.exit(errors or status)
node = here / "node"
if verb == "create":
  node.write_text("READY")
elif not node.exists():
  sys.exit("ERROR: (gcloud) NOT_FOUND: Resource was not found")
elif verb == "describe":
  state = node.read_text()
  if resource == "queued-resources":
    state = dict(READY="ACTIVE", PREEMPTED="SUSPENDING", SUSPENDING="SUSPENDED").get(state, state)
    if state == "SUSPENDING":
      node.write_text(state)
  print(state)
elif verb == "delete":
  node.unlink()
  shutil.rmtree(here / "homes", ignore_errors=True)
for number in range(2) if verb in ("ssh", "scp") else ():
  if node.read_text() != "READY":
    sys.exit(f'ERROR: This TPU has terminal state "{{node.read_text()}}", so it cannot be used anymore.')
  home = here / "homes" / str(number)
  home.mkdir(parents=True, exist_ok=True)
  if flags["worker"] not in ("all", str(number)):
    continue
  if verb == "scp":
    shutil.copy(name, home / words[at + 4].partition(":")[2])
  else:
    env = dict(HOME=str(home), PATH=os.environ["PATH"], SHARED=str(here), NUMBER=str(number))
    if "tail" in flags["command"]:
      (here / "followed").write_text("yes")
    status = subprocess.run(["bash", "-c", " ".join(flags["command"].split(" "))], cwd=home, env=env).returncode
    if node.read_text() != "READY" or status:
      sys.exit("ERROR: [/usr/bin/ssh] exited with return code [255].")
"""
# A trainer that notes its arguments and ends as `statuses` says for each start.
_TRAINER = """#!/bin/bash
trap 'echo saved; exit 75' TERM
printf '%s\\0' "$@" >"$HOME/arguments"
echo "$TFDS_DATA_DIR|$PWD" >"$HOME/environment"
touch "$SHARED/starts-$NUMBER"
count=$(wc -l <"$SHARED/starts-$NUMBER")
echo >>"$SHARED/starts-$NUMBER"
echo "step 1 of start $count"
status=$(sed -n "$((count + 1))p" "$SHARED/statuses" | cut -d / -f $((NUMBER + 1)))
if [ "$status" = preempted ]; then
  until [ -e "$SHARED/followed" ]; do sleep 0.02; done
  echo -n PREEMPTED >"$SHARED/node"
  exit 75
fi
if [ "$status" = waits ]; then
  for ((looks = 0; looks < 3000; looks++)); do sleep 0.02; done
fi
echo "last line"
exit "$status"
"""


class Cloud:
  """The stand-in's folder, seen from a test."""

  def __init__(self, folder: Path):
    self.folder = folder

  def answer(self, verb: str, *replies: tuple[int, str, str] | None) -> None:
    path = self.folder / "answers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {verb: replies}))

  def trainers_end_with(self, *statuses: object) -> None:
    """How each start ends: with this status, or with those of worker 0 and 1, `4/75`."""
    (self.folder / "statuses").write_text("\n".join(map(str, statuses)))

  @property
  def commands(self) -> list[list[str]]:
    path = self.folder / "commands.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

  @property
  def verbs(self) -> list[str]:
    """`create`, `ssh`, ... without the looks at the state."""
    verbs = [words[words.index("tpus") + 2] for words in self.commands]
    return [verb for verb in verbs if verb != "describe"]

  @property
  def starts(self) -> int:
    path = self.folder / "starts-0"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def cloud(tmp_path, monkeypatch) -> Cloud:
  programs = tmp_path / "bin"
  programs.mkdir()
  for name, text in {
    "gcloud": _GCLOUD.format(python=sys.executable),
    "hostname": "#!/bin/sh\necho worker-$NUMBER\n",
  }.items():
    (programs / name).write_text(text)
    (programs / name).chmod(0o755)
  monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
  (tmp_path / "answers.json").write_text("{}")
  monkeypatch.setenv("BUILD_WORKSPACE_DIRECTORY", str(tmp_path))
  write_bundle(tmp_path / "bazel-bin/projects/vit/vit_bundle.tar.gz")
  return Cloud(tmp_path)


def write_bundle(path: Path, lock: str = "requirements.tpu.lock") -> None:
  """A bundle as `//projects/NAME:bundle` makes it."""
  path.parent.mkdir(parents=True)
  with tarfile.open(path, "w:gz") as archive:
    for name, text in {"start": _TRAINER, f"projects/vit/{lock}": ""}.items():
      member = tarfile.TarInfo(f"{path.name.removesuffix('.tar.gz')}/{name}")
      member.size, member.mode = len(text.encode()), 0o755
      archive.addfile(member, io.BytesIO(text.encode()))


MACHINE = ("--name=m", "--zone=z", "--project=p", "--poll=0")
MADE = ("--accelerator=v5litepod-16", "--spot")
TRAINED = ("--bundle=vit", "--workdir=/shared/run")


def test_create_makes_a_node_once_and_asks_for_what_was_said(cloud):
  for _ in range(2):
    assert tpu_vm.main(["create", *MACHINE, *MADE]) == 0
  look = ["--quiet", "compute", "tpus", "tpu-vm", "describe", "m", "--format=value(state)", "--zone=z", "--project=p"]
  make = "--quiet compute tpus tpu-vm create m --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite --spot"
  assert cloud.commands == [look, [*make.split(), "--zone=z", "--project=p"], look, look]


def test_a_queued_resource_is_waited_for_with_a_line_a_change(cloud, capsys):
  missing = (1, "", "NOT_FOUND")
  states = ("ACCEPTED", "WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING")
  cloud.answer("queued-resources describe", missing, *((0, state, "") for state in states))
  assert tpu_vm.main(["create", *MACHINE, *MADE, "--queued"]) == 0
  told = [line.removeprefix("m: ") for line in capsys.readouterr().err.splitlines()]
  assert told == ["creating", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ready"]
  make = "--quiet compute tpus queued-resources create m --node-id=m --accelerator-type=v5litepod-16"
  make += " --runtime-version=v2-alpha-tpuv5-lite --async --spot --zone=z --project=p"
  assert cloud.commands[1] == make.split()


def test_waiting_has_an_end(cloud):
  cloud.answer("queued-resources describe", *[(0, "WAITING_FOR_RESOURCES", "")] * 9)
  with pytest.raises(launcher.UserError, match=r"m is WAITING_FOR_RESOURCES after 0 s; give it longer with --wait"):
    tpu_vm.main(["create", *MACHINE, *MADE, "--queued", "--wait=0"])


def test_the_trainer_gets_its_arguments_whole_and_outlives_the_connection(cloud, capfd):
  (cloud.folder / "node").write_text("READY")
  cloud.trainers_end_with("waits")
  given = [
    "--config=s16_i1k:variant=S/16",
    "--config.sharding_strategy=[('.*', 'fsdp()')]",
    '--config.input.pp=decode|keep("image",  "labels")|x\\n$HOME `id` %s * ~',
  ]
  env = ["--env=TFDS_DATA_DIR=gs://b/a folder", '--setup=echo "it\'s" >$HOME/set_up']
  assert tpu_vm.main(["copy", *MACHINE, "--bundle=vit"]) == 0
  assert tpu_vm.main(["start", *MACHINE, "--bundle=vit", "--workdir=/shared/a run", *env, "--", *given]) == 0
  running = ["worker-0 running", "worker-1 running"]
  assert capfd.readouterr().out.splitlines() == running
  for home in (cloud.folder / "homes/0", cloud.folder / "homes/1"):
    wait_for(home / "environment")
    assert (home / "arguments").read_bytes().decode().split("\0")[:-1] == [*given, "--workdir=/shared/a run"]
    assert (home / "environment").read_text() == f"gs://b/a folder|{home}/tpu_vm\n"
    assert (home / "set_up").read_text() == "it's\n"

  # A second start finds it running, and starts nothing.
  assert tpu_vm.main(["start", *MACHINE, *TRAINED]) == 0
  assert tpu_vm.main(["status", *MACHINE]) == 0
  assert capfd.readouterr().out.splitlines() == [*running, "m READY", *running]
  assert cloud.starts == 1

  assert tpu_vm.main(["stop", *MACHINE]) == 0
  assert capfd.readouterr().out.splitlines() == ["worker-0 stopped", "worker-1 stopped"]
  assert tpu_vm.main(["log", *MACHINE, "--worker=1"]) == 0
  assert capfd.readouterr().out.splitlines() == ["step 1 of start 0", "saved"]


def wait_for(path: Path) -> None:
  until = time.monotonic() + 60
  while not (path.exists() and path.read_text()):
    assert time.monotonic() < until
    time.sleep(0.02)


def test_run_does_all_of_it_and_deletes_when_asked(cloud, capfd):
  cloud.trainers_end_with(0)
  assert tpu_vm.main(["run", *MACHINE, *MADE, *TRAINED, "--delete"]) == 0
  assert cloud.verbs == ["create", "ssh", "scp", "ssh", "ssh", "ssh", "delete"]
  output, errors = capfd.readouterr()
  assert output.splitlines() == ["step 1 of start 0", "last line"]
  assert errors.splitlines()[-2:] == ["ended: worker-0 ended with status 0, worker-1 ended with status 0", "m: deleted"]


@pytest.mark.parametrize("queued", [(), ("--queued",)], ids=["node", "queued"])
def test_a_preempted_machine_is_made_again_and_resumes(cloud, capfd, queued):
  cloud.trainers_end_with("preempted", 0)
  # Quota may be given back a while later.
  cloud.answer(f"{'queued-resources' if queued else 'tpu-vm'} create", None, (1, "", _QUOTA))
  assert tpu_vm.main(["run", *MACHINE, *MADE, *TRAINED, *queued]) == 0
  once = ["create", "ssh", "scp", "ssh", "ssh"]
  assert cloud.verbs == [*once, "delete", "create", *once, "ssh"]
  output, errors = capfd.readouterr()
  assert output.splitlines() == ["step 1 of start 0", "step 1 of start 1", "last line"]
  state = "SUSPENDING" if queued else "PREEMPTED"
  assert f"the machine was taken away ({state}); another resumes" in errors


def test_an_interrupted_job_resumes_on_the_machine_that_is_there(cloud):
  cloud.trainers_end_with(worker.LOST_PROCESS, 0)
  assert tpu_vm.main(["run", *MACHINE, *MADE, *TRAINED]) == 0
  assert cloud.starts == 2
  assert cloud.verbs.count("create") == 1


def test_a_worker_that_hangs_when_another_has_ended_is_killed(cloud, capsys):
  cloud.trainers_end_with("4/waits", 0)
  assert tpu_vm.main(["run", *MACHINE, *MADE, *TRAINED, "--grace=2", "--poll=0.3"]) == 0
  errors = capsys.readouterr().err
  assert "killed, for they did not end with the others: worker-1\n" in errors
  assert "interrupted, resumes: worker-0 ended with status 4, worker-1 ended with status 137\n" in errors


def test_the_users_mistake_is_not_retried(cloud):
  cloud.trainers_end_with(worker.USER_ERROR)
  assert tpu_vm.main(["run", *MACHINE, *MADE, *TRAINED]) == worker.USER_ERROR
  assert cloud.starts == 1


def test_a_job_that_is_interrupted_at_once_each_time_is_given_up(cloud, monkeypatch, capsys):
  monkeypatch.setattr(launcher, "_TRIES", 2)
  cloud.trainers_end_with(*[worker.LOST_PROCESS] * 9)
  assert tpu_vm.main(["run", *MACHINE, *MADE, *TRAINED]) == worker.PREEMPTED
  assert cloud.starts == 2
  assert "given up, interrupted 2 times within 600 s of its start: worker-0 ended" in capsys.readouterr().err


def test_run_called_again_attaches_and_a_job_stopped_by_hand_stays_stopped(cloud, capfd):
  (cloud.folder / "node").write_text("READY")
  cloud.trainers_end_with("waits")
  assert tpu_vm.main(["copy", *MACHINE, "--bundle=vit"]) == 0
  assert tpu_vm.main(["start", *MACHINE, *TRAINED]) == 0
  with ThreadPoolExecutor() as pool:
    again = pool.submit(tpu_vm.main, ["run", *MACHINE, *MADE, *TRAINED])
    wait_for(cloud.folder / "followed")
    assert tpu_vm.main(["stop", *MACHINE]) == 0
    assert again.result() == worker.PREEMPTED
  assert cloud.starts == 1
  output, errors = capfd.readouterr()
  assert [line for line in output.splitlines() if "worker" not in line] == ["step 1 of start 0", "saved"]
  assert "trains already; here is its log" in errors


def test_a_broken_connection_is_tried_again_and_shows_no_line_twice(cloud, capfd):
  cloud.trainers_end_with(0)
  broken = (1, "", "ERROR: [/usr/bin/ssh] exited with return code [255].")
  cloud.answer("tpu-vm ssh", broken)
  cloud.answer("tpu-vm scp", broken)
  assert tpu_vm.main(["run", *MACHINE, *MADE, *TRAINED]) == 0
  cloud.answer("tpu-vm ssh", (1, "1:step 1 of start 0\n", broken[2]))
  assert tpu_vm.main(["log", *MACHINE]) == 0
  output, errors = capfd.readouterr()
  assert output.splitlines() == ["step 1 of start 0", "last line"] * 2
  assert errors.count("again in 0 s: [/usr/bin/ssh] exited with return code [255].") == 3


def test_a_machine_that_cannot_be_reached_is_told_and_left(cloud):
  (cloud.folder / "node").write_text("READY")
  cloud.answer("tpu-vm ssh", *[(1, "", "ssh: connection refused")] * 9)
  with pytest.raises(launcher.UserError, match="m was not reached 5 times; what runs there goes on"):
    tpu_vm.main(["run", *MACHINE, *MADE, *TRAINED])


# Lines of Google Cloud SDK 528 (account, choice) and of the TPU API as its users report them.
_ACCOUNT = "ERROR: (gcloud.x) You do not currently have an active account selected.\nPlease run:\n\n  $ gcloud"
_CAPACITY = '{\n  "code": 8,\n  "message": "There is no more capacity in the zone \\"z\\"; try another zone"\n}'
_QUOTA = "ERROR: (gcloud.x) RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepod' has been exceeded. Limit: 0 in zone z."


@pytest.mark.parametrize(
  "errors, words",
  [
    (_ACCOUNT, r"active account selected\. \(run: gcloud auth login\)"),
    (_CAPACITY, r"no more capacity in the zone .* \(wait for it with --queued"),
    (_QUOTA, r"Quota limit 'TPUV5sLitepod' has been exceeded\. .* \(ask for more"),
    ("ERROR: (gcloud.x) argument --type: Invalid choice: 'v9'.\n\nValid choices are [v2]", r"Invalid choice: 'v9'"),
  ],
)
def test_what_gcloud_refuses_is_shown_with_what_to_do(cloud, errors, words):
  cloud.answer("tpu-vm create", (1, "", errors))
  with pytest.raises(launcher.UserError, match=words):
    tpu_vm.main(["create", *MACHINE, *MADE])
  assert cloud.verbs == ["create"]


def test_run_waits_for_capacity(cloud):
  cloud.trainers_end_with(0)
  cloud.answer("tpu-vm create", *[(1, "", _CAPACITY)] * 3)
  assert tpu_vm.main(["run", *MACHINE, *MADE, *TRAINED]) == 0
  assert cloud.verbs[:5] == ["create"] * 4 + ["ssh"]


def test_a_request_that_failed_says_why(cloud):
  cloud.answer("queued-resources describe", (0, "FAILED\tvalid until time passed", ""))
  with pytest.raises(launcher.UserError, match="m is FAILED valid until time passed; delete it first"):
    tpu_vm.main(["create", *MACHINE, *MADE, "--queued"])


def test_without_gcloud_one_line_says_so(cloud, monkeypatch):
  monkeypatch.setenv("PATH", str(cloud.folder))
  with pytest.raises(launcher.UserError, match="gcloud is not on PATH: install the Google Cloud CLI"):
    tpu_vm.main(["status", *MACHINE])


@pytest.mark.parametrize("command", ["run", "create", "copy", "start", "log", "status", "stop", "delete"])
def test_a_dry_run_prints_every_command_for_a_shell_and_executes_none(cloud, capsys, command):
  words = [command, *MACHINE, "--dry_run"]
  words += MADE if command in ("run", "create") else ()
  words += TRAINED if command in ("run", "start") else ("--bundle=vit",) if command == "copy" else ()
  assert tpu_vm.main(words) == 0
  assert cloud.commands == []
  printed = capsys.readouterr().out
  assert printed.startswith("gcloud --quiet compute tpus ")
  if command == "run":  # What was printed, run by a shell, is what would have been run.
    cloud.trainers_end_with(0)
    subprocess.run(["bash", "-c", printed], stdout=subprocess.DEVNULL)
    assert cloud.verbs == ["create", "ssh", "scp", "ssh", "ssh", "ssh"]


@pytest.mark.parametrize(
  "words, line",
  [
    (
      ["copy", "--bundle=mixer"],
      "no bundle .*mixer_bundle.tar.gz; make it: ./bazelw build --config=tpu //projects/mixer:",
    ),
    (["copy", "--bundle=cpu"], "is not for TPUs; make it: ./bazelw build --config=tpu //projects/cpu:bundle"),
    (["start", "--bundle=vit", "--workdir=runs/a"], "--workdir=runs/a: give gs://BUCKET/FOLDER, or an absolute path"),
    (["start", "--bundle=vit", "--workdir=gs://b"], "--workdir=gs://b: give gs://BUCKET/FOLDER"),
    (["start", *TRAINED, "--env=A B=1"], "--env=A B=1: give NAME=VALUE"),
    (["start", *TRAINED, "--", "--workdir=/a"], "give --workdir before the --"),
    (["create"], "say what to create: --accelerator=v5litepod-16, say, or --topology=v4:2x2x4"),
    (
      ["create", "--topology=v7:2x2"],
      "no kind of TPU is called 'v7' .known: v2, v3, v4, v5e, v5p, v6e",
    ),
    (["create", "--topology=v4:16"], "the shape must be like 4x4 or 2x2x4, after v4:"),
    (["create", "--accelerator=new-8"], "--version is missing"),
    (["log", "--", "--config=a"], "`log` takes no flags of a trainer: --config=a"),
  ],
)
def test_a_mistake_is_refused_in_a_line(cloud, words, line):
  write_bundle(cloud.folder / "bazel-bin/projects/cpu/cpu_bundle.tar.gz", "requirements.lock")
  with pytest.raises(launcher.UserError, match=line):
    tpu_vm.main([words[0], *MACHINE, *words[1:]])
  assert cloud.commands == []
