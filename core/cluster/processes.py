"""The processes of one job: they meet before JAX starts, watch each other while it runs, and end together.

Process 0 listens at the coordinator's address. The others call there, say who they are and what they are about to run,
and stay connected: a sign of life goes either way twenty times in `lost_after` seconds. A process is lost when its
connection breaks, or is silent for `lost_after`; it is stuck when it lives but has not come to a step in which others
have waited for ten times as long. Process 0 judges and tells the others, so that all name the same one; when process 0
is itself that is lost, they see that much. JAX alone would abort in C++, or wait for ever. By the same connections they
agree on the step after which all stop, where one of them was asked to.

A process that is alone does nothing of this.
"""

import abc
import asyncio
import collections
import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NoReturn

import jax

from core import command, signals
from core.cluster import relay, standing
from core.cluster.halt import Halt
from core.cluster.process_environment import ProcessInfo
from core.cluster.standing import Standing
from core.errors import EXIT_USER_ERROR, UserError
from core.masking import masked

EXIT_LOST_PROCESS = 4
LOST_AFTER = 60

# In multiples of `lost_after`: how long all have to come, and JAX's own patience.
_TO_JOIN, _JAX = 5, 20
_MOST_BYTES = 1 << 24  # That a process says of itself.
_SAID = frozenset({"step", "done", "error", "asked", "held"})  # By it of its `Standing`.

_watch: "_Watch | None" = None


class MissingProcess(Exception):
  """Not all processes came in time."""


def report_step(step: int) -> None:
  """Notes that this process has come to `step`; to be called by each once a step."""
  if _watch is not None:
    _watch.me.step = step


def stops_after(step: int, *, asked: bool) -> bool:
  """Returns whether all processes stop after `step`; to be called by each once a step.

  Args:
    step: that is over, from 1.
    asked: whether this process was asked to stop.
  """
  return asked if _watch is None else _watch.stops_after(step, asked)


def run_as_one_job(
  process: ProcessInfo | None, program: Callable[[], int], *, facts: Mapping[str, Any], advice: str, lost_after: float
) -> int:
  """Runs `program` as one process of a job, under `jax.distributed`, and returns its exit status.

  Where another process is lost, or ends with an error, this one ends there and then with one line and status 4: its
  collectives would wait for ever. So it does where not all come in time: a host may be late, and all start again.
  Where `program` fails, so does the process, without waiting for the others.

  Args:
    process: this process's; None where it is alone.
    program: what to run; returns an exit status.
    facts: what must be the same in all processes, as JSON has it: `{"config": {...}, "code": {file: digest}}`.
    advice: ends the line that says who is lost.
    lost_after: seconds without a sign of life after which a process is taken for dead.

  Raises:
    UserError: two have one number, or they are not about to run the same; all get the same line.
  """
  global _watch
  if process is None:
    return program()
  watch = (_Member if process.index else _First)(process, advice, lost_after)
  try:
    address = watch.meet(facts)
  except MissingProcess as error:
    print(f"error: {error}", file=sys.stderr)
    return EXIT_LOST_PROCESS
  _watch = watch
  jax.config.update("jax_enable_preemption_service", False)  # It would take SIGTERM for itself.
  try:
    jax.distributed.initialize(
      address,
      process.count,
      process.index,
      local_device_ids=process.local_device,
      cluster_detection_method="deactivate",
      initialization_timeout=round(_TO_JOIN * lost_after),
      # Never before we have noticed: it ends the process without a word that a person would understand.
      heartbeat_timeout_seconds=round(_JAX * lost_after),
      shutdown_timeout_seconds=round(_JAX * lost_after),
    )
    standing.check_devices(collections.Counter(device.process_index for device in jax.devices()), watch.names)
    status = program()
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    watch.leave(EXIT_USER_ERROR, str(error))
  except KeyboardInterrupt as error:
    number = signals.cause(error)
    signals.say_last(number)
    watch.leave(signals.STATUS[number], signals.words(number))
  except BaseException as error:
    time.sleep(standing.GRACE * watch.period)  # It may be how the loss of another shows, and we end here.
    command.say_traceback(type(error), error, error.__traceback__)
    watch.leave(1, masked(f"{type(error).__name__}: {error}".splitlines()[0])[:200])
  if status not in (0, *signals.STATUS.values()):
    watch.leave(status, f"exit status {status}")
  watch.finish()
  return status


