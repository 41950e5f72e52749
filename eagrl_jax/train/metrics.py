"""Metrics of a stage: one JSON line a step, TensorBoard events, read from the device one step late."""

from __future__ import annotations

import json
import math
import os
import pathlib
import time
from collections.abc import Mapping

import jax
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

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
      keep_before(path, resume_step)
    self._rows = path.open('a')
    # Not SummaryWriter: its thread dies of a full disk in silence, and the run then waits for it for ever. The name
    # holds the time in seconds only: a quick resume would write over the first run's events.
    self._events = EventsWriter(str(folder / 'events'), f'.{resume_step}')
    self._events.write_event(Event(step=resume_step, session_log=SessionLog(status=SessionLog.START)))  # purges later

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Appends a row; a value that is not finite becomes null (JSON has no NaN)."""
    if not self._writes:
      return
    finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    self._rows.write(json.dumps({'step': step, **finite}) + '\n')
    self._rows.flush()
    for name, value in finite.items():
      if value is not None:
        self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary.scalar(name, value)))
    self._events.flush()

  def close(self) -> None:
    """Flushes and closes both files."""
    if self._writes:
      try:
        self._rows.close()
      finally:
        self._events.close()

  def __enter__(self) -> MetricWriter:
    return self

  def __exit__(self, *_) -> None:
    self.close()


def keep_before(path: pathlib.Path, step: int) -> None:
  """Drops the rows of `step` and later from a JSON-lines file; a last line cut short by a crash goes too."""
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
    """Takes the scalars of `step` and returns the step before with its values; None at the first call."""
    for value in metrics.values():
      if isinstance(value, jax.Array):
        value.copy_to_host_async()
    ready, self._pending = self._pending, (step, metrics)
    return _read(ready)

  def flush(self) -> tuple[int, dict[str, float]] | None:
    """The last step's values; None when nothing waits."""
    ready, self._pending = self._pending, None
    return _read(ready)


def _read(ready: tuple[int, Mapping[str, ArrayLike]] | None) -> tuple[int, dict[str, float]] | None:
  if ready is None:
    return None
  step, metrics = ready
  return step, {name: float(value) for name, value in metrics.items()}
