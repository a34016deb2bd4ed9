"""The flagship configs of all projects on 1, 8, 256 and 2,048 chips, and one with ever more chips.

The same config everywhere, and the mesh that it says nothing of. Chips are of the kinds of TOPOLOGIES, or of what an
entry says where a step does not fit there. Where one chip's memory cannot hold the activations of a batch, it is taken
in parts by `grad_accum_steps`; the contrastive ones have a smaller batch there.
"""

from collections.abc import Mapping

CHIPS = (1, 8, 256, 2_048)
TOPOLOGIES = {1: "v5p:1x1x1", 8: "v5p:2x2x2", 256: "v5e:16x16", 2_048: "v5p:8x16x16"}

Flags = Mapping[str, str]

_SCAN = {"config.model.scan": "True"}
_SCAN_IMAGE = {"config.model.image.scan": "True"}
_SCAN_BOTH = {**_SCAN_IMAGE, "config.model.text.scan": "True"}

# Of each: the config, its flags, and those that differ by chips.
FLAGSHIPS: dict[str, tuple[str, Flags, Mapping[int, Flags]]] = {
  "vit g/14": (
    "projects/vit/configs/scaling.py:variant=g/14,batch_size=32768",
    {},
    {1: {"config.grad_accum_steps": "512"}, 8: {"config.grad_accum_steps": "64"}, 256: dict(topology="v5p:4x8x8")},
  ),
  "vit B/16": ("projects/vit/configs/i1k.py:variant=B/16", _SCAN, {}),
  "mixer B/16": ("projects/mixer/configs/i21k.py:variant=B/16", {}, {}),
  "lit L/16": (
    "projects/lit/configs/generic.py:img=L/16,txt=large",
    _SCAN_IMAGE,
    {1: {"config.input.batch_size": "4096"}},
  ),
  "siglip B/16": (
    "projects/siglip/configs/generic.py:variant=B/16",
    _SCAN_BOTH,
    {1: {"config.input.batch_size": "4096"}},
  ),
  "clippo B/16": (
    "projects/clippo/configs/yfcc_c4.py:variant=B/16,init=none,font=ascii",
    {**_SCAN_IMAGE, "example": "image:float32[224,224,3],labels:float32[224,224,3]"},
    {1: {"config.input.batch_size": "2560"}},
  ),
  "distill R50x1": ("projects/distill/configs/bit_i1k.py", {}, {1: {"config.grad_accum_steps": "2"}}),
  "flexivit B": ("projects/flexivit/configs/i21k_sup.py", _SCAN, {1: {"config.grad_accum_steps": "8"}}),
  "gsam B/32": ("projects/gsam/configs/vit_i1k_no_aug.py:variant=B/32", _SCAN, {}),
}

# ViT-g/14 with PER_CHIP images a chip, v5p.
WEAK = {1: "1x1x1", 8: "2x2x2", 64: "4x4x4", 256: "4x8x8", 512: "8x8x8", 2_048: "8x16x16"}
PER_CHIP = 16


def on_chips(name: str, chips: int) -> str:
  """Returns the name of the entry of a flagship."""
  return f"{name} on {chips}"


def weak(chips: int) -> str:
  """Returns the name of the entry of WEAK."""
  return f"vit g/14, {PER_CHIP} a chip, on {chips}"


def entries() -> dict[str, dict[str, str]]:
  """Returns flags of the program by the names under which golden.json has the figures."""
  found = {}
  for name, (config, flags, by_chips) in FLAGSHIPS.items():
    for chips in CHIPS:
      found[on_chips(name, chips)] = {
        "config": config,
        "topology": TOPOLOGIES[chips],
        **flags,
        **by_chips.get(chips, {}),
      }
  for chips, shape in WEAK.items():
    config = f"projects/vit/configs/scaling.py:variant=g/14,batch_size={PER_CHIP * chips}"
    found[weak(chips)] = {"config": config, "topology": f"v5p:{shape}"}
  return found
