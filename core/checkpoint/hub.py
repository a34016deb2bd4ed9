"""Weights by their name on the Hugging Face hub.

    hf://ORG/NAME             a model: its weights and its config.json
    hf://ORG/NAME@REVISION    the same at a commit, tag or branch
    hf://ORG/NAME/FILE        one file, `big_vision.npz` say

huggingface_hub finds out what there is, where, and with what credentials; `core.checkpoint.download` brings the files,
as it does all others: with its progress, its checksums, and going on where it was broken off.
"""

import dataclasses
import os
import re
import urllib.parse
from collections.abc import Collection

from core.checkpoint import download

SCHEME = "hf://"
CONFIG = "config.json"

# The forms in which libraries save a model's weights, the first that is there. An index names its shards.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

_SECONDS = 10.0  # Within which the hub must answer.
_NAME = re.compile(r"hf://([\w.-]+/[\w.-]+?)(?:@([\w.%-]+))?(?:/([^/].*))?")


@dataclasses.dataclass(frozen=True)
class Name:
  """What a location names.

  Attributes:
    repository: "ORG/NAME".
    revision: a commit, tag or branch; None is the newest.
    file: one of its files; None is the model.
  """

  repository: str
  revision: str | None
  file: str | None


def parse(location: str) -> Name | None:
  """Returns what an `hf://` location names; None of what is none."""
  match = _NAME.fullmatch(location)
  if match is None or ".." in (match[3] or "").split("/"):
    return None
  return Name(match[1], urllib.parse.unquote(match[2]) if match[2] else None, match[3])


def is_model(location: str) -> bool:
  """Returns whether a location names a model of the hub, not a file of one."""
  name = parse(location.partition("#")[0])
  return name is not None and name.file is None


def look_up(name: Name) -> tuple[str, list[str]]:
  """Asks the hub for a model's commit and the names of its files.

  Raises:
    download.Failed: there is none, or the hub cannot be asked.
  """
  import huggingface_hub  # It takes a moment to import.
  from huggingface_hub import errors

  try:
    hub = huggingface_hub.HfApi(endpoint=_endpoint())
    info = hub.model_info(name.repository, revision=name.revision, timeout=_SECONDS)
  except errors.GatedRepoError:
    raise download.Failed("its authors want their terms accepted on the hub first (then: hf auth login)") from None
  except errors.RevisionNotFoundError:
    raise download.Failed(f"it has no revision {name.revision!r}") from None
  except errors.RepositoryNotFoundError:
    raise download.Failed("the hub has no such model, or it is private (hf auth login)") from None
  except errors.OfflineModeIsEnabled:
    raise download.Failed("it is not in the cache, and HF_HUB_OFFLINE is set") from None
  except errors.HfHubHTTPError as error:
    status = getattr(getattr(error, "response", None), "status_code", "?")
    raise download.Failed(f"the hub refused (HTTP {status})") from None
  except Exception as error:  # Of the HTTP library beneath; its words may hold addresses.
    raise download.Failed(f"the hub cannot be reached ({type(error).__name__})") from None
  commit = info.sha or "main"
  if not re.fullmatch(r"[\w-]+", commit):  # It becomes part of a path.
    raise download.Failed("the hub answers with no commit")
  return commit, [sibling.rfilename for sibling in info.siblings or []]


def weights_among(names: Collection[str]) -> str:
  """Returns the file of a model's weights, or of the index of their shards.

  Raises:
    download.Failed: there is none.
  """
  found = next((each for each in WEIGHTS if each in names), None)
  if found is None:
    raise download.Failed(f"it has neither {WEIGHTS[0]} nor {WEIGHTS[2]}; name one of its files")
  return found


def url_of(name: Name, file: str, revision: str | None) -> tuple[str, dict[str, str]]:
  """Returns the URL of a file and the headers to send, which hold the person's token if there is one."""
  import huggingface_hub
  from huggingface_hub import utils

  url = huggingface_hub.hf_hub_url(name.repository, file, revision=revision, endpoint=_endpoint())
  return url, dict(utils.build_hf_headers())


def _endpoint() -> str | None:
  return os.environ.get("HF_ENDPOINT") or None
