"""The one door to gcloud: runs a command, or only prints it, and says in a line what is wrong and what to do."""

import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.errors import UserError
from core.masking import masked

# What gcloud says where a person must act, most particular first. The words are those of Google Cloud SDK 528 (account,
# project, key) and of the TPU API (the others), in any case.
_TROUBLES = (
  ("account", r"active account selected|reauthentication|invalid_grant|unauthenticated", "run: gcloud auth login"),
  ("project", r"attribute \[project\]|property \[(core/)?project\]", "give --project=ID"),
  ("key", r"not present in the ssh agent", "run: ssh-add ~/.ssh/google_compute_engine"),
  ("service", r"service_disabled|has not been used in project", "run: gcloud services enable tpu.googleapis.com"),
  ("permission", r"permission_denied|does not have permission", "the account needs the role TPU Admin"),
  ("quota", r"quota", "ask for more on the console's page Quotas, or take another zone, a smaller slice, or --spot"),
  (
    "capacity",
    r"no more capacity|insufficient capacity|not enough resources|stockout|resource_exhausted",
    "wait for it with --queued, or take --spot or another zone",
  ),
  ("missing", r"not_found|not found", "see its name, zone and project"),
  ("invalid", r"invalid choice|unrecognized arguments|invalid_argument", "see --accelerator, --topology and --version"),
)


@dataclass(frozen=True)
class Reply:
  """What a command gave: its exit status, and all that it wrote."""

  status: int
  output: str
  errors: str = ""

  @property
  def trouble(self) -> str:
    """Tells the kind of failure, one of `_TROUBLES`; "other" for any that is not known, "" for none."""
    if not self.status:
      return ""
    return next((name for name, words, _ in _TROUBLES if re.search(words, self.errors, re.IGNORECASE)), "other")

  @property
  def line(self) -> str:
    """Returns the line of gcloud's that names the failure, and what to do about it where that is known."""
    lines = [line.strip() for line in self.errors.splitlines() if line.strip()]
    told = lines[-1] if lines else f"gcloud ended with status {self.status}"
    told = next((line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")), told)
    # An answer of the API, printed as JSON.
    told = next((line.removeprefix('"message": ').rstrip(",") for line in lines if line.startswith('"message":')), told)
    advice = next((advice for name, _, advice in _TROUBLES if name == self.trouble), "")
    return told + (f" ({advice})" if advice else "")


class Gcloud:
  """Runs gcloud.

  Args:
    dry_run: print the commands, quoted for a shell, and run none.
  """

  def __init__(self, *, dry_run: bool = False):
    self.dry_run = dry_run

  def __call__(
    self, arguments: Sequence[str], *, show: Callable[[str], None] | None = None, imagined: Reply = Reply(0, "")
  ) -> Reply:
    """Runs `gcloud ARGUMENTS` to its end.

    Args:
      arguments: the words after `gcloud`.
      show: gets each line of the output as it comes.
      imagined: the reply in a dry run.

    Raises:
      UserError: there is no gcloud, or it lacks an account or a project, which no other command would mend.
    """
    command = ["gcloud", *arguments]
    if self.dry_run:
      print(masked(shlex.join(command)), flush=True)
      return imagined
    with tempfile.TemporaryFile("w+") as errors:
      try:
        process = subprocess.Popen(
          command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace"
        )
      except FileNotFoundError:
        raise UserError("gcloud is not on PATH: install the Google Cloud CLI, then run: gcloud auth login") from None
      lines = []
      with process:
        for line in process.stdout:
          lines.append(line)
          if show:
            show(line.rstrip("\n"))
      errors.seek(0)
      reply = Reply(process.returncode, "".join(lines), errors.read())
    if reply.trouble in ("account", "project", "key", "service", "permission"):
      raise UserError(reply.line)
    return reply
