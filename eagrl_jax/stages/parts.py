"""What a stage has done so far, a file a batch of patients, so that an interrupted one goes on from the last batch.

They are patient-level, as are the results they are read into; what is done keeps none (`disk.finish`,
`finished.publish`).
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
from absl import logging

from eagrl_jax.stages import disk
from eagrl_jax.train import preemption, processes
from eagrl_jax.train.progress import Progress

FOLDER = 'parts'


class Kept(Protocol):
  """A dataclass of JSON's types: what was done with some patients."""

  @property
  def rows(self) -> list[int]:
    """Of the cohort."""
    ...


K = TypeVar('K', bound=Kept)


def write(folder: pathlib.Path, batch: int, content: object) -> None:
  """Leaves batch number `batch` as a whole file or not at all; numbers come back as they were, bit by bit."""
  folder.mkdir(parents=True, exist_ok=True)
  disk.write_text(_path(folder, batch), json.dumps(content))


def read(folder: pathlib.Path, batch: int) -> Any:
  """What `write` was given.

  Raises:
    ValueError: the file is not what was written, as after a power cut.
  """
  return json.loads(_path(folder, batch).read_text())


def finished(folder: pathlib.Path, understand: Callable[[int], object]) -> int:
  """Number of batches, from the first on, that need not be done again.

  Args:
    understand: reads a batch, with a ValueError, TypeError or KeyError where it is not what was written.
  """
  n = 0
  while _path(folder, n).exists():
    try:
      understand(n)
    except (ValueError, TypeError, KeyError):
      logging.warning('%s is damaged, or of other patients; the work goes on from this batch', _path(folder, n))
      break
    n += 1
  return n


def in_turn(folder: pathlib.Path | None, kind: type[K], rows: np.ndarray, size: int, work: Callable[[np.ndarray], K],
            progress: Progress, figures: Callable[[list[K]], Mapping[str, float]] = lambda _: {}) -> list[K]:
  """`work` on `rows`, `size` at a time; what an interrupted run kept of it in `folder` is not done again.

  Of several processes all do the same batches, and all read the folder.

  Args:
    folder: None = nothing is kept.
    work: makes a `kind` of the rows of a batch, of which the last may be short.
    figures: of all batches so far, for the progress.

  Raises:
    Preempted: the process was asked to end; the last batch is kept.
  """
  batches = [rows[start:start + size] for start in range(0, len(rows), size)]

  def kept(i: int) -> K:
    assert folder is not None
    found = kind(**read(folder, i))
    if i >= len(batches) or found.rows != batches[i].tolist():
      raise ValueError('of other patients')
    return found

  start = 0 if folder is None else processes.first(lambda: finished(folder, kept))
  done = [kept(i) for i in range(start)]
  if start:
    progress.skip(sum(len(batch.rows) for batch in done))
    logging.info('%s: resuming at batch %d of %d', progress.name, start, len(batches))
  if folder is not None:
    preemption.defer()
  try:
    for i in range(start, len(batches)):
      done.append(work(batches[i]))
      progress.update(len(batches[i]), **figures(done))
      if folder is None:
        continue
      processes.first(functools.partial(write, folder, i, vars(done[i])))
      if preemption.requested():
        raise preemption.Preempted
  finally:
    if folder is not None:
      preemption.allow()
  return done


def _path(folder: pathlib.Path, batch: int) -> pathlib.Path:
  return folder / f'{batch}.json'
