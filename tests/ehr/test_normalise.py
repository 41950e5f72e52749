"""Statistics and expert inputs against plain loops."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from eagrl_jax.ehr import normalise
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.records import Cohort, Visits
from eagrl_jax.types import EagrlError

N, T = 60, 5
SPECS = (FeatureSpec('plain'), FeatureSpec('skewed', log=True), FeatureSpec('limit'), FeatureSpec('constant'),
         FeatureSpec('unseen'))


def make(seed: int = 0) -> tuple[Visits, Cohort]:
  rng = np.random.default_rng(seed)
  values = rng.normal(10, 3, (N, T, len(SPECS)))
  values[..., 1] = np.exp(rng.normal(2, 1.5, (N, T)))
  values[..., 2] = np.where(rng.uniform(size=(N, T)) < 0.93, 5.0, 5 + rng.exponential(3, (N, T)))
  values[..., 3] = 4.0
  valid = np.arange(T)[None] < rng.integers(1, T + 1, N)[:, None]
  values[(rng.uniform(size=values.shape) < 0.5) | ~valid[..., None]] = np.nan
  values[:40, :, 4] = np.nan
  values[0, 0, 0] = 500.0
  age = rng.uniform(20, 90, N).astype(np.float32)
  age[[3, 50]] = np.nan
  none = np.zeros(0, np.float32)
  cohort = Cohort('toy', 'mortality', '', FeatureTable(SPECS), np.array([f'p{i}' for i in range(N)]), age,
                  rng.integers(-1, 2, N).astype(np.int8), rng.integers(0, 2, N).astype(np.int8),
                  none.astype(np.int32), none, none.astype(np.int16), none, ())
  return Visits(values.astype(np.float32), np.cumsum(valid, 1).astype(np.float32), valid), cohort


TRAIN = np.arange(40)


def test_statistics_are_trimmed_inclusively_on_the_train_rows():
  visits, cohort = make()
  found = normalise.fit(visits, TRAIN, cohort.features, cohort.age)
  for f in (0, 1):
    x = [float(v) for row in visits.values[TRAIN][..., f] for v in row if not np.isnan(v)]
    x = np.log1p(x) if f == 1 else np.array(x)
    low, high = np.quantile(x, [0.05, 0.95])
    inside = [v for v in x if low <= v <= high]
    np.testing.assert_allclose([found.mean[f], found.std[f], found.median[f]],
                               [np.mean(inside), np.std(inside), np.median(x)], rtol=1e-5)
    assert found.n[f] == len(x)
  assert found.mean[0] < 12  # the 500 does not count


def test_a_pile_up_at_an_assay_limit_keeps_a_sane_scale():
  visits, cohort = make()
  found = normalise.fit(visits, TRAIN, cohort.features, cohort.age)
  assert abs((found.median[2] - found.mean[2]) / found.std[2]) < 1  # unmeasured looks like the typical value
  pile = np.full((N, T, len(SPECS)), 5.0, np.float32)
  pile[0, 0, 2] = 15.0
  guarded = normalise.fit(Visits(pile, visits.hours, visits.valid), TRAIN, cohort.features, cohort.age)
  np.testing.assert_allclose(guarded.std[2], pile[TRAIN][..., 2].std(), rtol=1e-5)
  assert guarded.flat == ('plain', 'skewed', 'constant', 'unseen')


def test_constant_and_unseen_features_are_recorded_with_std_one():
  visits, cohort = make()
  found = normalise.fit(visits, TRAIN, cohort.features, cohort.age)
  assert found.flat == ('constant', 'unseen')
  assert found.std[3] == found.std[4] == 1 and found.mean[3] == 4 and found.n[4] == 0


def test_batch_equals_a_plain_loop():
  visits, cohort = make()
  s = normalise.fit(visits, TRAIN, cohort.features, cohort.age)
  batch = normalise.apply(s, visits, cohort)
  known = [float(a) for a in cohort.age[TRAIN] if not np.isnan(a)]
  for i in range(N):
    for f in range(len(SPECS)):
      carried = 0.0 if s.n[f] == 0 else (float(s.median[f]) - float(s.mean[f])) / float(s.std[f])
      for t in range(T):
        x = float(visits.values[i, t, f])
        if not np.isnan(x) and s.n[f]:
          carried = ((np.log1p(x) if SPECS[f].log else x) - float(s.mean[f])) / float(s.std[f])
          carried = min(8.0, max(-8.0, carried))
        want = carried if visits.valid[i, t] else 0.0
        np.testing.assert_allclose(batch.values[i, t, f], want, rtol=1e-4, atol=1e-5)
        assert batch.observed[i, t, f] == float(not np.isnan(x))
    age = 0.0 if np.isnan(cohort.age[i]) else (float(cohort.age[i]) - np.mean(known)) / np.std(known)
    np.testing.assert_allclose(batch.static[i, 0], age, rtol=1e-4, atol=1e-5)
    assert batch.static[i, 1] == {1: 1.0, 0: 0.0, -1: 0.5}[int(cohort.sex[i])]
  assert batch.values[0, 0, 0] == 8.0
  assert {k: getattr(batch, k).dtype.name for k in ('values', 'observed', 'valid', 'hours', 'static', 'label')} == {
      'values': 'float32', 'observed': 'float32', 'valid': 'bool', 'hours': 'float32', 'static': 'float32',
      'label': 'float32'}
  assert np.isfinite(batch.values).all()


def test_test_patients_and_train_order_change_nothing():
  visits, cohort = make()
  first = normalise.fit(visits, TRAIN, cohort.features, cohort.age)
  values, age = visits.values.copy(), cohort.age.copy()
  values[40:] = 1e6
  age[40:] = 1
  other = normalise.fit(Visits(values, visits.hours, visits.valid), TRAIN[::-1], cohort.features, age)
  for field in ('mean', 'std', 'median', 'n', 'age_mean', 'age_std'):
    np.testing.assert_array_equal(getattr(first, field), getattr(other, field))


def test_file_round_trip_is_exact(tmp_path):
  visits, cohort = make()
  s = normalise.fit(visits, TRAIN, cohort.features, cohort.age)
  normalise.save(tmp_path / 's.json', s)
  again = normalise.load(tmp_path / 's.json')
  for field in ('names', 'log', 'mean', 'std', 'median', 'n', 'flat', 'age_mean', 'age_std'):
    np.testing.assert_array_equal(getattr(again, field), getattr(s, field))
    if isinstance(getattr(s, field), np.ndarray):
      assert getattr(again, field).dtype == getattr(s, field).dtype


def test_bad_files_and_other_features_are_refused(tmp_path):
  visits, cohort = make()
  s = normalise.fit(visits, TRAIN, cohort.features, cohort.age)
  normalise.save(tmp_path / 's.json', s)
  (tmp_path / 'cut.json').write_text((tmp_path / 's.json').read_text()[:80])
  (tmp_path / 'short.json').write_text((tmp_path / 's.json').read_text().replace('"plain",', ''))
  (tmp_path / 'list.json').write_text('[]')
  fix = rf'; delete {tmp_path.name}/done\.json and run the command that made it again'
  for name in ('cut.json', 'short.json', 'list.json', 'absent.json'):
    with pytest.raises(EagrlError, match=fix):
      normalise.load(tmp_path / name)
  with pytest.raises(EagrlError, match='fitted on other features'):
    normalise.apply(s, visits, dataclasses.replace(cohort, features=FeatureTable(SPECS[::-1])))
