"""Checkpoints as big_vision leaves them behind, written by JAX's own serialization from optax's own states."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental.array_serialization import serialization

from core import trees


def named(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by big_vision's names: tuples, named ones too, count from 0; of None there is none."""
  return dict(_named(tree))


def _named(tree: Any, *path: str) -> Iterator[tuple[str, Any]]:
  if isinstance(tree, Mapping):
    children = sorted(tree.items())
  elif isinstance(tree, Sequence):
    children = enumerate(tree)
  else:
    if tree is not None:
      yield "/".join(path), tree
    return
  for key, child in children:
    yield from _named(child, *path, str(key))


def write(workdir: Path, state: Any, step: int, *, keep: bool = True, last: bool = True) -> Path:
  """Writes a train state `{"params": .., "opt": ..}` as the checkpoint of a step, and returns its folder.

  Args:
    workdir: where `checkpoint.bv-...` comes to lie.
    state: of the run; its clock is added.
    step: for the name.
    keep: for good, else as `-tmp`.
    last: whether `checkpoint.bv-LAST` names it.
  """
  suffix = f"{step:09d}" + ("" if keep else "-tmp")
  folder = workdir / f"checkpoint.bv-{suffix}"
  folder.mkdir(parents=True)
  leaves = named({**state, "chrono": {"accum_train_time": np.float32(1.5), "accum_examples_seen": np.int32(640)}})
  manager = serialization.GlobalAsyncCheckpointManager()
  arrays = [jax.numpy.asarray(leaf) for leaf in leaves.values()]
  manager.serialize_with_paths(arrays, [str(folder / name.replace("/", "~")) for name in leaves])
  manager.wait_until_finished()
  if last:
    (workdir / "checkpoint.bv-LAST").write_text(suffix)
  return folder


def write_npz(path: Path, state: Any) -> None:
  """Writes the same as the one file of older heads, where bfloat16 has no name."""
  arrays = {name: np.asarray(leaf) for name, leaf in named({**state, "chrono": {"accum_train_time": 1.5}}).items()}
  np.savez(path, **{name: x.view("V2") if x.dtype == jax.numpy.bfloat16 else x for name, x in arrays.items()})


def optimizer(
  tx: optax.GradientTransformation,
  schedules: Sequence[tuple[str, Callable | None]],
  *,
  lr: float,
  lr_mults: Sequence[tuple[str, float]] = (),
  wd: float = 0.0,
  wd_mults: Sequence[tuple[str, float]] = ((".*/kernel$", 1.0),),
  grad_clip_norm: float = 0.0,
) -> Callable[[Any], optax.GradientTransformation]:
  """Returns a function from parameters to the chain of transformations that big_vision makes of its config's keys.

  The clip, T, the learning rate, its multipliers, the decays, one schedule a rule, what freezes, and the sign; each of
  them over the parameters that a rule is the first to match.
  """

  def make(params: Any) -> optax.GradientTransformation:
    def first(rules: Sequence[tuple[str, Any]], i: int) -> Any:
      patterns = [pattern for pattern, _ in rules]
      return trees.map_with_names(lambda name, _: trees.first_match(name, patterns) == i, params)

    masks = [(fn, first(schedules, i)) for i, (_, fn) in enumerate(schedules)]
    frozen = jax.tree.map(lambda *marks: any(marks), *(mask for fn, mask in masks if fn is None), first((), 0))
    trains = jax.tree.map(lambda mark: not mark, frozen)
    clip = optax.masked(optax.clip_by_global_norm(grad_clip_norm), trains) if grad_clip_norm else optax.identity()
    return optax.chain(
      clip,
      optax.masked(tx, trains),
      optax.scale(lr),
      *(optax.masked(optax.scale(mult), first(lr_mults, i)) for i, (_, mult) in enumerate(lr_mults)),
      *(optax.add_decayed_weights(wd * mult, first(wd_mults, i)) for i, (_, mult) in enumerate(wd_mults) if wd),
      *(optax.masked(optax.scale_by_schedule(fn), mask) for fn, mask in masks if fn is not None),
      optax.masked(optax.set_to_zero(), frozen),
      optax.scale(-1.0),
    )

  return make
