#!/usr/bin/env bash
# JAX's agreement on a step to stop at keeps Python's interpreter lock while it waits for the other processes.
#
# Versions: jax 0.10.2, jaxlib 0.10.2. Run on 2026-11-30.
#
# After SIGTERM to one process of a job, multihost_utils.reached_preemption_sync_point waits in C++ until every process
# has told its step, and does not release the lock meanwhile; wait_at_barrier of the same client does. So one process
# that is slow to answer stops all Python threads of the other: data loaders, heartbeats, and whatever passes the
# messages on that are waited for, which then never come.
#
# Seen: process 1 is paused for 5 s. A thread of process 0 that looks at the clock a hundred times a second stands still
# for 0.01 s while the main thread is at a barrier, and for 4 to 5 s while it is at the sync point.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import signal
import socket
import subprocess
import sys
import time

PROCESS = """
import sys, threading, time
import jax
from jax._src import distributed
from jax.experimental import multihost_utils

address, number, wait = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(address, 2, number)
longest = 0.0

def tick():
  global longest
  last = time.monotonic()
  while True:
    time.sleep(0.01)
    now = time.monotonic()
    longest, last = max(longest, now - last), now

threading.Thread(target=tick, daemon=True).start()
print("ready", flush=True)
if wait == "barrier":
  sys.stdin.readline()
  distributed.global_state.client.wait_at_barrier("here", 60_000)
else:
  step = 1
  while not multihost_utils.reached_preemption_sync_point(step):
    step += 1
    time.sleep(0.02)
time.sleep(0.1)
print(longest, flush=True)
"""


def longest_pause_of_a_thread(wait):
  """Returns for how many seconds a thread of process 0 stood still while it waited 4 s for process 1."""
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    address = f"localhost:{listener.getsockname()[1]}"
  pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
  first, second = (subprocess.Popen([sys.executable, "-c", PROCESS, address, str(i), wait], **pipes) for i in (0, 1))
  for process in (first, second):
    assert process.stdout.readline() == "ready\n"
  time.sleep(1)
  second.send_signal(signal.SIGSTOP)
  if wait == "barrier":
    first.stdin.write("\n")
    first.stdin.flush()
    second.stdin.write("\n")
    second.stdin.flush()
  else:
    first.send_signal(signal.SIGTERM)
  time.sleep(5)
  second.send_signal(signal.SIGCONT)
  found = float(first.stdout.readline())
  for process in (first, second):
    process.kill()
  return found


barrier, sync_point = longest_pause_of_a_thread("barrier"), longest_pause_of_a_thread("sync_point")
print(f"a thread beside the waiting one stood still for {barrier:.2f} s at a barrier, {sync_point:.2f} s at a sync point")
assert barrier < 1
assert sync_point > 2
PYTHON
