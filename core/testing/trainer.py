"""Starts a project's trainer as a process of its own, and reads what it leaves behind."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from core import trees
from core.training import metrics


def start(
  module: str, *arguments: str, env: dict[str, str] | None = None, folder: Path | None = None
) -> subprocess.Popen:
  """Starts `python -m MODULE ARGUMENTS` with this process's packages and no others, both outputs in one text pipe.

  Modules are looked for in `folder` first; by default where this process stands.
  """
  return _python("-m", module, *arguments, env=env, folder=folder)


def _python(*arguments: str, env: dict[str, str] | None, folder: Path | None = None) -> subprocess.Popen:
  hermetic = ["-S", "-s"] if sys.flags.no_site else []
  return subprocess.Popen(
    [sys.executable, *hermetic, *arguments],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    cwd=folder,
    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **(env or {})},
  )


def run(module: str, *arguments: str, env: dict[str, str] | None = None, timeout: float = 300) -> tuple[int, str]:
  """Returns exit status and output of the trainer, run to its end."""
  process = start(module, *arguments, env=env)
  output, _ = process.communicate(timeout=timeout)
  return process.returncode, output


def start_code(code: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen:
  """Starts, as `start`, a line of Python that sets something up before it runs a trainer."""
  return _python("-c", code, *arguments, env=env)


def free_port() -> int:
  """Returns a port of this machine that nothing listens at."""
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    return listener.getsockname()[1]


def final_state(workdir: Path) -> dict[str, np.ndarray]:
  """Returns every array of the newest checkpoint: step, parameters and optimizer state by name."""
  return state_at(workdir, max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()))


def state_at(workdir: Path, step: int) -> dict[str, np.ndarray]:
  """Returns every array of the checkpoint of `step`, by name."""
  path = (workdir / "checkpoints" / str(step)).absolute()
  with ocp.PyTreeCheckpointer() as checkpointer:
    # On the host, whatever devices of whatever processes it was saved from.
    like = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), checkpointer.metadata(path).item_metadata.tree
    )
    return dict(trees.flatten_with_names(checkpointer.restore(path, restore_args=like)))


def repeatable_metrics(workdir: Path) -> list[dict[str, Any]]:
  """Returns the lines of `metrics.jsonl` without what measures the machine."""
  lines = metrics.read(workdir / "metrics.jsonl")
  return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def differences(one: Path, other: Path) -> list[str]:
  """Returns names of the arrays and logged steps in which two finished runs are not equal to the last bit."""
  a, b = final_state(one), final_state(other)
  found = [
    name for name in sorted({*a, *b}) if name not in a or name not in b or a[name].tobytes() != b[name].tobytes()
  ]
  lines = zip(repeatable_metrics(one), repeatable_metrics(other), strict=False)
  found += [f"metrics of step {x['step']}" for x, y in lines if x != y]
  if len(repeatable_metrics(one)) != len(repeatable_metrics(other)):
    found.append("the number of lines in metrics.jsonl")
  return found
