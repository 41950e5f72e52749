"""A step whose loss, rewards or gradient are not finite: the run stops, or leaves the step out and goes on."""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from eagrl_jax.train import processes
from eagrl_jax.train.metrics import keep_before
from eagrl_jax.types import ArrayLike, EagrlError

MODES = ('stop', 'skip')
MOST = 10  # skipped steps in a row that are no accident any more
WATCHED = ('reward', 'loss', 'grad_norm')


def check(mode: str) -> None:
  """Raises EagrlError unless `mode` is one of `MODES`."""
  if mode not in MODES:
    raise EagrlError(f'nonfinite={mode!r} is unknown; choose one of {", ".join(MODES)}')


class Watch:
  """Judges the steps of one stage; a bad one leaves its examples' rows (never their content) in `nonfinite.jsonl`.

  An update that is not finite has changed neither weights nor optimiser (`rl.gradients.guarded_step`).

  Args:
    folder: of the stage.
    mode: 'stop' or 'skip'.
    start: the step at which the run goes on; what the file says of it and of later ones is dropped.
    position: as a checkpoint kept it, see `position`.
  """

  def __init__(self, folder: pathlib.Path, mode: str, start: int = 0, position: Mapping[str, Any] | None = None):
    check(mode)
    self._path, self._stage, self._mode = folder / 'nonfinite.jsonl', folder.name, mode
    self._skipped, self._in_a_row = ((position or {}).get(name, 0) for name in ('skipped', 'in_a_row'))
    if processes.is_main() and self._path.exists():
      keep_before(self._path, start)

  def position(self) -> dict[str, int]:
    """What a checkpoint keeps, so that a resumed run counts on."""
    return {'skipped': self._skipped, 'in_a_row': self._in_a_row}

  def see(self, step: int, figures: Mapping[str, float], example: ArrayLike) -> dict[str, float]:
    """The figures of a step to be written, with the number of skipped steps so far where steps are skipped.

    Args:
      figures: `finite` 0 says that an update was refused.
      example: `[B]`, rows of the cohort.

    Raises:
      EagrlError: the step is not finite and the run is to stop, or it is the last of `MOST` in a row.
    """
    bad = [name for name in WATCHED if not math.isfinite(figures.get(name, 0.0))]
    if not bad and figures.get('finite', 1.0):
      self._in_a_row = 0
    else:
      self._skipped, self._in_a_row = self._skipped + 1, self._in_a_row + 1
      self._note(step, bad or ['update'], np.asarray(processes.local(example)))
      what = f'{self._stage} step {step}: {", ".join(bad) or "an update"} not finite'
      rows = f'its rows are in {self._stage}/{self._path.name}, the last checkpoint is kept'
      if self._mode == 'stop':
        raise EagrlError(f'{what}; {rows}; --config.nonfinite=skip goes on from it without such steps, a lower '
                         f'--config.{self._stage}.learning_rate begins the stage anew')
      if self._in_a_row >= MOST:
        raise EagrlError(f'{what}, the last of {MOST} in a row; {rows}; lower --config.{self._stage}.learning_rate')
    return dict(figures) | ({'skipped': float(self._skipped)} if self._mode == 'skip' else {})

  def _note(self, step: int, what: list[str], rows: np.ndarray) -> None:
    if processes.is_main():
      with self._path.open('a') as file:
        file.write(json.dumps({'step': step, 'what': what, 'rows': rows.tolist()}) + '\n')
        file.flush()
        os.fsync(file.fileno())
