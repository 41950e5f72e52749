"""The early score against a plain loop over its definition, and what it is measured against in a run."""

from __future__ import annotations

import math

import numpy as np
import pytest
from ml_collections import ConfigDict

from eagrl_jax.ehr import normalise
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.records import Cohort
from eagrl_jax.ehr.splits import Splits
from eagrl_jax.evaluation import bootstrap, early
from eagrl_jax.mesh import local_mesh
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages import early as early_stage
from eagrl_jax.stages import evaluate, foreign
from eagrl_jax.stages.context import Context
from eagrl_jax.types import EagrlError


def by_the_book(label, prob, left, tau, threshold):
  """One prediction after another, as the definition reads."""
  total = best = 0.0
  for y, p, stay in zip(label, prob, left):
    if math.isnan(stay):
      continue
    if y == 1 and p >= threshold:
      total += min(stay / tau, 1)
    elif y == 1:
      total += 0 if stay >= tau else stay / tau - 1
    elif p >= threshold:
      total -= 0.1
    best += min(stay / tau, 1) if y == 1 else 0
  return max(total / best, -1)


def patients(n=80, seed=0):
  rng = np.random.default_rng(seed)
  label = (rng.random(n) < 0.4).astype(int)
  prob = np.round(np.clip(0.3 + 0.3 * label + rng.normal(0, 0.25, n), 0, 1), 1)  # some exactly at the threshold
  left = np.where(rng.random(n) < 0.1, np.nan, rng.gamma(1.0, 90.0, n) * (rng.random(n) < 0.9))
  return label, prob, left


@pytest.mark.parametrize('threshold', [0.3, 0.5, 0.9])
def test_equal_to_the_definition(threshold):
  label, prob, left = patients()
  assert (prob == 0.5).any() and (left == 0).any() and (left > 60).any()
  found = early.score(label, prob, left, 60.0, threshold, n=20)
  assert found['point'] == pytest.approx(by_the_book(label, prob, left, 60.0, threshold), abs=1e-12)
  assert found['n'] == np.isfinite(left).sum() < len(left)


def test_every_resample_is_the_definition_on_the_repeated_rows():
  label, prob, left = patients(40)
  found = early.score(label, prob, left, 60.0, n=50, seed=3)
  counts = bootstrap.resample_counts(40, 50, 3)
  values = [by_the_book(*(np.repeat(x, c) for x in (label, prob, left)), 60.0, 0.5) for c in counts]
  np.testing.assert_allclose(found['ci95'], np.percentile(values, [2.5, 97.5]), atol=1e-12)
  assert found['mean'] == pytest.approx(np.mean(values)) and found['std'] == pytest.approx(np.std(values, ddof=1))
  assert (found['n_resamples'], found['skipped']) == (50, 0)


def test_resamples_are_those_of_the_other_metrics_where_some_are_drawn_again():
  label, prob, left = np.eye(8)[0], np.linspace(0.9, 0.2, 8), np.full(8, 50.0)
  found = early.score(label, prob, left, 60.0, n=100, seed=3)
  counts, redrawn = bootstrap.resamples(label, 100, 3)
  values = [by_the_book(*(np.repeat(x, c) for x in (label, prob, left)), 60.0, 0.5) for c in counts]
  assert found['mean'] == pytest.approx(np.mean(values))
  assert (found['redrawn'], found['skipped'], found['n_resamples']) == (redrawn, 0, 100) and redrawn > 10


def test_by_hand():
  score = lambda label, prob, left: early.score(label, prob, left, 10.0, n=5)['point']
  assert score([1, 1, 0, 0], [0.9, 0.5, 0.1, 0.4], [20, 5, 3, 3]) == 1  # a perfect predictor
  assert score([1, 1, 0, 0], [0.9, 0.1, 0.8, 0.1], [20, 5, 3, 3]) == pytest.approx((1 - 0.5 - 0.1) / 1.5)
  assert score([1, 0], [0.1, 0.1], [10, 3]) == 0  # missed, but there is time to foretell it later
  assert score([1, 0], [0.1, 0.1], [2, 3]) == -1  # -0.8 of 0.2: the floor


def test_half_the_mean_stay_leaves_out_the_shortest_and_the_longest():
  stay = np.arange(1, 101, dtype=float) ** 2
  assert early.half_mean_stay(np.r_[stay, np.nan, np.nan]) == pytest.approx(0.5 * stay[5:95].mean())
  assert early.half_mean_stay([4.0] * 7) == 2 and math.isnan(early.half_mean_stay([np.nan]))


