"""The audit finds what is planted, and says nothing of a clean cohort."""

import numpy as np

from eagrl_jax.ehr.records import to_visits
from eagrl_jax.ehr.sources import tjh
from eagrl_jax.evaluation import baselines, leakage

N, T, F = 400, 2, 3
SPLITS = {'train': np.arange(200), 'valid': np.arange(200, 240), 'test': np.arange(240, N)}


def inputs(resamples=200, **changes):
  r = np.random.default_rng(0)
  label = (r.random(N) < 0.4).astype(int)
  values = r.normal(size=(N, T, F)) + 1.5 * label[:, None, None]
  values[r.random((N, T, F)) < 0.3] = np.nan
  age = r.uniform(20, 90, N)
  given = {
      'subject_id': np.array([str(i) for i in r.permutation(10_000)[:N]]), 'label': label, 'age': age,
      'values': values, 'hours': r.uniform(1, 48, N), 'events': r.integers(5, 20, N), 'window': 48.0,
      'splits': SPLITS, 'attrition': (('admitted', N, 'patients'), ('after discharge', 7, 'rows')), 'model_auroc': 0.9,
      'seed': 0, 'resamples': resamples} | {k: v(label, r) for k, v in changes.items()}
  table = baselines.summarise(given.pop('values'), np.ones((N, T), bool), given['age'], np.ones(N, int))
  return {c.name: c for c in leakage.audit(table=table, **given)}


def test_a_clean_cohort_gets_no_warning():
  checks = inputs()
  assert not [c for c in checks.values() if c.warning]
  assert checks['rows dropped: after discharge'].value == 7
  assert checks['patients in two splits'].value == 0


def test_planted_leaks_are_found():
  warned = lambda **changes: {c.name for c in inputs(**changes).values() if c.warning}
  by_outcome = lambda label, r: np.array([f'{i:05d}' for i in np.argsort(np.argsort(label + 0.5 * r.random(N)))])
  assert warned(subject_id=by_outcome) == {'order of the ids'}
  assert warned(age=lambda label, r: 40 + 30 * label + r.normal(size=N)) == {'age alone'}
  assert warned(events=lambda label, r: 5 + 10 * label) == {'record length alone'}
  assert warned(hours=lambda label, r: np.full(N, 49.0)) >= {'patients with inputs after the prediction time'}
  shared = SPLITS | {'valid': np.arange(195, 240)}
  assert warned(splits=lambda label, r: shared) == {'patients in two splits'}

  def missing(label, r):
    values = r.normal(size=(N, T, F))
    values[label == 0] = np.nan
    return values
  assert 'missingness alone' in warned(values=missing)


def test_tjh_ids_and_rows_after_discharge_are_caught(shared_data):
  cohort = tjh.load(shared_data / 'tjh' / 'time_series_375_prerpocess_en.xlsx')
  visits = to_visits(cohort, 24.0, 8)
  table = baselines.summarise(visits.values, visits.valid, cohort.age, cohort.sex)
  order = np.random.default_rng(0).permutation(len(cohort))
  splits = {'train': order[:200], 'valid': order[200:240], 'test': order[240:]}
  checks = {c.name: c for c in leakage.audit(
      subject_id=cohort.subject_id, label=cohort.label, age=cohort.age, table=table, hours=visits.hours.max(1),
      events=np.bincount(cohort.patient, minlength=len(cohort)), window=0.0, splits=splits,
      attrition=cohort.attrition, model_auroc=0.98, seed=0, resamples=200)}
  assert checks['order of the ids'].value > 0.99 and 'ordered by outcome' in checks['order of the ids'].warning
  assert checks['rows dropped: after discharge'].value > 50
  assert not checks['labels permuted in train'].warning
