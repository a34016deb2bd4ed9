"""Judges the processes of a job: whether they can begin together, and which of them the job has lost."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from core.errors import UserError, first_few
from core.recipe import load

LOOKS = 20  # At one another in `lost_after` seconds.
GRACE = 2  # Looks after which the others end where one has ended with an error; they may have the same to say.
_TO_STEP = 10  # In multiples of `lost_after`: how long one has to come to the others' step.


def check_devices(counts: Mapping[int, int], names: Sequence[str]) -> None:
  """Refuses processes with unequal numbers of devices.

  Args:
    counts: `{process: devices}`.
    names: of the processes.

  Raises:
    UserError: names those that have another number than the first.
  """
  odd = [f"{name} has {counts[i]}" for i, name in enumerate(names) if counts[i] != counts[0]]
  if odd:
    raise UserError(f"all processes need as many devices: {names[0]} has {counts[0]}, {first_few(odd)}")


def fault_at_start(hellos: Sequence[Mapping[str, Any]]) -> str | None:
  """Returns what is wrong with those that came, one line for all processes; None where they can begin.

  Args:
    hellos: of each process that came, first of process 0: index, count, name, facts.
  """
  first = hellos[0]
  for hello in hellos:
    if hello["count"] != first["count"]:
      return f"{hello['name']} is one of {hello['count']} processes, but {first['name']} one of {first['count']}"
  by_index = collections.defaultdict(list)
  for hello in hellos:
    by_index[hello["index"]].append(hello["name"])
  for names in by_index.values():
    if len(names) > 1:
      return f"several processes have one number: {', '.join(names)}; each needs its own --process_id"
  odd = []
  for hello in sorted(hellos, key=lambda hello: hello["index"]):
    lines = [
      line for key, value in first["facts"].items() for line in load.differences(value, hello["facts"].get(key), key)
    ]
    if lines:
      odd.append(f"{hello['name']}: {first_few(lines)}")
  if odd:
    return f"not all are about to run the same; there is {first['name']}, here is {first_few(odd, joint='; ')}"
  return None


def missing_at_start(hellos: Sequence[Mapping[str, Any]], waited: float) -> str | None:
  """Returns who did not come in `waited` seconds, one line for all processes; None where all did."""
  count, came = hellos[0]["count"], {hello["index"] for hello in hellos}
  missing = [str(i) for i in range(count) if i not in came]
  several = "processes" if len(missing) > 1 else "process"
  return f"{several} {first_few(missing)} of {count} did not come within {waited:.0f} s" if missing else None


@dataclasses.dataclass
class Standing:
  """What is known of a process while the job runs.

  Attributes:
    name: number and host, for people.
    step: that it has come to.
    silent: how many looks ago it last gave a sign of life.
    gone: its connection broke.
    done: it has finished its part.
    error: why it ended, and `ended` how many looks ago.
    asked: it was asked to stop.
    held: the last step that it has passed, and passes no further for now; None where it is not held.
  """

  name: str
  step: int = 0
  silent: int = 0
  gone: bool = False
  done: bool = False
  error: str = ""
  ended: int = 0
  asked: bool = False
  held: int | None = None


def lost(processes: Sequence[Standing], waited: int, lost_after: float) -> str | None:
  """Returns which process the job has lost, and how; None where all is well.

  Args:
    processes: all of them.
    waited: looks since any came to another step.
    lost_after: seconds of `LOOKS` looks.
  """
  for each in processes:
    if each.error and each.ended >= GRACE:
      return f"{each.name} ended ({each.error})"
    if each.gone and not each.done and not each.error:
      return f"{each.name} is gone: its connection broke"
    if each.silent >= LOOKS and not each.done and not each.error:
      return f"{each.name} is lost: no sign of life for {lost_after:g} s"
  ahead = max(each.step for each in processes)
  behind = [each for each in processes if each.step < ahead and not each.error]
  if behind and waited >= _TO_STEP * LOOKS:
    names = first_few([f"{each.name} after step {each.step:,}" for each in behind])
    return f"stuck for {_TO_STEP * lost_after:g} s while others wait in step {ahead:,}: {names}"
  return None