def test_undefined_has_a_reason_and_bad_input_is_refused():
  for label, left in (([0, 0], [5.0, 5.0]), ([1, 0], [0.0, 5.0]), ([1, 0], [np.nan, 5.0])):
    found = early.score(label, [0.9, 0.9], left, 10.0, n=5)
    assert math.isnan(found['point']) and 'no patient with the outcome' in found['reason'] and found['skipped'] == 5
  for left in ([1.0], [1.0, -1.0]):
    with pytest.raises(EagrlError, match='evaluate: stays must be 2 times'):
      early.score([1, 0], [0.5, 0.5], left, 10.0)


def run_of(tmp_path, window, stay_end='known', n=40):
  """A context and its data: a value at hours 0, 30 and, of every other patient, 70."""
  rng = np.random.default_rng(0)
  events = sorted((p, h, f) for p in range(n) for h in (0, 30, *([70] if p % 2 else [])) for f in range(2))
  patient, hour, feature = (np.array(x) for x in zip(*events))
  ends = rng.uniform(80, 400, n).astype(np.float32)
  ends[5] = np.nan
  cohort = Cohort(
      name='toy', task='mortality', setting='', features=FeatureTable((FeatureSpec('a'), FeatureSpec('b'))),
      subject_id=np.array([f'p{i}' for i in range(n)]), age=np.full(n, 50, np.float32), sex=np.zeros(n, np.int8),
      label=(np.arange(n) % 3 == 0).astype(np.int8), patient=patient.astype(np.int32), hour=hour.astype(np.float32),
      feature=feature.astype(np.int16), value=rng.normal(size=len(hour)).astype(np.float32), attrition=(),
      stay_end=ends if isinstance(stay_end, str) else stay_end)
  rows = np.arange(n)
  config = ConfigDict({
      'seed': 0, 'reward': {'top_k': 1}, 'expert': {'salience': 'occlusion'},
      'data': {'source': 'csv', 'bin_hours': 24.0, 'max_visits': 4, 'aggregate': 'mean', 'window_hours': window},
      'evaluate': {'bootstrap': 20, 'threshold': 0.4}})
  visits = data_lib.grid(cohort, config.data)
  parts = Splits(rows[:20], rows[20:24], rows[24:])
  statistics = normalise.fit(visits, parts.train, cohort.features, cohort.age)
  context = Context(config, tmp_path, local_mesh(1))
  normalise.save(context.folder('prepare') / 'statistics.json', statistics)
  return context, data_lib.Data(cohort, visits, parts, normalise.apply(statistics, visits, cohort))


@pytest.mark.parametrize(('window', 'predicted'), [(48.0, (48, 48)), (0.0, (30, 70))])
def test_the_stay_left_begins_with_the_prediction(tmp_path, window, predicted):
  context, data = run_of(tmp_path, window)
  found = early_stage.of(context, data, data, data.splits.test)
  when = np.array(predicted)[np.arange(len(data.cohort)) % 2]
  np.testing.assert_array_equal(data_lib.prediction_hours(data, window), when)
  np.testing.assert_allclose(found.left, (data.cohort.stay_end - when)[data.splits.test])
  assert found.tau == early.half_mean_stay(data.cohort.stay_end[data.splits.train])  # of nobody else
  assert found.threshold == 0.4


def test_a_stay_that_is_over_has_nothing_left(tmp_path):
  context, data = run_of(tmp_path, 48.0, np.full(40, 10, np.float32))
  assert (early_stage.of(context, data, data, data.splits.test).left == 0).all()


@pytest.mark.parametrize('ends', [None, np.full(40, np.nan, np.float32)])
def test_without_a_known_end_there_is_no_score(tmp_path, ends):
  context, data = run_of(tmp_path, 48.0, ends)
  assert early_stage.of(context, data, data, data.splits.test) is None


def test_metrics_json_has_it_for_every_arm_or_not_at_all(tmp_path):
  for ends in ('known', None):
    context, data = run_of(tmp_path, 48.0, ends)
    np.save(context.folder('expert') / 'salience_occlusion.npy', np.ones((40, 2), np.float32))
    rows = data.splits.test
    rng = np.random.default_rng(1)
    probs = {name: rng.random(len(rows)) for name in ('base', 'sft', 'rl', 'expert', 'boosting')}
    label = data.cohort.label[rows].astype(int)
    found = evaluate.summarise(context, data, rows, label, {}, probs, data.measured[rows])
    assert ('early' in found) == all('early_score' in arm for arm in found['arms'].values()) == (ends == 'known')
    if ends == 'known':
      left = (data.cohort.stay_end - 48)[rows]
      assert found['early'] == {'tau_hours': early.half_mean_stay(data.cohort.stay_end[data.splits.train]),
                                'threshold': 0.4, 'n': 16}
      for name, prob in probs.items():
        assert found['arms'][name]['early_score']['point'] == pytest.approx(
            by_the_book(label, prob, left, found['early']['tau_hours'], 0.4))
      assert foreign.blinded(data.cohort).stay_end is None
