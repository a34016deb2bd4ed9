"""Checks that each model of `generate_architectures.py` is computed alike here to 1e-4, or refused in a line.

  PYTHONPATH=. JAX_PLATFORMS=cpu python core/models/witness/check_architectures.py FOLDER [NAME...]

Prints a line for each model, and ends with 1 if one loads and computes otherwise, or ends in anything but a refusal.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from core.checkpoint import state_dict
from core.errors import UserError
from core.models import bert, mixer, nfnet, resnet, text_transformer, vit, weights
from core.models.foreign import registry
from core.models.foreign.vit import structure

Arrays = dict[str, np.ndarray]
OF_GRID = ("first", "image_sizes")


def of_vit(named: Arrays, told: dict[str, Any]) -> Any:
  found = structure(named) | told
  pool = {"avg": "gap", "token": "tok", "map": "map"}.get(found.pop("pool", None), found["pool_type"])
  return vit, vit.Model(**found | {"pool_type": pool})


def of_mixer(named: Arrays, told: dict[str, Any]) -> Any:
  tokens, channels = (named[f"MixerBlock_0/{kind}_mixing/Dense_0/kernel"].shape[1] for kind in ("token", "channel"))
  blocks = sum("token_mixing/Dense_0/kernel" in name for name in named)
  stem = named["stem/kernel"].shape
  sizes = dict(patch_size=stem[:2], hidden_dim=stem[3], num_blocks=blocks)
  return mixer, mixer.Model(classes(named), **sizes, tokens_mlp_dim=tokens, channels_mlp_dim=channels, **told)


def of_resnet(named: Arrays, told: dict[str, Any]) -> Any:
  depth = tuple(
    sum(re.fullmatch(rf"block{block}/unit\d+/conv1/kernel", name) is not None for name in named)
    for block in range(1, 1 + max(int(name[5]) for name in named if name.startswith("block")))
  )
  width = named["root_block/conv_root/kernel"].shape[3] / 64
  return resnet, resnet.Model(classes(named), depth=depth, width=width, **told)


def of_nfnet(named: Arrays, told: dict[str, Any]) -> Any:
  depth = [sum(f"stage{stage}_block{i}/skip_gain" in named for i in range(99)) for stage in range(4)]
  return nfnet, nfnet.Model(classes(named), variant="F0", depth=tuple(depth), **told)


def of_bert(named: Arrays, told: dict[str, Any]) -> Any:
  embedder = "BertEncoder_0/embedder/embedders_{}_ids/embedding"
  tokens, width = named[embedder.format("token")].shape
  lengths = named[embedder.format("position")].shape[0]
  sizes = dict(vocab_size=tokens, width=width, max_len=lengths, depth=1, mlp_dim=32)
  return bert, bert.Model(None, **sizes, **told)


def of_text(named: Arrays, told: dict[str, Any]) -> Any:
  tokens, width = named["Embed_0/embedding"].shape
  sizes = dict(vocab_size=tokens, width=width, depth=1, mlp_dim=32, max_len=12)
  return text_transformer, text_transformer.Model(named["head/kernel"].shape[1], **sizes, **told)


FAMILIES: dict[str, Callable] = {
  "text_transformer": of_text,  # First: SigLIP's towers have some names in common.
  "vit": of_vit,
  "mixer": of_mixer,
  "resnet": of_resnet,
  "nfnet": of_nfnet,
  "bert": of_bert,
}


def classes(named: Arrays) -> int | None:
  return named["head/kernel"].shape[-1] if "head/kernel" in named else None


def check(folder: Path) -> tuple[bool, str]:
  """Returns whether it is right, and what is to be said."""
  arrays = state_dict.read(folder)
  families = [name for name in FAMILIES if any(form.recognizes(arrays) for form in registry.get(name).values())]
  if not families:
    return True, "refused: not weights that are known here"
  try:
    named, told = weights.read_file_and_options(families[0], str(folder))
    told = {key: value for key, value in told.items() if key not in OF_GRID}
    family, model = FAMILIES[families[0]](named, told)
    with np.load(folder / "example.npz") as file:
      example = dict(file)
    inputs = example.get("image", example.get("text"))
    like = jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]
    params = family.load(like, str(folder), model.options)
    output = np.asarray(jax.jit(model.apply)({"params": params}, inputs)[0])
  except UserError as error:
    return True, f"refused: {str(error).removeprefix(f'{folder}: ')}"
  except Exception as error:
    return False, f"FAILED: {type(error).__name__}: {str(error)[:200]}"
  if output.shape != example["output"].shape:
    return False, f"WRONG: {output.shape} instead of {example['output'].shape}"
  size = max(1.0, np.abs(example["output"]).max())
  difference = np.abs(output - example["output"]).max()
  return bool(
    difference <= 1e-4 * size
  ), f"{families[0]}: largest difference {difference:.1e} of outputs up to {size:.1f}"


def main(folder: Path, names: list[str]) -> int:
  failed = 0
  jax.config.update("jax_disable_most_optimizations", True)
  for place in [folder / name for name in names] or sorted(folder.iterdir()):
    right, words = check(place)
    failed += not right
    print(f"{'' if right else 'WRONG '}{place.name}: {words}", flush=True)
  print(f"{failed} of them wrong")
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
