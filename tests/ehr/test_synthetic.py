from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eagrl_jax.ehr.sources import synthetic, synthetic_outcome, synthetic_salience
from eagrl_jax.ehr.sources.synthetic import SyntheticConfig, counterfactual_salience, generate, generate_with_ledger
from eagrl_jax.ehr.sources.synthetic_features import DEFAULT_FEATURES, FEATURES, PANELS, SENTINEL, SITES, SYSTEMS, TABLE
from eagrl_jax.types import EagrlError

TRAIN = 1500


@pytest.fixture(scope='module')
def cohort():
  return generate(SyntheticConfig(n=4000, features=DEFAULT_FEATURES), 0)


@pytest.fixture(scope='module')
def blocks():
  """The hidden side of 3,000 patients, all features, MCAR."""
  return list(synthetic._blocks(SyntheticConfig(n=3000, informative=0.0), 1))


def counts(cohort):
  seen = np.zeros((len(cohort), len(cohort.features)))
  np.add.at(seen, (cohort.patient, cohort.feature), 1)
  return seen


def summaries(cohort):
  """Last, mean, min and max of each feature, the train median where never measured, and age."""
  n, f = len(cohort), len(cohort.features)
  log = np.array([s.log for s in cohort.features])[cohort.feature]
  value = np.where(log, np.log(np.where(log, cohort.value, 1)), cohort.value).astype(float)
  cell = (cohort.patient, cohort.feature)
  last, total = np.full((n, f), np.nan), np.zeros((n, f))
  low, high = np.full((n, f), np.inf), np.full((n, f), -np.inf)
  last[cell] = value  # events are in time order: the last assignment stays
  np.add.at(total, cell, value)
  np.minimum.at(low, cell, value)
  np.maximum.at(high, cell, value)
  seen = counts(cohort)
  stack = np.stack([last, total / np.maximum(seen, 1), low, high], 2)
  stack[seen == 0] = np.nan
  filled = np.where(np.isnan(stack), np.nanmedian(stack[:TRAIN], 0), stack).reshape(n, -1)
  return np.column_stack([filled, cohort.age])


def logistic_auroc(inputs, label):
  model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)).fit(inputs[:TRAIN], label[:TRAIN])
  return roc_auc_score(label[TRAIN:], model.predict_proba(inputs[TRAIN:])[:, 1])


def missingness(cohort):
  seen = counts(cohort)
  return np.column_stack([seen, seen == 0])


def events_of(cohort, row):
  mine = cohort.patient == row
  return cohort.hour[mine], cohort.feature[mine], cohort.value[mine]


def test_the_signal_is_visible_and_ranks_below_the_oracle(cohort):
  label, test = cohort.label, slice(TRAIN, None)
  oracle = roc_auc_score(label[test], cohort.truth.risk[test])
  values, pattern = logistic_auroc(summaries(cohort), label), logistic_auroc(missingness(cohort), label)
  age = roc_auc_score(label[test], cohort.age[test])
  assert 0.87 < oracle < 0.91
  assert oracle - 0.07 < values < oracle - 0.02
  assert 0.60 < pattern < values - 0.10
  assert 0.53 < age < 0.65


def test_sampling_says_nothing_when_it_is_not_informative():
  cohort = generate(SyntheticConfig(n=4000, hours=24, informative=0.0, features=DEFAULT_FEATURES), 0)
  auroc = logistic_auroc(missingness(cohort), cohort.label)
  test = cohort.label[TRAIN:]
  se = math.sqrt(1 / (12 * test.sum()) + 1 / (12 * (1 - test).sum()))  # of an AUROC of one half
  assert abs(auroc - 0.5) < 2.6 * se


@pytest.mark.parametrize('prevalence', [0.05, 0.35, 0.8])
def test_prevalence(prevalence):
  cohort = generate(SyntheticConfig(n=3000, hours=24, prevalence=prevalence, features=('heart rate',)), 7)
  ci = 2.6 * math.sqrt(prevalence * (1 - prevalence) / len(cohort))
  assert abs(cohort.label.mean() - prevalence) < ci
  assert abs(cohort.truth.risk.mean() - prevalence) < ci
  # Calibration of the stated risk, in its upper and lower half.
  for half in (cohort.truth.risk > np.median(cohort.truth.risk), cohort.truth.risk <= np.median(cohort.truth.risk)):
    assert abs(cohort.label[half].mean() - cohort.truth.risk[half].mean()) < 2 * ci


