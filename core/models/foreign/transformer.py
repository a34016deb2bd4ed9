"""Rules for the parts that transformers share, from our names (`PATH/kernel`) to theirs (`PATH.weight`)."""

from core.models.foreign.table import DENSE, FLAT, FROM_HEADS, TO_HEADS, Layout, Rule, fused, scaled

QKV = ("query", "key", "value")


def norm(ours: str, theirs: str) -> list[Rule]:
  """Returns the rules for a LayerNorm."""
  return [Rule(f"{ours}/scale", f"{theirs}.weight"), Rule(f"{ours}/bias", f"{theirs}.bias")]


def dense(
  ours: str, theirs: str, layout: Layout = DENSE, *, scale: str | None = None, optional: bool = False
) -> list[Rule]:
  """Returns the rules for a linear layer; `scale` is the name of a LayerScale of theirs behind it."""
  kernel, bias = f"{ours}/kernel", f"{ours}/bias"
  weight_and_bias = (f"{theirs}.weight", f"{theirs}.bias")
  if scale is not None:
    return [Rule((kernel, bias), (*weight_and_bias, scale), scaled(layout), optional)]
  return [Rule(kernel, weight_and_bias[0], layout, optional), Rule(bias, weight_and_bias[1], optional=optional)]


def projections(ours: str, theirs: tuple[str, str, str], *, bias: bool = True) -> list[Rule]:
  """Returns the rules for query, key and value of an attention, three linear layers of theirs."""
  rules = [Rule(f"{ours}/{name}/kernel", f"{path}.weight", TO_HEADS) for name, path in zip(QKV, theirs)]
  return rules + [Rule(f"{ours}/{name}/bias", f"{path}.bias", FLAT) for name, path in zip(QKV, theirs) if bias]


def fused_projections(ours: str, weight: str, bias: str | None, which: tuple[str, ...] = QKV) -> list[Rule]:
  """Returns the rules for `which` of an attention's projections, one array of theirs; `bias` None for none."""
  rules = [Rule(tuple(f"{ours}/{name}/kernel" for name in which), weight, fused(TO_HEADS, len(which)))]
  if bias is not None:
    rules.append(Rule(tuple(f"{ours}/{name}/bias" for name in which), bias, fused(FLAT, len(which))))
  return rules


def output(ours: str, theirs: str, *, scale: str | None = None) -> list[Rule]:
  """Returns the rules for the linear layer behind an attention's heads."""
  return dense(f"{ours}/out", theirs, FROM_HEADS, scale=scale)
