"""Makes a TPU VM ready, reaches its workers, and takes a job through preemptions to its end."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError, first_few
from tools.tpu_vm import commands, worker
from tools.tpu_vm.commands import Machine
from tools.tpu_vm.gcloud import Gcloud, Reply

READY = "READY"
MISSING = "MISSING"  # gcloud knows of no such machine.
# States of nodes and of queued resources (the TPU API, v2) that end in no machine: they can only be deleted.
GONE = ("PREEMPTED", "TERMINATED", "SUSPENDED", "FAILED")
_TRIES = 5  # Of a connection, of a request that fails, and of a job that is interrupted as soon as it starts.
_HASTY = 600.0  # Seconds.


class MachineGone(Exception):
  """The machine was taken away while it was in use; the message is its state."""


@dataclass(frozen=True)
class Job:
  """What runs on the workers.

  Attributes:
    bundle: the archive; its name before `.tar.gz` is the folder in it.
    start: the script that starts it.
  """

  bundle: Path
  start: str


class Launcher:
  """A machine and what is done with it; each line that a person should see goes to `say`.

  Args:
    gcloud: runs the commands.
    machine: which.
    poll: seconds between two looks.
    wait: seconds after which a machine that is not ready is given up.
    grace: seconds that workers have to end when the first has.
    say: prints a line about the machine.
    show: prints a line of the log.
  """

  def __init__(
    self,
    gcloud: Gcloud,
    machine: Machine,
    *,
    poll: float = 30.0,
    wait: float = 86_400.0,
    grace: float = 300.0,
    say: Callable[[str], None] = print,
    show: Callable[[str], None] = print,
  ):
    self._gcloud, self._machine = gcloud, machine
    self._poll, self._wait, self._grace = poll, wait, grace
    self._say, self._show = say, show
    self._imagined_there, self._imagined_trainer = True, "none"  # What a dry run takes to be there.
    self._had = False

  def state(self) -> str:
    """Returns `READY`, `MISSING`, or another state's name; why, where a request failed."""
    if self._machine.queued:
      reply = self._ask(commands.describe_queued(self._machine), imagined="ACTIVE")
      if reply.output.split()[:1] != ["ACTIVE"]:
        return " ".join(reply.output.split()) or MISSING
    reply = self._ask(commands.describe(self._machine), imagined=READY)
    # The node of a request that is active and has none was taken away.
    return reply.output.strip() or ("TERMINATED" if self._machine.queued else MISSING)

  def _ask(self, arguments: Sequence[str], imagined: str) -> Reply:
    reply = Reply(0, imagined) if self._imagined_there else Reply(1, "", "NOT_FOUND")
    return self._again(lambda: self._gcloud(arguments, imagined=reply))

  def _again(self, call: Callable[[], Reply]) -> Reply:
    """Returns the reply of a call that succeeds or finds nothing; a service that has a bad minute is asked again."""
    for tries in range(1, _TRIES + 1):
      reply = call()
      if reply.trouble in ("", "missing"):
        return reply
      if reply.trouble != "other" or tries == _TRIES:
        raise UserError(reply.line)
      self._pause(reply, tries)

  def _pause(self, reply: Reply, tries: int = 1) -> None:
    seconds = self._poll * 2 ** (tries - 1)
    self._say(f"again in {seconds:.0f} s: {reply.line}")
    time.sleep(seconds)

  def make_ready(self, *, patient: bool) -> None:
    """Creates the machine where it is missing, and waits until it is ready, with a line a change of state.

    Args:
      patient: take away what is left of a preempted machine, and wait where there is no capacity.

    Raises:
      UserError: it cannot be had, or not within the time.
    """
    request = commands.create(self._machine)  # Refuses a mistake before anything is asked.
    began, last, failures = time.monotonic(), "", 0
    self._imagined_there = False
    while (state := self.state()) != READY:
      if state not in (last, MISSING):
        self._say(f"{self._machine.name}: {state}")
      last, word = state, state.split()[0]
      failures += word == "FAILED"
      if word == "STOPPED" or (word in GONE and not patient):
        raise UserError(f"{self._machine.name} is {state}; delete it first, or start it where gcloud can")
      if failures >= _TRIES:
        raise UserError(f"{self._machine.name} could not be had: {state}")
      if word in GONE:
        self.delete()
      elif word == MISSING and self._create(request, patient):
        continue
      if time.monotonic() - began > self._wait:
        raise UserError(f"{self._machine.name} is {state} after {self._wait:.0f} s; give it longer with --wait=SECONDS")
      time.sleep(self._poll)
    self._had = True
    self._say(f"{self._machine.name}: ready")

  def _create(self, request: Sequence[str], patient: bool) -> bool:
    """Tells whether it could be created; where not for lack of capacity, a patient caller tries again later.

    So it does for lack of quota, once there was a machine: the one that was taken away may count for a while.
    """
    self._say(f"{self._machine.name}: creating")
    reply = self._gcloud(request)
    passing = ("capacity", "other", "quota") if self._had else ("capacity", "other")
    if reply.status and not (patient and reply.trouble in passing):
      raise UserError(reply.line)
    if reply.status:
      self._say(f"again in {self._poll:.0f} s: {reply.line}")
    self._imagined_there = True
    return not reply.status

  def delete(self) -> None:
    """Deletes the machine, and its request where it was queued."""
    self._again(lambda: self._gcloud(commands.delete(self._machine)))
    self._say(f"{self._machine.name}: deleted")

  def copy(self, job: Job) -> None:
    """Copies the bundle to each worker."""
    self._reach(lambda: self._gcloud(commands.copy(self._machine, job.bundle)))

  def start(self, job: Job) -> list[worker.State]:
    """Starts the trainer on each worker where it does not run."""
    states = self.ask_workers(job.start)
    self._imagined_trainer = "ended 0"
    return states

  def ask_workers(self, script: str) -> list[worker.State]:
    """Runs a script on all workers and reads their answers.

    Raises:
      MachineGone: the machine is not there any more.
      UserError: it is, and cannot be reached.
    """
    command, imagined = commands.ssh(self._machine, script), Reply(0, f"tpu_vm: worker-0 {self._imagined_trainer}\n")
    return worker.states(self._reach(lambda: self._gcloud(command, imagined=imagined)).output)

  def follow(self, which: str = "0") -> None:
    """Shows the log of one worker until its trainer ends, each line once however often the connection breaks.

    Raises: as `ask_workers`.
    """
    shown = 0

    def show(line: str) -> None:
      nonlocal shown
      number, _, text = line.partition(":")
      if number.isdigit() and int(number) > shown:
        shown = int(number)
        self._show(text)

    command = commands.ssh(self._machine, worker.follow(), which)
    self._reach(lambda: self._gcloud(command, show=show), progress=lambda: shown)

  def wait_until_ended(self) -> list[worker.State]:
    """Returns the workers' answers when no trainer runs any more, or when the grace is over."""
    until = time.monotonic() + self._grace
    while True:
      states = self.ask_workers(worker.report())
      if time.monotonic() >= until or not any(state.word == "running" for state in states):
        return states
      time.sleep(self._poll)

  def _reach(self, call: Callable[[], Reply], progress: Callable[[], int] = lambda: 0) -> Reply:
    """Calls what needs a connection until it succeeds; `progress` is a number that grows while it does its work."""
    tries, mark = 0, None
    while (reply := call()).status:
      if (state := self.state()) != READY:
        raise MachineGone(state)
      tries = tries + 1 if progress() == mark else 1
      mark = progress()
      if tries == _TRIES:
        name = self._machine.name
        raise UserError(f"{name} was not reached {tries} times; what runs there goes on, call again: {reply.line}")
      self._pause(reply, tries)
    return reply


