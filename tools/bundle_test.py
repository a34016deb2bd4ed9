"""A project's bundle, unpacked outside the repository, makes its own environment and trains: a target of each."""

import json
import os
import pwd
import shutil
import subprocess
import tarfile
from pathlib import Path

BUNDLE = Path(os.environ["BUNDLE"]).absolute()
ARGS = os.environ["BUNDLE_ARGS"].split()
# What the person's own shell would have, as far as installing needs it: the network's settings, and a home with caches.
KEPT = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "PIP_", "UV_", "PATH", "JAX_PLATFORMS")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name.startswith(KEPT)}
ENVIRONMENT["HOME"] = pwd.getpwuid(os.getuid()).pw_dir


def test_two_that_start_at_once_train_alike_in_one_environment_which_the_next_start_reuses(tmp_path):
  with tarfile.open(BUNDLE) as archive:
    archive.extractall(tmp_path / "elsewhere", filter="data")
  (unpacked,) = (tmp_path / "elsewhere").iterdir()

  def start(*arguments: str) -> subprocess.Popen:
    command = [str(unpacked / "start"), *arguments]
    return subprocess.Popen(command, cwd=unpacked, env=ENVIRONMENT, stdout=-1, stderr=subprocess.STDOUT, text=True)

  def metrics(workdir: str) -> list[dict[str, float]]:
    """All that was measured but times."""
    records = map(json.loads, (tmp_path / workdir / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in record.items() if not key.startswith("time/")} for record in records]

  for process in [start(*ARGS, f"--workdir={tmp_path / workdir}") for workdir in ("a", "b")]:
    output, _ = process.communicate()
    assert process.returncode == 0, output
  assert metrics("a") == metrics("b") != []
  assert len(list(unpacked.glob(".environment-*"))) == 1
  assert not list(unpacked.glob(".installing-*"))

  again = start("--help")
  output, _ = again.communicate()
  assert again.returncode == 0, output
  assert "Installing" not in output
  shutil.rmtree(unpacked)  # An environment is gigabytes, if mostly links.