@pytest.mark.parametrize('site', SITES)
def test_medians_of_the_healthy_are_the_measured_ones(site):
  """Healthy for a feature: the patients whose system of that feature does not fail."""
  parts = list(synthetic._blocks(SyntheticConfig(n=2500, informative=0.0, site=site), 2))
  active = np.concatenate([b.state.active for b in parts])
  values = np.concatenate([b.values for b in parts])
  for f, row in enumerate(FEATURES):
    healthy = ~active[:, SYSTEMS.index(row.system)] if row.system else np.ones(len(active), bool)
    law = row.sites[SITES.index(site)]
    # A base excess is near zero, where a relative error means nothing; a count is rounded to its precision.
    tolerance = max(0.05 * abs(law.median), 0.05 * law.between_sd, 0.5 * 10.0 ** -row.spec.decimals)
    assert abs(np.nanmedian(values[healthy, :, f]) - law.median) <= tolerance, row.spec.name


@pytest.mark.parametrize('site', SITES)
def test_sampling_rates_and_their_dead_alive_ratios(site):
  config = SyntheticConfig(n=4000, hours=24, prevalence=0.2, informative=1.0, site=site)
  parts = list(synthetic._blocks(config, 3))
  measured = np.concatenate([~np.isnan(b.values) for b in parts])
  dead = np.concatenate([b.state.label_draw < b.risk for b in parts])
  for f, row in enumerate(FEATURES):
    law = row.sites[SITES.index(site)]
    rate = measured[:, :, f].mean(1)
    # Three standard errors of the ratio, patients as units.
    noise = 3 * math.hypot(*(rate[g].std() / rate[g].mean() / math.sqrt(g.sum()) for g in (dead, ~dead)))
    assert abs(math.log(rate[dead].mean() / rate[~dead].mean() / law.rate_ratio)) < 0.20 + noise, row.spec.name


def test_uninformative_sampling_has_the_measured_rates(blocks):
  measured = np.concatenate([~np.isnan(b.values) for b in blocks])
  for f, row in enumerate(FEATURES):
    law, rate = row.sites[0], measured[:, :, f].mean(1)
    assert abs(rate.mean() - law.rate) < 0.08 * law.rate + 3 * rate.std() / math.sqrt(len(rate)), row.spec.name


def test_events_are_a_valid_cohort(cohort):
  order = np.lexsort((cohort.feature, cohort.hour, cohort.patient))
  np.testing.assert_array_equal(order, np.arange(len(order)))
  first = np.full(len(cohort), np.inf)
  np.minimum.at(first, cohort.patient, cohort.hour)
  assert (first == 0).all() and cohort.hour.max() < 48
  for f, spec in enumerate(cohort.features):
    value = cohort.value[cohort.feature == f]
    assert np.isfinite(value).all() and value.min() >= spec.hard_low and value.max() <= spec.hard_high
    assert value.min() > 0 or not spec.log
  assert set(np.unique(cohort.sex)) == {0, 1} and 18 <= cohort.age.min() and cohort.age.max() <= 90
  assert abs(cohort.sex.mean() - 0.57) < 0.03 and abs(np.median(cohort.age) - 64) < 2


def test_coupled_features_obey_physiology(blocks):
  values = np.concatenate([b.values for b in blocks])
  column = {name: values[..., TABLE.find(name)] for name in TABLE.names}
  gap = column['systolic pressure'] - column['diastolic pressure']
  assert np.nanmin(gap) >= 4  # 5, rounded
  expected = 7.37 + np.log10(column['bicarbonate'] / 23 * 39 / column['pCO2'])
  error = np.abs(column['pH'] - expected)
  assert np.nanmax(error[(column['bicarbonate'] >= 10) & (column['pCO2'] >= 20)]) < 0.05  # rounding of the parts
  assert np.nanmax(column['neutrophils'] + column['lymphocytes']) <= 101


