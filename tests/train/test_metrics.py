"""The metric files of a run that is interrupted, and reading one step late."""

from __future__ import annotations

import json
import struct

import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from eagrl_jax.train.metrics import LateMetrics, MetricWriter
from eagrl_jax.types import EagrlError


def rows(folder):
  return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def events(folder):
  """What TensorBoard shows: (tag, step, value); a START drops what came before it of its step and later."""
  shown = []
  for path in sorted(folder.glob('events.*')):
    data, at = path.read_bytes(), 0
    while at < len(data):  # a TFRecord: length (8 bytes), its checksum (4), the event, its checksum (4)
      length, = struct.unpack_from('<Q', data, at)
      event = Event.FromString(data[at + 12:at + 12 + length])
      at += length + 16
      if event.session_log.status == SessionLog.START:
        shown = [row for row in shown if row[1] < event.step]
      shown += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
  return shown


def test_a_resumed_run_writes_each_step_once(tmp_path):
  with MetricWriter(tmp_path) as writer:
    for step in range(5):
      writer.write(step, {'loss': float(step)})
  with (tmp_path / 'metrics.jsonl').open('a') as f:
    f.write('{"step": 5, "lo')  # killed while writing
  with MetricWriter(tmp_path, resume_step=3) as writer:
    writer.write(3, {'loss': 30.0, 'kl': float('nan')})
  assert rows(tmp_path) == [{'step': i, 'loss': float(i)} for i in range(3)] + [{'step': 3, 'loss': 30.0, 'kl': None}]
  assert len(list(tmp_path.glob('events.*'))) == 2
  with MetricWriter(tmp_path):
    assert rows(tmp_path) == []


def test_tensorboard_shows_the_rows_also_of_a_resumed_run(tmp_path):
  with MetricWriter(tmp_path) as writer:
    for step in range(5):
      writer.write(step, {'loss': step + 0.5, 'lr': 0.25})
      assert events(tmp_path)[-2:] == [('loss', step, step + 0.5), ('lr', step, 0.25)]  # while it runs
  whole = [row for step in range(5) for row in (('loss', step, step + 0.5), ('lr', step, 0.25))]
  assert events(tmp_path) == whole
  with MetricWriter(tmp_path, resume_step=3) as writer:
    writer.write(3, {'loss': 30.0, 'kl': float('nan')})
  assert events(tmp_path) == [*whole[:6], ('loss', 3, 30.0)]


def test_a_foreign_file_is_not_cut(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('hello\n{"step": 1}\n')
  with pytest.raises(EagrlError, match='line 1'):
    MetricWriter(tmp_path)
  assert (tmp_path / 'metrics.jsonl').read_text() == 'hello\n{"step": 1}\n'


def test_metrics_come_one_step_late():
  late = LateMetrics()
  assert late.push(0, {'loss': jnp.array(1.5)}) is None
  assert late.push(1, {'loss': jnp.array(2.5)}) == (0, {'loss': 1.5})
  assert late.flush() == (1, {'loss': 2.5})
  assert late.flush() is None