class _Watch(abc.ABC):
  """What process 0 and the others do alike: an event loop in a thread beside the program, and how to end."""

  def __init__(self, process: ProcessInfo, advice: str, lost_after: float):
    self.period = lost_after / standing.LOOKS
    self.me = Standing(f"process {process.index} ({socket.gethostname()})")
    self.names: list[str] = []
    self._process, self._advice, self._lost_after = process, advice, lost_after
    self._looked = time.monotonic()
    self._over, self._halt = threading.Event(), Halt()
    self._loop = asyncio.new_event_loop()
    self._tasks: set[asyncio.Task] = set()
    threading.Thread(target=self._loop.run_forever, name="watch", daemon=True).start()

  def meet(self, facts: Mapping[str, Any]) -> str:
    """Waits until all processes are there, and returns the address at which JAX finds the coordinator."""
    hello = dict(index=self._process.index, count=self._process.count, name=self.me.name, facts=facts)
    return self._run(self._meet(json.loads(json.dumps(hello))))

  def stops_after(self, step: int, asked: bool) -> bool:
    """Returns whether all processes stop after `step`, having told them if this one was asked to."""
    if asked and not self.me.asked:
      self.me.asked = True
      self._run(self._say())
    return self._halt.stops_after(step)

  def finish(self) -> None:
    """Waits until all are done, then shuts `jax.distributed` down."""
    self.me.done = True
    self._run(self._say())
    self._over.wait()
    jax.distributed.shutdown()

  @abc.abstractmethod
  def leave(self, status: int, reason: str) -> NoReturn:
    """Ends the process with `status` once the others can know of it."""

  @abc.abstractmethod
  async def _meet(self, hello: dict[str, Any]) -> str:
    """Does what `meet` waits for, and returns its result."""

  @abc.abstractmethod
  async def _say(self) -> None:
    """Makes what is new of `me` known."""

  def _run(self, coroutine: Coroutine) -> Any:
    return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

  def _keep(self, coroutine: Coroutine) -> None:
    task = self._loop.create_task(coroutine)
    self._tasks.add(task)  # asyncio itself would let it be collected.

  def _look_again(self) -> None:
    """Notes a look, one of `standing.LOOKS` in `lost_after`; a process that was itself stopped for too long ends."""
    if self._was_stopped():
      self._end("")
    self._looked = time.monotonic()

  def _was_stopped(self) -> bool:
    return time.monotonic() - self._looked >= (standing.LOOKS - 2) * self.period  # The others' looks fall in between.

  def _end(self, which: str) -> NoReturn:
    if self._was_stopped():  # Woken again, it may see first that the others have left.
      which = f"{self.me.name} is lost: no sign of life for {self._lost_after:g} s"
    print(f"error: {which}; {self._advice}", file=sys.stderr, flush=True)
    _exit(EXIT_LOST_PROCESS)


