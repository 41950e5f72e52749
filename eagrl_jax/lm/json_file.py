"""The JSON files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from eagrl_jax.types import EagrlError


def read(file: Path) -> dict:
  """The table of names that a file holds; empty where there is none.

  Raises:
    EagrlError: names a file that is broken.
  """
  if not file.is_file():
    return {}
  try:
    content = json.loads(file.read_text('utf-8'))
  except (ValueError, RecursionError) as e:
    raise EagrlError(f'{file.name} is not valid JSON ({e}); copy it again from its source') from e
  if not isinstance(content, dict):
    raise EagrlError(f'{file.name} is no table of names; copy it again from its source')
  return content
