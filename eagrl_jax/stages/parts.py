"""What a search has found so far, a file a batch of patients, so that an interrupted one goes on from the last batch.

They are patient-level, as are the results they are read into; a stage that is done keeps none (`disk.finish`).
"""

from __future__ import annotations

import json
import pathlib

from absl import logging

from eagrl_jax.search.trajectories import Trajectory
from eagrl_jax.stages import disk


def write(folder: pathlib.Path, batch: int, found: list[Trajectory]) -> None:
  """Leaves batch number `batch` as a whole file or not at all; numbers come back as they were, bit by bit."""
  folder.mkdir(exist_ok=True)
  disk.write_text(_path(folder, batch), json.dumps([vars(t) for t in found]))


def read(folder: pathlib.Path, batch: int) -> list[Trajectory]:
  """What `write` was given.

  Raises:
    ValueError, TypeError, KeyError: the file is not what was written, as after a power cut.
  """
  rows = json.loads(_path(folder, batch).read_text())
  return [Trajectory(**row | {name: tuple(row[name]) for name in ('tokens', 'features')}) for row in rows]


def finished(folder: pathlib.Path) -> int:
  """Number of batches, from the first on, that need not be searched again."""
  n = 0
  while _path(folder, n).exists():
    try:
      read(folder, n)
    except (ValueError, TypeError, KeyError):
      logging.warning('%s is unreadable; the search goes on from this batch', _path(folder, n))
      break
    n += 1
  return n


def _path(folder: pathlib.Path, batch: int) -> pathlib.Path:
  return folder / f'{batch}.json'