def test_correlated_nuisance_shares_noise_but_no_outcome(blocks, cohort):
  values = np.concatenate([b.values for b in blocks])
  active = np.concatenate([b.state.active for b in blocks])
  first = np.argmax(~np.isnan(values[..., TABLE.find('chloride')]), 1)
  row = np.arange(len(values))
  chloride, bicarbonate = (values[row, first, TABLE.find(name)] for name in ('chloride', 'bicarbonate'))
  use = ~active[:, SYSTEMS.index('metabolic')] & ~np.isnan(chloride + bicarbonate)
  assert abs(np.corrcoef(chloride[use], bicarbonate[use])[0, 1] + 0.6) < 0.1
  inputs = summaries(cohort)
  for name in ('chloride', 'potassium', 'sodium'):
    f = cohort.features.find(name)
    assert abs(roc_auc_score(cohort.label, inputs[:, 4 * f + 1]) - 0.5) < 0.03, name


def test_patients_depend_on_seed_and_index_only():
  many = generate(SyntheticConfig(n=515), 5)  # more than one block
  few = generate(SyntheticConfig(n=3), 5)
  other = generate(SyntheticConfig(n=3), 6)
  for row in range(3):
    for a, b in zip(events_of(many, row), events_of(few, row)):
      np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(many.truth.salience[:3], few.truth.salience)
  np.testing.assert_array_equal(many.label[:3], few.label)
  assert not np.array_equal(few.truth.risk, other.truth.risk)
  longer = generate(SyntheticConfig(n=514), 5)
  for a, b in zip(events_of(many, 513), events_of(longer, 513)):
    np.testing.assert_array_equal(a, b)


def test_a_feature_subset_changes_no_other_measurement():
  whole = generate(SyntheticConfig(n=40), 5)
  part = generate(SyntheticConfig(n=40, features=('creatinine', 'heart rate')), 5)
  assert part.features.names == ('creatinine', 'heart rate')
  np.testing.assert_array_equal(part.truth.risk, whole.truth.risk)
  np.testing.assert_array_equal(part.label, whole.label)
  for f, name in enumerate(part.features.names):
    np.testing.assert_array_equal(part.value[part.feature == f],
                                  whole.value[whole.feature == whole.features.find(name)])


def test_same_cohort_in_another_process(tmp_path):
  script = ('import sys, numpy as np; from eagrl_jax.ehr.sources.synthetic import SyntheticConfig, generate;'
            'c = generate(SyntheticConfig(n=20, hours=12, typo_rate=0.01), 9);'
            'np.savez(sys.argv[1], value=c.value, hour=c.hour, label=c.label, risk=c.truth.risk, s=c.truth.salience)')
  subprocess.run([sys.executable, '-c', script, str(tmp_path / 'there.npz')], check=True)
  here, there = generate(SyntheticConfig(n=20, hours=12, typo_rate=0.01), 9), np.load(tmp_path / 'there.npz')
  for array, name in ((here.value, 'value'), (here.hour, 'hour'), (here.label, 'label'), (here.truth.risk, 'risk'),
                      (here.truth.salience, 's')):
    np.testing.assert_array_equal(array, there[name])


def test_salience_rows(cohort):
  salience, seen = cohort.truth.salience, counts(cohort)
  system = [FEATURES[TABLE.find(name)].system for name in cohort.features.names]
  total = salience.sum(1)
  np.testing.assert_allclose(total[total > 0], 1, atol=1e-5)
  assert (total > 0).mean() > 0.95
  assert (salience[seen == 0] == 0).all() and (seen == 0).sum() > 100
  nuisance = [not s for s in system]
  assert sum(nuisance) >= 6 and (salience[:, nuisance] == 0).all()
  involved = sum((salience[:, [s == name for s in system]] > 0).any(1).astype(int) for name in SYSTEMS)
  assert involved.max() == 3 and involved[total > 0].min() == 1 and {s for s in system if s} == set(SYSTEMS)


def one_patient(burden):
  """A patient with these burdens, 24 h."""
  n_systems = len(SYSTEMS)
  state = np.zeros((1, n_systems))
  for name, value in burden.items():
    state[0, SYSTEMS.index(name)] = value
  return synthetic_outcome.Latents(
      age=np.array([64.0]), sex=np.array([1], np.int8), active=state > 0, severity=np.repeat(state[:, None], 24, 1),
      burden=state, direction=np.array([1.0]), label_draw=np.array([0.5]))


