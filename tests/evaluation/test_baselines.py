"""Baselines against hand-computed summaries and outcomes that they must find, or cannot."""

import numpy as np
import pytest

from eagrl_jax.evaluation import baselines, metrics
from eagrl_jax.types import EagrlError

NAN = np.nan
N, T, F = 240, 3, 4
TRAIN, TEST = np.arange(160), np.arange(160, 240)


def cohort(seed=0):
  """The outcome follows the last value of feature 2; feature 3 is never measured."""
  r = np.random.default_rng(seed)
  values = r.normal(size=(N, T, F)).astype(np.float32)
  values[r.random((N, T, F)) < 0.3] = NAN
  values[:, :, 3] = NAN
  valid = np.arange(T)[None] < r.integers(1, T + 1, N)[:, None]
  table = baselines.summarise(values, valid, r.uniform(20, 90, N), r.integers(-1, 2, N))
  score = np.nan_to_num(table.last[:, 2]) + 0.3 * r.normal(size=N)
  return table, (score > np.quantile(score, 0.6)).astype(int)


def test_summaries_by_hand():
  values = np.array([[[1, NAN], [3, 5], [NAN, 9]]], np.float32)
  table = baselines.summarise(values, np.array([[True, True, False]]), np.array([60.0]), np.array([-1]))
  np.testing.assert_array_equal(table.x[0], [3, 5, 2, 5, 1, 5, 3, 5, 2, 1, 60, NAN])
  np.testing.assert_array_equal(table.last, [[3, 5]])
  np.testing.assert_array_equal(table.measured, [[2, 1]])
  never = baselines.summarise(values, np.zeros((1, 3), bool), np.array([60.0]), np.array([1]))
  assert np.isnan(never.x[0, :8]).all() and not never.measured.any()


@pytest.mark.parametrize('kind', baselines.KINDS)
def test_each_finds_the_outcome_and_shuffled_labels_are_chance(kind):
  table, label = cohort()
  prob = baselines.predict(kind, table, label, TRAIN, TEST, 0)
  assert prob.shape == (80,) and (0 < prob).all() and (prob < 1).all()
  assert metrics.auroc(label[TEST], prob) > 0.8
  shuffled = label.copy()
  shuffled[TRAIN] = np.random.default_rng(1).permutation(label[TRAIN])
  assert abs(metrics.auroc(label[TEST], baselines.predict(kind, table, shuffled, TRAIN, TEST, 0)) - 0.5) < 0.2


@pytest.mark.parametrize('kind', baselines.KINDS)
def test_test_labels_are_never_seen(kind):
  table, label = cohort()
  hidden = label.copy()
  hidden[TEST] = 0
  np.testing.assert_array_equal(*(baselines.predict(kind, table, y, TRAIN, TEST, 0) for y in (label, hidden)))


def test_the_last_value_rule_by_hand():
  x = np.full((12, 11), NAN)
  x[:10, 0] = np.arange(10)  # two patients a fifth; the last two were never measured
  label = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 1])
  rows = np.arange(12)
  prob = baselines.predict('last_value', baselines.Table(x, 2), label, rows, rows, 0)
  p = 0.5
  want = [p / 3, p / 3, p / 3, p / 3, (1 + p) / 3, (1 + p) / 3, (2 + p) / 3, (2 + p) / 3, (2 + p) / 3, (2 + p) / 3,
          (1 + p) / 3, (1 + p) / 3]
  np.testing.assert_allclose(prob, want)


def test_a_feature_that_hardly_varies_is_not_the_best_one():
  r = np.random.default_rng(0)
  n, f = 140, 30
  label = np.sort(r.integers(0, 2, n))  # ties in the order of the rows would follow it
  signal = label + r.normal(0, 2, n)
  x = np.zeros((n, f + 1))
  x[:4, :f] = 1  # nearly constant
  x[:, f] = signal
  rows = np.arange(n)
  prob = baselines.predict('last_value', baselines.Table(x, f + 1), label, rows, rows, 0)
  assert len(np.unique(prob)) > 2  # fifths of the signal, not the two values of the others


def test_bad_use():
  table, label = cohort()
  with pytest.raises(EagrlError, match="'forest' is unknown"):
    baselines.predict('forest', table, label, TRAIN, TEST, 0)
  with pytest.raises(EagrlError, match='only one class'):
    baselines.predict('boosting', table, np.zeros(N, int), TRAIN, TEST, 0)
