"""Metrics of a stage: one JSON line a step, TensorBoard events, read from the device one step late."""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Mapping

import jax
import tensorboardX

from eagrl_jax.train import processes
from eagrl_jax.types import ArrayLike, EagrlError


class MetricWriter:
  """`metrics.jsonl` and TensorBoard events in one folder; of several processes the first one writes.

  Args:
    folder: made when missing.
    resume_step: rows of this step and later are dropped, because a resumed run writes them again; 0 starts afresh.
  """

  def __init__(self, folder: str | pathlib.Path, resume_step: int = 0):
    self._writes = processes.is_main()
    if not self._writes:
      return
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'metrics.jsonl'
    if path.exists():
      _truncate(path, resume_step)
    self._rows = path.open('a')
    # The name holds the time in seconds only: a quick resume would write over the first run's events.
    self._events = tensorboardX.SummaryWriter(str(folder), purge_step=resume_step, filename_suffix=f'.{resume_step}')

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Appends a row; a value that is not finite becomes null (JSON has no NaN)."""
    if not self._writes:
      return
    finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    self._rows.write(json.dumps({'step': step, **finite}) + '\n')
    self._rows.flush()
    for name, value in finite.items():
      if value is not None:
        self._events.add_scalar(name, value, step)

  def close(self) -> None:
    """Flushes and closes both files."""
    if self._writes:
      self._rows.close()
      self._events.close()

  def __enter__(self) -> MetricWriter:
    return self

  def __exit__(self, *_) -> None:
    self.close()


def _truncate(path: pathlib.Path, step: int) -> None:
  """Keeps the rows before `step`; a last line cut short by a crash goes too."""
  kept = []
  lines = path.read_text().splitlines(keepends=True)
  for number, line in enumerate(lines, 1):
    try:
      row_step = json.loads(line)['step']
    except (ValueError, KeyError, TypeError) as error:
      if number == len(lines):
        break
      raise EagrlError(f'{path} line {number} is not a metrics row; move the file away') from error
    if row_step < step:
      kept.append(line)
  fresh = path.with_suffix('.tmp')
  fresh.write_text(''.join(kept))
  os.replace(fresh, path)


class LateMetrics:
  """Reads the metrics of a step while the next one runs, so that the device never waits for the host."""

  def __init__(self):
    self._pending: tuple[int, Mapping[str, ArrayLike]] | None = None

  def push(self, step: int, metrics: Mapping[str, ArrayLike]) -> tuple[int, dict[str, float]] | None:
    """Takes the scalars of `step` and returns the step before with its values; None at the first call.

    Raises:
      EagrlError: the loss of the step before is not finite.
    """
    for value in metrics.values():
      if isinstance(value, jax.Array):
        value.copy_to_host_async()
    ready, self._pending = self._pending, (step, metrics)
    return _read(ready)

  def flush(self) -> tuple[int, dict[str, float]] | None:
    """The last step's values; None when nothing waits. Raises as `push` does."""
    ready, self._pending = self._pending, None
    return _read(ready)


def _read(ready: tuple[int, Mapping[str, ArrayLike]] | None) -> tuple[int, dict[str, float]] | None:
  if ready is None:
    return None
  step, metrics = ready
  values = {name: float(value) for name, value in metrics.items()}
  if not math.isfinite(values.get('loss', 0.0)):
    raise EagrlError(f'step {step}: the loss is {values["loss"]}; lower --config.<stage>.learning_rate and resume from'
                     ' the last checkpoint')
  return step, values
