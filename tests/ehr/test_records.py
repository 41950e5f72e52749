"""`to_visits` and `Cohort.take` against plain loops."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from eagrl_jax.ehr import records
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.records import Cohort, Truth, hashed_order, to_visits


def random_cohort(seed: int, n: int = 9, f: int = 4, events: int = 120) -> Cohort:
  rng = np.random.default_rng(seed)
  patient = np.sort(rng.integers(0, n, events)).astype(np.int32)
  hour = (rng.integers(0, 4 * 60, events) / 4).astype(np.float32)
  order = np.lexsort((hour, patient))
  return Cohort(
      name='toy', task='mortality', setting='', features=FeatureTable(tuple(FeatureSpec(f'f{i}') for i in range(f))),
      subject_id=np.array([f'p{i}' for i in range(n)]), age=rng.uniform(20, 90, n).astype(np.float32),
      sex=rng.integers(0, 2, n).astype(np.int8), label=rng.integers(0, 2, n).astype(np.int8),
      patient=patient[order], hour=hour[order], feature=rng.integers(0, f, events).astype(np.int16),
      value=rng.normal(size=events).astype(np.float32), attrition=(),
      truth=Truth(rng.dirichlet(np.ones(f), n).astype(np.float32), rng.uniform(size=n).astype(np.float32)),
      censor=rng.integers(-1, 2, events).astype(np.int8))


def slow_visits(cohort, bin_hours, max_visits, aggregate, window):
  n, f = len(cohort), len(cohort.features)
  values = np.full((n, max_visits, f), np.nan, np.float32)
  hours, valid = np.zeros((n, max_visits), np.float32), np.zeros((n, max_visits), bool)
  censor = np.zeros(values.shape, np.int8)
  for i in range(n):
    bins: dict[int, dict[int, list[tuple[float, int]]]] = {}
    for p, h, k, v, s in zip(cohort.patient, cohort.hour, cohort.feature, cohort.value, cohort.censor):
      if p == i and (window is None or h < window):
        bins.setdefault(math.floor(h / bin_hours), {}).setdefault(k, []).append((float(v), int(s)))
    rows = [(b, {k: mean(x) if aggregate == 'mean' else x[-1] for k, x in bins[b].items()}) for b in sorted(bins)]
    while len(rows) > max_visits:
      (_, old), (b, new) = rows[0], rows[1]
      rows = [(b, {**old, **new}), *rows[2:]]
    for t, (b, row) in enumerate(rows):
      hours[i, t], valid[i, t] = (b + 1) * bin_hours, True
      for k, (v, s) in row.items():
        values[i, t, k], censor[i, t, k] = v, s
  return values, hours, valid, censor


def mean(pairs):
  signs = {s for _, s in pairs}
  return np.mean([v for v, _ in pairs]), signs.pop() if len(signs) == 1 else 0


@pytest.mark.parametrize('aggregate', ['mean', 'last'])
@pytest.mark.parametrize(('bin_hours', 'max_visits', 'window'), [
    (1, 60, None), (6, 4, None), (24, 2, 48), (0.5, 3, 20), (7, 1, None), (1, 5, 0)])
def test_visits_equal_a_plain_loop(aggregate, bin_hours, max_visits, window):
  cohort = random_cohort(seed=3)
  assert len(np.unique(cohort.patient)) == len(cohort)
  found = to_visits(cohort, bin_hours, max_visits, aggregate, window)
  values, hours, valid, censor = slow_visits(cohort, bin_hours, max_visits, aggregate, window)
  np.testing.assert_allclose(found.values, values, rtol=1e-6)
  np.testing.assert_array_equal(found.hours, hours)
  np.testing.assert_array_equal(found.valid, valid)
  np.testing.assert_array_equal(found.censor, censor)
  exact = to_visits(dataclasses.replace(cohort, censor=None), bin_hours, max_visits, aggregate, window)
  np.testing.assert_array_equal(exact.values, found.values)
  assert exact.censor is None


@pytest.mark.parametrize('at_once', [1, 7, 30])
def test_events_are_binned_some_at_a_time(monkeypatch, at_once):
  cohort = random_cohort(seed=5, n=12)
  cohort = cohort.pick((cohort.patient != 0) & (cohort.patient != 6) & (cohort.patient != 11))
  whole = to_visits(cohort, 6, 4, 'last', 30)
  monkeypatch.setattr(records, '_AT_ONCE', at_once)
  parts = to_visits(cohort, 6, 4, 'last', 30)
  for field in dataclasses.fields(whole):
    np.testing.assert_array_equal(getattr(parts, field.name), getattr(whole, field.name), field.name, strict=True)


def test_a_patient_without_events_has_no_visit():
  cohort = random_cohort(seed=4)
  cohort = cohort.pick(cohort.patient != 5)
  visits = to_visits(cohort, 6, 4)
  assert not visits.valid[5].any() and visits.valid[np.arange(9) != 5, 0].all()
  assert np.isnan(visits.values[5]).all()


@pytest.mark.parametrize('bad', [{'aggregate': 'max'}, {'bin_hours': 0}, {'max_visits': 0}])
def test_visits_refuse_settings_without_meaning(bad):
  with pytest.raises(ValueError, match='to_visits'):
    to_visits(random_cohort(0), **{'bin_hours': 1, 'max_visits': 2} | bad)


def test_take_equals_a_plain_loop():
  cohort = random_cohort(seed=1)
  rows = np.array([7, 0, 3, 8])
  part = cohort.take(rows)
  events = lambda c: zip(c.patient, c.hour, c.feature, c.value, c.censor)
  want = [(new, *rest) for new, old in enumerate(rows) for p, *rest in events(cohort) if p == old]
  assert list(events(part)) == want
  for field in ('subject_id', 'age', 'sex', 'label'):
    np.testing.assert_array_equal(getattr(part, field), getattr(cohort, field)[rows])
  np.testing.assert_array_equal(part.truth.salience, cohort.truth.salience[rows])
  np.testing.assert_array_equal(part.truth.risk, cohort.truth.risk[rows])


def test_take_sorts_events_and_refuses_a_repeated_row():
  cohort = random_cohort(seed=2)
  mixed = np.random.default_rng(0).permutation(len(cohort.value))
  part = cohort.pick(mixed).take(np.arange(len(cohort)))
  np.testing.assert_array_equal(part.patient, cohort.patient)
  np.testing.assert_array_equal(part.hour, cohort.hour)
  with pytest.raises(ValueError, match='repeated'):
    cohort.take(np.array([1, 1]))


def test_hashed_order_follows_ids_and_not_rows():
  ids = np.array([str(i) for i in range(50)])
  mixed = np.random.default_rng(0).permutation(ids)
  np.testing.assert_array_equal(ids[hashed_order(ids, 'a')], mixed[hashed_order(mixed, 'a')])
  assert not np.array_equal(hashed_order(ids, 'a'), hashed_order(ids, 'b'))
  assert hashed_order(np.array(['x', 'y', 'z'])).tolist() == [1, 0, 2]  # sha256sum: b3…, 3c…, c2…