def test_causal_salience_by_hand():
  state = one_patient({'cardiovascular': 2.0, 'renal': 1.0})
  law = SyntheticConfig(stable_fraction=0.6).laws
  seen = np.zeros((1, len(TABLE)))
  for name, count in (('heart rate', 40), ('lactate', 2), ('creatinine', 1), ('sodium', 3), ('platelets', 4)):
    seen[0, TABLE.find(name)] = count
  got = synthetic_salience.causal(state, seen, law, 1.25)[0]
  heart = 81 / (0.6 * 16.245**2 + 7.388**2 / 40)
  lactate = 0.45**2 / (0.6 * 0.573**2 + 0.271**2 / 2)
  circulation, kidney = 1.2 * 2 + 0.15 * 2, 0.8 * 1 + 0.15 * 2  # half of the interaction .3 * 2 * 1 each
  whole = circulation + kidney
  want = {'heart rate': circulation / whole * heart / (heart + lactate),
          'lactate': circulation / whole * lactate / (heart + lactate), 'creatinine': kidney / whole}
  for name in TABLE.names:
    assert got[TABLE.find(name)] == pytest.approx(want.get(name, 0), abs=1e-6), name


def test_counterfactual_salience_by_hand():
  """One measurement in each of two systems: the posterior mean is a scalar regression."""
  state = one_patient({'respiratory': 1.5, 'coagulation': 1.0})
  config = SyntheticConfig(hours=24, stable_fraction=0.6)
  calibration = synthetic_outcome.calibrate(24, config.scale, config.prevalence)
  values = np.full((1, 24, len(TABLE)), np.nan)
  values[0, 20, TABLE.find('respiratory rate')] = 27.0
  values[0, 10, TABLE.find('platelets')] = 60.0
  values[0, 10, TABLE.find('sodium')] = 150.0
  got = synthetic_salience.counterfactual(state, values, config.laws, config.scale, calibration)[0]
  cov, weights = calibration.severity_cov, np.array([0.5 ** ((23 - t) / 12) for t in range(24)])
  weights /= weights.sum()
  def moved(hour, effect, deviation, variance, weight):
    gain = effect * (weights @ cov[:, hour]) / (effect**2 * cov[hour, hour] + variance)
    return abs(weight * gain * deviation)
  breath = moved(20, 3, 27 - 19, 0.6 * 4.905**2 + 3.491**2, 1.1)
  clot = moved(10, -0.45, math.log(60 / 197.5), 0.6 * 0.552**2 + 0.088**2, 0.8)
  assert got[TABLE.find('respiratory rate')] == pytest.approx(breath / (breath + clot), rel=1e-5)
  assert got[TABLE.find('platelets')] == pytest.approx(clot / (breath + clot), rel=1e-5)
  assert got.sum() == pytest.approx(1, abs=1e-6)


def test_both_definitions_of_salience_agree_on_the_top():
  config = SyntheticConfig(n=60, features=DEFAULT_FEATURES)
  causal, other = generate(config, 4).truth.salience, counterfactual_salience(config, 4)
  assert causal.shape == other.shape
  def top(row):
    return {int(f) for f in np.argsort(-row)[:5] if row[f] > 0}
  scores = [len(top(a) & top(b)) / len(top(a) | top(b)) for a, b in zip(causal, other) if a.any() and b.any()]
  assert len(scores) > 50 and np.mean(scores) > 0.8


