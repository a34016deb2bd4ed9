"""Two reports side by side: of two configs, or of one config at two revisions of this repository."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from core.errors import UserError
from tools.aot.report import Report, aligned, seconds, size

_HERE = Path(__file__).parent


def table(first: Report, second: Report, names: tuple[str, str]) -> str:
  """Returns a line a figure, with its change from the first report to the second."""
  rows = [("", *names, "change")]
  for (label, a, show), (_, b, _) in zip(_figures(first), _figures(second)):
    change = "" if a is None or b is None else "same" if a == b else f"{b / a - 1:+.1%}" if a else "new"
    rows.append((label, *("-" if x is None else show(x) for x in (a, b)), change))
  return aligned(rows)


def _figures(report: Report) -> Iterator[tuple[str, float | None, Callable[[float], str]]]:
  """Yields each figure: what it is, its value, and what shows it."""
  memory, flops, time = report["memory"], report["flops"], report["roofline"] or {}
  yield "devices", report["devices"], "{:,}".format
  yield "parameters", report["parameters"], "{:,}".format
  for name in ("arguments", "temporaries", "peak"):
    yield name, memory[name], size
  yield "FLOPs of the model", flops["model"], "{:.4g}".format
  yield "FLOPs compiled", flops["compiled"], "{:.4g}".format
  yield "recompute", flops["recompute"], "{:.1%}".format
  yield "bytes accessed", report["bytes_accessed"], size
  for kind in ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all"):
    total = report["collectives"].get(kind, {"count": 0, "bytes": 0})
    yield f"{kind}, number", total["count"], "{:,}".format
    yield f"{kind}, bytes", total["bytes"], size
  for name in ("compute", "memory", "interconnect", "seconds"):
    yield f"step at best, {name}" if name != "seconds" else "step at best", time.get(name), seconds
  yield "MFU at best", time.get("mfu"), "{:.1%}".format
  yield "compiled in", report["time"]["compile_seconds"], "{:.1f} s".format


def at_revision(revision: str, arguments: Sequence[str]) -> Report:
  """Returns the report that this tool makes of the repository as it was at a git revision.

  Args:
    revision: a commit, tag or branch.
    arguments: of this program, without those that compare.

  Raises:
    UserError: no such revision, no repository, or the program refuses.
  """
  root = Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", "."))
  # An archive leaves no trace in the repository, as a worktree that is not removed would.
  try:
    archive = subprocess.run(["git", "-C", root, "archive", revision], capture_output=True)
  except FileNotFoundError:
    raise UserError("--compare_revision needs git, which is not on the PATH") from None
  if archive.returncode:
    raise UserError(f"--compare_revision: {revision!r}: {archive.stderr.decode().splitlines()[-1]}")
  with tempfile.TemporaryDirectory() as folder:
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
      tar.extractall(folder, filter="data")
    if not Path(folder, "tools", "aot").exists():  # Older than this tool; else its own knows it best.
      shutil.copytree(_HERE, Path(folder, "tools", "aot"))
    others = [path for path in sys.path if path and not Path(path, "core", "errors.py").exists()]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, *others]), "BUILD_WORKING_DIRECTORY": folder}
    command = [sys.executable, "-m", "tools.aot.aot", "--json", *arguments]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
  if done.returncode:
    reason = done.stderr.strip().splitlines()[-1:] or ["it failed"]
    raise UserError(f"--compare_revision: at {revision}: {reason[0].removeprefix('error: ')}")
  return json.loads(done.stdout)
