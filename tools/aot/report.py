"""What is told of a compiled step: as a dict of plain numbers for JSON, and as a table for people."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from core import trees
from tools.aot import hlo_cost, roofline, temporaries
from tools.aot.chips import Topology
from tools.aot.hlo import Module
from tools.aot.program import Compiled, Step

Report = dict[str, Any]


def describe(step: Step, topology: Topology) -> Report:
  """What is known before a step is compiled."""
  return {
    "topology": topology.name,
    "devices": len(topology.devices),
    "device_kind": topology.devices[0].device_kind,
    "mesh": dict(step.mesh.shape),
    "batch": {key: [x.dtype.name, list(x.shape)] for key, x in step.batch.items()},
    "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(step.params)),
    "shardings": shardings(step.params),
    "arguments": {name: _local_bytes(tree) for name, tree in _parts(step).items()},
  }


def measure(compiled: Compiled, topology: Topology) -> Report:
  """All that a compiled step tells; figures are of one device unless they are named otherwise."""
  stats = compiled.program.memory_analysis()
  module = Module(compiled.text)
  cost = hlo_cost.cost(module, len(topology.devices))
  needed = compiled.step.model_flops()
  time = roofline.estimate(cost, needed, topology)
  executed = cost.flops * len(topology.devices)
  arguments, outputs = stats.argument_size_in_bytes, stats.output_size_in_bytes - stats.alias_size_in_bytes
  return {
    **describe(compiled.step, topology),
    "memory": {
      "arguments": arguments,
      "outputs": outputs,  # Those that take the place of no argument.
      "temporaries": stats.temp_size_in_bytes,
      "program": stats.generated_code_size_in_bytes,
      "peak": arguments + outputs + stats.temp_size_in_bytes + stats.generated_code_size_in_bytes,
      "hbm": topology.hbm,
    },
    "flops": {
      "model": needed,  # Of the whole batch, over all devices.
      "compiled": executed,  # Likewise.
      "recompute": executed / needed - 1 if needed else 0.0,
    },
    "largest_temporaries": [dataclasses.asdict(each) for each in temporaries.at_peak(module)[:8]],
    "bytes_accessed": cost.bytes,
    "collectives": hlo_cost.by_kind(cost.collectives),
    "largest_all_gather": {
      where: _one(hlo_cost.largest(cost.collectives, "all-gather", in_loop=in_loop))
      for where, in_loop in (("in_loops", True), ("outside", False))
    },
    "unknown_loops": list(cost.unknown_loops),
    "roofline": time
    and {
      "seconds": time.seconds,
      "seconds_if_nothing_overlaps": time.seconds_if_nothing_overlaps,
      "mfu": time.mfu,
      "limit": time.limit,
      "compute": time.compute,
      "memory": time.memory,
      "interconnect": time.interconnect,
    },
    "time": {"trace_seconds": compiled.lower_seconds, "compile_seconds": compiled.compile_seconds},
  }


def shardings(params: Any) -> list[dict[str, Any]]:
  """Returns one entry a kind of parameter, those that differ in a number of their name alone being one kind."""
  kinds: dict[tuple, dict[str, Any]] = {}
  for name, leaf in trees.flatten_with_names(params):
    spec = tuple(leaf.sharding.spec) + (None,) * (len(leaf.shape) - len(leaf.sharding.spec))
    key = (re.sub(r"\d+", "*", name), leaf.shape, spec)
    kind = kinds.setdefault(key, {"name": name, "count": 0, "shape": list(leaf.shape), "spec": _spec(spec), "bytes": 0})
    kind["count"] += 1
    kind["bytes"] += _local_bytes(leaf)
    if kind["count"] > 1:
      kind["name"] = key[0]
  return list(kinds.values())


def table(report: Report) -> str:
  """Returns the report for people."""
  memory, flops = report["memory"], report["flops"]
  mesh = " x ".join(f"{name}={size}" for name, size in report["mesh"].items())
  rows = [
    ("devices", f"{report['devices']:,} x {report['device_kind']}, mesh {mesh}"),
    ("batch", ", ".join(f"{key} {dtype}{shape}" for key, (dtype, shape) in report["batch"].items())),
    ("parameters", f"{report['parameters']:,}"),
    ("memory a device", ", ".join(f"{key} {size(memory[key])}" for key in ("arguments", "temporaries", "peak"))),
    ("  of", f"{size(memory['hbm'])} ({memory['peak'] / memory['hbm']:.0%})" if memory["hbm"] else "not known"),
    ("  arguments", ", ".join(f"{key} {size(value)}" for key, value in report["arguments"].items())),
    ("FLOPs", f"model {flops['model']:.4g}, compiled {flops['compiled']:.4g}, recompute {flops['recompute']:.1%}"),
    ("bytes accessed", f"{size(report['bytes_accessed'])} a device"),
  ]
  for kind, total in report["collectives"].items():
    rows.append((kind, f"{total['count']:,}, {size(total['bytes'])}"))
  for where, one in report["largest_all_gather"].items():
    if one:
      rows.append(
        (f"  largest {where.replace('_', ' ')}", f"{size(one['bytes'])} {one['type']}, {one['op_name'][-80:]}")
      )
  if time := report["roofline"]:
    terms = ", ".join(f"{name} {seconds(time[name])}" for name in ("compute", "memory", "interconnect"))
    rows.append(("step at best", f"{seconds(time['seconds'])}, limited by {time['limit']} ({terms})"))
    rows.append(("MFU at best", f"{time['mfu']:.1%}"))
  rows.append(("compiled in", f"{report['time']['compile_seconds']:.1f} s"))
  if report["unknown_loops"]:
    rows.append(("counted once", f"loops of unknown length: {', '.join(report['unknown_loops'][:3])}"))
  return aligned(rows)


def sharding_table(report: Report) -> str:
  """Returns a line a kind of parameter: its name, shape, mesh axes by dimension and bytes a device."""
  rows = [("parameter", "number", "shape", "split over", "a device")]
  for kind in report["shardings"]:
    shape = "x".join(map(str, kind["shape"]))
    rows.append((kind["name"], str(kind["count"]), shape, kind["spec"], size(kind["bytes"])))
  return aligned(rows)


def temporaries_table(report: Report) -> str:
  """Returns the largest temporaries, a line each."""
  rows = [("largest temporaries", "type", "of")]
  rows += [(size(each["bytes"]), each["type"], each["op_name"][-100:]) for each in report["largest_temporaries"]]
  return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
  """Returns columns of text."""
  widths = [max(map(len, column)) for column in zip(*rows)]
  return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def size(count: float | None) -> str:
  """Returns bytes for people: `1.50 GiB`."""
  if count is None:
    return "?"
  power = min(int(math.log(max(abs(count), 1), 1024)), 4)
  return f"{count / 1024**power:,.{2 if power else 0}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def seconds(time: float) -> str:
  return f"{time * 1e3:,.1f} ms"


def _parts(step: Step) -> Mapping[str, Any]:
  named = {"params": step.params, "optimizer": getattr(step.state, "opt_state", ()), "batch": step.batch}
  return {name: tree for name, tree in named.items() if jax.tree.leaves(tree)}


def _local_bytes(tree: Any) -> int:
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _spec(spec: Sequence[Any]) -> str:
  if not any(spec):
    return "whole"
  return ", ".join("-" if axes is None else axes if isinstance(axes, str) else "+".join(axes) for axes in spec)


def _one(collective: hlo_cost.Collective | None) -> dict[str, Any] | None:
  if collective is None:
    return None
  return {"bytes": collective.bytes, "type": collective.type, "times": collective.times, "op_name": collective.op_name}
