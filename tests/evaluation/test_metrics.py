"""Point metrics against scikit-learn and hand-computed examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from eagrl_jax.evaluation import metrics
from eagrl_jax.types import EagrlError


def cohort(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(seed)
  risk = rng.beta(2, 3, n)
  return (rng.random(n) < risk).astype(int), np.round(np.clip(risk + rng.normal(0, 0.1, n), 0, 1), 2)


def test_equal_to_sklearn_with_ties_and_clipping():
  label, prob = cohort()
  assert len(np.unique(prob)) < len(prob)
  assert metrics.auroc(label, prob) == sk.roc_auc_score(label, prob)
  assert metrics.auprc(label, prob) == sk.average_precision_score(label, prob)
  assert metrics.brier(label, prob) == pytest.approx(sk.brier_score_loss(label, prob))
  assert metrics.log_loss(label, prob) == pytest.approx(sk.log_loss(label, np.clip(prob, 0.01, 0.99)))


def test_by_hand():
  label, prob = [1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1]  # three of four pairs are in order
  assert metrics.auroc(label, prob) == 0.75
  assert metrics.auprc(label, prob) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
  assert metrics.brier([1, 0], [0.8, 0.4]) == pytest.approx((0.04 + 0.16) / 2)
  assert metrics.log_loss([1], [0.0]) == pytest.approx(-math.log(0.01))


@pytest.mark.parametrize('label, why', [([1, 1], 'only one class: all 2 patients have outcome 1'), ([], 'no patients')])
def test_one_class_is_nan_with_a_reason(label, why):
  prob = [0.3] * len(label)
  assert math.isnan(metrics.auroc(label, prob)) and math.isnan(metrics.auprc(label, prob))
  assert metrics.undefined(label) == why
  assert metrics.undefined([0, 1]) is None
  assert math.isnan(metrics.calibration(label, prob)['slope'])


@pytest.mark.parametrize('label, prob, field', [
    ([0, 1], [0.5], 'one length'), ([0, 2], [0.5, 0.5], 'label'), ([0, 1], [0.5, 1.5], 'prob'),
    ([0, 1], [0.5, float('nan')], 'prob')])
def test_bad_input_names_the_field(label, prob, field):
  with pytest.raises(EagrlError, match=field):
    metrics.auroc(label, prob)


def test_calibration_recovers_the_distortion():
  rng = np.random.default_rng(1)
  logit = rng.normal(0, 1, 4000)
  label = (rng.random(4000) < 1 / (1 + np.exp(-logit))).astype(int)
  prob = 1 / (1 + np.exp(-2 * logit))  # twice too extreme
  fit = metrics.calibration(label, prob)
  clipped = np.clip(prob, 1e-6, 1 - 1e-6)
  oracle = LogisticRegression(C=1e8, tol=1e-10).fit(np.log(clipped / (1 - clipped))[:, None], label)
  assert fit['slope'] == pytest.approx(oracle.coef_[0, 0], abs=1e-4)
  assert 0.45 < fit['slope'] < 0.6
  assert abs(fit['intercept']) < 0.15


def test_recalibration_leaves_what_a_logistic_regression_on_the_logit_leaves():
  rng = np.random.default_rng(1)
  logit = rng.normal(0, 1, 4000)
  label = (rng.random(4000) < 1 / (1 + np.exp(-logit))).astype(int)
  for prob in (1 / (1 + np.exp(1 - 2 * logit)), 1 / (1 + np.exp(-2 * logit))):  # two distortions of the same risks
    oracle = LogisticRegression(C=1e8, tol=1e-10).fit(logit[:, None], label)
    left = metrics.recalibrated_log_loss(label, prob)
    assert left == pytest.approx(sk.log_loss(label, oracle.predict_proba(logit[:, None])[:, 1]), abs=1e-5)
    assert left < metrics.log_loss(label, prob) - 0.02
  assert math.isnan(metrics.recalibrated_log_loss([0, 0], [0.1, 0.2]))
  assert math.isnan(metrics.recalibrated_log_loss([0, 1], [0.3, 0.3]))


def test_true_risks_of_a_rare_outcome_are_calibrated():
  rng = np.random.default_rng(3)
  risk = 1 / (1 + np.exp(5.5 - rng.normal(0, 1.5, 40_000)))
  label = (rng.random(40_000) < risk).astype(int)
  assert 0.008 < label.mean() < 0.012 and (risk < 0.01).mean() > 0.7
  fit = metrics.calibration(label, risk)
  assert fit['slope'] == pytest.approx(1, abs=0.08) and fit['intercept'] == pytest.approx(0, abs=0.1)


def test_certainties_have_a_logit_too():
  fit = metrics.calibration([0, 1, 0, 1, 1, 0], [0.0, 1.0, 0.2, 0.7, 0.3, 0.6])
  assert all(map(math.isfinite, fit.values()))


@pytest.mark.parametrize('mean, prevalence', [(.05, .35), (.02, .46), (.95, .5), (.9, .35), (.3, .3)])
def test_the_intercept_exists_however_far_predictions_are_from_the_prevalence(mean, prevalence):
  rng = np.random.default_rng(2)
  logit = np.log(mean / (1 - mean)) + rng.normal(0, 0.3, 400)
  label = (rng.random(400) < prevalence).astype(int)
  prob = 1 / (1 + np.exp(-logit))
  excess = lambda a: np.sum(label - 1 / (1 + np.exp(-a - np.log(prob / (1 - prob)))))
  assert metrics.calibration(label, prob)['intercept'] == pytest.approx(brentq(excess, -10, 10), abs=1e-6)


def test_calibration_does_not_exist_for_constant_or_separable_predictions():
  assert math.isnan(metrics.calibration([0, 1, 1], [0.5, 0.5, 0.5])['slope'])
  assert math.isnan(metrics.calibration([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])['slope'])


def test_calibration_bins_by_hand():
  bins = metrics.calibration_bins([0, 1, 1, 1], [0.02, 0.08, 0.55, 1.0])
  np.testing.assert_allclose(bins['predicted'], [0.05, 0.55, 1.0])
  np.testing.assert_allclose(bins['observed'], [0.5, 1, 1])
  assert bins['count'].tolist() == [2, 1, 1] and bins['bin'].tolist() == [0, 5, 9]


def test_a_stated_tenth_opens_its_bin():
  stated = np.round(np.arange(10) / 10, 6)
  bins = metrics.calibration_bins(np.zeros(10), stated)
  np.testing.assert_array_equal(bins['predicted'], stated)  # 10 * .7 is below 7 in one multiplication or another
  third = metrics.calibration_bins([0, 0], [0.29, 0.3 - 1e-9 / 2], 10)
  assert third['count'].tolist() == [1, 1]


def test_min_precision_recall_by_hand():
  # Thresholds .9, .8, .6, .1: precision 1, 1/2, 2/3, 1/2; recall 1/2, 1/2, 1, 1.
  assert metrics.min_precision_recall([1, 0, 1, 0], [0.9, 0.8, 0.6, 0.1]) == pytest.approx(2 / 3)
  assert np.isnan(metrics.min_precision_recall([1, 1], [0.1, 0.2]))


def test_expected_calibration_error_by_hand():
  # Bin [.1, .2): predicted .15, observed 1/2, two patients; bin [.8, .9): .8, 1, one patient.
  assert metrics.expected_calibration_error([0, 1, 1], [0.1, 0.19999, 0.8]) == pytest.approx(
      (2 * abs(0.5 - 0.149995) + abs(1 - 0.8)) / 3)


def test_net_benefit_by_hand():
  got = metrics.net_benefit([1, 0, 1, 0], [0.9, 0.8, 0.6, 0.1], [0.5, 0.25])
  np.testing.assert_allclose(got, [(2 - 1) / 4, (2 - 1 / 3) / 4])
  everyone = metrics.net_benefit([1, 0, 0, 0], np.ones(4), [0.2])
  np.testing.assert_allclose(everyone, [(1 - 3 * 0.25) / 4])