class _First(_Watch):
  """Process 0, which hears all and judges."""

  async def _meet(self, hello: dict[str, Any]) -> str:
    self._others: dict[asyncio.StreamWriter, tuple[dict, Standing]] = {}
    self._begun, self._all_here = False, asyncio.Event()
    self._waited, self._steps, self._status, self._last = 0, (), 0, 0
    port, bound = int(self._process.coordinator.rsplit(":", 1)[1]), _TO_JOIN * self._lost_after
    try:
      self._server = await asyncio.start_server(self._hear, None, port, limit=_MOST_BYTES)
    except OSError as error:
      raise UserError(f"process 0 cannot listen at port {port} ({os.strerror(error.errno or 0)})") from error
    with contextlib.suppress(TimeoutError):
      await asyncio.wait_for(self._all_here.wait(), bound)
    self._begun = True
    hellos = [hello, *(each for each, _ in self._others.values())]
    fault, missing = standing.fault_at_start(hellos), standing.missing_at_start(hellos, bound)
    self.names = [each["name"] for each in sorted(hellos, key=lambda each: each["index"])]
    service = _free_port()
    refused = {"refused": fault} if fault else {"late": missing} if missing else {}
    self._tell(refused or {"service": service, "names": self.names})
    if refused:
      await asyncio.sleep(self.period)
      raise UserError(fault) if fault else MissingProcess(missing)
    self._keep(self._look())
    return f"127.0.0.1:{service}"

  def leave(self, status: int, reason: str) -> NoReturn:
    self._status, self.me.error = status, reason
    while True:  # Until all have ended, or the others have been told; the watch ends the process then.
      time.sleep(self._lost_after)

  async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Talks with one of the others for as long as it is connected."""
    hello = await _read(reader)
    if not hello or not {"index", "count", "name", "facts"} <= hello.keys():
      return writer.close()
    if self._begun:  # Started again before the others: a job that has lost a process will end in a moment.
      _write(writer, {"busy": True})
      return writer.close()
    _, known = self._others[writer] = hello, Standing(hello["name"])
    if len(self._others) == self._process.count - 1:
      self._all_here.set()
    while (message := await _read(reader)) is not None:
      known.silent = 0
      for key in _SAID & message.keys():
        setattr(known, key, message[key])
      self._agree()
      if known.done:
        await self._judge()
    if self._begun:
      known.gone = True
      await self._judge()
    else:
      del self._others[writer]

  async def _look(self) -> None:
    self._looked = time.monotonic()
    while True:
      await asyncio.sleep(self.period)
      self._look_again()
      self._tell({})
      standings = self._standings()
      for each in standings:
        each.silent += each is not self.me
        each.ended += bool(each.error)
      steps = tuple(each.step for each in standings)
      self._waited, self._steps = (self._waited + 1 if steps == self._steps else 0), steps
      await self._judge()

  async def _say(self) -> None:
    self._agree()
    await self._judge()

  def _agree(self) -> None:
    """Holds all processes once one of them was asked to stop, and tells them the last step once all are held."""
    standings = self._standings()
    if self.me.held is None and any(each.asked for each in standings):
      self.me.held = self._halt.hold()
      self._tell({"hold": True})
    if not self._last and all(each.held is not None for each in standings):
      self._last = 1 + max(each.held for each in standings)
      self._tell({"last": self._last})
      self._halt.release(self._last)

  async def _judge(self) -> None:
    standings = self._standings()
    if all(each.done for each in standings) and not self._over.is_set():
      self._tell({"over": True})
      self._over.set()
    if self._over.is_set():
      return
    which = standing.lost(standings, self._waited, self._lost_after)
    all_ended = self.me.error and all(each.error or each.gone for each in standings)
    if which and not all_ended:
      self._tell({"lost": which})
      await asyncio.sleep(self.period)
    if self.me.error and (which or all_ended):
      _exit(self._status)
    if which:
      self._end(which)

  def _standings(self) -> list[Standing]:
    return [self.me, *(known for _, known in self._others.values())]

  def _tell(self, message: dict[str, Any]) -> None:
    for writer, (_, known) in self._others.items():
      if not known.gone:
        _write(writer, message)


class _Member(_Watch):
  """Any other process, which hears process 0."""

  async def _meet(self, hello: dict[str, Any]) -> str:
    host, port = self._process.coordinator.rsplit(":", 1)
    host, patience = host.strip("[]"), _TO_JOIN * self._lost_after
    deadline, fault = time.monotonic() + patience, "no answer"
    while (left := deadline - time.monotonic()) > 0:
      try:
        reader, self._first = await asyncio.wait_for(asyncio.open_connection(host, int(port), limit=_MOST_BYTES), left)
        _write(self._first, hello)
        answer = await asyncio.wait_for(_read(reader), 2 * patience) or {}  # Process 0 may have to wait for others.
        if "refused" in answer:
          raise UserError(answer["refused"])
        if "late" in answer:
          raise MissingProcess(answer["late"])
        if "service" in answer:
          break
        fault = "a job is running there" if "busy" in answer else "no answer"
      except OSError as error:
        fault = error.strerror or "no answer"
      await asyncio.sleep(self.period)
    else:
      where = f"process 0 cannot be reached at {self._process.coordinator}"
      raise MissingProcess(f"{where} for {patience:g} s ({fault}); is it started, and is this its address?")
    self.names = answer["names"]
    self._silent = 0
    self._keep(self._hear(reader))
    self._keep(self._look())
    return f"127.0.0.1:{await relay.open_relay(host, answer['service'])}"

  def leave(self, status: int, reason: str) -> NoReturn:
    self.me.error = reason
    self._run(self._say())
    _exit(status)

  async def _say(self) -> None:
    me = self.me
    _write(self._first, dict(step=me.step, done=me.done, error=me.error, asked=me.asked, held=me.held))
    await self._first.drain()

  async def _hear(self, reader: asyncio.StreamReader) -> None:
    while (message := await _read(reader)) is not None:
      self._silent = 0
      if "lost" in message:
        self._end(message["lost"])
      if "hold" in message:
        self.me.held = self._halt.hold()
        await self._say()
      if "last" in message:
        self._halt.release(message["last"])
      if "over" in message:
        self._over.set()
    if not self._over.is_set():
      self._end(f"{self.names[0]} is gone: its connection broke")

  async def _look(self) -> None:
    self._looked = time.monotonic()
    while not self._over.is_set():
      await asyncio.sleep(self.period)
      self._look_again()
      _write(self._first, dict(step=self.me.step))
      self._silent += 1
      if self._silent >= standing.LOOKS:
        self._end(f"{self.names[0]} is lost: no sign of life for {self._lost_after:g} s")


async def _read(reader: asyncio.StreamReader) -> dict[str, Any] | None:
  """Returns the next message; None where the connection ended, or what came is none."""
  try:
    message = json.loads(await reader.readline())
  except (OSError, ValueError):
    return None
  return message if isinstance(message, dict) else None


def _write(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
  writer.write(json.dumps(message).encode() + b"\n")


def _free_port() -> int:
  with socket.socket() as listener:
    listener.bind(("", 0))
    return listener.getsockname()[1]


def _exit(status: int) -> NoReturn:
  """Ends at once: an orderly exit would wait for the processes that are gone."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
