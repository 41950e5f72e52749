"""The metric files of a run that is interrupted, and reading one step late."""

from __future__ import annotations

import json

import jax.numpy as jnp
import pytest

from eagrl_jax.train.metrics import LateMetrics, MetricWriter
from eagrl_jax.types import EagrlError


def rows(folder):
  return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


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