def test_every_defect_is_in_the_ledger():
  clean = SyntheticConfig(n=60)
  dirty = dataclasses.replace(clean, unit_swap_rate=0.02, typo_rate=0.01, sentinel_rate=0.02, duplicate_rate=0.03)
  before, (after, ledger) = generate(clean, 8), generate_with_ledger(dirty, 8)
  kind = np.full(len(after.value), -1)
  kind[ledger.row] = ledger.kind
  swap, typo, sentinel, duplicate = (ledger.row[ledger.kind == k] for k in range(4))
  original = np.delete(np.arange(len(after.value)), duplicate)
  for field in ('patient', 'hour', 'feature'):
    np.testing.assert_array_equal(getattr(after, field)[original], getattr(before, field))
    np.testing.assert_array_equal(getattr(after, field)[duplicate], getattr(after, field)[duplicate - 1])
  np.testing.assert_array_equal(after.value[duplicate], after.value[duplicate - 1])
  untouched = original[kind[original] == -1]
  at = np.full(len(after.value), -1)
  at[original] = np.arange(len(before.value))
  np.testing.assert_array_equal(after.value[untouched], before.value[at[untouched]])
  touched = np.concatenate([swap, typo, sentinel])
  np.testing.assert_array_equal(np.sort(np.concatenate([touched, untouched])), original)
  assert (after.value[sentinel] == SENTINEL).all()
  ratio = after.value[typo] / before.value[at[typo]]
  assert set(np.round(ratio, 3)) == {10, 100}
  for row in swap:
    ((_, scale, offset),) = after.features[after.feature[row]].accepted_units
    assert scale * after.value[row] + offset == pytest.approx(before.value[at[row]], rel=1e-4, abs=1e-4)
  clean_value = dict(zip(ledger.row, ledger.clean))
  assert all(clean_value[row] == before.value[at[row]] for row in touched)
  n = len(before.value)
  for rows, rate in ((typo, 0.01), (sentinel, 0.02), (duplicate, 0.03)):
    assert abs(len(rows) - rate * n) < 4 * math.sqrt(rate * n)
  assert len(swap) > 0 and len(generate_with_ledger(clean, 8)[1].row) == 0


def test_a_missing_value_code_is_no_evidence():
  cohort = generate(SyntheticConfig(n=20, sentinel_rate=1.0), 0)
  assert (cohort.value == SENTINEL).all() and not cohort.truth.salience.any()


def test_patients_without_a_measurement_are_left_out_and_counted():
  config = SyntheticConfig(n=100, features=('troponin T',))
  cohort = generate(config, 0)
  attrition = {step: count for step, count, _ in cohort.attrition}
  assert 0 < len(cohort) < 100
  assert attrition == {'simulated': 100, 'without any measurement': 100 - len(cohort)}
  assert set(cohort.patient) == set(range(len(cohort))) and cohort.truth.salience.shape == (len(cohort), 1)
  assert counterfactual_salience(config, 0).shape == (len(cohort), 1)


@pytest.mark.parametrize('field,value', [
    ('data.n', 0), ('SyntheticConfig.hours', 1), ('data.prevalence', 0.0), ('data.prevalence', 1.0),
    ('SyntheticConfig.scale', -1.0), ('data.informative', 1.5), ('SyntheticConfig.stable_fraction', 0.0),
    ('SyntheticConfig.features', ()), ('SyntheticConfig.features', ('pH', 'pH')), ('data.site', 'nowhere'),
    ('SyntheticConfig.typo_rate', -0.1), ('SyntheticConfig.sentinel_rate', 1.1)])
def test_a_bad_field_is_named_as_the_config_names_it(field, value):
  with pytest.raises(EagrlError) as error:
    SyntheticConfig(**{field.partition('.')[2]: value})
  assert field in str(error.value) and str(value) in str(error.value)


def test_an_unknown_feature_is_answered_with_the_near_name():
  with pytest.raises(EagrlError, match=r"SyntheticConfig.features.*'lactat'.*'lactate'"):
    SyntheticConfig(features=('lactat',))


def test_the_table_is_consistent():
  assert set(DEFAULT_FEATURES) <= set(TABLE.names) and 18 <= len(DEFAULT_FEATURES) == len(set(DEFAULT_FEATURES)) <= 20
  for row in FEATURES:
    spec = row.spec
    assert spec.hard_low <= spec.ref_low <= spec.ref_high <= spec.hard_high, spec.name
    assert not spec.hard_low <= SENTINEL <= spec.hard_high and row.panel in PANELS
    assert (row.system in SYSTEMS) == (row.effect != 0), spec.name
    for law in row.sites:
      assert spec.hard_low <= law.median <= spec.hard_high and 0 < law.rate < 1
