"""Pins what the flagship configs need and do on their chips: `./bazelw run //tools/aot:repin [-- NAME ...]`.

Rewrites tools/aot/golden.json, all entries, those that are named or, by FLAGSHIPS, all of `flagships` that it lacks,
and prints what moved. The figures are the compiler's, the same every time: what moves them is a change of a model, of
its sharding, or of a pin.
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core import command, files
from core.errors import UserError, nearest
from tools.aot import aot, fit, flagships

TOLERANCE = 0.05  # Relative.

_VIT = "projects/vit/configs/scaling.py"
_L16 = dict(config=f"{_VIT}:variant=L/16,batch_size=1024", topology="v5e:4x4")
_SIGLIP = dict(flagships.entries()["siglip B/16 on 8"], topology="v5e:8x8")
_LIT = dict(flagships.entries()["lit L/16 on 8"], topology="v5e:8x8")

# Flags of the program, by name. What is in LIGHT takes seconds, the others a minute or two each.
ENTRIES: dict[str, dict[str, str]] = {
  "vit_mu16_v5e_2x2": dict(config=f"{_VIT}:variant=mu/16,batch_size=64,classes=100", topology="v5e:2x2"),
  "vit_l16_v5e_4x4_unrolled_none": {**_L16, "config.model.scan": "False", "config.model.remat_policy": "none"},
  **{
    f"vit_l16_v5e_4x4_{policy}": {**_L16, "config.model.remat_policy": policy}
    for policy in ("nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable")
  },
  "siglip_b16_v5e_8x8": _SIGLIP,
  "siglip_b16_v5e_8x8_half_the_batch": {**_SIGLIP, "config.input.batch_size": "16384"},
  "lit_l16_v5e_8x8": _LIT,
  **flagships.entries(),
}
LIGHT = ("vit_mu16_v5e_2x2",)

_ROOFLINE = ("seconds", "seconds_if_nothing_overlaps", "mfu")

Golden = dict[str, dict[str, Any]]


def record(name: str) -> dict[str, Any]:
  """Returns the figures to pin of an entry, measured now; `{"refused": line}` of one that does not fit."""
  flags = {key: value for key, value in ENTRIES[name].items() if not key.startswith("config.")}
  overrides = [(key.removeprefix("config."), value) for key, value in ENTRIES[name].items() if key not in flags]
  aot.settle_jax(flags["topology"])
  try:
    found = aot.compile_and_report(**flags, overrides=overrides)
  except UserError as error:
    if not str(error).startswith(fit.REFUSAL):
      raise
    return {"refused": str(error)}
  gathered = found["largest_all_gather"]["in_loops"]
  return {
    "arguments": found["memory"]["arguments"],
    "temporaries": found["memory"]["temporaries"],
    "model_flops": found["flops"]["model"],
    "compiled_flops": found["flops"]["compiled"],
    "bytes_accessed": found["bytes_accessed"],
    **{f"{kind} bytes": total["bytes"] for kind, total in found["collectives"].items()},
    "largest all-gather in loops": gathered["bytes"] if gathered else 0,
    **{f"roofline {key.replace('_', ' ')}": found["roofline"][key] for key in _ROOFLINE},
    "limit": found["roofline"]["limit"],
  }


def differences(
  name: str, pinned: Mapping[str, Any], found: Mapping[str, Any], tolerance: float = TOLERANCE
) -> list[str]:
  """Returns a line for each figure of an entry that is not what was pinned."""
  lines = []
  for key in dict.fromkeys([*pinned, *found]):
    a, b = pinned.get(key), found.get(key)
    numbers = all(isinstance(x, int | float) for x in (a, b))
    if abs(a - b) > tolerance * abs(a) if numbers else a != b and key != "refused":
      lines.append(f"{name} {key}: {b}, pinned {a}")
  return lines


def path() -> Path:
  """Returns where the figures are pinned: in the checkout, or beside this file."""
  return Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", "."), "tools", "aot", "golden.json")


_COMMAND = command.Command("repin [NAME ...]", about=__doc__, words="names of entries, or FLAGSHIPS; all by default")


def main(argv: Sequence[str]) -> int:
  """Measures entries by name, writes them and prints what moved; returns the exit status."""
  flags, _ = _COMMAND.parse(argv)
  names = flags.words
  pinned: Golden = json.loads(path().read_text()) if path().exists() else {}
  if names == ["FLAGSHIPS"]:
    names = [name for name in flagships.entries() if name not in pinned]
  elif unknown := [name for name in names if name not in ENTRIES]:
    raise UserError(f"no entry {unknown[0]!r}{nearest(unknown[0], ENTRIES)}")
  elif not names:
    names = list(ENTRIES)
  for name in names:
    began = time.perf_counter()
    found = record(name)
    moved = differences(name, pinned.get(name, {}), found, tolerance=0)
    print(*(moved or [f"{name}: nothing moved"]), f"in {time.perf_counter() - began:.0f} s", sep="\n", flush=True)
    pinned[name] = found
    with files.replacing(path()) as file:
      file.write(f"{json.dumps(pinned, indent=1)}\n".encode())
  return 0


if __name__ == "__main__":
  command.run(main)
