"""Writes what golden.json has pinned of the flagship configs into README.md, and draws the curve of ever more chips.

./bazelw run //tools/aot:repin -- FLAGSHIPS     # compiles those that are not pinned yet
./bazelw run //tools/aot:summary
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import json
import re
from collections.abc import Sequence

from core import command, files, plots
from tools.aot import flagships, golden, report


def table(pinned: golden.Golden) -> str:
  """Returns in Markdown the memory a chip and the roofline's MFU of each flagship on each number of chips."""
  entries = flagships.entries()

  def cell(name: str, chips: int) -> str:
    key = flagships.on_chips(name, chips)
    if key not in pinned:
      return "not compiled"
    figures, flags = pinned[key], entries[key]
    if "refused" in figures:
      return "does not fit"
    kind = flags["topology"].partition(":")[0]
    used = report.size(figures["arguments"] + figures["temporaries"])
    parts = f", in {n} parts" if (n := flags.get("config.grad_accum_steps")) else ""
    batch = f", batch {int(n):,}" if (n := flags.get("config.input.batch_size")) else ""
    return f"{kind}: {used}, {figures['roofline mfu']:.0%}{parts}{batch}"

  rows = [
    f"| {name} | " + " | ".join(cell(name, chips) for chips in flagships.CHIPS) + " |" for name in flagships.FLAGSHIPS
  ]
  head = "| chips | " + " | ".join(f"{chips:,}" for chips in flagships.CHIPS) + " |"
  return "\n".join([head, "|---|" + "---|" * len(flagships.CHIPS), *rows])


def curve(pinned: golden.Golden) -> str:
  """Returns as SVG the MFU of ViT-g/14 with the same number of images a chip, over the chips."""
  at = {chips: pinned[key] for chips in flagships.WEAK if (key := flagships.weak(chips)) in pinned}
  overlapped = {chips: figures["roofline mfu"] for chips, figures in at.items()}
  one_by_one = {
    chips: figures["roofline mfu"] * figures["roofline seconds"] / figures["roofline seconds if nothing overlaps"]
    for chips, figures in at.items()
  }
  curves = {"everything overlaps": overlapped, "nothing overlaps": one_by_one}
  title = f"chips v5p, {flagships.PER_CHIP} images each: share of their peak at best"
  return plots.shares(curves, places=tuple(at), unit="", title=title)


_COMMAND = command.Command("summary", about=__doc__)


def main(argv: Sequence[str]) -> int:
  """Writes the table and the picture; returns the exit status."""
  _COMMAND.parse(argv)
  pinned: golden.Golden = json.loads(golden.path().read_text())
  folder = golden.path().parent
  readme = folder / "README.md"
  text = re.sub(r"(?<=<!-- flagships -->\n).*?(?=\n<!-- end -->)", table(pinned), readme.read_text(), flags=re.DOTALL)
  for path, content in ((readme, text), (folder / "weak_scaling.svg", curve(pinned))):
    with files.replacing(path) as file:
      file.write(content.encode())
    print(f"written to {path}")
  return 0


if __name__ == "__main__":
  command.run(main)