def run(launcher: Launcher, job: Job, *, delete: bool, say: Callable[[str], None] = print) -> int:
  """Trains to the end: creates the machine, starts, shows the log; after a preemption does all of it again.

  Args:
    launcher: of the machine.
    job: what trains.
    delete: the machine, when the training is done.
    say: prints a line.

  Returns:
    The trainer's exit status: 0; one that starting again would not mend; or 75, where a person stopped it or it was
    interrupted again and again at once.

  Raises:
    UserError: the machine cannot be had or reached.
  """
  hasty = 0
  while True:
    began = time.monotonic()
    try:
      launcher.make_ready(patient=True)
      states = launcher.ask_workers(worker.report())
      if states and all(state.word == "running" for state in states):
        say("trains already; here is its log")
      else:
        if any(state.word == "running" for state in states):
          _ended(launcher, say)  # What a start or an end that was cut short has left.
        say(f"copies {job.bundle.name} and starts it")
        launcher.copy(job)
        launcher.start(job)
        began = time.monotonic()
      launcher.follow()
      states = _ended(launcher, say)
    except MachineGone as gone:
      say(f"the machine was taken away ({gone}); another resumes")
      continue
    status = worker.outcome(states)
    # Of many workers those are told first that decided.
    told = first_few([str(state) for state in sorted(states, key=lambda state: state.code != status)])
    if status is None:
      say(f"stopped by hand: {told}")
      return worker.PREEMPTED
    if status != worker.PREEMPTED:
      say(f"ended: {told}")
      if delete and status == worker.DONE:
        launcher.delete()
      return status
    hasty = hasty + 1 if time.monotonic() - began < _HASTY else 0
    if hasty == _TRIES:
      say(f"given up, interrupted {hasty} times within {_HASTY:.0f} s of its start: {told}")
      return worker.PREEMPTED
    say(f"interrupted, resumes: {told}")


def _ended(launcher: Launcher, say: Callable[[str], None]) -> list[worker.State]:
  """Returns the answers when all trainers have ended; those that outlast the first by the grace are killed."""
  states = launcher.wait_until_ended()
  late = [state.host for state in states if state.word == "running"]
  if late:
    say(f"killed, for they did not end with the others: {first_few(late)}")
    launcher.ask_workers(worker.stop("KILL", by_hand=False))
    states = launcher.wait_until_ended()
  if any(state.word == "running" for state in states):
    raise UserError(f"cannot be ended, delete the machine: {first_few([str(state) for state in states])}")
  return states
