"""What runs on each worker of a TPU VM: scripts for its shell, made here whole, and the line by which each answers.

When a connection breaks, gcloud runs a command again by itself: nothing here does harm when it is done twice.

On a worker, in `~/tpu_vm`:

    lock     held by the trainer, and by nothing else, for as long as it runs: no restart of the machine, no other
             process of the same number can be taken for it
    pid      the trainer's process, for signals
    status   its exit status, when it has ended
    stopped  there, where a person stopped it
    log      what it printed; earlier ones are log.SECONDS
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.errors import UserError

# Exit statuses of a trainer: those of core.training, which would bring JAX with it.
DONE, USER_ERROR, NON_FINITE, LOST_PROCESS, PREEMPTED = 0, 2, 3, 4, 75

_FOLDER = 'mkdir -p "$HOME/tpu_vm" && cd "$HOME/tpu_vm" || exit\n'
_REPORT = """\
running() { ! flock -n -s lock true; }
report() {
  if running; then state=running
  elif [ -e stopped ]; then state=stopped
  elif [ -e status ]; then state="ended $(cat status)"
  elif [ -e pid ]; then state=lost
  else state=none
  fi
  echo "tpu_vm: $(hostname) $state"
}
touch lock
"""
_LINE = re.compile(r"^tpu_vm: (\S+) (running|stopped|lost|none|ended (\d+))$", re.MULTILINE)


@dataclass(frozen=True)
class State:
  """How the trainer on one worker does.

  Attributes:
    host: the worker's name.
    word: `running`; `ended`; `stopped`, by a person; `lost`, ended without a status; `none`, never started.
    code: its exit status, where it has ended.
  """

  host: str
  word: str
  code: int | None = None

  def __str__(self) -> str:
    return f"{self.host} {self.word}{'' if self.code is None else f' with status {self.code}'}"


def start(folder: str, arguments: Sequence[str], *, workdir: str, env: Mapping[str, str], setup: str) -> str:
  """Returns a script that starts the trainer of a bundle, unless it runs, so that it outlives the connection.

  Args:
    folder: the bundle's own, `vit_bundle`; the file, `vit_bundle.tar.gz`, lies in the home folder.
    arguments: the trainer's, but --workdir.
    workdir: a path, or `gs://BUCKET/FOLDER`, which is mounted by gcsfuse.
    env: variables for the trainer.
    setup: a shell's command to run before; "" for none.
  """
  mount, path = _workdir(workdir)
  variables = shlex.join(["env", *(f"{name}={value}" for name, value in env.items())])
  # What a setup or a mount leaves running must not hold the lock: hence 9>&-.
  steps = (
    f"bash -c {shlex.quote(setup)} 9>&- || {_fail('--setup failed')}" if setup else "",
    mount,
    f'tar xzf "$HOME"/{shlex.quote(folder)}.tar.gz || {_fail("the bundle is damaged; copy it again")}',
    f"exec {variables} ./{shlex.quote(folder)}/start {shlex.join(arguments)} --workdir={path}",
  )
  return _script(
    "trainer() {\n" + "\n".join(filter(None, steps)) + "\n}\n"
    "guard() {\n"
    "trap '' HUP\n"
    "trainer & echo $! >pid\n"
    "wait $!\n"
    "echo $? >status.part && mv status.part status\n"  # Whole or not at all, and before the lock is let go.
    "}\n"
    "exec 9>>lock\n"
    "if running || ! flock -w 10 9; then report; exit; fi\n"
    "rm -f status stopped pid\n"
    'if [ -e log ]; then mv log "log.$(date +%s)"; fi\n'
    "guard >>log 2>&1 </dev/null &\n"
    "exec 9>&-\n"
    "report"
  )


def report() -> str:
  """Returns a script that only answers."""
  return _script("report")


def stop(signal: str = "TERM", *, by_hand: bool = True) -> str:
  """Returns a script that sends the trainer a signal; at TERM it and all that train with it save a checkpoint."""
  note = "touch stopped; " if by_hand else ""
  return _script(f'if running && [ -e pid ]; then {note}kill -{signal} "$(cat pid)" 2>/dev/null; fi\nreport')


def follow() -> str:
  """Returns a script that prints the log, each line after its number and a colon, and ends when the trainer has."""
  # The lock is given to this wait when the trainer ends; tail reads to the end once more and ends with the wait.
  return _script(
    'touch log\nflock -s lock true &\ntail -n +1 -s 0.2 -f --pid=$! log | grep --line-buffered -n ""\nexit 0'
  )


def states(output: str) -> list[State]:
  """Returns the answers among what the workers printed, by host."""
  found = {}
  for host, word, code in _LINE.findall(output):
    found[host] = State(host, word.split()[0], int(code) if code else None)
  return [found[host] for host in sorted(found)]


def outcome(states: Sequence[State]) -> int | None:
  """Returns one exit status for a job that has ended on all workers; None where a person stopped it.

  What is the user's to mend comes before what another process did, and that before an interruption: a trainer that
  ended by a signal, with its machine, or because it lost another process is to be started again.
  """
  if any(state.word == "stopped" for state in states):
    return None
  codes = [PREEMPTED if state.word in ("lost", "none") else state.code for state in states]
  codes = [PREEMPTED if code == LOST_PROCESS or code >= 128 else code for code in codes]
  for code in (USER_ERROR, NON_FINITE):
    if code in codes:
      return code
  return next((code for code in codes if code not in (DONE, PREEMPTED)), PREEMPTED if PREEMPTED in codes else DONE)


def _script(lines: str) -> str:
  return _FOLDER + _REPORT + lines


def _fail(line: str) -> str:
  return f"{{ echo {shlex.quote(f'error: {line}')}; exit {USER_ERROR}; }}"


def _workdir(workdir: str) -> tuple[str, str]:
  """Returns what makes a workdir reachable, and its path for the shell.

  Raises:
    UserError: it would not outlive the machine.
  """
  if not workdir.startswith("gs://"):
    if not workdir.startswith("/"):
      raise UserError(
        f"--workdir={workdir}: give gs://BUCKET/FOLDER, or an absolute path on a disk that all workers share and that "
        "outlives them"
      )
    return "", shlex.quote(workdir)
  bucket, _, path = workdir.removeprefix("gs://").partition("/")
  if not bucket or not path.strip("/"):
    raise UserError(f"--workdir={workdir}: give gs://BUCKET/FOLDER")
  point = f'"$HOME"/tpu_vm/buckets/{shlex.quote(bucket)}'
  # What one worker wrote the others must see at once, hence no cache of names. A bucket with a hierarchical namespace
  # renames a checkpoint at once; in any other a rename that is cut short leaves one that its integrity.json exposes.
  options = (
    "--implicit-dirs --rename-dir-limit=1000000 --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0"
  )
  missing = _fail("gcsfuse is not installed on this worker; have --setup install it")
  failed = _fail(f"{bucket} could not be mounted; see that it exists and that the worker may write to it")
  mount = (
    f"if ! mountpoint -q {point}; then\n"
    f"command -v gcsfuse >/dev/null || {missing}\n"
    f"mkdir -p {point}\n"
    f"gcsfuse {options} {shlex.quote(bucket)} {point} 9>&- || {failed}\n"
    "fi"
  )
  return mount, f"{point}/{shlex.quote(path.rstrip('/'))}"
