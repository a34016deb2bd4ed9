"""Processes of one job meet, watch each other and end together; here without a model, in projects/vit with one."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from core.cluster import processes
from core.testing import trainer

# What a process of the job does when told, by a line on its standard input; it prints what it has come to.
CHILD = """
import json, sys
from core.errors import UserError
from core.cluster import processes
from core.cluster.process_environment import ProcessInfo
address, count, index, lost_after, facts = sys.argv[1:]
def program():
  print("in", flush=True)
  for line in sys.stdin:
    word = line.strip()
    if word == "end":
      break
    if word == "refuse":
      raise UserError("no such file")
    if word == "raise":
      raise RuntimeError("out of luck")
    word, _, step = word.partition(" ")
    if word == "at":
      processes.report_step(int(step))
    else:
      print(processes.stops_after(int(step), asked=word == "asked"), flush=True)
  return 0
this = ProcessInfo(address, int(count), int(index))
try:
  sys.exit(processes.run_as_one_job(this, program, facts=json.loads(facts), advice="again", lost_after=int(lost_after)))
except UserError as error:
  print(f"error: {error}", file=sys.stderr)
  sys.exit(2)
"""

# Two hosts, each a network of its own, joined by a wire that is cut when a line is read.
TWO_HOSTS = """
set -e
unshare --net sleep 100 &
other=$!
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/$$/ns/net)" ]; do sleep 0.05; done
on_other="nsenter --target $other --net"
ip link add wire type veth peer name wire netns $other
for host in "" "$on_other"; do $host ip link set lo up; $host ip link set wire up; done
ip address add 10.9.8.1/24 dev wire
$on_other ip address add 10.9.8.2/24 dev wire
"$@" 10.9.8.1:8482 2 0 2 {} < <(exec sleep 100 2>&-) & first=$!
$on_other "$@" 10.9.8.1:8482 2 1 2 {} < <(exec sleep 100 2>&-) & second=$!
read line
ip link set wire down
wait $first || echo $?
wait $second || echo $?
kill $other
"""


class Job:
  """Processes of `CHILD`."""

  def __init__(self, indices=(0, 1, 2), count=3, lost_after=4, facts=None, port=None):
    self.port = port or trainer.free_port()
    facts = facts or {}
    self.processes = {
      place: subprocess.Popen(
        [sys.executable, "-c", CHILD, f"localhost:{self.port}", str(count), str(index), str(lost_after)]
        + [json.dumps(facts.get(place, {"config": {"lr": 0.1}}))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
      )
      for place, index in enumerate(indices)
    }

  def wait_until_in(self):
    for process in self.processes.values():
      assert process.stdout.readline() == "in\n", process.stderr.read()
    return self

  def tell(self, place, word):
    self.processes[place].stdin.write(f"{word}\n")
    self.processes[place].stdin.flush()

  def ends(self, *places, within=120):
    """Returns statuses and last lines of the processes at `places`; what has not ended `within` seconds hangs."""
    found = []
    for place in places:
      _, errors = self.processes[place].communicate(timeout=within)
      found.append((self.processes[place].returncode, (errors.strip().splitlines() or [""])[-1]))
    return found


def environment():
  return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "JAX_PLATFORMS": "cpu"}


def has_networks():
  """Returns whether this machine lets us make networks of our own."""
  try:
    make = "unshare --net true && ip link add wire type veth peer name other"
    return subprocess.run(["unshare", "-rn", "bash", "-c", make], capture_output=True).returncode == 0
  except FileNotFoundError:
    return False


@pytest.fixture
def job():
  jobs = []

  def start(*args, **kwargs):
    jobs.append(Job(*args, **kwargs))
    return jobs[-1]

  yield start
  for each in jobs:
    for process in each.processes.values():
      process.kill()
      process.communicate()


def name(index):
  return f"process {index} ({socket.gethostname()})"


def test_they_end_together_when_all_are_done(job):
  started = job().wait_until_in()
  for place in (0, 2):
    started.tell(place, "end")
  time.sleep(1)
  assert [process.poll() for process in started.processes.values()] == [None] * 3
  started.tell(1, "end")
  assert started.ends(0, 1, 2) == [(0, "")] * 3


@pytest.mark.parametrize("victim", [0, 2], ids=["coordinator", "another"])
def test_one_that_is_killed_is_named_at_once_by_all_others(job, victim):
  started = job(lost_after=60).wait_until_in()
  started.processes[victim].send_signal(signal.SIGKILL)
  others = [place for place in range(3) if place != victim]
  line = f"error: {name(victim)} is gone: its connection broke; again"
  # What broke off is not waited for: on a machine however busy they end well before the 60 s of one that is silent.
  assert started.ends(*others, within=45) == [(processes.EXIT_LOST_PROCESS, line)] * 2


@pytest.mark.parametrize("victim", [0, 1], ids=["coordinator", "another"])
def test_one_that_is_paused_is_named_in_time_and_learns_of_it_itself(job, victim):
  started = job(lost_after=2).wait_until_in()
  started.processes[victim].send_signal(signal.SIGSTOP)
  line = f"error: {name(victim)} is lost: no sign of life for 2 s; again"
  others = [place for place in range(3) if place != victim]
  assert started.ends(*others) == [(processes.EXIT_LOST_PROCESS, line)] * 2
  started.processes[victim].send_signal(signal.SIGCONT)
  assert started.ends(victim) == [(processes.EXIT_LOST_PROCESS, line)]


@pytest.mark.skipif(not has_networks(), reason="this machine lets nobody make networks")
def test_a_host_that_drops_off_the_network_is_named_in_time():
  command = ["unshare", "-rn", "bash", "-c", TWO_HOSTS, "hosts", sys.executable, "-c", CHILD]
  pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  hosts = subprocess.Popen(command, text=True, env=environment(), start_new_session=True, **pipes)
  try:
    assert sorted(hosts.stdout.read(6)) == sorted("in\nin\n")  # Of both, which write at the same time.
    statuses, errors = hosts.communicate("cut\n", timeout=120)
  finally:
    os.killpg(hosts.pid, signal.SIGKILL)
  assert statuses.split() == [str(processes.EXIT_LOST_PROCESS)] * 2
  for index in range(2):
    assert f"error: {name(index)} is lost: no sign of life for 2 s; again" in errors


def test_one_that_is_slow_is_not_accused(job):
  started = job(lost_after=2).wait_until_in()
  for place in (0, 1):
    for _ in range(4):
      started.processes[place].send_signal(signal.SIGSTOP)
      time.sleep(0.8)
      started.processes[place].send_signal(signal.SIGCONT)
      time.sleep(0.2)
  for place in range(3):
    started.tell(place, "end")
  assert started.ends(0, 1, 2) == [(0, "")] * 3


def test_one_that_lives_but_does_not_come_to_the_others_step_is_named(job):
  started = job(lost_after=1).wait_until_in()
  for place, step in enumerate([8, 7, 8]):
    started.tell(place, f"at {step}")
  line = f"error: stuck for 10 s while others wait in step 8: {name(1)} after step 7; again"
  assert started.ends(0, 1, 2) == [(processes.EXIT_LOST_PROCESS, line)] * 3


@pytest.mark.parametrize("asked", [0, 1, 2])
def test_where_one_is_asked_to_stop_all_do_after_one_step_that_none_has_passed(job, asked):
  started = job().wait_until_in()

  def is_last(place, step, word="passed"):
    started.tell(place, f"{word} {step}")
    return started.processes[place].stdout.readline() == "True\n"

  passed, last = [7, 5, 6], {}
  assert not any(is_last(place, step) for place, step in enumerate(passed))
  for place in (asked, *({0, 1, 2} - {asked})):
    # The word goes to process 0 and to all; some steps may pass meanwhile.
    word = "asked" if place == asked else "passed"
    last[place] = next(step for step in itertools.count(passed[place] + 1) if is_last(place, step, word))
    started.tell(place, "end")
  assert len(set(last.values())) == 1
  assert last[0] >= 8
  assert started.ends(0, 1, 2) == [(0, "")] * 3


@pytest.mark.parametrize("place", [0, 1])
def test_an_error_of_one_ends_all_and_one_of_all_is_each_ones_own(job, place):
  started = job(lost_after=4).wait_until_in()
  started.tell(place, "raise")
  assert started.ends(place) == [(1, "RuntimeError: out of luck")]
  line = f"error: {name(place)} ended (RuntimeError: out of luck); again"
  others = [other for other in range(3) if other != place]
  assert started.ends(*others) == [(processes.EXIT_LOST_PROCESS, line)] * 2
  started = job().wait_until_in()
  for each in range(3):
    started.tell(each, "refuse")
  assert started.ends(0, 1, 2) == [(2, "error: no such file")] * 3


def test_hosts_that_would_not_run_the_same_all_say_which_and_in_what(job):
  facts = {1: {"config": {"lr": 0.2}}}
  lines = [
    f"error: not all are about to run the same; there is {name(0)}, here is {name(1)}: config.lr: 0.1 there, 0.2 here"
  ] * 3
  assert job(facts=facts).ends(0, 1, 2) == [(2, line) for line in lines]


def test_two_of_one_number_are_refused(job):
  line = f"error: several processes have one number: {name(1)}, {name(1)}; each needs its own --process_id"
  assert job(indices=(0, 1, 1)).ends(0, 1, 2) == [(2, line)] * 3


def test_one_that_does_not_come_and_a_coordinator_that_is_not_there(job):
  assert (
    job(indices=(0, 2), lost_after=4).ends(0, 1)
    == [
      (4, "error: process 1 of 3 did not come within 20 s"),
    ]
    * 2
  )
  alone = job(indices=(1,), lost_after=1)
  line = f"error: process 0 cannot be reached at localhost:{alone.port} for 5 s (Connect call failed"
  ((status, found),) = alone.ends(0)
  assert status == 4
  assert found.startswith(line[:60]), found
