"""What is said of processes that cannot begin together, and of those that a job has lost."""

import dataclasses

import pytest

from core.cluster import standing
from core.cluster.standing import Standing
from core.errors import UserError


def hello(index, count=2, **facts):
  return dict(index=index, count=count, name=f"process {index} (host{index})", facts={"config": facts, "workdir": "/a"})


def test_a_fault_at_the_start_is_one_line():
  assert standing.fault_at_start([hello(0), hello(1)]) is None
  other = hello(1) | {"facts": {"config": {}, "workdir": "/b"}}
  for hellos, words in (
    ([hello(0), hello(1, count=3)], "process 1 (host1) is one of 3 processes, but process 0 (host0) one of 2"),
    ([hello(0), other], "workdir: '/a' there, '/b' here"),
    ([hello(0), hello(1, wd=0.1)], "here is process 1 (host1): config.wd: only here"),
  ):
    assert words in standing.fault_at_start(hellos)


def test_those_that_did_not_come_are_numbered():
  assert standing.missing_at_start([hello(0), hello(1)], 300) is None
  line = standing.missing_at_start([hello(0, count=4), hello(2, count=4)], 300)
  assert line == "processes 1, 3 of 4 did not come within 300 s"


def test_a_host_with_a_failed_chip_is_named():
  standing.check_devices({0: 4, 1: 4}, ["process 0 (a)", "process 1 (b)"])
  with pytest.raises(UserError, match=r"process 0 \(a\) has 4, process 1 \(b\) has 3"):
    standing.check_devices({0: 4, 1: 3}, ["process 0 (a)", "process 1 (b)"])


def test_who_is_lost_follows_from_what_is_known_of_all():
  fine, other = Standing("p0", step=5), Standing("p1", step=5)

  def judged(waited=0, **known):
    return standing.lost([fine, dataclasses.replace(other, **known)], waited, 60)

  assert judged() is None
  assert judged(silent=19) is None
  assert "p1 is lost: no sign of life for 60 s" in judged(silent=20)
  assert "p1 is gone" in judged(gone=True)
  assert judged(gone=True, done=True) is None
  assert judged(error="why", gone=True, ended=1) is None
  assert judged(error="why", gone=True, ended=2) == "p1 ended (why)"
  assert judged(waited=10_000) is None  # All are in one step: an evaluation, or XLA compiles.
  assert judged(waited=199, step=4) is None
  assert judged(waited=200, step=4) == "stuck for 600 s while others wait in step 5: p1 after step 4"
