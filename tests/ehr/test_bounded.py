"""Rows in a database are judged as those in memory are."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from test_validation import cohort_of

from eagrl_jax.ehr import crossfield, store, validation
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.records import Cohort, hashed_order, to_visits
from eagrl_jax.ehr.sources import bounded, bounded_cohort

LEVELS = tuple((float(n), str(n)) for n in range(1, 7))
SPECS = (
    FeatureSpec('SBP', 'mmHg', hard_low=20, hard_high=300, sentinels=(-1.0,)), FeatureSpec('DBP', 'mmHg'),
    FeatureSpec('MAP', 'mmHg'), FeatureSpec('PaO2', 'mmHg'), FeatureSpec('SpO2', '%', hard_high=100),
    FeatureSpec('FiO2', '%', hard_low=21, hard_high=100, rescale=((0.21, 1, 100, 0),)),
    FeatureSpec('GCS'), *(FeatureSpec(f'GCS {p}', kind='ordinal', levels=LEVELS) for p in ('eye', 'motor', 'verbal')),
    FeatureSpec('temperature', 'degC', hard_low=25.1, hard_high=45, sentinels=(99.9,),
                accepted_units=(('degC', 1, 0), ('degF', 5 / 9, -160 / 9), ('K', 1, -273.15))))
GCS, TEMPERATURE = 6, 10
# (patient, hour, feature, value); nothing else is measured at these hours.
PLANTED = [
    *((0, 200, 1, x) for x in (100, 100, 40, 40, 40)),  # of one visit: 70
    (0, 201, 1, 80), (0, 201, 1, 80), (1, 200, 2, 70), (1, 200, 2, 75), (1, 200, 2, 75.5),
    *((1, 202, 0, x) for x in (80, 90)), (1, 202, 1, 120),  # systolic below diastolic, once its values are averaged
    (2, 203.00001, 1, 60), (2, 203.000011, 1, 60.0000001),  # one time and one value, as float32 has them
    *((0, 210, GCS + i, x) for i, x in enumerate((15, 2, 6, 4))),  # the total becomes 12
    *((0, 211, GCS + i, x) for i, x in enumerate((12, 2, 6, 4))), (1, 211, GCS, 15), (1, 211, GCS + 1, 2),
    *((1, 212, GCS + i, x) for i, x in enumerate((13, 2, 6, 4))), (1, 212, GCS + 1, 3),  # the mean part of two: 12.5
    (2, 213, GCS + 2, 5), (2, 213, GCS + 2, 7), *((2, 214, GCS + i, x) for i, x in enumerate((15, 7, 6, 4))),
    *((p, 220 + h, TEMPERATURE, 36.5 + p + h / 8) for p in range(3) for h in range(20)),
    (0, 250, TEMPERATURE, 98.6), (1, 250, TEMPERATURE, 310.15), (2, 250, TEMPERATURE, 1000),
    (2, 251, TEMPERATURE, 99.9), (2, 252, TEMPERATURE, 25.1)]  # 99.9 and 25.1 are no numbers that float32 has


def events(seed: int, low_pressures: int):
  rng = np.random.default_rng(seed)
  ranges = ((60, 200), (40, 120), (50, 150), (30, 300), (40, 100), (0.21, 1))
  rows = [(p, h, f, float(np.float32(rng.uniform(*ranges[f])))) for p in range(3) for h in range(80)
          for f in range(6) if rng.random() < 0.6]
  return sorted([*rows, *((i % 3, 90 + i, 0, 5.0) for i in range(low_pressures)), (0, 99, 0, -1.0), (1, 99, 5, 250.0),
                 (2, 99, 3, float('inf')), *PLANTED])


def fill(db, rows):
  db.register('rows', pa.table(np.array(rows, float).T.tolist(), ['patient', 'hour', 'feature', 'value']))
  db.execute('INSERT INTO events SELECT patient, hour, feature, single(value) FROM rows')


def collected(rows, specs, grid):
  steps: bounded.Steps = []
  with bounded.database() as db:
    fill(db, rows)
    bounded_cohort.judge(db, FeatureTable(specs), grid, steps)
    aside = db.execute('SELECT * FROM rejects').fetchnumpy()
    found = bounded_cohort.in_order(db, np.arange(3))
  return found, aside, {step: n for step, n, _ in steps if step != 'read'}


@pytest.mark.parametrize('low_pressures', [2, 20])
def test_the_database_and_memory_agree(low_pressures):
  rows = events(low_pressures, low_pressures)
  memory = validation.validate(cohort_of(rows, specs=SPECS))
  found, aside, counted = collected(rows, SPECS, bounded.Grid(1e-3))  # a visit a time
  for field in ('patient', 'hour', 'feature', 'value'):
    np.testing.assert_array_equal(found[field], getattr(memory, field), field)
  ids = np.array([f'p{i}' for i in range(3)], object)[aside['patient']]
  names = np.array([s.name for s in SPECS], object)[aside['feature']]
  assert sorted(zip(ids, aside['hour'].tolist(), names, aside['value'].tolist(), aside['reason'])) == sorted(zip(*(
      getattr(memory.rejects, k).tolist() for k in ('subject_id', 'hour', 'feature', 'value', 'reason'))))
  assert counted == {step: n for step, n, _ in memory.attrition if step != 'kept'}
  refused = 'not used until features give its specimen: SBP' in counted
  assert refused == (low_pressures == 20) and counted['converted from 0.21 to 1: FiO2'] > 100
  if not refused:
    assert min(n for step, n in counted.items() if 'below' in step or 'between' in step or 'exclude' in step) > 3
  # What was planted is found, by both.
  assert (counted[validation.IDENTICAL], counted[validation.CONFLICT], counted[crossfield.GCS_REASON]) == (
      5, 3 + (not refused), 2)
  assert counted['of these possible in degF: temperature'] == counted['of these possible in K: temperature'] == 1
  assert {'outside hard range, possible in degF', 'outside hard range, possible in K'} <= set(aside['reason'])


@pytest.mark.parametrize('aggregate', ['mean', 'last'])
def test_visits_agree(aggregate):
  rows = events(2, 2)
  memory = to_visits(validation.validate(cohort_of(rows, specs=SPECS)), 6.0, 60, aggregate)
  found, _, _ = collected(rows, SPECS, bounded.Grid(6.0, aggregate))
  database = to_visits(cohort_of(list(zip(*(found[k] for k in ('patient', 'hour', 'feature', 'value')))), specs=SPECS),
                       6.0, 60, aggregate)
  np.testing.assert_array_equal(database.hours, memory.hours)
  np.testing.assert_array_equal(database.values, memory.values)


def test_what_is_written_twice_weighs_once():
  rows = [(0, 0, 0, 100), (0, 0, 0, 100), (0, 1, 0, 40)]
  found, _, counted = collected(rows, (FeatureSpec('x'),), bounded.Grid(24.0))
  assert found['value'].tolist() == [70] and counted == {validation.IDENTICAL: 1}


def test_a_mean_is_no_code_for_missing():
  rows = [(p, h, 0, v) for p in range(3) for h, v in ((0, 98), (1, 100), (2, 99))]
  with bounded.database() as db:
    fill(db, rows)
    made = bounded_cohort.cohort(
        db, FeatureTable((FeatureSpec('x', sentinels=(99.0,)),)), bounded.Grid(24.0), [], name='', task='', setting='',
        ids=['a', 'b', 'c'], age=np.full(3, 50), sex=np.zeros(3), label=np.array([0, 1, 0]))
  assert made.value.tolist() == [99] * 3 and len(made.rejects) == 3


def test_the_cohort_is_that_of_memory():
  """With two groups of values, the oldest, stays that end, and a patient who has nothing that can be used."""
  rng = np.random.default_rng(0)
  glucose = np.append(rng.lognormal(4.8, 0.2, 60), rng.lognormal(1.9, 0.2, 20)).astype(np.float32)
  rows = sorted([(i % 40, i, 1, float(v)) for i, v in enumerate(glucose)]
                + [(i % 39, 100 + i % 3, 0, float(v)) for i, v in enumerate(rng.normal(37, 1, 90).astype(np.float32))]
                + [(40, 5, 0, 99.0)])
  specs = (FeatureSpec('temperature', 'degC', hard_high=45), FeatureSpec('glucose', 'mg/dL'))
  n = 41
  about = {'age': np.append(np.full(n - 1, 60, np.float32), np.float32(97)), 'sex': np.ones(n, np.int8),
           'label': (np.arange(n) % 2).astype(np.int8), 'stay_end': np.arange(n, dtype=np.float32) + 200}
  ids = [f'p{i}' for i in range(n)]
  with bounded.database() as db:
    fill(db, rows)
    steps: bounded.Steps = []
    made = bounded_cohort.cohort(db, FeatureTable(specs), bounded.Grid(1e-3), steps, name='toy', task='mortality',
                                 setting='here', ids=ids, **about)
  patient, hour, feature, value = np.array(rows).T
  memory = Cohort(
      'toy', 'mortality', 'here', FeatureTable(specs), np.array(ids), about['age'], about['sex'], about['label'],
      patient.astype(np.int32), hour.astype(np.float32), feature.astype(np.int16), value.astype(np.float32), (),
      stay_end=about['stay_end'])
  memory = validation.validate(memory.take(hashed_order(memory.subject_id, 'toy')))
  assert store.fingerprint(made) == store.fingerprint(memory)
  assert len(made) == 39 and set(made.feature) == {0}
  binned = ('read', 'after binning to 0.001 h')
  assert sorted(x for x in made.attrition if x[0] not in binned) == sorted(memory.attrition)
  assert [x[1] for x in made.attrition if x[0] == 'after binning to 0.001 h'] == [80 + 39]
  aside = [sorted(zip(*(getattr(c.rejects, k).tolist() for k in ('subject_id', 'hour', 'feature', 'value', 'reason'))))
           for c in (made, memory)]
  assert aside[0] == aside[1] and len(aside[0]) == 81


def test_a_code_that_is_found_is_remembered_as_in_memory():
  """For one new patient shows no pattern."""
  rows = sorted([(i % 3, i, 0, 5.0 + i % 4) for i in range(30)] + [(i % 3, 50 + i, 0, 999.0) for i in range(5)])
  specs = (FeatureSpec('x', sentinels=(-5.0,)), FeatureSpec('y'))
  with bounded.database() as db:
    fill(db, rows)
    made = bounded_cohort.cohort(
        db, FeatureTable(specs), bounded.Grid(24.0), [], name='', task='', setting='', ids=['a', 'b', 'c'],
        age=np.full(3, 50), sex=np.zeros(3), label=np.array([0, 1, 0]))
  memory = validation.validate(cohort_of(rows, specs=specs))
  assert made.features.to_json() == memory.features.to_json() and made.features[0].sentinels == (-5, 999)


def test_the_databases_memory_is_limited():
  with bounded.database() as db:
    limit = db.execute("SELECT current_setting('memory_limit')").fetchone()
    assert limit == ('953.6 MiB',)
