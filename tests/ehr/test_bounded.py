"""Rows in a database are judged as those in memory are."""

from __future__ import annotations

import numpy as np
import pytest
from test_validation import cohort_of

from eagrl_jax.ehr import validation
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.sources import bounded

SPECS = (
    FeatureSpec('SBP', 'mmHg', hard_low=20, hard_high=300, sentinels=(-1.0,)), FeatureSpec('DBP', 'mmHg'),
    FeatureSpec('MAP', 'mmHg'), FeatureSpec('PaO2', 'mmHg'), FeatureSpec('SpO2', '%', hard_high=100),
    FeatureSpec('FiO2', '%', hard_low=21, hard_high=100, rescale=((0.21, 1, 100, 0),)))


def events(seed: int, low_pressures: int):
  rng = np.random.default_rng(seed)
  ranges = ((60, 200), (40, 120), (50, 150), (30, 300), (40, 100), (0.21, 1))
  rows = [(p, h, f, float(np.float32(rng.uniform(*ranges[f])))) for p in range(3) for h in range(80)
          for f in range(6) if rng.random() < 0.6]
  return sorted([*rows, *((i % 3, 90 + i, 0, 5.0) for i in range(low_pressures)), (0, 99, 0, -1.0), (1, 99, 5, 250.0)])


@pytest.mark.parametrize('low_pressures', [2, 20])
def test_the_database_and_memory_agree(low_pressures):
  rows = events(low_pressures, low_pressures)
  memory = validation.validate(cohort_of(rows, specs=SPECS))
  steps: bounded.Steps = []
  with bounded.database() as db:
    db.executemany('INSERT INTO events VALUES (?, ?, ?, ?)', rows)
    found, aside = bounded.collect(db, FeatureTable(SPECS), bounded.Grid(1.0), steps)
  order = np.lexsort((found['feature'], found['hour'], found['patient']))
  for field in ('patient', 'hour', 'feature'):
    np.testing.assert_array_equal(found[field][order], getattr(memory, field))
  np.testing.assert_allclose(found['value'][order], memory.value, rtol=1e-6)
  ids = np.array([f'p{i}' for i in range(3)], object)[aside['patient']]
  names = np.array([s.name for s in SPECS], object)[aside['feature']]
  assert sorted(zip(ids, aside['hour'].tolist(), names, aside['reason'])) == sorted(zip(*(
      getattr(memory.rejects, k).tolist() for k in ('subject_id', 'hour', 'feature', 'reason'))))
  counted = {step: n for step, n, _ in steps if step != 'read'}
  assert counted == {step: n for step, n, _ in memory.attrition if step != 'kept'}
  refused = 'not used until features give its specimen: SBP' in counted
  assert refused == (low_pressures == 20) and counted['converted from 0.21 to 1: FiO2'] > 100
  if not refused:
    assert min(n for step, n in counted.items() if 'below' in step or 'between' in step or 'exclude' in step) > 3
